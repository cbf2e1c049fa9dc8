"""The work of a command is done in a child: what kills it is said, and what asks it to end reaches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import psutil
import pytest

from onnxopt.host.scratch import scratch_folder
from tests.support.hostile_graphs import dividing_the_smallest
from tests.support.in_child import IN_CHILD

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals are waited for on Linux alone")


def run(child: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IN_CHILD + child], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", [0, 1, 2, 70])
def test_the_exit_code_is_that_of_the_child(code: int) -> None:
    done = run(f"print('worked'); sys.exit({code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "worked\n", "")


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_child_that_is_killed_is_said(name: str) -> None:
    done = run(f"os.kill(os.getpid(), signal.{name})")
    assert done.returncode == 2
    assert done.stdout.startswith(f"the process was ended by {name} (")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_asks_the_command_to_end_reaches_the_child(number: signal.Signals) -> None:
    waits = f"""
def end(*_):
    print("took back", flush=True); sys.exit(7)
signal.signal({int(number)}, end)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", IN_CHILD + waits], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 7
        assert process.stdout.read() == "took back\n"


def test_the_child_dies_with_its_parent_and_leaves_no_room_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    holds = """
from onnxopt.host.scratch import scratch_folder
with scratch_folder() as room:
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", IN_CHILD + holds], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 20
    while _is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_alive(child)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as room:
        assert list(tmp_path.iterdir()) == [room], "also where nobody asks what became of the child"


def test_a_graph_that_kills_its_process_is_one_line_of_the_command(tmp_path: Path) -> None:
    onnx.save(dividing_the_smallest(), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxopt", "inspect", str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("running it ends its process (SIGFPE)")


def _is_alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_temporary_files_of_what_was_killed_are_taken_away(tmp_path: Path) -> None:
    program = """
import os, sys
from onnxopt.cli import main as cli
from onnxopt.host.scratch import scratch_folder
def dies(*_):
    with scratch_folder() as room:
        (room / "half").write_text("half")
        os.kill(os.getpid(), 11)
cli._work = dies
sys.argv = ["onnxopt", "optimize"]
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the process was ended by SIGSEGV (a fault in native code)")
    assert list(tmp_path.iterdir()) == []
