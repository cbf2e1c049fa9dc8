"""The gate: a lossy result is judged by its task's metric against the original, on samples that no fit has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from onnxopt.calibrate.data import CalibrationData
from onnxopt.errors import InputError
from onnxopt.graph.cache import PAST, Cache
from onnxopt.graph.roles import mask_of
from onnxopt.judge.metrics import DEFAULT_BUDGETS, Judge, MetricBudget
from onnxopt.load.loaded import Loaded
from onnxopt.records.quantization import GateRecord
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, Say

SAMPLES = 128
WINDOWS = 16  # of a language model

Run = Callable[[Mapping[str, Array]], Feeds]
Rows = tuple[tuple[int, ...], ...]


def require_metric(judge: Judge, budget: MetricBudget) -> None:
    """Refuse a budget that bounds another metric than the one that a model is judged by."""
    if budget.metric != judge.metric:
        raise InputError(
            f"the budget bounds {budget.metric}, this model is judged by {judge.metric}",
            hint=f"write for example {DEFAULT_BUDGETS[judge.metric]}",
        )


def judge_result(
    loaded: Loaded,
    candidate: Path,
    original: Path,
    data: CalibrationData,
    budget: MetricBudget,
    *,
    judge: Judge | None = None,
    say: Say,
) -> GateRecord:
    """Judge a finished graph.

    Args:
        loaded: the model it was made from; its reference is torch, or an import itself.
        candidate: the finished .onnx file.
        original: the .onnx file as it was loaded, for a language model with a cache, which is stepped.
        data: whose `judge` part is asked.
        budget: how far the metric may fall.
        judge: what is measured; by what the model gives when None.
        say: told what is done.
    """
    judge = judge or Judge.of(loaded.signature)
    require_metric(judge, budget)
    if judge.metric == "perplexity" and Cache.of(loaded.signature) is not None:
        scores = _windows(candidate, original, data, say)
    else:
        scores = _samples(loaded, Session(candidate).run, data, judge, say)
    value = judge.value(scores)
    low, high = judge.interval(scores)
    extreme = float(np.exp(np.max(scores))) if judge.metric == "perplexity" else float(np.min(scores))
    return GateRecord(
        metric=judge.metric,
        budget=str(budget),
        value=value,
        low=low,
        high=high,
        worst=extreme,
        samples=len(scores),
        holds=budget.holds(value),
        meaningless=loaded.random_weights or data.record.meaningless,
    )


def _samples(loaded: Loaded, run: Run, data: CalibrationData, judge: Judge, say: Say) -> Array:
    """Ask both models for the same samples, in the same batches."""
    found = []
    for number, feeds in enumerate(data.batches("judge", most=SAMPLES), start=1):
        say(f"judge: batch {number}")
        expected = loaded.reference.run(feeds)[judge.output]
        found.append(judge.scores(run(feeds)[judge.output], expected, feeds))
    return np.concatenate(found)


def _windows(candidate: Path, original: Path, data: CalibrationData, say: Say) -> Array:
    """Let both models predict the same windows, token by token where a graph answers for the last position only."""
    rows = tuple(tuple(data.rows[place]) for place in data.part("judge")[:WINDOWS])
    if not rows:
        rows = tuple(tuple(feeds["input_ids"][0].tolist()) for feeds in data.ready[:WINDOWS])
    if (original, rows) not in _originals:
        say(f"judge: original, {len(rows)} windows")
        found = _losses(original, rows, say)
        _originals.clear()
        _originals[original, rows] = found
    say(f"judge: result, {len(rows)} windows")
    return np.asarray(np.subtract(_losses(candidate, rows, say), _originals[original, rows]))


_originals: dict[tuple[Path, Rows], list[float]] = {}  # the last one: a search asks for several results of one model


def _losses(path: Path, rows: Rows, say: Say) -> list[float]:
    """Return the mean negative log likelihood of the tokens of each row but its first, in nats."""
    from onnxopt.judge.language_models import OnnxLanguageModel
    from onnxopt.texts.windows import Window

    model = OnnxLanguageModel(Session(path), None)
    windows = [Window(np.array(row, np.int64), 1) for row in rows]
    return [float(np.mean(one)) for one in model.losses(windows, say)]


def is_invariant(candidate: Path, loaded: Loaded, data: CalibrationData) -> bool | None:
    """Tell whether answers are the same bits alone and in a padded batch; None for a model without a mask or samples.

    The batch has one sample of each of several lengths, padded on the right.
    """
    mask = mask_of(loaded.signature)
    rows = [data.rows[place] for place in data.part("judge")[:6]] if data.rows else []
    if mask is None or PAST in loaded.signature.axes or len({len(row) for row in rows}) < 2:
        return None
    session, judge = Session(candidate), Judge.of(loaded.signature)
    longest = max(map(len, rows))
    alone = [session.run(data.feeds([row]))[judge.output][0] for row in rows]
    padded = [data.feeds([[*row, *[row[-1]] * (longest - len(row))]]) for row in rows]
    for feeds, row in zip(padded, rows, strict=True):
        feeds[mask.name][:, len(row) :] = 0
    together = session.run({name: np.concatenate([feeds[name] for feeds in padded]) for name in padded[0]})[
        judge.output
    ]
    return all(
        np.array_equal(_real(one, row), _real(other, row))
        for one, other, row in zip(alone, together, rows, strict=True)
    )


def _real(output: Array, row: tuple[int, ...]) -> Array:
    return output[: len(row)] if output.ndim > 1 else output
