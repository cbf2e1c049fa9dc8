"""Make the forms of one graph that may be shipped: each saved, proved, and measured beside the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import onnx_ir as ir

from onnxopt.errors import InputError, ProofError
from onnxopt.graph import STANDARD_DOMAINS, all_nodes, op_counts
from onnxopt.graph.cache import TOTAL
from onnxopt.graph.files import leave_ranks_open, make_writable, save_graph, written_bytes
from onnxopt.graph.outline import Step, outline_of
from onnxopt.graph.roles import mask_of
from onnxopt.graph.weight_files import MAPPED, is_large, stays_mapped
from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.pipeline import Pipeline
from onnxopt.probe.observe import Observation
from onnxopt.proof.cases import cases_of, proved_ranges, short_of
from onnxopt.proof.empties import tried_empty
from onnxopt.proof.whole import is_packed, prove
from onnxopt.quantize.options import HalfOptions, QuantizeOptions
from onnxopt.quantize.run import quantize
from onnxopt.quantize.sixteen_bits import rounding_run, to_half
from onnxopt.quantize.workplace import Workplace
from onnxopt.records.ledger import Ledger
from onnxopt.records.manifest import FormName
from onnxopt.records.measurements import Race
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.road.pinned import Pinned
from onnxopt.road.shipping import AS_OPTIMIZED, Decision, Form, decide
from onnxopt.run.session import Session
from onnxopt.spec import Budget, Feeds, Signature, Target, Workload
from onnxopt.timing.latency import race

STANDARD = Target("portable")
Run = Callable[[Feeds], Feeds]
Tell = Callable[[str, str], None]  # a stage, and a word on the step


@dataclass(frozen=True)
class Before:
    """A graph as it was loaded.

    Attributes:
        size_bytes: of its files, weights included wherever the graph holds them.
        ops: its operators, those of functions where they are called.
        outline: its nodes by their names.
        save: writes it and returns its file; called once at most.
    """

    size_bytes: int
    ops: Mapping[str, int]
    outline: tuple[Step, ...]
    save: Callable[[], Path]

    @classmethod
    def of(cls, model: ir.Model, folder: Path) -> Before:
        """Take down a graph: save it, or remember how to, where its weights are large and perhaps nobody asks for it.

        Args:
            model: what results are compared with; afterwards it holds its weights, as `save_graph` has it. A large one
                is written as it is now, whatever becomes of it.
            folder: made here, or where the graph is asked for.
        """
        ops, outline = op_counts(model), outline_of(model)
        if is_large(model):
            make_writable(model)
            kept = model.clone()
            return cls(written_bytes(kept), ops, outline, lambda: save_graph(kept, folder))
        path = save_graph(model, folder)
        return cls(sum(file.stat().st_size for file in folder.iterdir()), ops, outline, lambda: path)

    @cached_property
    def path(self) -> Path:
        """Its file, written where that has not been done."""
        return self.save()

    @property
    def nodes(self) -> int:
        """How many nodes it has, subgraphs included."""
        return sum(self.ops.values())


@dataclass(frozen=True)
class Result:
    """What the passes made of a graph.

    Attributes:
        form: the graph.
        run: runs it.
        quantization: how it was stored in fewer bits, or why it was not; None where nobody asked.
    """

    form: Form
    run: Run
    quantization: QuantizationRecord | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether it is a graph in fewer bits."""
        return self.quantization is not None and self.quantization.shipped


@dataclass(frozen=True)
class Workbench:
    """What one graph is proved and measured with.

    Attributes:
        before: the graph as it was loaded.
        requests: inputs of the workload.
        target: what it is made for.
        runs_on: where it is run here.
        workload: its shapes, fills and weights.
        budget: how far an answer may move.
        scratch: a folder for files.
        tell: told what is done.
        pinned: what another build measured, where that is taken over.
    """

    before: Before
    requests: Sequence[Observation]
    target: Target
    runs_on: Target
    workload: Workload
    budget: Budget
    scratch: Path
    tell: Tell
    pinned: Pinned | None = None

    @property
    def is_timed(self) -> bool:
        """Whether times taken here say something about the target."""
        return self.runs_on == self.target

    def proved(self, name: FormName, loaded: Loaded, ledger: Ledger, path: Path) -> Result:
        """Prove a saved graph.

        Args:
            name: which form it is.
            loaded: with the graph.
            ledger: what was done for it.
            path: its file.

        Raises:
            ProofError: it is not within the budget.
        """
        run = _running(path, self.runs_on, loaded)
        records = prove(
            run,
            loaded,
            self.budget,
            cases_of(loaded, self.workload),
            lambda step: self.tell("verify", step),
            packed=is_packed(loaded),
            notes=loaded.notes,
        )
        ends = short_of(proved_ranges(loaded, [record.sizes for record in records]))
        empty, starts = tried_empty(run, loaded, self.budget.relative_error)
        records += empty
        loaded.notes[:] = dict.fromkeys([*loaded.notes, *ends, *starts])
        return Result(Form(name, loaded, path, ledger, tuple(records)), run)

    def quantized(self, result: Result, fused: Pipeline, options: QuantizeOptions, *, is_timed: bool) -> Result:
        """Quantize a graph; the float graph comes back where that does not pay.

        Args:
            result: the float graph.
            fused: the graph before it was lowered.
            options: what was asked.
            is_timed: whether the two are measured.
        """
        settled = self.pinned.settled if self.pinned is not None else None
        requests = self.requests if is_timed and settled is None else ()
        place = Workplace(self.scratch, save_graph, requests, lambda step: self.tell("quantize", step), settled)
        attempt = quantize(fused, options, place, original=lambda: self.before.path, as_float=result.form.path)
        if attempt.path is None:
            return replace(result, quantization=attempt.record)
        made = attempt.pipeline
        form = replace(result.form, loaded=made.loaded, ledger=made.ledger, path=attempt.path)
        return Result(form, Session(attempt.path, target=self.runs_on, label=made.loaded.name).run, attempt.record)

    def halved(self, result: Result, options: HalfOptions) -> Result:
        """Convert a graph to 16 bits; the float graph comes back where that is not within bounds."""
        halved = to_half(
            result.form.loaded,
            result.form.ledger,
            options,
            original=self.before.path,
            save=lambda model: save_graph(model, self.scratch / "judged"),
            say=lambda step: self.tell("quantize", step),
        )
        if halved.loaded is None:
            return replace(result, quantization=halved.record)
        path = save_graph(halved.loaded.model, self.scratch / "half")
        run: Run = rounding_run(halved.loaded.model)
        if self.is_timed:  # what its kernels add up inside is seen there alone
            run = Session(path, target=self.runs_on, label=halved.loaded.name).run
            halved.prove_on_device(run, lambda step: self.tell("verify", step))
        return Result(replace(result.form, loaded=halved.loaded, path=path), run, halved.record)

    def fastest(self, form: Form, fused: Pipeline | None, asked: str = "") -> Decision:
        """Measure a form beside the original; where it is slower, go back step by step.

        Args:
            form: what the passes made.
            fused: the graph before it was lowered, where that is a step.
            asked: what was asked for by name and is not taken back; empty for nothing.
        """
        others: dict[FormName, Callable[[], Form]] = {}
        if (
            fused is not None and self.target.provider != STANDARD.provider
        ):  # whose kernels are those of any other target
            others["fused"] = lambda: self._fused(fused)
        if not asked:
            others["original"] = lambda: self._original(form)
        return decide(form, others, self._raced, asked=asked)

    def as_pinned(self, form: Form, fused: Pipeline | None, *, measure: bool) -> Decision:
        """Make the form that another build ships, whatever is faster here.

        Args:
            form: what the passes made.
            fused: the graph before it was lowered, where that is a step.
            measure: tell the times of it beside the original.

        Raises:
            InputError: this build has no such form.
        """
        shipped = self.pinned.shipped if self.pinned is not None else AS_OPTIMIZED
        if shipped.form == "fused" and fused is None:
            raise InputError(
                f"it ships the fused graph, which {self.target.provider} does not have", where="--forms-from"
            )
        if shipped.form == "fused" and fused is not None:
            form = self._fused(fused)
        elif shipped.form == "original":
            return Decision(self._original(form), shipped)
        return Decision(form, shipped, (self._raced(form),) if measure else ())

    def _raced(self, form: Form) -> Race:
        return race(
            self.before.path,
            form.path,
            self.requests,
            form=form.name,
            signature=form.loaded.signature,
            target=self.target,
            workload=self.workload,
            say=lambda step: self.tell("measure", step),
        )

    def _fused(self, fused: Pipeline) -> Form:
        """The fused graph in standard operators, as any runtime gets it."""
        plain = replace(fused, target=STANDARD, profit=None)
        plain.lower()
        path = save_graph(leave_ranks_open(plain.model, plain.loaded.signature), self.scratch / "fused")
        return self.proved("fused", plain.loaded, plain.ledger, path).form

    def _original(self, form: Form) -> Form:
        """The graph as it was loaded; the ledger is that of what was tried."""
        if answers_for_columns(form.loaded.signature):
            raise InputError("it answers for the last column of a row, padding or not")
        loaded = replace(form.loaded, model=ir.load(self.before.path))
        require_standard(loaded.model, self.target)
        return self.proved("original", loaded, form.ledger, self.before.path).form


def _running(path: Path, runs_on: Target, loaded: Loaded) -> Run:
    """Return what runs a graph; a large one is opened with its first run, behind those of the original."""
    opened = cache(lambda: _opened(path, runs_on, loaded))
    if not is_large(loaded.model):
        opened()
    return lambda feeds: opened().run(feeds)


def _opened(path: Path, runs_on: Target, loaded: Loaded) -> Session:
    """Open a graph; what ONNX Runtime says of the file that it lies in for now is of no use to anyone.

    Weights of a large one in float32 stay where they are mapped: its kernels would keep a copy of each in their own
    order.
    """
    config = MAPPED if stays_mapped(loaded.model) else None
    try:
        return Session(path, target=runs_on, exact=True, config=config, label=loaded.name)
    except InputError as error:
        hint = "nothing was written; run with --verbose to see each pass"
        what = error.what.replace(str(path), "it")
        raise ProofError(f"the result does not open: {what}", where=loaded.name, hint=hint) from error


def answers_for_columns(signature: Signature) -> bool:
    """Tell whether a model as it was loaded gives the logits of its last column, which may be one of padding.

    What the passes make of it finds the last real token of each row.
    """
    logits = next((spec for spec in signature.outputs if spec.name == "logits"), None)
    mask = mask_of(signature)
    is_last = logits is not None and len(logits.axes) == 3 and logits.axes[1] == 1
    return is_last and mask is not None and mask.axes[1] == TOTAL  # of the tokens themselves, not of a text read before


def require_standard(model: ir.Model, target: Target, domains: Sequence[str] = STANDARD_DOMAINS) -> None:
    """Make sure that a graph for `portable` has operators of some domains alone.

    Args:
        model: the graph; before it is rewritten it may have operators of ONNX Runtime that can be written otherwise.
        target: nothing is asked of the others.
        domains: those that it may have.

    Raises:
        InputError: it has others.
    """
    if target.provider != "portable":
        return
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in all_nodes(model) if n.domain not in domains})
    if foreign:
        raise InputError(
            f"the model has operators outside ai.onnx ({', '.join(foreign[:5])}), which `portable` excludes",
            hint="use --target cpu, or start from a model with standard operators",
        )
