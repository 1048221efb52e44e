"""From "auto" to numbers, with reasons."""

import pytest

from linnet.config import LoraConfig, TrainConfig
from linnet.device import Choice, Machine
from linnet.errors import UsageError
from linnet.model.gpt2 import GPT2Config
from linnet.training.plan import choose_batch_size, choose_block_size, make_plan


@pytest.mark.parametrize(
    ("longest", "pairs", "n_positions", "expected"),
    [
        (158, 1_000_000, 1024, 192),  # rounded up to 64
        (1024, 1_000_000, 1024, 1024),
        (5000, 1_000_000, 1024, 1024),  # capped by the model
        (10, 500, 1024, 24),  # 50 short lines: less than 64, so that an epoch has 20 rows
        (40, 500, 1024, 40),  # but never less than the longest example
        (None, 1_000_000, 256, 256),  # text: the window
        (None, 2_000, 256, 96),  # a short text: a 20th
        (None, 50, 256, 2),
        (None, 7, 256, 1),
        (3, 30, 256, 8),
    ],
)
def test_auto_block_size(longest: int | None, pairs: int, n_positions: int, expected: int) -> None:
    choice = choose_block_size("auto", longest=longest, pairs=pairs, n_positions=n_positions)
    assert choice.value == expected
    assert choice.reason


def test_a_block_over_the_positions_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"train\.block_size=512.*256 positions"):
        choose_block_size(512, longest=None, pairs=10_000, n_positions=256)


@pytest.mark.parametrize(
    ("rows", "block_size", "expected"),
    [(10_000, 256, 32), (10_000, 1024, 8), (50, 64, 2), (20, 64, 1), (3, 64, 1)],
)
def test_an_epoch_has_twenty_steps_where_the_data_allow(rows: int, block_size: int, expected: int) -> None:
    assert choose_batch_size("auto", rows=rows, block_size=block_size).value == expected
    assert rows // expected >= min(rows, 20)


def machine(device: str = "cpu", free: int = 1 << 40) -> Machine:
    return Machine(Choice(device, "here"), Choice("bf16", "here"), free)


def test_epochs_become_steps_and_a_resumed_run_keeps_its_micro_batch() -> None:
    config = TrainConfig(epochs=2.5, batch_size=8)
    shape = {
        "block_size": Choice(64, "asked for"),
        "count_rows": lambda size: 100,
        "model": GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=100, n_positions=64),
        "lora": LoraConfig(),
        "machine": machine(),
    }
    plan = make_plan(config, kept={}, **shape)
    assert (plan.steps, plan.eval_every, plan.save_every) == (32, 3, 3)
    assert plan.micro_batch_size == 8
    before = {"device": "cpu", "batch_size": 8, "micro_batch_size": 2}
    assert make_plan(config, kept=before, **shape).micro_batch_size == 2
    assert make_plan(config, kept=before | {"device": "cuda"}, **shape).micro_batch_size == 8
    chosen = config.model_copy(update={"micro_batch_size": 4})
    assert make_plan(chosen, kept=before, **shape).micro_batch_size == 4
    automatic = config.model_copy(update={"batch_size": "auto"})
    assert make_plan(automatic, kept=before | {"batch_size": 3}, **shape).batch_size == 3
    assert all(choice.reason for choice in plan.choices.values())
    assert "GB" in plan.choices["memory"].value
