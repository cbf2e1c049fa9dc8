import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import run_passes

CONSTANTS: dict[str, Array] = {
    name: np.array(number, np.float32)
    for name, number in {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6, "five": 5, "four": 4}.items()
}
SPELLINGS = {
    "Paddle": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "gate first": "a = Add(three, x) c = Clip(a, zero, six) g = Mul(c, sixth) y = Mul(x, g)",
    "gate divided": "a = Add(x, three) c = Clip(a, zero, six) g = Div(c, six) y = Mul(g, x)",
    "x scaled": "a = Add(x, three) c = Clip(a, zero, six) s = Mul(x, sixth) y = Mul(s, c)",
    "HardSigmoid": "g = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, g)",
}
OTHERS = {
    "another shift": "a = Add(x, four) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "another bound": "a = Add(x, three) c = Clip(a, zero, five) m = Mul(x, c) y = Div(m, six)",
    "another factor": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, five)",
    "another gate": "g = HardSigmoid<alpha=0.2, beta=0.5>(x) y = Mul(x, g)",
    "no lower bound": "a = Add(x, three) c = Clip(a, , six) m = Mul(x, c) y = Div(m, six)",
}


def used(body: str) -> dict[str, Array]:
    return {name: array for name, array in CONSTANTS.items() if name in body}


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_one_operator(body: str) -> None:
    text = f"g (float[batch,4,height] x) => (float[batch,4,height] y) {{ {body} }}"
    outcome = run_passes(text, "fuse-hard-swish", "fuse-hard-swish", "remove-unused", weights=used(body))
    assert [entry.applied for entry in outcome.entries][:2] == [1, 0]
    assert outcome.ops == ["HardSwish"]
    assert outcome.worst_error() <= 1e-6


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_others_stay(body: str) -> None:
    text = f"g (float[batch,4,height] x) => (float[batch,4,height] y) {{ {body} }}"
    outcome = run_passes(text, "fuse-hard-swish", weights=used(body))
    assert "HardSwish" not in outcome.ops
    assert outcome.rolled_back == []


@pytest.mark.parametrize("wide", ["three", "six"])
def test_a_constant_that_adds_axes_holds_back(wide: str) -> None:
    body = "a = Add(x, three) c = Clip(a, zero, top) m = Mul(x, c) y = Div(m, six)"
    weights = {**used(body), "top": np.array(6, np.float32)}
    weights[wide] = weights[wide].reshape(1, 1, 1)
    outcome = run_passes(f"g (float[batch,4] x) => (float y) {{ {body} }}", "fuse-hard-swish", weights=weights)
    assert outcome.rolled_back == []
    assert outcome.reasons == ["a constant of shape [1, 1, 1] meets a value of rank 2, which gets more axes"]
