"""The whole road: load, rewrite, prove, measure, package."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxopt.artifact.package import Artifact
from onnxopt.errors import InputError
from onnxopt.graph import CONTRIB, STANDARD_DOMAINS
from onnxopt.host.scratch import scratch_folder
from onnxopt.host.usercache import drop_done
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.entry import load, names_in
from onnxopt.load.export.export import export, is_pair
from onnxopt.load.export.torch_pair import PAIR
from onnxopt.load.given import Given
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import Source, resolve
from onnxopt.load.source.unchanged import Seen
from onnxopt.pipeline.own import own_passes
from onnxopt.proof.observations import trust_right_padding
from onnxopt.proof.pair import prove_pair
from onnxopt.prune.graph.stage import GraphPruning
from onnxopt.prune.run import pruned_source
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.events import Event, Listener
from onnxopt.records.notebook import shown
from onnxopt.records.rewrites import ProofRecord
from onnxopt.road.ahead import look_ahead
from onnxopt.road.asked import left_of, spec_of, target_of
from onnxopt.road.described import spelled_out
from onnxopt.road.drawing import drawing_again
from onnxopt.road.estimate import say_ahead
from onnxopt.road.forms import require_standard
from onnxopt.road.gates import require_met
from onnxopt.road.goal import Goal
from onnxopt.road.options import Options
from onnxopt.road.pinned import Pins
from onnxopt.road.ready import require_ready
from onnxopt.road.work import Worked, worked_on
from onnxopt.road.write import write_result
from onnxopt.run.session import Session
from onnxopt.timing.requests import fit_workload

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxopt.road.options import Keywords


@spelled_out
def optimize(
    source: str | Path, *, out: str | Path | None = None, progress: Listener | None = None, **options: Unpack[Keywords]
) -> Artifact:
    """Turn a model into the fused, proved .onnx for a target and write it as an artifact.

    What is written as text may be given as what it is read as, too: a `Target`, a `Workload`, a `Budget`; axes, values
    and arrays by name.

    Args:
        source: sample or recipe name, Hub id, local checkpoint folder, or .onnx file.
        out: the folder to write; `build/<name>` when not given.
        progress: told what happens; in a notebook a line below the cell when None, `onnxopt.quiet` for nothing.
        **options: the fields of the classes in `onnxopt.road.options`.

    Returns:
        The artifact.

    Raises:
        InputError: the source, an option or the environment is not usable.
        OwnPassError: one of `passes` cannot be loaded, or fails where it works.
        ExportError: the model cannot be exported.
        ProofError: the result is not within its budget; nothing was written.
        GateError: it is not as fast, or not in as few bits, as was required; nothing was written.
    """
    chosen = Options.of(**options)
    with shown(progress) as say:
        return make(str(source), chosen, out=None if out is None else Path(out), progress=say)


def make(
    source: str | Source, options: Options, *, out: Path | None = None, progress: Listener | None = None
) -> Artifact:
    """Do what `optimize` does, with the options by stage.

    Args:
        source: as `optimize` takes it, or what was found already.
        options: of all stages.
        out: the folder to write; `build/<name>` when None.
        progress: told what happens.

    Returns:
        The artifact.

    Raises:
        InputError: the source, an option or the environment is not usable.
        OwnPassError: one of `passes` cannot be loaded, or fails where it works.
        ExportError: the model cannot be exported.
        ProofError: the result is not within its budget; nothing was written.
        GateError: it is not as fast, or not in as few bits, as was required; nothing was written.
    """
    started = time.perf_counter()
    say = progress or (lambda _: None)
    which = options.source
    given = look_ahead(source, options, out)
    target = target_of(options.package)
    own = own_passes(options.rewrite.passes)
    pins = Pins.read(options, target)
    if isinstance(source, Source):
        found = source
    else:
        say(Event("load", f"looking for {source}"))
        trusts = which.trust_remote_code
        found = resolve(source, weights=which.weights, revision=which.revision, trust_remote_code=trusts)
    seen = Seen.of(found)
    if given and found.kind != "onnx":
        what = "--feeds, --axis and --value are for .onnx files: inputs of a checkpoint are known"
        raise InputError(what, where=found.text, hint="drop them; shapes are asked for with --workload")
    goal = Goal.of(options, target, found, out, own, pins=pins)
    say(Event("load", f"looking at {found.name}"))
    notes = say_ahead(found, options, goal.out, say)
    require_ready(found, options, goal.out)
    with scratch_folder() as folder:
        run = _Run(found, seen, options, given, goal, folder, started, say, notes)
        try:
            made = run.go()
        except Exception:
            seen.require_same()  # then that is why
            raise
    drop_done()
    return made


@dataclass(frozen=True)
class _Run:
    """One way along the road.

    Attributes:
        source: what was found.
        seen: its files as they were then.
        options: as the user wrote them.
        given: what the user says of an .onnx file.
        goal: what is to be reached.
        scratch: a folder for files.
        started: when, on the clock of `time.perf_counter`.
        say: told what happens.
        notes: what the ledger says beside what the loader does.
    """

    source: Source
    seen: Seen
    options: Options
    given: Given
    goal: Goal
    scratch: Path
    started: float
    say: Listener
    notes: tuple[str, ...] = ()

    def go(self) -> Artifact:
        """Take the road that the source and the options ask for."""
        prune = self.options.prune
        if prune.what is not None:
            return self.pruned(spec_of(prune.what, prune), left_of(prune))
        return self.pair() if is_pair(self.source, self.options.load.task) else self.whole()

    def whole(self) -> Artifact:
        """Rewrite, prove, measure and write a model of one graph."""
        loaded = self._loaded(self.source)
        goal = self._fitted(loaded)
        require_standard(loaded.model, goal.target, (*STANDARD_DOMAINS, CONTRIB))  # what can only be refused, at once
        worked = worked_on(loaded, goal, self.scratch, self.say)
        if worked.loaded.draws is not None:  # no two runs of it give the same: there is nothing to be repeated
            drawing = drawing_again(worked.loaded, self.scratch / "drawing", worked.runs_on)
            form = replace(worked.decision.form, loaded=drawing)
            worked = replace(worked, decision=replace(worked.decision, form=form), golden=[])
        return self._written([worked], goal)

    def pruned(self, spec: PruneSpec, budget: MetricBudget | None) -> Artifact:
        """Prune a checkpoint before it is exported, its graph after it is fused, and go on as with any other model.

        Args:
            spec: what to prune.
            budget: what must be left of the answers.
        """
        found, data = self.source, self.options.prune.data

        def tell(step: str) -> None:
            self.say(Event("prune", step))

        with pruned_source(found, spec, data=data, budget=budget, say=tell) as (source, later, notes):
            if is_pair(source, self.options.load.task):
                raise InputError("encoder-decoders are not pruned", where=found.text)
            loaded = self._loaded(source)
            loaded.notes.extend(notes)
            loaded.origin["pruned"] = str(spec)
            workload, goal = self.goal.workload, self._fitted(loaded)
            step = None if later is None else GraphPruning(loaded, later, data, budget, tell, workload=workload)
            worked = worked_on(loaded, goal, self.scratch, self.say, prune=step)
            return self._written([worked], goal)

    def pair(self) -> Artifact:
        """Rewrite, prove, measure and write an encoder-decoder; each part alone, then both together."""
        parts = []
        for name, loaded in zip(PAIR, self._parts(), strict=True):
            (self.scratch / name).mkdir()
            parts.append(worked_on(loaded, self._fitted(loaded), self.scratch / name, self.say, part=name))
        encode, decode = (
            Session(part.decision.form.path, target=part.runs_on, label=part.loaded.name).run for part in parts
        )
        encoder, decoder = (part.loaded for part in parts)
        proof = prove_pair(
            (encoder, encode),
            (decoder, decode),
            self.goal.budget,
            progress=lambda step: self.say(Event("verify", step)),
        )
        return self._written(parts, self._fitted(encoder), proof)

    def _written(self, parts: Sequence[Worked], goal: Goal, proof: Sequence[ProofRecord] = ()) -> Artifact:
        """Write what came out, unless the source is another one by now."""
        beside = parts[0].loaded.origin.get("external_sha256", {})
        folder = self.source.path.parent if self.source.path is not None else Path()
        self.seen.require_same({folder / name: digest for name, digest in beside.items()})
        require_met(parts, self.options)
        return write_result(parts, goal, self.started, self.say, proof=proof)

    def _loaded(self, source: Source) -> Loaded:
        """Export a checkpoint or import a file, and believe what was said of its rows."""
        options = self.options.load
        loaded = load(
            source,
            task=options.task,
            with_pooling=options.with_pooling,
            with_cache=options.with_cache,
            logits=options.logits,
            exporter=options.exporter,
            without=options.without,
            given=self.given,
            progress=self.say,
        )
        loaded.notes.extend(self.notes)
        if options.padding == "right":
            trust_right_padding(loaded, self.goal.target)
        return loaded

    def _parts(self) -> Iterator[Loaded]:
        """Export the encoder and then the decoder of a pair, each when it is asked for.

        Raises:
            InputError: an option asks for what is not made of pairs.
        """
        options, where = self.options.load, self.source.text
        if not options.with_cache:
            raise InputError("an encoder-decoder is made with its cache only", where=where, hint="drop --no-cache")
        if self.goal.quantize is not None or self.goal.half is not None:
            what = "quantized" if self.goal.quantize is not None else "converted to 16 bits"
            raise InputError(f"encoder-decoders are not {what} yet", where=where, hint="drop --precision")
        for part in PAIR:
            yield export(
                self.source,
                task=options.task,
                logits=options.logits,
                part=part,
                without=names_in(options.without),
                exporter=options.exporter,
                progress=lambda step: self.say(Event("load", step)),
            )

    def _fitted(self, loaded: Loaded) -> Goal:
        """Return the goal with a workload that the model takes."""
        return replace(self.goal, workload=fit_workload(self.goal.workload, loaded))
