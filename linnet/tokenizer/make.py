"""Tokenizers: trained here on texts, or loaded by name."""

from __future__ import annotations

from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from linnet import files
from linnet.errors import DiskError, LinnetError
from linnet.hub import missing_tokenizer, snapshot
from linnet.tokenizer.layout import END_OF_TEXT, byte_level, control
from linnet.tokenizer.tokenizer import Tokenizer

HUB_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def train_bpe(texts: Iterator[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's pre-tokenizer; the same texts give the same tokenizer.

    Ids 0-255 are the bytes, then the merges in the order they were learned (each pair at least twice in the text),
    and last end-of-text. A short text gives fewer than `vocab_size` entries.
    """
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    inner.train_from_iterator(texts, trainer=trainer)
    inner.add_special_tokens([control(END_OF_TEXT)])
    return Tokenizer(inner)


def train_char(texts: Iterator[str]) -> Tokenizer:
    """One id for each character that occurs, in the order of their code points; end-of-text is last."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(characters))}, merges=[])
    )
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([control(END_OF_TEXT)])
    return Tokenizer(inner)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder, a run folder, or a name on the hub (`gpt2`).

    A folder may hold it itself, in model/ (a run) or in tokenizer/ (prepared data). The hub is asked through
    huggingface_hub, which honours HF_HOME and HF_ENDPOINT; what its cache holds is taken without the network.

    Raises:
        LinnetError: no such folder, nothing usable in it, or the hub cannot be reached.
    """
    folder = files.expand_home(name)
    if folder.is_dir():
        for place in (folder, folder / "model", folder / "tokenizer"):
            if (place / "tokenizer.json").is_file() or (place / "vocab.json").is_file():
                return Tokenizer.load(place)
        return Tokenizer.load(folder)
    try:
        return Tokenizer.load(snapshot(name, patterns=HUB_FILES, missing=missing_tokenizer))
    except DiskError:
        raise
    except LinnetError as error:
        advice = "Offline, set tokenizer.name to a folder with tokenizer.json, or to bpe."
        raise LinnetError(f"The tokenizer {name}: {error} {advice}") from error
