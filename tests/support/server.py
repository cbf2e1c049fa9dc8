"""`onnxopt serve` in a process of its own, on a free port of the loopback address."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SECONDS = 90
_LIMITED = """
import functools
from onnxopt.serve import limits
limits.Limits = functools.partial(limits.Limits, **{limits})
from onnxopt.cli.main import main
main()
"""
PREFIX: list[str] = []  # of the command, for a test that limits the server


@dataclass
class Server:
    """A running server.

    Attributes:
        process: of `onnxopt serve`.
        port: where it listens.
        lines: what it said.
    """

    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def serving(*arguments: object, limits: Mapping[str, float] | None = None) -> Iterator[Server]:
    """Start `onnxopt serve` and stop it at the end.

    Args:
        arguments: of the command.
        limits: fields of `Limits` that are no options, so that a test need not wait for them.
    """
    changed = _LIMITED.format(limits=dict(limits or {}))
    command = [*PREFIX, sys.executable, "-c", changed, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    server = Server(process, 0)

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            server.lines.append(line.rstrip())
            said.put(line)
        said.put(None)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        while server.port == 0:
            line = said.get(timeout=SECONDS)
            assert line is not None, server.lines
            found = re.search(r"serving at http://127\.0\.0\.1:(\d+)", line)
            server.port = int(found[1]) if found else 0
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        thread.join(10)
        if process.stderr:
            process.stderr.close()
