"""The folder adapter/: trained adapters in the form of Hugging Face's PEFT.

Why: an adapter of gpt2 takes some megabytes where the model takes 500, and every program that knows PEFT can put it on
the published model. It opens with `PeftModel.from_pretrained(model, "runs/mine/adapter")`.
How: adapter_config.json with the keys that every PEFT since 0.6 knows, adapter_model.safetensors with PEFT's names:
`h.0.attn.c_attn.lora_A` is `base_model.model.transformer.h.0.attn.c_attn.lora_A.weight`. A and B lie as ours do, [R, I]
and [O, R]; `fan_in_fan_out` says that the matrices beside them are transformers' `Conv1D`, [I, O].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from linnet import files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.transformer."


def save_adapter(
    folder: Path,
    adapters: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    base_model: str,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into the existing `folder`.

    `adapters`: as `linnet.model.lora.adapter_state` gives them. `base_model`: the name or folder by which transformers
    finds the weights that they were trained beside. The files go straight to their names, so call it inside
    `files.new_folder`. The same weights give the same bytes.
    """
    config = config_json(rank=rank, alpha=alpha, targets=targets, base_model=base_model)
    files.write_json(folder / CONFIG, config)
    weights = {f"{PREFIX}{name}.weight": tensor.float() for name, tensor in adapters.items()}
    files.write_safetensors(folder / WEIGHTS, weights, metadata={"format": "pt"})


def config_json(*, rank: int, alpha: float, targets: Sequence[str], base_model: str) -> dict[str, Any]:
    """PEFT's LoraConfig. `c_proj` names two matrices of a block, that of the attention and that of the MLP."""
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(set(targets)),
        "task_type": "CAUSAL_LM",
    }
