"""From scores to the next token: what is drawn, and what may be drawn at all.

Order: repetition penalty, temperature, top_k, top_p, min_p, draw (that of transformers). So top_p and min_p
judge the probabilities after the temperature.
The draw needs one number in [0, 1): a hash of (seed, number of the token). No generator is kept, none is shared:
the same seed gives the same tokens alone or among others, and a stream can be resumed anywhere.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from linnet.errors import UsageError


class SamplingOptions(TypedDict, total=False):
    """The keywords of `generate`, `stream` and `complete`; `Sampling` holds their meaning and defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str]
    seed: int | Literal["random"]
    end_at_sentence: bool


@dataclass(frozen=True)
class Sampling:
    """How a text is continued. A value out of its range is a UsageError that names it."""

    max_new_tokens: int = 200
    """Most tokens that are written; those of the prompt do not count."""
    temperature: float = 0.8
    """Divides the scores: below 1 is surer, above 1 is wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens may be drawn."""
    top_p: float = 0.95
    """Only the likeliest tokens that together reach this probability; 1 is all of them."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest one; 0 is all of them."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that already stand in the window become less likely (Keskar et al. 2019, section 4.1).
    End-of-text is left alone: it opens each text, and a penalty would keep the model from ending."""
    stop: str | Sequence[str] = ()
    """Where one of these texts appears, the text ends before it."""
    seed: int | Literal["random"] = "random"
    """The same seed gives the same text."""
    end_at_sentence: bool = False
    """Cut after the last whole sentence; a text without one stays whole."""

    def __post_init__(self) -> None:
        _check_count("max_new_tokens", self.max_new_tokens)
        if self.top_k is not None:
            _check_count("top_k", self.top_k)
        _check_number("temperature", self.temperature, wanted="at least 0", fits=lambda x: x >= 0)
        _check_number("top_p", self.top_p, wanted="above 0 and at most 1", fits=lambda x: 0 < x <= 1)
        _check_number("min_p", self.min_p, wanted="from 0 to 1", fits=lambda x: 0 <= x <= 1)
        _check_number("repetition_penalty", self.repetition_penalty, wanted="above 0", fits=lambda x: x > 0)
        if self.seed != "random" and type(self.seed) is not int:
            raise UsageError(f"seed is {self.seed!r}, but must be a whole number or 'random'.")
        if not isinstance(self.stop, Sequence) or not all(isinstance(s, str) and s for s in self.stops):
            raise UsageError(f"stop is {self.stop!r}, but must be texts of at least one character.")
        if not isinstance(self.end_at_sentence, bool):
            raise UsageError(f"end_at_sentence is {self.end_at_sentence!r}, but must be True or False.")

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple, whether one text was given or several."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def drawn_seed(self) -> int:
        """The seed; for "random" a fresh one."""
        return secrets.randbits(63) if self.seed == "random" else self.seed


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is {value!r}, but must be a whole number of at least 1.")


def _check_number(name: str, value: object, *, wanted: str, fits: Callable[[float], bool]) -> None:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and fits(value)
    ):
        return
    raise UsageError(f"{name} is {value!r}, but must be a number {wanted}.")


def next_token(logits: Tensor, seen: Tensor, *, sampling: Sampling, seed: int, number: int) -> int:
    """Choose a token.

    logits [V]; seen [n] int64, the ids in the window (for the repetition penalty); number: 0 for the first token
    written, 1 for the next. Returns the id.
    """
    scores = penalize_repetition(logits.float(), seen, penalty=sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    return draw(probabilities(scores, sampling=sampling), uniform(seed, number))


def penalize_repetition(scores: Tensor, seen: Tensor, *, penalty: float) -> Tensor:
    """Divide positive scores [V] of the ids in `seen` by `penalty`, multiply negative ones by it; once per id."""
    if penalty == 1.0 or len(seen) == 0:
        return scores
    chosen = scores[seen]
    return scores.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def probabilities(scores: Tensor, *, sampling: Sampling) -> Tensor:
    """Scores [V] -> the probabilities [V] (fp64, sum 1) that are drawn from, 0 for what is filtered out.

    The temperature must not be 0. At least the likeliest token always stays.
    """
    scaled = scores.double()
    scaled = (scaled - scaled.max()) / sampling.temperature  # the maximum first: a tiny temperature overflows
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        smallest = scaled.topk(sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, -math.inf)
    chances = scaled.softmax(0)
    if sampling.top_p < 1:
        chances = chances.masked_fill(chances < smallest_of_top(chances, share=sampling.top_p), 0.0)
        chances = chances / chances.sum()
    if sampling.min_p > 0:
        chances = chances.masked_fill(chances < sampling.min_p * chances.max(), 0.0)
    return chances / chances.sum()


def smallest_of_top(chances: Tensor, *, share: float) -> Tensor:
    """The least of the likeliest `chances` [V] that together reach `share`; equals of it count as likely.

    Sorting all 50,257 takes 4.9 ms on one core, half as long as the model; the best 1,024 take 0.4 ms and are
    enough for most tokens.
    """
    for count in (1024, 8192, len(chances)):
        best = chances.topk(min(count, len(chances))).values
        reached = best.cumsum(0)
        if reached[-1] >= share:
            break
    return best[min(int((reached < share).sum()), len(best) - 1)]


def draw(chances: Tensor, point: float) -> int:
    """The id whose share of the line from 0 to 1 holds `point`; never one of probability 0."""
    line = chances.cumsum(0)
    index = int(torch.searchsorted(line, point * float(line[-1]), right=True))
    if index < len(chances) and chances[index] > 0:
        return index
    return int(chances.nonzero()[-1])  # rounding put the point at the very end


def uniform(seed: int, number: int) -> float:
    """A number in [0, 1) that depends on (seed, number) alone: two rounds of SplitMix64 (Steele et al. 2014)."""
    return (_mix(_mix(seed) + number) >> 11) / 2**53


def _mix(value: int) -> int:
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
