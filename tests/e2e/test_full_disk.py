"""A disk that takes no more ends a command in one line that says what is full and what helps; a full cache ends none.

Writers are made to fail one by one. Real disks, tiny ones, are filled by the campaign in `tests/exam/kills.py`.

Covers: host/usercache.py
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.artifact import package
from onnxopt.cli.main import main
from onnxopt.distill import memory
from onnxopt.errors import InputError
from onnxopt.host import usercache
from onnxopt.load.export import export
from tests.support.tiny import tiny_checkpoint

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[rows, 4] x) => (float[rows, 4] y)
<float[4, 4] w = {1.0, 2.0, 0.5, 0.0, 0.0, 1.0, 3.0, 0.25, 2.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.0, 1.0}>
{
    a = MatMul(x, w)
    y = Relu(a)
}
"""
CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
OPTIMIZE = ("--no-measure", "--quiet")


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usercache, "_said", set())
    monkeypatch.setattr(logging.getLogger("onnxopt.note"), "propagate", True)  # which a command before may have changed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "two.onnx"
    path.parent.mkdir()
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def failing(code: int, when: Callable[..., bool] = lambda *_, **__: True) -> Callable[[Any], Any]:
    """Let a function fail as a disk does, with the path it was given, where `when` says so."""

    def around(call: Any) -> Any:
        def wrapped(*given: Any, **more: Any) -> Any:
            if when(*given, **more):
                place = next((str(one) for one in given if isinstance(one, Path)), None)
                raise OSError(code, os.strerror(code), place)
            return call(*given, **more)

        return wrapped

    return around


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a command that ended with 2."""
    code = main([str(one) for one in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "onnxopt-" not in lines[0], "a temporary file"
    return lines[0]


@pytest.mark.parametrize("code", CODES)
def test_a_full_folder_for_temporary_files_ends_a_run_with_what_helps(
    code: int, model: Path, room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnx_ir.save", failing(code)(ir.save))
    line = ended(capsys, "optimize", model, "-o", model.parent / "out", *OPTIMIZE)
    assert f"{room}: temporary files cannot be written ({os.strerror(code)}" in line
    assert "TMPDIR" in line
    assert list(room.iterdir()) == []
    assert [path.name for path in model.parent.iterdir()] == ["two.onnx"]


@pytest.mark.parametrize(
    ("code", "writer"),
    list(zip(CODES, ("_write", "sync", "write_golden", "write_graph", "_copy_assets"), strict=True)),
)
def test_a_full_output_ends_a_run_and_the_older_artifact_stays(
    code: int, writer: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    assert main(["optimize", str(model), "-o", str(out), *OPTIMIZE]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    monkeypatch.setattr(package, writer, failing(code)(getattr(package, writer)))
    line = ended(capsys, "optimize", model, "-o", out, *OPTIMIZE)
    assert f"{out}: cannot be written ({os.strerror(code)}" in line
    assert "choose another output folder" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in model.parent.iterdir()) == ["out", "two.onnx"]


@pytest.mark.parametrize(("code", "writer"), [(errno.ENOSPC, "write_assets"), (errno.EFBIG, "_first_road")])
def test_a_full_cache_is_said_once_and_harmless(
    code: int, writer: str, room: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path = room.parent
    cache = tmp_path / "cache"
    monkeypatch.setenv("ONNXOPT_CACHE", str(cache))

    def in_cache(*given: Any, **_: Any) -> bool:
        return any(isinstance(one, Path) and one.is_relative_to(cache) for one in given)

    monkeypatch.setattr(export, writer, failing(code, in_cache)(getattr(export, writer)))
    from onnxopt import optimize

    source = tiny_checkpoint("distilbert", tmp_path / "tiny", layers=1)
    with caplog.at_level(logging.WARNING, logger="onnxopt.note"):
        artifact = optimize(source, out=tmp_path / "out", measure=False)
    notes = [record.getMessage() for record in caplog.records if record.name == "onnxopt.note"]
    assert len(notes) == 1
    assert f"{cache / 'exports'}: cannot write to the cache ({os.strerror(code)}" in notes[0]
    assert artifact.changed_files() == []
    assert not list(cache.rglob("*.part"))
    assert len(list(room.glob("onnxopt-*"))) == 1, "the export, until the process ends"


def test_a_cache_and_temporary_files_that_are_both_full_are_refused(tmp_path: Path, room: Path) -> None:
    def make(folder: Path) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with pytest.raises(InputError, match=f"{room}: temporary files cannot be written"):
        usercache.make_entry(tmp_path / "cache" / "entry", make)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_the_cache_does_not_take_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    for code in CODES:
        path = tmp_path / "cache" / "deep" / "file"

        def write(fresh: Path, code: int = code) -> None:
            fresh.write_text("half", encoding="utf-8")
            raise OSError(code, os.strerror(code))

        with caplog.at_level(logging.WARNING, logger="onnxopt.note"):
            usercache.keep_file(path, write)
        assert list(path.parent.iterdir()) == []
    assert len(caplog.records) == 1, "said once"
    usercache.keep_file(path, lambda fresh: fresh.write_text("whole", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "whole"


def test_room_for_a_teachers_answers_is_taken_before_any_is_kept(monkeypatch: pytest.MonkeyPatch, room: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
        monkeypatch.setattr(memory, "_reserve", failing(errno.EFBIG)(memory._reserve))
        memory.Memory(rows=10, length=8, top_k=4)
    assert caught.value.needed_bytes == 10 * 8 * 4 * 8  # type: ignore[attr-defined]  # of NoRoomError
    monkeypatch.undo()
    found = memory.Memory(rows=10, length=8, top_k=4)
    assert not found.known.any()
    assert np.asarray(found._map["best"]).shape == (10, 8, 4)
    assert list(room.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_output_that_takes_no_more_is_one_line(model: Path, more: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "onnxopt", "passes", *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the output: cannot be written (No space left on device")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
