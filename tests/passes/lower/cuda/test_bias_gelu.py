"""Bias and Gelu in one kernel: both forms, and what stays apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rules import run_passes

BIAS = {"bias": np.linspace(-1, 1, 6, dtype=np.float32)}


def graph(nodes: str) -> str:
    return f"g (float[batch,sequence,6] x) => (float y) {{ {nodes} }}"


@pytest.mark.parametrize(("approximate", "kernel"), [("none", "BiasGelu"), ("tanh", "FastGelu")])
def test_the_activation_takes_the_bias(approximate: str, kernel: str) -> None:
    nodes = f's = Add(x, bias) y = Gelu<approximate="{approximate}">(s)'
    outcome = run_passes(graph(nodes), "lower-bias-gelu", "lower-bias-gelu", weights=BIAS)
    assert outcome.ops == [f"com.microsoft::{kernel}"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-6


def test_a_bias_of_another_shape_stays() -> None:
    weights = {"bias": np.ones((1, 6), np.float32)}
    outcome = run_passes(graph("s = Add(x, bias) y = Gelu(s)"), "lower-bias-gelu", weights=weights)
    assert outcome.reasons == ["the bias is not one number per channel"]
