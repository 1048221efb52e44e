"""The loss of next-token prediction, without ever building all logits.

Why: the logits of one row of 1,024 tokens of `gpt2` are 1,024 x 50,257 x 4 bytes = 206 MB in fp32, their
gradient is as much again, and log-softmax keeps another copy: 2.5 GB for a micro-batch of four rows, more than
weights and optimizer together need beyond them on a 4 GB card.
How: only the learned positions are scored, in chunks of LOGITS_PER_CHUNK / V positions (667 for GPT-2's
vocabulary). Each chunk's gradient is computed right where its logits are, so nothing is kept and nothing is
computed twice: three products, as with whole logits. At its peak a chunk holds its logits, 2^25 x 4 bytes =
134 MB in fp32 and 67 MB in bf16, whatever the batch; the softmax in fp32 takes them a few rows at a time. On top
come the gradients of the hidden states ([N, C]) and of the head ([V, C], 154 MB for `gpt2`), which autograd
needs anyway, and in bf16 the head itself (77 MB).

Shapes: B rows, T tokens, C channels, V vocabulary, N learned positions, P positions of a chunk.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from linnet.model.gpt2 import GPT2

LOGITS_PER_CHUNK = 2**25
# On a CPU the softmax goes over rows that stay in its cache: 667 rows of 50,257 in bf16 take 67 ms instead of 214.
LOGITS_PER_BLOCK = 2**19


class TokenBatch(Protocol):
    """What the loss reads of a batch (`linnet.data.batches.Batch` is one)."""

    @property
    def ids(self) -> Tensor:
        """[B, T] int64, the inputs."""

    @property
    def targets(self) -> Tensor:
        """[B, T] int64, the token after each input."""

    @property
    def learn(self) -> Tensor:
        """[B, T] bool, False where the target is read only and on padding."""

    @property
    def positions(self) -> Tensor:
        """[B, T] int64, counting from 0 in each example."""

    def segments(self) -> Tensor | None:
        """[B, T] int, the example of each token; None where each row is one example from position 0."""


def next_token_loss(model: GPT2, batch: TokenBatch) -> Tensor:
    """SUM of the cross entropy (nats, fp32) over the learned positions; the loop divides by the step's weight."""
    segments = batch.segments()
    # Rows of one example count from 0: a slice of `wpe` is cheaper than looking up B x T positions.
    hidden = model(batch.ids, None if segments is None else batch.positions, segments)
    hidden = hidden.flatten(0, 1)  # [B * T, C]
    learn, targets = batch.learn.flatten(), batch.targets.flatten()
    if not learn.all():
        chosen = learn.nonzero().squeeze(1)
        hidden, targets = hidden.index_select(0, chosen), targets.index_select(0, chosen)
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
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
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
    """The loss; fills `grad_hidden` [N, C] and adds to `grad_weight` [V, C] where they are given."""
    training = grad_hidden is not None or grad_weight is not None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        for part in range_slices(len(targets), max(1, LOGITS_PER_CHUNK // len(weight))):
            x = hidden[part].to(dtype)
            logits = F.linear(x, head)  # [P, V]
            loss += _softmax_loss(logits, targets[part].unsqueeze(1), into_slope=training)
            if grad_hidden is not None:
                grad_hidden[part] = logits @ head
            if grad_weight is not None and grad_weight.dtype == dtype:
                grad_weight.addmm_(logits.t(), x)
            elif grad_weight is not None:
                grad_weight += logits.t() @ x
    return loss


def _softmax_loss(logits: Tensor, targets: Tensor, *, into_slope: bool) -> Tensor:
    """The cross entropy of logits [P, V] and targets [P, 1], summed in fp32.

    `into_slope`: replace the logits by d loss / d logits = softmax - 1 at the target.
    """
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    on_cpu = logits.device.type == "cpu"
    size = max(1, LOGITS_PER_BLOCK // logits.shape[1]) if on_cpu else len(logits)
    for rows in range_slices(len(logits), size):
        block, chosen = logits[rows], targets[rows]
        log_probabilities = F.log_softmax(block, dim=1, dtype=torch.float32)
        loss -= log_probabilities.gather(1, chosen).sum()
        if into_slope:
            slope = log_probabilities.exp_()
            slope.scatter_add_(1, chosen, slope.new_full((1, 1), -1.0).expand_as(chosen))
            block.copy_(slope)
    return loss


def range_slices(length: int, size: int) -> list[slice]:
    """Cut 0..length into slices of at most `size`: (5, 2) -> [0:2], [2:4], [4:5]."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
