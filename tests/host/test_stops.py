"""Whatever stops the command, and whenever, is said in one line with what was kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxopt.host import kept
from onnxopt.host.stops import Terminated, hear_terminate, stopped

STOPPED_WHILE_LOADING = """
import os, signal, sys
import onnxopt.__main__ as entry

class Stop:
    def find_spec(self, name, *_):
        if name == "onnxopt.cli.main":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{name})
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Stop())
sys.exit(entry.run())
"""


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [(KeyboardInterrupt(), "interrupted; {}", 130), (Terminated(), "terminated; {}", 143)],
)
def test_what_was_kept_is_said(
    error: BaseException, line: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_kept", {})
    assert stopped(error) == (line.format("nothing was written"), code)
    kept.keep(tmp_path, "build/a")
    kept.keep(tmp_path.parent, "the state of step 3 in b.state")
    assert stopped(error) == (line.format("kept: build/a; the state of step 3 in b.state"), code)


@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_stop_while_the_command_loads_is_one_line(name: str, code: int, word: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_LOADING.format(name=name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (code, f"error: {word}; nothing was written\n")


INSIDE_OF_TEXT = """
import signal, sys
import onnxopt.__main__ as entry
signal.signal(signal.SIGINT, signal.default_int_handler)

class Loads:
    def find_spec(self, name, *_):
        if name == "onnxopt.cli.main":
            sys.meta_path.remove(self)
            exec("import os, signal; os.kill(os.getpid(), signal.SIGINT); [None for _ in range(1000)]")
sys.meta_path.insert(0, Loads())
sys.exit(entry.run())
"""


def test_an_interrupt_inside_of_code_made_from_text_ends_with_the_same_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INSIDE_OF_TEXT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "script"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted; nothing was written\n")


def test_only_the_main_thread_says_what_signals_do() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=hear_terminate)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
