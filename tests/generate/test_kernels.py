"""The kernels of kernels.c against torch's operations, at sizes that end within a tile, a block or a vector."""

import platform
import shutil
import sysconfig

import pytest
import torch
import torch.nn.functional as F

from linnet.device import cpu_has_bf16
from linnet.generate.decoder import Decoder
from linnet.generate.kernels import HEAD_SIZE, Kind, kernels
from linnet.generate.products import Compiled
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import dequantize

compiled = pytest.mark.skipif(kernels() is None, reason="kernels.c was not compiled, or this CPU has no AVX2")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels.c is for x86")
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="this CPU has no AVX2")
def test_they_are_there_where_a_compiler_was():
    if shutil.which("gcc") is None or "gcc" not in (sysconfig.get_config_var("CC") or ""):
        pytest.skip("C is not compiled by gcc here, whose OpenMP torch has")
    assert kernels() is not None, "kernels.c is not compiled: pip install -e ."


@compiled
def test_a_library_of_another_version_is_not_called(monkeypatch):
    assert kernels.__wrapped__() is not None
    monkeypatch.setattr("linnet.generate.kernels.VERSION", 0)
    assert kernels.__wrapped__() is None


PRECISIONS = ["int8", "fp16", "bf16", "fp32"]


def made(out: int, channels: int, precision: str, *, bias: bool = True) -> tuple[Compiled, torch.Tensor]:
    """A product, and its matrix in fp64."""
    torch.manual_seed(out + channels)
    compiled = kernels()
    assert compiled is not None
    product = Compiled(torch.randn(out, channels), torch.randn(out) if bias else None, precision, compiled)
    if product.scale is None:
        return product, product.weight.double()
    return product, dequantize(product.weight, product.scale[:, None].double(), torch.float64)


def read(product: Compiled, x: torch.Tensor) -> torch.Tensor:
    """x as the kernel reads it."""
    return (x.bfloat16() if product.kind == Kind.PAIRS else x).double()


@compiled
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("out", "channels"), [(1, 16), (33, 48), (64, 160), (257, 768), (96, 3072)])
def test_products_are_those_of_the_matrix(precision, out, channels):
    product, matrix = made(out, channels, precision)
    bare, bare_matrix = made(out, channels, precision, bias=False)
    for rows in (1, 2, 3, 4, 5, 7, 8, 11, 63, 64, 65, 66, 67, 70):
        x = torch.randn(rows, channels)
        close = {"atol": 2e-6 * channels**0.5, "rtol": 0}
        wanted = read(product, x) @ matrix.T + product.bias.double()
        torch.testing.assert_close(product.few(x).double(), wanted, **close)
        torch.testing.assert_close(bare.few(x).double(), read(bare, x) @ bare_matrix.T, **close)
    ids = torch.tensor([out - 1, 0])
    assert torch.equal(product.rows(ids).double(), matrix[ids].float().double())


@compiled
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_does_not_depend_on_the_number_of_rows(precision):
    product, _ = made(101, 160, precision)
    x = torch.randn(130, 160)
    alone = torch.cat([product.few(row[None]) for row in x])
    for rows in range(1, 131):
        assert torch.equal(product.few(x[:rows]), alone[:rows]), rows
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(product.few(x), alone), threads
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("threads", [1, 3])
def test_gelu_is_that_of_torch(threads):
    x = torch.cat(
        [torch.linspace(-12, 12, 40_000), torch.randn(8_000), torch.tensor([0, -0.0, 1e30, -1e30] * 2)]
    )
    wanted = F.gelu(x.double(), approximate="tanh")
    kernels().gelu(x.data_ptr(), x.numel(), threads)
    torch.testing.assert_close(x.double(), wanted, atol=1e-6, rtol=1e-6)
    odd = torch.tensor([torch.nan, torch.inf] * 4)
    kernels().gelu(odd.data_ptr(), 8, threads)
    assert odd.isnan().tolist() == [True, False] * 4


@compiled
def test_input_that_is_not_contiguous_is_read_right():
    product, matrix = made(33, 48, "fp16")
    x = torch.randn(48, 5).T
    wanted = read(product, x) @ matrix.T + product.bias.double()
    torch.testing.assert_close(product.few(x).double(), wanted, atol=3e-5, rtol=3e-5)


@compiled
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_rows_are_those_of_the_matrix(precision):
    product, matrix = made(257, 768, precision)
    x = torch.randn(64, 768)
    wanted = read(product, x) @ matrix.T + product.bias.double()
    close = {"atol": 0.3, "rtol": 1e-2} if product.kind == Kind.PAIRS else {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(product.many(x).double(), wanted, **close)


@compiled
@pytest.mark.parametrize("size", [HEAD_SIZE, 64, 80])
def test_attention_is_that_of_torch_for_each_text(size):
    layers, heads = 3, 2
    network = GPT2(GPT2Config(50, 64, heads * size, layers, heads))
    decoder = Decoder(network, together=True)
    assert decoder.compiled is not None
    places, rooms = [0, 1, 7, 40, 63], [64, 2, 9, 41, 64]
    memories = [decoder.memory(room=room) for room in rooms]
    for memory in memories:
        memory.kept.normal_()
    before = [memory.kept.clone() for memory in memories]
    qkv = torch.randn(8, 3 * heads * size) * 2  # three rows more than texts
    out = decoder._compiled_attention(memories, places)(1, qkv)
    parts = qkv.view(8, 3, heads, size)
    for text, (memory, place) in enumerate(zip(memories, places, strict=True)):
        before[text][1, :, :, place] = parts[text, 1:]
        assert torch.equal(memory.kept, before[text])  # Only there, and only in this layer.
        keys, values = memory.kept[1, :, None, :, : place + 1]
        wanted = F.scaled_dot_product_attention(parts[text, 0][None, :, None], keys, values)
        torch.testing.assert_close(out[text], wanted.flatten(), atol=1e-5, rtol=1e-5)
    assert not out[5:].any()


@compiled
def test_attention_of_large_scores_stays_finite():
    decoder = Decoder(GPT2(GPT2Config(50, 64, 16, 1, 2)))
    memory = decoder.memory(room=8)
    memory.kept.fill_(1e18)
    out = decoder._compiled_attention([memory], [5])(0, torch.full((1, 48), 1e18))
    assert torch.isfinite(out).all()


@compiled
@pytest.mark.parametrize(("width", "heads", "fits"), [(24, 3, False), (48, 2, True), (48, 4, False)])
def test_other_widths_take_torchs_operations(width, heads, fits):
    decoder = Decoder(GPT2(GPT2Config(50, 64, width, 1, heads)))
    assert (decoder.compiled is not None) == isinstance(decoder.head, Compiled) == fits


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bf16 products")
def test_pairs_are_there_where_the_processor_has_them():
    compiled = kernels()
    assert compiled is None or compiled.pairs == bool(torch.cpu.get_capabilities().get("avx512_bf16"))
