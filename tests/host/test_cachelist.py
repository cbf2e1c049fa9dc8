"""The cache can be looked at and cleared: nothing of anybody else goes, and nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.host import usercache
from onnxopt.host.cachelist import KINDS, clear, entries, older_than
from onnxopt.host.claims import claimed
from onnxopt.host.folders import sealed
from onnxopt.host.usercache import MOST_HELD, make_entry, use_entry

NAMES = {
    "samples": f"tiny-{'0a' * 8}",
    "converted": f"weights.Q4_1-{'1b' * 8}",
    "exports": f"bert-decoder-{'2c' * 12}",
    "profit": f"{'3d' * 20}.json",
    "calibration": f"{'4e' * 16}.npz",
    "rounded": f"{'5f' * 16}-inputs",
}
USE = """
import sys, time
from pathlib import Path
from onnxopt.host.usercache import use_entry
use_entry(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
DAY = 86_400


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("ONNXOPT_CACHE", str(root))
    return root


def fill(root: Path, size: int = 1000) -> None:
    """Put an entry of each kind there; a folder holds a file below another folder."""
    for kind, name in NAMES.items():
        path = root / kind / name
        file = path if path.suffix in {".json", ".npz"} else path / "files" / "weights.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(size))


def test_every_entry_is_told_with_its_kind_and_size(root: Path) -> None:
    assert entries() == []
    fill(root, 1234)
    assert {*NAMES} == {*KINDS}
    assert [(one.kind, one.path.name, one.size, one.is_left) for one in entries()] == [
        (kind, NAMES[kind], 1234, False) for kind in KINDS
    ]


def test_clearing_removes_the_entries_and_nothing_of_anybody_else(root: Path) -> None:
    fill(root)
    others = [root / "exports" / "my thesis", root / "notes.txt", root / "photos" / NAMES["exports"]]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    (root / "samples" / f"link-{'5f' * 8}").symlink_to(root.parent)
    gone, stayed = clear(entries())
    assert (len(gone), stayed) == (len(KINDS), [])
    assert entries() == []
    assert all(path.read_text(encoding="utf-8") == "mine" for path in others)
    assert root.parent.is_dir()


def test_what_a_process_uses_stays(root: Path) -> None:
    fill(root)
    used = root / "exports" / NAMES["exports"]
    with subprocess.Popen([sys.executable, "-c", USE, used], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "held\n"
        _, stayed = clear(entries())
        running.kill()
    assert [one.path for one in stayed] == [used]
    assert (used / "files" / "weights.bin").is_file()
    assert clear(entries())[1] == []
    assert not used.exists()


def test_what_is_being_made_stays_and_what_was_left_behind_goes(root: Path) -> None:
    room = root / "exports"
    (room / ".making-ab12_x9z").mkdir(parents=True)
    (room / ".onnxopt-k1lled_0.part").mkdir()
    with claimed(room, "part") as working:
        assert {one.path.name for one in entries() if one.is_left} == {path.name for path in room.iterdir()}
        gone, stayed = clear(entries())
        assert ({one.path for one in stayed}, len(gone)) == ({working}, 2)
        assert working.is_dir()


def test_an_entry_that_is_made_or_found_is_in_use_until_others_were(root: Path) -> None:
    first, _ = make_entry(root / "samples" / NAMES["samples"], lambda folder: (folder / "a").write_text("x"))
    assert sealed(first)
    assert [one.path for one in clear(entries())[1]] == [first]
    for number in range(MOST_HELD):
        (other := root / "exports" / f"m-{number:024x}").mkdir(parents=True)
        use_entry(other)
    assert first not in usercache._held
    assert [one.path for one in clear(entries())[0]] == [first]
    for path in list(usercache._held):
        os.close(usercache._held.pop(path))


def test_a_use_is_noted(root: Path) -> None:
    entry = root / "samples" / NAMES["samples"]
    entry.mkdir(parents=True)
    os.utime(entry, (time.time() - 40 * DAY,) * 2)
    assert len(older_than(entries(), "30d")) == 1
    use_entry(entry)
    assert older_than(entries(), "1h") == []
    os.close(usercache._held.pop(entry))


def test_only_what_was_not_used_for_so_long_is_old(root: Path) -> None:
    fill(root)
    ages = dict(zip(KINDS, (0, 2, 10, 29, 31, 3), strict=True))
    for kind, days in ages.items():
        os.utime(root / kind / NAMES[kind], (time.time() - days * DAY,) * 2)
    assert [one.kind for one in older_than(entries(), "30d")] == ["calibration"]
    assert [one.kind for one in older_than(entries(), " 4W ")] == ["profit", "calibration"]
    assert [one.kind for one in older_than(entries(), "36h")] == [kind for kind, days in ages.items() if days]


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3 months", "1.5d", "9999999d"])
def test_an_age_that_cannot_be_read_is_said(text: str, root: Path) -> None:
    fill(root)
    with pytest.raises(InputError, match="write 12h, 30d or 2w"):
        older_than(entries(), text)
