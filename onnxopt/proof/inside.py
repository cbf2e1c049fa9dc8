"""Let passes work on what an If, a Loop or a Scan carries, each body as a model of its own.

A pass sees the main graph alone. So each body that is run at the observations is cut out, with the outer values that it
reads as inputs; what these were in a run of the whole model are the observations of the body, and what is derived of
their sizes comes along. A driver of its own proves each rewrite on them, bodies inside of bodies are next, and what was
rewritten is put back together. A body that no observation reaches stays as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph.bodies import Body, Cut, bodies_of, cut, exchange, let_go, put_back
from onnxopt.probe.annotate import UNTRUSTED, annotate
from onnxopt.probe.body_runs import can_be_fed, runs_of
from onnxopt.probe.captures import Captures
from onnxopt.probe.observe import Observation
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.contract import compare
from onnxopt.proof.driver import Driver
from onnxopt.records.events import under
from onnxopt.records.ledger import Ledger, PassEntry, RolledBack
from onnxopt.records.notes import NOT_TAKEN
from onnxopt.rewrite.registry import Step, get
from onnxopt.sizes import Derivation, Fact
from onnxopt.sizes.derive import FACT_KEY
from onnxopt.spec import Feeds, Reassociated

logger = logging.getLogger(__name__)

Work = Callable[[Driver], None]
Prepare = Callable[[ir.Model, Derivation], None]

SHOWN = 3  # bodies that a note names
LEAST_RUNS = 4  # of a body; a branch gets only some of the runs of the whole
MOST_EMPTY = 2  # more, in which an axis is empty
# each rewrite is proved by itself: this finds what was put back wrong
TOGETHER = Reassociated(rtol=1e-3, atol=1e-4)


@dataclass
class _Worked:
    """A body, rewritten in a model of its own.

    Attributes:
        part: the model, cut out.
        driver: that rewrote it.
    """

    part: Cut
    driver: Driver

    @property
    def is_changed(self) -> bool:
        """Whether any rewrite was kept."""
        return any(entry.applied for entry in self.driver.ledger.entries)

    def entries(self) -> list[PassEntry]:
        """Return what happened, under the name of the body; passes that found nothing are left out."""
        return [
            replace(entry, where=", ".join(filter(None, (self.part.body.label, entry.where))), bytes_saved=0)
            for entry in self.driver.ledger.entries
            if entry.applied or entry.rolled_back or entry.refused
        ]


def for_bodies(names: Iterable[Step]) -> tuple[Step, ...]:
    """Return the passes that may work on a body: those that know padding read it off the inputs of a whole model."""
    return tuple(name for name in names if not getattr(get(name), "touches_padding", False))


class Inside:
    """Works on the bodies of a model, and on those inside them.

    Args:
        work: applies passes to the model of a driver.
        prepare: names and sorts what is in a model, and derives its sizes.
        further: makes the inputs on which the whole is going to be proved: a body that the usual observations reach too
            seldom is looked at with some of these, and with each of them the whole is run beside what it was.

    Attributes:
        turning: sizes of axes from which on something in a body is different.
        missed: bodies that no observation reaches.
        missed_inside: the same of bodies inside of others.
    """

    def __init__(self, work: Work, prepare: Prepare, further: Callable[[], Sequence[Observation]] = tuple) -> None:
        self._work, self._prepare, self._further = work, prepare, further
        self.turning: dict[str, set[int]] = {}
        self.missed: list[str] = []
        self.missed_inside: list[str] = []

    def rewrite(self, driver: Driver) -> int:
        """Rewrite the bodies in the main graph of a driver's model, and return how many have changed.

        Args:
            driver: its ledger gets the entries of the passes, under the names of bodies.
        """
        bodies = bodies_of(driver.model)
        if not bodies:
            return 0
        _derive_inputs(driver, bodies)
        parts = [self._cut(body, driver) for body in bodies]
        parts = [part for part in parts if can_be_fed(part)]
        further = self._further() if parts else ()
        worked = []
        for part, observations in zip(parts, _observed(parts, driver, further), strict=True):
            done = self._worked(part, observations, driver) if observations else None
            if done is not None:
                worked.append(done)
            elif not observations:
                self.missed.append(part.body.label)
        changed = [one for one in worked if one.is_changed]
        refused = _put_all_back(changed, driver.model, [*driver.observations, *further]) if changed else {}
        for one in worked:
            why = refused.get(one.part.body)
            driver.ledger.entries += [entry if why is None else _undone(entry, why) for entry in one.entries()]
        if changed:
            driver.forget()
        return len(changed) - len(refused)

    def notes(self) -> list[str]:
        """Say which bodies inside of others are left as they are; of others the proof of the whole says so."""
        if not self.missed_inside:
            return []
        count, rest = len(self.missed_inside), ", …" if len(self.missed_inside) > SHOWN else ""
        shown = ", ".join(self.missed_inside[:SHOWN]) + rest
        why = f"left as they are and {NOT_TAKEN} that was tried takes them"
        return [f"{why}: {count} branches inside of others ({shown}); give --value or --feeds"]

    def _cut(self, body: Body, driver: Driver) -> Cut:
        part = cut(body, driver.model)
        for value in list(part.model.graph.inputs)[: part.own]:
            fact = value.meta.get(FACT_KEY)
            sizes = fact.dims if isinstance(fact, Fact) else None
            value.shape = None if sizes is None else ir.Shape([driver.derivation.shown(size) for size in sizes])
        for node in part.model.graph:
            for value in node.outputs:
                value.meta.pop(UNTRUSTED, None)  # its size is derived now
        return part

    def _worked(self, part: Cut, observations: Sequence[Observation], outer: Driver) -> _Worked | None:
        """Rewrite one body; None where it does not run by itself, which leaves it as it is."""
        label, progress = part.body.label, outer.progress
        driver = Driver(
            part.model,
            observations,
            Ledger(),
            outer.prove,
            outer.repro_folder,
            None if progress is None else lambda step, count: progress(under(label, step), count),
            derivation=outer.derivation.inside(),
        )
        try:
            self._prepare(part.model, driver.derivation)
            self._work(driver)
            # of what is reached inside, nothing more is known than what reaches this
            inner = Inside(self._work, self._prepare)
            inner.rewrite(driver)
        except (InputError, ProbeError) as error:
            logger.info("%s is left as it is: %s", label, error)
            return None
        for name, sizes in driver.derivation.turning(part.model).items():
            self.turning.setdefault(name, set()).update(sizes, inner.turning.get(name, ()))
        self.missed_inside += [f"{one} in {label}" for one in (*inner.missed, *inner.missed_inside)]
        return _Worked(part, driver)


def _derive_inputs(driver: Driver, bodies: Sequence[Body]) -> None:
    """Derive, of the graph as it is now, what bodies are given in every turn."""
    for body in bodies:
        for value in body.graph.inputs:
            value.meta.pop(FACT_KEY, None)
        for value in body.node.outputs if len(body.graph.inputs) else ():
            value.meta.pop(FACT_KEY, None)  # to be walked again
    annotate(driver.model, driver.derivation)
    for body in bodies:
        for value in list(body.graph.inputs)[:2] if body.node.op_type == "Loop" else ():
            value.meta.pop(FACT_KEY, None)  # the runtime gives them as many axes as the body says


def _observed(parts: Sequence[Cut], driver: Driver, further: Sequence[Observation]) -> list[list[Observation]]:
    """Return what bodies are given: in the usual observations, and in some of the others."""
    try:
        found = runs_of(parts, driver.model, driver.observations, driver.captures)
        others = runs_of(parts, driver.model, further, Captures()) if further else [[] for _ in parts]
    except ProbeError as error:
        logger.info("bodies are left as they are: %s", error)
        return [[] for _ in parts]
    return [[*runs, *_chosen(more, LEAST_RUNS - len(runs))] for runs, more in zip(found, others, strict=True)]


def _chosen(runs: Sequence[Observation], wanted: int) -> list[Observation]:
    """Return the smallest of some runs, and those in which an axis is empty: kernels refuse that, or divide by it."""
    ordered = sorted(runs, key=lambda one: sum(array.nbytes for array in one.feeds.values()))
    empty = [one for one in ordered if 0 in one.sizes.values()]
    return [*empty[:MOST_EMPTY], *[one for one in ordered if 0 not in one.sizes.values()][: max(0, wanted)]]


def _put_all_back(
    worked: Sequence[_Worked], model: ir.Model, observations: Sequence[Observation]
) -> dict[Body, RolledBack]:
    """Put bodies back and run the whole beside what it was: all together, and where that is not the same, one by one.

    Returns:
        Those that were taken out again, and why.
    """
    runner = GraphRunner(model)
    before = [runner.run(one.feeds)[0] for one in observations]
    del runner
    refused: dict[Body, RolledBack] = {}
    groups = [list(worked)]
    while groups:
        group = groups.pop(0)
        why = _put_back(group, model, observations, before)
        if why is not None and len(group) == 1:
            refused[group[0].part.body] = why
        elif why is not None:
            groups += [[one] for one in group]
    return refused


def _put_back(
    group: Sequence[_Worked], model: ir.Model, observations: Sequence[Observation], before: Sequence[Feeds]
) -> RolledBack | None:
    weights = dict(model.graph.initializers)
    # what is put back is consumed, and may be needed once more
    parts = [replace(one.part, model=one.part.model.clone()) for one in group]
    old = [(part.body, put_back(part, model)) for part in parts]
    why = _difference(model, observations, before)
    for body, graph in old:
        gone = graph
        if why is not None:
            gone = body.graph
            exchange(body, graph)
        let_go(gone)
    if why is not None:
        model.graph.initializers.update(weights)
    return why


def _difference(model: ir.Model, observations: Sequence[Observation], before: Sequence[Feeds]) -> RolledBack | None:
    """Compare the whole with what it gave before; None where it is the same."""
    try:
        runner = GraphRunner(model)
        for observation, old in zip(observations, before, strict=True):
            new = runner.run(observation.feeds)[0]
            both = [name for name in old if name in new]  # of sequences of two lengths, these differ
            verdict = compare(TOGETHER, [old[name] for name in both], [new[name] for name in both], 0.0, {})
            if verdict.reason:
                return RolledBack("the whole", verdict.reason, verdict.error)
    except ProbeError as error:
        return RolledBack("the whole", f"with its bodies put back it does not run: {error}", math.inf)
    return None


def _undone(entry: PassEntry, why: RolledBack) -> PassEntry:
    """Return an entry whose rewrites were kept in the body, and undone in the whole."""
    if not entry.applied:
        return entry
    return replace(entry, applied=0, worst_error=0.0, rolled_back=[*entry.rolled_back, why])
