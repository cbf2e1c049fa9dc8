"""An entry of the cache is made once by whoever is first, whole, and whatever the clock says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

from onnxopt.host.claims import sweep
from onnxopt.host.folders import content_of, sealed
from onnxopt.host.usercache import make_entry

ROOT = Path(__file__).parents[2]
FAR = 4_102_444_800  # the year 2100
MAKE = """
import sys, time
from pathlib import Path
from onnxopt.host.usercache import make_entry
entry = Path(sys.argv[1])

def make(folder):
    for number in range(20):
        (folder / str(number)).write_text("x" * 1000)
        time.sleep(0.01)

place, _ = make_entry(entry, make)
assert place == entry
print(sum(path.is_file() for path in place.iterdir()))
"""


def test_two_processes_with_a_cold_cache_make_one_entry(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    running = [
        subprocess.Popen([sys.executable, "-c", MAKE, entry], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for one in running:
        out, error = one.communicate(timeout=60)
        assert (one.returncode, out.strip()) == (0, "21"), error  # with the seal
    assert sealed(entry)
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def test_who_is_first_is_not_replaced_while_others_read(tmp_path: Path) -> None:
    entry, ready, go = tmp_path / "entry", threading.Barrier(2), threading.Event()

    def make(name: str, folder: Path) -> None:
        ready.wait(10)
        if name == "late":
            assert go.wait(10)
        (folder / "who").write_text(name, encoding="utf-8")

    threads = [
        threading.Thread(target=make_entry, args=(entry, lambda folder, name=name: make(name, folder)))
        for name in ("early", "late")
    ]
    for thread in threads:
        thread.start()
    threads[0].join(10)
    made = (entry / "who").stat().st_ino
    go.set()
    threads[1].join(10)
    assert (entry / "who").read_text(encoding="utf-8") == "early"
    assert (entry / "who").stat().st_ino == made
    assert sealed(entry)


def test_times_in_the_future_and_the_past_are_of_no_matter(tmp_path: Path) -> None:
    entry, _ = make_entry(tmp_path / "entry", lambda folder: (folder / "file").write_text("x", encoding="utf-8"))
    before = content_of(entry)
    for moment in (FAR, 1):
        left = tmp_path / ".onnxopt-k1lled_0.part"
        left.mkdir()
        for path in (entry, *entry.iterdir(), left):
            os.utime(path, (moment, moment))
        assert sealed(entry)
        sweep(tmp_path)
        assert not left.exists(), "what a killed process left goes by its lock, not by its age"
        assert content_of(entry) == before


def test_no_duration_is_taken_from_a_clock_that_may_jump() -> None:
    """`time.time` tells when something was; how long it took, `perf_counter` and `monotonic` tell."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "onnxopt").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns"}
    ]
    assert found == ["onnxopt/serve/openai.py"], "which says when an answer was made"
