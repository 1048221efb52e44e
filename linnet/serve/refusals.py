"""What is said to a client whose request is not answered: one form, OpenAI's, for whatever went wrong.

`{"error": {"message", "type", "param", "code"}}`: programs that know OpenAI's API show the message and look at the
code.
How: anything that finds a fault raises a `Refusal`; `refusal_of` makes one of other exceptions.
"""

import http
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from linnet.errors import LinnetError, UsageError, is_out_of_memory

INVALID = "invalid_request_error"
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class Refusal(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = INVALID if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say it: a refusal is an ASGI application, as a response is."""
        body = orjson.dumps(self.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": body})


def refusal_of(error: BaseException, *, param: str | None = None) -> Refusal:
    """The refusal that an exception means; what nobody expected is printed, it is a bug."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UsageError):
        return Refusal(400, str(error), param=param, code="invalid_value")
    if is_out_of_memory(error):
        return Refusal(
            503, "The memory does not suffice; ask for less at once, or later.", code="out_of_memory"
        )
    if isinstance(error, LinnetError):
        return Refusal(500, str(error), code="model_error")
    traceback.print_exception(error, file=sys.stderr)
    return Refusal(500, "This is a mistake of the server; its output has the details.", code="bug")


def of_http(status: int, *, path: str, method: str, headers: Mapping[str, str] | None = None) -> Refusal:
    """Of a request that no route takes."""
    if status == 404:
        return Refusal(404, f"There is nothing at {method} {path}.", code="unknown_url")
    if status == 405:
        return Refusal(405, f"{path} does not take {method}.", code="method_not_allowed", headers=headers)
    return Refusal(status, f"{http.HTTPStatus(status).phrase}.", headers=headers)


def of_validation(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """Of what pydantic found; the deepest place says most."""
    error = max(errors, key=lambda one: len(one["loc"]))
    place, kind = list(error["loc"][1:]), error["type"]
    if kind == "json_invalid":
        return Refusal(400, "The body is not valid JSON.", code="invalid_json")
    context = error.get("ctx") or {}
    param = context.get("param") or _param(place)
    if not param:
        return Refusal(400, "The body must be a JSON object, sent as application/json.", code="invalid_body")
    if kind == "extra_forbidden":
        return Refusal(400, f"Unknown parameter: {json.dumps(param)}.", param=param, code="unknown_parameter")
    if kind == "missing":
        return Refusal(400, f"You must provide {param}.", param=param, code="missing_required_parameter")
    code = kind if kind == "unsupported_parameter" else "invalid_value"
    return Refusal(400, f"{param}: {error['msg']}.".replace("..", "."), param=param, code=code)


def _param(place: Sequence[str | int]) -> str:
    """("messages", 0, "content", "str") -> messages[0].content: members of a union are no names."""
    if place[:1] == ["logit_bias"]:
        return "logit_bias"  # Below it stand names of the client's own.
    param = ""
    for part in place:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not param:
            param = part[:100]
        elif re.fullmatch(r"\w{1,100}", part) and part not in ("str", "int", "float", "bool"):
            param += f".{part}"
    return param
