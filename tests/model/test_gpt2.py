"""The network against transformers' GPT-2, and the properties that packing and generation lean on."""

import math

import pytest
import torch

from linnet.model.gpt2 import GPT2, GPT2Config, KVCache
from tests.model.examples import SIZES, packed, tiny

PUBLISHED_SIZES = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_SIZES.items())
def test_published_sizes(name, parameters):
    assert SIZES[name].parameters == parameters
    assert sum(p.numel() for p in GPT2.without_weights(SIZES[name]).parameters()) == parameters


def test_the_same_seed_gives_the_same_weights():
    one, two, other = (GPT2(GPT2Config(50, 8, 16, 2, 2), seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["wte.weight"], other["wte.weight"])


def test_making_a_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    GPT2(GPT2Config(50, 8, 16, 2, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights_are_those_of_gpt2():
    model = GPT2(GPT2Config(500, 64, 128, 4, 4))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert model.h[1].mlp.c_fc.bias.abs().max() == 0
    assert (model.ln_f.weight == 1).all()
    scores = model.logits(model(torch.arange(64)[None]))[0]
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(100, 164))
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd 30 is not divisible by n_head 4"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_an_impossible_shape_is_refused_by_its_key(changes, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**changes)


def test_a_token_never_changes_what_comes_before_it():
    model, ids = tiny(), torch.arange(24)[None] % 300
    plain = model(ids)
    for t in (1, 7, 23):
        changed = ids.clone()
        changed[0, t] = 299
        hidden = model(changed)
        assert torch.equal(hidden[:, :t], plain[:, :t])
        assert not torch.allclose(hidden[:, t], plain[:, t])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_examples_packed_in_a_row_do_not_see_each_other(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA card")
    model = tiny().to(device)
    batch = packed([[5, 9, 10], [24], [1, 1, 20]], size=24)
    ids, positions = batch.ids.to(device), batch.positions.to(device)
    hidden = model(ids, positions, batch.segments())
    for row, lengths in enumerate(batch.lengths):
        start = 0
        for length in lengths:
            alone = model(ids[row : row + 1, start : start + length])
            torch.testing.assert_close(hidden[row, start : start + length], alone[0], atol=1e-5, rtol=1e-4)
            start += length


def test_packing_test_would_see_a_leak():
    model, batch = tiny(), packed([[5, 19]], size=24)
    leaking = model(batch.ids, batch.positions)
    alone = model(batch.ids[:, 5:])
    assert not torch.allclose(leaking[0, 5:], alone[0], atol=1e-2)


def test_padding_changes_nothing():
    model, batch = tiny(), packed([[6, 9]], size=24)
    hidden = model(batch.ids, batch.positions, batch.segments())
    other = batch.ids.clone()
    other[:, 15:] = 7
    changed = model(other, batch.positions, batch.segments())
    assert torch.equal(hidden[:, :15], changed[:, :15])
    assert changed.isfinite().all()


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 6, 5]])
def test_a_cache_in_any_pieces_equals_the_whole(pieces):
    model, ids = tiny(), torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, size=20, batch_size=2)
    parts = []
    for piece in ids.split(pieces, dim=1):
        parts.append(model(piece, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-4)
    assert cache.length == 20


def test_tokens_that_do_not_fit_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="33 tokens do not fit into 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    cache = KVCache(model.config, size=4)
    with pytest.raises(ValueError, match="5 tokens do not fit into 4"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)


def test_bf16_autocast_is_near_fp32():
    model, batch = tiny(), packed([[5, 19], [24]], size=24)
    full = model(batch.ids, batch.positions, batch.segments())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch.ids, batch.positions, batch.segments())
    # 8 bits of mantissa, two layers of scores about 10 times those of a fresh model
    assert (half - full).abs().mean() < 0.05


def test_dropout_is_only_in_training():
    model = GPT2(GPT2Config(50, 8, 16, 2, 2, dropout=0.5))
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
