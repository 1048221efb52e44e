"""The optimizers: AdamW for everything, or Muon for the blocks' matrices with AdamW for the rest.

What: `make_optimizer(model, name=...)` gives an `Optimizer`: set the rate, step, save and load its state.
Why:  Muon (https://kellerjordan.github.io/posts/muon/) needs about a fourth of AdamW's steps on small
      models, but torch.optim.Muon goes matrix by matrix and always in bf16. A small model then waits for
      launches.
How:  matrices of one shape lie in one stack, and a Newton-Schulz step is three batched products. Tall
      matrices are transposed into the stack of the wide ones; q, k and v of `c_attn` are three matrices.

One `learning_rate` serves both: Muon's update is scaled to the RMS that AdamW's usually has
(0.2 * sqrt(max(rows, columns)), https://arxiv.org/abs/2502.16982), so that a recipe changes its optimizer
in one word.

State is fp32, by parameter name, and loads on any device. Hyperparameters are not in it: the recipe has
them.

Shapes: N matrices in a stack, R rows <= C columns.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from linnet.errors import LinnetError

OptimizerName = Literal["adamw", "muon"]

ADAM_BETAS = (0.9, 0.99)
ADAM_EPSILON = 1e-8
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2

Coefficients = Sequence[tuple[float, float, float]]
# Keller Jordan's quintic: five steps bring every singular value above about 0.002 into 0.7..1.2.
QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5


class Optimizer(Protocol):
    """What the loop knows of an optimizer."""

    def set_learning_rate(self, value: float) -> None:
        """The rate of the next steps."""

    def step(self) -> None:
        """One update from the parameters' `.grad`."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def state(self) -> dict[str, Tensor]:
        """Every moment as `<moment>.<parameter name>`, fp32; a snapshot that later steps do not change."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises LinnetError naming a missing, unknown or misshapen moment."""


def make_optimizer(
    model: nn.Module,
    *,
    name: OptimizerName,
    weight_decay: float,
    betas: tuple[float, float] = ADAM_BETAS,
    momentum: float = MUON_MOMENTUM,
    precision: torch.dtype | Literal["auto"] = "auto",
) -> Optimizer:
    """The optimizer for the parameters of `model` that require a gradient (a tied weight counts once).

    `weight_decay` is decoupled and holds for matrices only, embeddings among them. `betas` are AdamW's,
    `momentum` is Muon's, `precision` that of Muon's products (see `product_precision`). The rate is 0 until
    it is set.
    """
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if name == "adamw":
        return AdamW(parameters, weight_decay=weight_decay, betas=betas)
    if name == "muon":
        return Muon(
            parameters, weight_decay=weight_decay, betas=betas, momentum=momentum, precision=precision
        )
    raise ValueError(f"unknown optimizer {name!r}: take adamw or muon")


class AdamW:
    """torch's fused AdamW, with state by parameter name.

    The functional form, because making a `torch.optim.AdamW` imports torch's compiler: 1.1 s, twice what
    the import of everything of ours takes.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        self._betas = betas
        self._learning_rate = 0.0
        matrices = {key: p for key, p in parameters.items() if p.ndim >= 2}
        others = {key: p for key, p in parameters.items() if p.ndim < 2}
        self._groups = [
            _AdamGroup.zeros(group, decay=decay)
            for group, decay in ((matrices, weight_decay), (others, 0.0))
            if group
        ]

    def set_learning_rate(self, value: float) -> None:
        self._learning_rate = value

    @torch.no_grad()
    def step(self) -> None:
        for group in self._groups:
            adamw(
                group.parameters,
                [_gradient(p) for p in group.parameters],
                group.exp_avg,
                group.exp_avg_sq,
                [],
                group.step,
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=self._learning_rate,
                weight_decay=group.decay,
                eps=ADAM_EPSILON,
                maximize=False,
            )

    def zero_grad(self) -> None:
        for group in self._groups:
            for p in group.parameters:
                p.grad = None

    def _moments(self) -> dict[str, Tensor]:
        """The live tensors, not copies."""
        return {key: tensor for group in self._groups for key, tensor in group.moments().items()}

    def state(self) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self._moments().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        _copy_state(self._moments(), state)


@dataclass(frozen=True)
class _AdamGroup:
    """Parameters of one weight decay and their moments, which are there before the first step."""

    names: list[str]
    parameters: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: list[Tensor]  # how often each was updated, fp32 scalars as in torch
    decay: float

    @classmethod
    def zeros(cls, parameters: Mapping[str, nn.Parameter], *, decay: float) -> Self:
        tensors: list[Tensor] = list(parameters.values())
        return cls(
            names=list(parameters),
            parameters=tensors,
            exp_avg=[torch.zeros_like(p, dtype=torch.float32) for p in tensors],
            exp_avg_sq=[torch.zeros_like(p, dtype=torch.float32) for p in tensors],
            step=[torch.zeros((), dtype=torch.float32, device=p.device) for p in tensors],
            decay=decay,
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
        momentum: float = MUON_MOMENTUM,
        precision: torch.dtype | Literal["auto"] = "auto",
        coefficients: Coefficients = QUINTIC,
    ) -> None:
        matrices = {key: p for key, p in parameters.items() if _is_block_matrix(key, p)}
        rest = {key: p for key, p in parameters.items() if key not in matrices}
        self._matrices: list[Tensor] = list(matrices.values())
        self._stacks = _make_stacks(matrices)
        self._rest = AdamW(rest, weight_decay=weight_decay, betas=betas)
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

    def zero_grad(self) -> None:
        self._rest.zero_grad()
        for p in self._matrices:
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


def orthogonalize(matrices: Tensor, *, coefficients: Coefficients, precision: torch.dtype) -> Tensor:
    """Newton-Schulz: bring the singular values of each matrix near 1, keep its singular vectors.

    `matrices` [N, R, C] with R <= C (less work than the other way round); the result is in `precision`.
    Each step is X <- a X + (b A + c A A) X with A = X X^T, a quintic in the singular values, which are
    brought to at most 1 first by the Frobenius norm.
    """
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_(min=1e-7)
    x: Tensor = (matrices / norm).to(precision)
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def product_precision(device: torch.device) -> torch.dtype:
    """Precision of the Newton-Schulz products: bf16 where the processor multiplies it natively, else fp32.

    Asked of the hardware's features, never of a stopwatch: a resumed run must take the same bits.
    Emulated bf16 products are slower than fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and bool(
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if native else torch.float32


def _copy_state(into: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the live tensors `into`, all checked first: an error changes nothing."""
    _refuse("misses", into.keys() - state.keys())
    _refuse("has unknown", state.keys() - into.keys())
    _refuse("has another shape for", {key for key in into if into[key].shape != state[key].shape})
    with torch.no_grad():
        for key, tensor in into.items():
            tensor.copy_(state[key])


def _refuse(what: str, keys: Iterable[str]) -> None:
    names = sorted(keys)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise LinnetError(
            f"The optimizer state of the checkpoint {what} {names[0]}{more}: "
            "it belongs to another model or optimizer; check train.optimizer and the model's sizes."
        )
