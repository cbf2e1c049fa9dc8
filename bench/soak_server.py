"""The server that `bench.soak` loads, under a limit of its address space, and what it holds."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

MEMORY_BYTES = 2 << 30
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def started(encoder: Path, decoder: Path) -> tuple[subprocess.Popen[str], int, list[str]]:
    """Start a server of two models; return it with its port and what it says.

    Args:
        encoder: served as `minilm`.
        decoder: served as `gpt`.
    """
    models = f"minilm={encoder}", f"gpt={decoder}"
    command = [sys.executable, "-c", _LIMITED, str(MEMORY_BYTES), "-m", "onnxopt", "serve", *models, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    port = 0
    said = iter(process.stderr or ())
    for line in said:
        lines.append(line.rstrip())
        if found := re.search(r"serving at http://127\.0\.0\.1:(\d+)", line):
            port = int(found[1])
            break
    if not port:
        raise SystemExit(f"the server did not start: {lines[-1] if lines else ' '.join(command)}")
    threading.Thread(target=_listen, args=(said, lines), daemon=True).start()
    return process, port, lines


def _listen(said: Iterator[str], lines: list[str]) -> None:
    for line in said:
        lines.append(line.rstrip())
        del lines[20:-20]


class Looks:
    """What a server holds at the start, at the end and at its largest, with the processes beside it.

    Args:
        process: its id.
    """

    def __init__(self, process: int) -> None:
        self._process = psutil.Process(process)
        self._start: dict[str, int] = {}
        self._end: dict[str, int] = {}
        self._peak = 0

    def look(self) -> dict[str, int]:
        """Return memory in bytes and open files now."""
        memory = self._process.memory_info().rss
        beside = sum(child.memory_info().rss for child in self._process.children())
        self._peak = max(self._peak, memory + beside)
        return {"memory": int(memory), "beside": int(beside), "files": int(self._process.num_fds())}

    def first(self) -> None:
        """Look for the start, once the server is warm."""
        self._start = self.look()

    def last(self) -> None:
        """Look for the end."""
        self._end = self.look()

    def faults(self, most: float) -> list[str]:
        """Return what has grown by more than a share."""
        grown = ((name, self._start[name], self._end[name]) for name in ("memory", "files"))
        return [f"{name} grew from {old:,} to {new:,}" for name, old, new in grown if new > (1 + most) * old]

    def record(self) -> dict[str, Any]:
        """Return what was seen."""
        return {"start": self._start, "end": self._end, "peak": self._peak}
