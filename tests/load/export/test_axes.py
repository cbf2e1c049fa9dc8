"""The sizes at which a file is proved: small, all kinds of steps with a cache, never longer than the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import ExportError
from onnxopt.load.export.axes import (
    PROOF_SIZES,
    PROOF_STEPS,
    _padding,
    axis_sizes,
    learn_ranges,
    prove_axes,
    range_notes,
)
from onnxopt.load.feeds import ImageFeeder
from onnxopt.records.events import Step
from onnxopt.spec import Array, AxisRange, Feeds, Signature, TensorSpec
from tests.support.axes import write

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "total_sequence"))
PAST = TensorSpec("past_key_values.0.key", "float32", ("batch", 2, "past_sequence", 8))
CACHED = Signature((IDS, MASK, PAST), ())
EXAMPLE = {"batch": 3, "sequence": 5, "past_sequence": 7, "total_sequence": 12}


def steps(longest: int) -> list[tuple[int, int]]:
    found = axis_sizes(CACHED, EXAMPLE, longest)
    per_batch = {
        batch: [(one["sequence"], one["past_sequence"]) for one in found if one["batch"] == batch]
        for batch in PROOF_SIZES["batch"]
    }
    assert len(found) == sum(map(len, per_batch.values()))
    first, *others = per_batch.values()
    for one in others:  # in a batch some of them; with a past and without, where there is room for one
        assert one
        assert set(one) <= set(first)
    assert len(first) < 2 or all(any(past for _, past in one) for one in others)
    return first


def test_with_a_cache_prompts_and_steps_are_proved() -> None:
    assert steps(0) == steps(1024) == list(PROOF_STEPS)


@pytest.mark.parametrize(
    ("longest", "wanted"),
    [
        (128, [(1, 0), (33, 0), (128, 0), (8, 5), (1, 33)]),
        (100, [(1, 0), (33, 0), (100, 0), (8, 5), (1, 33)]),
        (20, [(1, 0), (20, 0), (8, 5), (1, 19)]),
        (8, [(1, 0), (8, 0), (3, 5), (1, 7)]),
        (2, [(1, 0), (2, 0), (1, 1)]),
        (1, [(1, 0)]),
    ],
)
def test_steps_fit_into_the_model(longest: int, wanted: list[tuple[int, int]]) -> None:
    assert steps(longest) == wanted


@given(longest=st.integers(1, 300))
def test_no_step_is_longer_than_the_model(longest: int) -> None:
    found = axis_sizes(CACHED, EXAMPLE, longest)
    assert len({tuple(one.items()) for one in found}) == len(found)
    for one in found:
        assert one["total_sequence"] == one["sequence"] + one["past_sequence"] <= longest
        assert one["sequence"] >= 1
        assert one["past_sequence"] >= 0
    assert longest == 1 or any(one["past_sequence"] for one in found)


def test_without_a_cache_every_combination_is_proved() -> None:
    mask = TensorSpec("attention_mask", "int64", IDS.axes)
    found = axis_sizes(Signature((IDS, mask), ()), {"batch": 3, "sequence": 5}, 20)
    assert [(one["batch"], one["sequence"]) for one in found] == [(b, s) for b in (1, 2, 5) for s in (1, 8, 20)]


@pytest.mark.parametrize("longest", [0, 512, 130])
@pytest.mark.parametrize("cached", [False, True])
def test_of_a_large_model_every_size_is_proved_in_few_runs(cached: bool, longest: int) -> None:  # noqa: FBT001
    signature = CACHED if cached else Signature((IDS, TensorSpec("attention_mask", "int64", IDS.axes)), ())
    every, few = (axis_sizes(signature, EXAMPLE, longest, few=few) for few in (False, True))
    assert len(few) <= 5 < len(every)
    for axis in signature.axes:
        sizes = {one[axis] for one in few}
        assert sizes <= {one[axis] for one in every}
        assert axis == "total_sequence" or sizes == {one[axis] for one in every}
    kinds = {_padding(sizes, index, few=True) for index, sizes in enumerate(few)}
    assert {"none", "holes", "mixed"} <= kinds


def test_images_are_proved_with_each_axis_on_its_own_and_all_together() -> None:
    """All combinations of three axes would be twelve runs of torch and of the file, the largest of five rows."""
    pixels = TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
    example = {"batch": 5, "height": 40, "width": 72}
    found = axis_sizes(Signature((pixels,), ()), example, 0)
    assert len(found) == len({tuple(sizes.items()) for sizes in found}) == 6
    for axis, usual in {"batch": 1, "height": 40, "width": 72}.items():
        alone = [
            sizes for sizes in found if {one for one in sizes if sizes[one] != {**example, "batch": 1}[one]} == {axis}
        ]
        assert alone
        assert all(sizes[axis] > usual for sizes in alone)
    assert {"batch": 2, "height": 80, "width": 144} in found


class Counted:
    """A reference that reshapes nothing, and counts the elements that it is given."""

    name = "counted"

    def __init__(self) -> None:
        self.elements: list[int] = []

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        self.elements.append(feeds["pixel_values"].size)
        return {"y": np.maximum(feeds["pixel_values"], 0)}


@pytest.mark.parametrize("frozen", ["height", "width"])
def test_the_reference_is_not_run_on_images_on_which_the_file_does_not_run(frozen: str, tmp_path: Path) -> None:
    """A large image takes torch seconds, and the runtime tells at once."""
    example = {"batch": 5, "height": 40, "width": 72}
    shape = np.array([0, 3, *(example[side] if side == frozen else -1 for side in ("height", "width"))], np.int64)
    text = """g (float[batch,3,height,width] pixel_values) => (float[batch,3,h,w] y) {
      same = Reshape(pixel_values, shape) y = Relu(same) }"""
    signature = Signature(
        (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),),
        (TensorSpec("y", "float32", ("batch", 3, "height", "width")),),
    )
    reference, feeder = Counted(), ImageFeeder(signature.inputs, example)
    with pytest.raises(ExportError, match=f"axis '{frozen}' is frozen"):
        prove_axes(write(tmp_path / "m.onnx", text, shape=shape), signature, reference, feeder, example=example)
    assert reference.elements
    assert max(reference.elements) <= 2 * 5 * 3 * 40 * 72, "twice as long on the side that is not frozen, at most"


def test_each_size_that_is_tried_is_told_with_how_many_are_left(tmp_path: Path) -> None:
    example = {"batch": 5, "height": 40, "width": 72}
    axes = ("batch", 3, "height", "width")
    signature = Signature((TensorSpec("pixel_values", "float32", axes),), (TensorSpec("y", "float32", axes),))
    text = "g (float[batch,3,height,width] pixel_values) => (float[batch,3,height,width] y) { y = Relu(pixel_values) }"
    path, feeder, told = write(tmp_path / "m.onnx", text), ImageFeeder(signature.inputs, example), list[str]()
    sizes = prove_axes(path, signature, Counted(), feeder, example=example, say=told.append)
    assert [one.fraction for one in told if isinstance(one, Step)] == [n / len(sizes) for n in range(len(sizes))]
    assert told[0] == f"proving the axes batch, height, width against torch, size 1 of {len(sizes)}"


@pytest.mark.parametrize("step", [1, 4, 32])
def test_sizes_at_which_a_file_answers_otherwise_are_no_sizes_of_it_and_said(step: int, tmp_path: Path) -> None:
    """What is filled up to a multiple while it is traced runs at other sizes too, and gives other numbers."""

    class Filling(Counted):
        def run(self, feeds: Mapping[str, Array]) -> Feeds:
            short = sum(-size % step for size in feeds["pixel_values"].shape[2:])
            return {"y": super().run(feeds)["y"] + np.float32(short)}

    example = {"batch": 5, "height": 128, "width": 160}
    axes = ("batch", 3, "height", "width")
    signature = Signature((TensorSpec("pixel_values", "float32", axes),), (TensorSpec("y", "float32", axes),))
    text = "g (float[batch,3,height,width] pixel_values) => (float[batch,3,height,width] y) { y = Relu(pixel_values) }"
    path, feeder = write(tmp_path / "m.onnx", text), ImageFeeder(signature.inputs, example)
    found = learn_ranges(path, signature, Filling(), feeder, example=example)
    assert found == {"height": AxisRange(step, step), "width": AxisRange(step, step)}
    said = [f"axis '{side}' answers as torch does at multiples of {step} from {step} on only" for side in found]
    assert range_notes(found) == (said if step > 1 else [])
    assert range_notes({"height": AxisRange(7)}) == ["axis 'height' answers as torch does at sizes from 7 on only"]
