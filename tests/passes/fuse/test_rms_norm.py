"""RMSNorm in every spelling becomes one operator; what only looks like it stays.

Covers: passes/words/norms.py
"""

from typing import Any

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes


def weights(**more: Array) -> dict[str, Array]:
    return {
        "gamma": np.random.default_rng(0).standard_normal(6).astype(np.float32),
        "last": np.array([-1]),
        "second": np.array([2]),
        "middle": np.array([1]),
        "two": np.array(2, np.float32),
        "half": np.array(0.5, np.float32),
        "minus": np.array(-0.5, np.float32),
        "one": np.array(1, np.float32),
        "epsilon": np.array(1e-3, np.float32),
        "column": np.array([0, -1, 1]),
        **more,
    }


POWER = "p = Pow(x, two) m = ReduceMean(p, last) e = Add(m, epsilon)"
SPELLINGS = {
    "rsqrt": f"{POWER} r = Sqrt(e) i = Reciprocal(r) n = Mul(x, i) y = Mul(n, gamma)",
    "rsqrt, gamma first": f"{POWER} r = Sqrt(e) i = Reciprocal(r) n = Mul(i, x) y = Mul(gamma, n)",
    "one by the root": f"{POWER} r = Sqrt(e) i = Div(one, r) n = Mul(x, i) y = Mul(n, gamma)",
    "power of minus one half": f"{POWER} i = Pow(e, minus) n = Mul(x, i) y = Mul(n, gamma)",
    "division": f"{POWER} r = Pow(e, half) n = Div(x, r) y = Mul(n, gamma)",
    "squares by Mul": f"{POWER.replace('Pow(x, two)', 'Mul(x, x)')} r = Sqrt(e) n = Div(x, r) y = Mul(n, gamma)",
    "flax": f"{POWER} r = Sqrt(e) i = Reciprocal(r) g = Mul(i, gamma) y = Mul(x, g)",
    "the axis given back": "p = Mul(x, x) k = ReduceMean<keepdims=0>(p, last) m = Reshape(k, column) "
    "e = Add(m, epsilon) r = Sqrt(e) i = Reciprocal(r) g = Mul(i, gamma) y = Mul(x, g)",
    "axis by its number": f"{POWER.replace('last', 'second')} r = Sqrt(e) n = Div(x, r) y = Mul(n, gamma)",
}


def run(nodes: str, *steps: str, outputs: str = "float y", opset: int = 23, **more: Array) -> Outcome:
    text = f"g (float[batch,sequence,6] x) => ({outputs}) {{ {nodes} }}"
    used = {name: array for name, array in weights(**more).items() if name in text}
    return run_passes(text, *(steps or ("fuse-rms-norm",)), weights=used, opset=opset)


@pytest.mark.parametrize("nodes", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_fires_on_every_spelling(nodes: str) -> None:
    outcome = run(nodes, "fuse-rms-norm", "fuse-rms-norm")
    assert outcome.ops == ["RMSNormalization"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.attributes("RMSNormalization")["epsilon"] == pytest.approx(1e-3)
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


HELD_BACK = {
    "another axis": (SPELLINGS["rsqrt"].replace("last", "middle"), {}, "reduces axis 1, not the last"),
    "a gamma per token": (
        SPELLINGS["rsqrt"],
        {"gamma": np.ones((1, 1, 6), np.float32)},
        "gamma has shape (1, 1, 6), needs [6]",
    ),
    "a scalar gamma": (SPELLINGS["rsqrt"], {"gamma": np.array(3, np.float32)}, "gamma has shape (), needs [6]"),
    "a shared root": (
        SPELLINGS["rsqrt"] + " z = Neg(r)",
        {},
        "an inner value is also used elsewhere or is a graph output",
    ),
}


@pytest.mark.parametrize(("nodes", "more", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(nodes: str, more: dict[str, Any], reason: str) -> None:
    outcome = run(nodes, outputs="float y, float z" if " z = " in nodes else "float y", **more)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_holds_back_below_opset_23() -> None:
    assert run(SPELLINGS["rsqrt"], opset=22).reasons == ["opset 22, needs 23"]


def test_a_root_that_is_divided_by_x_is_not_a_norm() -> None:
    outcome = run(f"{POWER} r = Sqrt(e) n = Div(r, x) y = Mul(n, gamma)")
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_holds_back_when_the_lost_axis_is_not_given_back() -> None:
    text = "g (float[6,6] x) => (float y) { p = Mul(x, x) m = ReduceMean<keepdims=0>(p, last) e = Add(m, epsilon) "
    text += "r = Sqrt(e) n = Div(x, r) y = Mul(n, gamma) }"
    used = {name: array for name, array in weights().items() if name in text}
    outcome = run_passes(text, "fuse-rms-norm", weights=used)
    assert outcome.reasons == ["the mean is not known to keep its axis"]


def test_holds_back_when_a_constant_has_more_axes() -> None:
    nodes = f"{POWER} r = Sqrt(e) i = Div(one, r) n = Mul(x, i) y = Mul(n, gamma)"
    outcome = run(nodes, one=np.ones((1, 1, 1, 1), np.float32))
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
