"""What stands before every route: bodies within their limits, an end for who leaves or waits too long, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from onnxopt.serve.limits import Limits
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.problems import Problem, answer, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_MOST_DIGITS = 19  # of the size of a body
_DRAINED = 8  # a body that is so many times too large is still received, or its sender would not read the answer


class Gate:
    """Read the body within its limit, end the work for a caller who went away or waits too long, and count.

    Args:
        app: what answers.
        limits: size and time.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counting)
        except Exception as error:
            logger.exception("a fault of the server at %s", scope["path"])
            self._metrics.errors.labels(_route(scope)).inc()
            if status:
                raise  # half an answer is sent: all that is left is to end the connection
            await answer(problem_of(error), scope["path"])(scope, receive, counting)
        finally:
            route = _route(scope)
            if status:
                self._metrics.requests.labels(route, str(status)).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
            else:
                self._metrics.cancelled.labels(route).inc()

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self._limits.body_timeout_s)
        except asyncio.TimeoutError:
            late_body = Problem(408, f"the body did not come within {self._limits.body_timeout_s:g} s", code="timeout")
            await answer(late_body, scope["path"], closes=True)(scope, receive, send)
            return
        except _TooLargeError as error:
            message = f"the body is larger than {self._limits.max_body_bytes} bytes"
            large = Problem(413, message, code="body_too_large")
            await answer(large, scope["path"], closes=not error.whole)(scope, receive, send)
            return
        if body is None:
            return
        gone, handed, begun = asyncio.Event(), False, False

        async def replay() -> Message:
            nonlocal handed
            if not handed:
                handed = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        work = asyncio.ensure_future(self._app(scope, replay, sending))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({work, watcher}, timeout=self._limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            late = not work.done() and not gone.is_set()
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            if late and not begun:
                await answer(problem_of(TimeoutError()), scope["path"])(scope, receive, send)
        finally:
            work.cancel()
            watcher.cancel()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None when the caller went away.

        Raises:
            _TooLargeError: when it is larger than allowed.
        """
        most = self._limits.max_body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        said = int(told) if told.isdigit() and len(told) < _MOST_DIGITS else most + 1
        if said > _DRAINED * most:
            raise _TooLargeError(whole=False)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if max(size, said) <= most:
                parts.append(part)
            else:
                parts.clear()
            if not more or size > _DRAINED * most:
                break
        if max(size, said) > most:
            raise _TooLargeError(whole=not more)
        return b"".join(parts)


class _TooLargeError(Exception):
    """A body is larger than allowed.

    Args:
        whole: whether all of it was received.
    """

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")
