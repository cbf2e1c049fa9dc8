from typing import Any

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes


def weights(**more: Array) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        "gamma": generator.standard_normal(6).astype(np.float32),
        "beta": generator.standard_normal(6).astype(np.float32),
        "last": np.array([-1]),
        "second": np.array([2]),
        "middle": np.array([1]),
        "two": np.array(2, np.float32),
        "half": np.array(0.5, np.float32),
        "epsilon": np.array(1e-3, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "column": np.array([0, 0, 1]),
        **more,
    }


MEAN = "mean = ReduceMean(x, last) d = Sub(x, mean)"
VARIANCE = "p = Pow(d, two) v = ReduceMean(p, last) e = Add(v, epsilon) r = Sqrt(e)"
AFFINE = "s = Mul(n, gamma) y = Add(s, beta)"
SPELLINGS = {
    "torch": f"{MEAN} {VARIANCE} n = Div(d, r) {AFFINE}",
    "squares by Mul": f"{MEAN} {VARIANCE.replace('Pow(d, two)', 'Mul(d, d)')} n = Div(d, r) {AFFINE}",
    "root by Pow": f"{MEAN} {VARIANCE.replace('Sqrt(e)', 'Pow(e, half)')} n = Div(d, r) {AFFINE}",
    "reciprocal": f"{MEAN} {VARIANCE} i = Reciprocal(r) n = Mul(d, i) {AFFINE}",
    "epsilon first": f"{MEAN} {VARIANCE.replace('Add(v, epsilon)', 'Add(epsilon, v)')} n = Div(d, r) {AFFINE}",
    "constants first": f"{MEAN} {VARIANCE} n = Div(d, r) s = Mul(gamma, n) y = Add(beta, s)",
    "axis by its number": f"{MEAN} {VARIANCE} n = Div(d, r) {AFFINE}".replace("last", "second"),
}

KEPT = "m = ReduceMean<keepdims=1>(x, last) q = Mul(x, x) k = ReduceMean<keepdims=1>(q, last) mm = Mul(m, m)"
FLAX = (
    "mean = ReduceMean<keepdims=0>(x, last) q = Mul(x, x) k = ReduceMean<keepdims=0>(q, last) mm = Mul(mean, mean) "
    "raw = Sub(k, mm) v0 = Max(zero, raw) v = Reshape(v0, column) e = Add(v, epsilon) r = Sqrt(e) i = Reciprocal(r) "
    "g = Mul(i, gamma) m = Reshape(mean, column) d = Sub(x, m)"
)
ROOT = "e = Add(v, epsilon) r = Sqrt(e)"
MOMENTS = {
    "flax": f"{FLAX} s = Mul(d, g) y = Add(s, beta)",
    "flax, unsqueezed": f"{FLAX} s = Mul(d, g) y = Add(beta, s)".replace("Reshape", "Unsqueeze").replace(
        "column", "last"
    ),
    "the axis kept": f"{KEPT} v = Sub(k, mm) {ROOT} d = Sub(x, m) n = Div(d, r) {AFFINE}",
    "held by Relu": f"{KEPT} w = Sub(k, mm) v = Relu(w) {ROOT} d = Sub(x, m) i = Div(one, r) n = Mul(i, d) {AFFINE}",
    "TensorFlow": f"{MEAN} {VARIANCE} i = Reciprocal(r) f = Mul(i, gamma) a = Mul(x, f) b = Mul(mean, f) "
    "c = Sub(beta, b) y = Add(a, c)",
    "γ on the difference": f"{MEAN} {VARIANCE} i = Reciprocal(r) h = Mul(gamma, d) s = Mul(h, i) y = Add(s, beta)",
}


def graph(nodes: str, shape: str = "batch,sequence,6", outputs: str = "float y") -> str:
    return f"g (float[{shape}] x) => ({outputs}) {{ {nodes} }}"


def run(text: str, *steps: str, opset: int = 23, **more: Array) -> Outcome:
    used = {name: array for name, array in weights(**more).items() if name in text}
    return run_passes(text, *(steps or ("fuse-layer-norm", "fuse-layer-norm-bias")), weights=used, opset=opset)


@pytest.mark.parametrize("nodes", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_fires_on_every_spelling(nodes: str) -> None:
    again = ("fuse-layer-norm", "fuse-layer-norm-bias") * 2
    outcome = run(graph(nodes), *again)
    assert outcome.ops == ["LayerNormalization"]
    assert [entry.applied for entry in outcome.entries] == [1, 1, 0, 0]
    found = outcome.attributes("LayerNormalization")
    assert (found["axis"], found["stash_type"]) == (-1, 1)
    assert found["epsilon"] == pytest.approx(1e-3)
    assert outcome.worst_error() < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


@pytest.mark.parametrize("nodes", MOMENTS.values(), ids=MOMENTS)
def test_fires_on_the_moments_of_other_frameworks(nodes: str) -> None:
    outcome = run(graph(nodes), *("fuse-layer-norm", "fuse-layer-norm-bias") * 2)
    assert outcome.ops == ["LayerNormalization"]
    assert sum(entry.applied for entry in outcome.entries) == (1 if "Sub(beta" in nodes else 2)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 2e-5
    assert outcome.worst_error_at(3, 1) < 2e-5


def test_holds_back_when_a_reshape_puts_the_statistics_elsewhere() -> None:
    nodes = MOMENTS["flax"].replace("column", "row")
    outcome = run(graph(nodes, "6,6"), "fuse-layer-norm", row=np.array([1, -1]))
    assert outcome.reasons == ["the statistics are not known to keep their axis"]


def test_holds_back_when_the_lost_axis_is_not_given_back() -> None:
    nodes = MOMENTS["the axis kept"].replace("keepdims=1", "keepdims=0")
    outcome = run(graph(nodes, "6,6"), "fuse-layer-norm")
    assert outcome.reasons == ["the statistics are not known to keep their axis"]


CENTRED = {"torch": SPELLINGS["torch"]} | {name: MOMENTS[name] for name in ("TensorFlow", "γ on the difference")}


@pytest.mark.parametrize("nodes", CENTRED.values(), ids=CENTRED)
@pytest.mark.parametrize(("shape", "vector"), [("batch,6,sequence", (6, 1)), ("batch,6,height,5", (1, 6, 1, 1))])
def test_another_axis_is_turned_to_the_end(nodes: str, shape: str, vector: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    along: dict[str, Any] = {name: generator.standard_normal(vector).astype(np.float32) for name in ("gamma", "beta")}
    steps = ("fuse-layer-norm", "fuse-layer-norm-bias") * 2
    outcome = run(graph(nodes.replace("last", "middle"), shape), *steps, **along)
    assert outcome.ops == ["Transpose", "LayerNormalization", "Transpose"]
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert outcome.constant("LayerNormalization", 2).shape == (6,)
    assert outcome.worst_error_at(3, 4) < 2e-5


def test_a_difference_of_squares_over_another_axis_stays() -> None:
    nodes, column = MOMENTS["the axis kept"].replace("last", "middle"), np.ones((6, 1), np.float32)
    outcome = run(graph(nodes, "batch,6,sequence"), "fuse-layer-norm", gamma=column, beta=column)
    assert outcome.reasons[0].startswith("a difference of squares over another axis")


WIDE = {
    "an inverse": ("unit", f"{MEAN} {VARIANCE} i = Div(unit, r) n = Mul(d, i) y = Mul(n, gamma)"),
    "an epsilon": ("epsilon", f"{MEAN} {VARIANCE} n = Div(d, r) y = Mul(n, gamma)"),
}


@pytest.mark.parametrize(("name", "nodes"), WIDE.values(), ids=WIDE)
def test_holds_back_when_a_constant_has_more_axes(name: str, nodes: str) -> None:
    wide: dict[str, Any] = {name: np.ones((1, 1, 1, 1), np.float32)}
    outcome = run(graph(nodes), "fuse-layer-norm", **wide)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []


@pytest.mark.parametrize("nodes", [SPELLINGS["torch"], MOMENTS["TensorFlow"]], ids=["torch", "TensorFlow"])
def test_one_number_has_no_variance(nodes: str) -> None:
    one = np.array([1.5], np.float32)
    outcome = run(graph(nodes, "batch,sequence,1"), "fuse-layer-norm", gamma=one, beta=one)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []


def test_a_bias_along_another_axis_stays_behind_the_transpose() -> None:
    text = graph("n = LayerNormalization(x, gamma) t = Transpose<perm=[0,2,1]>(n) y = Add(t, beta)", "batch,6,6")
    outcome = run(text, "fuse-layer-norm-bias")
    assert outcome.reasons == ["beta has shape (6,), needs [6, 1]"]


def test_a_bias_with_more_axes_stays_outside() -> None:
    text = graph("n = LayerNormalization(x, gamma) y = Add(n, beta)", "batch,6")
    outcome = run(text, "fuse-layer-norm-bias", beta=np.ones((1, 1, 6), np.float32))
    assert outcome.reasons == ["β gives the result its axes"]


def test_holds_back_when_the_mean_behind_is_another() -> None:
    nodes = MOMENTS["TensorFlow"].replace("b = Mul(mean, f)", "b = Mul(v, f)")
    assert run(graph(nodes), "fuse-layer-norm").entry.applied == 0


def test_takes_the_axes_as_attributes_below_opset_18() -> None:
    nodes = SPELLINGS["torch"].replace("ReduceMean(x, last)", "ReduceMean<axes=[-1]>(x)")
    nodes = nodes.replace("ReduceMean(p, last)", "ReduceMean<axes=[-1]>(p)")
    outcome = run(graph(nodes), opset=17)
    assert outcome.ops == ["LayerNormalization"]
    assert outcome.worst_error() < 1e-5


def test_does_without_beta() -> None:
    outcome = run(graph(f"{MEAN} {VARIANCE} n = Div(d, r) y = Mul(n, gamma)"))
    assert outcome.ops == ["LayerNormalization"]
    assert [len(node.inputs) for node in outcome.model.graph] == [2]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_keeps_other_float_types(kind: str) -> None:
    dtype = np.dtype("float64" if kind == "double" else kind)
    cast: dict[str, Any] = {name: array.astype(dtype) for name, array in weights().items() if array.dtype == np.float32}
    outcome = run(graph(SPELLINGS["torch"]).replace("float[", f"{kind}[").replace("float y", f"{kind} y"), **cast)
    assert (outcome.ops, outcome.rolled_back) == (["LayerNormalization"], [])
    assert outcome.worst_error() < (1e-12 if kind == "double" else 1e-2)
    assert outcome.worst_error_at(2, 9) < (1e-12 if kind == "double" else 1e-2)


HELD_BACK = {
    "a gamma along another axis": (
        SPELLINGS["torch"].replace("last", "middle"),
        {},
        "gamma has shape (6,), needs [6, 1]",
    ),
    "an open axis": (
        SPELLINGS["torch"].replace("last", "first"),
        {"first": np.array([0]), "gamma": np.ones((1, 1, 1), np.float32)},
        "gamma has shape (1, 1, 1), needs [batch, 1, 1]",
    ),
    "two axes": (
        SPELLINGS["torch"].replace("last", "pair"),
        {"pair": np.array([1, 2])},
        "the statistics are not over the same one axis",
    ),
    "another axis for the variance": (
        SPELLINGS["torch"].replace("ReduceMean(p, last)", "ReduceMean(p, middle)"),
        {},
        "the statistics are not over the same one axis",
    ),
    "a scalar gamma": (SPELLINGS["torch"], {"gamma": np.array(2, np.float32)}, "gamma has shape (), needs [6]"),
    "a gamma per token": (
        SPELLINGS["torch"],
        {"gamma": np.ones((6, 6), np.float32)},
        "gamma has shape (6, 6), needs [6]",
    ),
    "a shared mean": (SPELLINGS["torch"] + " z = Neg(mean)", {}, "an inner value is also used elsewhere"),
}


@pytest.mark.parametrize(("nodes", "more", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(nodes: str, more: dict[str, Any], reason: str) -> None:
    outputs = "float y, float z" if " z = " in nodes else "float y"
    outcome = run(graph(nodes, "batch,6,6", outputs), "fuse-layer-norm", **more)
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    "nodes",
    [
        SPELLINGS["torch"].replace("Sub(x, mean)", "Sub(mean, x)"),
        SPELLINGS["torch"].replace("Div(d, r)", "Div(x, r)"),
        SPELLINGS["torch"].replace("Pow(d, two)", "Pow(d, half)").replace("Sub(x, mean)", "Abs(x)"),
    ],
)
def test_does_not_take_another_formula_for_it(nodes: str) -> None:
    outcome = run(graph(nodes), "fuse-layer-norm")
    if "Sub(mean, x)" in nodes:
        assert outcome.worst_error() < 1e-5
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


def test_holds_back_below_opset_17() -> None:
    nodes = SPELLINGS["torch"].replace("ReduceMean(x, last)", "ReduceMean<axes=[-1]>(x)")
    nodes = nodes.replace("ReduceMean(p, last)", "ReduceMean<axes=[-1]>(p)")
    outcome = run(graph(nodes), "fuse-layer-norm", opset=16)
    assert outcome.reasons == ["opset 16, needs 17"]


@pytest.mark.parametrize("beta", [np.ones((1, 1, 1), np.float32), np.ones(1, np.float32), np.ones((), np.float32)])
def test_a_bias_of_another_shape_stays_outside(beta: Array) -> None:
    text = graph("n = LayerNormalization(x, gamma) y = Add(n, beta)")
    outcome = run(text, "fuse-layer-norm-bias", beta=beta)
    assert outcome.ops == ["LayerNormalization", "Add"]
    assert outcome.reasons == [f"beta has shape {beta.shape}, needs [6]"]


def test_the_bias_keeps_the_attributes_of_the_norm() -> None:
    text = graph("n = LayerNormalization<axis=2, epsilon=0.25>(x, gamma) y = Add(beta, n)")
    outcome = run(text, "fuse-layer-norm-bias")
    assert outcome.ops == ["LayerNormalization"]
    assert outcome.attributes("LayerNormalization") == {"axis": 2, "epsilon": 0.25, "stash_type": 1}
    assert outcome.worst_error() < 1e-5


def test_a_norm_with_a_bias_takes_no_second_one() -> None:
    outcome = run(graph("n = LayerNormalization(x, gamma, beta) y = Add(n, beta)"), "fuse-layer-norm-bias")
    assert (outcome.entry.applied, outcome.ops) == (0, ["LayerNormalization", "Add"])


def test_a_norm_whose_mean_is_read_keeps_its_outputs() -> None:
    text = graph("n, mean = LayerNormalization(x, gamma) y = Add(n, beta)", outputs="float y, float mean")
    outcome = run(text, "fuse-layer-norm-bias")
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]
