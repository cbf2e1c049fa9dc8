"""A rewrite is held to no less than the model holds itself to, and nothing is widened without a reason or a cap.

Covers: probe/rounding.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.errors import ProofError
from onnxopt.load.loaded import Loaded
from onnxopt.load.reference import OrtReference
from onnxopt.probe.rounding import rounds_otherwise
from onnxopt.proof.cases import Case, cases_of
from onnxopt.proof.prepare import prepare
from onnxopt.proof.tolerance import FACTOR, WIDEST, moved_by_itself, precision_error
from onnxopt.proof.whole import prove
from onnxopt.spec import Budget, Feeds
from tests.support.axes import load

PLAIN = """g (float[b,16] x) => (float[b,16] y) { y = Softmax(x) }"""
HALF = """g (float[b,16] x) => (float[b,16] y) { h = Cast<to = 10>(x) m = MatMul(h, w) y = Cast<to = 1>(m) }"""
SHAKEN = """g (float[b,16] x) => (float[b,1] y) <float huge = {4000.0}> {
  big = Mul(x, huge) axis = Constant<value_ints = [1]>() total = ReduceSum(big, axis) y = Sin(total) }"""


def shifted(loaded: Loaded, share: float, name: str = "y") -> Callable[[Feeds], Feeds]:
    """Return a candidate whose first element is off by a share of the largest value."""

    def run(feeds: Feeds) -> Feeds:
        found = {one: np.array(array) for one, array in loaded.reference.run(feeds).items()}
        found[name].flat[0] += share * np.abs(found[name]).max()
        return found

    return run


def moved(loaded: Loaded, seed: int = 100) -> float:
    feeds = loaded.feeder.make({}, seed=seed)
    expected = loaded.reference.run(feeds)
    found = moved_by_itself(loaded, feeds, expected)
    return found["y"].absolute / float(np.abs(expected["y"]).max()) if "y" in found else 0.0


def test_a_model_that_stands_still_is_held_to_the_budget(tmp_path: Path) -> None:
    loaded = load(tmp_path, PLAIN)
    assert moved(loaded) < 1e-6
    with pytest.raises(ProofError, match=r"budget is 0\.0001"):
        prove(shifted(loaded, 3e-4), loaded, Budget(), cases_of(loaded))


def test_a_model_that_moves_by_itself_is_held_to_its_own_movement(tmp_path: Path) -> None:
    loaded = load(tmp_path, SHAKEN)
    own = moved(loaded)
    assert 1e-4 < own < WIDEST / FACTOR
    notes: list[str] = []
    case: list[Case] = [({"b": 8} if "b" in loaded.signature.axes else {"batch": 8}, "none")]
    prove(shifted(loaded, own), loaded, Budget(1e-6), case, notes=notes)
    assert len(notes) == 1
    assert "rounding errors of its own operators move the original" in notes[0]
    with pytest.raises(ProofError, match="differs"):
        prove(shifted(loaded, 3 * own), loaded, Budget(1e-6), case)


def test_nothing_is_widened_beyond_the_cap(tmp_path: Path) -> None:
    loaded = load(tmp_path, SHAKEN.replace("4000.0", "4000000.0"))
    assert moved(loaded) > WIDEST
    with pytest.raises(ProofError, match=r"the budget is 0\.01"):
        prove(shifted(loaded, 2 * WIDEST), loaded, Budget(), cases_of(loaded))


def test_what_the_runtime_itself_changes_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path, PLAIN)
    plain = loaded.reference.run

    def run(feeds: Feeds, *, optimized: bool = False) -> Feeds:
        found = plain(feeds)
        return {"y": found["y"] + np.float32(1e-3) * found["y"].max() * np.float32(optimized)}

    monkeypatch.setattr(loaded.reference, "run", run)
    notes: list[str] = []
    prove(shifted(loaded, 1.5e-3), loaded, Budget(), cases_of(loaded), notes=notes)
    assert "ONNX Runtime's own optimizations move the original" in notes[0]


def test_a_graph_in_16_bits_is_judged_in_them(tmp_path: Path) -> None:
    loaded = load(tmp_path, HALF, w=np.eye(16, dtype=np.float16))
    prepare(loaded.model)
    assert precision_error(loaded.model) == 4 * 2.0**-10
    notes: list[str] = []
    prove(shifted(loaded, 2e-3), loaded, Budget(), cases_of(loaded), notes=notes)
    assert "computes in 16 bits" in notes[0]
    with pytest.raises(ProofError, match=r"budget is 0\.00391"):
        prove(shifted(loaded, 8e-3), loaded, Budget(), cases_of(loaded))


def test_weights_that_are_only_stored_in_16_bits_change_nothing(tmp_path: Path) -> None:
    text = """g (float[b,16] x) => (float[b,16] y) { wide = Cast<to = 1>(w) y = MatMul(x, wide) }"""
    loaded = load(tmp_path, text, w=np.eye(16, dtype=np.float16))
    prepare(loaded.model)
    assert precision_error(loaded.model) == 0.0


def cancelling(offset: float) -> str:
    """Return a variance as the difference of two means, of numbers near an offset; no input is a float."""
    return f"""g (int32[b,16] x) => (float[b,1] y) <float far = {{{offset}}}, float share = {{0.03}}> {{
      whole = Cast<to = 1>(x) small = Mul(whole, share) near = Add(small, far) squares = Mul(near, near)
      axis = Constant<value_ints = [1]>() a = ReduceMean(squares, axis) m = ReduceMean(near, axis)
      n = Mul(m, m) y = Sub(a, n) }}"""


def test_what_operators_round_counts_where_no_input_could_be_moved(tmp_path: Path) -> None:
    feeds = {"x": np.arange(48, dtype=np.int32).reshape(3, 16) % 7}
    shares = []
    for offset in (0.0, 30.0):
        loaded = load(tmp_path, cancelling(offset))
        expected = loaded.reference.run(feeds)
        found = moved_by_itself(loaded, feeds, expected)["y"]
        assert found.why == "rounding errors of its own operators"
        shares.append(found.absolute / float(expected["y"].max()))
    assert shares[0] < 1e-5
    assert shares[1] > 1e-3


@pytest.mark.parametrize("filler", [-3.4028235e38, -10000.0])
def test_what_hides_a_key_is_not_rounded_otherwise(filler: float, tmp_path: Path) -> None:
    """A row that sees no key is even; a filler that moved would make it one-hot."""
    text = f"""g (int32[b,16] x) => (float[b,16] y) <float never = {{{filler}}}, float zero = {{0.0}}> {{
      whole = Cast<to = 1>(x) nothing = Mul(whole, zero) hidden = Add(nothing, never) y = Softmax(hidden) }}"""
    assert moved(load(tmp_path, text)) < 1e-6


def test_rounding_otherwise_leaves_types_names_and_moved_values_alone(tmp_path: Path) -> None:
    text = """g (float[b,4] x, int64[b,4] at) => (float[b,4] y, int64[b,4] z) {
      h = Transpose<perm = [0,1]>(x) y = Exp(h) z = Add(at, at) }"""
    loaded = load(tmp_path, text)
    proto = onnx.load(tmp_path / "m.onnx")
    assert rounds_otherwise(proto)
    assert [node.op_type for node in proto.graph.node].count("RandomUniformLike") == 1
    assert {value.name for value in proto.graph.output} == {"y", "z"}
    assert isinstance(loaded.reference, OrtReference)
    other = loaded.reference.rounded_otherwise()
    assert other is not None
    feeds: Feeds = {"x": np.ones((3, 4), np.float32), "at": np.ones((3, 4), np.int64)}
    found, expected = other.run(feeds), loaded.reference.run(feeds)
    assert 0 < np.abs(found["y"] / expected["y"] - 1).max() <= 2.0**-22
    assert np.array_equal(found["z"], expected["z"])


def test_nothing_is_rounded_otherwise_in_a_graph_of_whole_numbers(tmp_path: Path) -> None:
    loaded = load(tmp_path, "g (int64[b,4] x) => (int64[b,4] y) { y = Add(x, x) }")
    assert isinstance(loaded.reference, OrtReference)
    assert loaded.reference.rounded_otherwise() is None


@pytest.mark.parametrize(("share", "ways"), [(0.5, 1), (2.0, 6)])
def test_no_other_way_of_rounding_is_tried_once_an_error_is_explained(
    share: float, ways: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's own optimizations move by 1e-3 here: half of that explains an error of as much."""
    loaded = load(tmp_path, PLAIN)
    feeds = loaded.feeder.make({}, seed=3)
    expected = loaded.reference.run(feeds)
    runs: list[bool] = []
    plain = type(loaded.reference).run

    def run(self: Any, feeds: Feeds, *, optimized: bool = False) -> Feeds:
        runs.append(optimized)
        return {"y": plain(self, feeds)["y"] + np.float32(1e-3 * optimized)}

    monkeypatch.setattr(type(loaded.reference), "run", run)
    found = moved_by_itself(loaded, feeds, expected, {"y": share * 1e-3})
    assert len(runs) == ways
    assert found["y"].why == "ONNX Runtime's own optimizations"
    assert found["y"].absolute == pytest.approx(1e-3, rel=1e-2)
