"""Residual, bias and normalization in one kernel, with and without other readers of the sum."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rules import run_passes

WEIGHTS = {
    "gamma": np.linspace(0.5, 2, 6, dtype=np.float32),
    "beta": np.linspace(-1, 1, 6, dtype=np.float32),
    "bias": np.linspace(3, -2, 6, dtype=np.float32),
}
INPUTS = "float[batch,sequence,6] x, float[batch,sequence,6] h, float[1,1,6] narrow"


def graph(nodes: str, outputs: str = "float y") -> str:
    return f"g ({INPUTS}) => ({outputs}) {{ {nodes} }}"


def used(text: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in WEIGHTS.items() if name in text}


@pytest.mark.parametrize(
    ("nodes", "kernel", "inputs"),
    [
        ("s = Add(x, h) y = LayerNormalization<epsilon=0.25>(s, gamma, beta)", "SkipLayerNormalization", 4),
        ("s = Add(x, h) y = LayerNormalization<epsilon=0.25>(s, gamma)", "SkipLayerNormalization", 3),
        ("i = Add(x, bias) s = Add(h, i) y = LayerNormalization(s, gamma, beta)", "SkipLayerNormalization", 5),
        ("s = Add(x, h) y = RMSNormalization<epsilon=0.25>(s, gamma)", "SkipSimplifiedLayerNormalization", 3),
        ("i = Add(bias, x) s = Add(i, h) y = RMSNormalization(s, gamma)", "SkipSimplifiedLayerNormalization", 4),
    ],
)
def test_the_normalization_takes_what_is_added(nodes: str, kernel: str, inputs: int) -> None:
    text = graph(nodes)
    outcome = run_passes(text, "lower-skip-norm", "lower-skip-norm", weights=used(text), opset=23)
    assert outcome.ops == [f"com.microsoft::{kernel}"]
    assert len(outcome.model.graph.node(0).inputs) == inputs
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("norm", ["LayerNormalization(s, gamma, beta)", "RMSNormalization(s, gamma)"])
def test_a_sum_with_other_readers_comes_out_too(norm: str) -> None:
    text = graph(f"i = Add(x, bias) s = Add(i, h) early = Relu(s) y = {norm}", "float y, float early, float s")
    outcome = run_passes(text, "lower-skip-norm", weights=used(text), opset=23)
    assert sorted(outcome.ops) == sorted(["Relu", outcome.ops[0]])
    assert outcome.ops[0].startswith("com.microsoft::Skip")
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Add(x, narrow) y = LayerNormalization(s, gamma, beta)",
        "s = Mul(x, h) y = LayerNormalization(s, gamma, beta)",
        "s = Add(x, h) y = LayerNormalization<axis=1>(s, wide, wide)",
    ],
)
def test_what_the_kernel_does_not_know_stays(nodes: str) -> None:
    text = graph(nodes).replace("[batch,sequence,6]", "[batch,5,6]")
    weights = used(text) | ({"wide": np.ones((5, 6), np.float32)} if "wide" in text else {})
    outcome = run_passes(text, "lower-skip-norm", weights=weights)
    assert [entry.applied for entry in outcome.entries] == [0]


def test_a_bias_that_others_read_stays_outside() -> None:
    text = graph(
        "i = Add(x, bias) s = Add(i, h) y = LayerNormalization(s, gamma, beta) z = Relu(i)", "float y, float z"
    )
    outcome = run_passes(text, "lower-skip-norm", weights=used(text))
    assert sorted(outcome.ops) == ["Add", "Relu", "com.microsoft::SkipLayerNormalization"]
    assert outcome.worst_error() < 1e-5
