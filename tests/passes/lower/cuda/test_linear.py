"""Products of tokens in their own shape, so that kernels behind them can take the bias."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rules import Outcome, run_passes

RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.standard_normal((6, 8)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "flat": np.array([-1, 6]),
    "eight": np.array([8]),
}
SHAPE = "n = Shape <end = 2> (x) s = Concat <axis = 0> (n, eight)"


def run(nodes: str, output: str = "float[batch,sequence,8] y") -> Outcome:
    text = f"g (float[batch,sequence,6] x) => ({output}) {{ {nodes} }}"
    used = {name: array for name, array in WEIGHTS.items() if f"({name}" in text or f" {name}" in text}
    return run_passes(text, "spread-linear", "lower-bias-gelu", weights=used)


@pytest.mark.parametrize(("product", "ops"), [("w, b", ["MatMul", "Add"]), ("w", ["MatMul"])])
def test_tokens_keep_their_shape(product: str, ops: list[str]) -> None:
    outcome = run(f"r = Reshape (x, flat) g = Gemm (r, {product}) {SHAPE} y = Reshape (g, s)")
    assert outcome.ops == ops
    assert outcome.worst_error() < 1e-5


def test_the_activation_takes_the_bias() -> None:
    outcome = run(f"r = Reshape (x, flat) g = Gemm (r, w, b) {SHAPE} h = Reshape (g, s) y = Gelu (h)")
    assert outcome.ops == ["MatMul", "com.microsoft::BiasGelu"]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"r = Reshape (x, flat) g = Gemm <alpha = 0.5> (r, w, b) {SHAPE} y = Reshape (g, s)", "scaled"),
        ("r = Reshape (x, flat) g = Gemm (r, w, b) y = Reshape (g, other)", "becomes"),
    ],
)
def test_what_is_no_plain_layer_stays(nodes: str, reason: str) -> None:
    text = f"g (float[batch,sequence,6] x) => (float y) {{ {nodes} }}"
    weights = {**WEIGHTS, "other": np.array([1, -1, 8])}
    used = {name: array for name, array in weights.items() if f"({name}" in text or f" {name}" in text}
    outcome = run_passes(text, "spread-linear", weights=used)
    assert outcome.entry.applied == 0
    assert any(reason in one for one in outcome.reasons)
