"""The root mean square norm under the name that the CUDA provider knows."""

from __future__ import annotations

import numpy as np

from tests.support.rules import run_passes

GAMMA = {"gamma": np.linspace(0.5, 2, 6, dtype=np.float32)}


def test_the_operator_changes_and_the_answer_does_not() -> None:
    text = "g (float[batch,sequence,6] x) => (float y) { y = RMSNormalization <epsilon = 0.25> (x, gamma) }"
    outcome = run_passes(text, "lower-rms-norm", "lower-rms-norm", weights=GAMMA)
    assert outcome.ops == ["SimplifiedLayerNormalization"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5


def test_the_default_epsilon_is_kept() -> None:
    text = "g (float[batch,sequence,6] x) => (float y) { s = Mul (x, tiny) y = RMSNormalization (s, gamma) }"
    outcome = run_passes(text, "lower-rms-norm", weights={**GAMMA, "tiny": np.array(1e-3, np.float32)})
    assert outcome.worst_error() < 1e-5
    assert not outcome.rolled_back


def test_a_norm_over_two_axes_stays() -> None:
    text = "g (float[batch,5,6] x) => (float y) { y = RMSNormalization <axis = 1> (x, gamma) }"
    weights = {"gamma": np.ones((5, 6), np.float32)}
    outcome = run_passes(text, "lower-rms-norm", weights=weights)
    assert outcome.entry.applied == 0
    assert "the norm starts at axis 1" in outcome.reasons[0]
