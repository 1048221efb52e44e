"""From what a request says to texts that stand in line.

Why apart: to lay out a long prompt takes a while, and to load a model takes longer, so neither happens on the event
    loop.
How: `lay_out_chat` and `lay_out_completion` run in the thread of the model's place. The first text of a prompt is laid
out, the other choices go on from the same ids, so that what was read of it is read once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from linnet.errors import LinnetError, UsageError
from linnet.generate.engine import Model
from linnet.generate.writing import Writing
from linnet.serve.bodies import ChatBody, CompletionBody, Message
from linnet.serve.refusals import Refusal
from linnet.serve.scheduler import Echo, Job, Laid, Text
from linnet.serve.shelf import Held


def lay_out_chat(body: ChatBody, held: Held, job: Job) -> Laid:
    """One text for each choice."""
    model = held.model
    turns = [_turn(message, model) for message in body.messages]
    most = body.max_completion_tokens or body.max_tokens
    window = model.network.config.n_positions
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = body.sampling(max_new_tokens=most or max(1, window // 4), logprobs=logprobs)
    asked = model.start(messages=turns, **vars(sampling))
    if most is None:  # What the window still holds.
        rest = max(asked.sampling.max_new_tokens, window - len(asked.prompt))
        asked = model.write(asked.prompt, replace(asked.sampling, max_new_tokens=rest), answer=asked.answer)
    job.texts = [Text(job, n, held, choice) for n, choice in enumerate(_choices(model, asked, body.n))]
    return Laid(len(asked.prompt), held)


def _turn(message: Message, model: Model) -> Mapping[str, str]:
    """As the engine reads it. What OpenAI calls the developer is the system here."""
    assert model.template is not None
    roles = model.template.headers
    role = "system" if message.role == "developer" and "developer" not in roles else message.role
    if role not in roles:
        raise Refusal(
            400,
            f"A message has a role that this model does not know; it knows {', '.join(roles)}.",
            param="messages",
            code="invalid_value",
        )
    return {"role": role, "content": message.text}


def lay_out_completion(body: CompletionBody, held: Held, job: Job) -> Laid:
    """One text for each prompt and choice, in this order."""
    texts: list[Text] = []
    read = 0
    for prompt in body.prompts:
        ids, unseen, shown = _ids(held.model, prompt)
        read += len(ids)
        echo = Echo(shown, ids, unseen, body.logprobs) if body.echo else None
        if body.echo and body.logprobs is not None and len(ids) > held.model.network.config.n_positions:
            raise Refusal(
                400,
                f"The prompt has {len(ids)} tokens, but with echo and logprobs at most "
                f"{held.model.network.config.n_positions} fit.",
                param="prompt",
                code="context_length_exceeded",
            )
        sampling = body.sampling(max_new_tokens=max(1, body.max_tokens), logprobs=body.logprobs)
        first = held.model.write(ids, sampling)
        for writing in _choices(held.model, first, body.n):
            texts.append(Text(job, len(texts), held, writing if body.max_tokens else None, echo))
    job.texts = texts
    return Laid(read, held)


def _ids(model: Model, prompt: str | Sequence[int]) -> tuple[Sequence[int], int, str]:
    """Ids, how many of them at the beginning are not of the prompt itself, and its text."""
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        ids = model.encode_prompt(prompt, raw=True)
        return ids, len(tokenizer.prefix) or (0 if prompt else 1), prompt
    if max(prompt) >= tokenizer.vocab_size:
        raise Refusal(
            400,
            f"A token of the prompt is {max(prompt)}, but this model has {tokenizer.vocab_size}.",
            param="prompt",
            code="invalid_value",
        )
    return prompt, 0, tokenizer.decode(prompt)


def _choices(model: Model, first: Writing, count: int) -> list[Writing]:
    """All texts for one prompt and seed."""
    others = [
        model.write(first.prompt, first.sampling, answer=first.answer, choice=choice)
        for choice in range(1, count)
    ]
    return [first, *others]


def check_bias(body: ChatBody | CompletionBody, held: Held) -> None:
    """A bias for a token that the model does not have is a mistake."""
    most = held.model.tokenizer.vocab_size
    for key in body.logit_bias:
        if int(key) >= most:
            raise Refusal(
                400,
                f"There is no token {int(key)}, this model has {most}.",
                param="logit_bias",
                code="invalid_value",
            )


def laid_out(body: ChatBody | CompletionBody, held: Held, job: Job) -> Laid:
    """Either; what the engine does not accept is the client's mistake."""
    check_bias(body, held)
    try:
        if isinstance(body, ChatBody):
            return lay_out_chat(body, held, job)
        return lay_out_completion(body, held, job)
    except UsageError:
        raise
    except LinnetError as error:  # A character that this vocabulary does not have, say.
        raise Refusal(
            400,
            str(error),
            param="messages" if isinstance(body, ChatBody) else "prompt",
            code="invalid_value",
        ) from error
