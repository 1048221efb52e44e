"""Newton-Schulz against the singular value decomposition, and the precision of its products."""

import re
from pathlib import Path

import pytest
import torch

from linnet.training.newton_schulz import POLAR_EXPRESS, QUINTIC, orthogonalize, product_precision

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("coefficients", "low", "high"), [(QUINTIC, 0.65, 1.25), (POLAR_EXPRESS, 0.43, 1.57)]
)
@pytest.mark.parametrize("shape", [(5, 16, 16), (3, 16, 64)])
def test_newton_schulz_brings_singular_values_near_one(shape, coefficients, low, high):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(shape, generator=generator)
    result = orthogonalize(matrices, coefficients=coefficients, precision=FP32)
    start, values = (torch.linalg.svdvals(tensor) for tensor in (matrices, result))
    assert values.max() < high
    assert values[start > 0.003 * matrices.norm(dim=(1, 2))[:, None]].min() > low
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    # The singular vectors stay: in their basis the result is diagonal.
    inner = u.mT @ result @ v.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_a_stack_gives_what_its_matrices_give_alone():
    matrices = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(2))
    matrices[1] *= 1e-6
    matrices[2] *= 1e6
    together = orthogonalize(matrices, coefficients=QUINTIC, precision=FP32)
    for matrix, result in zip(matrices, together, strict=True):
        alone = orthogonalize(matrix[None], coefficients=QUINTIC, precision=FP32)[0]
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-5)


def test_a_zero_gradient_gives_no_update_and_no_nan():
    zeros = torch.zeros(2, 16, 16)
    assert torch.equal(orthogonalize(zeros, coefficients=QUINTIC, precision=FP32), zeros)


def test_precision_is_a_feature_of_the_device():
    chosen = product_precision(torch.device("cpu"))
    flags = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.M)
    if flags is None:
        pytest.skip("/proc/cpuinfo of this machine has no flags")
    native = {"avx512_bf16", "amx_tile"} & set(flags.group().split())
    assert chosen == (BF16 if native else FP32)
    assert product_precision(torch.device("meta")) == FP32
