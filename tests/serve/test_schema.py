"""What schemathesis makes of /openapi.json: valid and invalid requests by the thousand."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st

from tests.serve.servers import Served, serving

STRANGE = [
    *(
        float(10) ** 308,
        -(2**63),
        2**63,
        -1,
        0,
        1.5,
        True,
        None,
        "",
        "\0",
        "\ud7ff",
        "NaN",
        "💥" * 50,
        [],
        {},
    ),
    *(
        [[]],
        [""],
        ["\0"] * 5,
        {"1": 100},
        {"-1": 1},
        {"": 0},
        {"9" * 30: 1},
        [0],
        [299],
        [300],
        [-1],
        [[1], [2]],
    ),
]
PARAMETERS = [
    *(
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stop",
        "seed",
        "logit_bias",
    ),
    *(
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ),
    *("logprobs", "top_logprobs", "echo", "stream", "stream_options", "user", "suffix", "tools", "nothing"),
]


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[Served]:
    names = [str(models / name) for name in ("talk", "plain")]
    with serving(*names, "--precision", "fp32") as served:
        yield served


def check(response: schemathesis.Response) -> None:
    """An answer in time, no fault of the server, errors in OpenAI's form."""
    assert response.status_code < 500, response.text
    assert response.elapsed < 20
    if response.status_code >= 400 and response.request.method != "HEAD":
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["param"] is None or isinstance(error["param"], str)


def generated(server: Served, *, cases: int) -> None:
    """So many for all routes together, most of them for the two that write."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:
        share = cases * 2 // 5 if operation.method == "post" else cases // 20

        @hypothesis.given(
            case=operation.as_strategy(), name=st.sampled_from(["talk", "plain"]), data=st.data()
        )
        @hypothesis.settings(
            max_examples=share,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def fits(case: schemathesis.Case, name: str, data: st.DataObject) -> None:
            if isinstance(case.body, dict):
                case.body["model"] = name if data.draw(st.integers(0, 9)) else case.body.get("model")
                if isinstance(case.body.get("max_tokens"), int):
                    case.body["max_tokens"] = min(case.body["max_tokens"], 20)
                for parameter in data.draw(st.lists(st.sampled_from(PARAMETERS), max_size=3)):
                    case.body[parameter] = data.draw(st.sampled_from(STRANGE))
                case.body.setdefault("max_tokens", 3)
                case.body["n"] = min(case.body["n"], 3) if type(case.body.get("n")) is int else 1
            with requests.Session() as session:
                check(case.call(base_url=server.url, timeout=30, session=session))

        fits()
    server.wait_until_quiet()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_requests_of_the_schema(small: Served) -> None:
    generated(small, cases=500)


@pytest.mark.torture
def test_5_000_requests_of_the_schema(small: Served) -> None:
    generated(small, cases=5000)


def strange(server: Served, *, every: int) -> None:
    """Whatever stands there: an answer or an error that names it, and never a fault of the server."""
    bodies = {
        "/v1/completions": {"model": "plain", "prompt": "x", "max_tokens": 1},
        "/v1/chat/completions": {
            "model": "talk",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 1,
        },
    }
    cases = list(itertools.product(bodies, PARAMETERS, STRANGE))
    with server.http() as client:
        for path, parameter, value in cases[::every]:
            content = json.dumps(bodies[path] | {parameter: value})
            answer = client.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 404), (parameter, value, answer.text)
            if answer.status_code == 400:
                error = answer.json()["error"]
                named = (error["param"] or "").split(".")[0].split("[")[0]
                # Both limits are there then, and one of them is too many.
                twice = (parameter, named) == ("max_completion_tokens", "max_tokens")
                assert twice or named == parameter, (parameter, value, error)


def test_strange_values(small: Served) -> None:
    strange(small, every=7)


@pytest.mark.slow
def test_all_strange_values(small: Served) -> None:
    strange(small, every=1)
