"""The optimizers: AdamW for everything, or Muon for the blocks' matrices with AdamW for the rest.

What: `make_optimizer(model, name=...)` gives an `Optimizer`: set the rate, step, save and load its state.
Why:  Muon (https://kellerjordan.github.io/posts/muon/) needs about a fourth of AdamW's steps on small
      models, but torch.optim.Muon goes matrix by matrix and always in bf16. A small model then waits for
      launches.
How:  matrices of one shape lie in one stack (see `linnet.training.newton_schulz`). Tall
      matrices are transposed into the stack of the wide ones; q, k and v of `c_attn` are three matrices.

One `learning_rate` serves both: Muon's update is scaled by sqrt(columns), so that its RMS is the same for every
shape (https://arxiv.org/abs/2502.16982), and by `MUON_RMS`.

State is fp32, by parameter name, and loads on any device. Hyperparameters are not in it: the recipe has
them.

Shapes: N matrices in a stack, R rows <= C columns.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from linnet.config import OptimizerName
from linnet.errors import LinnetError
from linnet.training.newton_schulz import POLAR_EXPRESS, Coefficients, orthogonalize, product_precision
from linnet.training.shards import fill, local, total

ADAM_BETAS = (0.9, 0.99)
ADAM_EPSILON = 1e-8
MUON_MOMENTUM = 0.95
# RMS of an update at rate 1. 0.2 would be about AdamW's; a Shakespeare run of 300 steps ends alike with 0.4 and
# 0.8 (1.890 and 1.887, means over seeds), and 0.02 worse with 0.2.
MUON_RMS = 0.5


class Optimizer(Protocol):
    """What the loop knows of an optimizer."""

    def set_learning_rate(self, value: float) -> None:
        """The rate of the next steps."""

    def step(self) -> None:
        """One update from the parameters' `.grad`."""

    def parameters(self) -> list[Tensor]:
        """What is updated, each with its `.grad`."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def state(self) -> dict[str, Tensor]:
        """Every moment as `<moment>.<parameter name>`, fp32; maybe the live ones: read them before the next step."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises LinnetError naming a missing, unknown or misshapen moment."""


@torch.no_grad()
def clip(gradients: list[Tensor], loss: Tensor, *, limit: float) -> tuple[float, float]:
    """Scale the gradients so that their norm, all taken together, is at most `limit`.

    Returns the norm before that, and the loss as a number: what a card has computed is waited for once.
    """
    norm = total(torch.nn.utils.get_total_norm(gradients, foreach=True))
    norm_before, loss_value = torch.stack([norm.to(loss.device), loss]).tolist()
    if limit < norm_before < math.inf:
        torch._foreach_mul_(gradients, limit / (norm_before + 1e-6))  # 1e-6 as in torch's clip_grad_norm_
    return norm_before, loss_value


def make_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName,
    weight_decay: float,
    betas: tuple[float, float] = ADAM_BETAS,
    momentum: float = MUON_MOMENTUM,
    embedding_rate: float = 1.0,
    coefficients: Coefficients = POLAR_EXPRESS,
    precision: torch.dtype | Literal["auto"] = "auto",
) -> Optimizer:
    """The optimizer for the parameters of `model` that require a gradient (a tied weight counts once).

    `weight_decay` is decoupled and holds for matrices only, embeddings among them. `betas` are AdamW's,
    `momentum` is Muon's, so are the `coefficients` of its Newton-Schulz steps and the `precision` of their
    products (see `product_precision`); beside it the embeddings learn at `embedding_rate` times the rate.
    The rate is 0 until it is set.
    """
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if name == "adamw":
        return AdamW(parameters, weight_decay=weight_decay, betas=betas)
    if name == "muon":
        return Muon(
            parameters,
            weight_decay=weight_decay,
            betas=betas,
            momentum=momentum,
            embedding_rate=embedding_rate,
            coefficients=coefficients,
            precision=precision,
        )
    raise ValueError(f"unknown optimizer {name!r}: take adamw or muon")


class AdamW:
    """torch's fused AdamW, with state by parameter name.

    The functional form, because making a `torch.optim.AdamW` imports torch's compiler: 1.1 s, twice what
    the import of everything of ours takes.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        betas: tuple[float, float],
        matrix_rate: float = 1.0,
    ) -> None:
        """Matrices learn at `matrix_rate` times the rate."""
        self._betas = betas
        self._learning_rate = 0.0
        matrices = {key: p for key, p in parameters.items() if p.ndim >= 2}
        others = {key: p for key, p in parameters.items() if p.ndim < 2}
        self._groups = [
            _AdamGroup.zeros(group, decay=decay, rate=rate)
            for group, decay, rate in ((matrices, weight_decay, matrix_rate), (others, 0.0, 1.0))
            if group
        ]

    def set_learning_rate(self, value: float) -> None:
        self._learning_rate = value

    @torch.no_grad()
    def step(self) -> None:
        for group in self._groups:
            adamw(
                [local(p) for p in group.parameters],
                [local(_gradient(p)) for p in group.parameters],
                [local(moment) for moment in group.exp_avg],
                [local(moment) for moment in group.exp_avg_sq],
                [],
                group.step,
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=self._learning_rate * group.rate,
                weight_decay=group.decay,
                eps=ADAM_EPSILON,
                maximize=False,
            )

    def parameters(self) -> list[Tensor]:
        return [p for group in self._groups for p in group.parameters]

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def _moments(self) -> dict[str, Tensor]:
        """The live tensors, not copies."""
        return {key: tensor for group in self._groups for key, tensor in group.moments().items()}

    def state(self) -> dict[str, Tensor]:
        return self._moments()  # A copy would be 8 bytes a weight more than a step takes.

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        _copy_state(self._moments(), state)


@dataclass(frozen=True)
class _AdamGroup:
    """Parameters of one weight decay and one rate and their moments, which are there before the first step."""

    names: list[str]
    parameters: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: list[Tensor]  # how often each was updated, fp32 scalars as in torch
    decay: float
    rate: float  # times the learning rate

    @classmethod
    def zeros(cls, parameters: Mapping[str, nn.Parameter], *, decay: float, rate: float) -> Self:
        tensors: list[Tensor] = list(parameters.values())
        return cls(
            names=list(parameters),
            parameters=tensors,
            exp_avg=[torch.zeros_like(p, dtype=torch.float32) for p in tensors],
            exp_avg_sq=[torch.zeros_like(p, dtype=torch.float32) for p in tensors],
            step=[torch.zeros((), dtype=torch.float32, device=p.device) for p in tensors],
            decay=decay,
            rate=rate,
        )

    def moments(self) -> dict[str, Tensor]:
        kinds = {"step": self.step, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {
            f"{kind}.{name}": tensor
            for kind, tensors in kinds.items()
            for name, tensor in zip(self.names, tensors, strict=True)
        }


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a parameter that requires a gradient got none"
    return parameter.grad


class Muon:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases and norms.

    Momentum as in torch.optim.Muon: m = momentum * m + (1 - momentum) * g, and the Nesterov update
    (1 - momentum) * g + momentum * m is what is orthogonalized.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        betas: tuple[float, float],
        momentum: float,
        embedding_rate: float,
        coefficients: Coefficients,
        precision: torch.dtype | Literal["auto"],
    ) -> None:
        matrices = {key: p for key, p in parameters.items() if _is_block_matrix(key, p)}
        rest = {key: p for key, p in parameters.items() if key not in matrices}
        self._matrices: list[Tensor] = list(matrices.values())
        self._stacks = _make_stacks(matrices)
        self._rest = AdamW(rest, weight_decay=weight_decay, betas=betas, matrix_rate=embedding_rate)
        self._weight_decay = weight_decay
        self._momentum = momentum
        self._coefficients = coefficients
        self._precision = precision
        self._learning_rate = 0.0

    def set_learning_rate(self, value: float) -> None:
        self._learning_rate = value
        self._rest.set_learning_rate(value)

    @torch.no_grad()
    def step(self) -> None:
        self._rest.step()
        if self._matrices:
            torch._foreach_mul_(self._matrices, 1.0 - self._learning_rate * self._weight_decay)
        for stack in self._stacks:
            gradient = torch.stack([piece.of(_gradient(piece.parameter)) for piece in stack.pieces])
            stack.momentum.lerp_(gradient, 1.0 - self._momentum)
            update = gradient.lerp_(stack.momentum, self._momentum)
            precision = product_precision(update.device) if self._precision == "auto" else self._precision
            update = orthogonalize(update, coefficients=self._coefficients, precision=precision)
            scale = MUON_RMS * math.sqrt(update.shape[-1])
            weights = [piece.of(piece.parameter) for piece in stack.pieces]
            torch._foreach_add_(weights, list(update.float().unbind()), alpha=-self._learning_rate * scale)

    def parameters(self) -> list[Tensor]:
        return self._matrices + self._rest.parameters()

    def zero_grad(self) -> None:
        for p in self.parameters():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        state = self._rest.state()
        for key, views in self._momentum_views().items():
            state[key] = torch.cat(views)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        momentum = {key: torch.cat(views) for key, views in self._momentum_views().items()}
        _copy_state(self._rest._moments() | momentum, state)
        for key, views in self._momentum_views().items():
            for view, part in zip(views, momentum[key].chunk(len(views)), strict=True):
                view.copy_(part)

    def _momentum_views(self) -> dict[str, list[Tensor]]:
        """By state key, the parts of each parameter's momentum from top to bottom: views of the stacks."""
        views: dict[str, list[Tensor]] = {}
        for stack in self._stacks:
            for piece, matrix in zip(stack.pieces, stack.momentum, strict=True):
                view = matrix.mT if piece.transposed else matrix
                views.setdefault(f"momentum.{piece.name}", []).append(view)
        return views


@dataclass(frozen=True)
class _Piece:
    """One matrix of a stack: the `part`-th of `parts` equal row blocks of a parameter, transposed if tall."""

    name: str
    parameter: nn.Parameter
    part: int
    parts: int
    transposed: bool

    def of(self, tensor: Tensor) -> Tensor:
        """The view [R, C] of this matrix in the parameter itself or in its gradient."""
        if self.parts > 1:
            rows = tensor.shape[0] // self.parts
            tensor = tensor.narrow(0, self.part * rows, rows)
        return tensor.mT if self.transposed else tensor


@dataclass(frozen=True)
class _Stack:
    pieces: list[_Piece]
    momentum: Tensor  # [N, R, C] fp32


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Blocks are `h.<i>.`; embeddings and the tied head, whose rows stand for tokens, stay with AdamW."""
    return parameter.ndim == 2 and re.search(r"(^|\.)h\.\d+\.", name) is not None


def _make_stacks(matrices: Mapping[str, nn.Parameter]) -> list[_Stack]:
    """Group the matrices by shape (rows <= columns) and device, in the order of the names given."""
    groups: dict[tuple[int, int, torch.device], list[_Piece]] = {}
    for name, p in matrices.items():
        parts = 3 if name.endswith("attn.c_attn.weight") else 1
        rows, columns = p.shape[0] // parts, p.shape[1]
        pieces = [_Piece(name, p, part, parts, transposed=rows > columns) for part in range(parts)]
        groups.setdefault((min(rows, columns), max(rows, columns), p.device), []).extend(pieces)
    return [
        _Stack(pieces, torch.zeros(len(pieces), rows, columns, dtype=torch.float32, device=device))
        for (rows, columns, device), pieces in groups.items()
    ]


def _copy_state(into: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the live tensors `into`, all checked first: an error changes nothing."""
    _refuse("misses", into.keys() - state.keys())
    _refuse("has unknown", state.keys() - into.keys())
    _refuse("has another shape for", {key for key in into if into[key].shape != state[key].shape})
    with torch.no_grad():
        for key, tensor in into.items():
            fill(tensor, state[key])


def _refuse(what: str, keys: Iterable[str]) -> None:
    names = sorted(keys)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise LinnetError(
            f"The optimizer state of the checkpoint {what} {names[0]}{more}: "
            "it belongs to another model or optimizer; check train.optimizer and the model's sizes."
        )
