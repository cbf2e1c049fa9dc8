"""Apply one pass with its proof: what is not equal to what it replaces does not stay.

For a rule every match is proved before it is applied: the region it replaces and its replacement are cut out, run side
by side on activations captured from a run of the whole model and on random ones, and compared under the rule's
contract. A whole-graph pass that leaves every output the same expression of the inputs is proved by that; where the
only change is that values have become constants, those are computed again and compared; of any other pass the outputs
before and after are compared, and a difference restores the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxopt.errors import InputError, PassAuthorError
from onnxopt.graph import initializer_bytes, remove_dead
from onnxopt.graph.cache import keeps_packed
from onnxopt.graph.kept_rows import rows_that_matter
from onnxopt.probe.annotate import annotate, hand_over
from onnxopt.probe.captures import Captures
from onnxopt.probe.expression import Expression, Expressions
from onnxopt.probe.folded import became_constants, computed
from onnxopt.probe.memory import release_memory, release_pages
from onnxopt.probe.observe import Observation
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.contract import Verdict, compare, noise_like
from onnxopt.proof.regions import Candidate, Proof
from onnxopt.proof.repro import write_repro
from onnxopt.records.events import Step
from onnxopt.records.ledger import Ledger, PassEntry, Refused, RolledBack
from onnxopt.rewrite import AS_IS, Builder, Forms, Pass, Refusal, Rewrite, Rule
from onnxopt.rewrite.blame import blamed
from onnxopt.rewrite.patterns import Miss
from onnxopt.sizes import Derivation
from onnxopt.sizes.emptiness import note_ranges
from onnxopt.spec import Array, Exact, Feeds, Lossy, Signature

logger = logging.getLogger(__name__)

MAX_ROUNDS = 64  # a rule that still fires after this many sweeps feeds on its own result
RANDOM_SCALES = (1.0, 1e-2, 1e-4, 10.0)  # small ones show a wrong epsilon, large ones a wrong activation
LARGE_SCALES = (1e6, 1e18, 1e30)  # show an exponential or a square that leaves the range of numbers


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
        forms: tells which form a class of regions gets where a pass offers several.
        derivation: what is known of sizes; passes lean on no other.
        captures: what is known of the model's values at the observations.
    """

    model: ir.Model
    observations: Sequence[Observation]
    ledger: Ledger = field(default_factory=Ledger)
    prove: bool = True
    repro_folder: Path | None = None
    progress: Callable[[str, int], None] | None = None
    signature: Signature | None = None
    forms: Forms = field(default_factory=Forms)
    derivation: Derivation = field(default_factory=Derivation)
    captures: Captures = field(default_factory=Captures, init=False)
    _outputs: list[Feeds] | None = field(default=None, init=False)
    _copy: ir.Model | None = field(default=None, init=False)
    _place: tuple[int, int] = field(default=(0, 0), init=False)  # of a pass among those that run in a row
    _replayed: list[Pass] = field(default_factory=list, init=False)
    _expression: Expression | None = field(default=None, init=False)
    _graph: ir.Graph = field(init=False)
    _annotated: bool = field(default=False, init=False)
    _reshaped: bool = field(default=True, init=False)
    _expressions: Expressions = field(default_factory=Expressions, init=False)
    _commits: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self._graph = self.model.graph

    def apply(self, step: Rewrite) -> PassEntry:
        """Run one pass to its fixed point and return its entry in the ledger."""
        if self.model.graph is not self._graph:
            self.forget()
        nodes, face = self.model.graph.num_nodes(), _face(self.model)
        entry = PassEntry(step.name, step.stage, str(step.numerics), nodes_before=nodes, origin=step.origin)
        started, size = time.perf_counter(), initializer_bytes(self.model)
        self._report(step.name, 0)
        try:
            with blamed(step):
                if isinstance(step, Rule):
                    self._apply_rule(step, entry)
                elif isinstance(step, Pass):
                    self._apply_pass(step, entry)
                else:
                    raise PassAuthorError(f"{step.name} is neither a Rule nor a Pass")
                if step.origin is not None and _face(self.model) != face:
                    raise PassAuthorError(f"{step.name} changed the names of the graph's inputs or outputs")
        finally:
            self._graph = self.model.graph
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

    def apply_all(self, steps: Iterable[Rewrite]) -> None:
        """Run passes one after the other."""
        every = list(steps)
        for number, step in enumerate(every):
            self._place = number, len(every)
            self.apply(step)
        self._place = 0, 0

    def forget(self) -> None:
        """Drop what is remembered of the model; call it after changing the model by other means than `apply`."""
        self._outputs = self._copy = None
        self.captures.forget()
        self._annotated, self._reshaped = False, True

    # Rules

    def _apply_rule(self, rule: Rule, entry: PassEntry) -> None:
        self._annotate()
        settled: set[str] = set()
        refused: dict[tuple[str, str], Refused] = {}
        for _ in range(MAX_ROUNDS):
            refused.clear()
            chosen = self._choose(rule, settled, refused, entry)
            if not chosen:
                break
            self._prove_and_apply(rule, chosen, settled, entry)
            self._report(rule.name, entry.applied)
        else:
            raise PassAuthorError(f"{rule.name} did not come to rest after {MAX_ROUNDS} sweeps")
        entry.refused.extend(refused.values())

    def _choose(
        self, rule: Rule, settled: set[str], refused: dict[tuple[str, str], Refused], entry: PassEntry
    ) -> list[Candidate]:
        """Return non-overlapping matches that the guard accepts, with replacements built but not yet in the graph."""
        patterns, types = rule.compiled(), rule.root_types()
        claimed: set[ir.Node] = set()
        chosen: list[Candidate] = []
        for node in list(self.model.graph):
            if node.op_type not in types or _key(node) in settled:
                continue
            found = self._first_accepted(rule, patterns, node, claimed, (refused, entry))
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
        told: tuple[dict[tuple[str, str], Refused], PassEntry],
    ) -> Candidate | None:
        reasons: list[Refused] = []
        for match in rule.find(node, patterns, self.model, Miss()):  # type: ignore[arg-type]  # compiled by the same rule
            if any(member in claimed for member, shared in match.nodes if not shared):
                return None  # the next sweep sees the graph without the overlap
            builder = self._builder(rule, node, "")
            try:
                rule.decide(match)
                builder.form = self._form(rule, rule.class_of(match), rule.forms_of(match), told[1])
                match.needs(builder.form != AS_IS, "left as it is, which is faster")
                outputs = rule.build(match, builder)
            except Refusal as refusal:
                _release(builder.nodes)
                reasons.append(Refused(node.name or node.op_type, refusal.reason, refusal.where, refusal.needless))
                continue
            return Candidate(match, builder, outputs)
        for item in reasons[:1]:
            told[0][item.node, item.reason] = item
            logger.debug("%s: %s: %s", rule.name, item.node, item.reason)
        return None

    def _builder(self, rule: Rule, node: ir.Node, form: str) -> Builder:
        """Return a builder whose names are new: a value keeps its name when it is rewritten, and may be so again."""
        prefix = node.outputs[0].name or node.op_type
        times = self._commits[prefix, rule.name]
        return Builder(self.model, f"{prefix}~{times}" if times else prefix, rule.name, form)

    def _form(self, step: Rewrite, kind: str, forms: tuple[str, ...], entry: PassEntry) -> str:
        """Return the form that a class of regions gets, and say in the ledger why."""
        if not forms:
            return ""
        choice = self.forms.of(step.name, kind, forms)
        said = f"{kind}: {choice}" if kind else str(choice)
        if said not in entry.choices:
            entry.choices.append(said)
        return choice.form

    def _prove_and_apply(self, rule: Rule, chosen: list[Candidate], settled: set[str], entry: PassEntry) -> None:
        verdicts = self._prove(rule, chosen) if self.prove else [Verdict()] * len(chosen)
        judged = list(zip(chosen, verdicts, strict=True))
        for candidate, verdict in judged:  # before any other changes what the regions of these read
            if verdict.reason:
                self._roll_back(rule, candidate, verdict, entry)
                settled.add(_key(candidate.match.root))
        replaced: dict[ir.Value, ir.Value] = {}
        for candidate, verdict in judged:
            if verdict.reason:
                continue
            entry.worst_error = max(entry.worst_error, verdict.error)
            self._commits[_key(candidate.match.root), rule.name] += 1
            _commit(self.model, candidate, replaced)
            entry.applied += 1
        if entry.applied:
            self._copy = None
            self._outputs = self._outputs if isinstance(rule.numerics, Exact) else None
            if isinstance(rule.numerics, Lossy):
                self.captures.forget()
            self._annotated = False
        self._annotate()

    def _roll_back(self, rule: Rule, candidate: Candidate, verdict: Verdict, entry: PassEntry) -> None:
        repro = write_repro(self.repro_folder, rule.name, candidate.regions, self.model, verdict.values)
        node = candidate.match.root.name or candidate.match.root.op_type
        entry.rolled_back.append(RolledBack(node, verdict.reason, verdict.error, repro))
        logger.warning("%s: %s rolled back: %s", rule.name, node, verdict.reason)
        _release(candidate.builder.nodes)

    def _annotate(self) -> None:
        if not self._annotated:
            annotate(self.model, self.derivation, incomplete=self._reshaped)
            note_ranges(self.model.graph, self.derivation.ranges)
            self._annotated, self._reshaped = True, False

    def _prove(self, rule: Rule, chosen: list[Candidate]) -> list[Verdict]:
        """Compare both regions of each candidate on captured, random and asked-for inputs, one run after the other."""
        proof = Proof(rule.numerics, chosen, self.model)
        wanted = list(dict.fromkeys(value for one in chosen for part in one.regions for value in part.inputs))
        first: dict[ir.Value, Array] = {}
        captured = self.captures.run(self.model, self.observations, wanted)
        for observation in self.observations:
            try:
                values = next(captured)
            except ProbeError as error:  # all that was rewritten is proved, so it is the model that does not
                said, hint = f"the model does not run: {error}", "give inputs that run with --feeds example.npz"
                raise InputError(said, where=rule.name, hint=hint) from error
            proof.add(values, observation)
            first = first or values
            del values  # one size at a time: the longest are as large as all others together
        next(captured, None)  # it remembers what it has seen
        del captured
        release_memory()
        if not isinstance(rule.numerics, Lossy):  # calibrated for real activations, it may do as it likes with others
            for seed, scale in enumerate(RANDOM_SCALES):
                proof.add(noise_like(first, scale, seed))
            if not rule.taken_apart_again:
                for seed, scale in enumerate(LARGE_SCALES, len(RANDOM_SCALES)):
                    proof.add_large(noise_like(first, scale, seed), scale)
        extra = max((len(candidate.match.probes) for candidate in chosen), default=0)
        for index in range(extra):
            values = dict(first)
            for candidate in chosen:
                if index < len(candidate.match.probes):
                    values.update(candidate.match.probes[index])
            proof.add(values)
        proof.name_types()
        return proof.conclude()

    # Whole-graph passes

    def _apply_pass(self, step: Pass, entry: PassEntry) -> None:
        if self._form(step, "", step.forms, entry) == AS_IS:
            return
        before = self._snapshot() if self.prove else None
        if before is not None and step.makes_weights and self._outputs is None:
            self._outputs = self._try_all(before)  # now, since two sets of weights at a time are too much
        try:
            entry.applied = step.run(self.model)
            entry.refused.extend(Refused(refusal.where, refusal.reason) for refusal in step.refusals)
        except PassAuthorError:
            raise
        except Exception as error:
            if before is None or step.origin is not None:  # whose maker wants to see it
                raise
            self._undo(before, entry, RolledBack("whole graph", f"{type(error).__name__}: {error}", math.inf))
            logger.warning("%s failed and was undone: %s", step.name, error)
            return
        if step.origin is not None:
            self._check_count(step, entry.applied, proved=before is not None)
        self._report(step.name, entry.applied)
        if not entry.applied:
            self.forms.met.pop((step.name, ""), None)  # it had nothing to choose
            entry.choices.clear()
            return
        self._annotated, self._reshaped = False, True
        now = self._expressions.of(self.model) if self._expression is not None else None
        if before is not None and now is not None and now == self._expression:
            self._replayed.append(step)
        elif before is not None and now is not None and self._same_but_for_constants(step, before, now, entry):
            self._copy = None
        else:
            self.captures.forget()
            if before is not None:
                self._prove_whole(step, before, entry)
                self._copy = None

    def _check_count(self, step: Pass, count: object, *, proved: bool) -> None:
        """Check what a pass from outside says it changed: where it says 0, nothing is compared."""
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise PassAuthorError(f"run of {step.name} gives {count!r}, not the number of its changes")
        if not count and proved and self._expressions.of(self.model) != self._expression:
            raise PassAuthorError(f"run of {step.name} gives 0, and has changed the graph")

    def _snapshot(self) -> ir.Model:
        """Return a copy of the model, or of one of the same expressions, from which `_replayed` lead to the model."""
        if self._copy is None:
            self._copy, self._replayed = self.model.clone(), []
            self._expression = self._expressions.of(self._copy)
        return self._copy

    def _same_but_for_constants(self, step: Pass, before: ir.Model, now: Expression, entry: PassEntry) -> bool:
        """Tell whether nothing has changed but values that became constants, and whether those are right."""
        values = {} if isinstance(step.numerics, Lossy) else became_constants(before, self.model)
        if not values or self._expressions.of(before, values) != now:
            return False
        verdict = Verdict()
        try:
            for made, kept in computed(before, values, self.observations[0].feeds):
                verdict = compare(step.numerics, [made], [kept], verdict.error, {})
                if verdict.reason:
                    return False
        except ProbeError:
            return False
        finally:
            release_memory()
        entry.worst_error = verdict.error
        return True

    def _prove_whole(self, step: Pass, before: ir.Model, entry: PassEntry) -> None:
        try:
            exact = isinstance(step.numerics, Exact)
            outputs = (None if exact else self._outputs) or self._run_all(before, turned=not exact)
            for index, (observation, new) in enumerate(
                zip(self.observations, self._new_outputs(exact=exact), strict=True)
            ):
                if not self._agrees(step, (outputs[index], new), observation, (before, entry)):
                    return
                outputs[index] = new  # one set of outputs at a time
        except ProbeError as error:
            self._undo(before, entry, RolledBack("whole graph", f"the result does not run: {error}", math.inf))
            return
        release_memory()
        self._outputs = outputs

    def _new_outputs(self, *, exact: bool) -> Iterator[Feeds]:
        """Yield what the model gives at each size."""
        if exact:
            runner = GraphRunner(self.model)
            return (runner.run(observation.feeds)[0] for observation in self.observations)
        return self.captures.outputs(self.model, self.observations)

    def _agrees(
        self, step: Pass, outputs: tuple[Feeds, Feeds], observation: Observation, undo: tuple[ir.Model, PassEntry]
    ) -> bool:
        """Compare the outputs before and after at one size; undo the pass when they differ."""
        before, entry = undo
        old = self._kept(step, outputs[0], observation, before)
        new = self._kept(step, outputs[1], observation, self.model)
        both = [name for name in old if name in new]  # of sequences of two lengths, these differ
        verdict = compare(step.numerics, [old[n] for n in both], [new[n] for n in both], entry.worst_error, {})
        entry.worst_error = verdict.error
        if verdict.reason:
            first = next(n for n in both if compare(step.numerics, [old[n]], [new[n]], 0.0, {}).reason)
            self._undo(before, entry, RolledBack(first, verdict.reason, verdict.error))
            logger.warning("%s rolled back: %s", step.name, verdict.reason)
        return not verdict.reason

    def _undo(self, before: ir.Model, entry: PassEntry, why: RolledBack) -> None:
        self._restore(before)
        for step in self._replayed:
            step.run(self.model)
        if self._replayed and self._expressions.of(self.model) != self._expression:
            raise PassAuthorError(
                f"{', '.join(step.name for step in self._replayed)} did something else the second time"
            )
        self._outputs = None
        entry.rolled_back.append(why)
        entry.applied, entry.worst_error = 0, 0.0

    def _try_all(self, model: ir.Model) -> list[Feeds] | None:
        try:
            return self._run_all(model)
        except ProbeError:
            return None  # when it matters, it is tried again and said

    def _run_all(self, model: ir.Model, *, turned: bool = True) -> list[Feeds]:
        runner = GraphRunner(model, turned=turned)
        found = [runner.run(item.feeds)[0] for item in self.observations]
        del runner
        release_pages(value.const_value for value in model.graph.initializers.values())
        release_memory()
        return found

    def _kept(self, step: Pass, outputs: Feeds, observation: Observation, model: ir.Model) -> Feeds:
        """Return the outputs, without padded positions when the pass may change those."""
        if self.signature is None or not step.touches_padding:
            return outputs
        kept: Feeds = {}
        for name, array in outputs.items():
            packed = keeps_packed(model)
            rows = rows_that_matter(self.signature, observation.feeds, name, array, packed=packed)
            kept[name] = array if rows is None else array[rows]
        return kept

    def _restore(self, before: ir.Model) -> None:
        self.model.graph = before.graph
        self.model.functions.clear()
        self.model.functions.update(before.functions)
        self._copy, self._graph = None, before.graph
        self._annotated, self._reshaped = False, True
        self.captures.forget()

    def _report(self, name: str, count: int) -> None:
        if self.progress is not None:
            done, total = self._place
            self.progress(Step(name, work="passes", done=done, total=total), count)


def _face(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    """Return the names of a graph's inputs and outputs."""
    return [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]


def _key(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _release(nodes: Sequence[ir.Node]) -> None:
    """Let go of the values that detached nodes use, so that nobody counts them as users."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _commit(model: ir.Model, candidate: Candidate, replaced: dict[ir.Value, ir.Value]) -> None:
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
        if value.uses() or value in candidate.outputs:
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
        name = old.name
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
        taken.name = name
        hand_over(old, taken)
    remove_dead([*(node for node, _ in reversed(match.nodes)), *builder.nodes])
