"""Run the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines of standard error that are not empty."""
        return [line for line in self.err.splitlines() if line.strip()]


def onnxopt(*arguments: object, cwd: Path | None = None, **environment: str) -> Result:
    """Run `onnxopt` in a process of its own, offline."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "onnxopt", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=600)
    return Result(done.returncode, done.stdout, done.stderr)
