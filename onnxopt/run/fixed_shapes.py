"""Run a model at a few fixed shapes only, on buffers that stay where they are: what a CUDA graph needs.

A CUDA graph replays the kernels of one run without the CPU's help, which is most of the time of a small batch. It holds
for one shape and for the addresses of its buffers. So there is a set of buffers for each bucket; a request is padded up
to the smallest bucket that holds it, copied in, and its part is cut out of the answer. Without CUDA graphs the same
works on any device and saves allocations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.run.padding import Filler
from onnxopt.run.providers import smallest_bucket
from onnxopt.run.session import Session
from onnxopt.spec import Array, Feeds, TensorSpec

if TYPE_CHECKING:
    import onnxruntime


@dataclass
class _Bound:
    """The buffers of one bucket."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, onnxruntime.OrtValue]


class FixedShapes:
    """A session behind buffers of fixed shapes.

    Args:
        session: opened with `cuda_graph=True` for CUDA graphs.
        shapes: size of every open axis, one mapping per bucket.
        pad: id at padded positions.

    Raises:
        InputError: when an axis of the model has no size in a bucket, or padding would change the answer.
    """

    def __init__(self, session: Session, shapes: Sequence[Mapping[str, int]], *, pad: int = 0) -> None:
        self.session = session
        self.filler = Filler(session.inputs, session.outputs, pad=pad)
        axes = {axis for spec in (*session.inputs, *session.outputs) for axis in spec.axes if isinstance(axis, str)}
        for shape in shapes:
            missing = sorted(axes - set(shape))
            if missing:
                raise InputError(
                    f"the axis {missing[0]!r} has no size in the bucket {dict(shape)}", where=str(session.path)
                )
        if not shapes:
            raise InputError("there is no bucket", where=str(session.path), hint="give at least one shape")
        self.shapes = tuple({axis: shape[axis] for axis in sorted(axes)} for shape in shapes)
        self._bound: dict[int, _Bound] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model once, at the smallest bucket that holds the request.

        Args:
            feeds: one array per input, by name.
            outputs: names of the wanted outputs; all without it.

        Raises:
            InputError: when no bucket holds the request, or it does not fit the model.
        """
        self.session.check(feeds)
        sizes = self.filler.sizes(feeds)
        index = smallest_bucket(sizes, self.shapes)
        if index is None:
            raise InputError(
                f"no bucket holds {', '.join(f'{axis} {size}' for axis, size in sizes.items())}",
                where=str(self.session.path),
                hint="add a larger one",
            )
        bound = self._bound.get(index) or self._bind(index)
        for name, array in self.filler.fill(feeds, self.shapes[index]).items():
            bound.inputs[name].update_inplace(array)
        graph = index + 1 if self.session.cuda_graph else None
        self.session.run_bound(bound.binding, graph=graph)
        names = list(bound.outputs) if outputs is None else outputs
        values = {name: bound.outputs[name].numpy() for name in names}
        return {name: np.array(array) for name, array in self.filler.cut(values, sizes).items()}

    def _bind(self, index: int) -> _Bound:
        import onnxruntime

        session, shape = self.session, self.shapes[index]

        def buffers(specs: Sequence[TensorSpec]) -> dict[str, onnxruntime.OrtValue]:
            zeros = {spec.name: np.zeros(spec.shape(shape), spec.dtype) for spec in specs}
            return {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(array, session.device, 0)
                for name, array in zeros.items()
            }

        bound = _Bound(session.binding(), buffers(session.inputs), buffers(session.outputs))
        for name, value in bound.inputs.items():
            bound.binding.bind_ortvalue_input(name, value)
        for name, value in bound.outputs.items():
            bound.binding.bind_ortvalue_output(name, value)
        self._bound[index] = bound
        return bound
