"""Choose a precision for every convolution and linear layer of a network for images: as fast as its budget allows.

All layers in int8 with integers between them is tried first, on grids that clip and on grids that do not. Each layer
alone is then measured (on fewer samples where the network is slow), and if the whole is beyond the budget, layers go
back to float in the order of what that gains over its time, as in `onnxopt.quantize.search`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.collect import collect
from onnxopt.calibrate.ranges import PLAIN, Method, nearest
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph import constant, is_op
from onnxopt.graph.convs import GATES, Convolution, exchanged, find_convs
from onnxopt.graph.layers import Layers
from onnxopt.graph.linears import find_linears
from onnxopt.judge.gate import Judge
from onnxopt.judge.metrics import Metric
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.affine import kernels, wide_enough
from onnxopt.qmath.knapsack import Option
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision, Scheme
from onnxopt.quantize.columns import plan_layer
from onnxopt.quantize.found import Found, found_of
from onnxopt.quantize.search import (
    FLOAT_SECONDS,
    INT8_SECONDS,
    PASS_SECONDS,
    allowed_loss,
    decisions,
    fit,
    gentle,
    why,
)
from onnxopt.quantize.switchboard import dequantized
from onnxopt.records.events import Step, under
from onnxopt.records.quantization import SensitivityRecord
from onnxopt.spec import Array, Feeds, Say

RANK_SECONDS = 30.0  # for measuring each layer alone, about
RANK_SAMPLES = 8
START_SECONDS = 0.1  # of a run of a layer alone: its graph is written and opened
SLOWER = 8.0  # a run with the runtime's optimizations off, than its products alone with them on
SAMPLES_TO_CHOOSE = 32
UNIT = {False: Affine(1 / 255, 0), True: Affine(1 / 127, 0, "int8")}  # what a gate gives


@dataclass
class _Network:
    """The layers of a network that may be quantized, with what is known of their tensors."""

    layers: Layers
    fitted: Mapping[ir.Value, Statistics]
    held: Mapping[ir.Value, Statistics]
    scheme: Scheme

    def plan(self, chosen: Collection[str], methods: tuple[Method, ...], known: Mapping[str, PlannedLinear]) -> Plan:
        """Return the plan in which some layers are in int8; `known` is what has been worked out already."""
        convs = [conv for conv in self.layers.convs if conv.label in chosen]
        linears = [linear for linear in self.layers.linears if linear.label in chosen]
        leaders = exchanged(self.layers.model, convs, [linear.x for linear in linears])
        grids = {value: self._grid(leader, methods) for value, leader in leaders.items()}
        made = {label: planned for label, planned in known.items() if label in chosen}
        for linear in linears:  # one grid for all readers of a tensor
            made[linear.label] = replace(
                made[linear.label], activation=grids.get(linear.x, made[linear.label].activation)
            )
        return Plan(made, {value.name or "": grid for value, grid in grids.items()}, self.scheme.symmetric)

    def in_int8(self, methods: tuple[Method, ...]) -> dict[str, PlannedLinear]:
        """Return every layer in int8."""
        found: dict[str, PlannedLinear] = {}
        for conv in self.layers.convs:
            if conv.x in self.fitted:
                found[conv.label] = self._convolution(conv, self._grid(conv.x, methods))
        for linear in self.layers.linears:
            seen = self.fitted.get(linear.x)
            if seen is not None and seen.rows:
                sample = self.held[linear.x].sample if linear.x in self.held else seen.sample
                found |= plan_layer([linear], [linear.matrix()], seen, sample, methods, scheme=self.scheme)
        return found

    def _grid(self, value: ir.Value, methods: tuple[Method, ...]) -> Affine:
        producer = value.producer()
        if producer is not None and is_op(producer, *GATES):
            return UNIT[self.scheme.symmetric]
        held = self.held.get(value, self.fitted[value])
        return nearest(self.fitted[value], held.sample, methods, scheme=self.scheme)

    def _convolution(self, conv: Convolution, grid: Affine) -> PlannedLinear:
        """Return the codes of a convolution, and its bias with the mean error of the weight taken out.

        Source: bias correction, Nagel et al. 2019, arXiv:1906.04721, section 4.2, with the mean of each channel.
        """
        seen, weight = self.fitted[conv.x], conv.kernel()
        plain = conv.groups == 1
        codes, scales = kernels(weight, bits=self.scheme.weight_bits, importance=seen.moments if plain else None)
        bias = constant(conv.bias)
        lost = weight - codes * scales.reshape(-1, *[1] * (weight.ndim - 1))
        taps = lost.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)  # [out, channels / groups]
        mean = seen.mean.reshape(conv.groups, -1)[np.arange(len(weight)) // (len(weight) // conv.groups)]
        shift = (taps * mean).sum(axis=1)
        corrected = np.asarray((0 if bias is None else bias) + shift, np.float32)
        if not self.scheme.symmetric:
            codes, scales = wide_enough(scales, codes, corrected, grid.scale)
        return PlannedLinear(Precision("int8"), activation=grid, columns=(codes, scales), bias=corrected)


@dataclass
class _Trial:
    """Plans on one set of samples against the float network."""

    network: _Network
    metric: Metric
    batches: Sequence[Feeds]
    methods: tuple[Method, ...]
    reference: list[Array] = field(default_factory=list)
    decisions: int = 0

    def value(self, linears: Mapping[str, PlannedLinear]) -> float:
        chosen = {label for label, planned in linears.items() if planned.precision.kind == "int8"}
        plan = self.network.plan(chosen, self.methods, linears)
        if not self.reference:
            self.reference = self._outputs(self.network.layers.model)
        self.decisions = decisions(self.reference)
        found = self._outputs(emulate(self.network.layers.model, plan)) if chosen else self.reference
        return self.metric.value(self.metric.over(found, self.reference, self.batches))

    def _outputs(self, model: ir.Model) -> list[Array]:
        runner = GraphRunner(model)
        return [runner.run(feeds)[0][self.metric.output] for feeds in self.batches]

    def fewer(self, count: int) -> _Trial:
        """Return the same on some samples, for ranking layers."""
        return _Trial(self.network, gentle(self.metric), self.batches[:count], self.methods, self.reference[:count])


def search_convs(
    layers: Layers,
    judge: Judge,
    *,
    methods: tuple[Method, ...],
    keep: Collection[str] = (),
    strictness: float = 1.0,
    scheme: Scheme = PLAIN,
    progress: Say | None = None,
) -> Found:
    """Find the fastest static int8 plan of a network of convolutions within a budget.

    Args:
        layers: of a fused graph of standard operators, which is not changed.
        judge: with the calibration samples; what is measured on them, and how far it may fall.
        methods: calibrators to compare.
        keep: labels that stay in float.
        strictness: below 1 asks for less loss than the budget allows, after a judge has turned a plan down.
        scheme: what the target wants.
        progress: told what is done.
    """
    say = progress or (lambda _: None)
    data, metric, budget = judge.data, judge.metric, judge.budget
    kept = {label: PlannedLinear(Precision(), "kept by the user") for label in layers.labels if label in keep}
    wanted = layers.without(keep)
    rows = list(dict.fromkeys(linear.x for linear in wanted.linears))
    pictures = [value for value in exchanged(wanted.model, wanted.convs, rows) if value not in rows]
    tensors = [*pictures, *rows]
    fitted, held = (
        collect(wanted.model, tensors, data, part, images=pictures, progress=lambda step: say(under("calibrate", step)))
        for part in ("fit", "choose")
    )
    network = _Network(wanted, fitted, held, scheme)
    batches = list(data.batches("choose", most=SAMPLES_TO_CHOOSE))
    best: tuple[float, _Trial, dict[str, PlannedLinear]] | None = None
    for tried in (methods, ("min-max",)) if len(methods) > 1 else (methods,):
        made, trial = network.in_int8(tried), _Trial(network, metric, batches, tried)
        value = trial.value(made)
        say(f"all layers in int8, {' or '.join(tried)}: {budget.metric} {value:.5f}")
        if best is None or value > best[0]:
            best = value, trial, made
    if best is None:
        raise ValueError("no calibrator was named")
    value, trial, in_int8 = best
    kept |= {
        label: PlannedLinear(Precision(), "its input was never computed")
        for label in layers.labels
        if label not in {*kept, *in_int8}
    }
    units, ranking = _rank(trial, in_int8, len(data.part("fit")), say)
    fits = metric.loss(value) <= allowed_loss(trial, budget, strictness)
    searched = fit(units, trial, budget, strictness, say, all_fit=value if fits else None)
    made = searched.best.assignment.planned
    plan = network.plan({label for label, one in made.items() if one.precision.kind == "int8"}, trial.methods, made)
    order = sorted(ranking.values(), key=lambda one: -one.loss)
    told = tuple(one.model_copy(update={"precision": str(made[one.label].precision)}) for one in order)
    whole = replace(plan, linears={**kept, **made, **plan.linears})
    return found_of(whole, searched, judge, told)


def ranked_on(products: float, layers: int) -> int:
    """Return how many samples each layer is ranked on: as many as there is about time for.

    What a run computes says it, not the clock: another build is to rank on as many.

    Args:
        products: multiplications of one sample.
        layers: how many there are.
    """
    one = START_SECONDS + SLOWER * FLOAT_SECONDS * products
    return max(1, min(RANK_SAMPLES, int(RANK_SECONDS / (one * max(layers, 1)))))


def _rank(
    trial: _Trial, in_int8: Mapping[str, PlannedLinear], fitted: int, say: Say
) -> tuple[list[list[Option]], dict[str, SensitivityRecord]]:
    """Measure each layer alone, on as many samples as there is time for; `fitted` samples are in the statistics."""
    network = trial.network
    found = {
        conv.label: (conv.x, float(np.prod(conv.shape)) * network.fitted[conv.result].rows, _edges(network, conv))
        for conv in network.layers.convs
        if conv.label in in_int8
    }
    found |= {
        one.label: (one.x, float(one.rows * one.columns) * rows, float(one.rows + one.columns) * rows)
        for one in network.layers.linears
        if one.label in in_int8 and (rows := network.fitted[one.x].rows)
    }
    few = trial.fewer(ranked_on(sum(products for _, products, _ in found.values()) / max(fitted, 1), len(found)))
    units: list[list[Option]] = []
    ranking: dict[str, SensitivityRecord] = {}
    for number, (label, (x, products, edges)) in enumerate(found.items(), start=1):
        loss = 1.0 - few.value({label: in_int8[label]})
        words = f"sensitivity {number} of {len(found)}: {label} {max(loss, 0.0):.2g}"
        say(Step(words, work="sensitivity", done=number, total=len(found)))
        loss = max(loss, 0.0)
        careful = PlannedLinear(Precision(), f"costs {loss:.2g} in int8")
        units.append(
            [
                Option({label: in_int8[label]}, loss, INT8_SECONDS * products),
                Option({label: careful}, 0.0, FLOAT_SECONDS * products + PASS_SECONDS * edges),
            ]
        )
        ranking[label] = SensitivityRecord(label=label, loss=loss, reason=why(network.fitted[x]))
    return units, ranking


def _edges(network: _Network, conv: Convolution) -> float:
    """Return how many numbers a convolution reads and writes: in float among integers, all are converted."""
    return float(sum(network.fitted[value].rows * len(network.fitted[value].mean) for value in (conv.x, conv.result)))


def emulate(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a copy of a network that computes in float what a plan's integers stand for."""
    copy = model.clone()
    for conv in find_convs(copy):
        planned = plan.get(conv.label, "int8")
        if planned is None or planned.columns is None:
            continue
        codes, scales = planned.columns
        weight = codes * scales.reshape(-1, *[1] * (codes.ndim - 1))
        conv.node.replace_input_with(1, _constant(copy, weight.astype(np.float32), f"{conv.label}::weight"))
        if planned.bias is not None:
            bias = _constant(copy, planned.bias, f"{conv.label}::bias")
            conv.node.resize_inputs(3)
            conv.node.replace_input_with(2, bias)
    grids = dict(plan.grids)
    for linear in find_linears(copy):
        planned = plan.get(linear.label, "int8")
        stored = dequantized(planned, linear)
        if planned is None or stored is None:
            continue
        linear.node.replace_input_with(1, _constant(copy, stored, f"{linear.label}::weight"))
        if planned.activation is not None and linear.x.name not in grids:
            grids[linear.x.name or ""] = planned.activation
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values |= {value.name: value for value in copy.graph.inputs}
    for name, grid in grids.items():
        _round(copy, values[name], grid)
    return copy


def _constant(model: ir.Model, array: Array, name: str) -> ir.Value:
    value = ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
    )
    model.graph.register_initializer(value)
    return value


def _round(model: ir.Model, value: ir.Value, grid: Affine) -> None:
    """Let the readers of a tensor read it rounded to a grid."""
    scale = _constant(model, np.array(grid.scale, np.float32), f"{value.name}::scale")
    zero = ir.Value(name=f"{value.name}::zero", const_value=ir.tensor(np.array(grid.zero_point, grid.dtype)))
    model.graph.register_initializer(zero)
    codes = ir.node("QuantizeLinear", [value, scale, zero])
    back = ir.node("DequantizeLinear", [codes.outputs[0], scale, zero])
    codes.outputs[0].name, back.outputs[0].name = f"{value.name}::codes", f"{value.name}::rounded"
    producer, uses = value.producer(), [use for use in value.uses() if use.node is not codes]
    for place, output in enumerate(model.graph.outputs):
        if output is value:
            value.name, back.outputs[0].name = f"{value.name}::exact", value.name
            back.outputs[0].type = value.type
            model.graph.outputs[place] = back.outputs[0]
    for use in uses:
        use.node.replace_input_with(use.idx, back.outputs[0])
    if producer is not None:
        model.graph.insert_after(producer, [codes, back])
    elif uses:
        model.graph.insert_before(next(iter(model.graph)), [codes, back])
