"""adapter/ against stock peft: on a published GPT-2 it computes what our network does."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from linnet.model.adapter import CONFIG, save_adapter
from linnet.model.gpt2 import GPT2
from linnet.model.lora import adapter_state, add_adapters, merged
from linnet.model.pretrained import load_model, save_model
from tests.model.examples import tiny, tokenizer

transformers.utils.logging.disable_progress_bar()
IDS = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(3))
RANK, ALPHA = 4, 10.0


def trained(base: Path, *, targets: list[str]) -> GPT2:
    """The base with adapters whose B is not 0."""
    model = load_model(base)
    add_adapters(model, rank=RANK, alpha=ALPHA, targets=targets)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in adapter_state(model).items():
        if name.endswith("lora_B"):
            tensor.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["c_attn"], ["c_proj"]])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@torch.no_grad()
def test_peft_puts_it_on_the_published_model(tmp_path: Path, targets: list[str]) -> None:
    peft = pytest.importorskip("peft", reason="peft is missing: the oracle of adapter/")
    base, folder, whole = (tmp_path / name for name in ("base", "adapter", "model"))
    for path in (base, folder, whole):
        path.mkdir()
    save_model(base, tiny(), tokenizer=tokenizer())
    model = trained(base, targets=targets)
    save_adapter(folder, adapter_state(model), rank=RANK, alpha=ALPHA, targets=targets, base_model=str(base))
    weight = merged(load_model(base, mapped=True), adapter_state(model), factor=ALPHA / RANK)
    save_model(whole, GPT2.without_weights(model.config), tokenizer=tokenizer(), weight=weight)

    ours = model.logits(model(IDS))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert not any(parameter.requires_grad for parameter in theirs.parameters())
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == len(adapter_state(model)) // 2
    torch.testing.assert_close(theirs(IDS).logits, ours, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.merge_and_unload()(IDS).logits, ours, atol=1e-4, rtol=0)
    in_transformers = transformers.AutoModelForCausalLM.from_pretrained(whole).eval()
    torch.testing.assert_close(in_transformers(IDS).logits, ours, atol=1e-4, rtol=0)
    without = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    assert (without(IDS).logits - ours).abs().max() > 0.1


def test_peft_knows_every_key(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is missing: the oracle of adapter/")
    model = tiny()
    add_adapters(model, rank=RANK, alpha=ALPHA, targets=["c_fc"])
    save_adapter(tmp_path, adapter_state(model), rank=RANK, alpha=ALPHA, targets=["c_fc"], base_model="gpt2")
    written = json.loads((tmp_path / CONFIG).read_bytes())
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert written.keys() <= config.to_dict().keys()
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (RANK, 10, "gpt2")
    assert config.fan_in_fan_out
    assert config.target_modules == {"c_fc"}


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        model = tiny()
        add_adapters(model, rank=RANK, alpha=ALPHA, targets=["c_attn"], seed=4)
        save_adapter(
            folder, adapter_state(model), rank=RANK, alpha=0.5, targets=["c_attn"], base_model="gpt2"
        )
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert json.loads(contents[0][CONFIG])["lora_alpha"] == 0.5
