"""What an answer looks like: OpenAI's two forms, whole or in chunks.

How: a `Form` knows one of the two; it is fed with what was written, choice by choice, and makes the objects of it. The
same pieces give the whole answer and the stream, so they say the same.
"""

from __future__ import annotations

import codecs
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from linnet.generate.sampling import Likely
from linnet.generate.writing import Piece
from linnet.serve.scheduler import Written
from linnet.tokenizer import Tokenizer

Json = dict[str, Any]


class Form:
    """One request's answer. `begin` comes first, then `add` for all that is written."""

    prefix = kind = chunk_kind = ""

    def __init__(self, *, model: str, count: int, logprobs: bool) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model
        self.logprobs = logprobs
        self.texts = [""] * count
        self.likely: list[list[Likely]] = [[] for _ in range(count)]
        self.reasons = [""] * count
        self.tokens = [0] * count
        self.prompt_tokens = 0
        self.fingerprint = ""

    def begin(self, tokenizer: Tokenizer, *, prompt_tokens: int, fingerprint: str) -> None:
        """What is known once the prompts are laid out."""
        self.tokenizer, self.prompt_tokens, self.fingerprint = tokenizer, prompt_tokens, fingerprint

    def add(self, written: Written) -> None:
        """Keep it for the whole answer."""
        number = written.number
        self.texts[number] += written.piece.text
        self.likely[number] += written.piece.likely
        self.reasons[number] = written.finish_reason
        self.tokens[number] = written.tokens

    @property
    def done(self) -> bool:
        """Whether all choices have ended."""
        return all(self.reasons)

    def usage(self) -> Json:
        """How many tokens were read and written."""
        written = sum(self.tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def whole(self) -> Json:
        """The answer that is not streamed."""
        pieces = zip(self.texts, self.likely, strict=True)
        choices = [self.choice(number, Piece(*piece)) for number, piece in enumerate(pieces)]
        for choice, reason in zip(choices, self.reasons, strict=True):
            choice["finish_reason"] = reason
        return self._object(self.kind, choices, usage=self.usage())

    def first_chunks(self) -> list[Json]:
        """Before anything is written."""
        return []

    def chunks(self, written: Written) -> list[Json]:
        """What is streamed of it; `finish_reason` has a chunk to itself, as some clients expect."""
        found = []
        if written.piece.text or written.piece.likely:
            found.append(self.choice(written.number, written.piece, chunk=True))
        if written.finish_reason:
            end = self.choice(written.number, Piece(), chunk=True) | {"finish_reason": written.finish_reason}
            found.append(end)
        return [self._object(self.chunk_kind, [choice]) for choice in found]

    def last_chunk(self) -> Json:
        """`include_usage`."""
        return self._object(self.chunk_kind, [], usage=self.usage())

    def choice(self, number: int, piece: Piece, *, chunk: bool = False) -> Json:
        """A choice, or a piece of one."""
        raise NotImplementedError

    def _object(self, kind: str, choices: Sequence[Json], *, usage: Json | None = None) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **({"usage": usage} if usage is not None else {}),
        }


class ChatForm(Form):
    """Of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_chunks(self) -> list[Json]:
        start = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._object(self.chunk_kind, [{"index": n, **start}]) for n in range(len(self.texts))]

    def choice(self, number: int, piece: Piece, *, chunk: bool = False) -> Json:
        said: Json = {"content": piece.text}
        message: Json = {"role": "assistant", **said, "refusal": None}
        ends = not (piece.text or piece.likely)
        logprobs = {"content": [self._token(one) for one in piece.likely], "refusal": None}
        return {
            "index": number,
            **({"delta": {} if ends else said} if chunk else {"message": message}),
            "logprobs": logprobs if self.logprobs and not (chunk and ends) else None,
            "finish_reason": None,
        }

    def _token(self, likely: Likely) -> Json:
        top = [self._one(token, logprob) for token, logprob in likely.top]
        return self._one(likely.token, likely.logprob) | {"top_logprobs": top}

    def _one(self, token: int, logprob: float) -> Json:
        data = self.tokenizer.token_bytes[token]
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


class CompletionForm(Form):
    """Of /v1/completions. `top`: how many of the likeliest tokens stand beside each."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, *, model: str, count: int, logprobs: bool) -> None:
        super().__init__(model=model, count=count, logprobs=logprobs)
        self._offsets = [_Offset() for _ in range(count)]

    def whole(self) -> Json:
        self._offsets = [_Offset() for _ in self.texts]
        return super().whole()

    def choice(self, number: int, piece: Piece, *, chunk: bool = False) -> Json:
        ends = not (piece.text or piece.likely)
        return {
            "index": number,
            "text": piece.text,
            "logprobs": self._logprobs(number, piece) if self.logprobs and not (chunk and ends) else None,
            "finish_reason": None,
        }

    def _logprobs(self, number: int, piece: Piece) -> Json:
        offset = self._offsets[number]
        return {
            "tokens": [self._name(one.token) for one in piece.likely],
            "token_logprobs": [None if math.isnan(one.logprob) else one.logprob for one in piece.likely],
            "top_logprobs": [
                None
                if math.isnan(one.logprob)
                else {self._name(token): logprob for token, logprob in one.top}
                for one in piece.likely
            ],
            "text_offset": [offset.of(self.tokenizer.token_bytes[one.token]) for one in piece.likely],
        }

    def _name(self, token: int) -> str:
        """Its text, or `bytes:\\xe2\\x80` for a part of a character."""
        data = self.tokenizer.token_bytes[token]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _Offset:
    """Where in the text each token begins, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def of(self, data: bytes) -> int:
        before = self._characters
        self._characters += len(self._decoder.decode(data))
        return before
