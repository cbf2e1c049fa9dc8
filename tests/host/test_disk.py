"""A full disk is told with what is full, what is free and what is needed, whoever wrote and whatever was raised."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxopt.errors import InputError
from onnxopt.host.disk import NoRoomError, advice_of, code_of, is_short, needing, reason_of
from onnxopt.host.folders import CacheError, staged
from onnxopt.host.scratch import scratch_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files on a disk with 3000 bytes left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3000))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FULL, errno.ENOSPC),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), errno.EDQUOT),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x"), errno.EROFS),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),  # safetensors
        (RuntimeError("I/O error: File too large (os error 27)"), errno.EFBIG),
        (OSError("4096 requested and 17 written"), errno.ENOSPC),  # numpy's tofile
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), errno.ENOSPC),
        (OSError("no such model"), 0),  # transformers
        (FileNotFoundError(errno.ENOENT, "no such file", "/x"), 0),
        (ValueError("the device is full"), 0),
        (InputError("No space left on device"), 0),  # told already
    ],
)
def test_the_kind_is_known_also_where_a_library_wrapped_it(error: Exception, code: int) -> None:
    assert code_of(error) == code


def test_what_is_free_and_what_is_needed_is_said(room: Path) -> None:
    with pytest.raises(NoRoomError) as caught, needing(5 << 20):
        raise FULL
    assert reason_of(caught.value, room / "not" / "there") == (
        "No space left on device: 2.9 KiB free, about 5.0 MiB needed"
    )
    assert reason_of(FULL, room) == "No space left on device: 2.9 KiB free"
    assert is_short(room)
    assert advice_of(FULL, "go elsewhere") == "go elsewhere"
    for other in (ValueError("x"), InputError("x"), PermissionError(errno.EACCES, "denied")):
        with pytest.raises(type(other)), needing(1):
            raise other


@pytest.mark.parametrize("raised", [FULL, RuntimeError("No space left on device (os error 28)")])
def test_a_full_folder_for_temporary_files_is_one_line_that_names_tmpdir(room: Path, raised: Exception) -> None:
    words = r"cannot be written \(No space left.*2\.9 KiB free\).*set TMPDIR"
    with pytest.raises(InputError, match=words) as caught, scratch_folder():
        raise raised
    assert str(room) in str(caught.value)
    assert ".scratch" not in str(caught.value)
    assert list(room.iterdir()) == []


def test_a_full_output_inside_a_scratch_block_is_the_outputs(room: Path) -> None:
    with pytest.raises(InputError, match="choose another output folder"), scratch_folder(), staged(room / "o" / "out"):
        raise RuntimeError("No space left on device (os error 28)")
    with pytest.raises(CacheError, match="set ONNXOPT_CACHE"), scratch_folder(), staged(room / "o" / "c", cache=True):
        raise FULL


def test_an_error_of_another_place_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # whose disk has room: it was something else
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(OSError, match="No space"), scratch_folder():
        raise FULL
    with pytest.raises(PermissionError), scratch_folder():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/file")
    with pytest.raises(InputError, match="set TMPDIR"), scratch_folder(), needing(2 << 40):
        raise FULL
    with pytest.raises(InputError, match=r"Read-only.*set TMPDIR"), scratch_folder() as folder:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder / "file"))


def test_without_any_folder_for_temporary_files_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(InputError, match="set TMPDIR"), scratch_folder():
        pass


LIMITED = """
import resource, sys
from pathlib import Path
from onnxopt.errors import InputError
from onnxopt.host.folders import staged
from onnxopt.host.scratch import scratch_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
for block in (scratch_folder(), staged(Path(sys.argv[1]) / "out"), staged(Path(sys.argv[1]) / "entry", cache=True)):
    try:
        with block as folder:
            (folder / "file").write_bytes(bytes(5000))
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="which has no limit on the size of files")
def test_a_limit_on_the_size_of_files_is_told_with_what_raises_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "File too large: this process may write files of 2.0 KiB" in line
        assert "ulimit -f" in line
    assert list(tmp_path.iterdir()) == []
