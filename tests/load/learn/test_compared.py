"""An input that is compared with constants is filled so that every side of the comparisons runs.

Covers: proof/reached.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.errors import ProofError
from onnxopt.load.given import Given
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.cases import cases_of
from onnxopt.proof.reached import branches_not_run
from onnxopt.proof.whole import prove
from onnxopt.spec import Budget
from tests.support.axes import load

RATE = """g (float[b,6] x, int64 rate) => (float[b,6] y) <int64 fast = {16000}> {
  is_fast = Equal(rate, fast)
  y = If(is_fast) <then_branch = t () => (float[b,6] p) { p = Add(x, x) },
                   else_branch = e () => (float[b,6] q) { q = Neg(x) }>
}"""


def seen(loaded: Loaded, name: str) -> set[object]:
    """Return what an input is filled with in a proof."""
    made = (
        loaded.feeder.make(sizes, padding, seed=100 + place) for place, (sizes, padding) in enumerate(cases_of(loaded))
    )
    return {value for feeds in made for value in np.asarray(feeds[name]).reshape(-1).tolist()}


def test_both_sides_of_a_comparison_run(tmp_path: Path) -> None:
    loaded = load(tmp_path, RATE)
    assert seen(loaded, "rate") == {16000, 16001}
    assert branches_not_run(loaded, cases_of(loaded)) == []


def test_a_candidate_that_is_wrong_in_one_branch_is_refuted(tmp_path: Path) -> None:
    loaded = load(tmp_path, RATE)

    def wrong(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = loaded.reference.run(feeds)
        return found if feeds["rate"] != 16000 else {"y": found["y"] * np.float32(1.01)}

    with pytest.raises(ProofError, match="differs"):
        prove(wrong, loaded, Budget(), cases_of(loaded))


def test_values_that_the_user_gives_come_first(tmp_path: Path) -> None:
    loaded = load(tmp_path, RATE, Given.parse(values=["rate=16000"]))
    assert seen(loaded, "rate") == {16000}
    assert len(branches_not_run(loaded, cases_of(loaded))) == 1


@pytest.mark.parametrize(
    ("kind", "compare", "constant", "wanted"),
    [
        ("float", "Less", np.array(0.5, np.float32), {0.5, 0.75, 0.25}),
        ("int32", "Greater", np.array(3, np.int32), {3, 4, 2}),
        ("string", "Equal", np.array("en", object), {"en", "en_"}),
        ("bool", "Equal", np.array([True])[0], {True, False}),
    ],
)
def test_every_type_takes_each_side(
    kind: str, compare: str, constant: np.ndarray, wanted: set[object], tmp_path: Path
) -> None:
    text = f"""g (float[2] x, {kind} flag) => (float[2] y) {{
      is = {compare}(flag, c) zero = Sub(x, x) y = Where(is, x, zero) }}"""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 19]>\n' + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constant), "c"))
    onnx.save(model, tmp_path / "m.onnx")
    assert seen(load_onnx(tmp_path / "m.onnx"), "flag") == wanted


def test_combinations_of_two_inputs_all_run(tmp_path: Path) -> None:
    text = """g (float[2] x, bool a, int64 b) => (float[2] y) <int64 two = {2}> {
      is = Equal(b, two) both = And(a, is) zero = Sub(x, x) y = Where(both, x, zero) }"""
    loaded = load(tmp_path, text)
    cases = cases_of(loaded)
    made = [loaded.feeder.make(sizes, padding, seed=100 + place) for place, (sizes, padding) in enumerate(cases)]
    assert {(bool(one["a"]), int(one["b"])) for one in made} == {(a, b) for a in (True, False) for b in (2, 3)}


def test_a_value_that_does_not_run_is_named(tmp_path: Path) -> None:
    """At 4 the Reshape does not fit."""
    text = """g (float[3,5] x, int64[1] k) => (float[m,n] y) <int64[1] three = {3}, int64[1] rest = {-1}> {
      is = Less(k, three) shape = Concat<axis = 0>(rest, k) y = Reshape(x, shape) never = Where(is, k, three) }"""
    notes = load(tmp_path, text).notes
    assert "input 'k' does not run at 4: nothing is proved there" in notes


def test_what_no_input_decides_is_named(tmp_path: Path) -> None:
    text = """g (float[b,6] x) => (float[b,6] y) <float big = {1000000.0}> {
      top = ReduceMax<keepdims = 0>(x) is = Greater(top, big)
      y = If(is) <then_branch = t () => (float[b,6] p) { p = Add(x, x) },
                  else_branch = e () => (float[b,6] q) { q = Neg(x) }>
    }"""
    loaded = load(tmp_path, text)
    notes = branches_not_run(loaded, cases_of(loaded))
    assert len(notes) == 1
    assert "1 branches (then of" in notes[0]
    assert "--value or --feeds" in notes[0]
