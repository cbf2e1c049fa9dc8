"""Scratch folders go away: in the end, and with the next one where a process was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.host.scratch import scratch_folder

HOLD = """
import sys, time
from onnxopt.host.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_a_folder_is_gone_in_the_end_whatever_ends_it(room: Path) -> None:
    with scratch_folder() as folder:
        (folder / "a").write_text("a")
        assert list(room.iterdir()) == [folder]
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        raise KeyboardInterrupt
    assert list(room.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_what_lives_is_left_alone(room: Path) -> None:
    living, killed = (
        subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        kept, left = (Path((one.stdout or sys.stdin).readline().strip()) for one in (living, killed))
        killed.kill()
        killed.wait()
        assert (left / "half").is_file()
        (room / "onnxopt-notes").mkdir()  # of somebody else
        (room / "onnxopt-notes.scratch").mkdir()  # same
        (room / "onnxopt-k1lled_0.scratch").symlink_to(kept)
        with scratch_folder():
            assert (kept / "half").is_file()
            assert not left.exists()
            assert (room / "onnxopt-notes").is_dir()
            assert (room / "onnxopt-notes.scratch").is_dir()
            assert (room / "onnxopt-k1lled_0.scratch").is_symlink()
    finally:
        for one in (living, killed):
            one.kill()
            one.communicate()
