"""Whatever stops the command, and whenever, is said in one line with what was kept."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnxopt.host import kept
from onnxopt.host.claims import claimed
from onnxopt.host.stops import Terminated, hear_stops, hearing_stops, stopped, undisturbed

pytestmark = pytest.mark.usefixtures("interrupts_are_heard")

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
    thread = threading.Thread(target=hear_stops)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


LIKE_NATIVE_CODE = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):  # where a handler would be called
        pass
    whole = True
except BaseException as error:
    raise ImportError("initialization failed") from error
"""
STOPPED_IN_AN_IMPORT = """
import signal, sys, time
from onnxopt.host.stops import Terminated, hear_stops
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell nothing is heard
hear_stops()
try:
    try:
        import like_native
    except ImportError:
        print("done without")
    print(like_native.whole, flush=True)
    time.sleep(30)
    print("went on")
except {error}:
    print("stopped")
"""


@pytest.mark.parametrize(("name", "error"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "Terminated")])
def test_no_stop_is_lost_in_an_import(name: str, error: str, tmp_path: Path) -> None:
    """A library whose import a stop ends is one that seems not to be installed."""
    (tmp_path / "like_native.py").write_text(LIKE_NATIVE_CODE.format(name=name), encoding="utf-8")
    (tmp_path / "script.py").write_text(STOPPED_IN_AN_IMPORT.format(error=error), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "script"], capture_output=True, text=True, check=False, timeout=20, cwd=tmp_path
    )
    assert (done.stdout.split(), done.stderr) == (["True", "stopped"], "")


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_what_a_library_makes_of_a_stop_is_a_stop(number: signal.Signals, kind: type[BaseException]) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(kind), hearing_stops():
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise RuntimeError("callback failed") from error
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ValueError, match="own"), hearing_stops():  # a stop of before is none of this
        raise ValueError("own")


def test_a_block_that_is_not_to_be_cut_short_ends_before_the_stop() -> None:
    done = []
    with pytest.raises(Terminated), hearing_stops():
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)
            done.append("whole")
        time.sleep(5)
        done.append("went on")
    assert done == ["whole"]


def test_a_claim_is_given_back_wherever_a_stop_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after the folder is made, when nobody knows of it yet, and while it is removed."""
    made, removed = tempfile.mkdtemp, shutil.rmtree

    def make(**named: Any) -> str:
        folder: str = made(**named)
        signal.raise_signal(signal.SIGTERM)
        return folder

    def remove(path: Path, **named: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        removed(path, **named)

    for name, stop in (("mkdtemp", make), ("rmtree", remove)):
        module = tempfile if name == "mkdtemp" else shutil
        with monkeypatch.context() as patched, pytest.raises(Terminated), hearing_stops():
            patched.setattr(module, name, stop)
            with claimed(tmp_path, "scratch"):
                if name == "mkdtemp":
                    time.sleep(5)
            time.sleep(5)
        assert not list(tmp_path.iterdir()), name


def test_stops_in_a_row_wait_together_and_the_next_one_anew() -> None:
    waited = []
    for _ in range(2):
        with pytest.raises(Terminated), hearing_stops():
            begun = time.monotonic()
            with undisturbed():
                for _ in range(5):
                    signal.raise_signal(signal.SIGTERM)
                    time.sleep(0.03)
            time.sleep(5)
        waited.append(time.monotonic() - begun)
    assert all(0.15 <= one < 2 for one in waited), waited


def test_a_stop_is_put_off_no_longer_than_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.host.stops.MOST_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt), hearing_stops(), undisturbed():
        signal.raise_signal(signal.SIGINT)
        time.sleep(20)


def test_what_was_heard_is_forgotten_with_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), hearing_stops():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(ValueError, match="own"), hearing_stops():
        raise ValueError("own")
