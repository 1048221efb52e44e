"""Long text in windows that overlap, so that each token is predicted with enough text before it.

What   `strided_batches` goes through a store of the format `text` and scores each token once.
Why    In windows side by side, the first tokens of each are predicted from next to nothing, which says more about the
       cut than about the model: the loss of a novel comes out higher, the more so the shorter the window.
How    A window of W tokens moves on by S (the stride). What the window before has scored is only read: W - S tokens
       of context, at least, for all but the first window of a text. This is transformers' "perplexity of
       fixed-length models", and S = W / 2 costs twice the work of S = W.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from linnet.data.batches import Batch
from linnet.data.store import Store

Ints = npt.NDArray[np.int64]


def strided_windows(examples: Ints, *, window: int, stride: int) -> Ints:
    """[N, 3] (token_start, pairs, read): each window's first token, its (input, target) pairs, the pairs only read.

    >>> strided_windows(np.array([0, 4, 16]), window=6, stride=3).tolist()
    [[0, 3, 0], [4, 6, 0], [7, 6, 3], [10, 5, 3]]
    """
    starts: Ints = np.asarray(examples[:-1])
    pairs: Ints = np.diff(examples) - 1
    further = np.maximum(0, -(-(pairs - window) // stride))
    which = np.repeat(np.arange(len(starts)), further + 1)
    number = np.arange(len(which)) - np.repeat(np.cumsum(further + 1) - further - 1, further + 1)
    begin = number * stride
    length = np.minimum(window, pairs[which] - begin)
    read = np.where(number > 0, window - stride, 0)
    made: Ints = np.stack([starts[which] + begin, length, read], axis=1)[length > 0]
    return made


def strided_batches(
    store: Store, *, window: int, stride: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """Batches of `batch_size` windows, in order. In these, `tokens` counts what is scored, not what is read again.

    Args:
        window: most tokens that the model sees at once.
        stride: tokens by which a window moves on, 1 to `window`.
        max_tokens: at most so many are scored, in windows at even distances; None: all.
    """
    windows = strided_windows(store.examples, window=window, stride=stride)
    if max_tokens is not None:
        windows = _evenly(windows, max_tokens=max_tokens, stride=stride)
    for start in range(0, len(windows), batch_size):
        yield _batch(store, windows[start : start + batch_size])


def _evenly(windows: Ints, *, max_tokens: int, stride: int) -> Ints:
    """Windows at even distances that score at most `max_tokens`; one is shortened if it alone has more."""
    if int((windows[:, 1] - windows[:, 2]).sum()) <= max_tokens:
        return windows
    count = min(len(windows), max(1, max_tokens // stride))
    chosen = windows[np.arange(count) * len(windows) // count]
    chosen = chosen[: max(1, int((np.cumsum(chosen[:, 1] - chosen[:, 2]) <= max_tokens).sum()))]
    chosen[0, 1] = min(chosen[0, 1], chosen[0, 2] + max_tokens)
    return chosen


def _batch(store: Store, windows: Ints) -> Batch:
    """One window in each row [B, T]; T is the longest of them."""
    starts, pairs, read = windows.T[:, :, None]
    column = np.arange(int(pairs.max()))
    real = column < pairs
    token = np.where(real, starts + column, 0)
    learn = real & (column >= read) & (store.learn[token + 1] == 1)
    return Batch(
        ids=torch.from_numpy(np.where(real, store.tokens[token], 0).astype(np.int64)),
        targets=torch.from_numpy(np.where(real, store.tokens[token + 1], 0).astype(np.int64)),
        learn=torch.from_numpy(learn),
        positions=torch.from_numpy(np.broadcast_to(column, real.shape).copy()),
        lengths=[[length] for length in windows[:, 1].tolist()],
        weight=float(learn.sum()),
        tokens=int((pairs - read).sum()),
    )
