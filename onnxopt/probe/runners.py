"""Run graphs, or parts of them, in ONNX Runtime with its own optimizations off.

Weights are handed over as inputs that share NumPy's memory, so a probe costs neither a copy nor a serialization of
them; a weight that lies in a file is read through its mapping, and one that is widened is so when its reader runs. What
is not asked for is not computed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import (
    Detached,
    Region,
    detach,
)
from onnxopt.graph.exchange import type_of
from onnxopt.probe.cut import LARGEST_KEPT_BYTES, Cut, shape_name
from onnxopt.probe.memory import paging
from onnxopt.probe.narrow import hand_over
from onnxopt.probe.program import Program, compute_in_float
from onnxopt.spec import Array, Feeds, tensors_of

logger = logging.getLogger(__name__)

SESSIONS_KEPT = 64  # of small regions: the layers of a model ask the same question, each in its turn


class RegionRunner:
    """Regions cut out side by side, ready to run on given activations."""

    def __init__(self, regions: Sequence[Region], model: ir.Model) -> None:
        self._detached: Detached = detach(
            regions, model.opset_imports, list(model.functions.values()), model.ir_version
        )
        self._outputs = [value.name or "" for value in self._detached.model.graph.outputs]
        proto = ir.to_proto(self._detached.model)
        self._weights = hand_over(proto, self._detached.weights)
        self._program = _region_program(proto, self._weights.as_stored)

    def run(self, values: Mapping[ir.Value, Array]) -> list[Array]:
        """Return the outputs of all regions in order, for an array per input value."""
        feeds = {f"in_{i}": np.asarray(values[value], order="C") for i, value in enumerate(self._detached.inputs)}
        with paging(list(self._detached.weights.values())):
            return self._program.run(self._outputs, {**feeds, **self._weights.feeds})


_programs: OrderedDict[bytes, Program] = OrderedDict()


def _region_program(proto: Any, as_stored: Collection[str]) -> Program:
    """Open a region, or return the open session of an equal one: what is alike has the same bytes."""
    key = proto.SerializeToString(deterministic=True)
    if len(key) > LARGEST_KEPT_BYTES:
        return Program(proto, as_stored=as_stored)
    if key not in _programs:
        _programs[key] = Program(proto, as_stored=as_stored)
        if len(_programs) > SESSIONS_KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


class GraphRunner:
    """A whole model that also hands out chosen intermediate values.

    Args:
        model: not changed; its values must have unique names.
        fetch: values of the main graph.
        with_outputs: False leaves the outputs of the graph out, with all that only they need.
        known: values of the main graph that are fed by name, as inputs are; `feedable`. They are not fetched, and what
            only they need does not run.
        widen: compute what is stored in 16 bits in float32 and round each result, as kernels of a GPU do: the CPU has
            none for bfloat16, and the runtime keeps fp16 in float32 from one node to the next.
        turned: let products read a transposed weight as it lies, instead of writing it anew in every run. They add up
            in another order, so results that must be equal to the bit do without.
        swapped: names of large weights that every run is fed, in the type in which the graph computes; they are not
            read from where they lie.
    """

    def __init__(
        self,
        model: ir.Model,
        fetch: Iterable[ir.Value] = (),
        *,
        with_outputs: bool = True,
        known: Collection[ir.Value] = (),
        widen: bool = False,
        turned: bool = False,
        swapped: Collection[str] = (),
    ) -> None:
        self._fetch = [v for v in dict.fromkeys(fetch) if v.producer() is not None and v not in known]
        outputs = list(model.graph.outputs) if with_outputs else []
        self._outputs = [value.name or "" for value in outputs]
        self._names = list(dict.fromkeys([*self._outputs, *(value.name or "" for value in self._fetch)]))
        if not self._names:
            return
        cut = Cut(model, [*outputs, *self._fetch], known=known, turned=turned)
        cut.hand_out([*outputs, *self._fetch])
        if widen:
            compute_in_float(cut.proto)
        weights = {name: tensor for name, tensor in cut.weights.items() if name not in swapped}
        self._weights, self._tensors = hand_over(cut.proto, weights), list(weights.values())
        self._program = Program(cut.proto, as_stored=self._weights.as_stored)

    def run(self, feeds: Mapping[str, Array]) -> tuple[Feeds, dict[ir.Value, Array]]:
        """Return the graph's outputs by name, sequences as `tensors_of` writes them, and the fetched values."""
        if not self._names:
            return {}, {}
        with paging(self._tensors):
            found = self._program.run(self._names, {**self._weights.feeds, **feeds})
        results = dict(zip(self._names, found, strict=True))
        outputs = tensors_of({name: results[name] for name in self._outputs})
        return outputs, {v: results[v.name or ""] for v in self._fetch}


class ShapeRunner:
    """A whole model that hands out the shapes of values instead of their data, which it drops as it goes.

    Args:
        model: not changed; its values must have unique names.
        values: made by nodes of the main graph.
        known: values of the main graph that are fed by name, as inputs are; `feedable`.
        fetch: values whose data is handed out too.
        apart: run it in a worker, which it may kill: what nobody has run yet.

    Attributes:
        dtypes: the type of each value that is a tensor; a sequence, say, has no shape and is left out.
    """

    def __init__(
        self,
        model: ir.Model,
        values: Sequence[ir.Value],
        *,
        known: Collection[ir.Value] = (),
        fetch: Sequence[ir.Value] = (),
        apart: bool = False,
    ) -> None:
        self.dtypes = dtypes_of(model, values)
        self._measured, self._fetch = list(self.dtypes), fetch
        if not self._measured:
            return
        cut = Cut(model, [*self._measured, *fetch], measured=self.dtypes, known=known, turned=True)
        cut.hand_out(fetch)
        self._weights = hand_over(cut.proto, cut.weights, narrow=not apart)
        self._tensors = list(cut.weights.values())
        self._program = Program(cut.proto, apart=apart, as_stored=self._weights.as_stored)

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[ir.Value, tuple[int, ...]], dict[ir.Value, Array]]:
        """Return the shape of each value, and the fetched values."""
        if not self._measured:
            return {}, {}
        names = [*(value.name or "" for value in self._fetch), *map(shape_name, self._measured)]
        with paging(self._tensors):
            found = self._program.run(names, {**self._weights.feeds, **feeds})
        arrays, shapes = found[: len(self._fetch)], found[len(self._fetch) :]
        return (
            {value: tuple(shape.tolist()) for value, shape in zip(self._measured, shapes, strict=True)},
            dict(zip(self._fetch, arrays, strict=True)),
        )


def dtypes_of(model: ir.Model, values: Sequence[ir.Value]) -> dict[ir.Value, ir.DataType]:
    """Return the types of values: what the graph declares, which the runtime checks; else what the runtime infers."""
    types: dict[ir.Value, ir.DataType | None] = dict.fromkeys(values)
    unknown = [value for value in values if value.type is None]
    found: dict[str, str] = {}
    if unknown:
        cut = Cut(model, unknown)
        cut.hand_out(unknown)
        found = Program(cut.proto).types
    for value in values:
        is_tensor = isinstance(value.type, ir.TensorType)
        types[value] = value.dtype if is_tensor else type_of(found.get(value.name or "", ""))
    return {value: dtype for value, dtype in types.items() if dtype is not None}
