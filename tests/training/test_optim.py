"""The optimizers against torch's own, their state, and what they leave alone."""

import pytest
import torch
from torch import nn

from linnet.errors import LinnetError
from linnet.training.newton_schulz import QUINTIC
from linnet.training.optim import MUON_RMS, Muon, make_optimizer

WIDTH = 16
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    """The parameters of a GPT-2 block under their own names, without its arithmetic."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = nn.Module()
        self.attn.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.attn.c_proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(WIDTH, 4 * WIDTH)
        self.mlp.c_proj = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.attn.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.attn.c_proj(torch.tanh(q * k) * v)
        return x + self.mlp.c_proj(torch.tanh(self.mlp.c_fc(x)))


class TinyModel(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.wte = nn.Embedding(11, WIDTH)
        self.h = nn.ModuleList([Block() for _ in range(2)])
        self.lm_head = nn.Linear(WIDTH, 11, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


def backward(model, seed):
    ids = torch.randint(11, (32,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids), ids.roll(-1)).backward()


def train(model, optimizer, steps, *, rate=0.01):
    for step in steps:
        optimizer.set_learning_rate(rate / (1 + step))
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()


def is_matrix_of_block(name, parameter):
    return parameter.ndim == 2 and name.startswith("h.")


def test_adamw_is_torchs_with_decay_on_matrices_only():
    ours, theirs = TinyModel(), TinyModel()
    optimizer = make_optimizer(ours, name="adamw", weight_decay=0.3, betas=(0.8, 0.9))
    oracle = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        foreach=False,
    )
    for step in range(5):
        optimizer.set_learning_rate(0.01)
        for model, stepper in ((ours, optimizer), (theirs, oracle)):
            backward(model, step)
            stepper.step()
            stepper.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [(FP32, 1e-4), (BF16, 0.2)])
def test_muon_is_torchs_with_qkv_as_three_matrices(precision, tolerance, monkeypatch):
    """torch.optim.Muon is always in bf16; its cast is taken out for the sharp comparison."""
    if precision == FP32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    model = TinyModel()
    optimizer = make_optimizer(
        model, name="muon", weight_decay=0.3, precision=precision, coefficients=QUINTIC
    )
    # match_rms_adamw scales by 0.2 * sqrt(columns); the decay is by the rate alone.
    scale = MUON_RMS / 0.2
    matrices = {name: p for name, p in model.named_parameters() if is_matrix_of_block(name, p)}
    parts = {name: 3 if "c_attn" in name else 1 for name in matrices}
    start = {name: p.detach().clone() for name, p in matrices.items()}
    theirs = {name: [nn.Parameter(x.clone()) for x in start[name].chunk(parts[name])] for name in matrices}
    oracle = torch.optim.Muon(
        [p for pieces in theirs.values() for p in pieces],
        lr=0.01 * scale,
        weight_decay=0.3 / scale,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(5):
        optimizer.set_learning_rate(0.01)
        backward(model, step)
        for name, p in matrices.items():
            for piece, grad in zip(theirs[name], p.grad.chunk(parts[name]), strict=True):
                piece.grad = grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        oracle.step()
    for name, p in matrices.items():
        expected = torch.cat(theirs[name]).detach()
        # Compare the way gone, not the weights: five steps hardly move them. bf16 rounds to 8 bits, and at
        # other places here than there.
        error = (p.detach() - expected).norm() / (expected - start[name]).norm()
        assert error < tolerance, f"{name}: {error:.4f}"


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_learns(name):
    model = TinyModel()
    optimizer = make_optimizer(model, name=name, weight_decay=0.0)
    ids = torch.arange(11)
    for _ in range(60):
        optimizer.set_learning_rate(0.02)
        loss = nn.functional.cross_entropy(model(ids), ids.roll(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resumed_equals_uninterrupted_bit_for_bit(name):
    whole = TinyModel()
    train(whole, make_optimizer(whole, name=name, weight_decay=0.1), range(8))

    first = TinyModel()
    optimizer = make_optimizer(first, name=name, weight_decay=0.1)
    train(first, optimizer, range(4))
    state = {key: value.clone() for key, value in optimizer.state().items()}
    weights = {key: value.clone() for key, value in first.state_dict().items()}
    train(first, optimizer, range(4, 6))  # must not change what was kept

    second = TinyModel(seed=9)
    second.load_state_dict(weights)
    resumed = make_optimizer(second, name=name, weight_decay=0.1)
    resumed.load_state(state)
    again = resumed.state()
    assert all(torch.equal(again[key], state[key]) for key in state)
    train(second, resumed, range(4, 8))
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_is_fp32_by_name_and_has_the_tied_weight_once(name):
    model = TinyModel()
    shapes = {key: p.shape for key, p in model.named_parameters()}
    state = make_optimizer(model, name=name, weight_decay=0.1).state()
    for key, tensor in state.items():
        moment, parameter = key.split(".", 1)
        assert tensor.dtype == FP32
        assert tensor.is_contiguous()
        assert tensor.shape == (() if moment == "step" else shapes[parameter])
    assert {key.split(".", 1)[1] for key in state} == set(shapes)
    assert "lm_head.weight" not in shapes
    assert ("momentum.h.1.mlp.c_fc.weight" in state) == (name == "muon")


def test_beside_muon_the_embeddings_have_a_rate_of_their_own():
    changes = {}
    for name, rate, embedding_rate in (("both", 0.01, 4.0), ("slow", 0.01, 1.0), ("fast", 0.04, 1.0)):
        model = TinyModel()
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer = make_optimizer(model, name="muon", weight_decay=0.1, embedding_rate=embedding_rate)
        train(model, optimizer, range(1), rate=rate)
        changes[name] = {key: p.detach() - before[key] for key, p in model.named_parameters()}
    for key, change in changes["both"].items():
        assert torch.equal(change, changes["fast" if key == "wte.weight" else "slow"][key])
        assert not torch.equal(changes["fast"][key], changes["slow"][key])


def test_frozen_parameters_are_left_alone():
    model = TinyModel()
    model.h[0].requires_grad_(False)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train(model, make_optimizer(model, name="muon", weight_decay=0.5), range(2))
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == key.startswith("h.0.")


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(next(iter(state))), "misses"),
        (lambda state: state.update({"momentum.h.7.x": torch.zeros(1)}), r"has unknown momentum\.h\.7\.x"),
        (
            lambda state: state.update({"exp_avg.wte.weight": torch.zeros(3, 3)}),
            "another shape for exp_avg.wte",
        ),
    ],
)
def test_a_wrong_state_is_refused_by_name_and_changes_nothing(name, change, message):
    model = TinyModel()
    optimizer = make_optimizer(model, name=name, weight_decay=0.1)
    train(model, optimizer, range(2))
    before = {key: value.clone() for key, value in optimizer.state().items()}
    wrong = {key: tensor + 1 for key, tensor in before.items()}
    change(wrong)
    with pytest.raises(LinnetError, match=message):
        optimizer.load_state(wrong)
    after = optimizer.state()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_shapes_share_stacks():
    optimizer = make_optimizer(TinyModel(), name="muon", weight_decay=0.1)
    assert isinstance(optimizer, Muon)
    shapes = sorted(tuple(stack.momentum.shape) for stack in optimizer._stacks)
    # Two blocks: q, k, v and c_proj of attention; c_fc and c_proj of the MLP, the tall one transposed.
    assert shapes == [(4, 16, 64), (8, 16, 16)]
