"""Quantize a fused graph: calibrate, plan, carry out, judge, time; and back to float where it does not pay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.cache import Cache
from onnxopt.calibrate.data import SELF, CalibrationData, read_calibration
from onnxopt.convs import conv_of, find_convs
from onnxopt.gate import is_invariant, judge_result, require_metric
from onnxopt.gguf import gguf_behind
from onnxopt.graph import all_nodes, is_op
from onnxopt.linears import Selector, find_linears, find_tables, linear_of
from onnxopt.machine import describe_machine
from onnxopt.manifest import FrontRecord, GateRecord, LayerRecord, QuantizationRecord, SensitivityRecord
from onnxopt.metrics import Judge, MetricBudget
from onnxopt.observe import Observation
from onnxopt.pipeline import Pipeline, carrying_out
from onnxopt.precision import Blocked, Plan, PlannedLinear, Precision, Scheme
from onnxopt.quantize.checkpoint_grids import known_grids
from onnxopt.quantize.columns import plan_columns
from onnxopt.quantize.convs import is_convolutional, search_convs
from onnxopt.quantize.decoder import DecoderSearch, search_decoder
from onnxopt.quantize.options import QuantizeOptions
from onnxopt.quantize.search import search_columns
from onnxopt.quantize.weights import plan_tables, plan_weights
from onnxopt.selftext import write_own
from onnxopt.spec import Target
from onnxopt.timing import run_rounds, shape_stats, write_job

logger = logging.getLogger(__name__)

STRICTNESS = (1.0, 0.6, 0.3)  # of one try after the other, when the judge turns a plan down
ROUNDS, SECONDS = 5, 12.0
LEAST_SPEEDUP = 1.0
DECODER_MARGIN = 0.9  # of what a budget allows: the judge looks at other text, and activations are rounded too

Say = Callable[[str], None]
Save = Callable[[ir.Model, Path], Path]


@dataclass(frozen=True)
class Attempt:
    """What came of quantization.

    Attributes:
        record: for the manifest.
        pipeline: with the quantized graph.
        path: its file; None when the float graph is to be shipped.
    """

    record: QuantizationRecord
    pipeline: Pipeline
    path: Path | None


@dataclass(frozen=True)
class _Decision:
    plan: Plan
    sensitivities: tuple[SensitivityRecord, ...] = ()
    front: tuple[FrontRecord, ...] = ()


def quantize(
    fused: Pipeline,
    options: QuantizeOptions,
    *,
    original: Path,
    as_float: Path,
    scratch: Path,
    save: Save,
    requests: Sequence[Observation],
    say: Say,
) -> Attempt:
    """Quantize a fused graph inside its budget.

    Args:
        fused: before it is lowered; not changed.
        options: what was asked.
        original: the model as it was loaded.
        as_float: the finished float graph, which is shipped when quantization does not pay.
        scratch: for files.
        save: writes a graph into a new folder.
        requests: the workload; empty to measure no time.
        say: told what is done.

    Raises:
        InputError: an option does not fit the model.
    """
    loaded = fused.loaded
    judge = Judge.of(loaded.signature, classifies=_classifies(fused.model))
    budget = options.budget or options.default_budget(judge.metric)
    require_metric(judge, budget)
    fused.raise_to_quantize()
    labels = [*(conv.label for conv in find_convs(fused.model)), *(one.label for one in find_linears(fused.model))]
    tables = [table.label for table in find_tables(fused.model)]
    keep = Selector(options.keep).choose(labels, tables) if options.keep else set()
    if options.calibration == SELF:
        data = write_own(loaded, as_float, samples=options.samples, say=say)
    else:
        data = read_calibration(loaded, options.calibration, samples=options.samples, force=options.force)
    gate: GateRecord | None = None
    decision, trial, path = _Decision(Plan()), fused, as_float
    for number, strictness in enumerate(STRICTNESS):
        trial = fused.fork()
        decision = _decide(trial, data, judge, budget, options, keep=keep, strictness=strictness, say=say)
        _carry_out(trial, decision.plan)
        path = save(trial.model, scratch / f"quantized-{number}")
        gate = judge_result(loaded, path, original, data, budget, judge=judge, say=say)
        say(str(gate))
        if gate.holds or not decision.front:  # what is not searched for does not change in another try
            break
    reason = "" if gate is not None and gate.holds else f"beyond its budget: {gate}"
    speedup = _speedup(as_float, path, requests, fused, say) if requests and not reason else None
    if speedup is not None and speedup < LEAST_SPEEDUP and not _only_smaller(options):
        reason = f"not faster than the float graph on this machine ({speedup:.2f}x)"
    record = QuantizationRecord(
        asked=options.asked,
        shipped=not reason,
        reason=reason,
        calibration=data.record,
        gate=gate,
        layers={label: _layer(planned) for label, planned in (*decision.plan, *_left(fused.model, decision.plan))},
        sensitivities=decision.sensitivities,
        front=decision.front,
        invariant=is_invariant(path, loaded, data),
        speedup=speedup,
    )
    if reason:
        logger.warning("the float graph is shipped: %s", reason)
    return Attempt(record, trial, None if reason else path)


def _left(model: ir.Model, plan: Plan) -> Iterator[tuple[str, PlannedLinear]]:
    """Yield the layers that a plan says nothing about, with the reason."""
    for conv in find_convs(model):
        if conv.label not in plan.linears:
            reason = "a convolution beside linear layers, or not in static int8"
            yield conv.label, PlannedLinear(Precision(), reason)
    for node in all_nodes(model):
        layer = None if node.graph is model.graph else linear_of(node) or conv_of(node)
        if layer is not None and layer.label not in plan.linears:
            yield layer.label, PlannedLinear(Precision(), "it lies inside a branch or a loop")


def scheme_of(target: Target) -> Scheme:
    """Return how a target wants int8: TensorRT without zero points; an x86 without VNNI with 7-bit weights."""
    if target.provider == "tensorrt":
        return Scheme(symmetric=True)
    machine = describe_machine()
    isa = machine.get("isa") or ()
    is_x86 = str(machine.get("architecture", "")).lower() in ("x86_64", "amd64")
    return Scheme(weight_bits=7 if is_x86 and not any("vnni" in str(flag) for flag in isa) else 8)


def _classifies(model: ir.Model) -> bool:
    """Tell whether the first output is made by a Softmax: it is the answer, then, and not a tensor on the way."""
    value: ir.Value | None = model.graph.outputs[0]
    while value is not None and is_op(value.producer(), "Identity", "Cast"):
        node = value.producer()
        value = node.inputs[0] if node is not None else None
    return value is not None and is_op(value.producer(), "Softmax", "LogSoftmax")


def _only_smaller(options: QuantizeOptions) -> bool:
    """Weights in fewer bits were asked for by name: they are worth having for their size alone."""
    return isinstance(options.precision, Precision) and options.precision.kind.endswith("-weights")


def _decide(
    trial: Pipeline,
    data: CalibrationData,
    judge: Judge,
    budget: MetricBudget,
    options: QuantizeOptions,
    *,
    keep: set[str],
    strictness: float,
    say: Say,
) -> _Decision:
    """Plan every layer, as the options and the kind of model have it."""
    asked, scheme = options.precision, scheme_of(trial.target)
    cached = Cache.of(trial.loaded.signature) is not None
    if cached and judge.metric == "perplexity":
        most_ratio = 1 + (budget.limit - 1) * DECODER_MARGIN * strictness
        found = search_decoder(
            trial.model,
            data,
            options.of_decoder(),
            most_ratio=most_ratio,
            keep=keep,
            given=_exact_grids(trial),
            progress=say,
        )
        return _of_decoder(found)
    if isinstance(asked, Precision) and asked.kind.endswith("-weights"):
        return _Decision(plan_weights(trial.model, asked, keep=keep, progress=say))
    if isinstance(asked, Precision) and asked.kind == "int8-dynamic":
        chosen = [linear.label for linear in find_linears(trial.model) if linear.label not in keep]
        plan = plan_columns(trial.model, data, kind="int8-dynamic", chosen=chosen, scheme=scheme, progress=say)
        kept = {label: PlannedLinear(Precision(), "kept by the user") for label in sorted(keep)}
        return _Decision(Plan({**plan.linears, **kept}))
    search = search_convs if is_convolutional(trial.model) else search_columns
    searched = search(
        trial.model,
        data,
        judge,
        budget,
        methods=options.methods,
        keep=keep,
        strictness=strictness,
        scheme=scheme,
        progress=say,
    )
    tables = plan_tables(trial.model, keep) if trial.target.provider == "cpu" and strictness > STRICTNESS[-1] else {}
    plan = replace(searched.plan, linears={**searched.plan.linears, **tables})
    return _Decision(plan, searched.sensitivities, searched.front)


def _exact_grids(trial: Pipeline) -> dict[str, Blocked]:
    """Return the codes of a checkpoint that was a GGUF file, where a kernel can hold them exactly."""
    source = gguf_behind(trial.loaded.assets)
    grids = known_grids(source, trial.model) if source is not None else {}
    return {label: grid.blocks for label, grid in grids.items() if grid.exact}


def _of_decoder(found: DecoderSearch) -> _Decision:
    precisions = {label: str(planned.precision) for label, planned in found.plan}
    harms = [SensitivityRecord(label=label, loss=harm, precision=precisions[label]) for label, harm in found.harms]
    front = [FrontRecord(value=one.ratio, seconds=one.seconds, counts=dict(one.counts)) for one in found.front]
    return _Decision(found.plan, tuple(harms), tuple(front))


def _carry_out(trial: Pipeline, plan: Plan) -> None:
    """Quantize inputs and weights before the graph is lowered, weights alone behind that."""
    steps = carrying_out(plan, trial.target)
    trial.quantize(steps)
    trial.lower()
    trial.quantize_lowered(steps)


def _layer(planned: PlannedLinear) -> LayerRecord:
    return LayerRecord(precision=str(planned.precision), reason=planned.reason, smoothed=planned.factors is not None)


def _speedup(slow: Path, fast: Path, requests: Sequence[Observation], fused: Pipeline, say: Say) -> float:
    """Return how much faster a graph is than another, in turns, the geometric mean over the shapes of the workload."""
    feeds = [request.feeds for request in requests]
    jobs = [write_job(path, feeds, fused.target, path.parent / "speed") for path in (slow, fast)]
    first, second = run_rounds(jobs, ["float", "quantized"], rounds=ROUNDS, seconds=SECONDS, progress=say)
    ratios = []
    for index, request in enumerate(requests):
        before, after = ([start.times_ms[index] for start in own] for own in (first, second))
        ratios.append(shape_stats(request.sizes, after, before).speedup)
    return float(np.exp(np.mean(np.log(ratios))))
