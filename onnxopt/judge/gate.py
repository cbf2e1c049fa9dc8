"""The gate: a lossy result is judged by its task's metric against the original, on samples that no fit has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.data import CalibrationData
from onnxopt.errors import InputError
from onnxopt.graph.cache import PAST, Cache
from onnxopt.graph.roles import mask_of
from onnxopt.judge.metrics import DEFAULT_BUDGETS, Metric, MetricBudget
from onnxopt.judge.piecewise import piecewise_losses
from onnxopt.load.loaded import Loaded
from onnxopt.records.events import Step
from onnxopt.records.quantization import GateRecord
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, Say

SAMPLES = 128
WINDOWS = 16  # of a language model

Run = Callable[[Mapping[str, Array]], Feeds]


def require_metric(metric: Metric, budget: MetricBudget) -> None:
    """Refuse a budget that bounds another metric than the one that a model is judged by.

    Raises:
        InputError: it does.
    """
    if budget.metric != metric.name:
        raise InputError(
            f"the budget bounds {budget.metric}, this model is judged by {metric.name}",
            hint=f"write for example {DEFAULT_BUDGETS[metric.name]}",
        )


@dataclass(frozen=True)
class Judge:
    """Judges finished graphs of one model.

    Attributes:
        loaded: the model; its reference is torch, or an import itself.
        original: the .onnx file as it was loaded, for a language model with a cache, which is stepped; or what writes
            it, where perhaps nobody asks for it.
        data: whose `judge` part is asked.
        metric: what is measured.
        budget: how far the metric may fall.
        whole: a float graph of a large language model, proved to answer as the original does, with `logits` of all
            positions: it is run piece by piece in the original's place.
    """

    loaded: Loaded
    original: Path | Callable[[], Path]
    data: CalibrationData
    metric: Metric
    budget: MetricBudget
    whole: ir.Model | None = None
    _known: list[float] = field(default_factory=list, init=False, repr=False, compare=False)  # losses of the original

    def __post_init__(self) -> None:
        require_metric(self.metric, self.budget)

    @property
    def is_of_language(self) -> bool:
        """Whether the model goes on token by token and is judged by what it predicts."""
        return self.metric.name == "perplexity" and Cache.of(self.loaded.signature) is not None

    def judged(self, candidate: Path, say: Say) -> GateRecord:
        """Judge a finished graph.

        Args:
            candidate: its .onnx file.
            say: told what is done.
        """
        scores = self._windows(candidate, say) if self.is_of_language else self._samples(Session(candidate).run, say)
        value = self.metric.value(scores)
        low, high = self.metric.interval(scores)
        extreme = float(np.exp(np.max(scores))) if self.metric.name == "perplexity" else float(np.min(scores))
        return GateRecord(
            metric=self.metric.name,
            budget=str(self.budget),
            value=value,
            low=low,
            high=high,
            worst=extreme,
            samples=len(scores),
            holds=self.budget.holds(value),
            meaningless=self.loaded.random_weights or self.data.record.meaningless,
        )

    def is_invariant(self, candidate: Path) -> bool | None:
        """Tell whether answers are the same bits alone and in a padded batch; None without a mask or samples.

        The batch has one sample of each of several lengths, padded on the right.

        Args:
            candidate: an .onnx file.
        """
        signature, data = self.loaded.signature, self.data
        mask = mask_of(signature)
        rows = [data.rows[place] for place in data.part("judge")[:6]] if data.rows else []
        if mask is None or PAST in signature.axes or len({len(row) for row in rows}) < 2:
            return None
        session, output = Session(candidate), self.metric.output
        longest = max(map(len, rows))
        alone = [session.run(data.feeds([row]))[output][0] for row in rows]
        padded = [data.feeds([[*row, *[row[-1]] * (longest - len(row))]]) for row in rows]
        for feeds, row in zip(padded, rows, strict=True):
            for name, own in data.feeds([row]).items():
                feeds[name][:, : len(row)] = own  # segments of a row are known by the whole of it
            feeds[mask.name][:, len(row) :] = 0
        together = session.run({name: np.concatenate([feeds[name] for feeds in padded]) for name in padded[0]})[output]
        return all(
            np.array_equal(_real(one, row), _real(other, row))
            for one, other, row in zip(alone, together, rows, strict=True)
        )

    def _samples(self, run: Run, say: Say) -> Array:
        """Ask both models for the same samples, in the same batches."""
        found, expected, asked = [], [], []
        done, count = 0, len(self.data.part("judge")[:SAMPLES])
        for number, feeds in enumerate(self.data.batches("judge", most=SAMPLES), start=1):
            say(Step(f"judge: batch {number}", work="judge", done=done, total=count))
            done += len(next(iter(feeds.values())))
            expected.append(self.loaded.reference.run(feeds)[self.metric.output])
            found.append(run(feeds)[self.metric.output])
            asked.append(feeds)
        return self.metric.over(found, expected, asked)

    def _windows(self, candidate: Path, say: Say) -> Array:
        """Let both predict the same windows, token by token where a graph answers for the last position only."""
        data = self.data
        rows = [data.rows[place] for place in data.part("judge")[:WINDOWS]]
        if not rows:
            rows = [tuple(feeds["input_ids"][0].tolist()) for feeds in data.ready[:WINDOWS]]
        if not self._known:  # a search asks for several results of one model
            say(f"judge: original, {len(rows)} windows")
            self._known.extend(self._losses_of_original(rows, say))
        say(f"judge: result, {len(rows)} windows")
        return np.asarray(np.subtract(_losses(candidate, rows, say), self._known))

    def _losses_of_original(self, rows: Sequence[tuple[int, ...]], say: Say) -> list[float]:
        found = None if self.whole is None else piecewise_losses(self.loaded, self.whole, rows, say)
        if found is not None:
            return found
        return _losses(self.original if isinstance(self.original, Path) else self.original(), rows, say)


def _losses(path: Path, rows: Sequence[tuple[int, ...]], say: Say) -> list[float]:
    """Return the mean negative log likelihood of the tokens of each row but its first, in nats."""
    from onnxopt.judge.language_models import OnnxLanguageModel
    from onnxopt.texts.windows import Window

    model = OnnxLanguageModel(Session(path), None)
    windows = [Window(np.array(row, np.int64), 1) for row in rows]
    return [float(np.mean(one)) for one in model.losses(windows, say)]


def _real(output: Array, row: tuple[int, ...]) -> Array:
    return output[: len(row)] if output.ndim > 1 else output
