"""Connections that are used: who sends no request, half of one, or takes no answer, is not waited for without end.

uvicorn ends a connection that is idle behind an answer. What it leaves open is ended here: connections that never send
a whole head, or not within its time; answers that nobody reads; and more connections than there is room for, of which
the one that has been idle for the longest goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from onnxopt.serve.limits import Limits
from onnxopt.serve.problems import Problem, answer

HEAD_BYTES = 32 << 10  # of a request: its line and headers
_LOOK_S = 0.5  # between two looks at a connection
_FILES = 128  # that a server has open besides its connections


class Connection(H11Protocol):
    """A connection to one caller.

    Args:
        limits: how many there may be, and how long they may take.
        given: what uvicorn gives to its protocols.
    """

    def __init__(self, *, limits: Limits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._most = room_for_connections(limits.max_connections)
        self._looking: asyncio.TimerHandle | None = None
        self._unsent = 0
        # since when a whole head is waited for, None while a request is worked on; since when nothing was taken
        self.idle_since: float | None = None
        self._stuck_since: float | None = None
        self._ended_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection, if need be in the place of an idle one."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_S, self._look)
        if len(self.connections) > self._most and not self._make_room():
            self._refuse(Problem(503, f"{self._most} connections are open already", code="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what was sent; letters that make no whole head do not begin its time anew."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.idle_since = None

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.idle_since = self.loop.time()
        super().on_response_complete()  # which may take the next one, when it has come already
        if self.conn.their_state is not h11.IDLE:
            self.idle_since = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(Problem(400, msg.rstrip("."), code="invalid_http"))

    def end(self) -> None:
        """End a connection that waits for a request."""
        self._refuse(Problem(408, f"no whole request came within {self._limits.head_timeout_s:g} s", code="timeout"))

    def _make_room(self) -> bool:
        """End the connection that has been idle for the longest; tell whether there was one."""
        idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.is_idle]
        if not idle:
            return False
        min(idle, key=lambda one: one.idle_since or 0.0).transport.abort()
        return True

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is worked on."""
        return self.idle_since is not None and not self.transport.is_closing()

    def _look(self) -> None:
        """End what is waited for in vain."""
        self._looking = self.loop.call_later(_LOOK_S, self._look)
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        taken, self._unsent = unsent < self._unsent, unsent
        self._stuck_since = None if taken or not unsent else self._stuck_since or now
        over = self.transport.is_closing() or (self.cycle is not None and self.cycle.response_complete)
        self._ended_since = (self._ended_since or now) if over and unsent else None
        most = self._limits.send_timeout_s
        if (self._stuck_since and now - self._stuck_since > most) or (
            self._ended_since and now - self._ended_since > 2 * most
        ):
            self.transport.abort()
        elif self.is_idle and now - (self.idle_since or now) > self._limits.head_timeout_s:
            self.end()

    def _refuse(self, problem: Problem) -> None:
        """Say why a connection ends, if that can still be said, and end it."""
        said = answer(problem, "", closes=True)
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is on its way: nothing more can be said
            head = h11.Response(
                status_code=problem.status, headers=said.raw_headers, reason=STATUS_PHRASES[problem.status]
            )
            parts = [self.conn.send(head), self.conn.send(h11.Data(data=bytes(said.body)))]
            self.transport.write(b"".join(filter(None, [*parts, self.conn.send(h11.EndOfMessage())])))
        self.transport.close()


@functools.cache
def room_for_connections(most: int) -> int:
    """Return how many connections may be open: as many as wanted, and as there are files to be had."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(1, min(most, soft - _FILES))
    return most
