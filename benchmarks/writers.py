"""How each candidate of generate.py writes: `make_writer(who, precision, job)` gives functions over ids.

What   `Writer.write(prompts, count)` greedily writes `count` tokens behind each prompt (all at once) and returns
       them with the seconds from the first token to the last; `Writer.first(prompt)` the seconds until the first token.
Why    Everyone gets the same ids and must give back as many, with as many threads as the machine has cores.
How    transformers and CTranslate2 only give whole texts: a call for one token is timed and taken off.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Ids = list[int]


@dataclass(frozen=True)
class Written:
    """Texts without their prompts, and the seconds between the first token and the last."""

    texts: list[Ids]
    seconds: float


@dataclass(frozen=True)
class Writer:
    """A model in memory."""

    write: Callable[[Sequence[Ids], int], Written]

    def first(self, prompt: Ids) -> float:
        """Seconds until the first token of a prompt that was not read before."""
        started = time.perf_counter()
        self.write([prompt], 1)
        return time.perf_counter() - started


def make_writer(who: str, precision: str, *, folder: Path, gguf: Path, together: bool) -> Writer:
    """Load the model of `who`; `together`: for several texts at once."""
    if who == "llama.cpp":
        return _llama(gguf)
    if who == "linnet":
        return _linnet(folder, precision, together=together)
    return {"transformers": _transformers, "ctranslate2": _ctranslate2}[who](folder, precision)


def _linnet(folder: Path, precision: str, *, together: bool) -> Writer:
    from linnet import load
    from linnet.generate.batch import Batch
    from linnet.generate.sampling import Sampling

    model = load(folder, precision=precision, together=together)
    assert model.decoder is not None
    no_end = {model.tokenizer.end_of_text: -100.0}

    def write(prompts: Sequence[Ids], count: int) -> Written:
        assert model.decoder is not None
        batch = Batch(model.decoder)
        sampling = Sampling(temperature=0, max_new_tokens=count, logit_bias=no_end)
        writings = [model.write(prompt, sampling) for prompt in prompts]
        for writing in writings:
            batch.add(writing)
        while not all(writing.tokens for writing in writings):
            batch.step()
        done, started = sum(len(w.tokens) for w in writings), time.perf_counter()
        while len(batch):
            batch.step()
        seconds = time.perf_counter() - started
        share = (count - 1) * len(prompts) / max(1, count * len(prompts) - done)
        return Written([writing.tokens for writing in writings], seconds * share)

    return Writer(write)


def _transformers(folder: Path, precision: str) -> Writer:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(prompts: Sequence[Ids], count: int) -> list[Ids]:
        ids = torch.tensor(list(prompts))
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
        return [row[ids.shape[1] :] for row in out.tolist()]

    return Writer(partial(_less_the_first, generate))


def _ctranslate2(folder: Path, precision: str) -> Writer:
    import ctranslate2
    from tokenizers import Tokenizer

    converted = folder.parent / "ctranslate2"
    if not converted.is_dir():
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
        config = json.loads((converted / "config.json").read_bytes())
        config["unk_token"] = (
            config["unk_token"] or config["eos_token"]
        )  # It cannot read the null that it wrote.
        (converted / "config.json").write_text(json.dumps(config))
    model = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=precision, intra_threads=os.cpu_count() or 1
    )
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def generate(prompts: Sequence[Ids], count: int) -> list[Ids]:
        found = model.generate_batch(
            [[tokens.id_to_token(i) for i in prompt] for prompt in prompts],
            min_length=count,
            max_length=count,
            include_prompt_in_result=False,
        )
        return [one.sequences_ids[0] for one in found]

    return Writer(partial(_less_the_first, generate))


def _less_the_first(
    generate: Callable[[Sequence[Ids], int], list[Ids]], prompts: Sequence[Ids], count: int
) -> Written:
    started = time.perf_counter()
    texts = generate(prompts, 1)
    first = time.perf_counter() - started
    if count > 1:
        texts = generate(prompts, count)
    return Written(texts, time.perf_counter() - started - 2 * first)


def _llama(gguf: Path) -> Writer:
    import llama_cpp

    cores = os.cpu_count() or 1
    model: Any = llama_cpp.Llama(
        str(gguf), n_ctx=1024, n_threads=cores, n_threads_batch=cores, verbose=False, logits_all=False
    )

    def write(prompts: Sequence[Ids], count: int) -> Written:
        (prompt,) = prompts
        model.reset()
        model.eval(prompt)
        text = [model.sample(temp=0.0)]
        started = time.perf_counter()
        while len(text) < count:
            model.eval(text[-1:])
            text.append(model.sample(temp=0.0))
        return Written([text], time.perf_counter() - started)

    return Writer(write)
