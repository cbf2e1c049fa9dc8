"""Callers who are slow, half there or gone: bounded, and nothing is left of them.

Covers: serve/app.py, serve/connections.py, serve/gate.py, serve/limits.py, serve/metrics.py, serve/shelf.py
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serve.test_memory import inference
from tests.serve.test_parsing import asked, said
from tests.support.server import Server, serving

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc"),
]

SHORT_S = 1.0  # of every limit of time
LIMITS = {"head_timeout_s": SHORT_S, "send_timeout_s": SHORT_S, "body_timeout_s": SHORT_S}
MOST = 24  # connections
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(encoder_folder: Path, decoder_folder: Path) -> Iterator[Server]:
    models = f"vectors={encoder_folder}", f"stories={decoder_folder}"
    options = ("--max-connections", MOST, "--max-rows", 1, "--max-queue", 20)
    with serving(*models, *options, limits=LIMITS) as found:
        yield found


@contextlib.contextmanager
def connected(server: Server, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """What a server sends until it ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            found += part
    return found


def files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def number(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", asked(server.port, "/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def soon(holds: Callable[[], bool], seconds: float = 8.0) -> bool:
    """Wait until something holds; tell whether it does."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.mark.parametrize(
    "sent", [b"", HEAD, HEAD + b"X: " + b"y" * 9000], ids=["nothing", "half a head", "a long head"]
)
def test_who_sends_no_whole_head_is_told_and_ended(server: Server, sent: bytes) -> None:
    started = time.monotonic()
    with connected(server, sent) as connection:
        answer = rest(connection)
    assert SHORT_S * 0.8 < time.monotonic() - started < SHORT_S + 3
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "no whole request came within 1 s"


def test_a_head_that_comes_letter_by_letter_does_not_last(server: Server) -> None:
    started = time.monotonic()
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        for letter in HEAD * 20:
            connection.sendall(bytes([letter]))
            time.sleep(0.1)
    assert time.monotonic() - started < SHORT_S + 3


def test_a_body_that_does_not_come_is_408(server: Server) -> None:
    with connected(server, HEAD + b"Content-Length: 500\r\n\r\n{") as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not come within 1 s" in answer


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", HEAD + b"X: y\r\n" * 20_000]
)
def test_what_is_no_http_or_endless_is_told_in_json(server: Server, sent: bytes) -> None:
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        answer = rest(connection)
    if answer:  # who sends on meanwhile may lose it
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    assert asked(server.port, "/healthz")[0] == 200


def test_idle_connections_make_room_and_none_is_left(server: Server) -> None:
    before = files(server)
    with contextlib.ExitStack() as stack:
        for _ in range(5 * MOST):
            stack.enter_context(connected(server, HEAD))
        started = time.monotonic()
        assert asked(server.port, "/v1/embeddings", said(model="vectors", input="a"))[0] == 200
        assert time.monotonic() - started < SHORT_S
        assert files(server) <= before + MOST + 1
        assert soon(lambda: files(server) <= before + 1)


def test_more_requests_at_once_than_connections_are_503(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connected(server, HEAD + b"Content-Length: 9\r\n\r\n{")) for _ in range(MOST)]
        time.sleep(0.2)
        refused = stack.enter_context(connected(server, HEAD))
        answer = rest(refused)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"24 connections are open already" in answer
        assert all(rest(one).startswith(b"HTTP/1.1 408 ") for one in busy)


def test_an_answer_that_nobody_reads_is_dropped(server: Server) -> None:
    body = inference(400, 100)  # gives about 25 MB of JSON
    assert asked(server.port, "/v2/models/vectors/infer", body)[0] == 200  # the process that reads it is there now
    before = files(server)
    head = HEAD.replace(b"/v1/embeddings", b"/v2/models/vectors/infer")
    with connected(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert soon(lambda: files(server) <= before, 4 * SHORT_S + 5)


def test_a_text_whose_reader_has_left_is_given_up(server: Server) -> None:
    body = said(model="stories", prompt="the", max_tokens=150, temperature=1.0, seed=3, stream=True)
    head = HEAD.replace(b"embeddings", b"completions") + b"Content-Length: %d\r\n\r\n" % len(body)
    for _ in range(8):
        with connected(server, head + body) as connection:
            assert b"data: " in connection.recv(4096) + connection.recv(4096)
    assert soon(lambda: number(server, 'onnxopt_writing{model="stories"}') == 0, 5)
    assert number(server, 'onnxopt_waiting{model="stories"}') == 0


def test_a_model_at_its_limit_does_not_starve_another(server: Server) -> None:
    writing = said(model="stories", prompt=["the name"] * 5, max_tokens=150, temperature=1.0, n=2)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(asked(server.port, "/v1/completions", writing)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    times: list[float] = []
    while any(thread.is_alive() for thread in threads):
        started = time.perf_counter()
        assert asked(server.port, "/v1/embeddings", said(model="vectors", input="the name"))[0] == 200
        times.append(time.perf_counter() - started)
    for thread in threads:
        thread.join()
    assert set(codes) == {200, 429}
    assert len(times) > 3
    assert sorted(times)[len(times) // 2] < 0.5


def test_sigterm_answers_what_was_taken_whoever_else_is_there(encoder_folder: Path, decoder_folder: Path) -> None:
    models = f"vectors={encoder_folder}", f"stories={decoder_folder}"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(*models, limits=LIMITS))
        for sent in (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{"):
            stack.enter_context(connected(server, sent))
        answers: list[tuple[int, bytes]] = []
        text = said(model="stories", prompt=["the", "a name", "of"], max_tokens=120, temperature=1.0, seed=1)
        vector = inference(300, 100, {"name": "sentence_embedding"})

        def send(path: str, body: bytes) -> None:
            answers.append(asked(server.port, path, body))

        threads = [
            threading.Thread(target=send, args=one)
            for one in [("/v1/completions", text), ("/v2/models/vectors/infer", vector)] * 4
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 25
        for thread in threads:
            thread.join()
    assert [status for status, _ in answers] == [200] * 8
