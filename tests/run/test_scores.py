from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxopt.run.scores import Scores, as_scores, scores_of

THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}}


@pytest.mark.parametrize(
    ("config", "labels", "how"),
    [
        (THREE, 3, "softmax"),
        (THREE, None, "softmax"),
        ({}, None, "softmax"),
        ({"id2label": {"0": "LABEL_0"}}, None, "sigmoid"),  # a reranker
        ({"id2label": {"0": "a", "1": "b"}}, 1, "sigmoid"),  # what the graph has counts
        ({**THREE, "problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({**THREE, "problem_type": "single_label_classification"}, 3, "softmax"),
        ({"problem_type": "regression"}, 1, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 1, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": ""}}, 1, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1, "none"),
        ({**THREE, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 3, "softmax"),
    ],
)
def test_the_config_and_the_labels_decide(config: Mapping[str, Any], labels: int | None, how: Scores) -> None:
    assert scores_of(config, labels) == how


def test_scores_are_what_their_names_say() -> None:
    logits = np.array([[0.0, 1.0, -700.0], [800.0, 0.0, 800.0]], np.float32)
    softmax = as_scores(logits, "softmax")
    np.testing.assert_allclose(softmax.sum(axis=-1), 1.0)
    np.testing.assert_allclose(softmax[1], [0.5, 0.0, 0.5])
    np.testing.assert_allclose(as_scores(logits, "sigmoid")[0], [0.5, 1 / (1 + np.exp(-1)), 0.0], atol=1e-12)
    assert np.array_equal(as_scores(logits, "none"), logits)
