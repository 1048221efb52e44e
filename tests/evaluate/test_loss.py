"""Held-out loss: the number that transformers computes on the same tokens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from linnet.data.batches import validation_batches
from linnet.data.store import Store
from linnet.errors import Stopped
from linnet.evaluate.loss import held_out_loss
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.loss import next_token_loss
from linnet.model.pretrained import save_model
from tests.data.stores import make_store

BLOCK = 32


@pytest.fixture
def held_out(tmp_path: Path) -> Store:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Bird {i} sings of {i * 7} rivers.\n" for i in range(300)))
    store = make_store(tmp_path, source=str(text), format="text", tokenizer="char")
    assert store.validation is not None
    return store.validation


def new_model(store: Store) -> GPT2:
    return GPT2(GPT2Config(store.vocab_size, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=2), seed=1)


def loss_of(model: GPT2, store: Store, *, max_tokens: int = 10**9, batch_size: int = 4) -> tuple[float, int]:
    batches = validation_batches(store, block_size=BLOCK, batch_size=batch_size, max_tokens=max_tokens)
    return held_out_loss(model, batches, loss=next_token_loss, device="cpu", precision="fp32")


def test_it_is_what_transformers_computes_over_the_same_windows(held_out: Store, tmp_path: Path) -> None:
    model = new_model(held_out)
    ours, count = loss_of(model, held_out)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, model, tokenizer=held_out.tokenizer())
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(held_out.tokens[: len(held_out.tokens)].astype("int64"))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, BLOCK):
            window = ids[start : start + BLOCK + 1]
            logits = theirs(window[None, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    assert count == len(ids) - 1
    assert ours == pytest.approx(total / count, abs=1e-4)


def test_it_does_not_depend_on_the_batch_size_and_leaves_the_model_in_training(held_out: Store) -> None:
    model = new_model(held_out).train()
    one, _ = loss_of(model, held_out, batch_size=1)
    eight, _ = loss_of(model, held_out, batch_size=8)
    assert one == pytest.approx(eight, abs=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_reads_at_most_the_tokens_it_may(held_out: Store) -> None:
    _, count = loss_of(new_model(held_out), held_out, max_tokens=100)
    assert 64 <= count <= 100


def test_a_stop_ends_it_between_batches(held_out: Store) -> None:
    calls = 0

    def check_stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stopped("stopped", signal_number=15)

    batches = validation_batches(held_out, block_size=BLOCK, batch_size=2, max_tokens=10**9)
    model = new_model(held_out).train()
    with pytest.raises(Stopped):
        held_out_loss(
            model, batches, loss=next_token_loss, device="cpu", precision="fp32", check_stop=check_stop
        )
    assert model.training
