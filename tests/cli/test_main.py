"""How a command ends: in one line, with nothing left behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxopt.cli.main import main
from onnxopt.cli.telling import LONGEST_LINE


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize(
    ("stop", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_command_says_so_in_a_line_and_leaves_nothing(
    stop: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    room = tmp_path / "temporary"
    room.mkdir()
    command = [sys.executable, "-m", "onnxopt", "optimize", "gpt2-mini", "-o", str(tmp_path / "out"), "--quiet"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(room), "HF_HUB_OFFLINE": "1"}
    ) as running:
        deadline = time.monotonic() + 120
        while not any(room.glob("onnxopt-*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # the graph is being worked on from there on
        running.send_signal(stop)
        error = (running.stderr or sys.stdin).read()
    assert running.returncode == code
    assert len(error.splitlines()) == 1
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary"]
    assert not list(room.glob("onnxopt*"))


def test_a_line_is_cut_in_its_middle_and_holds_nothing_that_moves_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a\x1b[31m" + "b" * 20_000 + "\nc.onnx"
    assert main(["inspect", name, "--quiet"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: a?[31mbb")
    assert line.count("\n") == 1
    assert " … " in line
    assert len(line) < LONGEST_LINE + 20
