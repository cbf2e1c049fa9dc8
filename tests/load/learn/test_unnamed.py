"""Axes without a name are one where the model holds them equal, or where a note says that they are taken for one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Target
from tests.support.axes import load

SUMMED = """g (float[?,{width}] {first}, float[?,{width}] {second}) => (float[?,{width}] y) {{
  y = {operator}({first}, {second}) }}"""
# rows that are there for no row of x are left out; there must be one for each
PICKED = """g (float[?,?,6] x, float[?,?] {mask}) => (float[?,?,6] y) {{
  n = Shape<start = 0, end = 1>(x) {picks} wide = Unsqueeze(own, last)
  hidden = Mul(x, wide) shape = Shape(x) y = Reshape(hidden, shape) }}"""
PICKS = {
    "a cut": "own = Slice({mask}, zero, n)",
    "indices": "count = Squeeze(n) places = Range(first, count, step) own = Gather({mask}, places)",
}
ONE_FOR_ALL = """g (float[?,3] x, float[?,3] {mask}) => (float[?,3] y) {{
  sum = Add(x, {mask}) shape = Shape(x) y = Reshape(sum, shape) }}"""
TEXT = """g (int64[?,?] {ids}, float[?,?] {mask}) => (float[?,?,4] y) {{
  found = Gather(table, {ids}) wide = Unsqueeze({mask}, last) y = Mul(found, wide) }}"""
ZERO, LAST = np.array([0], np.int64), np.array([2], np.int64)
TABLE = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


def said(loaded: Loaded, axis: str) -> list[str]:
    return [note for note in loaded.notes if f"without a name: taken for '{axis}'" in note]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Max"])
@pytest.mark.parametrize("width", [3, 17])
@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("hidden_states", "mask")])
def test_what_is_broadcast_both_ways_gets_two_names(
    operator: str, width: int, first: str, second: str, tmp_path: Path
) -> None:
    loaded = load(tmp_path, SUMMED.format(operator=operator, width=width, first=first, second=second))
    one, other = loaded.signature.axes
    assert loaded.ones == {one, other}
    assert loaded.tied == ((one, other),)
    assert not said(loaded, "batch")
    run_pipeline(loaded, Target("cpu"))
    optimized, draw = GraphRunner(loaded.model), np.random.default_rng(1)
    for rows in itertools.product((1, 23), repeat=2):
        feeds = {
            name: draw.standard_normal((size, width)).astype(np.float32)
            for name, size in zip((first, second), rows, strict=True)
        }
        np.testing.assert_array_equal(optimized.run(feeds)[0]["y"], loaded.reference.run(feeds)["y"])


@pytest.mark.parametrize("mask", ["rows", "attention_mask"])
@pytest.mark.parametrize("picks", PICKS.values(), ids=PICKS.keys())
def test_more_rows_than_needed_bound_no_batch(mask: str, picks: str, tmp_path: Path) -> None:
    text = PICKED.format(mask=mask, picks=picks.format(mask=mask))
    loaded = load(tmp_path, text, zero=ZERO, last=LAST, first=np.array(0), step=np.array(1))
    assert loaded.signature.inputs[1].axes[0] == loaded.signature.inputs[0].axes[0] == "batch"
    assert loaded.range_of("batch").most == 0
    assert loaded.range_of("batch").least <= 1
    assert not any("'batch' is declared dynamic" in note for note in loaded.notes)
    (note,) = said(loaded, "batch")
    assert f"axis 0 of '{mask}'" in note


@pytest.mark.parametrize("mask", ["bias", "attention_mask"])
def test_one_row_for_all_is_taken_for_a_batch_in_words(mask: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, ONE_FOR_ALL.format(mask=mask))
    assert loaded.signature.axes == ("batch",)
    assert len(said(loaded, "batch")) == 1


@pytest.mark.parametrize(("ids", "mask"), [("input_ids", "attention_mask"), ("words", "seen")])
def test_a_mask_is_as_long_as_its_text(ids: str, mask: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, TEXT.format(ids=ids, mask=mask), table=TABLE, last=LAST)
    assert [spec.axes for spec in loaded.signature.inputs] == [("batch", "sequence")] * 2
    assert len(said(loaded, "batch")) == len(said(loaded, "sequence")) == 1


def test_names_of_the_file_part_what_was_taken_for_one(tmp_path: Path) -> None:
    text = (
        ONE_FOR_ALL.format(mask="bias").replace("float[?,3] x", "float[n,3] x").replace("float[?,3] b", "float[m,3] b")
    )
    loaded = load(tmp_path, text)
    assert len(loaded.signature.axes) == 2
    assert not any("without a name" in note for note in loaded.notes)


def test_axes_that_the_model_holds_equal_are_one_without_a_word(tmp_path: Path) -> None:
    text = "g (float[?,3] x, float[?,4] z) => (float[?,7] y) { y = Concat<axis = 1>(x, z) }"
    loaded = load(tmp_path, text)
    assert loaded.signature.axes == ("batch",)
    assert loaded.notes == []
