"""A factor and a shift per channel go into the convolution ahead of them.

Covers: graph/filters.py
"""

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import run_passes

GENERATOR = np.random.default_rng(2)
WEIGHTS: dict[str, Array] = {
    "w": GENERATOR.standard_normal((6, 4, 3, 3)).astype(np.float32),
    "own": GENERATOR.standard_normal(6).astype(np.float32),
    "per": GENERATOR.standard_normal((1, 6, 1, 1)).astype(np.float32),
    "flat": GENERATOR.standard_normal((6, 1, 1)).astype(np.float32),
    "one": np.array(0.7, np.float32),
    "across": GENERATOR.standard_normal((6,)).astype(np.float32),
}
SPELLINGS = {
    "shift": ("c = Conv(x, w) y = Add(c, per)", 1),
    "shift of a bias": ("c = Conv(x, w, own) y = Add(flat, c)", 1),
    "factor": ("c = Conv(x, w, own) y = Mul(c, per)", 1),
    "one number": ("c = Conv(x, w) y = Mul(c, one)", 1),
    "both": ("c = Conv(x, w, own) m = Mul(c, per) y = Add(m, flat)", 2),
}


@pytest.mark.parametrize(("body", "times"), SPELLINGS.values(), ids=SPELLINGS)
def test_goes_into_the_weights(body: str, times: int) -> None:
    text = f"g (float[batch,4,height,height] x) => (float y) {{ {body} }}"
    weights = {name: array for name, array in WEIGHTS.items() if f" {name}" in body or f"({name}" in body}
    outcome = run_passes(text, "fold-conv-mul", "fold-conv-add", weights=weights)
    assert sum(entry.applied for entry in outcome.entries) == times
    assert outcome.ops == ["Conv"]
    assert outcome.worst_error() <= 1e-4


TRANSPOSED = {
    "shift": "c = ConvTranspose(x, v) y = Add(c, per)",
    "shift of a bias": "c = ConvTranspose<strides=[2,2], output_padding=[1,0]>(x, v, own) y = Add(flat, c)",
    "factor": "c = ConvTranspose<pads=[1,1,0,0]>(x, v, own) y = Mul(c, per)",
    "both in groups": "c = ConvTranspose<group=2>(x, u) m = Mul(c, per) y = Add(m, one)",
    "normalized": "c = ConvTranspose<group=2>(x, u) a = Add(c, per) y = BatchNormalization(a, own, own, own, var)",
}


@pytest.mark.parametrize("body", TRANSPOSED.values(), ids=TRANSPOSED)
def test_goes_into_a_transposed_convolution(body: str) -> None:
    given = WEIGHTS | {
        "v": GENERATOR.standard_normal((4, 6, 2, 3)).astype(np.float32),
        "u": GENERATOR.standard_normal((4, 3, 3, 2)).astype(np.float32),
        "var": GENERATOR.uniform(0.2, 2.0, 6).astype(np.float32),
    }
    text = f"g (float[batch,4,height,7] x) => (float y) {{ {body} }}"
    weights = {name: array for name, array in given.items() if f" {name}" in body or f"({name}" in body}
    outcome = run_passes(text, "fold-conv-mul", "fold-conv-add", "fold-batch-norm", "fold-conv-add", weights=weights)
    assert outcome.ops == ["ConvTranspose"]
    assert outcome.rolled_back == []
    assert outcome.entry.applied == 0
    assert outcome.worst_error_at(2, 5) <= 1e-4


@pytest.mark.parametrize(
    "body",
    ["c = Conv<pads=[1,1,1,1]>(x, w) y = Add(c, across)", "c = Conv(x, w) y = Add(c, per) z = Neg(c)"],
    ids=["along the width", "the convolution is read elsewhere"],
)
def test_others_stay(body: str) -> None:
    outputs = "(float y, float z)" if "z =" in body else "(float y)"
    size = "6,6" if "across" in body else "height,height"
    text = f"g (float[batch,4,{size}] x) => {outputs} {{ {body} }}"
    weights = {name: array for name, array in WEIGHTS.items() if f" {name}" in body}
    outcome = run_passes(text, "fold-conv-add", weights=weights)
    assert [entry.applied for entry in outcome.entries] == [0]
