"""What stands before every route: bodies within their limits, an end for who leaves or waits too long, and counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from onnxopt.run.batcher import BusyError, ClosedError
from onnxopt.serve.limits import Limits
from onnxopt.serve.memory import Held, Holding
from onnxopt.serve.metrics import Metrics
from onnxopt.serve.problems import Problem, answer, problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

HELD = "onnxopt.held"  # of a scope: what is given back when its request has ended
BYTES_PER_BYTE = 3  # of a body: its parts, the whole, and what was read of it
_MOST_DIGITS = 19  # of the size of a body
_DRAINED = 8  # a body that is so many times too large is still received, or its sender would not read the answer


class Gate:
    """Read the body within its limit, end the work for a caller who went away or waits too long, and count.

    Args:
        app: what answers.
        limits: size and time.
        metrics: where to count.
        bodies: the memory of requests that were received.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, bodies: Holding) -> None:
        self._app, self._limits, self._metrics, self._bodies = app, limits, metrics, bodies
        self._most = min(limits.max_body_bytes, bodies.most // BYTES_PER_BYTE)

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
            with contextlib.ExitStack() as held:
                scope[HELD] = held
                await self._guarded(scope, receive, counting)
        except asyncio.CancelledError:
            if status:
                raise
            stopped = ClosedError("the server has stopped", hint="try again elsewhere")
            await answer(problem_of(stopped), scope["path"], closes=True)(scope, receive, counting)
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
            slow = Problem(408, f"the body did not come within {self._limits.body_timeout_s:g} s", code="timeout")
            await answer(slow, scope["path"], closes=True)(scope, receive, send)
            return
        except _RefusedError as error:
            await answer(error.problem, scope["path"], closes=not error.whole)(scope, receive, send)
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

        A refused body is still received and dropped, up to some times the limit: a connection that ends under who is
        sending takes the answer with it.

        Raises:
            _RefusedError: when it is larger than allowed, or those of others take too much memory.
        """
        told = dict(scope["headers"]).get(b"content-length", b"0")
        said = int(told) if told.isdigit() and len(told) < _MOST_DIGITS else self._most + 1
        held: Held = scope[HELD].enter_context(self._bodies.hold(0))
        # all at once: bodies that come at the same time would take the memory from each other, and none have enough
        refused = self._refused(held, said)
        if refused and said > _DRAINED * self._most:
            raise _RefusedError(refused, whole=False)
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= _DRAINED * self._most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            refused = refused or self._refused(held, size)
            if refused:
                parts.clear()
            else:
                parts.append(part)
        if refused:
            raise _RefusedError(refused, whole=not more)
        return b"".join(parts)

    def _refused(self, held: Held, size: int) -> Problem | None:
        """Hold the memory of a body of some size; return why that cannot be."""
        if size > self._most:
            held.release()
            return Problem(413, f"the body is larger than {self._most} bytes", code="body_too_large")
        try:
            held.grow(max(0, BYTES_PER_BYTE * size - held.size))
        except BusyError as error:
            held.release()
            return problem_of(error)
        return None


class _RefusedError(Exception):
    """A body is not taken.

    Args:
        problem: why.
        whole: whether all of it was received.
    """

    def __init__(self, problem: Problem, *, whole: bool) -> None:
        super().__init__()
        self.problem, self.whole = problem, whole


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")
