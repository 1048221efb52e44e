"""Model folders in Hugging Face's form: find one, read it, write it.

Why: a model that only its maker can open is of little use. What is written here opens in transformers and in
everything built on it, and what transformers saves opens here, as does the published `gpt2`.
How: loading is renaming (`transformer.` in front or not) and transposing (their Conv1D keeps [in, out]). A folder
from elsewhere is not trusted: only JSON and safetensors are read, nothing is unpickled, no code from it runs
(`auto_map` is ignored), and all names and shapes are compared with config.json before anything is allocated.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linnet import files
from linnet.errors import LinnetError
from linnet.model.chat_template import write_template
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.resolve import INDEX, WEIGHTS, resolve_model
from linnet.tokenizer import Tokenizer
from linnet.turns.template import Template

# Old files hold the causal mask as a buffer beside each attention; it is no weight.
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
PREFIX = "transformer."
# transformers keeps these as Conv1D [in, out], nn.Linear as [out, in].
CONV1D = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
# Three names of one formula: the tanh approximation that GPT-2 was trained with.
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
# Settings of transformers' GPT-2 that change what it computes, with the only value that this network knows.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
# Tokens: twice what transformers' pipeline writes by default, so that a prompt has as much room.
SMALL_WINDOW = 2 * 256
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def load_model(name: str | Path, *, dropout: float = 0.0, mapped: bool = False) -> GPT2:
    """Read a GPT-2 on the CPU, in fp32 whatever the file's type.

    `name` is what `resolve_model` takes. `dropout` is the recipe's business, so the folder's is ignored. `mapped`:
    matrices stay in the mapped file and in its type; for whoever makes something else of them one after the other.
    LinnetError names the file and the key or tensor that is wrong.
    """
    folder = resolve_model(name)
    config = read_config(folder, dropout=dropout)
    with ExitStack() as stack:
        tensors = _open_tensors(folder, stack)
        _check_sizes(folder, tensors, config)
        model = GPT2.without_weights(config)
        _check_tensors(folder, tensors, model)
        state = {name: _read(tensors[name], name, mapped=mapped) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model


def read_config(folder: Path, *, dropout: float = 0.0) -> GPT2Config:
    """The shape in `folder`/config.json; a LinnetError where it is not a GPT-2 that this network computes."""
    path = folder / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "gpt2":
        raise LinnetError(
            f"{path}: model_type is {config.get('model_type')!r}, but Linnet reads 'gpt2' only; name a GPT-2."
        )
    architectures = config.get("architectures")
    if architectures not in (None, [], ["GPT2LMHeadModel"], ["GPT2Model"]):
        raise LinnetError(
            f"{path}: architectures is {architectures!r}, but Linnet reads language models, ['GPT2LMHeadModel'], only."
        )
    activation = config.get("activation_function", "gelu_new")
    if activation not in TANH_GELU:
        raise LinnetError(f"{path}: activation_function is {activation!r}, but a GPT-2 has 'gelu_new'.")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise LinnetError(f"{path}: {key} is {config[key]!r}, but this GPT-2 knows {value!r} only.")
    known = GPT2Config()
    shape = {key: config.get(key, getattr(known, key)) for key in ("vocab_size", "n_positions", "n_embd")}
    shape |= {key: config.get(key, getattr(known, key)) for key in ("n_layer", "n_head")}
    for key, value in shape.items():
        if type(value) is not int or value < 1:
            raise LinnetError(f"{path}: {key} is {value!r}, but must be a whole number of at least 1.")
    if config.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise LinnetError(f"{path}: n_inner is {config['n_inner']!r}, but a GPT-2 has 4 * n_embd (or null).")
    epsilon = config.get("layer_norm_epsilon", known.layer_norm_epsilon)
    if not isinstance(epsilon, float) or not 0.0 < epsilon < 1.0:
        raise LinnetError(f"{path}: layer_norm_epsilon is {epsilon!r}, but must lie between 0 and 1 (1e-5).")
    spread = config.get("initializer_range", known.initializer_range)
    if type(spread) not in (int, float) or not 0.0 <= spread < math.inf:
        raise LinnetError(
            f"{path}: initializer_range is {spread!r}, but must be a number, not below 0 (0.02)."
        )
    try:
        return GPT2Config(**shape, dropout=dropout, layer_norm_epsilon=epsilon, initializer_range=spread)
    except ValueError as error:
        raise LinnetError(f"{path}: {error}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LinnetError(f"{path} cannot be read as JSON ({error}); copy it again.") from error
    if not isinstance(value, dict):
        raise LinnetError(f"{path} must hold a JSON object; copy it again.")
    return value


class _Stored:
    """A tensor in a safetensors file: its header is read, its numbers are not yet."""

    def __init__(self, path: Path, name: str, file: Any) -> None:
        self.path, self.name, self.file = path, name, file

    def shape(self) -> list[int]:
        return list(self.file.get_slice(self.name).get_shape())

    def read(self) -> Tensor:
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, _Stored]:
    """Open the weights' files and map our names (no `transformer.`) to the tensors; masks are left out."""
    tensors: dict[str, _Stored] = {}
    for path, promised in _weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise LinnetError(
                f"{path} is damaged or no safetensors file ({error}); copy it again."
            ) from error
        names = set(file.keys())
        for name in promised:
            if name not in names:
                raise LinnetError(
                    f"{path} lacks the tensor {name} that {INDEX} promises; copy the folder again."
                )
        for name in promised or sorted(names):
            ours = name.removeprefix(PREFIX)
            if ours in tensors:
                raise LinnetError(
                    f"{path} holds {ours} twice, with and without 'transformer.'; copy it again."
                )
            if not MASK_BUFFER.fullmatch(ours):
                tensors[ours] = _Stored(path, name, file)
    head = tensors.pop("lm_head.weight", None)
    if head is not None and "wte.weight" not in tensors:  # some writers keep the tied matrix under this name
        tensors["wte.weight"] = head
    elif head is not None and _read_json(folder / "config.json").get("tie_word_embeddings") is False:
        wte = tensors["wte.weight"]
        if head.shape() != wte.shape() or not torch.equal(head.read(), wte.read()):
            raise LinnetError(
                f"{head.path}: lm_head.weight differs from wte.weight, but a GPT-2's head is tied to it."
            )
    return tensors


def _weight_files(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The files with weights, each with the tensors that the index promises in it (none: all that it has)."""
    if (folder / WEIGHTS).is_file():
        yield folder / WEIGHTS, []
        return
    index = folder / INDEX
    if not index.is_file():
        raise LinnetError(_no_weights(folder))
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise LinnetError(f"{index}: weight_map must map each tensor to its file; copy it again.")
    shards: dict[str, list[str]] = {}
    for name, place in places.items():
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", place):
            raise LinnetError(
                f"{index}: {place!r} is no safetensors file of this folder; nothing outside is opened."
            )
        shards.setdefault(place, []).append(name)
    for place, names in sorted(shards.items()):
        if not (folder / place).is_file():
            raise LinnetError(f"{folder / place} is missing, but {INDEX} names it; copy the folder again.")
        yield folder / place, names


def _no_weights(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in found if Path(name).suffix in PICKLES]
    if pickles:
        return (
            f"{folder} has its weights only as a pickle ({pickles[0]}), which can run code when it is opened, so it "
            "is not read: if you trust its source, open it with transformers and save_pretrained() it anew."
        )
    if "adapter_config.json" in found:
        return f"{folder} is an adapter without its model: merge it into its base model first, and name that folder."
    return f"{folder} has no {WEIGHTS}; copy it there."


def _check_sizes(folder: Path, tensors: Mapping[str, _Stored], config: GPT2Config) -> None:
    """Compare the counts in config.json with the files, so that no lie of it (1e9 layers) is ever built."""
    layers = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
    if layers != config.n_layer:
        raise LinnetError(
            f"{folder}: config.json says n_layer {config.n_layer}, but the weights have {layers} layers."
        )
    for name, key in (("wte.weight", "vocab_size"), ("wpe.weight", "n_positions")):
        if name not in tensors:
            raise LinnetError(
                f"{folder}: the tensor {name} is missing from the weights; copy the folder again."
            )
        have, want = tensors[name].shape(), [getattr(config, key), config.n_embd]
        if have != want:
            raise LinnetError(
                f"{tensors[name].path}: {tensors[name].name} has the shape {have}, but config.json "
                f"({key}, n_embd) says {want}; the two do not belong together."
            )


def _check_tensors(folder: Path, tensors: Mapping[str, _Stored], model: GPT2) -> None:
    """Compare names and shapes with what config.json promises, before any weight is read."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise LinnetError(
                f"{folder}: the tensor {name} is missing; config.json promises it: copy the folder again."
            )
        want = shape[::-1] if CONV1D.search(name) else shape
        have = tensors[name].shape()
        if have != want:
            raise LinnetError(
                f"{tensors[name].path}: {tensors[name].name} has the shape {have}, but config.json (n_embd) asks for "
                f"{want}; the two do not belong together."
            )
    for name in tensors:
        if name not in expected:
            raise LinnetError(
                f"{tensors[name].path}: {tensors[name].name} is no part of a GPT-2 with {model.config.n_layer} layers; "
                "config.json and the weights do not belong together."
            )


def _read(stored: _Stored, name: str, *, mapped: bool) -> Tensor:
    tensor = stored.read()
    if tensor.dtype not in FLOATS:
        raise LinnetError(
            f"{stored.path}: {stored.name} is {tensor.dtype}, a quantized weight; name a float model."
        )
    if CONV1D.search(name):
        tensor = tensor.t()
    if not mapped or tensor.ndim == 1:
        # A copy of its own: what safe_open gives may lie in the mapped file, which can change or vanish.
        tensor = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    # NaN goes through both; `isfinite` of all would make two more tensors of this size.
    least, most = tensor.aminmax()
    if not (least.isfinite() and most.isfinite()):
        raise LinnetError(
            f"{stored.path}: {stored.name} holds NaN or infinity; take an older copy of the model."
        )
    return tensor


def save_model(
    folder: Path,
    model: GPT2,
    *,
    tokenizer: Tokenizer,
    template: Template | None = None,
    dtype: torch.dtype = torch.float32,
    weight: Callable[[str], Tensor] | None = None,
) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer into the existing `folder`.

    `template`: that of the turns it was trained on, for chat_template.jinja. `weight`: makes each weight by the name
    that it has in the network when it is written, for a `model` without weights. The files go straight to their names,
    so call it inside `files.new_folder`. The same weights give the same bytes. A tokenizer with more ids than the
    model has is a LinnetError.
    """
    check_vocabulary(model, tokenizer)
    kind = str(dtype).removeprefix("torch.")
    files.write_json(
        folder / "config.json", config_json(model.config, end_of_text=tokenizer.end_of_text, dtype=kind)
    )
    generation = generation_json(model.config, end_of_text=tokenizer.end_of_text)
    files.write_json(folder / "generation_config.json", generation)
    published = published_weights(model, dtype=dtype)

    def made(name: str) -> Tensor:
        return _published(name, weight(name.removeprefix(PREFIX)), dtype) if weight else published[name]

    files.write_safetensors(folder / WEIGHTS, published, metadata={"format": "pt"}, value=made)
    tokenizer.save(folder, n_positions=model.config.n_positions)
    if template is not None:
        write_template(folder, template, end_token=tokenizer.end_token)


def generation_json(config: GPT2Config, *, end_of_text: int) -> dict[str, int]:
    """What generation_config.json says: where a text ends, and in a small window how long it may be.

    With pad_token_id here transformers' generate() neither warns nor needs a pad token in the tokenizer, where it would
    equal end-of-text and so be masked in training by the usual collator.
    Where nothing is said of the length, transformers' pipeline writes 256 tokens more and fails at the last position
    of a window that is too small for them. max_length keeps it inside. Large windows go without: with it, each
    generate(max_new_tokens=...) prints that both are set.
    """
    generation = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    if config.n_positions <= SMALL_WINDOW:
        generation["max_length"] = config.n_positions
    return generation


def published_weights(model: GPT2, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights by their published names and in their layout: views where `dtype` is that of the model."""
    return {f"{PREFIX}{name}": _published(name, tensor, dtype) for name, tensor in model.state_dict().items()}


def _published(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to(dtype)
    return tensor.t() if CONV1D.search(name) else tensor


def config_json(config: GPT2Config, *, end_of_text: int, dtype: str = "float32") -> dict[str, Any]:
    """What config.json says of a model; dropout is 0, since it belongs to a recipe and not to weights."""
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": end_of_text,
        "dtype": dtype,
        "embd_pdrop": 0.0,
        "eos_token_id": end_of_text,
        "initializer_range": config.initializer_range,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "model_type": "gpt2",
        "n_ctx": config.n_positions,  # llama.cpp's converter reads this one
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": None,
        "n_layer": config.n_layer,
        "n_positions": config.n_positions,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "vocab_size": config.vocab_size,
    }


def check_vocabulary(model: GPT2, tokenizer: Tokenizer) -> None:
    """LinnetError where the tokenizer has ids that the model does not know. A model may have more (padding)."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise LinnetError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size is {model.config.vocab_size}: "
            "take the tokenizer that lies beside the model."
        )
