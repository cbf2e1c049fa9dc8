"""Errors of a request as the two protocols write them, with their status codes.

| code | when |
|---|---|
| 400 | the body is no JSON, or a text is longer than the model takes |
| 401 | the server wants an API key, and it is missing or wrong |
| 404 | no such model or path |
| 408 | a request, or its body, does not come |
| 413 | the body, the number of texts or the memory that it takes is beyond the limit |
| 422 | a field is missing, has a wrong type or value, or is not supported |
| 429 | too many requests wait; `Retry-After` tells when to come again |
| 500 | a fault of the server; its log has the rest |
| 503 | the server is stopping, has no memory or too many connections, or the request took too long |

No answer tells where on the server's machine something lies.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from onnxopt.errors import OnnxoptError, word
from onnxopt.run.batcher import BusyError, ClosedError, TooLargeError

RETRY_AFTER_S = "1"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_MOST_LETTERS = 1000  # of a message
_FIELD = re.compile(r"[a-z][a-z0-9_]*")  # else it is the name of a type, one of several that a field may have
# the folders before the name of a file; names of nodes look alike, but do not end so
_FOLDERS = re.compile(r"(?<![\w.])(?:/[^/\s'\"]+)*/(?=[\w.+-]+\.(?:onnx|data|bin|json|jinja|txt|so|py|cc|h)\b)")
# what the runtime says when the system gives it nothing
_NO_MEMORY = re.compile(r"[Ff]ailed to allocate|bad_?\s?alloc|[Oo]ut of memory")
_TYPES = frozenset({"str", "int", "float", "bool"})


class Problem(Exception):  # noqa: N818  # what it is called in HTTP (RFC 9457)
    """A request that gets no answer.

    Args:
        status: HTTP status code.
        message: what is wrong, for a person.
        code: the same for a program.
        param: the field it concerns.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class Json(JSONResponse):
    """An answer in JSON, also of text that UTF-8 cannot hold: half of a surrogate pair becomes its JSON escape."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of an answer."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def problem_of(error: BaseException) -> Problem:
    """Return what an exception is to the caller."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        return Problem(429, str(error), code="queue_full")
    if isinstance(error, TooLargeError):
        return Problem(413, str(error), code="too_large")
    if isinstance(error, MemoryError) or (isinstance(error, OnnxoptError) and _NO_MEMORY.search(error.what)):
        return Problem(503, "the server has no memory left for it", code="out_of_memory")
    if isinstance(error, ClosedError):
        return Problem(503, str(error), code="shutting_down")
    if isinstance(error, TimeoutError):
        return Problem(503, "the request took too long", code="timeout")
    if isinstance(error, OnnxoptError):
        # where it happened is a file of this machine
        said = f"{error.what}; {error.hint}" if error.hint else error.what
        long = "tokens, the model takes" in said
        return Problem(400 if long else 422, said, code="context_length_exceeded" if long else "invalid_value")
    return Problem(500, f"internal error: {type(error).__name__}", code="internal_error")


def answer(problem: Problem, path: str, *, closes: bool = False) -> Json:
    """Return a problem in the words of the protocol that a path belongs to.

    Args:
        problem: what is wrong.
        path: of the request.
        closes: whether the connection ends behind the answer, since the request was not read to its end.
    """
    headers = {"Retry-After": RETRY_AFTER_S} if problem.status in {429, 503} else {}
    message = word(_FOLDERS.sub("", problem.message), _MOST_LETTERS)
    content: dict[str, Any] = {"error": message}
    if not path.startswith("/v2"):
        kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
        content = {"error": {"message": message, "type": kind, "param": problem.param, "code": problem.code}}
    return Json(content, problem.status, headers=headers | ({"Connection": "close"} if closes else {}))


async def on_error(request: Request, error: Exception) -> Json:
    """Answer whatever was raised."""
    return answer(problem_of(error), request.url.path)


async def on_invalid(request: Request, error: Exception) -> Json:
    """Answer a body that is not what it should be: no JSON is 400, another shape 422."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class alone
    errors = error.errors()
    # of the types that a field may have, what was sent is likely meant to be the one in which it got furthest
    field = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    first = max(field, key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return answer(Problem(400, "the body is not valid JSON", code="invalid_json"), request.url.path)
    place = place_of(first["loc"])
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return answer(Problem(422, message, code=first["type"], param=place or None), request.url.path)


def place_of(parts: tuple[int | str, ...]) -> str:
    """Return the field that an error of pydantic's is about, such as `messages.0.content`."""
    fields = (str(part) for part in parts if part != "body")
    return ".".join(part for part in fields if part.isdigit() or (_FIELD.fullmatch(part) and part not in _TYPES))
