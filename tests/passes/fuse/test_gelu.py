import numpy as np
import pytest

from tests.support.rules import run_passes

SPELLINGS = {
    "half on x": "h = Mul(x, half) y = Mul(h, gate)",
    "half behind": "h = Mul(x, gate) y = Mul(h, half)",
    "half on the gate": "h = Mul(gate, half) y = Mul(x, h)",
    "operands swapped": "h = Mul(half, x) y = Mul(gate, h)",
    "a quotient": "h = Mul(x, gate) y = Div(h, two)",
    "x halved by Div": "h = Div(x, two) y = Mul(h, gate)",
    "the gate halved by Div": "h = Div(gate, two) y = Mul(x, h)",
}


def erf_gelu(tail: str, inner: str = "e = Div(x, root)", half: str = "0.5") -> str:
    return f"""
    g (float[batch,sequence,4] x) => (float[batch,sequence,4] y)
    <float half = {{{half}}}, float one = {{1.0}}, float root = {{1.4142135}}, float inverse = {{0.70710678}},
     float two = {{2.0}}> {{
      {inner}
      f = Erf(e)
      gate = Add(f, one)
      {tail}
    }}"""


@pytest.mark.parametrize("tail", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("inner", ["e = Div(x, root)", "e = Mul(x, inverse)", "e = Mul(inverse, x)"])
def test_fires_on_every_spelling_of_the_erf_form(tail: str, inner: str) -> None:
    outcome = run_passes(erf_gelu(tail, inner), "fuse-gelu")
    assert outcome.ops == ["Gelu"]
    assert outcome.model.graph.node(0).attributes["approximate"].value == "none"
    assert outcome.worst_error() < 1e-5


MIRRORED = {
    "negated first": "n = Neg(x) e = Div(n, root)",
    "negated behind": "m = Mul(x, inverse) e = Neg(m)",
    "a negative factor": "e = Mul(x, minus)",
}


@pytest.mark.parametrize("inner", MIRRORED.values(), ids=MIRRORED)
def test_fires_on_the_complementary_error_function(inner: str) -> None:
    text = f"""
    g (float[batch,sequence,4] x) => (float[batch,sequence,4] y)
    <float half = {{0.5}}, float one = {{1.0}}, float root = {{1.4142135}}, float inverse = {{0.70710678}},
     float minus = {{-0.70710678}}> {{ {inner} f = Erf(e) gate = Sub(one, f) h = Mul(x, half) y = Mul(h, gate) }}"""
    outcome = run_passes(text, "fuse-gelu", "fuse-gelu")
    assert outcome.ops == ["Gelu"]
    assert outcome.worst_error_at(3, 5) < 1e-5


@pytest.mark.parametrize("gate", ["Sub(f, one)", "Add(f, one)"])
def test_the_mirrored_error_function_is_taken_from_one(gate: str) -> None:
    text = f"""
    g (float[batch,4] x) => (float[batch,4] y)
    <float half = {{0.5}}, float one = {{1.0}}, float minus = {{-0.70710678}}> {{
      e = Mul(x, minus) f = Erf(e) gate = {gate} h = Mul(x, half) y = Mul(h, gate)
    }}"""
    assert run_passes(text, "fuse-gelu").entry.applied == 0


def test_a_second_run_changes_nothing() -> None:
    outcome = run_passes(erf_gelu(SPELLINGS["half on x"]), "fuse-gelu", "fuse-gelu")
    assert [entry.applied for entry in outcome.entries] == [1, 0]


def test_holds_back_when_the_half_is_another_number() -> None:
    outcome = run_passes(erf_gelu(SPELLINGS["half on x"], half="0.51"), "fuse-gelu")
    assert outcome.entry.applied == 0
    assert "Erf" in outcome.ops


def test_holds_back_below_opset_20_with_the_reason() -> None:
    outcome = run_passes(erf_gelu(SPELLINGS["half on x"]), "fuse-gelu", opset=17)
    assert outcome.reasons == ["opset 17, needs 20"]


def test_holds_back_when_the_gate_is_also_an_output() -> None:
    text = """
    g (float[batch,4] x) => (float[batch,4] y, float[batch,4] gate)
    <float half = {0.5}, float one = {1.0}, float root = {1.4142135}> {
      e = Div(x, root)
      f = Erf(e)
      gate = Add(f, one)
      h = Mul(x, half)
      y = Mul(h, gate)
    }"""
    outcome = run_passes(text, "fuse-gelu")
    assert outcome.entry.applied == 0
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


TANH = {
    "pow": "c = Pow(x, three) k = Mul(c, coefficient) s = Add(x, k) p = Mul(s, root)",
    "products": "d = Mul(x, x) c = Mul(d, x) k = Mul(coefficient, c) s = Add(k, x) p = Mul(root, s)",
    "JAX": "k = Mul(coefficient, x) d = Mul(x, k) c = Mul(x, d) s = Add(x, c) p = Mul(root, s)",
    "squares apart": "d = Mul(x, x) k = Mul(x, coefficient) c = Mul(k, d) s = Add(x, c) p = Mul(s, root)",
    "factored the other way": "d = Mul(x, x) k = Mul(d, coefficient) s = Add(k, one) a = Mul(root, s) p = Mul(a, x)",
    "factored": "a = Mul(x, root) d = Mul(x, coefficient) k = Mul(d, x) s = Add(k, one) p = Mul(a, s)",
}


@pytest.mark.parametrize("inner", TANH.values(), ids=TANH.keys())
def test_fires_on_every_spelling_of_the_tanh_form_and_keeps_the_approximation(inner: str) -> None:
    text = f"""
    g (float[batch,4] x) => (float[batch,4] y)
    <float half = {{0.5}}, float one = {{1.0}}, float three = {{3.0}}, float root = {{0.7978845608}},
     float coefficient = {{0.044715}}> {{
      {inner}
      t = Tanh(p)
      gate = Add(t, one)
      h = Mul(x, half)
      y = Mul(h, gate)
    }}"""
    outcome = run_passes(text, "fuse-gelu-tanh")
    assert outcome.ops == ["Gelu"]
    assert outcome.model.graph.node(0).attributes["approximate"].value == "tanh"
    assert outcome.worst_error() < 1e-5


ERF_BODY = "e = Div(x, root) f = Erf(e) gate = Add(f, one) h = Mul(x, half) y = Mul(h, gate)"
TANH_BODY = (
    "q = Mul(x, x) c = Mul(q, x) w = Mul(c, cubic) i = Add(x, w) r = Mul(i, root_2)"
    " t = Tanh(r) gate = Add(t, one) h = Mul(x, gate) y = Mul(h, half)"
)
NUMBERS = {"half": 0.5, "one": 1.0, "root": 2**0.5, "cubic": 0.044715, "root_2": (2 / np.pi) ** 0.5}


@pytest.mark.parametrize(("body", "step"), [(ERF_BODY, "fuse-gelu"), (TANH_BODY, "fuse-gelu-tanh")])
@pytest.mark.parametrize("shape", ["4", "batch,1", "batch,sequence,4", "batch,2,sequence,4"])
@pytest.mark.parametrize("wide", [0, 1, 3])
def test_constants_of_any_rank_are_numbers_until_they_add_axes(body: str, step: str, shape: str, wide: int) -> None:
    """A half of shape [1, 1, 1] makes [1, rows, columns] of a matrix."""
    rank = len(shape.split(","))
    weights = {name: np.array(number, np.float32) for name, number in NUMBERS.items() if f" {name})" in body}
    for name, array in weights.items():
        used = {**weights, name: array.reshape((1,) * wide)}
        outcome = run_passes(f"g (float[{shape}] x) => (float y) {{ {body} }}", step, weights=used)
        assert outcome.rolled_back == []
        assert outcome.entry.applied == (wide <= rank)
        if wide > rank:
            assert outcome.reasons[0].startswith(f"a constant of shape {[1] * wide} meets a value of rank")
        else:
            assert outcome.worst_error_at(3, 5) < 1e-5
