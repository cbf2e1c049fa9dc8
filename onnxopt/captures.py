"""Remember what a model's values were at some sizes, so that the next look at it runs only what lies between.

A value keeps its name and its meaning when it is rewritten; arrays are remembered by name. Rules that are proved one
after the other read much the same values: with the residual stream at hand, the rotary part of a layer needs that
layer's projection and not the thirty layers before it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

import onnx_ir as ir

from onnxopt.model import Array
from onnxopt.observe import Observation
from onnxopt.probe import GraphRunner, feedable

LIMIT_BYTES = 2**26  # of all sizes together: some of the memory that a run of the whole model takes


class Captures:
    """Activations of one model at every observation, by the name of their value.

    Args:
        limit_bytes: what is remembered at most; the smallest values are, since they cost as much to compute.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._known: list[dict[str, Array]] = []

    def forget(self) -> None:
        """Drop everything: names have other meanings now."""
        self._known = []

    def run(
        self, model: ir.Model, observations: Sequence[Observation], wanted: Collection[ir.Value]
    ) -> Generator[dict[ir.Value, Array]]:
        """Yield what the wanted values are at each observation, one size after the other.

        Args:
            model: not changed.
            observations: the same ones every time, until `forget`.
            wanted: values of the main graph.

        Raises:
            ProbeError: the model does not run.
        """
        if len(self._known) != len(observations):
            self._known = [{} for _ in observations]
        known = self._values(model)
        runner = GraphRunner(model, wanted, with_outputs=False, known=known, turned=True)
        met: list[dict[str, Array]] = []
        for observation, arrays in zip(observations, self._known, strict=True):
            given = {value.name or "": arrays[value.name or ""] for value in known}
            values = runner.run(observation.feeds | given)[1]
            met.append({v.name or "": array for v, array in values.items() if feedable(v)})
            self._shrink(met, len(met) / len(observations))
            values.update({v: given[v.name or ""] for v in wanted if v in known})
            values.update({v: observation.feeds[v.name or ""] for v in wanted if v.is_graph_input()})
            yield values
            del values
        self._known = [old | new for old, new in zip(self._known, met, strict=True)]
        self._shrink(self._known, 1.0)

    def _values(self, model: ir.Model) -> set[ir.Value]:
        """Return the values of the model's main graph that are remembered."""
        names = _common(self._known)
        return {value for node in model.graph for value in node.outputs if value.name in names and feedable(value)}

    def _shrink(self, sets: Sequence[dict[str, Array]], share: float) -> None:
        """Keep the smallest values that every set has, as many as a share of the limit holds."""
        sizes = {name: sum(arrays[name].nbytes for arrays in sets) for name in _common(sets)}
        left, kept = share * self._limit, set()
        for name in sorted(sizes, key=lambda name: (sizes[name], name)):
            left -= sizes[name]
            if left >= 0:
                kept.add(name)
        for arrays in sets:
            for name in arrays.keys() - kept:
                del arrays[name]


def _common(sets: Sequence[dict[str, Array]]) -> set[str]:
    return set.intersection(*(set(arrays) for arrays in sets)) if sets else set()
