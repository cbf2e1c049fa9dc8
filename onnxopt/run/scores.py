"""What the logits of a classifier are made into: one rule for Python, the server, `io.json` and the clients.

Source: `transformers` pipelines (`TextClassificationPipeline.postprocess`): a sigmoid for one logit or for labels that
do not exclude each other, softmax for the others, nothing for a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from onnxopt.spec import Array

Scores = Literal["softmax", "sigmoid", "none"]


def scores_of(config: Mapping[str, Any], labels: int | None) -> Scores:
    """Return how the logits of a whole input become scores.

    Args:
        config: content of config.json: `problem_type` and, where the graph does not say how many there are, `id2label`.
        labels: how many the graph has; None where that is open.
    """
    kind = config.get("problem_type")
    if kind == "regression":
        return "none"
    names = config.get("id2label")
    count = labels if labels is not None else len(names) if isinstance(names, Mapping) else None
    return "sigmoid" if kind == "multi_label_classification" or count == 1 else "softmax"


def as_scores(logits: Array, how: Scores) -> Array:
    """Return float64 scores of logits [..., labels].

    Args:
        logits: of any float type.
        how: from `scores_of`.
    """
    wide = logits.astype(np.float64)
    if how == "softmax":
        return softmax(wide)
    return np.asarray(1 / (1 + np.exp(-wide))) if how == "sigmoid" else wide


def softmax(logits: Array) -> Array:
    """Return float64 probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
