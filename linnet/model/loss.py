"""The loss of next-token prediction, without ever building all logits.

Why: the logits of one row of 1,024 tokens of `gpt2` are 1,024 x 50,257 x 4 bytes = 206 MB in fp32, their
gradient is as much again, and log-softmax keeps another copy: 2.5 GB for a micro-batch of four rows, more than
weights and optimizer together need beyond them on a 4 GB card.
How: only the learned positions are scored, in chunks of `logits_per_chunk` / V positions. Each chunk's gradient is
computed right where its logits are, so nothing is kept and nothing is computed twice: three products, as with whole
logits. At its peak a chunk of 16 bits holds its logits, 2 x 2^25 bytes = 67 MB on a card (667 positions of GPT-2's
vocabulary) and 268 MB on a CPU (2,670), whatever the batch; the softmax in fp32 takes them a few rows at a time. On
top come the head in 16 bits (77 MB for `gpt2`), the gradients of the hidden states ([N, C]) and of the head ([V, C],
154 MB, and 77 MB for a product in 16 bits).
Where the head is copied into 16 bits anyway, the copy is padded with zeros to a multiple of 64 entries: the product for
its gradient takes a quarter longer with 50,257 than with 50,304 (2,048 positions, one thread: 1,131 and 895 ms).

Shapes: B rows, T tokens, C channels, V vocabulary, N learned positions, P positions of a chunk.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.attention import Lengths
from linnet.model.gpt2 import GPT2

# A CPU takes larger chunks: one that holds a whole micro-batch saves adding up the head's gradient, 50 ms a chunk.
LOGITS_PER_CHUNK = {"cuda": 2**25, "cpu": 2**27}
# On a CPU the softmax goes over rows that stay in its cache: 667 rows of 50,257 in bf16 take 67 ms instead of 214.
LOGITS_PER_BLOCK = 2**19
PADDING = 64


class TokenBatch(Protocol):
    """What the loss reads of a batch (`linnet.data.batches.Batch` is one)."""

    @property
    def ids(self) -> Tensor:
        """[B, T] int64, the inputs."""

    @property
    def targets(self) -> Tensor:
        """[B, T] int64, the token after each input."""

    def learned(self) -> Tensor | None:
        """[N] int64, places of the learned targets in [B * T]; None where all are learned."""

    @property
    def positions(self) -> Tensor:
        """[B, T] int64, counting from 0 in each example."""

    def segments(self) -> Lengths | None:
        """The lengths of the examples in each row; None where each row is one example from position 0."""


def next_token_loss(model: GPT2, batch: TokenBatch) -> Tensor:
    """SUM of the cross entropy (nats, fp32) over the learned positions; the loop divides by the step's weight."""
    segments = batch.segments()
    # Rows of one example count from 0: a slice of `wpe` is cheaper than looking up B x T positions.
    hidden = model(batch.ids, None if segments is None else batch.positions, segments)
    hidden = hidden.flatten(0, 1)  # [B * T, C]
    targets, learned = batch.targets.flatten(), batch.learned()
    if learned is not None:
        hidden, targets = hidden.index_select(0, learned), targets.index_select(0, learned)
    return linear_cross_entropy(hidden, model.wte.weight, targets)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """sum over n of -log softmax(weight @ hidden[n])[targets[n]], chunk by chunk.

    hidden [N, C], weight [V, C], targets [N] int64 -> fp32 scalar. Products run in autocast's dtype if it is
    on, the softmax always in fp32.
    """
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
    if torch.is_grad_enabled():  # inside `forward` it never is, so it is asked here
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
    else:
        loss = _score(hidden, weight, targets, dtype=dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        loss = _score(hidden, weight, targets, dtype=dtype, grad_hidden=grad_hidden, grad_weight=grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled_hidden = None if grad_hidden is None else grad_hidden.mul_(slope)
        scaled_weight = None if grad_weight is None else grad_weight.mul_(slope)
        return scaled_hidden, scaled_weight, None, None


def _score(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype,
    grad_hidden: Tensor | None = None,
    grad_weight: Tensor | None = None,
) -> Tensor:
    """The loss; fills `grad_hidden` [N, C] and `grad_weight` [V, C] where they are given."""
    vocabulary, loss = len(weight), torch.zeros((), dtype=torch.float32, device=hidden.device)
    if grad_weight is not None and not len(targets):
        grad_weight.zero_()
    with torch.autocast(hidden.device.type, enabled=False):
        head = _padded(weight, dtype)  # [V', C]
        size = max(1, logits_per_chunk(hidden.device) // len(head))
        buffer = head.new_empty(min(size, len(targets)), len(head))
        for part in range_slices(len(targets), size):
            x = hidden[part].to(dtype)
            logits = torch.mm(x, head.mT, out=buffer[: len(x)])  # [P, V']
            loss += _softmax_loss(
                logits[:, :vocabulary],
                targets[part].unsqueeze(1),
                into_slope=grad_hidden is not None or grad_weight is not None,
            )
            if grad_hidden is not None:
                grad_hidden[part] = logits @ head
            if grad_weight is not None:
                # To grad_weight's type first: += of two types is eight times slower on a CPU.
                product = _head_gradient(logits, x).to(grad_weight.dtype)[:vocabulary]
                grad_weight.copy_(product) if part.start == 0 else grad_weight.add_(product)
    return loss


def _head_gradient(slopes: Tensor, x: Tensor) -> Tensor:
    """slopes^T x: [P, V] and [P, C] -> [V, C], in fp32 for fp16, whose sums end at 65,504.

    A token that is the target in 600 places of size 200 has a sum of 120,000, and no loss scale helps, for that comes
    later. Slopes are at most 1, so x is divided by a power of two, which changes no digit, as far as sums may need it.
    """
    if x.dtype != torch.float16:
        return slopes.mT @ x
    most = x.abs().amax().float() * len(x) / torch.finfo(torch.float16).max
    room = most.clamp_min(1.0).log2().ceil().exp2()
    return (slopes.mT @ (x / room.half())).float() * room


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The head in `dtype`; where that needs a copy, with rows of zeros up to a multiple of PADDING."""
    if weight.dtype == dtype:
        return weight
    rows, columns = weight.shape
    head = weight.new_zeros(-(-rows // PADDING) * PADDING, columns, dtype=dtype)
    head[:rows] = weight
    return head


def logits_per_chunk(device: torch.device) -> int:
    """Most logits that are built at once."""
    return LOGITS_PER_CHUNK["cpu" if device.type == "cpu" else "cuda"]


def _softmax_loss(logits: Tensor, targets: Tensor, *, into_slope: bool) -> Tensor:
    """The cross entropy of logits [P, V] and targets [P, 1], summed in fp32.

    log sum exp is the largest logit minus the logarithm of its probability, which is at least 1 / V: so one pass of
    exponentials gives loss and slope. `into_slope`: replace the logits by d loss / d logits = softmax - 1 at the
    target.
    """
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    on_cpu = logits.device.type == "cpu"
    size = max(1, LOGITS_PER_BLOCK // logits.shape[1]) if on_cpu else max(1, len(logits))
    for rows in range_slices(len(logits), size):
        block, chosen = logits[rows], targets[rows]
        largest, of_target = block.amax(1, keepdim=True).float(), block.gather(1, chosen).float()
        probabilities = F.softmax(block, dim=1, dtype=torch.float32)
        loss += (largest - probabilities.amax(1, keepdim=True).log() - of_target).sum()
        if into_slope:
            slope = probabilities.scatter_add_(
                1, chosen, probabilities.new_full((1, 1), -1.0).expand_as(chosen)
            )
            block.copy_(slope)
    return loss


def range_slices(length: int, size: int) -> list[slice]:
    """Cut 0..length into slices of at most `size`: (5, 2) -> [0:2], [2:4], [4:5]."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
