"""Adapters against plain fp32 arithmetic: the loss, the gradients, what is frozen and what is kept."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from linnet.device import autocast
from linnet.model.gpt2 import GPT2
from linnet.model.lora import (
    FrozenLinear,
    adapter_state,
    adapters_of,
    add_adapters,
    dequantize,
    load_trained,
    merged,
    quantize,
    trained_state,
)
from linnet.model.loss import next_token_loss
from linnet.model.recompute import recomputed
from tests.model.examples import SIZES, Rows, packed, tiny

RANK, ALPHA = 3, 7.0
ALL = ("c_attn", "c_proj", "c_fc")
ROWS = packed([[20, 12], [32], [5, 5, 9]], size=32)


def adapted(
    *, targets: tuple[str, ...] = ALL, base: str = "float", dtype: torch.dtype = torch.float32
) -> GPT2:
    """The tiny network with adapters that are in use: B is not 0 any more."""
    model = tiny()
    add_adapters(model, rank=RANK, alpha=ALPHA, targets=targets, base=base, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter_state(model).items():
        if name.endswith("lora_B"):
            tensor.normal_(0, 0.1, generator=generator)
    return model


def plain_loss(model: GPT2) -> tuple[Tensor, dict[str, Tensor]]:
    """The same loss without any of our modules: whole fp32 matrices W + alpha / rank B A; and the leaves A and B."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in adapter_state(model).items()}
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            weight = module.weight.float()
            if module.scale is not None:
                weight = weight * module.scale
            if f"{name}.lora_A" in leaves:
                weight = weight + ALPHA / RANK * leaves[f"{name}.lora_B"] @ leaves[f"{name}.lora_A"]
            weights[f"{name}.weight"] = weight
    network = tiny()
    for name in ("wte.weight", "wpe.weight"):
        weights[name] = model.get_parameter(name).float()
    hidden = functional_call(network, weights, (ROWS.ids, ROWS.positions, ROWS.segments()))
    logits = torch.nn.functional.linear(hidden, weights["wte.weight"])
    loss = torch.nn.functional.cross_entropy(logits[ROWS.learn], ROWS.targets[ROWS.learn], reduction="sum")
    return loss, leaves


def gradients(model: GPT2, *, precision: str = "fp32") -> tuple[Tensor, dict[str, Tensor]]:
    with autocast(precision, "cpu"):
        loss = next_token_loss(model, ROWS)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


@pytest.mark.parametrize("base", ["float", "int8"])
@pytest.mark.parametrize("targets", [ALL, ("c_attn",), ("c_fc", "c_proj")])
def test_loss_and_gradients_are_those_of_the_whole_matrices(base: str, targets: tuple[str, ...]) -> None:
    model = adapted(targets=targets, base=base)
    loss, grads = gradients(model)
    plain, leaves = plain_loss(model)
    plain.backward()
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-5, atol=0)
    assert grads.keys() == leaves.keys()
    for name, leaf in leaves.items():
        torch.testing.assert_close(grads[name], leaf.grad, rtol=1e-4, atol=1e-4 * leaf.grad.abs().max())


@pytest.mark.parametrize("base", ["float", "int8"])
def test_in_bf16_they_agree_to_its_digits(base: str) -> None:
    model = adapted(base=base, dtype=torch.bfloat16)
    loss, grads = gradients(model, precision="bf16")
    plain, leaves = plain_loss(model)
    plain.backward()
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-2, atol=0)
    for name, leaf in leaves.items():
        assert grads[name].dtype == torch.float32
        error = (grads[name] - leaf.grad).norm() / leaf.grad.norm()
        assert error < 0.1, f"{name}: {error:.3f}"


def test_it_starts_as_the_network_that_it_was() -> None:
    model, before = tiny(), tiny()
    add_adapters(model, rank=RANK, alpha=ALPHA, targets=ALL)
    with torch.no_grad():
        assert torch.equal(next_token_loss(model, ROWS), next_token_loss(before, ROWS))
    assert model.state_dict().keys() - adapter_state(model).keys() == before.state_dict().keys()


def test_a_starts_as_in_peft_and_follows_the_seed() -> None:
    models = [tiny(n_embd=64) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, rank=16, alpha=16, targets=ALL, seed=seed)
    states = [adapter_state(model) for model in models]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        if name.endswith("lora_B"):
            assert not tensor.any()
            continue
        assert not torch.equal(tensor, states[2][name])
        bound = 1 / math.sqrt(tensor.shape[1])  # Uniform: its standard deviation is bound / sqrt(3).
        assert tensor.abs().max() <= bound
        assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("base", "width"), [("float", 2), ("int8", 1)])
def test_what_is_frozen_takes_two_bytes_or_one(base: str, width: int) -> None:
    model = adapted(base=base, dtype=torch.bfloat16)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == adapter_state(model).keys()
    assert len(trained) == 2 * 4 * model.config.n_layer
    for name, parameter in model.named_parameters():
        frozen_matrix = parameter.ndim == 2 and name not in trained and not name.endswith("scale")
        if frozen_matrix:
            assert parameter.element_size() == (2 if name.startswith("w") else width), name
        else:
            assert parameter.dtype == torch.float32, name


def test_codes_and_their_rounding() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    weight[4] *= 1e-3
    codes, scale = quantize(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(dim=1)[[0, 3, 4]].tolist() == [127, 0, 127]
    assert ((codes * scale - weight).abs() <= scale / 2 * 1.001).all()
    assert torch.equal(dequantize(codes, scale, torch.float32), codes * scale)
    assert torch.equal(dequantize(codes, scale, torch.bfloat16), (codes * scale).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_codes_is_that_of_the_matrix(dtype: torch.dtype) -> None:
    linear = tiny().h[0].mlp.c_fc
    frozen = FrozenLinear(linear, base="int8", dtype=dtype)
    x = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    slope = torch.randn(2, 5, 128, dtype=dtype)
    weight = (frozen.weight * frozen.scale).to(dtype)
    expected = torch.nn.functional.linear(other, weight, linear.bias.detach().to(dtype))
    y = frozen(x)
    assert torch.equal(y, expected)
    y.backward(slope)
    expected.backward(slope)
    torch.testing.assert_close(x.grad, other.grad)


def test_the_backward_pass_keeps_no_matrix_and_no_input_of_codes() -> None:
    frozen = FrozenLinear(tiny().h[0].mlp.c_fc, base="int8", dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        frozen(torch.randn(2, 5, 32, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept} == {frozen.weight.data_ptr(), frozen.scale.data_ptr()}


@pytest.mark.parametrize("base", ["float", "int8"])
def test_merged_it_computes_the_same(base: str) -> None:
    """Beside an fp32 base to rounding; int8 codes are merged into the weights that they were made from."""
    model = adapted(base=base)
    weight, whole = merged(tiny(), adapter_state(model), factor=ALPHA / RANK), tiny()
    whole.load_state_dict({name: weight(name) for name in whole.state_dict()})
    with torch.no_grad():
        difference = (whole(ROWS.ids) - model(ROWS.ids)).abs().max()
    assert difference < (1e-4 if base == "float" else 0.2)
    for name, frozen in adapters_of(model).items():
        delta = ALPHA / RANK * frozen.lora_B.detach() @ frozen.lora_A.detach()
        torch.testing.assert_close(
            whole.get_submodule(name).weight, tiny().get_submodule(name).weight + delta
        )


def test_a_checkpoint_keeps_the_adapters_alone() -> None:
    model = adapted()
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    assert {name.rpartition(".")[2] for name in state} == {"lora_A", "lora_B"}
    other = tiny()
    add_adapters(other, rank=RANK, alpha=ALPHA, targets=ALL, seed=9)
    load_trained(other, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter_state(other).items())
    whole = tiny()
    assert trained_state(whole).keys() == whole.state_dict().keys()


@pytest.mark.parametrize("base", ["float", "int8"])
def test_blocks_that_are_computed_again_give_the_same_gradients(base: str) -> None:
    model = adapted(base=base, dtype=torch.bfloat16)
    _, before = gradients(model, precision="bf16")
    before = {name: grad.clone() for name, grad in before.items()}
    model.zero_grad()
    model.run_block = recomputed
    _, again = gradients(model, precision="bf16")
    assert again.keys() == before.keys()
    assert all(torch.equal(grad, before[name]) for name, grad in again.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_1_5_billion_weights_in_int8_fit_4_gb_at_1_x_512() -> None:
    """Random codes in the shape of gpt2-xl; blocks are computed again. Gradients are finite, the peak is under 4 GB."""
    model = GPT2.without_weights(SIZES["gpt2-xl"])
    add_adapters(model, rank=8, alpha=16, targets=ALL, base="int8", dtype=torch.bfloat16)
    model.to_empty(device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dtype == torch.int8:
                p.random_(-127, 128, generator=generator)
            elif name.endswith("scale"):
                p.fill_(0.02 / 73)  # 73: the standard deviation of such codes
            elif p.ndim == 1:
                p.fill_(float(name.endswith("weight")))
            else:
                p.normal_(0, 0.02, generator=generator)
    model.run_block = recomputed
    rows = packed([[512]], size=512, vocab_size=50257)
    rows = Rows(*(t.cuda() for t in (rows.ids, rows.targets, rows.learn, rows.positions)), rows.lengths)
    torch.cuda.reset_peak_memory_stats()
    with autocast("bf16", "cuda"):
        loss = next_token_loss(model, rows)
    loss.backward()
    moments = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert torch.cuda.max_memory_allocated() + moments < 4e9
