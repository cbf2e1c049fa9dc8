"""The words of a run: sizes fit a range, workloads are read as they are written, shapes follow from names."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.spec import AxisRange, Signature, Target, TensorSpec, Workload, elements_of, shape_text, tensors_of


@pytest.mark.parametrize(
    ("known", "asked", "fitted"),
    [
        (AxisRange(), 7, 7),
        (AxisRange(25), 7, 25),
        (AxisRange(1, 8), 17, 24),
        (AxisRange(10, 8), 3, 16),
        (AxisRange(1, 8, 30), 99, 24),
        (AxisRange(1, 1, 512), 513, 512),
    ],
)
def test_a_size_is_fitted_to_what_the_model_takes(known: AxisRange, asked: int, fitted: int) -> None:
    assert known.fitted(asked) == fitted
    assert known.fitted(fitted) == fitted


def test_a_workload_is_read_with_shares_and_weights() -> None:
    found = Workload.parse("1x16*3, 32x256@0.26 , batch=8:height=224, 1x1+300")
    assert found.shapes == (
        {"batch": 1, "sequence": 16},
        {"batch": 32, "sequence": 256},
        {"batch": 8, "height": 224},
        {"batch": 1, "sequence": 1, "past_sequence": 300},
    )
    assert found.fills == (1.0, 0.26, 1.0, 1.0)
    assert found.weights == (3.0, 1.0, 1.0, 1.0)
    assert found.label(1) == "batch 32 sequence 256, 26% real tokens"
    assert (Workload.parse("1x16*2,8x16*2").weights, Workload.parse("1x16@1").fills) == ((), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" , ", "the workload is empty"),
        ("16", "cannot read the workload shape '16'"),
        ("1x16+", "cannot read the workload shape"),
        ("0x16", "has a size below 1"),
        ("1x16@0", "not between 0 and 1"),
        ("1x16@1.1", "not between 0 and 1"),
        ("1x16*0", "not above 0"),
        ("1x16*inf", "not above 0"),
        ("1x16*nan", "not above 0"),
    ],
)
def test_a_workload_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        Workload.parse(text)


def test_shapes_of_a_histogram_are_its_ends_and_quartiles() -> None:
    lengths = {4: 25, 8: 25, 100: 50, 512: 1, 700: 0}
    found = Workload.of_lengths(lengths, batches=(1, 2))
    assert [shape["sequence"] for shape in found.shapes] == [4, 8, 100, 100, 512] * 2
    assert [shape["batch"] for shape in found.shapes] == [1] * 5 + [2] * 5
    for wrong in ({}, {5: 0}, {0: 3}):
        with pytest.raises(InputError, match="histogram"):
            Workload.of_lengths(wrong)


def test_targets_are_words() -> None:
    assert Target.parse(" CUDA ").provider == "cuda"
    with pytest.raises(InputError, match="use one of cpu, cuda, tensorrt, portable"):
        Target.parse("gpu")


def test_axes_and_elements_follow_from_names() -> None:
    inputs = (TensorSpec("x", "float32", ("rows", 3, "cols")), TensorSpec("z", "int64", ("cols", "deep")))
    assert Signature(inputs, ()).axes == ("rows", "cols", "deep")
    assert inputs[0].shape({"rows": 2, "cols": 5}) == (2, 3, 5)
    assert elements_of(inputs, {"rows": 2, "cols": 5}) == 2 * 3 * 5 + 5 * 1
    with pytest.raises(KeyError):
        inputs[0].shape({"rows": 2})


def test_sequences_and_optionals_are_told_apart_as_tensors() -> None:
    one = np.ones((2, 3), np.float32)
    found = tensors_of({"x": one, "parts": [one, one[:1]], "nothing": None, "empty": []})
    assert found.keys() == {"x", "parts[]", "parts[0]", "parts[1]", "nothing[]", "empty[]"}
    assert [int(found[f"{name}[]"]) for name in ("parts", "nothing", "empty")] == [2, -1, 0]
    assert [shape_text(value) for value in (one, [one], None)] == ["[2, 3]", "a sequence of 1", "nothing"]
