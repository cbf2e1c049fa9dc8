"""All embeddings of a text in one kernel, whatever the order of addition."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rules import Outcome, run_passes

RNG = np.random.default_rng(2)
WEIGHTS = {
    "words": RNG.standard_normal((2, 8)).astype(np.float32),
    "kinds": RNG.standard_normal((2, 8)).astype(np.float32),
    "places": RNG.standard_normal((1, 200, 8)).astype(np.float32),
    "spots": RNG.standard_normal((2, 8)).astype(np.float32),
    "gamma": np.linspace(0.5, 2, 8, dtype=np.float32),
    "beta": np.linspace(-1, 1, 8, dtype=np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
    "first": np.array([1]),
}
INPUTS = "int64[batch,sequence] ids, int64[batch,sequence] types"
LOOKUPS = """
w = Gather (words, ids) k = Gather (kinds, types) n = Shape <start = 1, end = 2> (ids)
p = Slice (places, zero, n, one, first)
"""
NORM = "y = LayerNormalization <epsilon = 0.01> (s, gamma, beta)"


def run(nodes: str, outputs: str = "float[batch,sequence,8] y") -> Outcome:
    text = f"g ({INPUTS}) => ({outputs}) {{ {nodes} }}"
    used = {name: array for name, array in WEIGHTS.items() if f"({name}" in text or f" {name}" in text}
    return run_passes(text, "lower-embed-norm", "lower-embed-norm", weights=used)


@pytest.mark.parametrize(
    "sums",
    ["t = Add (w, k) s = Add (t, p)", "t = Add (w, p) s = Add (t, k)", "t = Add (k, p) s = Add (w, t)"],
)
def test_three_tables_become_one_kernel(sums: str) -> None:
    outcome = run(f"{LOOKUPS} {sums} {NORM}")
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert sorted(outcome.ops) == ["Cast", "Cast", "com.microsoft::EmbedLayerNormalization"]
    assert outcome.worst_error() < 1e-5
    assert not outcome.rolled_back


def test_words_and_columns_alone() -> None:
    outcome = run(f"{LOOKUPS} s = Add (w, p) {NORM}")
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5


def test_positions_that_are_looked_up() -> None:
    outcome = run(f"w = Gather (words, ids) q = Gather (spots, types) s = Add (w, q) {NORM}")
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (f"{LOOKUPS} t = Add (w, k) s = Add (t, p) {NORM}", "float[batch,sequence,8] y, float[batch,sequence,8] s"),
        (f"{LOOKUPS} u = Relu (w) s = Add (u, p) {NORM}", "float[batch,sequence,8] y"),
        (f"{LOOKUPS} s = Add (w, p) y = LayerNormalization (s, gamma)", "float[batch,sequence,8] y"),
        (f"w = Gather (words, ids) s = Relu (w) {NORM}", "float[batch,sequence,8] y"),
    ],
)
def test_what_the_kernel_does_not_do_stays(nodes: str, outputs: str) -> None:
    assert run(nodes, outputs).entries[0].applied == 0
