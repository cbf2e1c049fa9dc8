"""Text for pruning a checkpoint, and how much of its answers is left, measured in torch on text that chose nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.errors import InputError, ProofError
from onnxopt.judge.metrics import LOGITS, Metric, MetricBudget, cosine
from onnxopt.load.checkpoint.opened import Opened, answers
from onnxopt.spec import Array
from onnxopt.texts.builtin import builtin_texts
from onnxopt.texts.files import BUILTIN
from onnxopt.texts.rows import Rows, next_tokens, read_rows, tokenize

LENGTH = 128  # tokens of a row
ROWS = 640  # at most; a language model's are full, others' texts are shorter
FULL_ROWS = 160
BATCH = 16
JUDGED = 4  # one row in four is never calibrated with

Batch = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Rows of tokens, in batches of int64 tensors.

    Attributes:
        fit: what statistics are taken of.
        judge: what nothing was fitted to.
    """

    fit: list[Batch]
    judge: list[Batch]


def read_samples(opened: Opened, data: str = BUILTIN) -> Samples:
    """Read calibration text for a checkpoint.

    Args:
        opened: the checkpoint, with its tokenizer.
        data: `builtin`, or a file of text or JSON entries.
    """
    running = opened.task.name in ("text-generation", "fill-mask")
    taken = int(getattr(opened.config.get_text_config(), "max_position_embeddings", 0) or LENGTH)
    length = min(LENGTH, taken)
    if data == BUILTIN and not running:
        rows = tokenize(builtin_texts()[:ROWS], opened.folder, length=length, pad=opened.pad)
    else:
        most = FULL_ROWS if running else ROWS
        rows = read_rows([data], opened.folder, length=length, running=running, pad=opened.pad, most=most)
    places = np.arange(len(rows))
    judged = places % JUDGED == JUDGED - 1
    if not judged.any():
        raise InputError(f"{len(rows)} rows of calibration text are too few", where=data, hint="give more text")
    return Samples(_batches(rows, places[~judged]), _batches(rows, places[judged]))


def _batches(rows: Rows, places: Array) -> list[Batch]:
    """Return batches of rows of about one length, so that little of them is padding."""
    import torch

    order = places[np.argsort(rows.mask[places].sum(axis=1), kind="stable")]
    made = []
    for start in range(0, len(order), BATCH):
        some = rows.take(order[start : start + BATCH])
        made.append({"input_ids": torch.from_numpy(some.ids), "attention_mask": torch.from_numpy(some.mask)})
    return made


@dataclass(frozen=True)
class Predictions:
    """What a network says to the judged rows.

    Attributes:
        metric: `perplexity`, `agreement`, `rank` or `cosine`, by what it says.
        parts: by batch: the loss of each row, the likeliest class at each place, the one score of each row, or vectors.
    """

    metric: str
    parts: list[Array]

    def compare(self, other: Predictions) -> float:
        """Return the metric of `other` by this: ratio of perplexities, share that agrees, or mean cosine."""
        if self.metric == "perplexity":
            return float(np.exp(np.concatenate(other.parts).mean() - np.concatenate(self.parts).mean()))
        if self.metric == "rank":
            metric = Metric("rank", LOGITS)
            return metric.value(metric.over(other.parts, self.parts, [{} for _ in self.parts]))
        pairs = list(zip(self.parts, other.parts, strict=True))
        scores = [
            (a == b).astype(np.float64).reshape(-1) if self.metric == "agreement" else cosine(b, a).reshape(-1)
            for a, b in pairs
        ]
        return float(np.concatenate(scores).mean())

    @property
    def level(self) -> float:
        """The perplexity itself; not-a-number for other metrics."""
        return math.exp(float(np.concatenate(self.parts).mean())) if self.metric == "perplexity" else math.nan


def ask(opened: Opened, batches: Sequence[Batch]) -> Predictions:
    """Run a network on the judged rows."""
    metric = "cosine"
    parts = []
    for feeds in batches:
        metric, part = _answer(opened, feeds)
        parts.append(part)
    return Predictions(metric, parts)


def _answer(opened: Opened, feeds: Mapping[str, Any]) -> tuple[str, Array]:
    import torch

    with torch.inference_mode():
        given = answers(opened.network, opened.head, feeds)
    mask = feeds["attention_mask"].bool()
    if opened.task.name == "text-generation":
        wanted = torch.from_numpy(next_tokens(feeds["input_ids"].numpy(), feeds["attention_mask"].numpy()))
        losses = torch.nn.functional.cross_entropy(
            given["logits"].float().flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="none"
        ).reshape(wanted.shape)
        counts = (wanted != -100).sum(dim=1).clamp(min=1)
        return "perplexity", (losses.sum(dim=1) / counts).double().numpy()
    if "logits" in given and given["logits"].shape[-1] == 1:
        return "rank", given["logits"].double().numpy()
    if "logits" in given:
        best = given["logits"].argmax(dim=-1)
        return "agreement", (best[mask] if best.ndim == 2 else best).numpy()
    vectors = given["embedding"] if "embedding" in given else given["last"][mask]
    return "cosine", vectors.double().numpy()


def hold(metric: str, value: float, budget: MetricBudget | None, *, spec: str) -> None:
    """Raise ProofError when less is left than the budget asks for."""
    if budget is None:
        return
    check_metric(metric, budget)
    if not budget.holds(value):
        raise ProofError(
            f"{metric} is {value:.4f} on held-out samples, the budget is {budget}",
            where=f"--prune {spec}",
            hint="prune less, or distil the pruned model",
        )


def check_metric(metric: str, budget: MetricBudget) -> None:
    """Refuse a budget of another metric than the model is judged by."""
    if budget.metric != metric:
        raise InputError(f"this model is judged by {metric}, the budget is {budget}", where="--prune-budget")
