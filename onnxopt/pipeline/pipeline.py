"""The ordered passes of a target, and the run of them over a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxopt.graph import opset
from onnxopt.graph.cache import CONTEXT_KEY, Cache, keeps_packed
from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.lowering import lower
from onnxopt.pipeline.opset import needed_opset, put_model, raise_opset_for, raise_to
from onnxopt.pipeline.orders import AGAIN, BEFORE_GRIDS, COLUMNS, ON_GRIDS, TIDY, passes_of
from onnxopt.pipeline.own import with_own
from onnxopt.pipeline.profit import Profit
from onnxopt.probe.annotate import declared
from onnxopt.probe.observe import Observation
from onnxopt.probe.sidegraph import FREE_KEY
from onnxopt.proof.cases import SEED, cases_of
from onnxopt.proof.driver import Driver
from onnxopt.proof.inside import Inside, Work, for_bodies
from onnxopt.proof.observations import generated, looks_through_windows, observations_of, others_of
from onnxopt.proof.prepare import derivation_of, prepare
from onnxopt.records.ledger import Ledger
from onnxopt.rewrite import Rewrite
from onnxopt.rewrite.registry import Step, get, name_of
from onnxopt.sizes import Derivation
from onnxopt.sizes.derive import claims
from onnxopt.spec import Target, Workload

logger = logging.getLogger(__name__)

MOST_TURNS = 5


@dataclass
class Pipeline:
    """The passes over one loaded model, stage by stage; `fork` after a stage tries several ways to go on.

    Attributes:
        loaded: its model is changed by proved rewrites only.
        target: which lowering.
        workload: what will be asked of it; padding in it makes the removal of padding a choice.
        profit: knows and measures the forms of regions; None takes those that passes name first.
        progress: called with (stage, pass, rewrites kept so far).
        repro_folder: where refuted rewrites leave their inputs.
        own: passes from outside of onnxopt, which run where `pipeline.own` places them.
        ledger: what happened.
    """

    loaded: Loaded
    target: Target
    workload: Workload | None = None
    profit: Profit | None = None
    progress: Callable[[str, str, int], None] | None = None
    repro_folder: Path | None = None
    own: Sequence[type[Rewrite]] = ()
    ledger: Ledger = field(default_factory=Ledger)
    _observations: Sequence[Observation] = ()
    _others: Sequence[Observation] = ()
    _derivation: Derivation = field(default_factory=Derivation)

    @property
    def model(self) -> ir.Model:
        """The graph as it is now."""
        return self.loaded.model

    def canonicalize_and_fuse(self) -> None:
        """Raise the graph to what it means."""
        self._observations = observations_of(self.loaded)
        self._derivation = derivation_of(self.loaded)
        if self._cached:
            self.model.graph.metadata_props[CONTEXT_KEY] = str(self.loaded.origin.get("context_length", 0))
        self.model.graph.meta[FREE_KEY] = self.loaded.free
        driver, stages = self._driver("canonicalize"), with_own(passes_of(self.target), self.own)
        prepare(self.model, self._derivation)
        self.loaded.signature = driver.signature = declared(self.loaded.signature, self.model, self._derivation)
        self.ledger.claims = claims(self.model, self._derivation)
        self._note_turning(self._derivation.turning(self.model))
        self.ledger.notes.extend(self.loaded.notes)
        run_to_rest(driver, stages["canonicalize"])
        names = for_bodies(stages["canonicalize"])
        inside = self._rewrite_bodies(driver, lambda inner: run_to_rest(inner, names))
        self._note_turning(inside.turning)
        self.ledger.notes.extend(inside.notes())
        self._report(driver, "fuse")
        fuse(driver, stages["fuse"], self._rewrite_bodies)

    def fork(self) -> Pipeline:
        """Return a pipeline of a copy of the graph; weights are shared."""
        ledger = replace(self.ledger, entries=list(self.ledger.entries), notes=list(self.ledger.notes))
        return replace(self, loaded=replace(self.loaded, model=self.model.clone()), ledger=ledger)

    def prune(self, step: Callable[[Driver], None]) -> None:
        """Make the fused graph smaller."""
        step(self._driver("prune"))

    def raise_to_quantize(self) -> None:
        """Raise the opset as far as quantizing needs it."""
        raise_opset_for(self._driver("quantize"), COLUMNS)

    def quantize(self, steps: Sequence[Rewrite]) -> None:
        """Carry out what is quantized before the graph is lowered; `quantize_lowered` does the rest."""
        self._driver("quantize").apply_all([*(one for one in steps if not one.behind_lowering), *map(get, ON_GRIDS)])

    def quantize_lowered(self, steps: Sequence[Rewrite]) -> None:
        """Carry out what must come behind the passes that lower."""
        late = [step for step in steps if step.behind_lowering]
        if late:
            self._driver("quantize", generating=True).apply_all([*late, *map(get, TIDY)])

    def lower_and_quantize(self, steps: Sequence[Rewrite]) -> None:
        """Lower a decoder for the CPU, then quantize it.

        The passes that lower are proved to rounding errors of the whole. Behind a grid one of those moves a value by a
        step, so they must come first.
        """
        self._driver("lower", generating=True).apply_all(map(get, BEFORE_GRIDS))
        early = [step for step in steps if not step.behind_lowering]
        driver = self._driver("quantize", generating=True)
        driver.apply_all([*early, *map(get, (*ON_GRIDS, "lower-quantized-linear", *TIDY))])
        self.quantize_lowered(steps)

    def lower(self) -> None:
        """Turn meaning into the target's kernels."""
        names = passes_of(self.target)["lower"]
        driver = self._driver("lower", generating=True)
        if self._cached:
            lower(driver, names, None, self.profit, self.loaded.name)
            if keeps_packed(self.model) and looks_through_windows(self.model):
                self.ledger.notes.append(
                    "windows and distances count real tokens: padding in the middle of a row, which torch counts, "
                    "is not counted"
                )
        elif names:
            workload = self.workload if self.target.provider == "cpu" else None
            lower(driver, names, workload, self.profit, self.loaded.name)
        inner_names = for_bodies(names)
        self._rewrite_bodies(driver, lambda inner: inner.apply_all(map(get, inner_names)))
        if self.target.provider in ("cuda", "tensorrt"):
            self.ledger.notes.append(
                f"target {self.target.provider}: "
                + ("kernels as recorded" if self.target.provider == "cuda" else "fused standard operators")
                + "; none was chosen by measure"
            )

    @property
    def _cached(self) -> bool:
        return Cache.of(self.loaded.signature) is not None

    def _driver(self, stage: str, *, generating: bool = False) -> Driver:
        """Return a driver; `generating` proves a model with a cache on what generating text feeds it."""
        driver = Driver(
            self.model,
            generated(self.loaded) if generating and self._cached else self._observations,
            self.ledger,
            repro_folder=self.repro_folder,
            signature=self.loaded.signature,
            derivation=self._derivation,
        )
        self._report(driver, stage)
        return driver

    def _rewrite_bodies(self, driver: Driver, work: Work) -> Inside:
        """Let passes work on what nodes carry, and return what was found in there."""
        inside = Inside(work, prepare, self._proved_on)
        if inside.rewrite(driver):
            driver.apply_all(map(get, TIDY))
        return inside

    def _proved_on(self) -> Sequence[Observation]:
        """Return inputs on which the whole is going to be proved; made where something asks for them."""
        self._others = self._others or others_of(self.loaded, cases_of(self.loaded, self.workload), SEED)
        return self._others

    def _note_turning(self, turning: Mapping[str, Collection[int]]) -> None:
        for axis, sizes in turning.items():
            known = self.loaded.turning.get(axis, ())
            self.loaded.turning = {**self.loaded.turning, axis: tuple(sorted({*known, *sizes}))}

    def _report(self, driver: Driver, stage: str) -> None:
        progress = self.progress
        if progress is not None:
            driver.progress = lambda step, count: progress(stage, step, count)


def run_pipeline(
    loaded: Loaded,
    target: Target,
    *,
    workload: Workload | None = None,
    profit: Profit | None = None,
    prune: Callable[[Driver], None] | None = None,
    quantize: Callable[[ir.Model], Sequence[Rewrite]] | None = None,
    progress: Callable[[str, str, int], None] | None = None,
    repro_folder: Path | None = None,
    own: Sequence[type[Rewrite]] = (),
) -> Ledger:
    """Rewrite `loaded.model` in place for a target; see `Pipeline` for the arguments that it has too.

    Args:
        loaded: its model is changed by proved rewrites only.
        target: which lowering.
        workload: what will be asked of it.
        profit: knows and measures the forms of regions.
        prune: makes the fused graph smaller, by the driver.
        quantize: decides on the fused graph what is stored and computed in fewer bits, and returns the passes that do
            it.
        progress: called with (stage, pass, rewrites kept so far).
        repro_folder: where refuted rewrites leave their inputs.
        own: passes from outside of onnxopt.

    Returns:
        The ledger of the run.
    """
    pipeline = Pipeline(loaded, target, workload, profit, progress, repro_folder, own)
    pipeline.canonicalize_and_fuse()
    if prune is not None:
        pipeline.prune(prune)
    steps = quantize(pipeline.model) if quantize is not None else ()
    if steps:
        pipeline.quantize(steps)
    pipeline.lower()
    pipeline.quantize_lowered(steps)
    return pipeline.ledger


def run_to_rest(driver: Driver, names: Sequence[Step]) -> None:
    """Run passes in turns until a turn changes nothing; later turns are in the ledger only where they did something."""
    for turn in range(MOST_TURNS):
        start = len(driver.ledger.entries)
        refuted = {entry.name for entry in driver.ledger.entries if entry.rolled_back}
        driver.apply_all(get(name) for name in names if name_of(name) not in refuted)
        entries = driver.ledger.entries[start:]
        if turn:
            driver.ledger.entries[start:] = [entry for entry in entries if entry.applied or entry.rolled_back]
        if not any(entry.applied for entry in entries):
            return


def fuse(driver: Driver, names: Sequence[Step], rewrite_bodies: Callable[[Driver, Work], object]) -> None:
    """Apply the passes that fuse, at an opset that is raised no further than those need that did something.

    Patterns match more than guards and proofs let through, so what is needed shows afterwards. Where the opset was
    raised for nothing, the graph from before is taken again, raised as far as was needed, and fused: runtimes that are
    too old for the newest operators go on reading it.

    Args:
        driver: its model is fused, with what nodes carry.
        names: the passes, in order.
        rewrite_bodies: lets passes work on what the nodes of a driver's model carry.
    """

    def fuse_all() -> None:
        driver.apply_all(map(get, names))
        rewrite_bodies(driver, lambda inner: inner.apply_all(map(get, (*AGAIN, *for_bodies(names)))))

    model, ledger = driver.model, driver.ledger
    start, notes, wanted = len(ledger.entries), list(ledger.notes), needed_opset(driver.model, names)
    before = model.clone() if wanted > opset(model) else None
    raise_to(driver, wanted)
    fused = len(ledger.entries)
    fuse_all()
    if before is None or opset(model) == opset(before):
        return
    own = {name_of(step): step for step in names}
    used = [get(own.get(entry.name, entry.name)).min_opset for entry in ledger.entries[fused:] if entry.applied]
    needed = max([opset(before), *used])
    if needed >= opset(model):
        return
    put_model(model, before)
    del ledger.entries[start:]
    ledger.notes[:] = notes
    driver.forget()
    prepare(model, driver.derivation)
    raise_to(driver, needed)
    fuse_all()
