"""A source that changes while it is worked on is noticed, and one that was only touched is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.host.folders import sha256_of
from onnxopt.load.source import unchanged
from onnxopt.load.source.source import Source
from onnxopt.load.source.unchanged import Seen

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
three (float[rows, 3] x) => (float[rows, 3] y) <float[3] w = {1.0, 2.0, 0.5}>
{
    a = Mul(x, w)
    y = Relu(a)
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "three.onnx"
    path.parent.mkdir()
    onnx.save(onnx.parser.parse_model(MODEL), path)
    (path.parent / "three.onnx.data").write_bytes(bytes(100))
    (path.parent / "another.bin").write_bytes(bytes(100))
    return path


def source(path: Path) -> Source:
    return Source(str(path), "x", "folder" if path.is_dir() else "onnx", path)


def rewrite(path: Path) -> None:
    """Other content of the same size, and the times of before."""
    before = path.stat()
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def copy(path: Path) -> None:
    fresh = path.with_name("fresh")
    shutil.copyfile(path, fresh)
    fresh.replace(path)


def link(path: Path) -> None:
    path.with_name("link").hardlink_to(path)


@pytest.mark.parametrize("change", [touch, copy, link])
def test_the_same_content_is_the_same_source(file: Path, change: Callable[[Path], None]) -> None:
    seen = Seen.of(source(file))
    seen.require_same()
    change(file)
    seen.require_same()


@pytest.mark.parametrize("name", ["three.onnx", "three.onnx.data"])
@pytest.mark.parametrize("change", [rewrite, Path.unlink])
def test_other_content_is_refused(file: Path, name: str, change: Callable[[Path], None]) -> None:
    seen = Seen.of(source(file))
    change(file.with_name(name))
    with pytest.raises(InputError, match=f"{name}: has (changed|vanished) while it was being worked on"):
        seen.require_same()


def test_a_large_file_counts_as_changed_where_its_times_differ(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "SMALL_BYTES", 10)
    seen = Seen.of(source(file))
    seen.require_same()
    touch(file)
    with pytest.raises(InputError, match="has changed"):
        seen.require_same()


def test_files_that_are_known_later_are_held_to_their_digest(file: Path) -> None:
    other = file.with_name("another.bin")
    seen, digest = Seen.of(source(file)), sha256_of(other)
    assert other not in seen.files
    seen.require_same({other: digest})
    rewrite(other)
    with pytest.raises(InputError, match=r"another\.bin: has changed"):
        seen.require_same({other: digest})


def test_a_checkpoint_is_all_its_files(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seen = Seen.of(source(tmp_path))
    assert len(seen.files) == 4
    rewrite(tmp_path / "1_Pooling" / "config.json")
    with pytest.raises(InputError, match=r"1_Pooling.config\.json: has changed"):
        seen.require_same()
    assert Seen.of(Source("x", "x", "architecture", None)).files == {}


@pytest.mark.parametrize("stage", ["fuse", "verify", "package"])
def test_a_run_whose_source_changes_writes_nothing(file: Path, stage: str, tmp_path: Path) -> None:
    def change(event: Any) -> None:
        if event.stage == stage:
            changed = onnx.load(file)
            array = np.array([9.0, 9.0, 9.0], np.float32)
            changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
            onnx.save(changed, file)

    out = tmp_path / "out"
    if stage == "package":  # everything was read and looked at by then
        artifact = onnxopt.optimize(file, out=out, measure=False, progress=change)
        assert artifact.changed_files() == []
        return
    with pytest.raises(InputError, match=r"three\.onnx: has changed while it was being worked on; nothing was written"):
        onnxopt.optimize(file, out=out, measure=False, progress=change)
    assert not out.exists()
