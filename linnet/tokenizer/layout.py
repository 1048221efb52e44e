"""What a tokenizer.json says, and what it has to say for us.

Why    Files from elsewhere leave out which tokens control, name another end token, or are damaged.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from linnet.errors import LinnetError

END_OF_TEXT = "<|endoftext|>"


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """GPT-2's road from text to bytes and back around `model`."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    return inner


@cache
def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in GPT-2's vocabulary (`bytes_to_unicode` of openai/gpt-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}


def control(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def with_special(inner: tokenizers.Tokenizer, contents: set[str]) -> tokenizers.Tokenizer:
    """`inner` with the tokens `contents` marked as special; a copy where one of them is not yet.

    Only tokens with this mark are kept from being found in a text, and files exist whose end token has none.
    """
    marked = {t.content for t in inner.get_added_tokens_decoder().values() if t.special}
    if contents <= marked:
        return inner
    layout = json.loads(inner.to_str())
    for token in layout["added_tokens"]:
        token["special"] |= token["content"] in contents
    for content in sorted(contents - {token["content"] for token in layout["added_tokens"]}):
        off = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
        entry = {"id": inner.token_to_id(content), "content": content, "special": True, **off}
        layout["added_tokens"].append(entry)
    layout["added_tokens"].sort(key=lambda token: int(token["id"]))
    return tokenizers.Tokenizer.from_str(json.dumps(layout))


def is_gpt2(inner: tokenizers.Tokenizer) -> bool:
    """Whether texts are split by GPT-2's own regular expression and nothing else."""
    if inner.normalizer is not None or not isinstance(inner.pre_tokenizer, pre_tokenizers.ByteLevel):
        return False
    state = json.loads(inner.pre_tokenizer.__getstate__())
    return bool(state["use_regex"]) and not state["add_prefix_space"]


def parse(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises the bare Exception class
        raise LinnetError(f"{path} is not a tokenizer that can be read: {error}; copy it again.") from error


def end_token(folder: Path) -> str:
    """The `eos_token` of tokenizer_config.json; `<|endoftext|>` where none is named."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return END_OF_TEXT
    try:
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise LinnetError(f"{path} is not a JSON object: {error}; mend or remove it.") from error
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else END_OF_TEXT
