import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, names_read, run_passes

WEIGHTS: dict[str, Array] = {
    "last": np.array([-1]),
    "second": np.array([1]),
    "first": np.array([0]),
    "tiny": np.array(1e-12, np.float32),
    "small": np.array(1e-9, np.float32),
    "large": np.array(0.1, np.float32),
    "negative": np.array(-1.0, np.float32),
}
SPELLINGS = {
    "Clip": "n = ReduceL2<keepdims=1>(x, last) c = Clip(n, tiny) y = Div(x, c)",
    "Max": "n = ReduceL2<keepdims=1>(x, last) c = Max(n, tiny) y = Div(x, c)",
    "Max, bound first": "n = ReduceL2<keepdims=1>(x, second) c = Max(tiny, n) y = Div(x, c)",
}


def run(nodes: str, *steps: str, inputs: str = "float[batch,4] x", opset: int = 23) -> Outcome:
    text = f"g ({inputs}) => (float y) {{ {nodes} }}"
    used = {name: array for name, array in WEIGHTS.items() if f"{name})" in text or f"{name}," in text}
    return run_passes(text, *(steps or ("lower-normalize",)), weights=used, opset=opset)


@pytest.mark.parametrize("nodes", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_normalises_in_one_node(nodes: str) -> None:
    outcome = run(nodes, "lower-normalize", "lower-normalize")
    assert outcome.ops == ["LpNormalization"]
    assert outcome.attributes("LpNormalization") == {"axis": -1, "p": 2}
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-6
    zero_and_short = np.stack([np.zeros(4), np.full(4, 1e-6), np.ones(4)]).astype(np.float32)
    assert outcome.worst_error_at(3, 1, x=zero_and_short) < 1e-6


def test_takes_the_axes_as_attributes_below_opset_18() -> None:
    outcome = run("n = ReduceL2<keepdims=1, axes=[-1]>(x) c = Clip(n, tiny) y = Div(x, c)", opset=17)
    assert outcome.ops == ["LpNormalization"]
    assert outcome.worst_error() < 1e-6


HELD_BACK = {
    "another axis": (SPELLINGS["Clip"].replace("last", "first"), "float[batch,4] x", "normalises axes (0,)"),
    "a large bound": (
        SPELLINGS["Clip"].replace("tiny", "large"),
        "float[batch,4] x",
        "the bound is large enough to change vectors",
    ),
    "a shared norm": (
        SPELLINGS["Clip"] + " z = Neg(n)",
        "float[batch,4] x",
        "an inner value is also used elsewhere or is a graph output",
    ),
}


@pytest.mark.parametrize(("nodes", "inputs", "reason"), HELD_BACK.values(), ids=HELD_BACK.keys())
def test_holds_back_with_the_reason(nodes: str, inputs: str, reason: str) -> None:
    text = f"g ({inputs}) => (float y{', float z' if ' z = ' in nodes else ''}) {{ {nodes} }}"
    used = {name: array for name, array in WEIGHTS.items() if f"{name})" in text or f"{name}," in text}
    outcome = run_passes(text, "lower-normalize", weights=used)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


def test_holds_back_on_double_precision() -> None:
    text = f"g (double[batch,4] x) => (double y) {{ {SPELLINGS['Clip']} }}"
    outcome = run_passes(text, "lower-normalize", weights={"last": WEIGHTS["last"], "tiny": np.array(1e-12)})
    assert outcome.reasons == ["x is DOUBLE; the CPU kernel takes float32"]


def test_the_norm_of_another_vector_is_no_normalization() -> None:
    outcome = run(SPELLINGS["Clip"].replace("Div(x, c)", "Div(z, c)"), inputs="float[batch,4] x, float[batch,4] z")
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])


COUNTS = {
    "Clip": "c = Clip(count, small) d = Div(x, c) y = LpNormalization<axis=-1, p=2>(d)",
    "Max": "c = Max(small, count) d = Div(x, c) y = LpNormalization(d)",
}
COUNTED = "float[batch,4] x, float[batch,1] count"


@pytest.mark.parametrize("nodes", COUNTS.values(), ids=COUNTS.keys())
def test_drops_a_count_that_cancels(nodes: str) -> None:
    outcome = run(nodes, "drop-scale-before-normalize", "drop-scale-before-normalize", inputs=COUNTED)
    assert outcome.ops == ["LpNormalization"]
    assert names_read(outcome.model.graph.node(0))[0] == "x"
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-6
    assert outcome.worst_error_at(2, 1, count=np.array([[7], [1]], np.float32)) < 1e-6


def test_the_count_may_serve_others() -> None:
    text = f"g ({COUNTED}) => (float y, float c) {{ {COUNTS['Clip']} }}"
    outcome = run_passes(text, "drop-scale-before-normalize", weights={"small": WEIGHTS["small"]})
    assert outcome.ops == ["Clip", "LpNormalization"]
    assert outcome.worst_error() < 1e-6


COUNT_HELD_BACK = {
    "may be negative": (COUNTS["Clip"].replace("small", "negative"), COUNTED, "the divisor may be negative"),
    "varies": (COUNTS["Clip"], "float[batch,4] x, float[batch,4] count", "the divisor varies along the vector"),
}


@pytest.mark.parametrize(("nodes", "inputs", "reason"), COUNT_HELD_BACK.values(), ids=COUNT_HELD_BACK.keys())
def test_keeps_a_divisor_that_does_not_cancel(nodes: str, inputs: str, reason: str) -> None:
    outcome = run(nodes, "drop-scale-before-normalize", inputs=inputs)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])


@pytest.mark.parametrize(
    "nodes",
    [
        COUNTS["Clip"].replace("p=2", "p=1"),
        COUNTS["Clip"].replace("axis=-1", "axis=0"),
        COUNTS["Clip"].replace("Div(x, c)", "Div(c, x)"),
        "d = Div(x, count) y = LpNormalization<axis=-1, p=2>(d)",
    ],
)
def test_keeps_the_division_before_another_norm_or_by_an_unknown_sign(nodes: str) -> None:
    outcome = run(nodes, "drop-scale-before-normalize", inputs=COUNTED)
    assert (outcome.entry.applied, outcome.entry.refused) == (0, [])
