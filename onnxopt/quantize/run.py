"""Quantize a fused graph: calibrate, plan, carry out, judge, time; and back to float where it does not pay."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxopt.calibrate.data import CalibrationData, judging_alone, read_calibration
from onnxopt.calibrate.own_text import write_own
from onnxopt.calibrate.sources import NONE, SELF
from onnxopt.errors import InputError
from onnxopt.graph import all_nodes, initializer_bytes, is_op, opset
from onnxopt.graph.convs import conv_of
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import Selector, linear_of
from onnxopt.graph.stored_weights import StoredWeight, pack_weights, unpack_weights
from onnxopt.graph.weight_files import is_large
from onnxopt.host.extras import missing
from onnxopt.judge.gate import Judge, require_metric
from onnxopt.judge.metrics import Metric
from onnxopt.load.source.gguf import gguf_behind
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.probe.program import ProbeError
from onnxopt.qmath.precision import Blocked, Plan, PlannedLinear, Precision, Scheme
from onnxopt.quantize.checkpoint_grids import known_grids
from onnxopt.quantize.columns import plan_columns
from onnxopt.quantize.convs import search_convs
from onnxopt.quantize.decoder import DecoderPlanner, plan_unseen
from onnxopt.quantize.found import Found
from onnxopt.quantize.options import QuantizeOptions, scheme_of
from onnxopt.quantize.positions import all_positions
from onnxopt.quantize.search import MARGIN, search_columns
from onnxopt.quantize.trials import carry_out, left_in_float
from onnxopt.quantize.two_ways import Finished, with_prompts
from onnxopt.quantize.weights import plan_tables, plan_weights
from onnxopt.quantize.workplace import Workplace
from onnxopt.records.quantization import IN_PROMPTS, NOT_FASTER, LayerRecord, QuantizationRecord
from onnxopt.spec import Say

logger = logging.getLogger(__name__)

NO_KERNEL = "Could not find an implementation"  # as onnxruntime says it

TRIES = 3  # of one search after the other, when the judge turns a plan down
STRICTER = (0.5, 0.9)  # how much less of a loss the next search may have than the last one
LEAST_FOR_TABLES = 0.5  # of what is allowed: where less must be lost, tables stay in float
LEAST_SPEEDUP = 1.0
MOST_TWICE_BYTES = 1 << 32  # of float32 weights that an artifact may hold in two forms
DECODER_SHARE = 0.75  # of what a budget allows: other text diverges more, and activations are rounded too


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
class _Task:
    """What is quantized, and how.

    Attributes:
        fused: the float graph before it is lowered; not changed.
        layers: of that graph.
        options: what was asked.
        judge: of the results.
        place: where they are tried.
        keep: labels of layers that stay in float.
        stored: weights that the file has in few bits, and that are stored so again where they stay.
    """

    fused: Pipeline
    layers: Layers
    options: QuantizeOptions
    judge: Judge
    place: Workplace
    keep: set[str]
    stored: Mapping[str, StoredWeight]

    def finish(self, plan: Plan, number: int) -> Finished:
        """Carry a plan out and have it judged."""
        trial = self.fused.fork()
        carry_out(trial, plan)
        pack_weights(trial.model, self.stored)
        path = self.place.write(trial.model, f"quantized-{number}")
        gate = self.judge.judged(path, self.place.say)
        self.place.say(str(gate))
        return Finished(trial, plan, path, gate)

    @property
    def wants_both_ways(self) -> bool:
        """A second way for prompts is for kernels with integers on both sides, which the CPU provider has.

        From a billion weights on there is no room for them twice.
        """
        here = self.fused.target.provider == "cpu" and initializer_bytes(self.fused.model) <= MOST_TWICE_BYTES
        return self.options.both_ways and here and self.judge.is_of_language


def quantize(
    fused: Pipeline, options: QuantizeOptions, place: Workplace, *, original: Callable[[], Path], as_float: Path
) -> Attempt:
    """Quantize a fused graph inside its budget.

    Args:
        fused: before it is lowered; not changed.
        options: what was asked.
        place: where results are tried.
        original: writes the model as it was loaded, and returns its file.
        as_float: the finished float graph, which is shipped when quantization does not pay.

    Raises:
        InputError: an option does not fit the model, or the runtime has no kernels for it.
    """
    loaded = fused.loaded
    metric = Metric.of(loaded.signature, classifies=_classifies(fused.model))
    budget = options.budget or options.default_budget(metric.name)
    require_metric(metric, budget)  # before anything takes time
    fused.raise_to_quantize()
    stored = unpack_weights(fused.model)
    layers = Layers.of(fused.model)
    tables = [table.label for table in layers.tables]
    keep = Selector(options.keep).choose(layers.labels, tables) if options.keep else set()
    if not layers.labels:
        reason = "no layer was found: it has no product with a constant float32 matrix and no such convolution"
        return Attempt(_unquantized(options.asked, reason, layers, Plan()), fused, None)
    if options.calibration == SELF:
        data = write_own(loaded, as_float, samples=options.samples, say=place.say)
    elif options.calibration == NONE:
        data = judging_alone(loaded)
    else:
        data = read_calibration(loaded, options.calibration, samples=options.samples, force=options.force)
    judge = Judge(loaded, original, data, metric, budget, all_positions(fused.model) if is_large(fused.model) else None)
    task = _Task(fused, layers, options, judge, place, keep, stored)
    with _kernels_there(fused):
        decision, step = _within(_decider(task), task)
    if not _is_quantized(step.pipeline):
        found = Counter(planned.reason for _, planned in decision.plan if planned.reason)
        why = f" ({found.most_common(1)[0][0]})" if found else ""
        record = _unquantized(options.asked, f"no layer was quantized{why}", layers, decision.plan)
        return Attempt(record, step.pipeline, None)
    return _settled(task, decision, step, as_float)


@contextmanager
def _kernels_there(fused: Pipeline) -> Iterator[None]:
    """Let a runtime that cannot run what quantizing writes be said in a user's words.

    onnxruntime 1.23, the newest one for Python 3.10, has QuantizeLinear of opset 22 and not of 23, to which a graph is
    raised for its attention.

    Raises:
        InputError: it has no kernel for a node.
    """
    try:
        yield
    except ProbeError as error:
        if NO_KERNEL not in str(error):
            raise
        hint = "use int8-dynamic or int8-weights, or a newer onnxruntime, which needs Python 3.11 or newer"
        what = f"a quantized graph of opset {opset(fused.model)} cannot be run here ({error})"
        raise InputError(what, where="--precision", hint=hint) from error


def _settled(task: _Task, decision: Found, step: Finished, as_float: Path) -> Attempt:
    """Give a judged graph its second way where it may have one, time it, and ship it where it is inside its budget.

    Args:
        task: what is quantized.
        decision: what the search decided on.
        step: the judged graph; of a language model the one for single tokens.
        as_float: the file of the float graph, which is shipped otherwise.
    """
    settled = task.place.settled
    both = (
        with_prompts(task.fused, task.layers, step, task.judge, task.place, keep=task.keep)
        if (step.gate.holds and task.wants_both_ways and (settled is None or settled.both_ways))
        else None
    )
    made, prompts = (step, {}) if both is None else (both.finished, both.prompts)
    reason = "" if step.gate.holds else f"beyond its budget: {step.gate}"
    gain = None if reason else task.place.speedup(as_float, made.path, task.fused)
    for_size = task.options.allow_slower or _only_smaller(task.options)
    if gain is not None and gain.speedup < LEAST_SPEEDUP and not for_size:
        reason = f"{NOT_FASTER} ({gain.speedup:.2f}x)"
    reason = reason or (settled.slower if settled is not None and not task.options.allow_slower else "")
    undone = left_in_float(step.pipeline, task.layers, decision.plan)
    record = QuantizationRecord(
        asked=task.options.asked,
        shipped=not reason,
        reason=reason,
        calibration=task.judge.data.record,
        gate=made.gate,
        layers={
            label: _layer(planned, prompts.get(label), undone.get(label))
            for label, planned in (*decision.plan, *_left(task.layers, decision.plan))
        },
        sensitivities=tuple(
            one.model_copy(update={"precision": str(Precision())}) if one.label in undone else one
            for one in decision.sensitivities
        ),
        front=decision.front,
        invariant=task.judge.is_invariant(made.path),
        speedup=gain.speedup if gain is not None else None,
        speedup_low=gain.low if gain is not None else None,
        speedup_high=gain.high if gain is not None else None,
    )
    if reason:
        logger.warning("the graph stays in float: %s", reason)
    return Attempt(record, made.pipeline, None if reason else made.path)


def _is_quantized(trial: Pipeline) -> bool:
    """Tell whether a plan was carried out anywhere: where every layer stays in float there is nothing to judge."""
    return any(entry.applied for entry in trial.ledger.entries if entry.name.startswith("quantize-"))


def _unquantized(asked: str, reason: str, layers: Layers, plan: Plan) -> QuantizationRecord:
    """Return the record of a model none of whose layers was quantized: nothing was judged."""
    logger.warning("the float graph is shipped: %s", reason)
    records = {
        label: LayerRecord(precision=str(Precision()), reason=planned.reason)
        for label, planned in (*plan, *_left(layers, plan))
    }
    return QuantizationRecord(asked=asked, shipped=False, reason=reason, layers=records)


def _left(layers: Layers, plan: Plan) -> Iterator[tuple[str, PlannedLinear]]:
    """Yield the layers that a plan says nothing about, with the reason."""
    for conv in layers.convs:
        if conv.label not in plan.linears:
            reason = "a convolution beside linear layers, or not in static int8"
            yield conv.label, PlannedLinear(Precision(), reason)
    for node in all_nodes(layers.model):
        layer = None if node.graph is layers.model.graph else linear_of(node) or conv_of(node)
        if layer is not None and layer.label not in plan.linears:
            yield layer.label, PlannedLinear(Precision(), "it lies inside a branch or a loop")


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


def _within(decide: Callable[[float], Found], task: _Task) -> tuple[Found, Finished]:
    """Search until the judge finds the result within the budget; return the last result where nothing is.

    Args:
        decide: searches within a share of the loss that is allowed.
        task: carries a plan out and has it judged.
    """
    share, metric = DECODER_SHARE if task.judge.is_of_language else MARGIN, task.judge.metric
    decision = decide(share)
    result = task.finish(decision.plan, 0)
    for number in range(1, TRIES):
        if result.gate.holds or decision.value is None:  # what is not searched for does not change in another try
            break
        share = stricter(share, metric.loss(decision.value), metric.loss(result.gate.value))
        careful = decide(share)
        if _precisions(careful.plan) != _precisions(decision.plan):
            decision, result = careful, task.finish(careful.plan, number)
    return decision, result


def stricter(share: float, searched: float, judged: float) -> float:
    """Return what share of the loss allowed a search may have next, after a judge has turned its plan down.

    Args:
        share: that it had.
        searched: what its plan lost in the search.
        judged: what it lost for the judge.
    """
    least, most = STRICTER
    return min(max(searched / judged, least * share), most * share)


def _precisions(plan: Plan) -> dict[str, str]:
    return {label: f"{one.precision} {one.factors is not None}" for label, one in plan}


def _decider(task: _Task) -> Callable[[float], Found]:
    """Return what plans every layer, as the options and the kind of model have it.

    It is told what share of the loss that the budget allows a plan may have.
    """
    fused, options, judge, keep, say = task.fused, task.options, task.judge, task.keep, task.place.say
    asked, scheme, layers = options.precision, scheme_of(fused.target), task.layers
    if judge.is_of_language:
        given = _exact_grids(fused, layers)
        if options.calibration == NONE and isinstance(asked, Precision):
            return lambda _: Found(plan_unseen(layers, asked, keep=keep, given=given, progress=say))
        planner = DecoderPlanner.of(layers, judge.data, options.of_decoder(), keep=keep, given=given, progress=say)
        return lambda share: planner.within(judge.budget.limit**share)
    if isinstance(asked, Precision) and asked.kind.endswith("-weights"):
        known = _stored_grids(layers, task.stored, asked.block_size) if asked.kind == "int8-weights" else {}
        return lambda _: Found(plan_weights(layers, asked, keep=keep, given=known, progress=say))
    if isinstance(asked, Precision) and asked.kind == "int8-dynamic":
        return lambda _: Found(_dynamic(layers, judge.data, keep, scheme, say))

    def searched(share: float) -> Found:
        search, strictness = search_convs if layers.is_convolutional else search_columns, share / MARGIN
        found = search(
            layers, judge, methods=options.methods, keep=keep, strictness=strictness, scheme=scheme, progress=say
        )
        wants_tables = fused.target.provider == "cpu" and strictness > LEAST_FOR_TABLES
        tables = plan_tables(layers, keep) if wants_tables else {}
        return replace(found, plan=replace(found.plan, linears={**found.plan.linears, **tables}))

    return searched


def _dynamic(layers: Layers, data: CalibrationData, keep: set[str], scheme: Scheme, say: Say) -> Plan:
    chosen = layers.without(keep).linears
    plan = plan_columns(layers.model, chosen, data, kind="int8-dynamic", scheme=scheme, progress=say)
    return Plan({**plan.linears, **{label: PlannedLinear(Precision(), "kept by the user") for label in sorted(keep)}})


def _exact_grids(fused: Pipeline, layers: Layers) -> dict[str, Blocked]:
    """Return the codes of a checkpoint that was a GGUF file, where a kernel can hold them exactly."""
    source = None if missing("gguf") else gguf_behind(fused.loaded.assets)
    grids = known_grids(source, layers.linears) if source is not None else {}
    return {label: grid.blocks for label, grid in grids.items() if grid.exact}


def _stored_grids(layers: Layers, stored: Mapping[str, StoredWeight], block_size: int) -> dict[str, Blocked]:
    """Return the codes that a file has of its weights, in blocks, where a kernel can hold them exactly."""
    found: dict[str, Blocked] = {}
    for linear in layers.linears:
        weight = stored.get(linear.weight.name or "")
        blocks = None if weight is None else weight.blocks(block_size, transposed=linear.transposed)
        if blocks is not None:
            found[linear.label] = blocks
    return found


def _layer(planned: PlannedLinear, in_prompts: PlannedLinear | None, undone: str | None) -> LayerRecord:
    """Say what became of a layer: what was planned, unless there is a reason why that was undone."""
    if undone is not None:
        planned = PlannedLinear(Precision(), undone)
    reason = planned.reason
    if in_prompts is not None:
        smoothed = " smoothed" if in_prompts.factors is not None else ""
        reason = f"{f'{reason}; ' if reason else ''}{in_prompts.precision}{smoothed} {IN_PROMPTS}"
    return LayerRecord(precision=str(planned.precision), reason=reason, smoothed=planned.factors is not None)
