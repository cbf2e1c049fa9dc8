"""Apply one pass with its proof: what is not equal to what it replaces does not stay.

For a rule every match is proved before it is applied: the region it replaces and its replacement are cut out, run side
by side on
activations captured from a run of the whole model and on random ones, and compared under the rule's contract. For a
whole-graph pass the outputs of the model before and after are compared, and a difference restores the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.errors import PassAuthorError
from onnxopt.graph import Region, initializer_bytes, region, remove_dead, worst_error
from onnxopt.ledger import Ledger, PassEntry, Refused, RolledBack
from onnxopt.model import Array, Feeds
from onnxopt.observe import Observation, annotate
from onnxopt.patterns import Miss
from onnxopt.probe import GraphRunner, ProbeError, RegionRunner
from onnxopt.profit import AS_IS, Profit
from onnxopt.repro import write_repro
from onnxopt.rewrite import Builder, Match, Pass, Refusal, Rewrite, Rule
from onnxopt.rows import rows_that_matter
from onnxopt.spec import Exact, Lossy, Numerics, Reassociated, Signature

logger = logging.getLogger(__name__)

MAX_ROUNDS = 64  # a rule that still fires after this many sweeps feeds on its own result
ROUNDING = 2.0**-22  # two units in the last place of float32
SENSITIVITY_FACTOR = 4.0
RANDOM_SCALES = (1.0, 1e-2, 1e-4, 10.0)  # small ones show a wrong epsilon, large ones a wrong activation


@dataclass
class Driver:
    """Runs passes over one model.

    Attributes:
        model: changed in place, by proved rewrites only.
        observations: inputs of several sizes; the proof captures activations from them.
        ledger: what happened.
        prove: False only in tests of single rules that do their own comparison.
        repro_folder: where the inputs of a refuted rewrite are kept; None keeps none.
        progress: called with a pass name and its count of kept rewrites while it works.
        signature: tells which outputs have padded positions, for passes that may change those.
        profit: measures the forms of rules that offer several; None takes the recorded winners.
    """

    model: ir.Model
    observations: Sequence[Observation]
    ledger: Ledger = field(default_factory=Ledger)
    prove: bool = True
    repro_folder: Path | None = None
    progress: Callable[[str, int], None] | None = None
    signature: Signature | None = None
    profit: Profit | None = None
    _outputs: list[Feeds] | None = field(default=None, init=False)
    _commits: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def apply(self, step: Rewrite) -> PassEntry:
        """Run one pass to its fixed point and return its entry in the ledger."""
        entry = PassEntry(step.name, step.stage, str(step.numerics), nodes_before=self.model.graph.num_nodes())
        started, size = time.perf_counter(), initializer_bytes(self.model)
        self._report(step.name, 0)
        try:
            if isinstance(step, Rule):
                self._apply_rule(step, entry)
            elif isinstance(step, Pass):
                self._apply_pass(step, entry)
            else:
                raise PassAuthorError(f"{step.name} is neither a Rule nor a Pass")
        finally:
            entry.nodes_after = self.model.graph.num_nodes()
            entry.seconds = time.perf_counter() - started
            entry.bytes_saved = size - initializer_bytes(self.model)
            self.ledger.entries.append(entry)
        logger.info(
            "%s: %d applied, %d refused, %d rolled back",
            step.name,
            entry.applied,
            len(entry.refused),
            len(entry.rolled_back),
        )
        return entry

    def forget(self) -> None:
        """Drop the remembered outputs of the model; call it after changing the model by other means than `apply`."""
        self._outputs = None

    # Rules

    def _apply_rule(self, rule: Rule, entry: PassEntry) -> None:
        annotate(self.model, self.observations)
        settled: set[str] = set()
        refused: dict[tuple[str, str], Refused] = {}
        for _ in range(MAX_ROUNDS):
            refused.clear()
            chosen = self._choose(rule, settled, refused)
            if rule.forms and self.profit is not None:
                chosen = self._by_profit(rule, chosen, settled, entry)
            if not chosen:
                break
            self._prove_and_apply(rule, chosen, settled, entry)
            self._report(rule.name, entry.applied)
        else:
            raise PassAuthorError(f"{rule.name} did not come to rest after {MAX_ROUNDS} sweeps")
        entry.refused.extend(refused.values())

    def _choose(self, rule: Rule, settled: set[str], refused: dict[tuple[str, str], Refused]) -> list[_Candidate]:
        """Return non-overlapping matches that the guard accepts, with replacements built but not yet in the graph."""
        patterns, types = rule.compiled(), rule.root_types()
        claimed: set[ir.Node] = set()
        chosen: list[_Candidate] = []
        for node in list(self.model.graph):
            if node.op_type not in types or _key(node) in settled:
                continue
            found = self._first_accepted(rule, patterns, node, claimed, refused)
            if found is not None:
                claimed.update(member for member, shared in found.match.nodes if not shared)
                claimed.add(node)
                chosen.append(found)
        return chosen

    def _first_accepted(
        self,
        rule: Rule,
        patterns: Sequence[object],
        node: ir.Node,
        claimed: set[ir.Node],
        refused: dict[tuple[str, str], Refused],
    ) -> _Candidate | None:
        reasons: list[Refused] = []
        for match in rule.find(node, patterns, self.model, Miss()):  # type: ignore[arg-type]  # compiled by the same rule
            if any(member in claimed for member, shared in match.nodes if not shared):
                return None  # the next sweep sees the graph without the overlap
            builder = self._builder(rule, node, next(iter(rule.forms), ""))
            try:
                rule.decide(match)
                outputs = rule.build(match, builder)
            except Refusal as refusal:
                _release(builder.nodes)
                reasons.append(Refused(node.name or node.op_type, refusal.reason, refusal.where, refusal.needless))
                continue
            return _Candidate(match, builder, outputs)
        for item in reasons[:1]:
            refused[item.node, item.reason] = item
            logger.debug("%s: %s: %s", rule.name, item.node, item.reason)
        return None

    def _builder(self, rule: Rule, node: ir.Node, form: str) -> Builder:
        """Return a builder whose names are new: a value keeps its name when it is rewritten, and may be so again."""
        prefix = node.outputs[0].name or node.op_type
        times = self._commits[prefix, rule.name]
        return Builder(self.model, f"{prefix}~{times}" if times else prefix, rule.name, form)

    def _candidate(self, rule: Rule, match: Match, form: str) -> _Candidate:
        """Build another form of an accepted match."""
        builder = self._builder(rule, match.root, form)
        return _Candidate(match, builder, rule.build(match, builder))

    def _by_profit(self, rule: Rule, chosen: list[_Candidate], settled: set[str], entry: PassEntry) -> list[_Candidate]:
        """Give every candidate the form that is fastest for its class; those that stay as they are are settled."""
        if self.profit is None:
            return chosen
        kept: list[_Candidate] = []
        for candidate in chosen:
            default = candidate.regions()[1]
            # shared nodes are computed once for all their readers: no form pays for them
            own = [node for node, shared in candidate.match.nodes if not shared]
            old = region(own, candidate.wanted())
            others = [self._candidate(rule, candidate.match, form) for form in rule.forms[1:]]
            forms = {rule.forms[0]: default, **{c.builder.form: c.regions()[1] for c in others}, AS_IS: old}
            choice = self.profit.choose_region(rule.name, forms, self.model)
            winner = next((c for c in (candidate, *others) if c.builder.form == choice.form), None)
            for loser in (candidate, *others):
                if loser is not winner:
                    _release(loser.builder.nodes)
            if str(choice) not in entry.choices:
                entry.choices.append(str(choice))
            if winner is None:
                settled.add(_key(candidate.match.root))
            else:
                kept.append(winner)
        return kept

    def _prove_and_apply(self, rule: Rule, chosen: list[_Candidate], settled: set[str], entry: PassEntry) -> None:
        verdicts = self._prove(rule, chosen) if self.prove else [_Verdict()] * len(chosen)
        replaced: dict[ir.Value, ir.Value] = {}
        for candidate, verdict in zip(chosen, verdicts, strict=True):
            if verdict.reason:
                settled.add(_key(candidate.match.root))
                repro = write_repro(self.repro_folder, rule.name, candidate.regions(), self.model, verdict.values)
                node = candidate.match.root.name or candidate.match.root.op_type
                entry.rolled_back.append(RolledBack(node, verdict.reason, verdict.error, repro))
                logger.warning("%s: %s rolled back: %s", rule.name, node, verdict.reason)
                _release(candidate.builder.nodes)
                continue
            entry.worst_error = max(entry.worst_error, verdict.error)
            self._commits[_key(candidate.match.root), rule.name] += 1
            _commit(self.model, candidate, replaced)
            entry.applied += 1
        if entry.applied and not isinstance(rule.numerics, Exact):
            self.forget()
        annotate(self.model, self.observations)

    def _prove(self, rule: Rule, chosen: list[_Candidate]) -> list[_Verdict]:
        regions = [part for candidate in chosen for part in candidate.regions()]
        wanted = {value for part in regions for value in part.inputs}
        runner = GraphRunner(self.model, wanted)
        captured = []
        for observation in self.observations:
            values = runner.run(observation.feeds)[1]
            values.update({v: observation.feeds[v.name or ""] for v in wanted if v.is_graph_input()})
            captured.append(values)
        try:
            return self._compare(rule.numerics, chosen, captured)
        except ProbeError:  # one of them does not run: find out which
            return [self._prove_alone(rule, candidate, captured) for candidate in chosen]

    def _prove_alone(self, rule: Rule, candidate: _Candidate, captured: Sequence[dict[ir.Value, Array]]) -> _Verdict:
        try:
            return self._compare(rule.numerics, [candidate], captured)[0]
        except ProbeError as error:
            return _Verdict(f"the replacement does not run: {error}", math.inf)

    def _compare(
        self, numerics: Numerics, chosen: list[_Candidate], captured: Sequence[dict[ir.Value, Array]]
    ) -> list[_Verdict]:
        runner = RegionRunner([part for candidate in chosen for part in candidate.regions()], self.model)
        verdicts = [_Verdict() for _ in chosen]
        trials = [*captured, *(_random(captured[0], scale, seed) for seed, scale in enumerate(RANDOM_SCALES))]
        extra = max((len(candidate.match.probes) for candidate in chosen), default=0)
        for index in range(extra):
            values = dict(captured[0])
            for candidate in chosen:
                if index < len(candidate.match.probes):
                    values.update(candidate.match.probes[index])
            trials.append(values)
        for values in trials:
            results = _per_candidate(chosen, runner.run(values))
            shaken: list[tuple[list[Array], list[Array]]] | None = None
            for position, (old, new) in enumerate(results):
                if verdicts[position].reason:
                    continue
                verdict = _judge(numerics, old, new, verdicts[position].error, values)
                if verdict.reason and isinstance(numerics, Reassociated):
                    shaken = shaken or _per_candidate(chosen, runner.run(_shake(values)))
                    verdict = _judge(
                        _loosened(numerics, old, shaken[position][0]), old, new, verdicts[position].error, values
                    )
                verdicts[position] = verdict
        return verdicts

    # Whole-graph passes

    def _apply_pass(self, step: Pass, entry: PassEntry) -> None:
        before = self.model.clone() if self.prove else None
        try:
            entry.applied = step.run(self.model)
        except PassAuthorError:
            raise
        except Exception as error:
            if before is None:
                raise
            self._restore(before)
            entry.applied = 0
            entry.rolled_back.append(RolledBack("whole graph", f"{type(error).__name__}: {error}", math.inf))
            logger.warning("%s failed and was undone: %s", step.name, error)
            return
        self._report(step.name, entry.applied)
        if before is not None and entry.applied:
            self._prove_whole(step, before, entry)

    def _prove_whole(self, step: Pass, before: ir.Model, entry: PassEntry) -> None:
        try:
            old = self._outputs or self._run_all(before)
            new = self._run_all(self.model)
            pairs = [
                (self._kept(step, expected, item), self._kept(step, found, item))
                for expected, found, item in zip(old, new, self.observations, strict=True)
            ]
        except ProbeError as error:
            self._restore(before)
            entry.rolled_back.append(RolledBack("whole graph", f"the result does not run: {error}", math.inf))
            entry.applied = 0
            return
        for expected, found in pairs:
            verdict = _judge(
                step.numerics, [expected[n] for n in expected], [found[n] for n in expected], entry.worst_error, {}
            )
            entry.worst_error = verdict.error
            if verdict.reason:
                first = next(n for n in expected if _judge(step.numerics, [expected[n]], [found[n]], 0.0, {}).reason)
                self._restore(before)
                entry.rolled_back.append(RolledBack(first, verdict.reason, verdict.error))
                entry.applied, entry.worst_error = 0, 0.0
                logger.warning("%s rolled back: %s", step.name, verdict.reason)
                return
        self._outputs = new

    def _run_all(self, model: ir.Model) -> list[Feeds]:
        runner = GraphRunner(model)
        return [runner.run(item.feeds)[0] for item in self.observations]

    def _kept(self, step: Pass, outputs: Feeds, observation: Observation) -> Feeds:
        """Return the outputs, without padded positions when the pass may change those."""
        if self.signature is None or not step.touches_padding:
            return outputs
        kept: Feeds = {}
        for name, array in outputs.items():
            rows = rows_that_matter(self.signature, observation.feeds, name, array)
            kept[name] = array if rows is None else array[rows]
        return kept

    def _restore(self, before: ir.Model) -> None:
        self.model.graph = before.graph
        self.model.functions.clear()
        self.model.functions.update(before.functions)

    def _report(self, name: str, count: int) -> None:
        if self.progress is not None:
            self.progress(name, count)


@dataclass
class _Candidate:
    match: Match
    builder: Builder
    outputs: tuple[ir.Value | None, ...]

    def wanted(self) -> list[ir.Value]:
        return [old for old, new in zip(self.match.root.outputs, self.outputs, strict=True) if new is not None]

    def regions(self) -> tuple[Region, Region]:
        new = [value for value in self.outputs if value is not None]
        return region(self._members(), self.wanted()), region([*self._kept(new), *self.builder.nodes], new)

    def _members(self) -> list[ir.Node]:
        return [node for node, _ in self.match.nodes]

    def _kept(self, new: Sequence[ir.Value]) -> list[ir.Node]:
        """Return the matched nodes whose results the replacement goes on using; it computes them itself."""
        members = set(self._members()) - {self.match.root}
        stack = [*new, *(value for node in self.builder.nodes for value in node.inputs if value is not None)]
        kept: dict[ir.Node, None] = {}
        while stack:
            producer = stack.pop().producer()
            if producer in members and producer is not None and producer not in kept:
                kept[producer] = None
                stack.extend(value for value in producer.inputs if value is not None)
        return list(kept)


@dataclass(frozen=True)
class _Verdict:
    reason: str = ""
    error: float = 0.0
    values: dict[ir.Value, Array] | None = None


def _per_candidate(chosen: Sequence[_Candidate], results: Sequence[Array]) -> list[tuple[list[Array], list[Array]]]:
    """Deal a runner's outputs out to the candidates: those of the replaced region, then those of the replacement."""
    deal = iter(results)
    return [([next(deal) for _ in c.wanted()], [next(deal) for _ in c.wanted()]) for c in chosen]


def _shake(values: dict[ir.Value, Array]) -> dict[ir.Value, Array]:
    """Move every float by up to two units of float32 rounding."""
    generator = np.random.default_rng(0)
    return {
        value: (array * (1 + generator.uniform(-1, 1, array.shape) * ROUNDING)).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for value, array in values.items()
    }


def _loosened(numerics: Reassociated, old: list[Array], shaken: list[Array]) -> Reassociated:
    """Widen a contract by what the replaced region itself makes of rounding errors in its inputs."""
    moved = max((worst_error(b, a)[1] for a, b in zip(old, shaken, strict=True)), default=0.0)
    return replace(numerics, atol=numerics.atol + SENSITIVITY_FACTOR * moved) if math.isfinite(moved) else numerics


def _key(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _judge(
    numerics: Numerics, old: list[Array], new: list[Array], so_far: float, values: dict[ir.Value, Array]
) -> _Verdict:
    """Compare outputs under a contract; the error is relative to the largest magnitude of the reference."""
    worst = so_far
    for reference, candidate in zip(old, new, strict=True):
        relative, absolute = worst_error(candidate, reference)
        if isinstance(numerics, Lossy):
            if not math.isfinite(absolute):
                return _Verdict("shape, dtype or the places of NaN differ", relative, values)
            continue
        if isinstance(numerics, Exact):
            if candidate.dtype != reference.dtype or absolute > 0:
                return _Verdict(_difference(numerics, candidate, reference, relative), relative, values)
            continue
        scale = (
            float(np.abs(reference[np.isfinite(reference)]).max())
            if reference.dtype.kind == "f" and np.isfinite(reference).any()
            else 0.0
        )
        if candidate.dtype != reference.dtype or absolute > numerics.atol + numerics.rtol * scale:
            return _Verdict(_difference(numerics, candidate, reference, relative), relative, values)
        worst = max(worst, 0.0 if absolute <= numerics.atol else relative)
    return _Verdict("", worst)


def _difference(numerics: Numerics, candidate: Array, reference: Array, relative: float) -> str:
    if candidate.shape != reference.shape or candidate.dtype != reference.dtype:
        return (
            f"the replacement gives {candidate.dtype}{list(candidate.shape)}, "
            f"the replaced region gave {reference.dtype}{list(reference.shape)}"
        )
    return f"worst relative error {relative:.3g}, contract {numerics}"


def _random(captured: dict[ir.Value, Array], scale: float, seed: int) -> dict[ir.Value, Array]:
    """Return the captured values with float tensors, but for masks, replaced by noise of their spread times `scale`."""
    noise: dict[ir.Value, Array] = {}
    for index, (value, array) in enumerate(captured.items()):
        switch = bool(np.isin(array, (0, 1)).all())  # a mask in float stays a mask
        if array.dtype.kind != "f" or switch or not np.isfinite(array).all():
            noise[value] = array
            continue
        generator = np.random.default_rng((seed, index))
        spread = float(array.std()) or 1.0
        noise[value] = (generator.standard_normal(array.shape) * spread * scale).astype(array.dtype)
    return noise


def _release(nodes: Sequence[ir.Node]) -> None:
    """Let go of the values that detached nodes use, so that nobody counts them as users."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _commit(model: ir.Model, candidate: _Candidate, replaced: dict[ir.Value, ir.Value]) -> None:
    """Put a replacement into the graph.

    Args:
        model: gets the new nodes and loses the dead ones.
        candidate: built, proved, not yet in the graph.
        replaced: what each replaced value has become in this sweep; extended here. A replacement that hands on a value
            may hold one that an earlier replacement of the sweep has taken out.
    """
    graph, match, builder = model.graph, candidate.match, candidate.builder
    for node in builder.nodes:
        model.opset_imports.setdefault(node.domain, 1) if node.domain else None
    for value in builder.initializers:
        if value.uses():
            graph.register_initializer(value)
    made = set(builder.nodes)
    anchor = match.root
    graph.insert_before(anchor, builder.nodes)
    for old, new in zip(match.root.outputs, candidate.outputs, strict=True):
        if new is None:
            continue
        while new in replaced:
            new = replaced[new]  # noqa: PLW2901 - follow the chain
        passed_through = new.producer() not in made
        name, shape, kind = old.name, old.shape, old.type
        if passed_through and old.is_graph_output():
            keep = ir.node("Identity", [new], name=f"{name}/keep")
            graph.insert_before(anchor, [keep])
            taken, passed_through = keep.outputs[0], False
        else:
            taken = new
        old.replace_all_uses_with(taken, replace_graph_outputs=True)
        replaced[old] = taken
        if passed_through:
            continue
        old.name = f"{name}/replaced"
        taken.name, taken.shape, taken.type = name, shape, kind
    remove_dead([*(node for node, _ in reversed(match.nodes)), *builder.nodes])
