"""Compare two models on the same inputs, output by output."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxopt.errors import InputError
from onnxopt.graph.kept_rows import rows_that_matter
from onnxopt.load.given import Given
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.cases import SEED, case_text, cases_of, note_turning
from onnxopt.proof.prepare import derivation_of, prepare
from onnxopt.proof.tolerance import FACTOR, WIDEST, Moved, moved_by_itself, precision_error
from onnxopt.qmath.compare import worst_error
from onnxopt.records.events import Step
from onnxopt.run.session import Session
from onnxopt.run.there import model_file
from onnxopt.spec import Array, Budget, Feeds, Signature, Target, Value

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputReport:
    """How one output of two models compares, the worst over all cases.

    Attributes:
        name: the output.
        relative_error: worst max|b - a| / max|a|.
        absolute_error: worst max|b - a|.
        cosine: lowest cosine between two rows along the last axis; 1 when the output has no float rows.
        top1_agreement: share of rows whose largest entry is the same one.
    """

    name: str
    relative_error: float
    absolute_error: float
    cosine: float
    top1_agreement: float


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models.

    Attributes:
        equal: every output is within the budget in every case.
        outputs: one report per output.
        cases: how many cases ran.
        failed_case: the first case beyond the budget, empty when equal.
        first_difference: the first tensor, in the candidate's order, that both models have and that differs; empty when
            equal.
    """

    equal: bool
    outputs: tuple[OutputReport, ...]
    cases: int
    failed_case: str = ""
    first_difference: str = ""


def compare_models(
    reference: str | Path,
    candidate: str | Path,
    *,
    budget: Budget | None = None,
    target: Target | None = None,
    given: Given | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two models with the same signature.

    Args:
        reference: an .onnx file or an artifact, run with ONNX Runtime's optimizations off.
        candidate: the same, run as a user would run it.
        budget: the limit; the default of `Budget`.
        target: where the candidate runs.
        given: what the user says of axes, values and inputs of both.
        progress: told what is being done.

    Raises:
        InputError: when a file is not usable or the signatures differ.
    """
    limit = budget or Budget()
    files = [model_file(Path(path)) for path in (reference, candidate)]  # both are there before either is loaded
    first, second = (load_onnx(file, given=given) for file in files)
    _require_same_signature(first.signature, second.signature, str(candidate))
    note_turning(first, second.model)
    held = max(limit.relative_error, precision_error(first.model))
    session = Session(files[1], target=target or Target("cpu"))
    worst = {spec.name: OutputReport(spec.name, 0.0, 0.0, 1.0, 1.0) for spec in first.signature.outputs}
    failed, feeds_failed, ran = "", None, 0
    cases = cases_of(first)
    for index, (sizes, padding) in enumerate(cases):
        label = case_text(first.shown(sizes), padding)
        if progress is not None:
            progress(Step(label, work="cases", done=index, total=len(cases)))
        try:
            feeds = first.feeder.make(sizes, padding, seed=SEED + index)
            expected = first.reference.run(feeds)
        except InputError as error:  # the reference itself does not run there
            logger.info("not compared at %s: %s", label, error)
            continue
        ran += 1
        try:
            found = session.run(feeds)
        except InputError as error:
            failed, blamed = failed or f"running at {label}", f"the candidate does not run there: {error.what}"
            break
        for name, so_far in worst.items():
            report = _report(name, found[name], expected[name], _rows(first.signature, feeds, name, expected[name]))
            worst[name] = _worse(so_far, report)
            if not failed and not report.relative_error <= _allowed(first, feeds, expected, report, held):
                failed, feeds_failed = f"output {name} at {label}", feeds
    else:
        blamed = _first_difference(first, second, feeds_failed, limit) if feeds_failed is not None else ""
    if not ran:
        raise InputError(
            "does not run at any size that was tried", where=str(reference), hint="give --feeds example.npz"
        )
    return Comparison(not failed, tuple(worst.values()), ran, failed, blamed)


def _allowed(loaded: Loaded, feeds: Feeds, expected: Feeds, report: OutputReport, held: float) -> float:
    """Return the relative error that an output may have at one case: what the reference moves by itself counts."""
    if report.relative_error <= held or not math.isfinite(report.absolute_error):
        return held
    enough = {report.name: report.absolute_error / FACTOR}
    moved = moved_by_itself(loaded, feeds, expected, enough).get(report.name, Moved(0.0, ""))
    return max(held, min(WIDEST, FACTOR * moved.absolute * report.relative_error / report.absolute_error))


def _require_same_signature(first: Signature, second: Signature, where: str) -> None:
    for kind, ours, theirs in (("input", first.inputs, second.inputs), ("output", first.outputs, second.outputs)):
        left = {spec.name: (spec.dtype, len(spec.axes)) for spec in ours}
        right = {spec.name: (spec.dtype, len(spec.axes)) for spec in theirs}
        for name in [*left, *right]:
            if left.get(name) != right.get(name):
                raise InputError(
                    f"{kind} {name!r} is {_words(right.get(name))}, the reference has {_words(left.get(name))}",
                    where=where,
                    hint="compare models with the same inputs and outputs",
                )


def _words(spec: tuple[str, int] | None) -> str:
    return f"{spec[0]} with {spec[1]} dimensions" if spec else "missing"


def is_container(value: Value) -> bool:
    """Tell whether a value is a sequence or an optional instead of a tensor."""
    return value is None or isinstance(value, list)


def _rows(signature: Signature, feeds: Feeds, name: str, value: Value) -> Array | None:
    return None if is_container(value) else rows_that_matter(signature, feeds, name, value)


def _report(name: str, found: Value, expected: Value, rows: Array | None) -> OutputReport:
    relative, absolute = worst_error(found, expected, rows)
    if (
        not isinstance(expected, np.ndarray)
        or found.shape != expected.shape
        or expected.dtype.kind != "f"
        or expected.ndim < 2
        or not expected.size
    ):
        return OutputReport(name, relative, absolute, 1.0 if relative == 0 else 0.0, 1.0 if relative == 0 else 0.0)
    a, b = (
        array[rows] if rows is not None else array for array in (expected.astype(np.float64), found.astype(np.float64))
    )
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.where(lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), 1.0)
    agreement = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
    return OutputReport(name, relative, absolute, float(cosine.min()), agreement)


def _worse(a: OutputReport, b: OutputReport) -> OutputReport:
    return OutputReport(
        a.name,
        max(a.relative_error, b.relative_error),
        max(a.absolute_error, b.absolute_error),
        min(a.cosine, b.cosine),
        min(a.top1_agreement, b.top1_agreement),
    )


def _first_difference(first: Loaded, second: Loaded, feeds: Feeds, limit: Budget) -> str:
    """Name the first tensor that both graphs make under one name and that differs."""
    for loaded in (first, second):
        prepare(loaded.model, derivation_of(loaded))
    ours = {value.name: value for node in first.model.graph for value in node.outputs if value.name}
    theirs = {value.name: value for node in second.model.graph for value in node.outputs if value.name}
    common = [name for name in theirs if name in ours]
    values = []
    for loaded, table in ((first, ours), (second, theirs)):
        outputs, inner = GraphRunner(loaded.model, [table[name] for name in common]).run(feeds)
        values.append({**{value.name or "": array for value, array in inner.items()}, **outputs})
    for name in common:
        relative, _ = worst_error(values[1][name], values[0][name])
        if not relative <= limit.relative_error:
            node = theirs[name].producer()
            return f"{name} (made by {node.op_type if node else 'nothing'}): relative error {relative:.3g}"
    return "no inner tensor that both models name differs"
