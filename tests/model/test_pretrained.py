"""Model folders against transformers, both ways, and what `resolve_model` makes of a name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from linnet.errors import LinnetError
from linnet.model.gpt2 import GPT2
from linnet.model.pretrained import load_model, published_weights, save_model
from linnet.model.resolve import resolve_model
from linnet.tokenizer import Tokenizer
from tests.model.examples import SIZES, tiny, tokenizer

BASE_30M = Path(__file__).parents[3] / "shared" / "data" / "base-30m"
IDS = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(3))

transformers.utils.logging.disable_progress_bar()


def theirs(seed: int = 0, **changes) -> transformers.GPT2LMHeadModel:
    """A random GPT-2 of transformers with our tiny model's shape, its scores as large."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": 299, "eos_token_id": 299}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape | ends | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def saved(folder: Path, model: GPT2 | None = None, **options) -> Path:
    folder.mkdir()
    save_model(folder, model or tiny(), tokenizer=tokenizer(), **options)
    return folder


@torch.no_grad()
def assert_equal_logits(ours: GPT2, other, *, ids=IDS, atol=1e-4):
    torch.testing.assert_close(ours.logits(ours(ids)), other(ids).logits, atol=atol, rtol=0)


def test_what_transformers_saves_we_load(tmp_path):
    other = theirs()
    other.save_pretrained(tmp_path)
    assert_equal_logits(load_model(tmp_path), other)


def test_what_transformers_saves_in_shards_we_load(tmp_path):
    other = theirs()
    other.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal_logits(load_model(tmp_path), other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_fp32_weights(tmp_path, dtype):
    other = theirs().to(dtype)
    other.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_equal_logits(ours, other.float())


def test_what_we_save_transformers_loads(tmp_path):
    ours = tiny()
    folder = saved(tmp_path / "model", ours)
    other, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_equal_logits(ours, other.eval())
    assert other.config.eos_token_id == other.generation_config.eos_token_id == tokenizer().end_of_text


def test_save_load_save_gives_the_same_bytes(tmp_path):
    one = saved(tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    save_model(two, load_model(one, dropout=0.1), tokenizer=Tokenizer.load(one))
    names = sorted(path.name for path in one.iterdir())
    expected = ["config.json", "generation_config.json", "model.safetensors"]
    assert names == [*expected, "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_round_through_transformers_changes_no_weight(tmp_path):
    ours = tiny()
    folder = saved(tmp_path / "one", ours)
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "two")
    back = load_model(tmp_path / "two").state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back[name]), name


def test_saving_in_bf16_halves_the_file_and_says_so(tmp_path):
    folder = saved(tmp_path / "model", dtype=torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    full = saved(tmp_path / "full")
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_equal_logits(load_model(folder), other.eval())


def published_layout(folder: Path) -> transformers.GPT2LMHeadModel:
    """A folder like openai-community/gpt2: bare names, mask buffers, fewer keys in config.json, no metadata."""
    other = theirs()
    other.save_pretrained(folder)
    weights = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"n_ctx": 32}
    for key in ("dtype", "n_inner", "scale_attn_weights", "tie_word_embeddings", "transformers_version"):
        del config[key]
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 50}}
    (folder / "config.json").write_text(json.dumps(config))
    return other


def test_the_published_layout_loads(tmp_path):
    other = published_layout(tmp_path)
    ours = load_model(tmp_path)
    assert_equal_logits(ours, other)
    assert ours.config.dropout == 0  # the recipe decides, not the folder


def test_published_weights_have_each_matrix_once_and_transposed():
    model = tiny()
    weights = published_weights(model)
    assert "lm_head.weight" not in weights
    assert weights["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)
    names = {n for n in theirs().state_dict() if n != "lm_head.weight"}
    assert set(weights) == names


def test_a_tied_matrix_under_the_heads_name_is_enough(tmp_path):
    other = theirs()
    other.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal_logits(load_model(tmp_path), other)


def test_the_bare_network_of_transformers_loads(tmp_path):
    other = theirs()
    other.transformer.save_pretrained(tmp_path)  # architectures: GPT2Model
    assert_equal_logits(load_model(tmp_path), other)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    with pytest.raises(LinnetError, match=r"tokenizer has 300 ids, but the model's vocab_size is 299"):
        save_model(tmp_path, tiny(vocab_size=299), tokenizer=tokenizer())
    assert not list(tmp_path.iterdir())


def test_what_a_name_means(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(LinnetError, match=r"no config.json in it"):
        resolve_model(run)
    (run / "recipe.toml").write_text("")
    with pytest.raises(LinnetError, match=r"has no model yet"):
        resolve_model(str(run))
    model = saved(run / "model")
    assert resolve_model(run) == resolve_model(str(model)) == model
    with pytest.raises(LinnetError, match="is a file"):
        resolve_model(model / "config.json")
    with pytest.raises(LinnetError, match="There is no folder"):
        resolve_model(tmp_path / "nowhere")


@pytest.mark.skipif(not BASE_30M.is_dir(), reason="needs ../shared/data/base-30m")
def test_a_trained_model_of_30_million_weights(tmp_path):
    ours = load_model(BASE_30M)
    other = transformers.GPT2LMHeadModel.from_pretrained(BASE_30M, dtype=torch.float32).eval()
    text = Tokenizer.load(BASE_30M).encode(
        "The old house stood at the end of the road, and nobody lived in it."
    )
    assert_equal_logits(ours, other, ids=torch.tensor([text]))


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["from transformers", "to transformers"])
def test_parity_at_124_million_weights(tmp_path, direction):
    ids = torch.randint(50257, (1, 512), generator=torch.Generator().manual_seed(0))
    if direction == "from transformers":
        torch.manual_seed(0)
        other = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
        other.save_pretrained(tmp_path)
        ours = load_model(tmp_path)
    else:
        ours = GPT2(SIZES["gpt2"], seed=1).eval()
        save_model(tmp_path, ours, tokenizer=tokenizer())
        other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_equal_logits(ours, other, ids=ids)
    shutil.rmtree(tmp_path)
