"""ROUGE: how many words of a reference summary a written one shares (Lin 2004).

What   `rouge` gives the F-measures of ROUGE-1 (words), ROUGE-2 (pairs of words) and ROUGE-L (longest common
       subsequence).
Why    It is the number that summaries are compared by. It rewards copying and knows nothing of truth.
How    The package rouge-score, the field's reference implementation, with Porter's stemmer. Recall r = shared / words
       of the reference, precision p = shared / words written, F = 2 r p / (r + p), the mean over all pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from linnet.errors import LinnetError

KINDS = ("rouge1", "rouge2", "rougeL")
INSTALL = "pip install 'linnet[eval]'"


def has_rouge() -> bool:
    """Whether the package rouge-score is installed."""
    return importlib.util.find_spec("rouge_score") is not None


def require_rouge() -> None:
    """Raise a LinnetError with the line to type where rouge-score is not installed."""
    if not has_rouge():
        raise LinnetError(f"ROUGE is computed by the package rouge-score, which is not installed: {INSTALL}")


def rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean F-measures over (reference, written) pairs: {"rouge1": ..., "rouge2": ..., "rougeL": ...}.

    Raises:
        LinnetError: rouge-score is not installed.
    """
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    scores = [scorer.score(reference, written) for reference, written in pairs]
    return {kind: sum(score[kind].fmeasure for score in scores) / max(len(scores), 1) for kind in KINDS}
