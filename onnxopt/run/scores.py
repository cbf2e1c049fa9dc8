"""What the logits of a classifier are made into: one rule for Python, the server, `io.json` and the clients.

Source: `transformers` pipelines (`TextClassificationPipeline.postprocess`): a sigmoid for one logit or for labels that
do not exclude each other, softmax for the others, nothing for a regression. A cross-encoder with one score says itself
what becomes of it, a sigmoid or nothing (`CrossEncoder.activation_fn` of sentence-transformers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from onnxopt.spec import Array

Scores = Literal["softmax", "sigmoid", "none"]
_ACTIVATIONS: Mapping[str, Scores] = {"Identity": "none", "Sigmoid": "sigmoid"}  # classes of torch.nn


def scores_of(config: Mapping[str, Any], labels: int | None) -> Scores:
    """Return how the logits of a whole input become scores.

    Args:
        config: content of config.json: `problem_type` and, where the graph does not say how many there are, `id2label`.
        labels: how many the graph has; None where that is open.
    """
    names = config.get("id2label")
    count = labels if labels is not None else len(names) if isinstance(names, Mapping) else None
    told = _ACTIVATIONS.get(_activation(config)) if count == 1 else None
    if told is not None:
        return told
    kind = config.get("problem_type")
    if kind == "regression":
        return "none"
    return "sigmoid" if kind == "multi_label_classification" or count == 1 else "softmax"


def _activation(config: Mapping[str, Any]) -> str:
    """Return the class that a cross-encoder puts behind its logits, as its releases have written it; empty without."""
    told = config.get("sentence_transformers")
    named = told.get("activation_fn") if isinstance(told, Mapping) else None
    return str(named or config.get("sbert_ce_default_activation_function") or "").rsplit(".", 1)[-1]


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
