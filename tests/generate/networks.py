"""Networks that are made to write something: a given text, or more or less of some ids."""

import torch

from linnet.generate.engine import Model
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.tokenizer import Tokenizer
from linnet.turns.template import Template
from tests.model.examples import tokenizer


def scripted(
    text: str,
    *,
    prompt: str = "",
    end: bool = True,
    tokens: Tokenizer | None = None,
    template: Template | None = None,
) -> Model:
    """A real network that, whatever it read, writes `text`: each position's embedding outshouts everything."""
    tokens = tokens or tokenizer()
    network = GPT2(GPT2Config(tokens.vocab_size, 256, 64, 1, 1), seed=0)
    start = len(Model(network, tokens, template=template).encode_prompt(prompt)) - 1
    script = tokens.encode(text) + ([tokens.end_of_text] if end else [])
    with torch.no_grad():
        network.wte.weight.copy_(torch.nn.functional.normalize(network.wte.weight))
        for position, token in enumerate(script, start):
            network.wpe.weight[position] = 1000 * network.wte.weight[token]
    return Model(network, tokens, template=template)


def shift(network: GPT2, ids: int | slice, *, by: float) -> None:
    """Add `by` to the scores of these ids, always, at the price of one channel."""
    with torch.no_grad():
        network.ln_f.weight[0], network.ln_f.bias[0] = 0.0, 1.0
        network.wte.weight[:, 0] = 0.0
        network.wte.weight[ids, 0] = by
