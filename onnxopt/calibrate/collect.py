"""Run a model over calibration samples and keep statistics of chosen tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from onnxopt.calibrate.data import BATCH_TOKENS, CalibrationData, Part
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph import dims
from onnxopt.probe import GraphRunner

CAPTURED_BYTES = 1 << 28  # of all tensors of one run; more tensors are watched in several passes over the samples
_BYTES = 4

Say = Callable[[str], None]


def collect(
    model: ir.Model,
    values: Iterable[ir.Value],
    data: CalibrationData,
    part: Part,
    *,
    grams: Iterable[ir.Value] = (),
    most: int | None = None,
    progress: Say | None = None,
) -> dict[ir.Value, Statistics]:
    """Return statistics of tensors over one part of the samples.

    Args:
        model: not changed; run with the runtime's own optimizations off.
        values: float tensors of the main graph, their last axis channels; graph inputs are passed over.
        data: samples without padding.
        part: which of them.
        grams: those of the values whose Gram matrix is wanted.
        most: the most samples.
        progress: told what is done and how long the rest will take.

    Returns:
        One entry per value that is made by a node, in order.
    """
    wanted = [value for value in dict.fromkeys(values) if value.producer() is not None]
    with_gram = set(grams)
    found: dict[ir.Value, Statistics] = {}
    groups = _groups(wanted)
    count = len(data.part(part)[:most])
    started, runs = time.perf_counter(), 0
    for number, group in enumerate(groups):
        runner = GraphRunner(model, group, with_outputs=False)
        done = 0
        for feeds in data.batches(part, most=most):
            captured = runner.run(feeds)[1]
            for value in group:
                array = captured.pop(value)
                seen = found.get(value)
                if seen is None:
                    seen = found[value] = Statistics(array.shape[-1], with_gram=value in with_gram)
                seen.add(array)
            done += len(next(iter(feeds.values())))
            runs += 1
            if progress is not None:
                spent = time.perf_counter() - started
                share = (number + done / max(count, 1)) / len(groups)
                left = spent / share - spent if share > 0 else 0.0
                progress(f"{part} {done} of {count} samples, {max(left, 0.0):.0f} s left")
    return {value: found[value] for value in wanted if value in found}


def _groups(values: Sequence[ir.Value]) -> list[list[ir.Value]]:
    """Split the tensors so that those of one run of the largest batch fit into `CAPTURED_BYTES`."""
    groups: list[list[ir.Value]] = [[]]
    used = 0
    for value in values:
        last = (dims(value) or (None,))[-1]
        size = (last if isinstance(last, int) else 1024) * BATCH_TOKENS * _BYTES
        if groups[-1] and used + size > CAPTURED_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(value)
        used += size
    return groups
