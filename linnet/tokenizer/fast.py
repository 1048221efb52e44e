"""gigatoken, an optional package, in the place of `tokenizers` for large amounts of text.

What   `fast_encoder` gives a callable from texts to flat ids, or the reason why there is none.
Why    On one core it encodes 60 to 190 MB/s where `tokenizers` encodes 1 to 1.5, with the same ids.
How    It is used for GPT-2's pre-tokenizer only, and only if it gives the ids of `tokenizers` on a fixed sample: so
       what is written never depends on whether it is installed. It is built without the control tokens, which makes
       them plain characters. All texts are joined by a mark of its own and encoded in one call on this thread; the
       mark's id then says where each text ends. (Its batch calls import awkward arrays, which takes 0.2 s.)
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers

from linnet.tokenizer.words import FlatIds

# Noncharacters (U+FDD0, U+FDD1): never assigned. A text that holds the mark all the same is encoded without gigatoken.
MARK = "\ufdd0linnet\ufdd1"
# Loading and comparing take 0.2 s, in which the plain way encodes about this many characters.
WORTHWHILE = 2_000_000

# What the sample of `_agrees` is made of. RECENT: letters and digits of Unicode 14 to 16, which an old library takes
# for something else.
WHITE_SPACE = " \n\r\t\xa0\u3000\u2028\u200b\0\x1c\x85\x7f\ufeff"
WORDS = (
    "'s 'S 'll 're 've 'd 'm 't ’s '' n't I'M x=1; {} !!! <| |> endoftext <|im_start|> <s> [INST] \ufdd0 \ufffd "
    "the The linnet 0 12 3.14 ½ Ⅷ ² ٣ १२ Straße é e\u0301 ǅ ﬁ 中文 日本語 한국어 ภาษา עברית العربية हिन्दी Ελλη мир ა "
    "👩‍👩‍👧 👍🏽 🇫🇷 😀 © → — … “ \U00010400 \U0001e922 \U000e0041 \U0010ffff"
)
RECENT = "\u0870\U0001e290\U00011f04\U00011f50\U0001e4d0\U0002ebf0\u1c89\ua7cb\U00010d4a\U00010d40"

FastEncoder = Callable[[Sequence[str]], FlatIds | None]
"""Ids of texts; None where these texts must be encoded in the plain way."""


def fast_encoder(inner: tokenizers.Tokenizer) -> tuple[FastEncoder | None, str]:
    """gigatoken for `inner`, whose pre-tokenizer is GPT-2's, or the reason why it is not used.

    The reason is empty where the package is just not installed.
    """
    mark = inner.get_vocab_size()
    try:
        import gigatoken

        encoder = _Gigatoken(gigatoken.Tokenizer.from_json(_with_mark(inner, mark)), mark)
        agrees = _agrees(encoder, inner)
    except ImportError:
        return None, ""
    except Exception as error:  # whatever another version of it may raise
        return None, f"gigatoken is not used, since it fails ({type(error).__name__}: {error})."
    if not agrees:
        return None, "gigatoken is not used, since its ids are not those of tokenizers."
    return encoder, ""


class _Gigatoken:
    def __init__(self, inner: Any, mark: int) -> None:
        self._inner = inner
        self._mark = mark

    def __call__(self, texts: Sequence[str]) -> FlatIds | None:
        try:
            ids = self._inner.encode(MARK.join(texts))
        except (UnicodeError, TypeError):  # half a surrogate pair: the plain way has the sentence for it
            return None
        is_mark = ids == self._mark
        marks = np.flatnonzero(is_mark)
        if len(marks) != max(len(texts) - 1, 0):
            return None
        ends = np.append(marks, len(ids))
        offsets = np.zeros(len(texts) + 1, np.int64)
        offsets[1:] = (ends - np.arange(len(ends)))[: len(texts)]
        return FlatIds(ids[~is_mark], offsets)


def _with_mark(inner: tokenizers.Tokenizer, mark: int) -> str:
    """tokenizer.json of `inner` with MARK as its only control token."""
    layout = inner.to_str()
    key = '"added_tokens":'
    start = layout.index(key) + len(key)  # before it there are only the version and two nulls
    _, stop = json.JSONDecoder().raw_decode(layout, start)
    off = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    token = {"id": mark, "content": MARK, "special": True, **off}
    return layout[:start] + json.dumps([token]) + layout[stop:]


def _agrees(encoder: FastEncoder, inner: tokenizers.Tokenizer) -> bool:
    """Whether both give the same ids for each text of the sample."""
    texts = sample_texts(inner)
    flat = encoder(texts)
    if flat is None:
        return False
    expected = [encoding.ids for encoding in inner.encode_batch_fast(texts, add_special_tokens=False)]
    ids, ends = flat.ids.tolist(), flat.offsets.tolist()
    return expected == [ids[start:stop] for start, stop in itertools.pairwise(ends)]


def sample_texts(inner: tokenizers.Tokenizer) -> list[str]:
    """What is compared: prose, code, white space, contractions, scripts, emoji, control tokens, rare words."""
    controls = (token.content for token in inner.get_added_tokens_decoder().values())
    parts = [
        *WHITE_SPACE,
        *WORDS.split(),
        *RECENT,
        *controls,
        "  ",
        "a" * 50,
        "-" * 40,
        " " * 30,
        "\n" * 9,
        "",
    ]
    generator = random.Random(0)
    texts = [*parts, *(f"a{part}b 1{part}2 {part} !{part}!  {part}\n" for part in parts)]
    texts += ["".join(generator.choices(parts, k=generator.randint(2, 30))) for _ in range(200)]
    size = inner.get_vocab_size(with_added_tokens=False)
    words = [[generator.randrange(size) for _ in range(10)] for _ in range(100)]  # of this vocabulary
    return texts + inner.decode_batch(words, skip_special_tokens=False)
