"""Bodies of requests into what they hold: small ones at once, large ones in a process beside the server.

Which part of the work grows with a body is done there, so that other answers do not wait for it
(`onnxopt.serve.reader`); what comes back is bounded in values, keys and depth.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from onnxopt.serve.problems import Problem
from onnxopt.serve.reader import (
    ASKED,
    BYTES_AT_REST,
    BYTES_PER_BYTE,
    MOST_DEPTH,
    MOST_KEYS,
    MOST_VALUES,
    PLAIN,
    SAID,
    Why,
    read,
)

INLINE_BYTES = 1 << 16  # read in a millisecond
SECONDS = 20.0  # 8 MiB take less than one
_SLOW = f"the body takes more than {SECONDS:.0f} s to read"
_WORDS: dict[Why, tuple[int, str, str]] = {
    "json": (400, "the body is not valid JSON", "invalid_json"),
    "depth": (400, f"the body is nested more than {MOST_DEPTH} levels deep", "invalid_json"),
    "values": (413, f"the body holds more than {MOST_VALUES} values", "too_many_values"),
    "keys": (413, f"an object of the body has more than {MOST_KEYS} keys", "too_many_keys"),
    "memory": (413, "the body takes more memory to read than the server has for it", "body_too_large"),
}


class Readers:
    """Processes that read large bodies, started when the first one comes.

    Args:
        max_body_bytes: the largest body, by which their memory is limited.
        count: how many bodies are read at the same time.
    """

    def __init__(self, max_body_bytes: int, *, count: int = 1) -> None:
        self.memory_bytes = count * (BYTES_AT_REST + BYTES_PER_BYTE * max_body_bytes)
        self._memory, self._count = self.memory_bytes // count, count
        self._idle: list[asyncio.subprocess.Process] = []
        self._turns: asyncio.Semaphore | None = None
        self._open = True

    async def read(self, body: bytes, kind: int = PLAIN) -> Any:
        """Return what a body holds.

        Args:
            body: JSON.
            kind: of body, for `onnxopt.serve.reader.read`.

        Raises:
            Problem: when it is no JSON or beyond a limit.
        """
        why, value = read(body, kind) if len(body) <= INLINE_BYTES else await self._beside(body, kind)
        if why:
            status, message, code = _WORDS[why]
            raise Problem(status, message, code=code)
        return value

    async def close(self) -> None:
        """End the processes."""
        self._open = False
        while self._idle:
            await _end(self._idle.pop())

    async def _beside(self, body: bytes, kind: int) -> tuple[Why, Any]:
        self._turns = self._turns or asyncio.Semaphore(self._count)  # belongs to the loop that is running
        async with self._turns:
            process = self._idle.pop() if self._idle else await self._start()
            whole = False
            try:
                said = await asyncio.wait_for(_exchange(process, body, kind), SECONDS)
                whole = True
            except asyncio.IncompleteReadError:  # it ended: the system had no memory for it
                return "memory", None
            except asyncio.TimeoutError as error:
                raise Problem(413, _SLOW, code="body_too_large") from error
            finally:
                if whole and self._open:
                    self._idle.append(process)
                else:  # also when the caller went away in the middle: what it is going to say is nobody's
                    await _end(process)
        found: tuple[Why, Any] = marshal.loads(said)  # noqa: S302  # of our own process
        return found

    async def _start(self) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "onnxopt.serve.reader", str(self._memory)]
        pipe = asyncio.subprocess.PIPE
        # a process group of its own: Ctrl-C at the terminal is for the server, which still has to answer
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)


async def _exchange(process: asyncio.subprocess.Process, body: bytes, kind: int) -> bytes:
    assert process.stdin and process.stdout  # noqa: S101  # opened as pipes
    process.stdin.write(ASKED.pack(kind, len(body)))
    with contextlib.suppress(ConnectionError):  # then reading says so
        for start in range(0, len(body), INLINE_BYTES):
            process.stdin.write(body[start : start + INLINE_BYTES])
            await process.stdin.drain()
    (size,) = SAID.unpack(await process.stdout.readexactly(SAID.size))
    return await process.stdout.readexactly(size)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process whatever it is at.

    asyncio takes it for ended once its pipes are: one that is full of an answer that nobody takes never would be, so
    what is left in there is read.
    """
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


class _Read(Request):
    """A request whose body has been read."""

    value: Any = None

    async def json(self) -> Any:
        """Return what the body holds."""
        return self.value


class ReadRoute(APIRoute):
    """A route whose body is read by `Readers` before it is validated."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            body = await request.body()
            if not body:
                return await handler(request)
            readers: Readers = request.app.state.readers
            held = _Read(request.scope, request.receive)
            held._body = body  # noqa: SLF001  # where starlette keeps what it has received
            held.value = await readers.read(body)
            return await handler(held)

        return answered
