"""Find what the bodies of a graph are given when it runs: outer values, and what changes from turn to turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant, is_constant, rank
from onnxopt.graph.bodies import Cut
from onnxopt.probe.captures import Captures
from onnxopt.probe.cut import feedable
from onnxopt.probe.observe import Observation
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array, Feeds

logger = logging.getLogger(__name__)

MOST_TURNS = 16  # of a loop that are run to find the last one that is looked at

Given = list[Array | None]  # one per input of a node, None for one that is left out


def can_be_fed(part: Cut) -> bool:
    """Tell whether all that a cut-out body takes are tensors that NumPy and the runtime exchange."""
    node = part.body.node
    given = [value for value in node.inputs if value is not None and not is_constant(value)]
    return all(feedable(value) for value in (*part.model.graph.inputs, *given))


def runs_of(
    parts: Sequence[Cut], model: ir.Model, observations: Sequence[Observation], captures: Captures
) -> list[list[Observation]]:
    """Return what each body is given, in a run of the model after the other: nothing where no run takes it.

    Of a loop the first and the last turn of each run are kept.

    Args:
        parts: cut from the model; all that they take `can_be_fed`.
        model: not changed.
        observations: inputs of the model.
        captures: what is known of the model at these.

    Raises:
        ProbeError: the model does not run.
    """
    taken = (value for part in parts for value in (*part.body.node.inputs, *part.read) if value is not None)
    wanted = [value for value in dict.fromkeys(taken) if not is_constant(value)]
    bodies = [_Runs(part) for part in parts]
    for observation, values in zip(observations, captures.run(model, observations, wanted), strict=True):
        for one in bodies:
            one.add(observation, values)
    return [one.found for one in bodies]


class _Runs:
    """What one body is given; nothing, where it does not run by itself."""

    def __init__(self, part: Cut) -> None:
        self._part = part
        self._runner: GraphRunner | None = None
        self._fails = False
        self.found: list[Observation] = []

    def add(self, observation: Observation, values: Mapping[ir.Value, Array]) -> None:
        """Look at one more run of the model around."""
        part = self._part
        given = [_array(value, values) for value in part.body.node.inputs]
        outer = {value.name or "": values[value] for value in part.read}
        if self._fails:
            return
        try:
            turns = [outer | own for own in self._turns(given, outer)]
        except ProbeError as error:
            logger.info("%s does not run by itself: %s", part.body.label, error)
            self.found, self._fails = [], True
            return
        kept = turns if len(turns) < 2 else [turns[0], turns[-1]]
        self.found += [Observation(observation.sizes, feeds) for feeds in kept]

    def _turns(self, given: Given, outer: Feeds) -> Iterator[Feeds]:
        """Yield the body's own inputs each time that it is run; for a branch there are none."""
        part = self._part
        if part.body.node.op_type == "If":
            if _is_true(given[0]) == (part.body.attribute == "then_branch"):
                yield {}
            return
        runner = self._runner = self._runner or GraphRunner(part.model)
        turns = _of_loop if part.body.node.op_type == "Loop" else _of_scan
        yield from turns(part, given, outer, runner)


def _array(value: ir.Value | None, values: Mapping[ir.Value, Array]) -> Array | None:
    return None if value is None else values[value] if value in values else constant(value)


def _is_true(array: Array | None) -> bool:
    return array is not None and bool(np.reshape(array, -1)[0])


def _of_loop(part: Cut, given: Given, outer: Feeds, runner: GraphRunner) -> Iterator[Feeds]:
    own = list(part.model.graph.inputs)[: part.own]
    most = MOST_TURNS if given[0] is None else min(MOST_TURNS, int(np.reshape(given[0], -1)[0]))
    goes_on = given[1] is None or _is_true(given[1])
    states = given[2:]
    for turn in range(most):
        if not goes_on:
            return
        counted = (_as_taken(np.int64(turn), part, 0), _as_taken(np.bool_(goes_on), part, 1))
        feeds = _named(own, (*counted, *states))
        yield feeds
        made = _run(part, runner, outer | feeds)
        goes_on, states = _is_true(made[0]), list(made[1 : 1 + len(states)])


def _of_scan(part: Cut, given: Given, outer: Feeds, runner: GraphRunner) -> Iterator[Feeds]:
    node = part.body.node
    own = list(part.model.graph.inputs)[: part.own]
    count = int(attribute(node, "num_scan_inputs"))
    states = given[: len(own) - count]
    scanned = [np.asarray(array) for array in given[len(own) - count :]]
    axes = attribute(node, "scan_input_axes") or [0] * count
    backward = attribute(node, "scan_input_directions") or [0] * count
    length = min(array.shape[axis] for array, axis in zip(scanned, axes, strict=True))
    for turn in range(min(MOST_TURNS, length)):
        places = [length - 1 - turn if turned else turn for turned in backward]
        slices = [np.take(array, at, axis) for array, at, axis in zip(scanned, places, axes, strict=True)]
        feeds = _named(own, (*states, *slices))
        yield feeds
        states = list(_run(part, runner, outer | feeds)[: len(states)])


def _as_taken(number: np.generic, part: Cut, place: int) -> Array:
    """Return a number as a body takes it in one of its inputs: of no axes, or of one where it says so."""
    return np.reshape(np.asarray(number), (1,) * (rank(part.body.graph.inputs[place]) or 0))


def _named(own: Sequence[ir.Value], arrays: Sequence[Array | None]) -> Feeds:
    return {value.name or "": np.asarray(array) for value, array in zip(own, arrays, strict=True)}


def _run(part: Cut, runner: GraphRunner, feeds: Feeds) -> list[Array]:
    outputs = runner.run(feeds)[0]
    return [outputs[value.name or ""] for value in part.model.graph.outputs]
