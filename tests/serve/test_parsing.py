"""One large request blocks nobody: health and running streams are answered while it is read and refused."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxopt.serve import parsing
from onnxopt.serve.parsing import Readers
from onnxopt.serve.problems import Problem
from onnxopt.serve.reader import MOST_VALUES
from tests.support.server import Server, serving

pytestmark = pytest.mark.alone

PROMISED_S = 0.2  # at the 99.9th percentile
TRIES = 4
PATIENCE = 0.05  # seconds between two questions


@pytest.fixture(scope="module")
def server(encoder_folder: Path, decoder_folder: Path) -> Iterator[Server]:
    with serving(f"vectors={encoder_folder}", f"stories={decoder_folder}", "--max-new-tokens", 4096) as found:
        yield found


def said(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


ATTACKS: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "a long text": ("/v1/embeddings", lambda: said(model="vectors", input="name " * 1_400_000), 400),
    "a long text to cut": (
        "/v1/embeddings",
        lambda: said(model="vectors", input="name " * 1_400_000, truncate=True),
        200,
    ),
    "a long prompt": ("/v1/completions", lambda: said(model="stories", prompt="the name, " * 700_000), 400),
    "a long word": ("/v1/completions", lambda: said(model="stories", prompt="x" * 7_000_000), 400),
    "many messages": (
        "/v1/chat/completions",
        lambda: said(model="stories", messages=[{"role": "user", "content": "the name of a class"}] * 100_000),
        413,
    ),
    "a long conversation": (
        "/v1/chat/completions",
        lambda: said(model="stories", messages=[{"role": "user", "content": "the name " * 180}] * 4000),
        400,
    ),
    "many keys": (
        "/v1/completions",
        lambda: said(model="stories", prompt="a", **dict.fromkeys(map(str, range(500_000)))),
        413,
    ),
    "many tokens": ("/v1/embeddings", lambda: said(model="vectors", input=[[7] * 1000] * 250), 400),
    "many numbers": (
        "/v2/models/vectors/infer",
        lambda: said(inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5] * 1_400_000}]),
        422,
    ),
}


def asked(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request over a connection of its own; return status and body of its answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def quietest(longest: Callable[[], float]) -> float:
    """Return the least of a few tries, as soon as one keeps the promise: others use this machine at the same time."""
    least = longest()
    for _ in range(TRIES - 1):
        if least >= PROMISED_S:
            least = min(least, longest())
    return least


@contextlib.contextmanager
def watched(port: int) -> Iterator[list[float]]:
    """Ask for the server's health all the time, and give how long each answer took, s."""
    times: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PATIENCE / 5):
            started = time.perf_counter()
            assert asked(port, "/healthz")[0] == 200
            times.append(time.perf_counter() - started)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("name", ATTACKS)
def test_health_is_told_while_a_large_request_is_read(server: Server, name: str) -> None:
    path, made, status = ATTACKS[name]
    body = made()

    def longest() -> float:
        with watched(server.port) as times:
            found, answer = asked(server.port, path, body)
            time.sleep(PATIENCE)
        assert found == status, answer[:300]
        assert len(times) >= 3
        return max(times)

    assert quietest(longest) < PROMISED_S


def gaps(port: int) -> list[float]:
    """Let a text be written as a stream, and return the times between its pieces, s."""
    body = said(model="stories", prompt="the name", max_tokens=120, temperature=1.0, seed=5, stream=True)
    found: list[float] = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer, last = connection.getresponse(), time.perf_counter()
        while answer.readline():
            found.append(time.perf_counter() - last)
            last = time.perf_counter()
    return found


@pytest.mark.parametrize("name", ["a long text to cut", "many messages", "many numbers"])
def test_streams_go_on_while_a_large_request_is_read(server: Server, name: str) -> None:
    path, made, status = ATTACKS[name]
    body = made()

    def longest() -> float:
        found: list[int] = []
        attack = threading.Thread(target=lambda: found.append(asked(server.port, path, body)[0]))
        times = gaps(server.port)
        attack.start()
        while attack.is_alive():
            times += gaps(server.port)
        attack.join()
        assert found == [status]
        return max(times)

    assert quietest(longest) < PROMISED_S


def test_what_cannot_be_read_in_time_or_memory_is_refused_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = json.dumps(["x" * 50] * 5000).encode()

    async def check() -> None:
        readers = Readers(1 << 20)
        try:
            with monkeypatch.context() as patched:
                patched.setattr("onnxopt.serve.parsing.SECONDS", 0.0)
                with pytest.raises(Problem, match="s to read"):
                    await readers.read(large)
            assert len(await readers.read(large)) == 5000
            readers._idle[0].kill()
            with pytest.raises(Problem, match="takes more memory to read"):
                await readers.read(large)
            assert len(await readers.read(large)) == 5000
            with pytest.raises(Problem, match=f"more than {MOST_VALUES} values"):
                await readers.read(json.dumps([1] * (MOST_VALUES + 1)).encode())
        finally:
            await readers.close()
        assert not readers._idle

    asyncio.run(check())


def test_who_leaves_while_a_body_is_read_leaves_no_answer_behind() -> None:
    async def check() -> None:
        readers = Readers(16 << 20)
        try:
            lost = asyncio.ensure_future(readers.read(json.dumps(["lost"] * 200_000).encode()))
            await asyncio.sleep(PATIENCE)
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
            assert await readers.read(json.dumps(["kept"] * 20_000).encode()) == ["kept"] * 20_000
        finally:
            await readers.close()

    asyncio.run(check())


def test_a_process_ends_in_the_middle_of_a_long_answer() -> None:
    says = "import sys; sys.stdout.buffer.write(b'x' * (8 << 20)); sys.stdout.flush(); sys.stdin.read()"

    async def check() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", says, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        await process.stdout.readexactly(1)
        await asyncio.sleep(0.5)  # more has come than is read ahead
        await asyncio.wait_for(parsing._end(process), PATIENCE + 20)
        assert process.returncode is not None

    asyncio.run(check())


def test_whoever_leaves_whenever_the_next_body_is_read() -> None:
    large = json.dumps({"input": "a name " * 500_000}).encode()

    async def check() -> None:
        readers = Readers(8 << 20)
        try:
            for step in range(12):
                lost = asyncio.ensure_future(readers.read(large))
                await asyncio.sleep(0.03 * step)
                lost.cancel()
                await asyncio.wait_for(asyncio.gather(lost, return_exceptions=True), 30)
            assert (await asyncio.wait_for(readers.read(large), 60))["input"].startswith("a name")
        finally:
            await readers.close()

    asyncio.run(check())
