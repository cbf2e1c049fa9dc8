"""The whole road: load, rewrite, prove, measure, package."""

from __future__ import annotations

import datetime as dt
import logging
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from onnxopt.cache import PAST, Cache, complete_all
from onnxopt.calibrate.data import BUILTIN
from onnxopt.calibrate.ranges import methods_of
from onnxopt.cases import cases_of, note_turning
from onnxopt.driver import Driver
from onnxopt.errors import InputError
from onnxopt.evidence import evidence_of
from onnxopt.export import Exporter, export, is_pair
from onnxopt.forms import Before, Workbench, require_standard
from onnxopt.given import Axes, Examples, Given, Values
from onnxopt.golden import Golden
from onnxopt.graph import CONTRIB, STANDARD_DOMAINS, op_counts
from onnxopt.halving import HalfOptions, check_half
from onnxopt.imports import OrtReference, load_onnx
from onnxopt.ledger import Ledger
from onnxopt.manifest import (
    BlockCount,
    Evidence,
    ProofRecord,
)
from onnxopt.measurements import Measurements
from onnxopt.metrics import MetricBudget
from onnxopt.model import Feeds, Loaded
from onnxopt.observations import trust_right_padding
from onnxopt.observe import Observation
from onnxopt.package import Artifact, Half, check_output_folder, write_artifact
from onnxopt.pipeline import Pipeline
from onnxopt.profit import Profit
from onnxopt.prune.run import pruned_source
from onnxopt.prune.spec import PruneSpec
from onnxopt.prune.stage import GraphPruning
from onnxopt.quantize.options import HALF_IO, QuantizeOptions
from onnxopt.reached import branches_not_run
from onnxopt.report import REPORT_NAME, render_report
from onnxopt.requests import fit_workload, requests_of
from onnxopt.saving import drawing_again, leave_ranks_open, save_graph
from onnxopt.session import Session
from onnxopt.shipping import Decision
from onnxopt.source import Source, Weights, resolve
from onnxopt.spec import Budget, Signature, Target, Workload
from onnxopt.torch_model import Logits
from onnxopt.torch_seq2seq import HALVES
from onnxopt.verify_pair import prove_pair

logger = logging.getLogger(__name__)

QUANTIZED_GOLDEN_ERROR = 3e-2  # the last bit of an activation may move it by a step of its grid
GOLDEN_ERROR = 1e-4  # what another build of the runtime may differ by in float32
GPU_GOLDEN_ERROR = 5e-3  # in float32 on a GPU, whose products may round their factors to TF32

TIMED = ("cpu", "portable")  # targets that any machine runs


@dataclass(frozen=True)
class Event:
    """Something that happened on the road, for a live view.

    Attributes:
        stage: load, canonicalize, fuse, lower, verify, measure or package.
        step: the pass or the action.
        count: rewrites kept so far by the pass.
    """

    stage: str
    step: str = ""
    count: int = 0


Listener = Callable[[Event], None]


def optimize(
    source: str | Path,
    *,
    out: str | Path | None = None,
    target: str | Target = "cpu",
    workload: str | Workload | None = None,
    budget: float | str | Budget | None = None,
    task: str | None = None,
    weights: Weights = "pretrained",
    revision: str | None = None,
    with_pooling: bool = True,
    with_cache: bool = True,
    logits: Logits = "last",
    exporter: Exporter = "auto",
    measure: bool = True,
    tune: bool = True,
    retune: bool = False,
    prune: str | PruneSpec | None = None,
    prune_data: str = "builtin",
    prune_budget: str | MetricBudget | None = None,
    precision: str = "fp32",
    calibration: str | Path = BUILTIN,
    calibration_samples: int | None = None,
    calibrator: str = "auto",
    keep: str = "",
    padding: Literal["any", "right"] = "any",
    force_calibration: bool = False,
    without: str = "",
    trust_remote_code: bool = False,
    feeds: Examples | None = None,
    axes: Axes | None = None,
    values: Values | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Turn a model into the fused, proved .onnx for a target and write it as an artifact.

    Args:
        source: sample or recipe name, Hub id, local checkpoint folder, or .onnx file.
        out: the folder to write; `build/<name>` when not given.
        target: `cpu`, `cuda`, `tensorrt`, `portable`, or a `Target`.
        workload: request shapes, such as `1x16,8x128`; the recipe's when not given.
        budget: largest relative error of any output of the float graph, the recipe's when not given; or, with a
            precision, how far the metric of the task may fall: `perplexity<=+2%`, `cosine>=0.995`, `agreement>=99%`.
        task: transformers task name; found from the checkpoint when not given.
        weights: `random` builds the architecture with made-up weights.
        revision: Hub revision.
        with_pooling: add the sentence embedding when the checkpoint describes one.
        with_cache: give a language model inputs and outputs for the keys and values that it has seen.
        logits: with a cache, whether `logits` are those of the `last` position or of `all`.
        exporter: `dynamo`, `torchscript` or `auto`.
        measure: time the model before and after on the workload, and ship the fastest proved form of it, the original's
            included; `tune` needs it. Without, the optimized graph is shipped and nothing is said of its speed.
        tune: choose kernels by measuring them in this model on this machine, at most a minute, where nothing is known
            of it; without, or without `measure`, a table of earlier measurements decides.
        retune: measure kernels anew, whatever is known.
        prune: what to make smaller first, such as `ffn=25%,layers=2`.
        prune_data: what to calibrate that with.
        prune_budget: what must be left of the answers after pruning the graph, such as `cosine>=0.97`.
        precision: `fp32`, `auto`, `mixed`, `int8`, `int8-dynamic`, `int8-weights:128`, `int4-weights:32`, ...; for a
            GPU `fp16` (`auto`) or `bf16`, and `fp16:io` for inputs and outputs in it, too.
        calibration: samples for `int8`: `builtin`, a text, .jsonl or .npz file, a folder, or `hf:data set`.
        calibration_samples: how many at most.
        calibrator: how ranges are found: `auto` compares all methods on held-out samples.
        keep: selector of linear layers that stay in float, such as `layer.0|lm_head`.
        padding: `right` for an encoder on CUDA whose batches are padded on the right alone: attention is told lengths,
            and rows are not packed. Any other padding gives wrong answers then.
        force_calibration: accept calibration data that says nothing; the result is marked.
        without: inputs of a checkpoint that are left out though its answer may depend on them, such as `bbox`,
            separated by commas; the result says so.
        trust_remote_code: allow the checkpoint's own Python code to run.
        feeds: of an .onnx file, inputs that run: an .npz file, a folder of them, or arrays by name.
        axes: of an .onnx file, the sizes of an axis: `name=8..4096:8` each, or ranges by name.
        values: of an .onnx file, what an input takes: `name=16000,8000` each, or values by name.
        progress: told what happens.

    Returns:
        The artifact.

    Raises:
        InputError: the source, an option or the environment is not usable.
        ExportError: the model cannot be exported.
        ProofError: the result is not within its budget; nothing was written.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    given = Given.parse(feeds, axes, values)
    goal = target if isinstance(target, Target) else Target.parse(target)
    if out is not None:
        check_output_folder(Path(out))
    say(Event("load", f"looking for {source}"))
    found = resolve(str(source), weights=weights, revision=revision, trust_remote_code=trust_remote_code)
    if given and found.kind != "onnx":
        what = "--feeds, --axis and --value are for .onnx files: inputs of a checkpoint are known"
        raise InputError(what, where=str(source), hint="drop them; shapes are asked for with --workload")
    recipe = found.recipe
    asked = Workload.parse(workload) if isinstance(workload, str) else workload
    limit, options, half = _asked_precision(
        budget,
        goal,
        precision=precision,
        calibration=str(calibration),
        samples=calibration_samples,
        calibrator=calibrator,
        keep=keep,
        force=force_calibration,
    )
    wanted, allowed = (
        asked or (recipe.workload if recipe else Workload()),
        limit or (recipe.budget if recipe else Budget()),
    )
    folder = Path(out) if out is not None else Path("build") / found.name
    check_output_folder(folder)
    if prune is not None:
        spec = PruneSpec.parse(prune) if isinstance(prune, str) else prune
        held = MetricBudget.parse(prune_budget) if isinstance(prune_budget, str) else prune_budget
        ways: dict[str, Any] = {"with_pooling": with_pooling, "with_cache": with_cache, "without": without}
        ways |= {"logits": logits, "exporter": exporter}
        pruning = _Pruning(found, spec, prune_data, held, task, ways)
        plan = _Plan(goal, wanted, allowed, folder, measure, tune, retune, options, half)
        return _optimize_pruned(pruning, plan, started, say)
    if is_pair(found, task):
        if not with_cache:
            raise InputError(
                "an encoder-decoder is made with its cache only", where=str(source), hint="drop --no-cache"
            )
        if options is not None or half is not None:
            what = "quantized" if options is not None else "converted to 16 bits"
            raise InputError(f"encoder-decoders are not {what} yet", where=str(source), hint="drop --precision")
        plan = _Plan(goal, wanted, allowed, folder, measure, tune, retune)
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as scratch:
            made = (
                export(
                    found,
                    task=task,
                    logits=logits,
                    part=part,
                    without=_names(without),
                    exporter=exporter,
                    progress=lambda step: say(Event("load", step)),
                )
                for part in HALVES
            )
            return _finish_pair(made, plan, Path(scratch), started, say)
    loaded = load(
        found,
        task=task,
        with_pooling=with_pooling,
        with_cache=with_cache,
        logits=logits,
        exporter=exporter,
        without=without,
        given=given,
        progress=say,
    )
    if padding == "right":
        trust_right_padding(loaded, goal)
    plan = _Plan(goal, fit_workload(wanted, loaded), allowed, folder, measure, tune, retune, options, half)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as scratch:
        return _finish(loaded, plan, Path(scratch), started, say)


def _asked_precision(
    budget: float | str | Budget | None,
    target: Target,
    *,
    precision: str,
    samples: int | None,
    calibrator: str,
    **given: Any,
) -> tuple[Budget | None, QuantizeOptions | None, HalfOptions | None]:
    """Return the budget of the float graph, and what is asked of quantization and of 16 bits, None for nothing."""
    chosen = QuantizeOptions.parse_precision(precision, target)
    limit: Budget | None = None
    metric: MetricBudget | None = None
    if isinstance(budget, str):
        try:
            limit = Budget(float(budget))
        except ValueError:
            metric = MetricBudget.parse(budget)
    elif budget is not None:
        limit = budget if isinstance(budget, Budget) else Budget(float(budget))
    if chosen is None:
        if metric is not None:
            raise InputError(
                f"the budget {metric} is one of quantization, and the precision is fp32",
                hint="add --precision int8, or write the largest relative error, such as 1e-4",
            )
        return limit, None, None
    if chosen == "fp16" or chosen == "bf16":  # noqa: PLR1714 - what the type checker follows
        if given.pop("keep") or calibrator != "auto":
            raise InputError(
                f"--keep and --calibrator are for int8, not for {precision}",
                hint="drop them: what needs float32 keeps it, by what is seen in it",
            )
        with_io = precision.strip().lower().endswith(HALF_IO)
        return limit, None, HalfOptions(chosen, metric, samples=samples, with_io=with_io, asked=precision, **given)
    options = QuantizeOptions(chosen, metric, samples=samples, methods=methods_of(calibrator), asked=precision, **given)
    return limit, options, None


def load(
    source: Source,
    *,
    task: str | None = None,
    with_pooling: bool = True,
    with_cache: bool = True,
    logits: Logits = "last",
    exporter: Exporter = "auto",
    without: str = "",
    given: Given | None = None,
    progress: Listener | None = None,
) -> Loaded:
    """Export a checkpoint or import an .onnx file.

    Args:
        source: from `onnxopt.source.resolve`.
        task: transformers task name.
        with_pooling: add the sentence embedding when the checkpoint describes one.
        with_cache: give a language model inputs and outputs for the keys and values that it has seen.
        logits: with a cache, whether `logits` are those of the `last` position or of `all`.
        exporter: which exporter.
        without: inputs that are left out, separated by commas.
        given: what the user says of an .onnx file.
        progress: told what happens.
    """

    def say(step: str) -> None:
        if progress is not None:
            progress(Event("load", step))

    if source.kind == "onnx" and source.path is not None:
        if task is not None:
            raise InputError("a task cannot be chosen for an .onnx file", where=str(source.path), hint="drop --task")
        if without:
            raise InputError("an .onnx file keeps its inputs", where=str(source.path), hint="drop --without")
        return load_onnx(source.path, given=given, progress=say)
    return export(
        source,
        task=task,
        with_pooling=with_pooling,
        with_cache=with_cache,
        logits=logits,
        without=_names(without),
        exporter=exporter,
        progress=say,
    )


def _names(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@dataclass(frozen=True)
class _Plan:
    """What was asked for."""

    target: Target
    workload: Workload
    budget: Budget
    out: Path
    measure: bool
    tune: bool
    retune: bool
    quantize: QuantizeOptions | None = None
    half: HalfOptions | None = None


@dataclass(frozen=True)
class _Pruning:
    """What is pruned, and how it is loaded afterwards."""

    source: Source
    spec: PruneSpec
    data: str
    budget: MetricBudget | None
    task: str | None
    options: Mapping[str, Any]


def _optimize_pruned(wanted: _Pruning, plan: _Plan, started: float, say: Listener) -> Artifact:
    """Prune a checkpoint before it is exported, its graph after it is fused, and go on as with any other model."""
    found, data = wanted.source, wanted.data

    def tell(step: str) -> None:
        say(Event("prune", step))

    with pruned_source(found, wanted.spec, data=data, budget=wanted.budget, say=tell) as (source, later, notes):
        if is_pair(source, wanted.task):
            raise InputError("encoder-decoders are not pruned", where=found.text)
        loaded = load(source, task=wanted.task, progress=say, **wanted.options)
        loaded.notes.extend(notes)
        if source is not found:
            loaded.origin |= {"source": found.text, "kind": "pruned", "revision": found.revision}
        loaded.origin["pruned"] = str(wanted.spec)
        step = (
            GraphPruning(loaded, later, data, wanted.budget, tell, workload=plan.workload)
            if later is not None
            else None
        )
        fitted = replace(plan, workload=fit_workload(plan.workload, loaded))
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as scratch:
            return _write([_work(loaded, fitted, Path(scratch), say, prune=step)], fitted, started, say)


@dataclass(frozen=True)
class _Worked:
    """A graph after rewriting, proof and measurement.

    Attributes:
        decision: what is shipped, with what was measured.
        runs_on: where it was proved.
        evidence: what was found out.
        golden: cases for others.
        seconds: of each pass.
        ops_before: operators of the graph as loaded.
    """

    decision: Decision
    runs_on: Target
    evidence: Evidence
    golden: list[Golden]
    seconds: dict[str, float]
    ops_before: Mapping[str, int]

    @property
    def loaded(self) -> Loaded:
        """The model with the graph that is shipped."""
        return self.decision.form.loaded


def _finish(loaded: Loaded, plan: _Plan, scratch: Path, started: float, say: Listener) -> Artifact:
    """Rewrite, prove, measure and write a loaded model."""
    require_standard(loaded.model, plan.target, (*STANDARD_DOMAINS, CONTRIB))  # what can only be refused, at once
    worked = _work(loaded, plan, scratch, say)
    if worked.loaded.draws is not None:  # no two runs of it give the same: there is nothing to be repeated
        drawing = drawing_again(worked.loaded, scratch / "drawing", worked.runs_on)
        form = replace(worked.decision.form, loaded=drawing)
        worked = replace(worked, decision=replace(worked.decision, form=form), golden=[])
    return _write([worked], plan, started, say)


def _finish_pair(made: Iterable[Loaded], plan: _Plan, scratch: Path, started: float, say: Listener) -> Artifact:
    """Rewrite, prove, measure and write an encoder-decoder; each half alone, then both together."""
    halves = []
    for name, loaded in zip(HALVES, made, strict=True):
        (scratch / name).mkdir()
        halves.append(_work(loaded, replace(plan, workload=fit_workload(plan.workload, loaded)), scratch / name, say))
    encode, decode = (
        Session(half.decision.form.path, target=half.runs_on, label=half.loaded.name).run for half in halves
    )
    encoder, decoder = (half.loaded for half in halves)
    proof = prove_pair(
        (encoder, encode), (decoder, decode), plan.budget, progress=lambda step: say(Event("verify", step))
    )
    plan = replace(plan, workload=fit_workload(plan.workload, encoder))
    return _write(halves, plan, started, say, proof=proof)


def _work(
    loaded: Loaded, plan: _Plan, scratch: Path, say: Listener, *, prune: Callable[[Driver], None] | None = None
) -> _Worked:
    """Rewrite, prove and measure a loaded model."""
    target = plan.target
    if isinstance(loaded.reference, OrtReference):  # a file is held to what it gives where it is going to run
        loaded.reference = loaded.reference.with_threads(target.threads)
    if plan.half is not None:
        check_half(loaded, plan.half)
    before = Before.of(default_export(loaded), scratch / "original")
    _note_ahead(loaded, plan)
    requests = requests_of(loaded, plan.workload)
    pipeline = _pipeline(loaded, plan, requests, say)
    pipeline.canonicalize_and_fuse()
    if prune is not None:
        pipeline.prune(prune)
    # kept where it may have to be gone on with, or back to; its weights are those of the graph, where they stay
    fused = pipeline.fork() if plan.quantize is not None or (plan.measure and target.provider in TIMED) else None
    pipeline.lower()
    require_standard(loaded.model, target)
    candidate = save_graph(leave_ranks_open(loaded.model, loaded.signature), scratch / "candidate")
    runs_on = _runnable(target, pipeline.ledger)

    def tell(stage: str, step: str) -> None:
        say(Event(stage, step))

    bench = Workbench(before, requests, target, runs_on, plan.workload, plan.budget, scratch, tell)
    result = bench.proved("optimized", loaded, pipeline.ledger, candidate)
    if fused is not None and plan.quantize is not None:
        result = bench.quantized(result, fused, plan.quantize, is_timed=plan.measure and bench.is_timed)
    if plan.half is not None:
        result = bench.halved(result, plan.half)
    form, quantization, is_lossy = result.form, result.quantization, result.is_lossy
    error = QUANTIZED_GOLDEN_ERROR if is_lossy else _golden_error(target)
    golden = list(_golden(form.loaded, result.run, error))
    del result  # no session beside those that are measured
    decision = Decision(form)
    if plan.measure and bench.is_timed:
        asked = "it is in fewer bits, as asked for" if is_lossy else "it is pruned, as asked for" if prune else ""
        decision = bench.fastest(form, None if is_lossy else fused, asked)
    if decision.form is not form:
        run = Session(decision.form.path, target=runs_on, exact=True, label=loaded.name).run
        golden = list(_golden(decision.form.loaded, run, error))
    evidence = evidence_of(decision, before).model_copy(update={"quantization": quantization})
    seconds: dict[str, float] = defaultdict(float)
    for entry in form.ledger.entries:
        seconds[entry.title] += entry.seconds
    return _Worked(decision, runs_on, evidence, golden, seconds, before.ops)


def _pipeline(loaded: Loaded, plan: _Plan, requests: Sequence[Observation], say: Listener) -> Pipeline:
    """Return the passes over a model, told what is known of kernels and what may be measured."""
    profit = Profit(
        plan.target,
        requests,
        plan.workload.weights,
        measure=plan.measure and plan.tune and plan.target.provider == "cpu",
        fresh=plan.retune,
        progress=lambda step: say(Event("choose", step)),
    )
    return Pipeline(
        loaded,
        plan.target,
        workload=plan.workload,
        profit=profit,
        progress=lambda stage, step, count: say(Event(stage, step, count)),
        repro_folder=plan.out.with_name(f"{plan.out.name}.rolled-back"),
    )


def _note_ahead(loaded: Loaded, plan: _Plan) -> None:
    """Remember of the graph as it was loaded what the proof at the end must know, and say what that will not reach."""
    note_turning(loaded)
    loaded.notes.extend(branches_not_run(loaded, cases_of(loaded, plan.workload)))


def _write(
    parts: Sequence[_Worked], plan: _Plan, started: float, say: Listener, *, proof: Sequence[ProofRecord] = ()
) -> Artifact:
    """Write one finished graph as an artifact, or the two of an encoder-decoder with their common proof."""
    say(Event("package", str(plan.out)))
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, spent in part.seconds.items():
            seconds[name] += spent
    pair = len(parts) > 1
    measurements = Measurements(
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        latency=tuple(latency for part in parts for latency in part.decision.latency),
        races=tuple(
            race.model_copy(update={"part": name})
            for name, part in zip(HALVES if pair else ("",), parts, strict=True)
            for race in part.decision.races
        ),
        pass_seconds=dict(seconds),
        seconds=time.perf_counter() - started,
    )
    whole = _whole([part.loaded for part in parts]) if pair else parts[0].loaded
    halves = [
        Half(name, part.loaded.model, part.loaded, part.evidence, part.golden)
        for name, part in zip(HALVES, parts, strict=False)
    ]
    before = sum((Counter(part.ops_before) for part in parts), Counter[str]())
    after = sum((Counter(op_counts(part.loaded.model)) for part in parts), Counter[str]())
    return write_artifact(
        plan.out,
        whole.model,
        whole,
        target=plan.target,
        workload=plan.workload,
        budget=plan.budget,
        evidence=_together(parts, proof) if pair else parts[0].evidence,
        golden=() if pair else parts[0].golden,
        measurements=measurements,
        extras={REPORT_NAME: lambda manifest: render_report(manifest, measurements, before, after)},
        halves=halves if pair else (),
    )


def _whole(parts: Sequence[Loaded]) -> Loaded:
    """Return an encoder-decoder as its user sees it: what the encoder takes, and the decoder's logits."""
    encoder, decoder = parts
    logits = tuple(spec for spec in decoder.signature.outputs if spec.name == "logits")
    return replace(
        decoder,
        signature=Signature(encoder.signature.inputs, logits),
        feeder=encoder.feeder,
        origin={**decoder.origin, "encoder_context_length": encoder.origin.get("context_length", 0)},
        notes=list(dict.fromkeys([*encoder.notes, *decoder.notes])),
    )


def _together(parts: Sequence[_Worked], proof: Sequence[ProofRecord]) -> Evidence:
    """Return the evidence of two graphs as one; what is said of a single one names it."""
    found = [part.evidence for part in parts]
    kinds = dict.fromkeys(kind for one in found for kind in one.blocks)
    counts = {kind: [one.blocks[kind] for one in found if kind in one.blocks] for kind in kinds}
    return Evidence(
        proof=(*(record for one in found for record in one.proof), *proof),
        ledger=tuple(record for one in found for record in one.ledger),
        blocks={
            kind: BlockCount(fused=sum(one.fused for one in own), total=sum(one.total for one in own))
            for kind, own in counts.items()
        },
        nodes_before=sum(one.nodes_before for one in found),
        nodes_after=sum(one.nodes_after for one in found),
        bytes_before=sum(one.bytes_before for one in found),
        notes=tuple(f"{name}: {note}" for name, one in zip(HALVES, found, strict=True) for note in one.notes),
    )


def default_export(loaded: Loaded) -> ir.Model:
    """Return what the result is compared with: the imported file, or the export as torch's own optimizer leaves it."""
    if loaded.task == "onnx":
        return loaded.model
    from onnxscript.optimizer import optimize as tidy

    baseline = loaded.model.clone()
    tidy(baseline)
    return baseline


def _runnable(target: Target, ledger: Ledger) -> Target:
    """Return the target, or the CPU when this machine cannot run it; the ledger says so."""
    import onnxruntime

    needed = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}.get(target.provider)
    if needed is None:
        return target
    if needed in onnxruntime.get_available_providers():
        return target
    note = f"{needed} is not installed here: proved on the CPU, not measured"
    if note not in ledger.notes:
        ledger.notes.append(note)
    return Target("cpu", target.threads)


def _golden_error(target: Target) -> float:
    """Return what a float graph may differ by in another build of the runtime."""
    return GPU_GOLDEN_ERROR if target.provider in ("cuda", "tensorrt") else GOLDEN_ERROR


def _golden(loaded: Loaded, run: Callable[[Feeds], Feeds], error: float = GOLDEN_ERROR) -> list[Golden]:
    """Take two cases, one request and one padded batch, and what the finished model answers."""
    cases = []
    cached = Cache.of(loaded.signature) is not None
    for seed, (batch, length, padding) in enumerate(((1, 9, "none"), (3, 12, "left" if cached else "right"))):
        sizes = {axis: batch if axis == "batch" else loaded.usual(axis, length) for axis in loaded.signature.axes}
        sizes = complete_all(loaded.runnable(sizes) | ({PAST: 0} if cached else {}), loaded.signature.axes, seed)
        feeds = loaded.feeder.make(sizes, padding, seed=seed)  # type: ignore[arg-type]  # the literal is one of the paddings
        cases.append(Golden(feeds, run(feeds), error, sizes, padding))  # type: ignore[arg-type]  # same
    return cases
