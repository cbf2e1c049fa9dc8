from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onnxopt.serve.gate import BYTES_PER_BYTE, Gate
from onnxopt.serve.limits import Limits
from onnxopt.serve.memory import Holding
from onnxopt.serve.metrics import Metrics

App = Callable[[Any, Any, Any], Awaitable[None]]


def gate(app: App, *, room: int = 1 << 20, **limits: Any) -> tuple[Gate, Holding]:
    bodies = Holding(room, "bodies")
    return Gate(app, Limits(**limits), Metrics(), bodies), bodies


async def asked(behind: Gate, *parts: bytes, told: int | None = None) -> list[Any]:
    """Send a body in parts; return the messages of the answer."""
    left, found = list(parts), []

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()  # a caller who stays
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        found.append(message)

    size = sum(map(len, parts)) if told is None else told
    headers = [(b"content-length", b"%d" % size)]
    await behind({"type": "http", "path": "/v1/x", "headers": headers}, receive, send)
    return found


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def never(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


def test_a_body_comes_whole_and_its_memory_is_given_back() -> None:
    behind, bodies = gate(echo)
    found = asyncio.run(asked(behind, b"ab", b"c"))
    assert found[-1]["body"] == b"abc"
    assert bodies.held == 0


@pytest.mark.parametrize("told", [None, 0])
def test_bodies_that_others_leave_no_room_for_are_429_and_dropped(told: int | None) -> None:
    behind, bodies = gate(echo, room=10 * BYTES_PER_BYTE)
    with bodies.hold(8 * BYTES_PER_BYTE):
        found = asyncio.run(asked(behind, b"ab", b"cd", told=told))
    assert found[0]["status"] == 429
    assert "bodies of other requests hold" in json.loads(found[1]["body"])["error"]["message"]
    assert bodies.held == 0


def test_a_body_that_no_memory_is_enough_for_is_413() -> None:
    behind, _ = gate(echo, room=3 * BYTES_PER_BYTE)
    found = asyncio.run(asked(behind, b"abcd"))
    assert found[0]["status"] == 413


def test_what_a_stopping_server_cannot_finish_is_503_in_json() -> None:
    behind, bodies = gate(never)

    async def check() -> list[Any]:
        found: list[Any] = []
        task = asyncio.ensure_future(asked(behind, b"{}"))
        task.add_done_callback(lambda done: found.extend(done.result()))
        await asyncio.sleep(0.05)
        task.cancel()
        await task
        return found

    found = asyncio.run(check())
    assert found[0]["status"] == 503
    assert json.loads(found[1]["body"])["error"]["code"] == "shutting_down"
    assert bodies.held == 0


def test_what_takes_too_long_is_503() -> None:
    behind, _ = gate(never, timeout_s=0.05)
    found = asyncio.run(asked(behind, b"{}"))
    assert found[0]["status"] == 503
    assert json.loads(found[1]["body"])["error"]["code"] == "timeout"
