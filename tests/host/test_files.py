"""What is no file is said at once, and archives unpack to no more than they may."""

from __future__ import annotations

import io
import os
import socket
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.host import files
from onnxopt.host.files import bytes_beside, read_npz, regular_size


def test_a_file_has_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert (regular_size(tmp_path / "a"), regular_size(tmp_path / "link")) == (5, 5)
    with pytest.raises(FileNotFoundError):
        regular_size(tmp_path / "absent")


def test_what_may_never_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is a pipe, not a file"):
        regular_size(tmp_path / "pipe")
    with pytest.raises(InputError, match="calibration: is a device"):
        regular_size(Path("/dev/zero"), "calibration")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="is a socket"):
            regular_size(tmp_path / "s")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_come_out_as_numpy_wrote_them(write: Callable[..., None], tmp_path: Path) -> None:
    given = {
        "x": np.arange(6, dtype=np.float16).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "dir/y": np.array(["ä", "bcd"]),
        "scalar": np.array(7, ">i4"),
        "none": np.zeros((0, 5), bool),
    }
    write(tmp_path / "a.npz", allow_pickle=False, **given)
    found = read_npz(tmp_path / "a.npz")
    assert set(found) == set(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 20))
    assert read_npz(tmp_path / "bomb.npz")["x"].shape == (1 << 20,)
    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(InputError, match=r"bomb\.npz: unpacks to 8388\d+ bytes, more than 1048576"):
        read_npz(tmp_path / "bomb.npz")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 70, 0), (-1,), (3, 5)])
def test_a_header_that_lies_allocates_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + bytes(80))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_npz(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_pickles_and_broken_bytes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="objects"):
        read_npz(tmp_path / "p.npz")
    np.savez_compressed(tmp_path / "good.npz", x=np.arange(1000.0))
    whole = (tmp_path / "good.npz").read_bytes()
    for place in range(0, len(whole), 61):
        (tmp_path / "bad.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_npz(tmp_path / "bad.npz")
        except ValueError as error:
            assert len(str(error)) <= 200
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="zip"):
        read_npz(tmp_path / "cut.npz")


def test_weights_beside_a_model_count_whatever_they_are_called(tmp_path: Path) -> None:
    for name, size in (("m.onnx", 3), ("weights.bin", 40)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "golden").mkdir()
    assert bytes_beside(tmp_path / "m.onnx") == 43
