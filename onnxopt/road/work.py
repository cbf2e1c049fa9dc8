"""Rewrite, prove and measure one graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxopt.artifact.golden import Golden
from onnxopt.errors import ProofError
from onnxopt.graph.cache import PAST, Cache, complete_all
from onnxopt.graph.files import leave_ranks_open, save_graph
from onnxopt.graph.weight_files import WeightFile, is_large, turn_in_files, weights_in_file
from onnxopt.load.loaded import Loaded
from onnxopt.load.reference import OrtReference
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.pipeline.profit import Profit
from onnxopt.probe.observe import Observation
from onnxopt.proof.cases import cases_of, note_turning
from onnxopt.proof.driver import Driver
from onnxopt.proof.reached import branches_not_run
from onnxopt.quantize.sixteen_bits import check_half
from onnxopt.records.events import Event, Listener
from onnxopt.records.ledger import Ledger
from onnxopt.records.manifest import Evidence
from onnxopt.road.evidence import evidence_of
from onnxopt.road.forms import Before, Workbench, require_standard
from onnxopt.road.goal import Goal
from onnxopt.road.pinned import Pinned
from onnxopt.road.shipping import Decision
from onnxopt.run.session import Session
from onnxopt.spec import Feeds, Target
from onnxopt.timing.requests import requests_of

QUANTIZED_GOLDEN_ERROR = 3e-2  # the last bit of an activation may move it by a step of its grid
GOLDEN_ERROR = 1e-4  # what another build of the runtime may differ by in float32
GPU_GOLDEN_ERROR = 5e-3  # in float32 on a GPU, whose products may round their factors to TF32
TIMED = ("cpu", "portable")  # targets that any machine runs


@dataclass(frozen=True)
class Worked:
    """A graph after rewriting, proof and measurement.

    Attributes:
        decision: what is shipped, with what was measured.
        runs_on: where it was proved.
        evidence: what was found out.
        golden: cases for others.
        seconds: of each pass.
        before: the graph as it was loaded.
    """

    decision: Decision
    runs_on: Target
    evidence: Evidence
    golden: list[Golden]
    seconds: dict[str, float]
    before: Before

    @property
    def loaded(self) -> Loaded:
        """The model with the graph that is shipped."""
        return self.decision.form.loaded


def worked_on(
    loaded: Loaded,
    goal: Goal,
    scratch: Path,
    say: Listener,
    *,
    prune: Callable[[Driver], None] | None = None,
    part: str = "",
) -> Worked:
    """Rewrite, prove and measure a loaded model; what is made of the weights of a large one lies in a scratch file.

    Args:
        loaded: the model; it is changed.
        goal: what is to be reached.
        scratch: a folder for files.
        say: told what happens.
        prune: makes the fused graph smaller.
        part: which graph of an encoder-decoder it is; empty for a model of one graph.

    Raises:
        ProofError: the result is not within its budget.
        InputError: an option does not fit the model.
    """
    with weights_in_file(WeightFile(scratch / "weights") if is_large(loaded.model) else None):
        return _worked_on(loaded, goal, scratch, say, prune=prune, part=part)


def _worked_on(
    loaded: Loaded, goal: Goal, scratch: Path, say: Listener, *, prune: Callable[[Driver], None] | None, part: str
) -> Worked:
    """Do what `worked_on` promises."""
    target, pinned = goal.target, goal.pins.of(part) if goal.pins is not None else None
    if isinstance(loaded.reference, OrtReference):  # a file is held to what it gives where it is going to run
        loaded.reference = loaded.reference.with_threads(target.threads)
    if goal.half is not None:
        check_half(loaded, goal.half)
    before = Before.of(default_export(loaded), scratch / "original")
    _note_ahead(loaded, goal)
    requests = requests_of(loaded, goal.workload)
    pipeline = _pipeline(loaded, goal, requests, say, pinned)
    pipeline.canonicalize_and_fuse()
    if prune is not None:
        pipeline.prune(prune)
    # kept where it may have to be gone on with, or back to; its weights are those of the graph, where they stay
    may_go_back = target.provider in TIMED and (goal.tune.measure or pinned is not None)
    fused = pipeline.fork() if goal.quantize is not None or may_go_back else None
    pipeline.lower()
    require_standard(loaded.model, target)
    candidate = save_graph(leave_ranks_open(loaded.model, loaded.signature), scratch / "candidate")
    runs_on = _runnable(target, pipeline.ledger)

    def tell(stage: str, step: str) -> None:
        say(Event(stage, step))

    bench = Workbench(before, requests, target, runs_on, goal.workload, goal.budget, scratch, tell, pinned)
    with _suspecting_own(pipeline.ledger):
        result = bench.proved("optimized", loaded, pipeline.ledger, candidate)
    if fused is not None and goal.quantize is not None:
        result = bench.quantized(result, fused, goal.quantize, is_timed=goal.tune.measure and bench.is_timed)
    if goal.half is not None:
        result = bench.halved(result, goal.half)
    form, quantization, is_lossy = result.form, result.quantization, result.is_lossy
    error = QUANTIZED_GOLDEN_ERROR if is_lossy else _golden_error(target)
    golden = list(_golden(form.loaded, result.run, error))
    del result  # no session beside those that are measured
    if pinned is not None:
        pinned.require_same(form.ledger.forms)
    decision = Decision(form)
    if pinned is not None:
        decision = bench.as_pinned(form, fused, measure=goal.tune.measure and bench.is_timed)
    elif goal.tune.measure and bench.is_timed:
        asked = "it is in fewer bits, as asked for" if is_lossy else "it is pruned, as asked for" if prune else ""
        decision = bench.fastest(form, None if is_lossy else fused, asked)
    if decision.form is not form:
        run = Session(decision.form.path, target=runs_on, exact=True, label=loaded.name).run
        golden = list(_golden(decision.form.loaded, run, error))
    evidence = evidence_of(decision, before).model_copy(update={"quantization": quantization})
    seconds: dict[str, float] = defaultdict(float)
    for entry in form.ledger.entries:
        seconds[entry.title] += entry.seconds
    return Worked(decision, runs_on, evidence, golden, seconds, before)


@contextmanager
def _suspecting_own(ledger: Ledger) -> Iterator[None]:
    """Where the whole is not equal, name the passes from outside that had a part in it: those nobody else has tried."""
    try:
        yield
    except ProofError as error:
        kept = dict.fromkeys(
            f"{entry.name} of {entry.origin.named}" for entry in ledger.entries if entry.applied and entry.origin
        )
        if not kept:
            raise
        hint = f"nothing was written; run it again without the passes of your own: {', '.join(kept)}"
        raise ProofError(error.what, where=error.where, hint=hint) from error


def _pipeline(
    loaded: Loaded, goal: Goal, requests: Sequence[Observation], say: Listener, pinned: Pinned | None
) -> Pipeline:
    """Return the passes over a model, told what is known of kernels and what may be measured."""
    profit = Profit(
        goal.target,
        requests,
        goal.workload.weights,
        measure=goal.tune.measure and goal.tune.tune and goal.target.provider == "cpu",
        fresh=goal.tune.retune,
        progress=lambda step: say(Event("choose", step)),
        pinned=pinned.kernels if pinned is not None else None,
    )
    return Pipeline(
        loaded,
        goal.target,
        workload=goal.workload,
        profit=profit,
        progress=lambda stage, step, count: say(Event(stage, step, count)),
        repro_folder=goal.out.with_name(f"{goal.out.name}.rolled-back"),
        own=goal.own,
    )


def _note_ahead(loaded: Loaded, goal: Goal) -> None:
    """Remember of the graph as it was loaded what the proof at the end must know, and say what that will not reach."""
    note_turning(loaded)
    loaded.notes.extend(branches_not_run(loaded, cases_of(loaded, goal.workload)))


def default_export(loaded: Loaded) -> ir.Model:
    """Return what the result is compared with: the imported file, or the export as torch's own optimizer leaves it.

    That optimizer would hold every weight that it transposes, so those that lie in files are turned before.
    """
    if loaded.task == "onnx":
        return loaded.model
    from onnxscript.optimizer import optimize as tidy

    baseline = loaded.model.clone()
    if is_large(baseline):
        turn_in_files(baseline)
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
