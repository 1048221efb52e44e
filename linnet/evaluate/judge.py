"""Which measures of answers fit the data, and what they say.

What   `judge` takes (reference, written) pairs and gives `exact_match`, `rouge1`, `rouge2`, `rougeL`, or some of them.
Why    A summary has no final answer, and a solution shares few words with another: each kind of data has its measure.
How    Asked for by name, or chosen: exact match where every reference marks its final answer (`#### 42`,
       `\\boxed{42}`), ROUGE where a summary is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from linnet.errors import LinnetError
from linnet.evaluate.answers import final_answer, has_marker, same_answer
from linnet.evaluate.rouge import INSTALL, has_rouge, rouge

EXACT_MATCH, ROUGE = "exact-match", "rouge"
METRICS = (EXACT_MATCH, ROUGE)
Pairs = Sequence[tuple[str, str]]


def judge(
    pairs: Pairs, *, metrics: Sequence[str], are_summaries: bool, say: Callable[[str], None]
) -> dict[str, float]:
    """The measures `metrics` of (reference, written) pairs; none named: those that fit.

    Raises:
        LinnetError: exact match was asked for, and no reference has a final answer; or rouge-score is missing.
    """
    chosen = list(metrics) or _fitting(pairs, are_summaries=are_summaries, say=say)
    found: dict[str, float] = {}
    if EXACT_MATCH in chosen:
        found["exact_match"] = exact_match(pairs)
    if ROUGE in chosen:
        found |= rouge(pairs)
    return found


def exact_match(pairs: Pairs) -> float:
    """The share of right final answers among the pairs whose reference has one."""
    asked = [(reference, written) for reference, written in pairs if final_answer(reference) is not None]
    if not asked:
        raise LinnetError(
            "--metric exact-match needs references with a final answer (#### 42, \\boxed{42}, or a number), and these "
            "have none: leave it out."
        )
    return sum(same_answer(written, reference) for reference, written in asked) / len(asked)


def _fitting(pairs: Pairs, *, are_summaries: bool, say: Callable[[str], None]) -> list[str]:
    if are_summaries and pairs:
        if has_rouge():
            return [ROUGE]
        say(f"ROUGE is left out, since the package rouge-score is not installed: {INSTALL}")
    elif pairs and all(has_marker(reference) for reference, _ in pairs):
        return [EXACT_MATCH]
    return []
