"""The real hub, the real gpt2, the real data sets: `make online`. Never collected by itself, never in CI.

It needs a network, some 2 GB in HF_HOME (gpt2, and the files of the data sets that are small enough to be kept) and
minutes: 20 steps of each recipe. Before that, gpt2 is checked to be the published one, as loaded by us.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from linnet.model.gpt2 import GPT2
from linnet.model.pretrained import load_model
from linnet.tokenizer import Tokenizer, load_tokenizer

pytestmark = [pytest.mark.online, pytest.mark.timeout(3600)]

STEPS = 20
ROWS = 400
# Recipe -> what has to be given. The sources of `lines` and `text` are small data sets of plain text with a licence.
RECIPES = {
    "math": [],
    "chat": [],
    "papers": [],
    "summaries": [],
    "lines": ["data.source=hf:openai/gsm8k/main", "data.columns.text=question"],
    "text": ["data.source=hf:Salesforce/wikitext/wikitext-2-raw-v1"],
}

# Dickens, A Tale of Two Cities (1859), II.1: English prose that is not the book's famous first page, which gpt2 knows
# by heart.
PARAGRAPH = (
    "Tellson's Bank by Temple Bar was an old-fashioned place, even in the year one thousand seven hundred and eighty. "
    "It was very small, very dark, very ugly, very incommodious. It was an old-fashioned place, moreover, in the moral "
    "attribute that the partners in the House were proud of its smallness, proud of its darkness, proud of its "
    "ugliness, proud of its incommodiousness. They were even boastful of its eminence in those particulars, and were "
    "fired by an express conviction that, if it were less objectionable, it would be less respectable."
)
# A loose band, since no exact figure is published for a paragraph: gpt2 scores 3.12 nats a token on web text (nanoGPT's
# README, OpenWebText); old prose without context is harder, repetition easier. A wrong tokenizer, transposed weights or
# a missing scale score above 5. What is exact is the comparison with transformers, and the text below.
LOWEST, HIGHEST = 2.2, 4.3
# What gpt2 writes greedily after "The dog", as transformers' own tests hold it (test_lm_generate_gpt2).
AFTER_THE_DOG = " was found in a field near the intersection of West and West Streets.\n\nThe dog"


@pytest.fixture(scope="module")
def gpt2() -> Iterator[tuple[GPT2, Tokenizer]]:
    with torch.no_grad():
        yield load_model("gpt2").eval(), load_tokenizer("gpt2")


def logits_of(model: GPT2, ids: list[int]) -> torch.Tensor:
    """[T, vocabulary], in fp32."""
    hidden = model(torch.tensor([ids]))
    return (hidden @ model.wte.weight.T)[0].float()


def test_gpt2_has_its_published_loss(gpt2: tuple[GPT2, Tokenizer]) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = gpt2
    ids = tokenizer.encode(PARAGRAPH)
    ours = float(torch.nn.functional.cross_entropy(logits_of(model, ids)[:-1], torch.tensor(ids[1:])))
    theirs = AutoModelForCausalLM.from_pretrained("openai-community/gpt2", dtype=torch.float32).eval()
    batch = torch.tensor([ids])
    assert LOWEST < ours < HIGHEST
    assert abs(ours - float(theirs(batch, labels=batch).loss)) < 1e-4


def test_gpt2_goes_on_as_published(gpt2: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = gpt2
    ids = tokenizer.encode("The dog")
    start = len(ids)
    while len(ids) < 20:
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    assert tokenizer.decode(ids[start:]) == AFTER_THE_DOG


@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_steps_from_the_real_hub(tmp_path: Path, recipe: str) -> None:
    words = [
        *("train", recipe, *RECIPES[recipe]),
        *(f"data.max_rows={ROWS}", f"train.steps={STEPS}", "train.block_size=256", "train.batch_size=8"),
        *("train.eval_tokens=5000", "sample.max_new_tokens=20"),
    ]
    command = [sys.executable, "-m", "linnet", *words]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    rows = [
        json.loads(line) for line in (tmp_path / "runs" / recipe / "metrics.jsonl").read_text().splitlines()
    ]
    held_out = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert rows[-1]["step"] == STEPS
    assert held_out[-1] < held_out[0], "gpt2 learns from the first steps"
    assert (tmp_path / "runs" / recipe / "model" / "model.safetensors").is_file()
