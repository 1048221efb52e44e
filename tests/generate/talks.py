"""Conversations with networks that write letters and never end, for the tests of `linnet chat`."""

from pathlib import Path

from linnet.generate.chat import Conversation
from linnet.generate.engine import Model
from linnet.model.pretrained import save_model
from linnet.turns.template import CHAT, Template
from tests.generate.networks import shift
from tests.model.examples import tiny, tokenizer

NEVER = 10**6  # tokens


def never_ending(template: Template | None = CHAT, **shape: int) -> Model:
    """Writes until it is stopped, letters and other harmless characters only."""
    model = Model(tiny(**{"n_positions": 256, **shape}), tokenizer(), template=template)
    shift(model.network, slice(None), by=-100.0)
    letters = [model.tokenizer.encode(letter)[0] for letter in "abcdefgh "]
    model.network.wte.weight.data[letters, 0] = 0.0
    return model


def saved(folder: Path, model: Model) -> str:
    folder.mkdir()
    save_model(folder, model.network, tokenizer=model.tokenizer, template=model.template)
    return str(folder)


def talking(model: Model, *, system: str = "", **options) -> Conversation:
    return Conversation(model, {"max_new_tokens": 8, "seed": 1, **options}, system=system)


def answer(conversation: Conversation, line: str) -> str:
    """What is written to `line`, as the terminal would have it done."""
    writing = conversation.take(line).writing
    assert writing is not None
    text = "".join(writing.pieces())
    conversation.answered(text, writing.finish_reason)
    return text
