"""Packing real rows: hardly anything of a row is padding."""

from pathlib import Path

import pytest

from linnet.config import DataConfig, TokenizerConfig
from linnet.data.batches import Batches
from linnet.data.prepare import prepare


@pytest.mark.parametrize(
    ("file", "form"), [("math/gsm8k_train.jsonl", "instruct"), ("chat/sgd_train.jsonl", "chat")]
)
def test_at_least_97_percent_of_rows_of_1024_are_real(
    tmp_path: Path, shared_data: Path, file: str, form: str
) -> None:
    data = DataConfig(source=str(shared_data / file), format=form, validation=0.05)
    tokenizer = TokenizerConfig(name=str(shared_data / "gpt2-tokenizer"))
    store = prepare(data, tokenizer, folder=tmp_path / "store", size=1025)
    batches = Batches(store, block_size=1024, batch_size=1, seed=1)
    assert store.pairs / (batches.rows_per_epoch * 1024) >= 0.97
