"""How much of a model's answer is left: one number per kind of model, and the budgets that are written with it.

* embeddings: the cosine between the candidate's and the reference's vectors;
* rerankers, with one score: the share of all differences between scores of samples whose sign is the reference's;
* classifiers, and what hears: the share of samples (of positions, frames or pixels, where each has an answer) whose
  likeliest class or letter is the reference's;
* language models: perplexity, relative to the reference's, on the same windows;
* everything else: the cosine between whole outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxopt.errors import InputError
from onnxopt.spec import SENTENCE, SOUND_INPUTS, Array, Feeds, Signature

MetricName = Literal["cosine", "agreement", "rank", "perplexity"]
LOGITS = "logits"
RESAMPLES = 500
IMAGE_RANK = 4
PIXELS = "pixel_values"
UNJUDGED = ("pred_boxes", "pred_masks", "masks_queries_logits")  # a box or mask of a query is right with its label only
FRAME_RANK = 3  # of logits for each frame of a sound
LEAST_RATIO = 1e-9  # of perplexities: a loss is a finite number
_BUDGET = re.compile(r"^\s*(perplexity|cosine|agreement|rank|top-?1)\s*(<=|>=|[<>=])\s*([+-]?[\d.]+)\s*(%?)\s*$")


@dataclass(frozen=True)
class MetricBudget:
    """How far a metric may fall.

    Attributes:
        metric: `cosine`, `agreement` and `rank` are at least, `perplexity` is at most.
        limit: a cosine, a share, or for perplexity the largest ratio to the reference (1.02 for +2 %).
    """

    metric: MetricName
    limit: float

    @classmethod
    def parse(cls, text: str) -> MetricBudget:
        """Read `perplexity<=+2%`, `cosine>=0.995`, `agreement>=99%` or `rank>=99%`.

        Raises:
            InputError: it is none of these, or a limit that nothing can meet.
        """
        found = _BUDGET.match(text.lower())
        hint = "write perplexity<=+2%, cosine>=0.995, agreement>=99% or rank>=99%"
        if found is None:
            raise InputError(f"cannot read the budget {text!r}", hint=hint)
        name, sign, number, percent = found.groups()
        metric: MetricName = "agreement" if name.startswith("top") else name  # type: ignore[assignment]  # by the pattern
        try:
            value = float(number) / (100 if percent else 1)
        except ValueError as error:
            raise InputError(f"cannot read the number in the budget {text!r}", hint=hint) from error
        if (metric == "perplexity") != (sign.startswith("<")):
            raise InputError(f"the budget {text!r} bounds {metric} on the wrong side", hint=hint)
        limit = 1 + value if metric == "perplexity" and (percent or number[0] in "+-") else value
        if not (limit >= 1 if metric == "perplexity" else 0 < limit <= 1):
            raise InputError(f"no result can meet the budget {text!r}", hint=hint)
        return cls(metric, limit)

    def holds(self, value: float) -> bool:
        """Tell whether a measured value is within the budget."""
        return value <= self.limit if self.metric == "perplexity" else value >= self.limit

    def __str__(self) -> str:
        if self.metric == "perplexity":
            return f"perplexity<={100 * (self.limit - 1):+g}%"
        return f"{self.metric}>={self.limit:g}"


DEFAULT_BUDGETS: dict[MetricName, MetricBudget] = {
    "cosine": MetricBudget("cosine", 0.995),
    "agreement": MetricBudget("agreement", 0.99),
    "rank": MetricBudget("rank", 0.99),
    "perplexity": MetricBudget("perplexity", 1.02),
}


@dataclass(frozen=True)
class Metric:
    """Compares a candidate's answers with the reference's.

    Attributes:
        name: which number.
        output: the output it is taken from.
    """

    name: MetricName
    output: str

    @classmethod
    def of(cls, signature: Signature, *, classifies: bool = False) -> Metric:
        """Choose by what a model gives; raises InputError for what cannot be judged.

        Args:
            signature: inputs and outputs.
            classifies: the first output is known to be probabilities of classes.
        """
        scores = next((spec.axes for spec in signature.outputs if spec.name == LOGITS), ())
        if len(scores) == 2 and scores[1] == 1:  # its largest number would be itself, whatever it is
            return cls("rank", LOGITS)
        ranks = {spec.name: len(spec.axes) for spec in signature.outputs if "float" in spec.dtype}
        if unjudged := [name for name in UNJUDGED if name in ranks]:
            raise InputError(
                f"nothing here judges {unjudged[0]} yet, so the model cannot be quantized within a budget",
                hint="leave --precision at fp32",
            )
        if ranks.get(LOGITS) == 3 and any(spec.name == "input_ids" for spec in signature.inputs):
            return cls("perplexity", LOGITS)
        hears = any(spec.name in SOUND_INPUTS for spec in signature.inputs)
        sees = any(spec.name == PIXELS for spec in signature.inputs)
        if sees and ranks.get(LOGITS) == IMAGE_RANK:
            return cls("agreement", LOGITS)
        if ranks.get(LOGITS) == 2 or (hears and ranks.get(LOGITS) == FRAME_RANK):
            return cls("agreement", LOGITS)
        if SENTENCE in ranks:
            return cls("cosine", SENTENCE)
        first = next((name for name in ranks if not name.startswith("present")), None)
        if first is None:
            raise InputError("the model gives no float output to judge quantization by")
        if classifies:
            return cls("agreement", first)
        return cls("cosine", first)

    def scores(self, candidate: Array, reference: Array, feeds: Feeds) -> Array:
        """Return float64 [samples], one score per sample: mean over its rows of cosine, agreement or −log ratio.

        The score of a sample by `rank` depends on the others: of samples in several batches ask `over`.

        Args:
            candidate: float [batch, ...].
            reference: the same shape.
            feeds: the inputs; a language model's `input_ids` are what it should have predicted.
        """
        a, b = candidate.astype(np.float64), reference.astype(np.float64)
        if self.name == "perplexity":
            ids = feeds["input_ids"]
            return np.array([_loss(x, i) - _loss(y, i) for x, y, i in zip(a, b, ids, strict=True)])
        if self.name == "rank":
            return _kept_order(a[:, 0], b[:, 0])
        if self.name == "agreement":
            axis = 1 if a.ndim == IMAGE_RANK else -1  # labels of pixels stand in front of the sides
            same = a.argmax(axis=axis) == b.argmax(axis=axis)
            return np.asarray(same.reshape(len(a), -1).mean(axis=1), np.float64)
        last = a.shape[-1] if 1 < a.ndim < IMAGE_RANK else a[0].size  # of a map the rows may hold nothing
        rows = cosine(a.reshape(len(a), -1, last), b.reshape(len(b), -1, last))
        return np.asarray(rows.mean(axis=1))

    def over(self, candidates: Sequence[Array], references: Sequence[Array], batches: Sequence[Feeds]) -> Array:
        """Return float64 [samples], the scores of several batches; arguments are those of `scores`, one for each."""
        if self.name == "rank":
            return self.scores(np.concatenate(candidates), np.concatenate(references), {})
        given = zip(candidates, references, batches, strict=True)
        return np.concatenate([self.scores(one, other, feeds) for one, other, feeds in given])

    def value(self, scores: Array) -> float:
        """Return the metric over all samples."""
        mean = float(np.mean(scores))
        return float(np.exp(mean)) if self.name == "perplexity" else mean

    def loss(self, value: float) -> float:
        """Return what a value has lost: 1 − cosine, 1 − agreement, or the logarithm of a ratio of perplexities."""
        return math.log(max(value, LEAST_RATIO)) if self.name == "perplexity" else 1.0 - value

    def value_at(self, loss: float) -> float:
        """Return the value that has lost so much."""
        return math.exp(loss) if self.name == "perplexity" else 1.0 - loss

    def interval(self, scores: Array, level: float = 0.95) -> tuple[float, float]:
        """Return a percentile bootstrap interval of the metric over samples (Efron & Tibshirani 1993, chapter 13)."""
        draws = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
        means = np.asarray(scores)[draws].mean(axis=1)
        low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
        return (float(np.exp(low)), float(np.exp(high))) if self.name == "perplexity" else (float(low), float(high))


def _kept_order(a: Array, b: Array) -> Array:
    """Return float64 [samples]: of the differences between each sample and the others, what share keeps its sign.

    Each difference counts by its size in the reference, so that samples that are nearly equal may change places.

    Args:
        a: float64 [samples], scores of the candidate.
        b: those of the reference.
    """
    wanted, found = b[:, None] - b[None, :], a[:, None] - a[None, :]
    weights = np.abs(wanted)
    total = weights.sum(axis=1)
    kept = (weights * (wanted * found > 0)).sum(axis=1)
    return np.asarray(np.where(total > 0, kept / np.where(total > 0, total, 1.0), 1.0))


def cosine(a: Array, b: Array) -> Array:
    """Return the cosine along the last axis; 1 where both are zero."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    product = (a * b).sum(axis=-1)
    equal = np.abs(a - b).sum(axis=-1) == 0
    return np.asarray(np.where(lengths > 0, product / np.where(lengths > 0, lengths, 1.0), equal.astype(np.float64)))


def _loss(logits: Array, ids: Array) -> float:
    """Return the mean negative log likelihood of the next token, in nats, of one window [tokens, vocabulary]."""
    scores = logits[: len(ids) - 1]
    top = scores.max(axis=-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(scores - top).sum(axis=-1))
    return float((total - np.take_along_axis(scores, ids[1:, None], axis=1)[:, 0]).mean())
