"""From scores to the next token: what is drawn, and what may be drawn at all.

Order: repetition penalty, temperature, top_k, top_p, min_p, draw (that of transformers). So top_p and min_p
judge the probabilities after the temperature.
The draw needs one number in [0, 1): a hash of (seed, number of the token). No generator is kept, none is shared:
the same seed gives the same tokens alone or among others, and a stream can be resumed anywhere.
"""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from linnet.errors import UsageError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


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
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int | None


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
    presence_penalty: float = 0.0
    """Taken from the score of each token that was written before."""
    frequency_penalty: float = 0.0
    """Taken from it once for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the score of a token id; -100 forbids it, nearly."""
    logprobs: int | None = None
    """With each token how likely it was, and so many of the likeliest ones; None: neither."""

    def __post_init__(self) -> None:
        _check_count("max_new_tokens", self.max_new_tokens)
        if self.top_k is not None:
            _check_count("top_k", self.top_k)
        _check_number("temperature", self.temperature, wanted="at least 0", fits=lambda x: x >= 0)
        _check_number("top_p", self.top_p, wanted="above 0 and at most 1", fits=lambda x: 0 < x <= 1)
        _check_number("min_p", self.min_p, wanted="from 0 to 1", fits=lambda x: 0 <= x <= 1)
        _check_number("repetition_penalty", self.repetition_penalty, wanted="above 0", fits=lambda x: x > 0)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), wanted="from -2 to 2", fits=lambda x: -2 <= x <= 2)
        for bias in self.logit_bias.values():
            _check_number("logit_bias", bias, wanted="from -100 to 100", fits=lambda x: -100 <= x <= 100)
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


class Likely(NamedTuple):
    """How likely a token was: natural logarithms of the model's own probabilities, before sampling changes them."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens, the likeliest one first."""


def likeliest(logits: Tensor, token: int, *, count: int) -> Likely:
    """Of logits [V]."""
    logprobs = logits.double().log_softmax(0)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return Likely(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))


def next_token(
    logits: Tensor,
    seen: Tensor,
    *,
    sampling: Sampling,
    seed: int,
    number: int,
    choice: int = 0,
    written: Sequence[int] = (),
) -> int:
    """Choose a token.

    logits [V]; seen [n] int64, the ids in the window (for the repetition penalty); number: 0 for the first token
    written, 1 for the next; choice: which of several texts for one prompt; written: the tokens so far. Returns the id.
    """
    scores = penalize_repetition(logits.float(), seen, penalty=sampling.repetition_penalty)
    scores = shift_scores(scores, written, sampling=sampling)
    if sampling.temperature == 0:
        return int(scores.argmax())
    ids, chances = candidates(scores, sampling=sampling)
    return int(ids[draw(chances, uniform(seed, number, choice))])


def shift_scores(scores: Tensor, written: Sequence[int], *, sampling: Sampling) -> Tensor:
    """Scores [V] with presence and frequency penalty of the tokens written, and the bias (OpenAI's API reference)."""
    shifts: dict[int, float] = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, times in Counter(written).items():
            penalty = sampling.presence_penalty + times * sampling.frequency_penalty
            shifts[token] = shifts.get(token, 0.0) - penalty
    if not shifts:
        return scores
    ids, values = torch.tensor(list(shifts)), torch.tensor(list(shifts.values()), dtype=scores.dtype)
    return scores.index_add(0, ids, values)


def penalize_repetition(scores: Tensor, seen: Tensor, *, penalty: float) -> Tensor:
    """Divide positive scores [V] of the ids in `seen` by `penalty`, multiply negative ones by it; once per id."""
    if penalty == 1.0 or len(seen) == 0:
        return scores
    chosen = scores[seen]
    return scores.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def candidates(scores: Tensor, *, sampling: Sampling) -> tuple[IntArray, FloatArray]:
    """Scores [V] -> the ids [n] that may be drawn, ascending, and their chances [n] (fp64, sum 1).

    The temperature must not be 0. At least the likeliest token always stays.

    Each filter is a least weight exp((score - largest) / temperature), so all work is one pass in fp32 over the
    vocabulary and a few over the likeliest tokens: 0.3 ms instead of 1.2 ms for 50,257 scores (two cores of a Zen 1).
    """
    plain = scores.numpy()
    if not np.isfinite(
        plain.max()
    ):  # A model that has diverged writes noise; the training then says why it ends.
        plain = np.nan_to_num(plain, nan=0.0, posinf=1e4, neginf=-1e4)
    # The largest first: a tiny temperature overflows. In fp64: it may be nothing in fp32.
    gaps = np.maximum((plain - plain.max()).astype(np.float64) / sampling.temperature, -1e4)
    weights = np.exp(gaps.astype(np.float32))
    least: float = 0.0
    if sampling.top_k is not None and sampling.top_k < len(weights):
        least = np.partition(weights, -sampling.top_k)[-sampling.top_k]
    if sampling.top_p < 1:
        least = max(least, smallest_of_top(weights, share=sampling.top_p, least=least))
    least = max(least, sampling.min_p)  # The largest weight is 1.
    ids = np.flatnonzero(weights >= least)
    chances = np.exp(gaps[ids])
    return ids, chances / chances.sum()


def smallest_of_top(weights: FloatArray, *, share: float, least: float) -> float:
    """The smallest of the largest `weights` [V] that together reach `share` of all that are at least `least`."""
    wanted = share * weights[weights >= least].sum(dtype=np.float64)
    for floor in (1e-2, 1e-4, 0.0):  # Sorting all 50,257 takes longer than all the rest; few are enough.
        best = weights[weights >= max(floor, least)]
        if best.sum(dtype=np.float64) >= wanted:
            break
    ordered = np.sort(best)[::-1]
    reached = ordered.cumsum(dtype=np.float64)
    return float(ordered[min(int((reached < wanted).sum()), len(ordered) - 1)])


def draw(chances: FloatArray, point: float) -> int:
    """The index whose share of the line from 0 to 1 holds `point`; never one of chance 0."""
    line = chances.cumsum()
    index = int(np.searchsorted(line, point * line[-1], side="right"))
    if index < len(chances) and chances[index] > 0:
        return index
    return int(np.flatnonzero(chances)[-1])  # rounding put the point at the very end


def uniform(seed: int, number: int, choice: int = 0) -> float:
    """A number in [0, 1) of (seed, number, choice) alone: rounds of SplitMix64 (Steele et al. 2014)."""
    state = _mix(_mix(seed) + number)
    return ((_mix(state + choice) if choice else state) >> 11) / 2**53


def _mix(value: int) -> int:
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
