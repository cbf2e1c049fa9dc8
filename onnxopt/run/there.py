"""What a path names: the .onnx file that is there, or why it is none. Told before anything large is imported."""

from __future__ import annotations

from pathlib import Path

from onnxopt.errors import InputError, place

MODEL_NAME = "model.onnx"
ENCODER_NAME, DECODER_NAME = "encoder_model.onnx", "decoder_model.onnx"  # of an encoder-decoder
HEAD_BYTES = 512  # of a file, by which its kind is told
_KINDS = {b"PK": "a zip archive or a torch checkpoint", b"\x1f\x8b": "a gzip archive", b"\x80\x02": "a pickle"}


def model_file(path: Path) -> Path:
    """Return the .onnx file that a path names.

    Args:
        path: the file itself, or a folder that holds `model.onnx`.

    Raises:
        InputError: when there is none, or the file is of another kind.
    """
    path = Path(path)
    if path.is_dir():
        file = path / MODEL_NAME
        if not file.is_file() and (path / DECODER_NAME).is_file():
            raise InputError(
                f"is an encoder-decoder, two graphs: {ENCODER_NAME} and {DECODER_NAME}",
                where=place(path),
                hint="name one of them, or use `onnxopt generate`",
            )
        if not file.is_file():
            raise InputError(
                f"no {MODEL_NAME} in this folder", where=place(path), hint="name an artifact or an .onnx file"
            )
        refuse_other_kinds(_head_of(file), place(file))
        return file
    if not path.is_file():
        raise InputError("no such file or folder", where=place(path), hint="name an artifact or an .onnx file")
    refuse_other_kinds(_head_of(path), place(path))
    return path


def refuse_other_kinds(head: bytes, where: str) -> None:
    """Name the usual files that are no model by their first bytes.

    Args:
        head: the first `HEAD_BYTES` of a file, or all of it.
        where: how errors call the file.

    Raises:
        InputError: it is empty, a pointer of git-lfs, an archive, a pickle, a web page or a text.
    """
    if not head:
        raise InputError("is empty", where=where, hint="copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the model itself"
        raise InputError(what, where=where, hint="run `git lfs pull` in its folder")
    for start, kind in _KINDS.items():
        if head.startswith(start):
            raise InputError(f"is {kind}, not an .onnx file", where=where, hint="export the model to ONNX first")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return
    if all(letter.isprintable() or letter in "\t\r\n\f" for letter in text):
        kind = "a web page" if text.lstrip().lower().startswith(("<!doctype", "<html")) else "a text file"
        raise InputError(f"is {kind}, not an .onnx file", where=where, hint="name a binary .onnx file")


def _head_of(path: Path) -> bytes:
    """Return the first bytes of a file; raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        what = f"cannot be read ({error.strerror or 'input/output error'})"
        raise InputError(what, where=place(path), hint="check its permissions") from error
