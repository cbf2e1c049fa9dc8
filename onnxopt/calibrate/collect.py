"""Run a model over calibration samples and keep statistics of chosen tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxopt.calibrate.data import BATCH_TOKENS, CalibrationData, Part
from onnxopt.calibrate.state import CalibrationState
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph import dims, in_groups
from onnxopt.probe.runners import GraphRunner, ShapeRunner
from onnxopt.records.events import Step
from onnxopt.spec import Say

CAPTURED_BYTES = 1 << 28  # of all tensors of one run; more tensors are watched in several passes over the samples
_BYTES = 4


def collect(
    model: ir.Model,
    values: Iterable[ir.Value],
    data: CalibrationData,
    part: Part,
    *,
    grams: Iterable[ir.Value] = (),
    images: Collection[ir.Value] = (),
    most: int | None = None,
    progress: Say | None = None,
) -> dict[ir.Value, Statistics]:
    """Return statistics of tensors over one part of the samples.

    Args:
        model: not changed; run with the runtime's own optimizations off.
        values: float tensors of the main graph, their last axis channels.
        images: those of the values whose second axis are channels.
        data: samples without padding.
        part: which of them.
        grams: those of the values whose Gram matrix is wanted.
        most: the most samples.
        progress: told what is done, sample by sample.

    A calibration that was interrupted after more than a few seconds goes on where it was, from a file in the cache.

    Returns:
        One entry per value that was seen, in order.
    """
    wanted = [value for value in dict.fromkeys(values) if value.producer() is not None or value.is_graph_input()]
    with_gram, pictures = set(grams), set(images)
    found: dict[ir.Value, Statistics] = {}
    groups = _groups(wanted, _image_sizes(model, wanted, pictures, data, part))
    count = len(data.part(part)[:most])
    state = CalibrationState(model, wanted, data, f"{part} {most} {sorted(value.name or '' for value in with_gram)}")
    found.update({value: state.found[value.name or ""] for value in wanted if value.name in state.found})
    runs = 0
    for number, group in enumerate(groups):
        runner: GraphRunner | None = None
        done = 0
        for feeds in data.batches(part, most=most):
            runs += 1
            done += len(next(iter(feeds.values())))
            if runs <= state.passed:
                continue
            runner = runner or GraphRunner(model, group, with_outputs=False)
            captured = runner.run(feeds)[1]
            for value in group:
                array = captured.pop(value) if value in captured else feeds[value.name or ""]
                is_image = value in pictures and array.ndim > 1
                seen = found.get(value)
                if seen is None:
                    channels = array.shape[1 if is_image else -1]
                    seen = found[value] = Statistics(channels, with_gram=value in with_gram)
                (seen.add_image if is_image else seen.add)(array)
            state.keep(runs, found)
            if progress is not None:
                words = f"{part} {done} of {count} samples"
                progress(Step(words, work=part, done=number * count + done, total=len(groups) * count))
    state.forget()
    return {value: found[value] for value in wanted if value in found}


def _image_sizes(
    model: ir.Model, values: Sequence[ir.Value], images: Collection[ir.Value], data: CalibrationData, part: Part
) -> dict[ir.Value, int]:
    """Return the bytes that images take in the first run; how large they are is not known from the graph."""
    measured = [value for value in values if value in images and value.producer() is not None]
    first = next(iter(data.batches(part, most=1)), None)
    if not measured or first is None:
        return {}
    return {value: math.prod(shape) * _BYTES for value, shape in ShapeRunner(model, measured).run(first)[0].items()}


def _groups(values: Sequence[ir.Value], known: Mapping[ir.Value, int]) -> list[list[ir.Value]]:
    """Split the tensors so that those of one run of the largest batch fit into `CAPTURED_BYTES`."""

    def bytes_of(value: ir.Value) -> int:
        last = (dims(value) or (None,))[-1]
        return known.get(value, (last if isinstance(last, int) else 1024) * BATCH_TOKENS * _BYTES)

    return in_groups(values, bytes_of, CAPTURED_BYTES)
