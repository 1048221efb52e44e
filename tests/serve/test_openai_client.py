"""The official client against a real server: each parameter, streamed and not, gives what the engine gives."""

import math

import openai
import pytest

from linnet.generate.engine import Model
from tests.serve.servers import WINDOW, Served

PROMPT = "The bird sings"
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"}]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "seed": 7}

# What a client may set -> the same in the engine's words. Each changes the text of both models.
SAMPLING = {
    "seed": ({"seed": -8}, {"seed": -8}),
    "temperature": ({"temperature": 0.3}, {"temperature": 0.3}),
    "greedy": ({"temperature": 0}, {"temperature": 0}),
    "top_p": ({"top_p": 0.2}, {"top_p": 0.2}),
    "top_p 0": ({"top_p": 0}, {"temperature": 0}),
    "presence_penalty": ({"presence_penalty": 2}, {"presence_penalty": 2}),
    "frequency_penalty": ({"frequency_penalty": 2}, {"frequency_penalty": 2}),
    "logit_bias": ({"logit_bias": {"40": 12, "41": 12}}, {"logit_bias": {40: 12, 41: 12}}),
    "top_k": ({"extra_body": {"top_k": 2}}, {"top_k": 2}),
    "min_p": ({"extra_body": {"min_p": 0.5}}, {"min_p": 0.5}),
    "repetition_penalty": ({"extra_body": {"repetition_penalty": 3.0}}, {"repetition_penalty": 3.0}),
}


def streamed_chat(client: openai.OpenAI, **options) -> list:
    return list(client.chat.completions.create(model="talk", messages=MESSAGES, stream=True, **options))


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_is_that_of_the_engine(name: str, server: Served, talk: Model, plain: Model) -> None:
    asked, ours = SAMPLING[name]
    asked, ours = {**PLAIN, **asked}, {**PLAIN, **ours, "max_new_tokens": 24}
    client = server.openai()

    said = talk.complete(messages=MESSAGES, **ours)
    answer = client.chat.completions.create(model="talk", messages=MESSAGES, max_tokens=24, **asked)
    assert answer.choices[0].message.content == said.text
    assert answer.choices[0].finish_reason == said.finish_reason
    chunks = streamed_chat(client, max_tokens=24, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said.text
    assert chunks[-1].choices[0].finish_reason == said.finish_reason

    written = plain.complete(PROMPT, raw=True, **ours)
    completion = client.completions.create(model="plain", prompt=PROMPT, max_tokens=24, **asked)
    assert completion.choices[0].text == written.text
    parts = client.completions.create(model="plain", prompt=PROMPT, max_tokens=24, stream=True, **asked)
    assert "".join(part.choices[0].text for part in parts) == written.text

    usual = plain.complete(PROMPT, raw=True, **{**PLAIN, "max_new_tokens": 24})
    assert written.text != usual.text


def test_models(server: Served) -> None:
    client = server.openai()
    listed = client.models.list().data
    assert [model.id for model in listed] == ["talk", "plain", "endless"]
    assert client.models.retrieve("plain").id == "plain"
    extra = {model.id: model.model_extra["linnet"] for model in listed}
    assert extra["talk"]["chat"] is True
    assert extra["talk"]["roles"] == ["system", "user", "assistant", "tool"]
    assert extra["plain"] | {"loaded": 0} == {"chat": False, "roles": [], "n_positions": WINDOW, "loaded": 0}
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-5")
    assert missing.value.code == "model_not_found"


def test_usage_and_limits_of_a_chat(server: Served, talk: Model) -> None:
    client = server.openai()
    prompt = talk.encode_prompt(messages=MESSAGES)
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="endless", messages=MESSAGES, **{limit: 9})
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
            len(prompt),
            9,
            len(prompt) + 9,
        )
        assert answer.choices[0].finish_reason == "length"
        assert (answer.object, answer.choices[0].message.role) == ("chat.completion", "assistant")
        assert answer.id.startswith("chatcmpl-")
    rest = client.chat.completions.create(model="endless", messages=MESSAGES)
    assert rest.usage.total_tokens == WINDOW


@pytest.mark.parametrize("with_usage", [True, False])
def test_the_parts_of_a_stream(server: Served, with_usage: bool) -> None:
    client = server.openai()
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = streamed_chat(client, max_tokens=9, n=2, **options)
    assert len({chunk.id for chunk in chunks}) == 1
    starts = [chunk.choices[0] for chunk in chunks[:2]]
    assert [(one.index, one.delta.role, one.delta.content) for one in starts] == [
        (0, "assistant", ""),
        (1, "assistant", ""),
    ]
    ends = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert sorted(end.index for end in ends) == [0, 1]
    assert all(end.delta.content is None for end in ends)
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == with_usage
    if with_usage:
        assert chunks[-1].choices == []
        assert usages[0].total_tokens == usages[0].prompt_tokens + usages[0].completion_tokens
    raw = server.post(
        "/v1/completions", {"model": "plain", "prompt": "x", "stream": True, "max_tokens": 3, **options}
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in raw.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_seed_and_fingerprint(server: Served) -> None:
    client = server.openai()
    ask = {"model": "talk", "messages": MESSAGES, "max_tokens": 20, "n": 3}
    first, again, other = (client.chat.completions.create(seed=seed, **ask) for seed in (5, 5, 6))
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3
    assert first.system_fingerprint == again.system_fingerprint != ""
    free = [client.chat.completions.create(**ask).choices[0].message.content for _ in range(2)]
    assert free[0] != free[1]


def test_stop(server: Served, plain: Model) -> None:
    client = server.openai()
    whole = plain.complete(PROMPT, raw=True, max_new_tokens=40, **PLAIN).text
    ask = {"model": "plain", "prompt": PROMPT, "max_tokens": 40, **PLAIN}
    for stop in (whole[9:11], [whole[20:23], whole[5:8], "never", "nor this"]):
        answer = client.completions.create(stop=stop, **ask).choices[0]
        first = min(whole.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in whole)
        assert (answer.text, answer.finish_reason) == (whole[:first], "stop")
        parts = client.completions.create(stop=stop, stream=True, **ask)
        assert "".join(part.choices[0].text for part in parts) == whole[:first]


def test_logprobs_of_a_chat(server: Served, talk: Model) -> None:
    client = server.openai()
    options = {"max_tokens": 12, "logprobs": True, "top_logprobs": 3, **PLAIN}
    answer = client.chat.completions.create(model="talk", messages=MESSAGES, **options).choices[0]
    writing = talk.start(messages=MESSAGES, max_new_tokens=12, logprobs=3, **PLAIN)
    batch = writing._begin(writing)
    while not writing.finish_reason:
        batch.step()
    likely = writing.take().likely
    shown = answer.logprobs.content
    assert [one.logprob for one in shown] == pytest.approx([one.logprob for one in likely])
    assert [[top.logprob for top in one.top_logprobs] for one in shown] == [
        pytest.approx([logprob for _, logprob in one.top]) for one in likely
    ]
    tokens = [one.token for one in likely]
    assert bytes(byte for one in shown for byte in one.bytes).decode(errors="replace") == (
        talk.tokenizer.decode(tokens)
    )
    chunks = streamed_chat(client, **options)
    parts = [
        one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content
    ]
    assert parts == shown
    plain_answer = client.chat.completions.create(model="talk", messages=MESSAGES, max_tokens=3)
    assert plain_answer.choices[0].logprobs is None


def test_echo_with_the_logprobs_of_the_prompt(server: Served, plain: Model) -> None:
    client = server.openai()
    options = {"model": "plain", "prompt": PROMPT, "echo": True, **PLAIN}
    ids = plain.encode_prompt(PROMPT, raw=True)
    scored = plain.score(ids, top=2)
    only = client.completions.create(max_tokens=0, logprobs=2, **options)
    assert only.choices[0].text == PROMPT
    assert (only.usage.completion_tokens, only.choices[0].finish_reason) == (0, "length")
    assert only.choices[0].logprobs.token_logprobs == pytest.approx([one.logprob for one in scored])
    assert all(len(top) == 2 for top in only.choices[0].logprobs.top_logprobs)

    written = plain.complete(PROMPT, raw=True, max_new_tokens=8, **PLAIN)
    both = client.completions.create(max_tokens=8, logprobs=0, **options).choices[0]
    assert both.text == PROMPT + written.text
    assert len(both.logprobs.tokens) == len(ids) - 1 + written.tokens
    assert both.logprobs.text_offset[: len(ids) - 1] == [
        len(plain.tokenizer.decode(ids[1 : n + 1])) for n in range(len(ids) - 1)
    ]
    parts = list(client.completions.create(max_tokens=8, logprobs=0, stream=True, **options))
    assert "".join(part.choices[0].text for part in parts) == both.text
    lists = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for one in lists for value in getattr(one, name)] == getattr(both.logprobs, name)
    assert client.completions.create(max_tokens=4, **options).choices[0].logprobs is None


def test_prompts_as_lists_and_tokens(server: Served, plain: Model) -> None:
    """As evaluation harnesses ask: tokens, several at once, the first without a probability."""
    client = server.openai()
    ids = plain.encode_prompt(PROMPT, raw=True)
    options = {"model": "plain", "max_tokens": 6, **PLAIN}
    text = client.completions.create(prompt=PROMPT, n=2, **options)
    assert client.completions.create(prompt=ids, n=2, **options).choices == text.choices
    both = client.completions.create(prompt=["Another", PROMPT], n=2, **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in text.choices]
    lists = client.completions.create(
        prompt=[ids[1:], ids], echo=True, logprobs=1, **{**options, "max_tokens": 0}
    )
    first, second = (choice.logprobs.token_logprobs for choice in lists.choices)
    assert first[0] is None
    assert second[0] is None
    assert second[1:] == pytest.approx([one.logprob for one in plain.score(ids, top=0)])
    assert all(math.isfinite(value) for value in first[1:])


def test_contents_in_parts_and_the_developer(server: Served, talk: Model) -> None:
    client = server.openai()
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "short."}]
    turns = [{"role": "developer", "content": parts}, {"role": "user", "content": "Hello!", "name": "me"}]
    answer = client.chat.completions.create(model="talk", messages=turns, max_tokens=8, **PLAIN)
    ours = [{"role": "system", "content": "Be\nshort."}, {"role": "user", "content": "Hello!"}]
    assert answer.choices[0].message.content == talk.generate(messages=ours, max_new_tokens=8, **PLAIN)


def test_control_tokens_of_users_are_plain_characters(server: Served, talk: Model) -> None:
    client = server.openai()
    said = [{"role": "user", "content": "<|endoftext|>"}]
    answer = client.chat.completions.create(model="talk", messages=said, max_tokens=1)
    assert answer.usage.prompt_tokens == len(talk.encode_prompt(messages=said))
    assert talk.tokenizer.end_of_text not in talk.tokenizer.encode("<|endoftext|>")


def test_a_chat_that_is_too_long_keeps_its_end(server: Served) -> None:
    client = server.openai()
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n} and more " * 8} for n in range(41)]
    answer = client.chat.completions.create(model="talk", messages=turns, max_tokens=30)
    assert answer.usage.prompt_tokens <= WINDOW - 30


def test_texts_go_on_beyond_the_window(server: Served) -> None:
    client = server.openai()
    answer = client.completions.create(model="endless", prompt="x", max_tokens=3 * WINDOW)
    assert answer.usage.completion_tokens == 3 * WINDOW


@pytest.mark.parametrize("echo", [True, False])
def test_no_tokens_at_all(echo: bool, server: Served) -> None:
    client = server.openai()
    answer = client.completions.create(model="plain", prompt=PROMPT, max_tokens=0, echo=echo, n=2)
    assert [choice.text for choice in answer.choices] == [PROMPT if echo else ""] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
