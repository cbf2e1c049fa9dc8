"""An entry of the cache is made once by whoever is first, whole, and whatever the clock says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

from onnxopt.host.claims import hold_shared, sweep
from onnxopt.host.folders import content_of, sealed
from onnxopt.host.usercache import drop_done, drop_entry, keep_until_done, make_entry, use_entry

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


def filled(entry: Path) -> Path:
    return make_entry(entry, lambda folder: (folder / "content").write_text("x"))[0]


def test_what_is_kept_until_a_command_is_done_goes_with_its_end(tmp_path: Path) -> None:
    first, second, other = (filled(tmp_path / name) for name in ("first", "second", "other"))
    keep_until_done(first)
    keep_until_done(second)
    drop_done()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    keep_until_done(first)  # gone already
    drop_done()
    assert other.is_dir()


def test_an_entry_that_another_process_uses_stays(tmp_path: Path) -> None:
    entry = filled(tmp_path / "entry")
    use_entry(entry)
    handle = hold_shared(entry)  # as another process holds it
    assert handle is not None
    drop_entry(entry)
    assert sealed(entry)
    os.close(handle)
    drop_entry(entry)
    assert not entry.exists()
