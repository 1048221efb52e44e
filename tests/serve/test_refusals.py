"""What is not supported or wrong is refused in OpenAI's form, with the name of the parameter."""

import json

import openai
import pytest

from tests.serve.servers import Served

CHAT = {"model": "talk", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
TEXT = {"model": "plain", "prompt": "Hi", "max_tokens": 1}

CHAT_WRONG = {
    "unknown": ({"colour": "red"}, "colour"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format"),
    "store": ({"store": True}, "store"),
    "no messages": ({"messages": []}, "messages"),
    "messages of another type": ({"messages": "Hi"}, "messages"),
    "a message without a role": ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
    "an unknown role": ({"messages": [{"role": "narrator", "content": "Hi"}]}, "messages"),
    "tool calls": ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    "two limits": ({"max_completion_tokens": 2}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many tokens": ({"max_tokens": 10**12}, "max_tokens"),
    "temperature": ({"temperature": 2.5}, "temperature"),
    "temperature as text": ({"temperature": "1"}, "temperature"),
    "top_p": ({"top_p": -0.1}, "top_p"),
    "n": ({"n": 129}, "n"),
    "n as a truth": ({"n": True}, "n"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "an empty stop": ({"stop": ""}, "stop"),
    "seed": ({"seed": 2**63}, "seed"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "logit_bias of a word": ({"logit_bias": {"dog": 1}}, "logit_bias"),
    "logit_bias beyond the vocabulary": ({"logit_bias": {"300": 1}}, "logit_bias"),
    "logit_bias too much": ({"logit_bias": {"1": 101}}, "logit_bias"),
    "presence_penalty": ({"presence_penalty": 3}, "presence_penalty"),
    "frequency_penalty": ({"frequency_penalty": -3}, "frequency_penalty"),
    "stream_options without stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    "top_k": ({"top_k": 0}, "top_k"),
    "min_p": ({"min_p": 2}, "min_p"),
    "repetition_penalty": ({"repetition_penalty": 0}, "repetition_penalty"),
}
TEXT_WRONG = {
    "suffix": ({"suffix": "the end"}, "suffix"),
    "best_of": ({"best_of": 3}, "best_of"),
    "logprobs": ({"logprobs": 6}, "logprobs"),
    "prompt": ({"prompt": 5}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "a token that there is not": ({"prompt": [300]}, "prompt"),
    "too many texts": ({"prompt": ["a"] * 100, "n": 2}, "n"),
    "echo of more than the window": ({"prompt": "bird " * 200, "echo": True, "logprobs": 0}, "prompt"),
    "messages": ({"messages": []}, "messages"),
}
HARMLESS = {
    "user": "me",
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "store": False,
    "seed": None,
    "temperature": None,
    "stop": None,
    "logit_bias": None,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "stream_options": None,
    "n": 1,
}


def check(error: dict, param: str | None) -> None:
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert error["message"].endswith(".")
    assert error["message"].count("\n") == 0


@pytest.mark.parametrize("name", CHAT_WRONG)
def test_a_chat_that_is_wrong(name: str, server: Served) -> None:
    change, param = CHAT_WRONG[name]
    answer = server.post("/v1/chat/completions", CHAT | change)
    assert answer.status_code == 400, answer.text
    check(answer.json()["error"], param)


@pytest.mark.parametrize("name", TEXT_WRONG)
def test_a_completion_that_is_wrong(name: str, server: Served) -> None:
    change, param = TEXT_WRONG[name]
    answer = server.post("/v1/completions", TEXT | change)
    assert answer.status_code == 400, answer.text
    check(answer.json()["error"], param)


def test_what_changes_nothing_is_taken(server: Served) -> None:
    assert server.post("/v1/chat/completions", CHAT | HARMLESS).status_code == 200
    assert server.post("/v1/completions", TEXT | {"suffix": None, "best_of": 1}).status_code == 200


def test_the_client_sees_the_parameter(server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.openai().chat.completions.create(
            **CHAT, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError) as missing:
        server.openai().completions.create(model="gpt-5", prompt="Hi")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    assert "talk, plain, endless" in missing.value.message


def test_a_model_without_turns_says_where_to_go(server: Served) -> None:
    answer = server.post("/v1/chat/completions", CHAT | {"model": "plain"})
    assert answer.status_code == 400
    check(answer.json()["error"], "model")
    assert "/v1/completions" in answer.json()["error"]["message"]


BODIES = {
    "nothing": (b"", None),
    "half": (b'{"model": "talk', None),
    "NaN": (json.dumps(CHAT | {"temperature": float("nan")}).encode(), None),
    "too large for a float": (json.dumps(CHAT).encode().replace(b'"max_tokens": 1', b'"top_p": 1e999'), None),
    "a number of 400 digits": (b'{"model": "plain", "seed": 1%s}' % (b"0" * 400), None),
    "half a character": (json.dumps(CHAT | {"user": "\ud800"}).encode(), None),
    "latin-1": (json.dumps(CHAT | {"user": "ä"}, ensure_ascii=False).encode("latin-1"), None),
    "a list": (b"[]", None),
    "a number": (b"7", None),
    "null": (b"null", None),
    "deep lists": (b"[" * 100_000, None),
    "deep in a message": (
        json.dumps(CHAT).encode().replace(b'"Hi"', b"[" * 100_000 + b"]" * 100_000),
        None,
    ),
    "deep objects": (b'{"model":' * 100_000, None),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request(name: str, server: Served) -> None:
    body, param = BODIES[name]
    with server.http() as client:
        for path in ("/v1/chat/completions", "/v1/completions"):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
            check(answer.json()["error"], param)


def test_a_body_of_another_kind(server: Served) -> None:
    with server.http() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = client.post("/v1/completions", content=json.dumps(TEXT), headers={"content-type": kind})
            assert answer.status_code == 400
            check(answer.json()["error"], None)


def test_paths_and_methods_that_there_are_not(server: Served) -> None:
    with server.http() as client:
        missing = client.get("/v1/embeddings")
        assert missing.status_code == 404
        check(missing.json()["error"], None)
        method = client.get("/v1/completions")
        assert (method.status_code, method.headers["allow"]) == (405, "POST")
        check(method.json()["error"], None)


def test_nul_in_texts(server: Served) -> None:
    answer = server.post("/v1/completions", TEXT | {"prompt": "a\0b", "stop": "\0", "user": "\0"})
    assert answer.status_code == 200
