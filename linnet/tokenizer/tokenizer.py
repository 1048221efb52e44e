"""The class over all kinds of tokenizers; the package says what and why."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers
from tokenizers import decoders, models, processors

from linnet import files
from linnet.errors import LinnetError
from linnet.tokenizer.fast import WORTHWHILE, FastEncoder, fast_encoder
from linnet.tokenizer.layout import (
    END_OF_TEXT,
    byte_letters,
    byte_level,
    control,
    is_gpt2,
    parse,
    with_special,
)
from linnet.tokenizer.layout import (
    end_token as named_end_token,
)
from linnet.tokenizer.words import BATCH, CUT_GPT2, FlatIds, WordIds, cut_stream

_CUT_ANYWHERE = re.compile("")
# Other published pre-tokenizers, GPT-4's for one, join a newline to punctuation; none joins a space to a letter before.
_CUT_BEFORE_SPACE = re.compile(r"(?<=[A-Za-z])(?= )")


def _one_thread() -> None:
    """Workers share the cores by being several; and the threads of `tokenizers` do not survive a fork."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)


class Tokenizer:
    """A text <-> ids mapping with one control token, end-of-text.

    Attributes:
        end_of_text: its id.
        end_token: its text, `<|endoftext|>` unless a loaded folder names another.
        vocab_size: number of ids, end-of-text included.
        prefix: ids that the loaded tokenizer.json puts in front of a text: `[end_of_text]` for what `save` writes,
            `[]` for GPT-2's own.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, end_token: str = END_OF_TEXT) -> None:
        end_of_text = inner.token_to_id(end_token)
        if end_of_text is None:
            raise LinnetError(
                f"The tokenizer has no {end_token} token; add it to tokenizer.json or name its end token as "
                "eos_token in tokenizer_config.json."
            )
        inner.no_truncation()
        inner.no_padding()
        self._decoder = with_special(
            inner, {end_token}
        )  # the file's own marks: what `decode` drops and `save` writes
        added = {token.content for token in inner.get_added_tokens_decoder().values()}
        inner = with_special(self._decoder, added)
        inner.encode_special_tokens = True  # control tokens in a text are plain characters
        self._inner = inner
        self.end_of_text: int = end_of_text
        self.end_token = end_token
        self.vocab_size: int = inner.get_vocab_size()
        self.prefix: list[int] = inner.encode("").ids
        self._seen = 0  # characters encoded so far

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without `prefix`.

        Raises:
            LinnetError: a character outside the vocabulary (characters), or half a surrogate pair.
        """
        return [token for ids in self.encode_stream([text]) for token in ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Same errors as `encode`."""
        flat = self.encode_flat(texts)
        ids, ends = flat.ids.tolist(), flat.offsets.tolist()
        return [ids[start:stop] for start, stop in itertools.pairwise(ends)]

    def encode_flat(self, texts: Sequence[str]) -> FlatIds:
        """Ids of each text, as two arrays. Same errors as `encode`.

        A text of more than 524,288 characters is cut as in `encode_stream`.
        """
        if not texts:
            return FlatIds(np.empty(0, np.uint32), np.zeros(1, np.int64))
        if max(map(len, texts)) <= BATCH:
            return self._encode_pieces(texts)
        pieces: list[str] = []
        last = []  # where each text's pieces end
        for text in texts:
            if len(text) <= BATCH:
                pieces.append(text)
            else:
                pieces += [p for some in cut_stream([text], places=self._cut_places) for p in some]
            last.append(len(pieces))
        flat = self._encode_pieces(pieces)
        return FlatIds(flat.ids, flat.offsets[[0, *last]])

    def encode_stream(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of the concatenation of `texts`, part by part, in bounded memory.

        The ids are those of the whole text: it is cut only where its ids do not depend on it (see `CUT_GPT2`), unless
        more than 262,144 characters come without such a place.
        """
        for ids in self.stream_flat(texts):
            yield ids.tolist()

    def stream_flat(self, texts: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """`encode_stream` with an array for each part of about 524,288 characters."""
        for pieces in cut_stream(texts, places=self._cut_places):
            if pieces:
                yield self._encode_pieces(pieces).ids

    def accelerate(self) -> None:
        """Load now what speeds up long texts. Worth it before worker processes are forked: they then have it."""
        self._seen = WORTHWHILE
        _ = self._fast

    def _encode_pieces(self, pieces: Sequence[str]) -> FlatIds:
        if multiprocessing.parent_process() is not None:  # known only now in a process that was spawned
            _one_thread()
        self._seen += sum(map(len, pieces))
        if self._seen >= WORTHWHILE and self._fast and (flat := self._fast(pieces)) is not None:
            return flat
        if self._words is None:
            return _flat(self._encode_lists(pieces))
        flats, start, characters = [], 0, 0
        for number, piece in enumerate(pieces, 1):
            characters += len(piece)
            if characters >= BATCH or number == len(pieces):
                flats.append(self._words(pieces[start:number]))
                start, characters = number, 0
        return _joined(flats)

    def _encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text by `tokenizers`, in parallel."""
        try:
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise LinnetError(_surrogate_message(texts)) from error
        ids = [encoding.ids for encoding in encodings]
        if self.is_char:
            for text, text_ids in zip(texts, ids, strict=True):
                if len(text) != len(text_ids):
                    self._refuse_unknown(text)
        return ids

    @cached_property
    def _words(self) -> WordIds | None:
        return WordIds(self._encode_lists) if is_gpt2(self._inner) else None

    @cached_property
    def _fast(self) -> FastEncoder | None:
        if not is_gpt2(self._inner):
            return None
        encoder, reason = fast_encoder(self._inner)
        if reason and multiprocessing.parent_process() is None:
            _say(reason)
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_words", "_fast", "_saved")
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._decoder.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for, which may be a part of a character; of a control token its name."""
        added = self._decoder.get_added_tokens_decoder()
        in_letters = isinstance(self._decoder.decoder, decoders.ByteLevel)
        found = [b""] * self.vocab_size
        for text, token in self._decoder.get_vocab(with_added_tokens=True).items():
            if in_letters and token not in added:
                found[token] = bytes(byte_letters()[letter] for letter in text)
            else:
                found[token] = text.encode()
        return found

    def byte_lengths(self) -> list[int]:
        """For each id, the bytes of UTF-8 text that it stands for: 0 for control tokens, 1 for a third of 日."""
        vocabulary, added = self._decoder.get_vocab(), self._decoder.get_added_tokens_decoder()
        byte_level = isinstance(self._decoder.decoder, decoders.ByteLevel)  # one letter for each byte
        lengths = [0] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            if number not in added:
                lengths[number] = len(token) if byte_level else len(token.encode())
            elif not added[number].special:
                lengths[number] = len(token.encode())
        return lengths

    @cached_property
    def is_char(self) -> bool:
        """True where each character is one id (`train_char`)."""
        if self._inner.pre_tokenizer is not None or not isinstance(self._inner.model, models.BPE):
            return False
        return not json.loads(self._inner.to_str())["model"]["merges"]

    @cached_property
    def _cut_places(self) -> re.Pattern[str]:
        if self.is_char:
            return _CUT_ANYWHERE
        return CUT_GPT2 if is_gpt2(self._inner) else _CUT_BEFORE_SPACE

    def _refuse_unknown(self, text: str) -> None:
        for character in text:
            if self._inner.token_to_id(character) is None:
                raise LinnetError(
                    f"The character {character!r} (U+{ord(character):04X}) is not in this character vocabulary of "
                    f"{self.vocab_size - 1} characters; leave it out, or train with tokenizer.name=bpe."
                )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything that decides the ids: vocabulary, merges, pre-tokenizer, control tokens.

        It is the same before and after `save`, and for vocab.json + merges.txt and tokenizer.json of one tokenizer.
        """
        layout = orjson.loads(self._decoder.to_str())
        pre_tokenizer = {k: v for k, v in (layout["pre_tokenizer"] or {}).items() if k != "trim_offsets"}
        added = [[token["id"], token["content"], token["special"]] for token in layout["added_tokens"]]
        # None and "" mean the same to the model, and both are found in files.
        model = {k: v or None for k, v in layout["model"].items()}
        parts = [model, pre_tokenizer, layout["normalizer"], added, self.end_of_text]
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @cached_property
    def _saved(self) -> bytes:
        """tokenizer.json; kept, since it takes 0.04 s and preparing saves it twice."""
        end = self.end_token
        # Nothing here encodes or decodes with a post-processor, so it may stay; a copy would cost 0.1 s.
        self._decoder.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", pair=f"{end} $A $B:1", special_tokens=[(end, self.end_of_text)]
        )
        return self._decoder.to_str(pretty=True).encode() + b"\n"

    def save(self, folder: Path, *, n_positions: int) -> None:
        """Write tokenizer.json and tokenizer_config.json into the existing `folder`.

        transformers' AutoTokenizer then gives `[end_of_text] + encode(text)`. `n_positions` is the model's longest
        window, in tokens.
        """
        files.write_file(folder / "tokenizer.json", [self._saved])
        end = self.end_token
        # Under GPT2Tokenizer a character tokenizer loses its spaces; this class takes tokenizer.json as it is.
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": n_positions,
            "clean_up_tokenization_spaces": False,
        }
        files.write_json(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json and merges.txt, from `folder`.

        Raises:
            LinnetError: neither is there, or a file is damaged.
        """
        end_token = named_end_token(folder)
        path = folder / "tokenizer.json"
        if path.is_file():
            return cls(parse(path), end_token=end_token)
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        if not (vocab.is_file() and merges.is_file()):
            raise LinnetError(
                f"{folder} holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, is needed; "
                "copy them there or set tokenizer.name to another folder."
            )
        try:
            inner = byte_level(models.BPE.from_file(str(vocab), str(merges)))
        except Exception as error:  # tokenizers raises the bare Exception class
            raise LinnetError(f"{vocab} and {merges.name} are damaged: {error}; copy them again.") from error
        if inner.token_to_id(end_token) is not None:
            inner.add_special_tokens([control(end_token)])
        return cls(inner, end_token=end_token)


def _flat(lists: list[list[int]]) -> FlatIds:
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.uint32)
    return FlatIds(ids, np.cumsum([0, *map(len, lists)], dtype=np.int64))


def _joined(flats: list[FlatIds]) -> FlatIds:
    """The same as of one call with the texts of all."""
    if len(flats) == 1:
        return flats[0]
    offsets, done = [np.zeros(1, np.int64)], 0
    for flat in flats:
        offsets.append(flat.offsets[1:] + done)
        done += len(flat.ids)
    return FlatIds(np.concatenate([flat.ids for flat in flats]), np.concatenate(offsets))


@cache
def _say(sentence: str) -> None:
    """On stderr, once in a process."""
    print(sentence, file=sys.stderr)


def _surrogate_message(texts: Sequence[str]) -> str:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return (
                f"The text holds half a character, the lone surrogate U+{ord(text[error.start]):04X}, at position "
                f"{error.start}; it cannot be written as UTF-8: remove it."
            )
    return "A text must be a string."
