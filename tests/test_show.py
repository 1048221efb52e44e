"""What a training shows before it starts: the rows of the first batch, as text."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from linnet.data.batches import Batches
from linnet.data.store import Store
from linnet.show import _row_text, show_first_batch
from tests.data.stores import lines_store

LINES = ["Съешь ещё этих мягких булок", "いろはにほへと ちりぬるを", "naïve 👩‍👩‍👧 café", "plain"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return lines_store(tmp_path, LINES, tokenizer="bpe")  # too little text for merges: a token is one byte


def test_any_script_is_shown_in_whole_characters(store: Store) -> None:
    tokenizer = store.tokenizer()
    batch = Batches(store, block_size=256, batch_size=1, seed=1, shuffle=False)(0)
    text = _row_text(batch, 0, tokenizer)
    assert sorted(text.plain.split("⏹\n")) == sorted(["", *LINES])
    assert {str(span.style) for span in text.spans} == {"green"}


def test_a_long_example_is_green_where_it_is_learned(tmp_path: Path) -> None:
    store = lines_store(tmp_path, ["abcdefghijklmnop"])
    batch = Batches(store, block_size=8, batch_size=3, seed=1, shuffle=False)(0)
    rows = [_row_text(batch, row, store.tokenizer()) for row in range(3)]
    parts = [[(row.plain[s.start : s.end], s.style) for s in row.spans] for row in rows]
    seen = {
        style: "".join(text for row in parts for text, kind in row if kind == style)
        for style in ("green", "dim")
    }
    assert sorted(seen["green"]) == sorted("abcdefghijklmnop⏹\n")
    assert seen["dim"]


@pytest.mark.parametrize(
    ("batch_size", "words"), [(1, "Its only row"), (2, "Its first 2 rows"), (5, "first 3 rows")]
)
def test_up_to_three_rows_are_shown(
    store: Store, capsys: pytest.CaptureFixture[str], batch_size: int, words: str
) -> None:
    batches = Batches(store, block_size=64, batch_size=batch_size, seed=1)
    session = SimpleNamespace(batches=batches, tokenizer=store.tokenizer())
    show_first_batch(cast(Any, session))
    out = capsys.readouterr().out
    assert words in " ".join(out.split())
    assert [f"row {n}" in out for n in (1, 2, 3, 4)] == [n <= min(batch_size, 3) for n in (1, 2, 3, 4)]
