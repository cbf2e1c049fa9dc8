"""What a user says of a model: ranges, values and inputs that run, each refused in one line where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.load.given import Given, parse_range
from onnxopt.spec import AxisRange, Signature, TensorSpec
from tests.support.axes import load

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("frames", 8)), TensorSpec("sr", "int64", ()), TensorSpec("words", "object", ("n",))),
    (),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("16", AxisRange(16, 1, 16)),
        ("8..4096", AxisRange(8, 1, 4096)),
        ("8..4096:8", AxisRange(8, 8, 4096)),
        ("8..", AxisRange(8)),
        ("9..100:8", AxisRange(16, 8, 96)),
    ],
)
def test_a_range_is_read(text: str, found: AxisRange) -> None:
    assert parse_range("a", text) == found


@pytest.mark.parametrize("text", ["", "x", "8...9", "9..8", "0", "9..15:8", "8..16:0", "-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"axis 'a'.*--axis name=8\.\.4096|--axis name=16"):
        parse_range("a", text)


def test_lists_of_the_command_line_and_mappings_say_the_same() -> None:
    lines = Given.parse(axes=["a=1=8..16"], values=["sr=16000, 8000"])
    assert lines == Given.parse(axes={"a=1": "8..16"}, values={"sr": ["16000", "8000"]})
    assert not Given.parse()
    assert lines


@pytest.mark.parametrize("axes", [["frames"], ["=8"], ["frames="]])
def test_an_axis_without_a_size_is_refused(axes: list[str]) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Given.parse(axes=axes)


def test_values_get_the_type_of_their_input() -> None:
    given = Given.parse(values={"sr": "16000,8000", "words": "en,de", "x": 0.5})
    assert given.typed_values(SIGNATURE.inputs[1]) == (np.int64(16000), np.int64(8000))
    assert given.typed_values(SIGNATURE.inputs[2]) == ("en", "de")
    assert given.typed_values(SIGNATURE.inputs[0]) == (np.float32(0.5),)
    assert Given.parse(values=["f=true,0"]).typed_values(TensorSpec("f", "bool", ())) == (True, False)


@pytest.mark.parametrize("value", ["1.5", "en", "1e40"])
def test_a_value_of_another_type_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="'sr' is int64"):
        Given.parse(values={"sr": value}).typed_values(SIGNATURE.inputs[1])


def test_a_folder_of_examples_is_read_in_order(tmp_path: Path) -> None:
    for size in (3, 2):
        np.savez(tmp_path / f"{size}.npz", x=np.ones((size, 8), np.float32), words=np.array(["a"] * size))
    given = Given.parse(feeds=tmp_path)
    assert [feeds["x"].shape[0] for feeds in given.feeds] == [2, 3]
    assert given.feeds[0]["words"].dtype == object
    given.check(SIGNATURE, "m.onnx")


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"y": np.ones(3)}, "'y' is given but is no input"),
        ({"x": np.ones((3, 8))}, "is float64, the input float32"),
        ({"x": np.ones((3, 9), np.float32)}, r"has shape \[3, 9\], the input \[frames, 8\]"),
        ({"x": np.ones(3, np.float32)}, r"has shape \[3\]"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(feeds: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Given.parse(feeds=feeds).check(SIGNATURE, "m.onnx")


def test_an_unknown_axis_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="'width', which no input has; open axes: frames, n"):
        Given.parse(axes=["width=3"]).check(SIGNATURE, "m.onnx")


def test_files_that_are_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Given.parse(feeds=tmp_path / "absent.npz")
    with pytest.raises(InputError, match=r"no \.npz file"):
        Given.parse(feeds=tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        Given.parse(feeds=tmp_path / "bad.npz")


def test_pickled_examples_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        Given.parse(feeds=tmp_path / "pickled.npz")


def test_an_example_without_rows_is_no_reason_to_fail(tmp_path: Path) -> None:
    text = "g (float[rows,4] x, float[rows,2] z) => (float[rows,6] y) { y = Concat<axis = 1>(x, z) }"
    none = {"x": np.zeros((0, 4), np.float32), "z": np.zeros((0, 2), np.float32)}
    loaded = load(tmp_path, text, Given(feeds=(none,)))
    assert loaded.feeder.make({"batch": 3} if "batch" in loaded.signature.axes else {"rows": 3})["x"].shape == (3, 4)
