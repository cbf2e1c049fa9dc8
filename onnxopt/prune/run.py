"""Prune a source into a source of the same kind: a checkpoint into a checkpoint, an .onnx file into an .onnx file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from onnxopt.errors import InputError
from onnxopt.graph import initializer_bytes
from onnxopt.host.folders import staged
from onnxopt.host.scratch import scratch_folder
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.source.source import Source, resolve
from onnxopt.load.source.unchanged import Seen
from onnxopt.prune.ahead import RECORD_NAME, look_ahead
from onnxopt.prune.checkpoint.network import Pruned
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.events import under
from onnxopt.records.notebook import steps_shown
from onnxopt.records.record import Record
from onnxopt.spec import Say, Target

OF_CHECKPOINTS = ("layers", "heads", "ffn")  # what a config can say; channels only a graph can lose


class PruneRecord(Record):
    """`pruning.json`: what was pruned.

    Attributes:
        source: what it was made from.
        spec: what was asked for.
        parts: what became smaller: kind, where, before, after, error on calibration data, note.
        metric: what the answers were judged by, on held-out samples; empty where only the vocabulary was cut.
        value: of the metric.
        bytes_before: of the weights in float32.
        bytes_after: and afterwards.
        notes: sentences a user should read.
    """

    source: str
    spec: str
    parts: tuple[dict[str, Any], ...] = ()
    metric: str = ""
    value: float | None = None
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)
    notes: tuple[str, ...] = ()


def split(spec: PruneSpec, source: Source) -> tuple[PruneSpec | None, PruneSpec | None]:
    """Return what a checkpoint can lose before it is exported, and what its graph loses afterwards."""
    if source.kind == "onnx":
        if spec.vocabulary:
            raise InputError(
                "a vocabulary is cut together with its tokenizer",
                where="--prune vocab",
                hint="give the checkpoint that the .onnx was made from",
            )
        return None, spec
    first = {kind: amount for kind, amount in spec.amounts.items() if kind in OF_CHECKPOINTS}
    if "heads" in first and not _config_has_heads(source):
        del first["heads"]  # its graph can lose them, when it has no cache
    for kind in spec.searched:
        first.pop(kind, None)  # each layer may get a width of its own
    if spec.allocation == "sensitivity":
        first.pop("ffn", None)  # a config has one width for all layers
    later = {kind: amount for kind, amount in spec.amounts.items() if kind not in first}
    before = replace(spec, amounts=first, zeros="") if first or spec.vocabulary else None
    after = replace(spec, amounts=later, vocabulary=None) if later or spec.zeros else None
    return before, after


def _config_has_heads(source: Source) -> bool:
    from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
    from onnxopt.prune.checkpoint.heads import has_own_head_size

    return source.path is not None and has_own_head_size(load_config(read_checkpoint(source)))


def prune_checkpoint(
    source: Source,
    spec: PruneSpec,
    out: Path,
    *,
    data: str = "builtin",
    budget: MetricBudget | None = None,
    say: Say,
    seen: Seen | None = None,
) -> PruneRecord:
    """Prune a checkpoint into a folder that transformers and `optimize` read.

    Args:
        source: a checkpoint.
        spec: layers, heads, ffn and vocabulary.
        out: folder to write.
        data: calibration text.
        budget: what must be left of the answers.
        say: told what happens.
        seen: the files as they were first; None where somebody else looks after that.

    Raises:
        InputError: they have changed meanwhile.
        ProofError: when less is left; nothing is written.
    """
    from onnxopt.load.checkpoint.opened import open_checkpoint
    from onnxopt.prune.checkpoint.student import cut_opened, prune_opened, write_opened
    from onnxopt.prune.judging import ask, hold, read_samples

    opened = open_checkpoint(source)
    before = opened.parameters
    metric, value = "", None
    parts: list[Pruned] = []
    cut = None
    if spec.amounts:
        samples = read_samples(opened, data)
        say("the original on held-out text")
        original = ask(opened, samples.judge)
        parts += prune_opened(opened, replace(spec, vocabulary=None), samples.fit, say)
        say("the pruned model on held-out text")
        metric, value = original.metric, original.compare(ask(opened, samples.judge))
        hold(metric, value, budget, spec=str(spec))
    if spec.vocabulary:
        say("cutting the vocabulary")
        cut, part = cut_opened(opened, spec)
        parts.append(part)
    if seen is not None:
        seen.require_same()
    record = _record(source, spec, parts, 4 * before, 4 * opened.parameters).model_copy(
        update={"metric": metric, "value": value}
    )
    if metric:
        said = f"pruned: {metric} {value:.4f} of the original's on held-out text"
        record = record.model_copy(update={"notes": (*record.notes, said)})
    write_opened(opened, out, cut, beside={RECORD_NAME: record.to_json()})
    return record


def prune(
    text: str,
    spec: PruneSpec,
    out: Path,
    *,
    data: str = "builtin",
    budget: MetricBudget | None = None,
    progress: Say | None = None,
) -> PruneRecord:
    """Prune a source into a folder.

    Args:
        text: sample, recipe, Hub id, checkpoint folder or .onnx file.
        spec: what to prune.
        out: folder to write: a checkpoint, or `model.onnx` of fused standard operators.
        data: calibration data.
        budget: what must be left of the answers; for graphs.
        progress: told what happens; in a notebook a line below the cell when None.

    Returns:
        The record, which also lies in the folder as `pruning.json`.

    Raises:
        InputError: when something does not fit; nothing is written.
        ProofError: when less is left than the budget asks for.
    """
    look_ahead(text, out, data)
    with steps_shown("prune", progress) as tell:
        source = resolve(text)
        seen = Seen.of(source)
        first, later = split(spec, source)
        if later is None and first is not None:
            return prune_checkpoint(source, first, out, data=data, budget=budget, say=tell, seen=seen)
        with scratch_folder() as scratch:
            before: PruneRecord | None = None
            if first is not None:
                folder = scratch / "checkpoint"
                before = prune_checkpoint(source, first, folder, data=data, budget=budget, say=tell)
                source = source.after("pruned", folder)
            if later is None:
                raise InputError("nothing to prune is named", where="--prune")
            asked = (spec, later)
            return _prune_graph(source, asked, out, before, data=data, budget=budget, say=tell, seen=seen)


def _prune_graph(
    source: Source,
    asked: tuple[PruneSpec, PruneSpec],
    out: Path,
    before: PruneRecord | None,
    *,
    data: str,
    budget: MetricBudget | None,
    say: Say,
    seen: Seen,
) -> PruneRecord:
    from onnxopt.graph.files import write_graph
    from onnxopt.load.entry import load
    from onnxopt.pipeline.pipeline import run_pipeline
    from onnxopt.prune.graph.stage import GraphPruning

    whole, spec = asked
    loaded = load(source, progress=lambda event: say(event.step))
    pruning = GraphPruning(loaded, spec, data, budget, say)
    ledger = run_pipeline(
        loaded, Target("portable"), prune=pruning, progress=lambda stage, step, _: say(under(stage, step))
    )
    after = initializer_bytes(loaded.model)
    bytes_before = pruning.bytes_before if before is None else before.bytes_before
    record = _record(source, whole, pruning.report, bytes_before, after).model_copy(
        update={
            "parts": (*(() if before is None else before.parts), *(asdict(part) for part in pruning.report)),
            "metric": pruning.metric[0],
            "value": pruning.metric[1],
            "notes": (
                *(() if before is None else before.notes),
                *(note for note in ledger.notes if note not in loaded.notes),
            ),
        }
    )
    seen.require_same()
    with staged(out) as fresh:
        write_graph(loaded.model, fresh / "model.onnx")
        (fresh / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    return record


def _record(source: Source, spec: PruneSpec, parts: list[Pruned], before: int, after: int) -> PruneRecord:
    from onnxopt.prune.graph.stage import summary

    return PruneRecord(
        source=source.text,
        spec=str(spec),
        parts=tuple(asdict(part) for part in parts),
        bytes_before=before,
        bytes_after=after,
        notes=tuple(summary(parts)),
    )


@contextmanager
def pruned_source(
    source: Source,
    spec: PruneSpec | None,
    *,
    data: str = "builtin",
    budget: MetricBudget | None = None,
    say: Say,
) -> Iterator[tuple[Source, PruneSpec | None, tuple[str, ...]]]:
    """Give the source that is left after what a checkpoint can lose, what its graph still has to lose, and notes.

    Args:
        source: what the user named; handed on as it is when a checkpoint has nothing to lose.
        spec: what to prune; None for nothing.
        data: calibration text.
        budget: what must be left of the answers.
        say: told what happens.
    """
    first, later = split(spec, source) if spec is not None else (None, None)
    if first is None:
        yield source, later, ()
        return
    with scratch_folder() as scratch:
        folder = scratch / source.name
        record = prune_checkpoint(source, first, folder, data=data, budget=budget, say=say)
        yield source.after("pruned", folder), later, record.notes
