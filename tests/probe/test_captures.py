"""What is remembered of a model's values is what a run of the whole model gives, and its size is bounded.

Covers: probe/cut.py, probe/program.py, probe/runners.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.probe import captures, program
from onnxopt.probe.annotate import annotate
from onnxopt.probe.captures import Captures
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.prepare import prepare
from onnxopt.sizes import Derivation
from onnxopt.spec import Array
from tests.support.rules import observe, parse

TEXT = """
g (float[batch,sequence,256] x) => (float[batch,sequence,256] y) {
  a = Exp (x)
  t = Transpose (w)
  b = MatMul (a, t)
  c = Tanh (b)
  d = Add (c, a)
  y = Neg (d)
}"""
WEIGHT = np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)


def named(model: ir.Model, *names: str) -> list[ir.Value]:
    table = {value.name: value for node in model.graph for value in node.outputs} | {
        value.name: value for value in model.graph.inputs
    }
    return [table[name] for name in names]


@pytest.fixture
def model() -> ir.Model:
    found = parse(TEXT, {"w": WEIGHT})
    annotate(found, Derivation())
    return found


def test_what_is_known_is_given_back_and_what_lies_behind_it_runs_from_there(model: ir.Model) -> None:
    captures, observations = Captures(), observe(model)
    list(captures.run(model, observations, named(model, "b")))
    a = named(model, "a")[0].producer()
    assert a is not None
    a.op_type = "Abs"  # only what is behind `b` may run now, or `d`, which reads `a`, differs from what it was
    wanted = named(model, "x", "b", "c")
    for values, observation in zip(captures.run(model, observations, wanted), observations, strict=True):
        x, b, c = (values[value] for value in wanted)
        assert np.array_equal(x, observation.feeds["x"])
        np.testing.assert_allclose(b, np.exp(x) @ WEIGHT.T, rtol=2e-5, atol=1e-3)
        np.testing.assert_allclose(c, np.tanh(b), rtol=1e-5, atol=1e-6)
    captures.forget()
    (again,) = named(model, "b")
    for values in captures.run(model, observations, [again]):
        assert not np.allclose(values[again], np.exp(observations[0].feeds["x"]) @ WEIGHT.T)
        break


def test_no_more_is_remembered_than_allowed(model: ir.Model) -> None:
    observations = observe(model)
    (b,) = named(model, "b")
    bytes_of_one = sum(values[b].nbytes for values in Captures().run(model, observations, [b]))
    captures = Captures(limit_bytes=4 * bytes_of_one)
    wanted = named(model, "a", "b", "c", "d", "y")
    for _ in captures.run(model, observations, wanted):
        pass
    remembered = [sorted(arrays) for arrays in captures._known]
    assert len(remembered) == len(observations)
    assert len(remembered[0]) in (1, 2, 3, 4)
    assert all(names == remembered[0] for names in remembered)


def test_large_weights_let_no_more_be_remembered(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "LEAST_LIMIT_BYTES", 10)
    assert Captures()._limit_for(model) == WEIGHT.nbytes / captures.SHARE_OF_WEIGHTS
    monkeypatch.setattr(captures, "MOST_LIMIT_BYTES", 100)
    assert Captures()._limit_for(model) == 100


def test_a_transposed_weight_is_read_as_it_lies(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    operators: list[str] = []
    opened = program._open

    def seen(proto: onnx.ModelProto) -> Any:
        operators.extend(node.op_type for node in proto.graph.node)
        return opened(proto)

    monkeypatch.setattr(program, "_open", seen)
    feeds = observe(model)[0].feeds
    found = GraphRunner(model, turned=True).run(feeds)[0]["y"]
    assert "FusedMatMul" in operators
    assert "Transpose" not in operators
    a = np.exp(feeds["x"])
    np.testing.assert_allclose(found, -(np.tanh(a @ WEIGHT.T) + a), rtol=2e-5, atol=1e-4)
    fetched = GraphRunner(model, named(model, "t"), turned=True).run(feeds)[1]
    assert np.array_equal(fetched[named(model, "t")[0]], WEIGHT.T)


def test_a_known_part_of_a_split_is_not_made_twice() -> None:
    found = parse(
        """
        g (float[batch,sequence,8] x) => (float[batch,sequence,4] y) <int64[2] parts = {4, 4}> {
          a, b = Split <axis = -1> (x, parts)
          c = Exp (a)
          d = Neg (b)
          y = Add (c, d)
        }"""
    )
    annotate(found, Derivation())
    captures, observations = Captures(), observe(found)
    list(captures.run(found, observations, named(found, "a")))
    wanted = named(found, "c", "d")
    for values, observation in zip(captures.run(found, observations, wanted), observations, strict=True):
        x = observation.feeds["x"]
        np.testing.assert_allclose(values[wanted[0]], np.exp(x[..., :4]), rtol=1e-5)
        np.testing.assert_allclose(values[wanted[1]], -x[..., 4:], rtol=1e-6)


def test_products_are_fetched_along_and_need_not_run_again(model: ir.Model) -> None:
    captures, observations = Captures(), observe(model)
    list(captures.run(model, observations, named(model, "c")))
    a = named(model, "a")[0].producer()
    assert a is not None
    a.op_type = "Abs"  # what lies before the product must not matter any more
    (c,) = named(model, "c")
    captures._known = [{n: array for n, array in known.items() if n != "c"} for known in captures._known]
    for values, observation in zip(captures.run(model, observations, [c]), observations, strict=True):
        np.testing.assert_allclose(values[c], np.tanh(np.exp(observation.feeds["x"]) @ WEIGHT.T), rtol=1e-4, atol=1e-4)


def test_a_run_of_the_whole_model_is_remembered_and_forgets_what_was_before(model: ir.Model) -> None:
    captures, observations = Captures(), observe(model)
    list(captures.run(model, observations, named(model, "b")))
    a = named(model, "a")[0].producer()
    assert a is not None
    a.op_type = "Abs"
    for outputs, observation in zip(captures.outputs(model, observations), observations, strict=True):
        a_now = np.abs(observation.feeds["x"])
        np.testing.assert_allclose(outputs["y"], -(np.tanh(a_now @ WEIGHT.T) + a_now), rtol=1e-4, atol=1e-4)
    assert all("b" in known for known in captures._known)


@pytest.mark.parametrize("width", [8, 6])
def test_attention_on_three_axes_runs_where_the_runtime_does_not_see_how_wide_it_is(width: int) -> None:
    """ONNX Runtime takes it for 0 wide, and the product behind it for impossible."""
    text = f"""g (float[batch,rows,{width}] x) => (float y) {{
      first = Shape<start = 0, end = 2>(x) whole = Concat<axis = 0>(first, wide) flat = Reshape(x, rows_)
      h = Reshape(flat, whole) a = Attention<q_num_heads = 2, kv_num_heads = 2>(h, h, h) y = MatMul(a, w) }}"""
    weights: dict[str, Array] = {
        "wide": np.array([width]),
        "rows_": np.array([-1, width]),
        "w": np.eye(width, dtype=np.float32),
    }
    model = parse(text, weights)
    feeds = observe(model)[0].feeds
    with pytest.raises(ProbeError, match="Incompatible dimensions"):
        GraphRunner(model).run(feeds)
    prepare(model)
    assert GraphRunner(model).run(feeds)[0]["y"].shape == feeds["x"].shape


SIZES = """
g (float[batch,3,height,width] x, float[batch,3,rows,columns] z) => (float[batch,3,rows,columns] y, int64[2] n) {
  a = Exp (z)
  n = Shape <start = 2> (a)
  front = Shape <end = 2> (x)
  sizes = Concat <axis = 0> (front, n)
  c = Neg (x)
  r = Resize <mode = "nearest"> (c, , , sizes)
  y = Add (r, z)
}"""


def test_sizes_of_which_a_part_is_remembered_are_as_long_as_they_were() -> None:
    found = parse(SIZES)
    annotate(found, Derivation())
    part = named(found, "n")[0]
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 3, 4, 5)).astype(np.float32),
        "z": rng.standard_normal((2, 3, 8, 10)).astype(np.float32),
    }
    whole, _ = GraphRunner(found).run(feeds)
    cut, _ = GraphRunner(found, known=[part]).run(feeds | {"n": np.array([8, 10])})
    np.testing.assert_array_equal(cut["y"], whole["y"])
