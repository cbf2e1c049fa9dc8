"""A server under an hour of mixed load, of which a tenth is hostile: `python -m bench.soak --seconds 3600`.

MiniLM in int8 and gpt2-mini are served by one process that may have 2 GB of address space. Clients of this machine ask
for embeddings over both protocols and for texts, whole and in streams; a tenth of what they send is malformed, far too
large, of wrong values, or given up in the middle, and some of them never send a whole request. Every answer is compared
with what the model says offline. Counted are statuses, times, memory and open files; a status of 5xx, a wrong answer, a
lost request or a server that ended is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.load import HOST
from bench.peers import ROOT
from bench.serve import FOLDER, made
from bench.soak_requests import PATIENCE_S, Request, hostile_requests, right_requests
from bench.soak_server import MEMORY_BYTES, Looks, started

RESULT = ROOT / "bench" / "results" / "soak.json"
MARKS = ("<!-- serve -->", "<!-- /serve -->")
CLIENTS, HOSTILE = 12, 0.1
HEALTH_S, WARM_SHARE = 0.05, 0.1
QUIET_S = 25.0  # behind the load: idle connections end, and the server has given memory back
MOST_GROWTH = 0.05
AGAIN = frozenset({429})  # come again: the answer is not lost, only late


@dataclass
class Seen:
    """What clients saw; filled by several threads.

    Attributes:
        times: seconds by kind, of answers to right requests, and of the server's health.
        statuses: how often each came, by kind.
        faults: what must not be, each a line.
        worst: the largest difference of an embedding to its offline one.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    worst: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note_error(self, error: float) -> None:
        """Note how far an embedding is from its offline one."""
        with self.lock:
            self.worst = max(self.worst, error)

    def add(self, kind: str, status: int, seconds: float | None, fault: str = "") -> None:
        """Note an answer."""
        with self.lock:
            self.statuses[kind, status] += 1
            if seconds is not None:
                self.times.setdefault(kind, []).append(seconds)
            if fault:
                self.faults.append(fault)


def main() -> int:
    """Run the load, write the results."""
    parser = argparse.ArgumentParser(description="Load a server of this machine for long, and hostilely.")
    parser.add_argument("--seconds", type=float, default=3600.0, help="(default: %(default)s)")
    parser.add_argument("--encoder", type=Path, help="MiniLM in int8; made when not given")
    parser.add_argument("--decoder", type=Path, help="gpt2-mini; made when not given")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the record goes (default: %(default)s)")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    result = soak(arguments.encoder or made(), arguments.decoder or made_decoder(), arguments.seconds)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(render(result))
    return 1 if result["faults"] else 0


def made_decoder() -> Path:
    """Return the artifact of gpt2-mini, made when it is not there."""
    import onnxopt

    out = FOLDER / "gpt2-mini"
    return out if (out / "manifest.json").is_file() else onnxopt.optimize("gpt2-mini", out=out, measure=False).path


def soak(encoder: Path, decoder: Path, seconds: float) -> dict[str, Any]:
    """Return what a server did under the load.

    Args:
        encoder: an artifact that makes embeddings.
        decoder: one that writes texts.
        seconds: of the load.
    """
    from onnxopt.host.machine import describe_machine, versions

    seen = Seen()
    good, hostile = right_requests(encoder, decoder, seen.note_error), hostile_requests()
    process, port, lines = started(encoder, decoder)
    looks = Looks(process.pid)
    try:
        _load(port, seen, (good, hostile), looks, seconds)
        seen.faults += looks.faults(MOST_GROWTH)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    if code != 0:
        seen.faults.append(f"the server ended with exit code {code}")
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "models": [encoder.name, decoder.name],
        "seconds": round(seconds, 1),
        "clients": CLIENTS,
        "hostile": HOSTILE,
        "limit_bytes": MEMORY_BYTES,
        "plan": next((line for line in lines if line.startswith("memory:")), ""),
        **looks.record(),
        **_numbers(seen),
    }


def _load(
    port: int, seen: Seen, requests: tuple[Sequence[Request], Sequence[Request]], looks: Looks, seconds: float
) -> None:
    """Let clients ask for some seconds, and look at the server before, meanwhile and behind."""
    begun = time.monotonic()
    end = begun + seconds
    threads = [
        *(threading.Thread(target=_client, args=(port, seen, requests, end, one)) for one in range(CLIENTS)),
        threading.Thread(target=_health, args=(port, seen, end)),
        threading.Thread(target=_half, args=(port, end)),
    ]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, begun + WARM_SHARE * seconds - time.monotonic()))
    looks.first()
    while any(thread.is_alive() for thread in threads):
        looks.look()
        time.sleep(1.0)
    time.sleep(QUIET_S)
    looks.last()


def _numbers(seen: Seen) -> dict[str, Any]:
    return {
        "kinds": {
            kind: {
                "answers": len(times),
                "p50_ms": _percentile(times, 0.5),
                "p99_ms": _percentile(times, 0.99),
                "p999_ms": _percentile(times, 0.999),
            }
            for kind, times in sorted(seen.times.items())
        },
        "statuses": {f"{kind} {status}": count for (kind, status), count in sorted(seen.statuses.items())},
        "worst_error": seen.worst,
        "faults": seen.faults[:50],
    }


def _percentile(times: Sequence[float], share: float) -> float:
    ordered = sorted(times)
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


# Who sends it


def _client(
    port: int, seen: Seen, requests: tuple[Sequence[Request], Sequence[Request]], end: float, seed: int
) -> None:
    good, hostile = requests
    draws = random.Random(seed)  # noqa: S311  # a load, not a secret
    while time.monotonic() < end:
        _send(port, seen, draws.choice(hostile if draws.random() < HOSTILE else good), end)


def _send(port: int, seen: Seen, request: Request, end: float) -> None:
    """Send a request until it is answered; who is told to come again does."""
    while True:
        started = time.perf_counter()
        status, answer = _ask(port, request)
        taken = time.perf_counter() - started
        if request.right is None or status not in AGAIN or time.monotonic() > end:
            break
        seen.add(request.kind, status, None)
        time.sleep(1.0)
    wrong = status not in request.statuses and not (request.right and status in AGAIN)
    fault = f"{request.kind}: {status} {answer[:200]!r}" if wrong else ""
    if status == 200 and request.right is not None and not request.right(answer):
        fault = f"{request.kind}: a wrong answer, {answer[:200]!r}"
    seen.add(request.kind, status, taken if request.right and status == 200 else None, fault)


def _ask(port: int, request: Request) -> tuple[int, bytes]:
    """Return status and body; status 0 when the connection ended before, or the caller left."""
    connection = http.client.HTTPConnection(HOST, port, timeout=request.leaves)
    with contextlib.closing(connection):
        try:
            connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error).encode()


def _health(port: int, seen: Seen, end: float) -> None:
    while time.monotonic() < end:
        started = time.perf_counter()
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/healthz")
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                seen.add("health", 0, None, f"health: {error!r}")
                continue
        seen.add("health", status, time.perf_counter() - started, "" if status == 200 else f"health: {status}")
        time.sleep(HEALTH_S)


def _half(port: int, end: float) -> None:
    """Open connections that send half of a request, a few every second."""
    opened: list[socket.socket] = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection((HOST, port), timeout=1))
            opened[-1].sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nX-Half: ")
        while len(opened) > 60:
            opened.pop(0).close()
        time.sleep(0.3)
    for one in opened:
        one.close()


# What is shown


def render(result: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    machine, mib = result["machine"], 1 << 20
    kinds = [
        [kind, f"{one['answers']:,}", f"{one['p50_ms']:,.0f}", f"{one['p99_ms']:,.0f}", f"{one['p999_ms']:,.0f}"]
        for kind, one in result["kinds"].items()
    ]
    answers = sum(result["statuses"].values())
    hostile = sum(count for said, count in result["statuses"].items() if said.rpartition(" ")[0] not in result["kinds"])
    memory = [
        ["memory, MiB", *(f"{result[when]['memory'] / mib:,.0f}" for when in ("start", "end"))],
        ["open files", *(str(result[when]["files"]) for when in ("start", "end"))],
    ]
    caption = (
        f"{' and '.join(result['models'])} in one server with {result['limit_bytes'] / 2**30:g} GiB of address space, "
        f"{result['clients']} clients for {result['seconds']:,.0f} s, server and clients on {machine['cores']} cores "
        f"of {machine['cpu']}, onnxruntime {result['versions']['onnxruntime']}, {result['created'][:10]}, `make soak`. "
        f"{answers:,} requests, {hostile:,} of them hostile, besides connections that send half of one: "
        f"{len(result['faults'])} faults (a 5xx, a wrong or lost answer, memory or files that grow by more than "
        f"{MOST_GROWTH:.0%}, an end of the server). The largest difference of an embedding to its offline one is "
        f"{result['worst_error']:.0e}, every text is equal. At its largest the server held {result['peak'] / mib:,.0f} "
        "MiB, with the process that reads large bodies."
    )
    return "\n\n".join(
        [
            caption,
            table.lines(["answers to", "", "p50 ms", "p99 ms", "p99.9 ms"], kinds),
            table.lines(["", "start", "end"], memory),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
