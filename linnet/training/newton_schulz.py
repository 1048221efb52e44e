"""Newton-Schulz: the nearest orthogonal matrix, by products alone, for a stack of matrices at once.

What: `orthogonalize(matrices, ...)`, two sets of coefficients, and the precision of the products.
Why:  Muon needs it for every matrix at every step. On two cores the products of a 128-wide model take 0.2 ms a
      stack and start in 0.01 ms; matrix by matrix, starting costs as much as multiplying.
How:  odd polynomials of the singular values; no decomposition is ever made.

Shapes: N matrices in a stack, R rows <= C columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from linnet.device import cpu_has_bf16

Coefficients = Sequence[tuple[float, float, float]]
# Keller Jordan's quintic, as in torch.optim.Muon: five steps bring singular values from 0.002 up into 0.7..1.2.
QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
# Polar Express (https://arxiv.org/abs/2505.16932, algorithm 1), best polynomials for singular values from 0.001
# up, cut after four of its steps: they land in 0.44..1.56. A loss as good as QUINTIC's for a fifth less work.
POLAR_EXPRESS: Coefficients = (
    (8.2052, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
)


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
    """Precision of the products: bf16 where the processor multiplies it natively, else fp32.

    Asked of the hardware's features, never of a stopwatch: a resumed run must take the same bits. bf16 halves
    the time on a CPU that has it and is slower than fp32 where it is emulated.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32
