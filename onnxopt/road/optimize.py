"""The whole road: load, rewrite, prove, measure, package."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onnxopt.artifact.package import Artifact
from onnxopt.artifact.place import check_output_folder
from onnxopt.calibrate.data import BUILTIN
from onnxopt.errors import InputError
from onnxopt.graph import CONTRIB, STANDARD_DOMAINS
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.entry import load, names_in
from onnxopt.load.export.export import Exporter, export, is_pair
from onnxopt.load.export.torch_model import Logits
from onnxopt.load.export.torch_pair import PAIR
from onnxopt.load.given import Axes, Examples, Given, Values
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import Source, Weights, resolve
from onnxopt.pipeline.own import own_passes
from onnxopt.proof.observations import trust_right_padding
from onnxopt.proof.pair import prove_pair
from onnxopt.prune.graph.stage import GraphPruning
from onnxopt.prune.run import pruned_source
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.events import Event, Listener
from onnxopt.rewrite.own import Named
from onnxopt.road.drawing import drawing_again
from onnxopt.road.forms import require_standard
from onnxopt.road.plan import Asked, asked_precision
from onnxopt.road.work import worked_on
from onnxopt.road.write import write_result
from onnxopt.run.session import Session
from onnxopt.spec import Budget, Target, Workload
from onnxopt.timing.requests import fit_workload

logger = logging.getLogger(__name__)


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
    passes: Named | Iterable[Named] | None = None,
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
        calibration: samples for `int8`: `builtin`, a text, JSON or .npz file, a folder, or `hf:data set`.
        calibration_samples: how many at most.
        calibrator: how ranges are found: `auto` compares all methods on held-out samples.
        keep: selector of linear layers that stay in float, such as `layer.0|lm_head`.
        padding: `right` for an encoder on CUDA whose batches are padded on the right alone: attention is told lengths,
            and rows are not packed. Any other padding gives wrong answers then.
        force_calibration: accept calibration data that says nothing; the result is marked.
        without: inputs of a checkpoint that are left out though its answer may depend on them, such as `bbox`,
            separated by commas; the result says so.
        trust_remote_code: allow the checkpoint's own Python code to run.
        passes: of your own, to run beside those of onnxopt and to be proved like them: each a `.py` file, a module, the
            name under which an installed package offers some, or the class of one. Their code runs.
        feeds: of an .onnx file, inputs that run: an .npz file, a folder of them, or arrays by name.
        axes: of an .onnx file, the sizes of an axis: `name=8..4096:8` each, or ranges by name.
        values: of an .onnx file, what an input takes: `name=16000,8000` each, or values by name.
        progress: told what happens.

    Returns:
        The artifact.

    Raises:
        InputError: the source, an option or the environment is not usable.
        OwnPassError: one of `passes` cannot be loaded, or fails where it works.
        ExportError: the model cannot be exported.
        ProofError: the result is not within its budget; nothing was written.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    given = Given.parse(feeds, axes, values)
    goal = target if isinstance(target, Target) else Target.parse(target)
    if out is not None:
        check_output_folder(Path(out))
    own = own_passes(passes)
    say(Event("load", f"looking for {source}"))
    found = resolve(str(source), weights=weights, revision=revision, trust_remote_code=trust_remote_code)
    if given and found.kind != "onnx":
        what = "--feeds, --axis and --value are for .onnx files: inputs of a checkpoint are known"
        raise InputError(what, where=str(source), hint="drop them; shapes are asked for with --workload")
    recipe = found.recipe
    asked = Workload.parse(workload) if isinstance(workload, str) else workload
    limit, options, half = asked_precision(
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
        plan = Asked(goal, wanted, allowed, folder, measure, tune, retune, options, half, own)
        return _optimize_pruned(pruning, plan, started, say)
    if is_pair(found, task):
        if not with_cache:
            raise InputError(
                "an encoder-decoder is made with its cache only", where=str(source), hint="drop --no-cache"
            )
        if options is not None or half is not None:
            what = "quantized" if options is not None else "converted to 16 bits"
            raise InputError(f"encoder-decoders are not {what} yet", where=str(source), hint="drop --precision")
        plan = Asked(goal, wanted, allowed, folder, measure, tune, retune, own=own)
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as scratch:
            made = (
                export(
                    found,
                    task=task,
                    logits=logits,
                    part=part,
                    without=names_in(without),
                    exporter=exporter,
                    progress=lambda step: say(Event("load", step)),
                )
                for part in PAIR
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
    plan = Asked(goal, fit_workload(wanted, loaded), allowed, folder, measure, tune, retune, options, half, own)
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as scratch:
        return _finish(loaded, plan, Path(scratch), started, say)


@dataclass(frozen=True)
class _Pruning:
    """What is pruned, and how it is loaded afterwards."""

    source: Source
    spec: PruneSpec
    data: str
    budget: MetricBudget | None
    task: str | None
    options: Mapping[str, Any]


def _optimize_pruned(wanted: _Pruning, plan: Asked, started: float, say: Listener) -> Artifact:
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
            return write_result([worked_on(loaded, fitted, Path(scratch), say, prune=step)], fitted, started, say)


def _finish(loaded: Loaded, plan: Asked, scratch: Path, started: float, say: Listener) -> Artifact:
    """Rewrite, prove, measure and write a loaded model."""
    require_standard(loaded.model, plan.target, (*STANDARD_DOMAINS, CONTRIB))  # what can only be refused, at once
    worked = worked_on(loaded, plan, scratch, say)
    if worked.loaded.draws is not None:  # no two runs of it give the same: there is nothing to be repeated
        drawing = drawing_again(worked.loaded, scratch / "drawing", worked.runs_on)
        form = replace(worked.decision.form, loaded=drawing)
        worked = replace(worked, decision=replace(worked.decision, form=form), golden=[])
    return write_result([worked], plan, started, say)


def _finish_pair(made: Iterable[Loaded], plan: Asked, scratch: Path, started: float, say: Listener) -> Artifact:
    """Rewrite, prove, measure and write an encoder-decoder; each part alone, then both together."""
    parts = []
    for name, loaded in zip(PAIR, made, strict=True):
        (scratch / name).mkdir()
        parts.append(
            worked_on(loaded, replace(plan, workload=fit_workload(plan.workload, loaded)), scratch / name, say)
        )
    encode, decode = (
        Session(part.decision.form.path, target=part.runs_on, label=part.loaded.name).run for part in parts
    )
    encoder, decoder = (part.loaded for part in parts)
    proof = prove_pair(
        (encoder, encode), (decoder, decode), plan.budget, progress=lambda step: say(Event("verify", step))
    )
    plan = replace(plan, workload=fit_workload(plan.workload, encoder))
    return write_result(parts, plan, started, say, proof=proof)
