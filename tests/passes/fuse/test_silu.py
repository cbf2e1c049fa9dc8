import numpy as np
import pytest

from tests.support.rules import run_passes

SPELLINGS = {
    "quotient": "n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d)",
    "reciprocal": "n = Neg(x) e = Exp(n) d = Add(one, e) i = Reciprocal(d) y = Mul(i, x)",
    "inverse": "n = Neg(x) e = Exp(n) d = Add(one, e) i = Div(one, d) y = Mul(x, i)",
    "minus one": "n = Mul(x, minus) e = Exp(n) d = Add(one, e) y = Div(x, d)",
    "operator": "y = Swish(x)",
}
SCALED = {
    "factor first": "z = Mul(x, alpha) n = Neg(z) e = Exp(n) d = Add(e, one) y = Div(x, d)",
    "factor behind": "n = Neg(x) z = Mul(n, alpha) e = Exp(z) d = Add(e, one) y = Div(x, d)",
    "one factor": "z = Mul(minus_alpha, x) e = Exp(z) d = Add(e, one) y = Div(x, d)",
    "operator": "y = Swish<alpha = 1.702>(x)",
}


def graph(body: str) -> str:
    return f"""
    g (float[batch,sequence,4] x) => (float[batch,sequence,4] y)
    <float one = {{1.0}}, float minus = {{-1.0}}, float alpha = {{1.702}}, float minus_alpha = {{-1.702}}> {{ {body} }}
    """


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_writes_every_spelling_as_a_gate(body: str) -> None:
    outcome = run_passes(graph(body), "fuse-silu", "fuse-silu", opset=24)
    assert outcome.ops == ["Sigmoid", "Mul"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    values = np.linspace(-200, 90, 36, dtype=np.float32).reshape(1, 9, 4)
    assert outcome.worst_error_at(1, 9, x=values) < 1e-5


@pytest.mark.parametrize("body", SCALED.values(), ids=SCALED.keys())
def test_keeps_the_factor(body: str) -> None:
    outcome = run_passes(graph(body), "fuse-silu", "fuse-silu", opset=24)
    assert outcome.ops == ["Mul", "Sigmoid", "Mul"]
    assert outcome.constant("Mul", 1) == pytest.approx(1.702)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


def test_holds_back_when_the_sigmoid_is_also_used_elsewhere() -> None:
    body = "n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d)"
    text = graph(body).replace(
        "=> (float[batch,sequence,4] y)", "=> (float[batch,sequence,4] y, float[batch,sequence,4] d)"
    )
    assert run_passes(text, "fuse-silu").reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_holds_back_when_another_number_is_added() -> None:
    text = graph("n = Neg(x) e = Exp(n) d = Add(e, alpha) y = Div(x, d)")
    assert run_passes(text, "fuse-silu").entry.applied == 0


def test_a_constant_that_adds_axes_holds_back() -> None:
    text = "g (float[batch,4] x) => (float y) { n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d) }"
    outcome = run_passes(text, "fuse-silu", weights={"one": np.ones((1, 1, 1), np.float32)})
    assert outcome.rolled_back == []
    assert outcome.reasons == ["a constant of shape [1, 1, 1] meets a value of rank 2, which gets more axes"]
