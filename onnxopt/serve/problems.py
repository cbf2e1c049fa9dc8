"""Errors of a request as the two protocols write them, with their status codes.

| code | when |
|---|---|
| 400 | the body is no JSON, or a text is longer than the model takes |
| 404 | no such model or path |
| 413 | the body or the number of texts is beyond the limit |
| 422 | a field is missing, has a wrong type or value, or is not supported |
| 429 | too many requests wait; `Retry-After` tells when to come again |
| 503 | the server is stopping, or the request took too long |
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from onnxopt.errors import OnnxoptError
from onnxopt.run.batcher import BusyError, ClosedError

RETRY_AFTER_S = "1"
_KINDS = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error", 503: "unavailable_error"}


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


def problem_of(error: Exception) -> Problem:
    """Return what an exception is to the caller."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        return Problem(429, str(error), code="queue_full")
    if isinstance(error, ClosedError):
        return Problem(503, str(error), code="shutting_down")
    if isinstance(error, TimeoutError):
        return Problem(503, "the request took too long", code="timeout")
    if isinstance(error, OnnxoptError):
        long = "tokens, the model takes" in str(error)
        return Problem(400 if long else 422, str(error), code="context_length_exceeded" if long else "invalid_value")
    return Problem(500, f"internal error: {type(error).__name__}", code="internal_error")


def answer(problem: Problem, path: str) -> JSONResponse:
    """Return a problem in the words of the protocol that a path belongs to."""
    headers = {"Retry-After": RETRY_AFTER_S} if problem.status in {429, 503} else None
    content: dict[str, Any] = {"error": problem.message}
    if not path.startswith("/v2"):
        kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
        content = {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}
    return JSONResponse(content, problem.status, headers=headers)


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Answer whatever was raised."""
    return answer(problem_of(error), request.url.path)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not what it should be: no JSON is 400, another shape 422."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class alone
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return answer(Problem(400, "the body is not valid JSON", code="invalid_json"), request.url.path)
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return answer(Problem(422, message, code=first["type"], param=place or None), request.url.path)
