"""Compare what is replaced with its replacement, region by region, under a rule's contract."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Region, region
from onnxopt.probe.observe import Observation, dtype_of
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import RegionRunner
from onnxopt.proof.contract import DRAWS, Verdict, by_rows, compare, mask_inputs, shaken
from onnxopt.proof.range import LARGEST_FACTOR, multiplies, out_of_range
from onnxopt.rewrite import Builder, Match
from onnxopt.spec import Array, Numerics, Reassociated

logger = logging.getLogger(__name__)


@dataclass
class Candidate:
    """A match of a rule, with its replacement built but not yet in the graph.

    Attributes:
        match: what is replaced.
        builder: holds the nodes of the replacement.
        outputs: what replaces each output of the match's root; None where nobody needs that.
    """

    match: Match
    builder: Builder
    outputs: tuple[ir.Value | None, ...]

    def wanted(self) -> list[ir.Value]:
        """Return the values that are replaced."""
        return [old for old, new in zip(self.match.root.outputs, self.outputs, strict=True) if new is not None]

    @cached_property
    def regions(self) -> tuple[Region, Region]:
        """What is replaced, and the replacement."""
        new = [value for value in self.outputs if value is not None]
        return region(self._members(), self.wanted()), region([*self._kept(new), *self.builder.nodes], new)

    @cached_property
    def inner(self) -> list[ir.Value]:
        """The values that the replacement makes on the way to its outputs."""
        made = (value for node in self.builder.nodes for value in node.outputs if value.name)
        return [value for value in made if value not in self.outputs]

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
class _Results:
    """What both regions of a candidate gave, and the inner values of the replacement."""

    old: list[Array]
    new: list[Array]
    inner: list[Array]


class Proof:
    """Candidates of one sweep, compared side by side in one session; apart, once one of them does not run.

    Attributes:
        verdicts: one per candidate; it stays as soon as it has a reason.
    """

    def __init__(self, numerics: Numerics, chosen: Sequence[Candidate], model: ir.Model) -> None:
        self.verdicts = [Verdict() for _ in chosen]
        self._numerics, self._chosen, self._model = numerics, chosen, model
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._runners: list[tuple[list[int], RegionRunner]] = []
        self._compared: set[int] = set()
        everyone = list(range(len(chosen)))
        try:
            self._runners.append((everyone, self._runner(everyone)))
        except ProbeError:
            self._part(everyone)

    def add(self, values: dict[ir.Value, Array], observation: Observation | None = None) -> None:
        """Compare on an array per input value; types of new values are read off those that are an observation."""
        waiting = list(self._runners)
        while waiting:
            members, runner = waiting.pop()
            try:
                self._judge(members, runner, values, observed=observation is not None)
            except ProbeError as error:
                if len(members) == 1 and not self._replaced_runs(members[0], values):
                    continue  # there is nothing at this size to be equal to
                self._runners.remove((members, runner))
                if len(members) == 1:
                    self._fail(members[0], error)
                else:
                    waiting.extend(self._part(members))

    def add_large(self, values: dict[ir.Value, Array], scale: float) -> None:
        """Hold replacements to the range of what they replace: what is a number there is a number here, too.

        Args:
            values: large numbers, an array per input value.
            scale: their size; where two of them are multiplied, products of larger ones than `LARGEST_FACTOR` prove
                nothing.
        """
        for members, runner in self._runners:
            try:
                results = self._deal(members, runner.run(values))
            except ProbeError as error:  # a number is too large for an index, say
                logger.debug("numbers around %g are not tried: %s", scale, error)
                continue
            for index, found in results.items():
                if self.verdicts[index].reason or (scale > LARGEST_FACTOR and multiplies(self._chosen[index].regions)):
                    continue
                if reason := out_of_range(found.old, found.new):
                    self.verdicts[index] = Verdict(reason, math.inf, values)

    def conclude(self) -> list[Verdict]:
        """Return the verdicts; a candidate that could be compared nowhere is not proved."""
        for index, verdict in enumerate(self.verdicts):
            if not verdict.reason and index not in self._compared:
                self.verdicts[index] = Verdict("what is replaced runs at no size that was tried", math.inf)
        return self.verdicts

    def name_types(self) -> None:
        """Give the inner values of replacements the types that they were seen to have; no type hangs on sizes."""
        for value, dtype in self._dtypes.items():
            value.type = ir.TensorType(dtype)

    def _part(self, members: Sequence[int]) -> list[tuple[list[int], RegionRunner]]:
        """Go on with each of these candidates alone; those that cannot be opened have failed."""
        alone = []
        for index in members:
            try:
                alone.append(([index], self._runner([index])))
            except ProbeError as error:  # noqa: PERF203 - a session costs more
                self._fail(index, error)
        self._runners.extend(alone)
        return alone

    def _replaced_runs(self, index: int, values: dict[ir.Value, Array]) -> bool:
        """Tell whether what a candidate replaces runs alone on these inputs."""
        try:
            RegionRunner(self._chosen[index].regions[:1], self._model).run(values)
        except ProbeError:
            return False
        return True

    def _fail(self, index: int, error: ProbeError) -> None:
        if not self.verdicts[index].reason:
            self.verdicts[index] = Verdict(f"the replacement does not run: {error}", math.inf)

    def _runner(self, members: Sequence[int]) -> RegionRunner:
        parts: list[Region] = []
        for index in members:
            old, new = self._chosen[index].regions
            parts += [old, replace(new, outputs=(*new.outputs, *self._chosen[index].inner))]
        return RegionRunner(parts, self._model)

    def _judge(
        self, members: Sequence[int], runner: RegionRunner, values: dict[ir.Value, Array], *, observed: bool
    ) -> None:
        results = self._deal(members, runner.run(values))
        moved: dict[int, list[Array]] = {}
        for index, found in results.items():
            self._compared.add(index)
            if observed:
                self._note(self._chosen[index], found.inner)
            so_far = self.verdicts[index]
            if so_far.reason:
                continue
            verdict = compare(self._numerics, found.old, found.new, so_far.error, values)
            if verdict.reason and isinstance(self._numerics, Reassociated):
                moved = moved or self._moved(members, runner, values, results)
                verdict = compare(self._numerics, found.old, found.new, so_far.error, values, moved=moved[index])
            self.verdicts[index] = verdict

    def _moved(
        self, members: Sequence[int], runner: RegionRunner, values: dict[ir.Value, Array], results: dict[int, _Results]
    ) -> dict[int, list[Array]]:
        """Return what roundings of the inputs do to each row of each output of what is replaced: float64 [rows]."""
        fixed = set(mask_inputs(part for index in members for part in self._chosen[index].regions))
        moved = {index: [np.zeros(1)] * len(results[index].old) for index in members}
        for draw in range(DRAWS):
            for index, found in self._deal(members, runner.run(shaken(values, fixed, draw))).items():
                rows = [by_rows(a, b).moved for a, b in zip(found.old, results[index].old, strict=True)]
                moved[index] = [np.maximum(a, b) for a, b in zip(moved[index], rows, strict=True)]
        return moved

    def _deal(self, members: Sequence[int], results: Sequence[Array]) -> dict[int, _Results]:
        """Deal a runner's outputs out to the candidates."""
        deal = iter(results)
        dealt: dict[int, _Results] = {}
        for index in members:
            candidate = self._chosen[index]
            old, new = ([next(deal) for _ in candidate.wanted()] for _ in range(2))
            dealt[index] = _Results(old, new, [next(deal) for _ in candidate.inner])
        return dealt

    def _note(self, candidate: Candidate, arrays: Iterable[Array]) -> None:
        for value, array in zip(candidate.inner, arrays, strict=True):
            if isinstance(array, np.ndarray):
                self._dtypes[value] = dtype_of(array)
