"""What a path names is told by its name and the first bytes of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.run.there import DECODER_NAME, HEAD_BYTES, MODEL_NAME, model_file, refuse_other_kinds


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (b"PK\x03\x04", "is a zip archive or a torch checkpoint"),
        (b"\x1f\x8b\x08", "is a gzip archive"),
        (b"\x80\x02}q", "is a pickle"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        ("ein Satz, größer als nichts\n".encode(), "is a text file"),
    ],
)
def test_files_of_other_kinds_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"some.onnx: {said}"):
        model_file(path)


def test_what_may_be_a_model_passes(tmp_path: Path) -> None:
    for name, content in (("a.onnx", b"\x08\x0a\x12\x03abc"), ("b.ort", b"\x18\0\0\0ORTM")):
        (tmp_path / name).write_bytes(content)
        assert model_file(tmp_path / name) == tmp_path / name
    refuse_other_kinds(b"\xff" * HEAD_BYTES, "c.onnx")


def test_the_name_of_a_file_is_told_however_deep_it_lies(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a folder of a long name"] * 30)
    folder.mkdir(parents=True)
    (folder / "some.onnx").touch()
    with pytest.raises(InputError, match=r"^….*some.onnx: is empty"):
        model_file(folder / "some.onnx")


def test_a_folder_stands_for_the_model_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no {MODEL_NAME} in this folder"):
        model_file(tmp_path)
    (tmp_path / DECODER_NAME).touch()
    with pytest.raises(InputError, match="is an encoder-decoder"):
        model_file(tmp_path)
    (tmp_path / MODEL_NAME).touch()
    with pytest.raises(InputError, match=f"{MODEL_NAME}: is empty"):
        model_file(tmp_path)
    (tmp_path / MODEL_NAME).write_bytes(b"\x08\x0a")
    assert model_file(tmp_path) == tmp_path / MODEL_NAME
