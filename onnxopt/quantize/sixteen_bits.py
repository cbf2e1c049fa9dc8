"""Turn a lowered float graph into one of 16 bits: ranges, conversion, proof of every tensor, proof of the whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.data import CalibrationData, read_calibration
from onnxopt.errors import InputError, ProofError
from onnxopt.graph import initializer_bytes
from onnxopt.graph.cache import Cache
from onnxopt.judge.gate import Judge, require_metric
from onnxopt.judge.metrics import Metric
from onnxopt.load.loaded import Feeder, Loaded
from onnxopt.passes.quantize.half_precision import HalfPrecision
from onnxopt.pipeline.orders import TIDY
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.cases import cases_of
from onnxopt.proof.observations import observations_of
from onnxopt.proof.whole import is_packed, prove
from onnxopt.qmath.precision import HalfKind
from onnxopt.quantize.narrowing import TOLERANCES, Halved, halve
from onnxopt.quantize.options import HalfOptions
from onnxopt.records.events import under
from onnxopt.records.ledger import Ledger, PassEntry, Refused
from onnxopt.records.quantization import GateRecord, HalfPrecisionRecord, LayerRecord, QuantizationRecord
from onnxopt.rewrite.registry import get
from onnxopt.spec import Budget, Feeds, Padding, Say, Signature, TensorSpec
from onnxopt.texts.files import BUILTIN
from onnxopt.timing.latency import typed

logger = logging.getLogger(__name__)

# max|result - reference| / max|reference| of any output, keys of a cache among them, at every size and padding, on
# random tokens, on which activations are larger than on text
OUTPUT_ERRORS: dict[HalfKind, float] = {"fp16": 0.04, "bf16": 0.25}
FEW = 32  # samples, of which SAMPLES show ranges and OTHERS are compared on
SAMPLES, OTHERS, SAMPLE_TOKENS = 16, 4, 128

Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True)
class HalfAttempt:
    """What came of it.

    Attributes:
        record: for the manifest.
        loaded: with the graph in 16 bits, its signature and inputs for it; None when the float graph is to be shipped.
        source: the float graph with its reference.
    """

    record: QuantizationRecord
    loaded: Loaded | None
    source: Loaded

    def prove_on_device(self, run: Run, say: Say) -> None:
        """Compare what a device answers with the reference, at all sizes and paddings.

        Raises:
            ProofError: an output is beyond what the kind of 16 bits allows; nothing was written.
        """
        if self.loaded is not None and self.record.half is not None:
            _prove_outputs(self.source, self.loaded, run, self.record.half.kind, say)


def check_half(loaded: Loaded, options: HalfOptions) -> None:
    """Refuse what does not fit a model, before any work is done.

    Raises:
        InputError: the budget bounds another metric, or there is no such thing for a model with a cache.
    """
    if options.budget is not None:
        require_metric(Metric.of(loaded.signature), options.budget)
    if Cache.of(loaded.signature) is not None and options.kind == "bf16":
        raise InputError(
            "bf16 is not made for models with a cache: NumPy and the clients cannot hand over bfloat16",
            where=loaded.name,
            hint="use --precision fp16, in which what is too large for it stays in float32",
        )


def to_half(
    loaded: Loaded,
    ledger: Ledger,
    options: HalfOptions,
    *,
    original: Path,
    save: Callable[[ir.Model], Path],
    say: Say,
) -> HalfAttempt:
    """Convert a lowered and proved float graph.

    Args:
        loaded: with the graph, which is not changed.
        ledger: gets the entry of the pass.
        options: what was asked.
        original: the model as it was loaded, for a judge of perplexity.
        save: writes a graph into a new folder.
        say: told what is done.

    Raises:
        InputError: an option does not fit the model.
    """
    check_half(loaded, options)
    cache = Cache.of(loaded.signature)
    started = time.perf_counter()
    samples, others, data = _samples(loaded, options)
    handed = [*cache.inputs, *cache.outputs] if cache is not None else []
    if options.with_io:
        every = (*loaded.signature.inputs, *loaded.signature.outputs)
        handed = [spec for spec in every if spec.dtype == "float32"]
    caches = frozenset(spec.name for spec in handed)
    found = halve(loaded.model, options.kind, samples, others, caches=caches, say=say)
    for name in TIDY:
        get(name).run(found.model)  # type: ignore[attr-defined]  # the passes that tidy up work on whole graphs
    narrowed = _loaded(loaded, found.model, caches)
    reason = "" if found.holds else f"{found.errors[0].name} is wrong by {found.errors[0].error:.2g} (rms)"
    reason = reason or _beyond(loaded, narrowed, options.kind, say)
    gate: GateRecord | None = None
    if not reason and options.budget is not None and data is not None:
        judge = Judge(narrowed, original, data, Metric.of(narrowed.signature), options.budget)
        gate = judge.judged(save(found.model), say)
        reason = "" if gate.holds else f"beyond its budget: {gate}"
    _enter(ledger, loaded.model, found, time.perf_counter() - started)
    if reason:
        logger.warning("the graph stays in float: %s", reason)
    record = QuantizationRecord(
        asked=options.asked,
        shipped=not reason,
        reason=reason,
        calibration=data.record if data is not None else None,
        gate=gate,
        layers=_layers(found),
        half=HalfPrecisionRecord(
            kind=options.kind,
            nodes=found.nodes,
            compared=len(found.errors),
            worst_error=found.errors[0].error if found.errors else 0.0,
            worst_at=found.errors[0].name if found.errors else "",
            tolerance=TOLERANCES[options.kind],
            clamped=tuple(sorted(set(found.clamped))),
        ),
    )
    return HalfAttempt(record, None if reason else narrowed, loaded)


def _samples(loaded: Loaded, options: HalfOptions) -> tuple[list[Feeds], list[Feeds], CalibrationData | None]:
    """Return inputs to read ranges from, others to compare on, and where they come from; probes without a tokenizer."""
    try:
        most = options.samples or (None if options.budget is not None else FEW)  # a judge asks for more
        data = read_calibration(loaded, options.calibration, samples=most, force=options.force)
    except InputError:
        if options.calibration != BUILTIN or options.budget is not None:
            raise
        probes = [one.feeds for one in observations_of(loaded)]
        return probes, probes, None
    fit = list(data.batches("fit", batch_tokens=SAMPLE_TOKENS, most=SAMPLES))
    return fit, list(data.batches("choose", batch_tokens=SAMPLE_TOKENS, most=OTHERS)), data


def _loaded(loaded: Loaded, model: ir.Model, caches: frozenset[str]) -> Loaded:
    """Return what is written: the graph in 16 bits, and inputs that fit it."""
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}

    def narrowed(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(spec, dtype=kind.numpy().name)
            if spec.name in caches and (kind := types[spec.name]) is not None
            else spec
            for spec in specs
        )

    signature = Signature(narrowed(loaded.signature.inputs), narrowed(loaded.signature.outputs))
    return replace(loaded, model=model, signature=signature, feeder=_TypedFeeder(loaded.feeder, signature))


@dataclass(frozen=True)
class _TypedFeeder:
    """Makes the inputs of another feeder in the types of a signature."""

    inner: Feeder
    signature: Signature

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        return typed(self.inner.make(sizes, padding, seed), self.signature)


def _beyond(loaded: Loaded, narrowed: Loaded, kind: HalfKind, say: Say) -> str:
    """Return which output is too far from the reference's, at which size and padding; an empty string when none is."""
    try:
        _prove_outputs(loaded, narrowed, rounding_run(narrowed.model), kind, lambda step: say(under("outputs", step)))
    except ProofError as error:
        return error.what
    return ""


def _prove_outputs(loaded: Loaded, narrowed: Loaded, run: Run, kind: HalfKind, say: Say) -> None:
    prove(
        _in_float(run, narrowed.signature),
        loaded,
        Budget(OUTPUT_ERRORS[kind]),
        cases_of(loaded),
        say,
        packed=is_packed(loaded),
    )


def rounding_run(model: ir.Model) -> Run:
    """Return a run of a graph that rounds each result to 16 bits, on a CPU without kernels for them.

    It keeps hold of the weights: let go of it before the graph is saved.
    """
    runner = GraphRunner(model, widen=True)
    return lambda feeds: runner.run(feeds)[0]


def _in_float(run: Run, signature: Signature) -> Run:
    """Take and give float32 where the graph has 16 bits, as the reference does."""
    narrow = {spec.name: spec.dtype for spec in signature.inputs if spec.dtype in ("float16", "bfloat16")}

    def wrapped(feeds: Feeds) -> Feeds:
        given = {name: array.astype(narrow[name]) if name in narrow else array for name, array in feeds.items()}
        found = run(given)
        return {
            name: array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array
            for name, array in found.items()
        }

    return wrapped


def _enter(ledger: Ledger, before: ir.Model, found: Halved, seconds: float) -> None:
    """Write into the ledger what the pass did, what it left, and which numbers it moved."""
    entry = PassEntry(
        HalfPrecision.name,
        HalfPrecision.stage,
        str(HalfPrecision.numerics),
        applied=found.nodes,
        refused=[Refused(name, f"stays in float32: {reason}") for name, reason in sorted(found.plan.wide.items())],
        worst_error=found.errors[0].error if found.errors else 0.0,
        nodes_before=before.graph.num_nodes(),
        nodes_after=found.model.graph.num_nodes(),
        seconds=seconds,
        bytes_saved=initializer_bytes(before) - initializer_bytes(found.model),
    )
    ledger.entries.append(entry)
    if found.clamped:
        names = ", ".join(sorted(set(found.clamped))[:5])
        ledger.notes.append(f"half-precision: numbers beyond the range of fp16 became the largest of it: {names}")


def _layers(found: Halved) -> dict[str, LayerRecord]:
    return {name: LayerRecord(precision="fp32", reason=reason) for name, reason in sorted(found.plan.wide.items())}
