"""The technical details of a model card.

What   `details_of` makes lines such as "Training time: 26 s, 9,449 tokens/s" of the figures in facts.py.
Why    The cards of such models have this list, mostly written from memory. Here each line was measured.
How    A line is made of parts. A part whose figure the files do not tell is left out, and so is a line without parts.
"""

from __future__ import annotations

import math
import re
from typing import Any

from linnet.track.card.facts import Facts, texts
from linnet.track.card.markdown import plain
from linnet.track.progress import duration

Detail = tuple[str, list[str | None]]
"""A name, and what is said of it."""


def details_of(facts: Facts) -> list[tuple[str, str]]:
    """The technical details, as (name, words); what the files do not tell is left out."""
    details = [*_data_details(facts), *_training_details(facts), *_result_details(facts)]
    return [(name, plain(", ".join(filter(None, words)))) for name, words in details if any(words)]


def _data_details(facts: Facts) -> list[Detail]:
    shape = {"n_layer": "layers", "n_head": "heads", "n_embd": "wide", "n_positions": "positions"}
    counts = {"rows": "rows", "tokens": "tokens", "learned_tokens": "of them learned"}
    sizes = [_with(f"{{:,}} {words}", facts.shape(key)) for key, words in shape.items()]
    if facts.key("data", "format") == "text":  # Continuous text has no rows of its own.
        del counts["rows"]
    held_out = [
        _with(f"{{:,}} {key}", facts.held_out_count(key)) for key in counts if key != "learned_tokens"
    ]
    return [
        ("Parameters", [_with("{:,}", facts.parameters), *sizes]),
        ("Training data", [_with(f"{{:,}} {words}", facts.data_count(key)) for key, words in counts.items()]),
        ("Held-out data", held_out),
    ]


def _training_details(facts: Facts) -> list[Detail]:
    steps, tokens = facts.steps, facts.tokens
    per_step = tokens / steps if tokens and steps else None
    read = [_with("{:,} steps", steps), _with("{:,} tokens read", tokens)]
    batch = [_with("{} rows a step", facts.choice("batch_size")), _with("{:,.0f} tokens a step", per_step)]
    optimizer = [
        _with("{}", facts.key("train", "optimizer")),
        _with("peak learning rate {:g}", facts.key("train", "learning_rate")),
        _with("{}", facts.key("train", "schedule")),
        _with("{:,} warm-up steps", facts.key("train", "warmup_steps")),
        _with("weight decay {:g}", facts.key("train", "weight_decay")),
    ]
    adapters = facts.adapters or {}
    lora = [
        _with("LoRA of rank {}", adapters.get("rank")),
        _with("alpha {:g}", adapters.get("alpha")),
        _with("on {}", ", ".join(texts(adapters.get("targets")))),
        _with("{:,} trained parameters", facts.trained_parameters),
        "the frozen matrices in int8" if adapters.get("base") == "int8" else None,
        "merged into these weights" if adapters else None,
    ]
    return [
        ("Adapters", lora),
        ("Epochs", [_with("{:.2f}", facts.epochs), *read]),
        ("Batch", batch),
        ("Block size", [_with("{} tokens", facts.choice("block_size"))]),
        ("Precision", [_with("{}, master weights in fp32", ", then ".join(facts.each_choice("precision")))]),
        ("Optimizer", optimizer),
    ]


def _result_details(facts: Facts) -> list[Detail]:
    seconds, starts = facts.seconds, len(facts.starts)
    speed = facts.tokens / seconds if facts.tokens and seconds else None
    time = [_with("{}", duration(seconds) if seconds else None), _with("{:,.0f} tokens/s", speed)]
    packages = {"linnet": "Linnet", "torch": "torch", "python": "Python"}
    return [
        ("Hardware", [", then ".join(facts.hardware)]),
        ("Training time", [*time, f"{starts} starts" if starts > 1 else None]),
        ("Training loss", [_with("{:.4f} nats per token", facts.training_loss), _mean_of(facts)]),
        ("Held-out loss", [_held_out(facts)]),
        ("Changed between two starts", [", ".join(facts.changed_keys)]),
        ("Made with", [_with(f"{name} {{}}", facts.version(key)) for key, name in packages.items()]),
    ]


def _mean_of(facts: Facts) -> str | None:
    """Which steps the training loss is a mean of."""
    logged, finite = len(facts.last_losses), sum(map(math.isfinite, facts.last_losses))
    if not finite:
        return None
    steps = f"the last {logged} logged steps" if logged > 1 else "the only logged step"
    return f"the mean of {steps}" + (
        f" without {logged - finite} that were not finite" if finite < logged else ""
    )


def _held_out(facts: Facts) -> str | None:
    """`4.1 -> 3.2 nats per token at step 280 (perplexity 24.5), on 11,904 tokens`."""
    if facts.best is None:
        return None
    step, loss = facts.best
    before = f"{facts.loss_before:.4f} before training, " if facts.loss_before is not None else ""
    tokens = f", on {facts.held_out_tokens:,} tokens" if facts.held_out_tokens else ""
    return f"{before}{loss:.4f} nats per token at step {step:,} (perplexity {perplexity(loss):g}){tokens}"


def perplexity(loss: float) -> float:
    """e^loss to four digits; a loss beyond 700 nats has none that a float can hold."""
    return float(f"{math.exp(min(loss, 700.0)):.4g}")


def _with(words: str, value: Any) -> str | None:
    """`words` with the value in it, `1 row a step` of "{} rows a step"; None for one that is missing or unfit."""
    if value is None or value == "":
        return None
    try:
        text = words.format(value)
    except (ValueError, TypeError):
        return None
    return re.sub(r"^1 (\w+)s\b", r"1 \1", text) if str(value) == "1" else text
