"""The application: routes, limits, errors, metrics; and its life from start to a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from onnxopt.errors import InputError, OnnxoptError
from onnxopt.serve import kserve, openai
from onnxopt.serve.limits import Limits
from onnxopt.serve.metrics import CONTENT_TYPE, Metrics
from onnxopt.serve.problems import Problem, answer, on_error, on_invalid, problem_of
from onnxopt.serve.shelf import Opening, Shelf, open_model

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = logging.getLogger(__name__)

_BACKLOG = 2048


def create_app(
    folders: Mapping[str, Path],
    *,
    limits: Limits | None = None,
    how: Opening | None = None,
    progress: Callable[[str], None] | None = None,
) -> FastAPI:
    """Open models and return the application that serves them.

    Args:
        folders: artifacts by the names that callers use.
        limits: what the server takes.
        how: devices, threads and workers.
        progress: told what is being done.

    Raises:
        InputError: when a model cannot be opened.
    """
    from onnxopt.version import __version__

    limits, how, metrics = limits or Limits(), how or Opening(), Metrics()
    models = []
    for name, path in folders.items():
        if progress:
            progress(f"opening {name}")
        models.append(open_model(path, name, limits, metrics, how))
    shelf = Shelf(models)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(shelf.close)

    app = FastAPI(title="onnxopt", version=__version__, lifespan=life)
    app.state.shelf, app.state.limits, app.state.metrics = shelf, limits, metrics
    app.include_router(openai.router)
    app.include_router(kserve.router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in (Problem, OnnxoptError, TimeoutError):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(_Gate, limits=limits, metrics=metrics)
    return app


async def _on_http(request: object, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class alone
    path: str = request.url.path  # type: ignore[attr-defined]  # a request of starlette
    return answer(Problem(error.status_code, str(error.detail), code="http"), path)


class _Gate:
    """Read the body within its limit, end the work for a caller who went away or waits too long, and count.

    Args:
        app: what answers.
        limits: size and time.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        body = await self._body(scope, receive)
        if body is None:
            return
        if len(body) > self._limits.max_body_bytes:
            problem = Problem(
                413, f"the body is larger than {self._limits.max_body_bytes} bytes", code="body_too_large"
            )
            await answer(problem, scope["path"], closes=True)(scope, receive, send)
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
        """Return the body, at most one byte beyond the limit; None when the caller went away."""
        most = self._limits.max_body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > most:
            return b"\0" * (most + 1)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most or not message.get("more_body", False):
                return b"".join(parts)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")


class _Server(uvicorn.Server):
    """A server that ends with exit code 0 after SIGTERM, since it did what it was told."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop taking connections at the first signal, and waiting at the second."""
        signals = (signal.SIGINT, signal.SIGTERM)
        older = {one: signal.signal(one, self.handle_exit) for one in signals}
        try:
            yield
        finally:
            for one, handler in older.items():
                signal.signal(one, handler)


def serve(app: FastAPI, *, host: str, port: int, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Args:
        app: from `create_app`.
        host: address to listen on.
        port: 0 takes a free one.
        ready: told the address once connections are accepted.

    Raises:
        InputError: when the address cannot be had.
    """
    limits: Limits = app.state.limits
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=max(1, int(limits.grace_s)), lifespan="on"
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named; else an answer waits 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        shelf: Shelf = app.state.shelf
        shelf.close()
        raise InputError(
            f"cannot listen there ({error.strerror})", where=f"{host}:{port}", hint="choose another --port or --host"
        ) from error
    listener.listen(_BACKLOG)  # from here on whoever connects is answered
    place = listener.getsockname()
    shown = f"[{place[0]}]" if family == socket.AF_INET6 else place[0]
    server = _Server(config)
    if ready:
        ready(f"http://{shown}:{place[1]}")
    server.run(sockets=[listener])
