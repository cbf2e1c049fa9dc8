import numpy as np
import pytest

from tests.support.rules import run_passes

SPELLINGS = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", 1.0),
    "operands swapped": ("s = Sigmoid(x) y = Mul(s, x)", 1.0),
    "quick gelu": ("z = Mul(x, alpha) s = Sigmoid(z) y = Mul(x, s)", 1.702),
    "factor in front": ("z = Mul(alpha, x) s = Sigmoid(z) y = Mul(s, x)", 1.702),
}


def graph(body: str, kind: str = "float", outputs: str = "") -> str:
    return f"""
    g ({kind}[batch,sequence,4] x) => ({kind}[batch,sequence,4] y{outputs}) <float alpha = {{1.702}}> {{ {body} }}"""


@pytest.mark.parametrize(("body", "alpha"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_takes_the_kernel(body: str, alpha: float) -> None:
    outcome = run_passes(graph(body), "lower-silu", "lower-silu")
    assert outcome.ops == ["com.microsoft::QuickGelu"]
    assert outcome.attributes("QuickGelu")["alpha"] == pytest.approx(alpha)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    values = np.linspace(-90, 90, 36, dtype=np.float32).reshape(1, 9, 4)
    assert outcome.worst_error_at(1, 9, x=values) < 1e-5


def test_is_read_back_as_a_gate() -> None:
    outcome = run_passes(graph(SPELLINGS["quick gelu"][0]), "lower-silu", "raise-quick-gelu", "lower-silu")
    assert [entry.applied for entry in outcome.entries] == [1, 1, 1]


def test_holds_back_on_half_precision_and_shared_gates() -> None:
    body = SPELLINGS["silu"][0]
    assert run_passes(graph(body, "float16"), "lower-silu").reasons == ["x is FLOAT16; the CPU kernel takes float32"]
    shared = graph(body, outputs=", float[batch,sequence,4] s")
    assert run_passes(shared, "lower-silu").reasons == ["an inner value is also used elsewhere or is a graph output"]
