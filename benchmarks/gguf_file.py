"""A model folder as a GGUF file, so that llama.cpp can be measured: its names, its types, GPT-2's vocabulary.

Only what the benchmarks need: weights in f16 or q8_0 (norms, biases and positions stay in f32, as in llama.cpp's own
conversion), a byte-level BPE in GPT-2's form.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

# transformers' names in a block, and those of llama.cpp.
BLOCK = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTSIDE = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}


def write_gguf(folder: Path, path: Path, *, quantization: str) -> None:
    """Write the GPT-2 in `folder` to `path`; quantization: f16 or q8_0."""
    import gguf
    from safetensors.torch import load_file  # numpy has no bf16

    config = json.loads((folder / "config.json").read_bytes())
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{quantization.upper()}"))
    _add_vocabulary(writer, json.loads((folder / "tokenizer.json").read_bytes()), gguf)
    wanted = getattr(gguf.GGMLQuantizationType, quantization.upper())
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        array = tensor.float().numpy()
        if array.ndim == 2 and name.startswith("h."):
            array = np.ascontiguousarray(array.T)  # Conv1D keeps [in, out]
        is_matrix = array.ndim == 2 and name != "wpe.weight"
        kind = wanted if is_matrix else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, kind) if is_matrix else array
        writer.add_tensor(_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{BLOCK[part]}.{kind}"


def _add_vocabulary(writer: Any, tokenizer: dict[str, Any], gguf: Any) -> None:
    vocabulary = dict(tokenizer["model"]["vocab"])
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= special
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id):
        add(next(iter(special.values()), 0))
