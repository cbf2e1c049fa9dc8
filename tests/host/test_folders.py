"""Folders appear whole or not at all, and a cache entry with a flipped bit is seen."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.host import folders
from onnxopt.host.folders import CONTENTS_NAME, appearing, seal, sealed, staged, write_whole
from onnxopt.host.usercache import cache_root


def test_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "room" / "entry"
    with pytest.raises(KeyboardInterrupt), staged(target) as fresh:
        (fresh / "half").write_text("x", encoding="utf-8")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with staged(target) as fresh:
            (fresh / "file").write_text(text, encoding="utf-8")
        assert (target / "file").read_text(encoding="utf-8") == text
    assert [target] == list(target.parent.iterdir())
    assert target.stat().st_mode & 0o777 == 0o777 & ~folders._umask()


@pytest.mark.parametrize("can", [True, False])
def test_two_processes_may_write_one_folder_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, can: bool
) -> None:
    if not can:
        monkeypatch.setattr(folders, "exchanged", lambda *_: False)

    def write(text: str) -> None:
        for _ in range(20):
            with staged(tmp_path / "out") as fresh:
                for name in ("a", "b"):
                    (fresh / name).write_text(text, encoding="utf-8")

    threads = [threading.Thread(target=write, args=(text,)) for text in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("a", "b")} in ({"1"}, {"2"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_never_replaced_by_one(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine", encoding="utf-8")
    else:
        (tmp_path / "mine").write_text("mine", encoding="utf-8")
        target.symlink_to("mine")
    with pytest.raises(InputError, match=os.strerror(errno.ENOTDIR)), staged(target):
        pass
    assert target.read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.glob(".onnxopt*"))


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "record.json"
    for text in ("first", "second"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert path.stat().st_mode & 0o777 == 0o666 & ~folders._umask()
    with pytest.raises(stop), appearing(path) as fresh:
        fresh.write_text("half", encoding="utf-8")
        raise stop
    assert path.read_text(encoding="utf-8") == "second"
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]
    (tmp_path / ".onnxopt-k1lled_0.part").write_text("half", encoding="utf-8")
    write_whole(path, b"third")
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"], "what a killed process left goes"


def test_folders_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "a" / "b" / "c"):
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_who_is_first_stays_in_a_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def other(self: Path, target: Path) -> Path:
        """Let another process make the folder a moment before."""
        if self.suffix == ".part" and not target.exists():
            target.mkdir()
            (target / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", other)
    with staged(tmp_path / "entry", cache=True) as fresh:
        (fresh / "mine").touch()
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["theirs"]
    with staged(tmp_path / "out") as fresh:
        (fresh / "mine").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"], "who is last is what a user asked for last"
    assert {path.name for path in tmp_path.iterdir()} == {"entry", "out"}


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, *, cache: bool) -> None:
    (tmp_path / "file").touch()
    words = "cannot write to the cache.*set ONNXOPT_CACHE" if cache else "cannot be written.*choose another"
    for target in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(InputError, match=words) as caught, staged(target, cache=cache):
            pass
        assert ".part" not in str(caught.value)
    with pytest.raises(InputError, match=f"{os.strerror(errno.ENOSPC)}.*"), staged(tmp_path / "full", cache=cache):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_errors_of_other_kinds_keep_their_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such model"), staged(tmp_path / "out"):
        raise OSError("no such model")  # as transformers does
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out"):
        Path("/absent/elsewhere").read_bytes()
    with pytest.raises(InputError, match="/secret: cannot be read"), staged(tmp_path / "out"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/secret")


def test_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "file"))
    with (
        pytest.raises(InputError, match=r"cannot write to the cache.*set ONNXOPT_CACHE"),
        staged(cache_root() / "x", cache=True),
    ):
        pass


@pytest.mark.parametrize("inside", ["", "files"])
def test_a_sealed_entry_shows_every_change(inside: str, tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    held = entry / inside / "deep" / "weights"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(100))
    assert not sealed(entry, inside)
    seal(entry, inside)
    assert sealed(entry, inside)
    held.write_bytes(bytes(99) + b"\x01")
    assert not sealed(entry, inside), "a flipped bit"
    held.write_bytes(bytes(100))
    assert sealed(entry, inside)
    (held.parent / "more").touch()
    assert not sealed(entry, inside), "a file too many"
    (held.parent / "more").unlink()
    held.rename(held.with_name("other"))
    assert not sealed(entry, inside), "another name"
    held.with_name("other").rename(held)
    for broken in ("", "[]", "{", "\x00"):
        (entry / CONTENTS_NAME).write_text(broken)
        assert not sealed(entry, inside), "a broken record"
    seal(entry, inside)
    assert sealed(entry, inside), "sealing again"
