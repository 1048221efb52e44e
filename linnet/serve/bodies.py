"""What a request may say: the parameters of OpenAI's API that are supported, and three more.

Why: a parameter that is silently ignored gives another answer than was asked for. So one that is not known, or known
and not supported, is refused by its name; `null` and values that change nothing are taken.
How: one pydantic model for each endpoint, in strict mode; `sampling()` is the same in the engine's words.
"""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from linnet.generate.sampling import Sampling

MOST_TOKENS = 16_384
"""Of one text: enough for a long article, and an answer that never ends does end."""
MOST_TEXTS = 128
LEAST_TOP_P = 1e-9

# Parameters of OpenAI's API that are not supported, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]


class Body(BaseModel):
    """Of any part of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, data: Any) -> Any:
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


class StreamOptions(Body):
    """With `stream`."""

    include_usage: bool = False
    """A last chunk with the counts of all tokens."""
    include_obfuscation: Literal[False] = False


class Asked(Body):
    """What both endpoints know."""

    model: Annotated[str, Field(max_length=1000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_TEXTS)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] = (
        Field(default_factory=dict)
    )
    user: str = ""
    """Who asks; nothing is done with it."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in data.keys() & UNSUPPORTED.keys():
            value = data[name]
            if value is None or any(type(value) is type(one) and value == one for one in UNSUPPORTED[name]):
                continue
            raise PydanticCustomError(
                "unsupported_parameter", "it is not supported, leave it out", {"param": name}
            )
        return {key: value for key, value in data.items() if key not in UNSUPPORTED}

    @model_validator(mode="after")
    def _check_together(self) -> "Asked":
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "it goes with stream only")
        for key in self.logit_bias:
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise wrong("logit_bias", "its keys must be the numbers of tokens")
        return self

    def sampling(self, *, max_new_tokens: int, logprobs: int | None) -> Sampling:
        """In the engine's words; without a seed of the client's a fresh one."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            logprobs=logprobs,
            stop=self.stop,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            temperature=self.temperature,
            top_p=max(self.top_p, LEAST_TOP_P),
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(key): value for key, value in self.logit_bias.items()},
        )


class CompletionBody(Asked):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=MOST_TEXTS)
        ]
    ) = ""
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def _check_prompts(self) -> "CompletionBody":
        if self.n * len(self.prompts) > MOST_TEXTS:
            raise wrong("n", f"with {len(self.prompts)} prompts it makes more than {MOST_TEXTS} texts")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt: a text, or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TextPart(Body):
    """A piece of a message; pictures and sound are not supported."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn of the conversation."""

    role: Annotated[str, Field(max_length=100)]
    content: str | list[TextPart] = ""
    name: str = ""
    """Of the speaker; the model does not see it."""

    @property
    def text(self) -> str:
        """All that is said."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatBody(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatBody":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise wrong("max_tokens", "it means the same as max_completion_tokens, leave one out")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "it goes with logprobs only")
        return self


def wrong(param: str, message: str) -> PydanticCustomError:
    """A value that does not fit the others."""
    return PydanticCustomError("invalid_value", "{why}", {"param": param, "why": message})
