"""Model folders that lie, are damaged, or would run code: one sentence each, nothing run, nothing built, fast."""

import json
import pickle
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from linnet.errors import LinnetError
from linnet.model.pretrained import load_model
from tests.model.test_pretrained import assert_equal_logits, saved, theirs


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path / "model")


def refused(folder: Path, message: str) -> None:
    """Loading must fail within 2 seconds with one sentence that says this."""
    start = time.monotonic()
    with pytest.raises(LinnetError, match=message) as caught:
        load_model(folder)
    assert time.monotonic() - start < 2
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, **changes) -> None:
    """Put tensors in (by published name) or, with None, take them out."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


PICKLE_NAMES = [
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    "consolidated.00.pth",
    "model.ckpt",
    "weights.pkl",
]


@pytest.mark.parametrize("name", [*PICKLE_NAMES, "model.pickle", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_not_opened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, rf"only as a pickle \({re.escape(name)}\).*save_pretrained")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_named_safetensors_is_not_opened(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, r"damaged or no safetensors file")
    assert not (tmp_path / "sprung").exists()


def test_code_in_the_folder_does_not_run(folder, tmp_path):
    change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    load_model(folder)
    assert not (tmp_path / "sprung").exists()


CONFIGS = {
    "another model": ({"model_type": "llama"}, r"config.json: model_type is 'llama'"),
    "no model type": ({"model_type": None}, r"model_type is None"),
    "a classifier": ({"architectures": ["GPT2ForSequenceClassification"]}, r"GPT2ForSequenceClassification"),
    "architectures of the wrong type": ({"architectures": 7}, r"architectures is 7"),
    "ReLU": ({"activation_function": "relu"}, r"activation_function is 'relu'"),
    "exact GELU": ({"activation_function": "gelu"}, r"activation_function is 'gelu'"),
    "unscaled attention": ({"scale_attn_weights": False}, r"scale_attn_weights is False"),
    "scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx"),
    "cross attention": ({"add_cross_attention": True}, r"add_cross_attention"),
    "quantized": ({"quantization_config": {"bits": 4}}, r"quantization_config"),
    "heads that do not divide": ({"n_head": 5}, r"n_embd 32 is not divisible by n_head 5"),
    "another inner width": ({"n_inner": 64}, r"n_inner is 64"),
    "no layers": ({"n_layer": 0}, r"n_layer is 0"),
    "text for a number": ({"n_embd": "32"}, r"n_embd is '32'"),
    "true for a number": ({"n_layer": True}, r"n_layer is True"),
    "a fraction": ({"n_positions": 32.5}, r"n_positions is 32.5"),
    "a huge width": ({"n_embd": 2**62}, r"wte.weight has the shape \[300, 32\]"),
    "a billion layers": ({"n_layer": 10**9}, r"n_layer 1000000000, but the weights have 2 layers"),
    "a layer too few": ({"n_layer": 1}, r"n_layer 1, but the weights have 2 layers"),
    "another vocabulary": ({"vocab_size": 50257}, r"\(vocab_size, n_embd\) says \[50257, 32\]"),
    "other positions": ({"n_positions": 1024}, r"\(n_positions, n_embd\) says \[1024, 32\]"),
    "epsilon as text": ({"layer_norm_epsilon": "small"}, r"layer_norm_epsilon is 'small'"),
    "a NaN epsilon": ({"layer_norm_epsilon": float("nan")}, r"layer_norm_epsilon is nan"),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit(folder, changes, message):
    change_config(folder, **changes)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": "\ud800"}', '"gpt2"'])
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(folder, r"config\.json")


WEIGHTS = {
    "missing": ({"transformer.h.1.ln_2.bias": None}, r"tensor h\.1\.ln_2\.bias is missing"),
    "no embedding": ({"transformer.wte.weight": None}, r"tensor wte\.weight is missing"),
    "wrong shape": (
        {"transformer.ln_f.weight": torch.ones(31)},
        r"transformer\.ln_f\.weight has the shape \[31\]",
    ),
    "nn.Linear's layout": (
        {"transformer.h.0.mlp.c_fc.weight": torch.ones(128, 32)},
        r"c_fc\.weight has the shape \[128, 32\]",
    ),
    "something else": (
        {"transformer.score.weight": torch.ones(2, 32)},
        r"score\.weight is no part of a GPT-2",
    ),
    "an adapter's": ({"transformer.h.0.attn.c_attn.lora_A": torch.ones(2, 32)}, r"lora_A is no part"),
    "twice": ({"ln_f.weight": torch.ones(32)}, r"holds ln_f\.weight twice"),
    "integers": ({"transformer.ln_f.weight": torch.ones(32, dtype=torch.int8)}, r"quantized"),
    "NaN": ({"transformer.ln_f.weight": torch.full((32,), torch.nan)}, r"ln_f\.weight holds NaN"),
    "infinity": (
        {"transformer.ln_f.bias": torch.full((32,), torch.inf)},
        r"ln_f\.bias holds NaN or infinity",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_fit(folder, changes, message):
    change_weights(folder, **changes)
    refused(folder, message)


def test_an_untied_head_is_refused_unless_it_is_the_same(folder):
    change_config(folder, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    change_weights(folder, **{"lm_head.weight": weights["transformer.wte.weight"] + 1})
    refused(folder, r"lm_head\.weight differs from wte\.weight")
    change_weights(folder, **{"lm_head.weight": weights["transformer.wte.weight"].clone()})
    load_model(folder)


def header(folder: Path, edit) -> None:
    """Rewrite the header of the weights with `edit(header)`; the data stay."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    value = json.loads(data[8 : 8 + size])
    edit(value)
    text = json.dumps(value).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


NAME = "transformer.ln_f.weight"
HEADERS = {
    "an offset beyond the file": lambda h: h[NAME].update(data_offsets=[0, 2**40]),
    "a negative offset": lambda h: h[NAME].update(data_offsets=[-8, 120]),
    "offsets the wrong way round": lambda h: h[NAME].update(data_offsets=[128, 0]),
    "a shape larger than its data": lambda h: h[NAME].update(shape=[2**40]),
    "a shape that overflows": lambda h: h[NAME].update(shape=[2**40, 2**40]),
    "a negative shape": lambda h: h[NAME].update(shape=[-32]),
    "an unknown type": lambda h: h[NAME].update(dtype="F7"),
    "two tensors in one place": lambda h: h[NAME].update(
        data_offsets=h["transformer.ln_f.bias"]["data_offsets"]
    ),
    "a tensor that is a text": lambda h: h.update({NAME: "F32"}),
}


@pytest.mark.parametrize("edit", HEADERS.values(), ids=HEADERS)
def test_a_lying_header(folder, edit):
    header(folder, edit)
    refused(folder, r"model\.safetensors is damaged")


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1, -1000])
def test_a_truncated_file(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(folder, r"model\.safetensors is damaged")


def test_a_header_that_claims_to_be_huge(folder):
    path = folder / "model.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, r"model\.safetensors is damaged")


@pytest.fixture
def sharded(tmp_path) -> Path:
    theirs().save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    return tmp_path / "sharded"


def change_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "place",
    ["../outside.safetensors", "/etc/passwd", "a/../../b.safetensors", "..", "", "a\\b.safetensors", "x.bin"],
)
def test_an_index_that_points_outside(sharded, tmp_path, place):
    next(sharded.glob("*.safetensors")).rename(tmp_path / "outside.safetensors")
    change_index(sharded, lambda index: index["weight_map"].update({NAME: place}))
    refused(sharded, r"nothing outside is opened")


def test_an_index_that_promises_too_much(sharded):
    change_index(sharded, lambda i: i["weight_map"].update({"h.9.x": i["weight_map"][NAME]}))
    refused(sharded, r"lacks the tensor h\.9\.x")


@pytest.mark.parametrize("value", [None, [], {NAME: 1}, "x"])
def test_an_index_of_the_wrong_form(sharded, value):
    change_index(sharded, lambda index: index.update(weight_map=value))
    refused(sharded, r"weight_map must map")


def test_a_missing_shard(sharded):
    next(sharded.glob("*.safetensors")).unlink()
    refused(sharded, r"is missing, but model\.safetensors\.index\.json names it")


def test_tensors_that_the_index_does_not_name_are_not_read(sharded):
    extra = {"transformer.extra": torch.ones(1)}
    shard = next(sharded.glob("*.safetensors"))
    save_file(load_file(shard) | extra, shard, metadata={"format": "pt"})
    assert_equal_logits(load_model(sharded), theirs())


def test_folders_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no model\.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"an adapter without its model")
