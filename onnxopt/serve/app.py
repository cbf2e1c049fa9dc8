"""The application: routes, limits, errors, metrics; and its life from start to a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from onnxopt.errors import InputError, OnnxoptError
from onnxopt.host.memory import few_arenas, resident_bytes
from onnxopt.probe.memory import release_memory
from onnxopt.serve import judging, kserve, openai
from onnxopt.serve.connections import HEAD_BYTES, Connection
from onnxopt.serve.front import Access, Front
from onnxopt.serve.gate import Gate
from onnxopt.serve.limits import Limits
from onnxopt.serve.memory import Holding, MemoryPlan, default_memory
from onnxopt.serve.metrics import CONTENT_TYPE, Metrics
from onnxopt.serve.pages import render_docs
from onnxopt.serve.parsing import Readers
from onnxopt.serve.problems import Problem, answer, on_error, on_invalid
from onnxopt.serve.shelf import Opening, Shelf, open_model

_BACKLOG = 2048
_TRIM_S = 20.0


def create_app(
    folders: Mapping[str, Path],
    *,
    limits: Limits | None = None,
    how: Opening | None = None,
    access: Access | None = None,
    progress: Callable[[str], None] | None = None,
) -> FastAPI:
    """Open models and return the application that serves them.

    Args:
        folders: artifacts by the names that callers use.
        limits: what the server takes.
        how: devices, threads and workers.
        access: who may ask; everyone without it.
        progress: told what is being done.

    Raises:
        InputError: when a model cannot be opened.
    """
    from onnxopt.version import __version__

    limits, how, metrics = limits or Limits(), how or Opening(), Metrics()
    few_arenas()
    opened = []
    for name, path in folders.items():
        if progress:
            progress(f"opening {name}")
        opened.append(open_model(path, name, how))
    readers = Readers(limits.max_body_bytes)
    release_memory()
    at_rest = resident_bytes() + readers.memory_bytes
    plan = MemoryPlan.of(limits.memory_bytes or default_memory(), at_rest, len(opened))
    if progress:
        progress(plan.line())
    metrics.watch_memory(plan)
    shelf = Shelf([one.serve(plan.model, limits, metrics, how) for one in opened])

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        trimming = asyncio.ensure_future(_trim())
        yield
        trimming.cancel()
        await asyncio.to_thread(shelf.close)
        await readers.close()

    app = FastAPI(title="onnxopt", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.shelf, app.state.limits, app.state.metrics = shelf, limits, metrics
    app.state.readers, app.state.stopping = readers, False
    app.state.plan, app.state.answers = plan, Holding(plan.answers, "answers")
    app.include_router(openai.router)
    app.include_router(judging.router)
    app.include_router(kserve.router)

    _add_pages(app)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in (Problem, OnnxoptError, TimeoutError):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(Gate, limits=limits, metrics=metrics, bodies=Holding(plan.bodies, "bodies"))
    access = access or Access()
    app.add_middleware(Front, access=access)
    if access.origins:  # in front of the keys: a browser asks first without one whether it may
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _add_pages(app: FastAPI) -> None:
    """Add what concerns the server itself: whether it lives and takes requests, its numbers, what can be asked."""

    @app.get("/healthz")
    @app.get("/livez")
    async def healthz() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Say whether the server takes requests: 503 once it was told to stop."""
        stops = app.state.stopping
        return JSONResponse({"status": "stopping" if stops else "ok"}, 503 if stops else 200)

    @app.get("/metrics")
    async def numbers() -> Response:
        """Give the numbers of the server in the format of Prometheus."""
        metrics: Metrics = app.state.metrics
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        shelf: Shelf = app.state.shelf
        return HTMLResponse(render_docs(app.openapi(), {name: one.routes for name, one in shelf.models.items()}))


async def _trim() -> None:
    """Give memory back from time to time, which the allocator keeps after large requests."""
    while True:
        await asyncio.sleep(_TRIM_S)
        await asyncio.to_thread(release_memory)


async def _on_http(request: object, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class alone
    path: str = request.url.path  # type: ignore[attr-defined]  # a request of starlette
    return answer(Problem(error.status_code, str(error.detail), code="http"), path)


class _Server(uvicorn.Server):
    """A server that ends with exit code 0 after SIGTERM, since it did what it was told."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and tell those who ask whether requests are taken that they are not."""
        self.config.app.state.stopping = True  # type: ignore[union-attr]  # the application that `serve` was given
        super().handle_exit(sig, frame)

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


def serve(app: FastAPI, listener: socket.socket, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Args:
        app: from `create_app`.
        listener: from `bound`.
        ready: told the address once connections are accepted.

    Raises:
        InputError: when somebody else listens there after all.
    """
    limits: Limits = app.state.limits
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, limits=limits),  # type: ignore[arg-type]  # it makes one, as the class does
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, int(limits.grace_s)),
        lifespan="on",
    )
    place = listener.getsockname()
    shown = f"[{place[0]}]" if listener.family == socket.AF_INET6 else place[0]
    try:
        listener.listen(_BACKLOG)  # from here on whoever connects is answered
    except OSError as error:  # two may have the address, and one may listen
        shelf: Shelf = app.state.shelf
        shelf.close()
        raise InputError(
            f"cannot listen there ({error.strerror})", where=f"{shown}:{place[1]}", hint="choose another --port"
        ) from error
    server = _Server(config)
    if ready:
        ready(f"http://{shown}:{place[1]}")
    server.run(sockets=[listener])
