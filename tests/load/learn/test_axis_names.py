"""An axis may be called anything: a name that reads as an expression is a name and no more.

Covers: sizes/words.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxopt
from onnxopt.artifact.stacks import served_model
from onnxopt.graph import dims
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan
from onnxopt.load.learn.roles import CANONICAL, canonical_names, renamed_feeder
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.prepare import prepare
from onnxopt.sizes import Derivation
from onnxopt.sizes.words import is_plain, size_of
from onnxopt.spec import TensorSpec
from tests.support.axes import renamed, write
from tests.support.rules import parse

ODD = [
    "x*2",
    "2*x",
    "x + 1",
    "x - 1",
    "x",
    "7",
    "a + b",
    "a",
    "b",
    "s0 - 1",
    "x_2",
    "axis_x_2",
    "batch*x",
    "batch",
    "é 1",
]
# half of x beside all of z, twice: sizes that are 2·x, x + z and z
TEXT = """g (float[first,4] x, float[second,4] z) => (float[m,4] y, float[k,4] w, int64[2] n) {
  twice = Concat<axis = 0>(x, x) both = Concat<axis = 0>(twice, z)
  size = Shape(z) flat = Reshape(both, minus) back = Reshape(flat, four) y = Relu(back)
  lots = Concat<axis = 0>(z, z) plain = Reshape(lots, four) w = Neg(plain)
  own = Expand(zero, size) n_ = Shape(own) n = Identity(n_) }"""
PAIRS = [
    ("x", "x*2"),
    ("x*2", "x"),
    ("2*x", "x"),
    ("x", "x + 1"),
    ("x - 1", "x"),
    ("a + b", "a"),
    ("7", "x"),
    ("x_2", "x*2"),
    ("s0 - 1", "s0 - 2"),
    ("axis_x_2", "x*2"),
]


def named(folder: Path, names: dict[str, str]) -> Path:
    """Write the graph with other names of its axes; outputs have names of their own."""
    numbers = {"minus": [-1], "four": [-1, 4]}
    weights = {name: np.array(value, np.int64) for name, value in numbers.items()}
    path = write(folder / "m.onnx", TEXT, zero=np.zeros((1, 1), np.float32), **weights)
    onnx.save(renamed(onnx.load(path), names), path)
    return path


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_axes_are_independent_whatever_their_names_read_as(names: tuple[str, str], tmp_path: Path) -> None:
    path = named(tmp_path, dict(zip(("first", "second"), names, strict=True)))
    made = onnxopt.optimize(path, out=tmp_path / "out", measure=False)
    assert not [item for entry in made.manifest.ledger for item in entry.rolled_back]
    before, after = (ort.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (path, made.model_path))
    for session in (before, after):
        assert [item.shape for item in session.get_inputs()] == [[names[0], 4], [names[1], 4]]
    for first, second in ((1, 1), (3, 5), (4, 8), (5, 4), (40, 3)):
        feeds = {"x": np.full((first, 4), -1, np.float32), "z": np.ones((second, 4), np.float32)}
        feeds["x"][0] = 2
        for old, new in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
            np.testing.assert_array_equal(old, new)


def test_what_is_written_of_inner_values_is_no_name_of_another_axis(tmp_path: Path) -> None:
    """Twice `x` reads as `x*2`, which is an input's axis: runtimes would take both for one size."""
    loaded = load_onnx(named(tmp_path, {"first": "x", "second": "x*2"}))
    inner = loaded.signature.inputs[0].axes[0]
    value = next(value for node in loaded.model.graph for value in node.outputs if value.name == "twice")
    value.shape = ir.Shape([f"{inner}*2", 4])
    written = served_model(loaded.model, loaded.signature, loaded.names)
    shapes = {value.name: value.shape for node in written.graph for value in node.outputs}
    assert shapes["twice"] is not None
    assert str(shapes["twice"][0]) not in ("x*2", "2*x")


@given(st.tuples(*[st.sampled_from(ODD)] * 5), st.sampled_from(ODD))
def test_inner_names_are_plain_and_apart(drawn: tuple[str, ...], output: str) -> None:
    axes = list(dict.fromkeys(drawn))
    plans = tuple(InputPlan(TensorSpec(f"in{i}", "float32", (axis, 4)), "float") for i, axis in enumerate(axes))
    feeder = GraphFeeder(plans)
    names = canonical_names(feeder, "", "", [output])
    inner = renamed_feeder(feeder, names)
    assert len(inner.axes) == len(axes)
    assert {inner.names.get(axis, axis) for axis in inner.axes} == set(axes)
    assert all(is_plain(axis) or inner.terms(axis) for axis in inner.axes)
    assert output in (*axes, *CANONICAL.values()) or output not in inner.axes
    assert len(inner.resolve({})) == len(axes)


def resolved(loaded: Loaded, sizes: dict[str, int]) -> dict[str, int]:
    """The size of every axis, under the names that the user knows."""
    assert isinstance(loaded.feeder, GraphFeeder)
    return loaded.shown(loaded.feeder.resolve(loaded.known(sizes)))


@pytest.mark.parametrize(("longest", "second", "plus"), [("a + c", "c", 0), ("a + 3", 3, 3)])
def test_a_sum_that_is_one_follows_from_its_parts(longest: str, second: str | int, plus: int, tmp_path: Path) -> None:
    """Rows of two inputs side by side, added to a third."""
    text = f"""g (float[a,4] x, float[{second},4] z, float[whole,4] h) => (float[m,4] y) {{
      both = Concat<axis = 0>(x, z) y = Add(both, h) }}"""
    path = write(tmp_path / "m.onnx", text)
    onnx.save(renamed(onnx.load(path), {"whole": longest}), path)
    loaded = load_onnx(path)
    sizes = resolved(loaded, {"a": 5, "c": 9})
    assert sizes[longest] == 5 + (plus or 9)


def test_a_sum_by_name_alone_has_sizes_of_its_own(tmp_path: Path) -> None:
    loaded = load_onnx(named(tmp_path, {"first": "a", "second": "a + 1"}))
    sizes = resolved(loaded, {"a": 5, "a + 1": 9})
    assert sizes == {"a": 5, "a + 1": 9}


@pytest.mark.parametrize("whole", ["a + c", "a + 3", "a+c", "a + c + 1"])
def test_sums_are_read_as_what_they_are_wherever_they_are_written(whole: str) -> None:
    """Twice a sum has no spelling; the sum itself, and what a pass has kept of it, has."""
    text = """g (float[a,4] x, float[c,4] z, float[whole,4] h) => (float y) {
      u = Relu(h) twice = Concat<axis = 0>(h, h) more = Concat<axis = 0>(h, x) y = Concat<axis = 0>(twice, more, z) }"""
    model = parse(text)
    model.graph.inputs[2].shape = ir.Shape([whole, 4])
    derivation = Derivation()
    prepare(model, derivation)
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert dims(values["u"]) == (whole, 4)
    assert dims(values["twice"]) == dims(values["more"]) == (None, 4)
    fact = derivation.fact_of_shape(ir.Shape([whole, 4]))
    assert fact.dims == derivation.of(values["u"]).dims
    assert size_of(whole, {"a": 2, "c": 5, whole: 11}) == 11
