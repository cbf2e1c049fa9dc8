"""A bounded load on a server of this machine: clients of mixed lengths, some of whose requests are wrong or given up.

Every answer is kept with its request, so that it can be compared with what the model says offline.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

HOST = "127.0.0.1"
Kind = Literal["good", "malformed", "oversized", "cancelled"]
EXPECTED = {"good": 200, "malformed": 400, "oversized": 400}


@dataclass
class Outcome:
    """What became of one request.

    Attributes:
        number: of the text.
        kind: what was sent.
        status: of the answer; 0 when the connection ended before one came.
        seconds: from the first byte sent to the last received.
        vector: the embedding of a good request.
        sent: whether the whole request had been sent.
    """

    number: int
    kind: Kind
    status: int
    seconds: float
    vector: np.ndarray[Any, Any] | None = None
    sent: bool = True


@dataclass
class Load:
    """What a load did.

    Attributes:
        outcomes: one per request, in the order of their ends.
        seconds: from the first request to the last answer.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> list[Outcome]:
        """Requests that were right and answered."""
        return [one for one in self.outcomes if one.kind == "good" and one.status == 200]

    @property
    def per_second(self) -> float:
        """Answered requests per second."""
        return len(self.good) / self.seconds

    def percentile(self, share: float) -> float:
        """Return a percentile of the latency of answered requests, ms."""
        times = sorted(one.seconds for one in self.good)
        return 1e3 * times[min(len(times) - 1, int(share * len(times)))]


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a POST and return status and body; status 0 when the connection ends without one."""
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
            head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await self._writer.drain()
            return await self._answer()
        except (ConnectionError, asyncio.IncompleteReadError):
            await self.close()
            return 0, b""

    async def _answer(self) -> tuple[int, bytes]:
        if self._reader is None:
            return 0, b""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(head.split(" ", 2)[1])
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await self._reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            await self.close()
        return status, body

    async def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def run_load(
    port: int,
    model: str,
    texts: Sequence[str],
    *,
    clients: int,
    requests: int,
    wrong: float = 0.0,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Load:
    """Send requests until there were enough.

    Args:
        port: of a server on this machine.
        model: name of an encoder.
        texts: what to embed, in turns.
        clients: how many ask at the same time, each one request after another.
        requests: how many in all.
        wrong: share of requests that are malformed, oversized or cancelled.
        seed: same seed, same requests.
        stop: asked before each request; true ends the load.
    """
    load, numbers = Load(), iter(range(requests))
    draws = random.Random(seed)  # noqa: S311  # a load, not a secret
    kinds: list[Kind] = [
        draws.choice(("malformed", "oversized", "cancelled")) if draws.random() < wrong else "good"
        for _ in range(requests)
    ]

    async def client() -> None:
        connection = Connection(port)
        for number in numbers:
            if stop():
                break
            load.outcomes.append(await _one(connection, model, number % len(texts), texts, kinds[number]))
        await connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


async def _one(connection: Connection, model: str, number: int, texts: Sequence[str], kind: Kind) -> Outcome:
    text = " ".join([texts[number]] * 40) if kind == "oversized" else texts[number]
    body = json.dumps({"model": model, "input": text, "encoding_format": "base64"}).encode()
    if kind == "malformed":
        body = body[:-2]
    started = time.perf_counter()
    if kind == "cancelled":
        asking = asyncio.ensure_future(connection.ask("/v1/embeddings", body))
        await asyncio.sleep(0.003)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await connection.close()
        return Outcome(number, kind, 0, time.perf_counter() - started)
    status, answer = await connection.ask("/v1/embeddings", body)
    seconds = time.perf_counter() - started
    vector = None
    if status == 200:
        data = json.loads(answer)["data"][0]["embedding"]
        vector = np.frombuffer(base64.b64decode(data), "<f4")
    return Outcome(number, kind, status, seconds, vector)


def mixed_texts(encode: Callable[[str], Sequence[int]], count: int, low: int, high: int, seed: int = 0) -> list[str]:
    """Return texts of CPython's help whose lengths in tokens are uniform between two.

    Args:
        encode: text to tokens, special ones included.
        count: how many texts.
        low: tokens of the shortest.
        high: tokens of the longest.
        seed: same seed, same texts.
    """
    from pydoc_data.topics import topics

    words = " ".join(str(topics[key]) for key in sorted(topics)).split()
    draws = random.Random(seed)  # noqa: S311  # texts, not secrets
    texts = []
    for _ in range(count):
        wanted, start = draws.randint(low, high), draws.randrange(len(words) - high)
        # a word has at least one token: bisect for the most words that fit
        least, most = 1, wanted
        while least < most:
            middle = (least + most + 1) // 2
            if len(encode(" ".join(words[start : start + middle]))) <= wanted:
                least = middle
            else:
                most = middle - 1
        texts.append(" ".join(words[start : start + least]))
    return texts
