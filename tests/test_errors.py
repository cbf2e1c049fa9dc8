"""Errors are one line: where, what, what to do; and names out of files cannot break it."""

from __future__ import annotations

import pytest

from onnxopt.errors import ExportError, InputError, OnnxoptError, PassAuthorError, ProofError, place, word


@pytest.mark.parametrize(
    ("where", "hint", "line"),
    [
        ("", "", "it does not fit"),
        ("model.onnx", "", "model.onnx: it does not fit"),
        ("", "cut it", "it does not fit; cut it"),
        ("--axis", "use\nat most  9", "--axis: it does not fit; use at most 9"),
    ],
)
def test_an_error_is_one_line(where: str, hint: str, line: str) -> None:
    assert str(InputError("it does\tnot\nfit", where=where, hint=hint)) == line


def test_exit_codes_tell_bad_input_from_a_failed_proof() -> None:
    assert [kind("x").exit_code for kind in (InputError, ExportError, ProofError)] == [2, 2, 1]
    assert not issubclass(PassAuthorError, OnnxoptError), "a bug of ours is no message for users"


@pytest.mark.parametrize("limit", [5, 80])
def test_a_name_out_of_a_file_is_printable_and_short(limit: int) -> None:
    assert word("plain", limit) == "plain"
    assert word("a\x1b[31m\nb", limit) == ("a?[3…" if limit == 5 else "a?[31m?b")
    assert len(word("long" * 1000, limit)) == limit
    assert word("long" * 1000, limit).endswith("…")


@pytest.mark.parametrize("limit", [20, 400])
def test_an_endless_path_is_told_by_its_end(limit: int) -> None:
    assert place("/some/model.onnx", limit) == "/some/model.onnx"
    assert place("/a\x1b[31m/b", limit) == "/a?[31m/b"
    long = place("/folder" * 1000 + "/model.onnx", limit)
    assert len(long) == limit
    assert long.startswith("…")
    assert long.endswith("/model.onnx")
