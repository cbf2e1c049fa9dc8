"""Axes are learned from what runs: ranges, steps, ties, sizes that are baked in; whatever they are called.

Covers: load/learn/first_sizes.py, proof/observations.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from onnxopt.artifact.stacks import served_model
from onnxopt.errors import InputError, LimitError
from onnxopt.graph.cache import served
from onnxopt.load.given import Given
from onnxopt.load.graph_feeder import GraphFeeder
from onnxopt.load.learn.first_sizes import MOST_TRIED, attempts
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.cases import cases_of
from onnxopt.proof.observations import chosen, observations_of
from onnxopt.spec import Array, AxisRange, Feeds
from tests.support.axes import load
from tests.support.hostile_graphs import counting_without_end, dividing_the_smallest

FIVE = np.array([5], np.int64)


def all_run(loaded: Loaded) -> list[dict[str, int]]:
    """Run everything that is looked at and proved; return the sizes."""
    sizes = [dict(one.sizes) for one in observations_of(loaded)] + [sizes for sizes, _ in cases_of(loaded)]
    for one in sizes:
        loaded.reference.run(loaded.feeder.make(one))
    return sizes


@pytest.mark.parametrize("axis", ["frames", "sequence", "s6", "n", "image_width"])
def test_a_least_size_is_found_and_kept(axis: str, tmp_path: Path) -> None:
    """A window of 25 rows needs 25 rows."""
    text = f"""g (float[3,2,{axis}] x) => (float[3,4,m] y) {{ y = Conv(x, w) }}"""
    loaded = load(tmp_path, text, w=np.ones((4, 2, 25), np.float32))
    inner = loaded.signature.axes[0]
    assert loaded.range_of(inner) == AxisRange(25)
    assert f"axis '{axis}' runs from 25 on only" in loaded.notes
    sizes = all_run(loaded)
    assert min(one[inner] for one in sizes) == 25
    assert {25, 26, 27} <= {one[inner] for one in sizes}


def test_a_largest_size_is_found_and_proved(tmp_path: Path) -> None:
    """A table of 37 rows is cut to the length of the input."""
    text = """g (float[rows,8] x) => (float[rows,8] y) {
      n = Shape<start = 0, end = 1>(x) cut = Slice(table, zero, n) y = Add(x, cut) }"""
    loaded = load(tmp_path, text, table=np.ones((37, 8), np.float32), zero=np.array([0], np.int64))
    inner = loaded.signature.axes[0]
    assert loaded.range_of(inner).most == 37
    sizes = {one[inner] for one in all_run(loaded)}
    assert max(sizes) == 37
    assert len({one.sizes[inner] for one in observations_of(loaded)}) == 4
    with pytest.raises(InputError, match="'rows' is asked at 38; the model takes at most 37"):
        loaded.feeder.make({inner: 38})


def test_a_multiple_of_three_is_found(tmp_path: Path) -> None:
    text = """g (float[2,triples] x) => (float[k,3] y) { y = Reshape(x, shape) }"""
    loaded = load(tmp_path, text.replace("float[2,", "float[1,"), shape=np.array([-1, 3], np.int64))
    assert loaded.range_of("triples") == AxisRange(3, 3)
    assert all(one["triples"] % 3 == 0 for one in all_run(loaded))


@pytest.mark.parametrize(("axis", "size"), [("batch", 1), ("rows", 1), ("batch", 6), ("N", 40)])
def test_a_baked_size_is_written_as_fixed(axis: str, size: int, tmp_path: Path) -> None:
    text = f"""g (float[{axis},12] x) => (float[{axis},3,4] y) {{ y = Reshape(x, shape) }}"""
    loaded = load(tmp_path, text, shape=np.array([size, 3, 4], np.int64))
    assert loaded.signature.inputs[0].axes == (size, 12)
    assert loaded.signature.outputs[0].axes == (size, 3, 4)
    said = f"axis '{axis}' is declared dynamic but only size {size} was seen to run; it is written as {size}"
    assert said in loaded.notes
    all_run(loaded)


def test_axes_that_must_be_equal_are_tied(tmp_path: Path) -> None:
    text = """g (float[3,left] a, float[right,3] b) => (float[3,3] y) { y = MatMul(a, b) }"""
    loaded = load(tmp_path, text)
    assert loaded.tied == (("left", "right"),)
    assert not loaded.ones
    assert loaded.runnable({"left": 4, "right": 9}) == {"left": 4, "right": 4}
    assert all(one["left"] == one["right"] for one in all_run(loaded))


@pytest.mark.parametrize("names", [("a", "b"), ("n", "batch"), ("query", "document"), ("sequence", "seq_len")])
def test_axes_that_are_equal_or_one_are_seen_both_ways(names: tuple[str, str], tmp_path: Path) -> None:
    text = f"""g (float[{names[0]},4] q, float[{names[1]},4] k) => (float[m,4] y) {{ y = Add(q, k) }}"""
    loaded = load(tmp_path, text)
    first, second = loaded.signature.axes
    assert loaded.tied == ((first, second),)
    assert loaded.ones == {first, second}
    sizes = all_run(loaded)
    assert any(one[first] == 1 < one[second] for one in sizes)
    assert any(one[second] == 1 < one[first] for one in sizes)
    assert any(one[first] == one[second] > 1 for one in sizes)
    assert loaded.signature.outputs[0].axes[0] not in (first, second), "it is neither"


def test_an_axis_that_runs_far_from_its_size_is_not_baked_in(tmp_path: Path) -> None:
    """Blocks of 50 rows, and one row alone: every size near 1 is refused."""
    text = """g (float[batch,12] x) => (float[m,3,4] y) {
        rows = Shape <end = 1> (x)
        blocks = Div(rows, block)
        whole = Mul(blocks, block)
        least = Max(whole, one)
        shape = Concat <axis = 0> (least, rest)
        y = Reshape(x, shape)
    }"""
    block, one, rest = (np.array(value, np.int64) for value in ([40], [1], [3, 4]))
    loaded = load(tmp_path, text, block=block, one=one, rest=rest)
    assert loaded.signature.inputs[0].axes == ("batch", 12)
    assert "axis 'batch' runs at 1 and far from it; at 1 alone it is proved" in loaded.notes
    all_run(loaded)


@pytest.mark.parametrize("rows", [100, 134])
def test_axes_are_as_small_as_they_may_beside_one_that_must_be_long(rows: int, tmp_path: Path) -> None:
    """A window of so many rows: the first sizes that run are large for all axes."""
    text = f"""g (float[8,left,rows] a, float[8,right,rows] b) => (float[8,m,k] y) {{
        sum = Add(a, b)
        y = AveragePool <kernel_shape = [{rows}]> (sum)
    }}"""
    loaded = load(tmp_path, text)
    left, inner, right = loaded.signature.axes
    assert loaded.tied == ((left, right),)
    assert loaded.range_of(inner) == AxisRange(rows - 1), "one row less gives none, which runs"
    assert isinstance(loaded.feeder, GraphFeeder)
    assert loaded.feeder.defaults[left] == loaded.feeder.defaults[right] < 10
    all_run(loaded)


@pytest.mark.parametrize("rows", ["batch", "n", "sequence"])
def test_an_axis_that_others_bind_is_not_baked_in(rows: str, tmp_path: Path) -> None:
    """Beside 16 columns only 16 rows run, beside one column any."""
    text = f"g (float[{rows},columns] mask, float[b,columns,16] x) => (float[b,m,16] y) {{ y = Add(mask, x) }}"
    loaded = load(tmp_path, text)
    assert loaded.model.graph.inputs[0].shape is not None
    assert all(isinstance(size, ir.SymbolicDim) for size in loaded.model.graph.inputs[0].shape)
    assert loaded.reference.run({"mask": np.ones((5, 1), np.float32), "x": np.ones((2, 1, 16), np.float32)})
    all_run(loaded)


def test_a_square_image_is_tied(tmp_path: Path) -> None:
    text = """g (float[n,1,up,across] x) => (float[n,1,up,across] y) {
      turned = Transpose<perm = [0, 1, 3, 2]>(x) joined = Concat<axis = 2>(x, turned)
      both = MatMul(x, turned) sum = Add(both, x) y = Add(sum, turned) }"""
    loaded = load(tmp_path, text)
    assert ("up", "across") in loaded.tied
    assert all(one["up"] == one["across"] for one in all_run(loaded))


def test_names_of_the_file_are_kept_in_what_is_written(tmp_path: Path) -> None:
    text = """g (float[images,3,tall,wide] x) => (float[images,3,tall,wide] y) { y = Relu(x) }"""
    loaded = load(tmp_path, text)
    assert loaded.names == {"batch": "images"}
    assert served(loaded.signature, loaded.names).inputs[0].axes == ("images", 3, "tall", "wide")
    written = served_model(loaded.model, loaded.signature, loaded.names)
    assert [str(dim) for dim in written.graph.outputs[0].shape or []] == ["images", "3", "tall", "wide"]
    assert [str(dim) for dim in loaded.model.graph.inputs[0].shape or []] == ["batch", "3", "tall", "wide"]


def test_a_range_that_the_user_gives_is_taken(tmp_path: Path) -> None:
    text = """g (float[frames,8] x) => (float[frames,8] y) { y = Relu(x) }"""
    loaded = load(tmp_path, text, Given.parse(axes=["frames=8..4096:8"]))
    inner = loaded.signature.axes[0]
    assert loaded.range_of(inner) == AxisRange(8, 8, 4096)
    sizes = {one[inner] for one in all_run(loaded)}
    assert all(size % 8 == 0 for size in sizes)
    assert {8, 4096} <= sizes


def test_one_size_that_the_user_gives_is_written(tmp_path: Path) -> None:
    text = """g (float[frames,8] x) => (float[frames,8] y) { y = Relu(x) }"""
    loaded = load(tmp_path, text, Given.parse(axes={"frames": 16}))
    assert loaded.signature.inputs[0].axes == (16, 8)


def test_a_range_that_does_not_run_is_refused(tmp_path: Path) -> None:
    text = """g (float[3,2,frames] x) => (float[3,4,m] y) { y = Conv(x, w) }"""
    with pytest.raises(InputError, match=r"does not run with axis 'frames' at 8, which --axis says"):
        load(tmp_path, text, Given.parse(axes=["frames=8..100"]), w=np.ones((4, 2, 25), np.float32))


def test_a_model_that_cannot_be_guessed_runs_on_what_the_user_gives(tmp_path: Path) -> None:
    """Two axes of which one must be the other times seven plus four."""
    text = """g (float[long,2] x, float[short,2] y) => (float[short,2] z) {
      n = Shape<start = 0, end = 1>(y) m = Mul(n, seven) k = Add(m, four) two = Constant<value_ints = [2]>()
      shape = Concat<axis = 0>(k, two) same = Reshape(x, shape) cut = Slice(same, zero, n) z = Add(cut, y) }"""
    numbers: dict[str, Any] = {
        "seven": np.array([7], np.int64),
        "four": np.array([4], np.int64),
        "zero": np.array([0], np.int64),
    }
    with pytest.raises(InputError, match=r"--feeds example\.npz"):
        load(tmp_path, text, **numbers)
    np.savez(tmp_path / "one.npz", x=np.ones((39, 2), np.float32), y=np.full((5, 2), 3, np.float32))
    loaded = load(tmp_path, text, Given.parse(feeds=tmp_path / "one.npz"), **numbers)
    assert loaded.signature.inputs[0].axes == (39, 2)
    assert loaded.reference.run(loaded.feeder.make({}))["z"].shape == (5, 2)


@pytest.mark.parametrize("window", [45, 61, 140])
@pytest.mark.parametrize("axes", [("frames", "sequence"), ("points", "seq_len")])
def test_sizes_at_which_the_model_does_not_run_together_are_not_looked_at(
    window: int, axes: tuple[str, str], tmp_path: Path
) -> None:
    """Each axis runs at any size beside a long one; not both of them short."""
    text = f"""g (float[1,2,{axes[0]}] x, float[1,2,{axes[1]}] z) => (float[1,4,m] y) {{
      both = Concat<axis = 2>(x, z) y = Conv(both, w) }}"""
    loaded = load(tmp_path, text, w=np.ones((4, 2, window), np.float32))
    assert any(sum(one.sizes.values()) < window for one in chosen(loaded)), "else there is nothing to show"
    observations = observations_of(loaded)
    assert len(observations) == 4
    for one in observations:
        assert sum(one.sizes.values()) >= window
        loaded.reference.run(one.feeds)


def test_a_model_that_runs_nowhere_is_refused_with_the_options_that_help(tmp_path: Path) -> None:
    loaded = load(tmp_path, "g (float[n,8] x) => (float[n,8] y) { y = Relu(x) }")

    class Stubborn:
        """Runs with nothing."""

        name = "stubborn"

        def run(self, feeds: Mapping[str, Array]) -> Feeds:
            raise InputError("no")

    with pytest.raises(InputError, match="does not run with inputs made up for it") as refused:
        observations_of(replace(loaded, reference=Stubborn()))
    assert "--feeds" in refused.value.hint
    assert "--axis" in refused.value.hint


def test_an_axis_that_is_split_has_a_size_in_the_runs_before(tmp_path: Path) -> None:
    """Unnamed axes start as one; a step that is learned later is asked of every run."""
    text = """g (float[?,?,8] x, float[?,?] z) => (float[?] y) {
      flat = Reshape(z, shape) short = ReduceSum<keepdims = 0>(flat, axes) long = ReduceSum<keepdims = 0>(x, axes_x)
      y = Concat<axis = 0>(short, long) }"""
    shapes = {"shape": [-1, 4], "axes": [0], "axes_x": [0, 1]}
    weights: dict[str, Any] = {name: np.array(value, np.int64) for name, value in shapes.items()}
    loaded = load(tmp_path, text, **weights)
    assert len(loaded.signature.axes) == 4
    assert any(known.step > 1 for known in loaded.ranges.values())
    assert all(set(loaded.signature.axes) <= set(sizes) for sizes in loaded.proved_sizes)
    all_run(loaded)


@pytest.mark.parametrize("width", [6, 9, 40])
@pytest.mark.parametrize("axis", ["batch", "columns"])
def test_an_axis_that_is_broadcast_runs_at_the_size_of_another_input(width: int, axis: str, tmp_path: Path) -> None:
    text = f"""g (float[n,{axis}] x, float[{width}] bias) => (float[n,{width}] y) {{ y = Add(x, bias) }}"""
    loaded = load(tmp_path, text)
    inner = loaded.signature.inputs[0].axes[1]
    assert loaded.range_of(str(inner)) == AxisRange(width, 1, width)
    assert inner in loaded.ones
    assert {width, 1} == {one[str(inner)] for one in all_run(loaded)}


@pytest.mark.parametrize(("halvings", "step"), [(2, 4), (3, 8), (5, 32)])
@pytest.mark.parametrize("axis", ["width", "n", "frames"])
def test_what_is_halved_and_doubled_again_takes_multiples_though_others_run(
    axis: str, halvings: int, step: int, tmp_path: Path
) -> None:
    """Halves are rounded up, so the few sizes below each multiple run too; those above it do not."""
    down = [f"h{i + 1} = Conv<strides=[2], pads=[1,1]>(h{i}, w)" for i in range(halvings)]
    up = [f'u{i} = Resize<mode="nearest">(s{i + 1}, , twice) s{i} = Add(u{i}, h{i})' for i in range(1, halvings)]
    nodes = ["h0 = Identity(x)", *down, f"s{halvings} = Identity(h{halvings})", *reversed(up), "y = Relu(s1)"]
    text = f"g (float[1,2,{axis}] x) => (float[1,2,m] y) {{ {' '.join(nodes)} }}"
    loaded = load(tmp_path, text, w=np.ones((2, 2, 3), np.float32), twice=np.array([1, 1, 2], np.float32))
    known = loaded.range_of(loaded.signature.axes[0])
    assert (known.step, known.most) == (step, 0)
    all_run(loaded)


@pytest.mark.parametrize("most", [17, 18, 19, 21, 40])
def test_an_axis_that_ends_near_its_usual_size_is_free_below_it(most: int, tmp_path: Path) -> None:
    text = """g (float[rows,8] x) => (float[rows,8] y) {
      n = Shape<start = 0, end = 1>(x) cut = Slice(table, zero, n) y = Add(x, cut) }"""
    loaded = load(tmp_path, text, table=np.ones((most, 8), np.float32), zero=np.array([0], np.int64))
    assert loaded.range_of(loaded.signature.axes[0]) == AxisRange(1, 1, most)


def test_no_size_is_tried_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A number of the graph, taken for all four sizes of an image at once, would make inputs of gigabytes."""
    loaded = load(tmp_path, "g (float[a,3,b,c] x) => (float[a,3,b,c] y) { y = Relu(x) }")
    feeder = loaded.feeder
    assert isinstance(feeder, GraphFeeder)
    rows, height, width = feeder.axes
    tried = [(one[rows], one[height], one[width]) for one in attempts(feeder, [40, 335, 2000])]
    assert (40, 40, 40) in tried
    assert (335, 335, 335) not in tried
    assert max(3 * a * b * c for a, b, c in tried) <= MOST_TRIED


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
def test_a_graph_that_kills_what_runs_it_is_refused_in_words(dtype: int, tmp_path: Path) -> None:
    onnx.save(dividing_the_smallest(dtype), tmp_path / "m.onnx")
    with pytest.raises(LimitError, match=r"cannot be run with x \[.*\]: running it ends its process \(SIGFPE\)"):
        load_onnx(tmp_path / "m.onnx")


def test_a_graph_without_end_is_given_up_at_its_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_LIMITS", "seconds=1")
    onnx.save(counting_without_end(), tmp_path / "m.onnx")
    began = time.monotonic()
    with pytest.raises(LimitError, match=r"does not end within 1 s.*ONNXOPT_LIMITS=seconds=60"):
        load_onnx(tmp_path / "m.onnx")
    assert time.monotonic() - began < 15


def test_sizes_at_which_a_graph_never_ends_are_left_untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts to the power of its rows: a few end at once, and more never do."""
    monkeypatch.setenv("ONNXOPT_LIMITS", "seconds=1")
    model = counting_without_end()
    graph = model.graph
    rows = onnx.helper.make_node("Shape", ["x"], ["rows"], end=1)
    power = onnx.helper.make_node("Pow", ["base", "rows"], ["count"])
    graph.initializer.append(numpy_helper.from_array(np.array([200], np.int64), "base"))
    graph.node[0].input[0] = "count"
    graph.node.insert(0, rows)
    graph.node.insert(1, power)
    onnx.save(model, tmp_path / "m.onnx")
    began = time.monotonic()
    loaded = load_onnx(tmp_path / "m.onnx")
    assert time.monotonic() - began < 20
    assert "not tried" in " ".join(loaded.notes) or loaded.pinned
