"""Weights that lie in files: large ones are read when they are asked for, and what passes make of them is laid down.

A checkpoint's own file holds a weight in the type in which it was saved; the graph computes in float32. `Widened` is
such a weight: float32 to whoever asks, 16 bits where it lies. While `weights_in_file` lasts, a large array that becomes
a constant goes into a scratch file, in 16 bits where those hold every number of it, and its pages are the system's to
drop: what passes hold at a time is one weight, not the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.graph.nodes import initializer_bytes, is_op
from onnxopt.host.disk import needing
from onnxopt.spec import Array

LARGE_BYTES = 256 << 20  # as float32; a model with more is worked on in memory that one layer bounds
MAPPED = {"session.disable_prepacking": "1"}  # entries of a session whose weights stay where they are mapped
LEAST_BYTES = 1 << 20  # smaller constants stay in memory: there are few of them, and they are asked for often
_AT_ONCE = 1 << 22  # elements that are converted at a time
_FIRST = 1 << 12  # elements that are looked at first: most weights of float32 show by then that they need all bits
_BLOCK = 128  # rows and columns that are turned at a time: two such blocks of 4 bytes fit a core's cache
_ALIGNED = 64  # bytes; what the runtime maps should begin at a line of the cache
_NARROW = {ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16), ir.DataType.FLOAT16: np.dtype(np.float16)}


class Widened(ir.LazyTensor):
    """A float32 weight that lies in 16 bits; every read converts it anew, and nothing of it is kept.

    Args:
        stored: bfloat16 or float16, of any shape; most often an `ir.ExternalTensor`.
        name: of the weight.

    Attributes:
        stored: as it was given.
    """

    def __init__(self, stored: ir.TensorProtocol, name: str) -> None:
        if stored.dtype not in _NARROW:
            raise TypeError(f"{stored.dtype} is no type of 16 bits that is widened")
        shape = ir.Shape([int(size) for size in stored.shape])  # type: ignore[arg-type]  # a tensor has no symbols
        super().__init__(self._whole, ir.DataType.FLOAT, shape, name=name)
        self.stored = stored

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self.stored.numpy().astype(np.float32), name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """Write the elements as float32, row-major, little-endian, some of them at a time."""
        flat = self.stored.numpy().reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            file.write(flat[start : start + _AT_ONCE].astype("<f4").tobytes())


class Turned(ir.LazyTensor):
    """A large weight with its axes in another order, laid down so when it is written; nothing of it is kept.

    Args:
        stored: of two axes or more, in the order in which it lies.
        order: the axes of `stored` in the new order, as Transpose takes them.
        name: of the weight.
    """

    def __init__(self, stored: ir.TensorProtocol, order: tuple[int, ...], name: str) -> None:
        sizes = [int(size) for size in stored.shape]  # type: ignore[arg-type]  # a tensor has no symbols
        super().__init__(self._whole, stored.dtype, ir.Shape([sizes[axis] for axis in order]), name=name)
        self._stored, self._order = stored, order

    def _whole(self) -> ir.TensorProtocol:
        return ir.tensor(self._stored.numpy().transpose(self._order), name=self.name)

    @property
    def as_it_lies(self) -> Turned:
        """The same in the type in which the weight lies: 16 bits where it is widened from those."""
        return Turned(as_stored(self._stored), self._order, self.name or "")

    def pieces(self) -> Iterator[Array]:
        """Yield the elements, row-major, some of the first axis at a time, in the type in which the weight lies."""
        whole = as_stored(self._stored).numpy().transpose(self._order)
        rows = max(1, _AT_ONCE * len(whole) // max(1, whole.size))
        for start in range(0, len(whole), rows):
            yield row_major(whole[start : start + rows])

    def tofile(self, file: IO[bytes]) -> None:
        """Write the elements row-major, little-endian, some of the first axis at a time."""
        dtype = self.dtype.numpy().newbyteorder("<")
        for piece in self.pieces():
            file.write(piece.astype(dtype, copy=False).reshape(-1).view(np.uint8).data)


def row_major(array: Array) -> Array:
    """Return an array in row-major order: itself where it is, else a copy.

    Matrices that lie turned are copied in blocks. NumPy goes along the rows of the copy, so that each element is read
    from another line of the cache: four to ten times as long, for a weight of some megabytes.

    Args:
        array: of any shape and strides, and of a type of 1, 2, 4 or 8 bytes where it is not in that order.
    """
    if array.flags.c_contiguous:
        return array
    made: Array = np.empty(array.shape, array.dtype)
    bits = np.dtype(f"u{array.dtype.itemsize}")  # NumPy moves those faster than what it does not know, such as bfloat16
    _copy(made.view(bits), array.view(bits))
    return made


def _copy(made: Array, array: Array) -> None:
    """Copy an array into one of its shape, matrix by matrix where those are large and lie turned."""
    if array.ndim < 2 or abs(array.strides[-2]) >= abs(array.strides[-1]) or min(array.shape[-2:]) < _BLOCK:
        made[...] = array
        return
    if array.ndim > 2:
        for into, part in zip(made, array, strict=True):
            _copy(into, part)
        return
    rows, columns = array.shape
    for column in range(0, columns, _BLOCK):
        for row in range(0, rows, _BLOCK):
            block = np.s_[row : row + _BLOCK, column : column + _BLOCK]
            made[block] = array[block]


def turn_in_files(
    model: ir.Model, *, wanted: Callable[[ir.Node], bool] | None = None, laid: WeightFile | None = None
) -> None:
    """Put the turned weight in the place of each Transpose of a weight that lies in a file; changes the model.

    Args:
        model: its main graph and those that nodes carry.
        wanted: tells of such a Transpose whether its weight is to be turned; None turns all of them.
        laid: where the turned weights are laid down at once, in the type in which they lie; None turns them each time
            that they are read.

    Raises:
        InputError: the disk is full.
    """
    for graph in model.graphs():
        for node in [one for one in graph if is_op(one, "Transpose")]:
            value, result = node.inputs[0], node.outputs[0]
            if value is None or not _reads_file(node) or result.is_graph_output():
                continue
            stored = ir.convenience.get_const_tensor(value)
            if stored is None or (wanted is not None and not wanted(node)):
                continue
            given = node.attributes.get("perm")
            order = given.as_ints() if given is not None else range(len(stored.shape) - 1, -1, -1)
            turned = Turned(stored, tuple(order), result.name or "")
            tensor = turned if laid is None else laid.add_turned(turned)
            made = ir.Value(name=result.name, shape=turned.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            result.name = None  # the weight bears it now
            result.replace_all_uses_with(made)
            graph.remove(node, safe=True)
            graph.register_initializer(made)


def _reads_file(node: ir.Node) -> bool:
    """Tell whether a node reads a weight that lies in a file and is not small."""
    stored = [in_file(value.const_value) for value in node.inputs if value is not None]
    return any(one is not None and one.nbytes >= LEAST_BYTES for one in stored)


def stays_mapped(model: ir.Model) -> bool:
    """Tell whether a session of a model leaves its weights where they are mapped: many, and the large ones float32.

    Prepacking would keep a copy of each in a kernel's own order. Kernels of fewer bits compute otherwise without it.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    large = (one for one in tensors if one is not None and one.nbytes >= LEAST_BYTES)
    return is_large(model) and all(one.dtype == ir.DataType.FLOAT for one in large)


def is_large(model: ir.Model) -> bool:
    """Tell whether the weights of a model are so many that they stay in files while it is worked on."""
    return initializer_bytes(model) > LARGE_BYTES


def as_stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor in the type in which it lies: the 16 bits that it is widened from, or itself."""
    return tensor.stored if isinstance(tensor, Widened) else tensor


def in_file(tensor: ir.TensorProtocol | None) -> ir.ExternalTensor | None:
    """Return what of a tensor lies in a file, itself or the 16 bits that it is widened from; None for one in memory."""
    found = None if tensor is None else as_stored(tensor)
    return found if isinstance(found, ir.ExternalTensor) else None


def elements(tensor: ir.TensorProtocol, start: int = 0, stop: int | None = None) -> Array:
    """Return some elements of a tensor, row-major [stop - start]; of what is widened, no more than those are converted.

    Args:
        tensor: of numbers.
        start: the first, counted from the front.
        stop: the one behind the last; None for all that are left.
    """
    part: Array = np.ascontiguousarray(as_stored(tensor).numpy().reshape(-1)[start:stop])
    return part.astype(np.float32) if isinstance(tensor, Widened) else part


class WeightFile:
    """A scratch file to which large constants are appended.

    Args:
        path: where; made with the first of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0

    def add(self, array: Array, name: str, held_by: ir.DataType | None = None) -> ir.TensorProtocol:
        """Append an array and return it as a tensor that is read from there.

        Args:
            array: of any type that NumPy stores as it is.
            name: of the tensor.
            held_by: 16 bits that are known to hold every number of a float32 array; None looks.

        Raises:
            InputError: the disk is full.
        """
        dtype = ir.DataType.from_numpy(array.dtype)
        narrow = (held_by or narrowest(array)) if dtype == ir.DataType.FLOAT else None
        stored = array if narrow is None else array.astype(_NARROW[narrow])
        made = self._append([row_major(stored)], stored.nbytes, narrow or dtype, array.shape, name)
        return made if narrow is None else Widened(made, name)

    def add_turned(self, turned: Turned) -> ir.TensorProtocol:
        """Append a turned weight in the type in which it lies, and return it as a tensor that is read from there.

        Raises:
            InputError: the disk is full.
        """
        kind, name = turned.as_it_lies, turned.name or ""
        sizes = [int(size) for size in turned.shape]  # type: ignore[arg-type]  # a tensor has no symbols
        made = self._append(turned.pieces(), kind.nbytes, kind.dtype, sizes, name)
        return made if kind.dtype == turned.dtype else Widened(made, name)

    def _append(
        self, pieces: Iterable[Array], nbytes: int, dtype: ir.DataType, sizes: Sequence[int], name: str
    ) -> ir.ExternalTensor:
        """Append what is one array of some bytes, piece by piece in row-major order."""
        start = -(-self._end // _ALIGNED) * _ALIGNED
        with needing(nbytes), self.path.open("ab") as file:
            file.truncate(start)
            for piece in pieces:
                piece.reshape(-1).view(np.uint8).tofile(file)
        self._end = start + nbytes
        return ir.ExternalTensor(str(self.path), start, nbytes, dtype, shape=ir.Shape(sizes), name=name)


def narrowest(array: Array) -> ir.DataType | None:
    """Return the 16 bits that hold every number of a float32 array, None where neither kind does."""
    flat = array.reshape(-1)
    left = dict(_NARROW)
    first = min(_FIRST, _AT_ONCE)
    for start in (0, *range(first, flat.size, _AT_ONCE)):
        piece = flat[start : start + _AT_ONCE] if start else flat[:first]
        with np.errstate(over="ignore", invalid="ignore"):
            left = {
                one: kind
                for one, kind in left.items()
                if np.array_equal(piece.astype(kind).astype(np.float32).view(np.uint32), piece.view(np.uint32))
            }
        if not left:
            return None
    return next(iter(left), None)


_file: ContextVar[WeightFile | None] = ContextVar("weight_file", default=None)


@contextlib.contextmanager
def weights_in_file(file: WeightFile | None) -> Iterator[None]:
    """While it lasts, let large constants that are made of arrays lie in a file; None leaves them in memory."""
    token = _file.set(file)
    try:
        yield
    finally:
        _file.reset(token)


def weight_file() -> WeightFile | None:
    """Return the file in which large constants lie now; None where they are in memory."""
    return _file.get()


def tensor_of(array: Array, name: str, held_by: ir.DataType | None = None) -> ir.TensorProtocol:
    """Return an array as a constant's tensor: in memory, or laid down where it is large and that is wanted.

    Args:
        array: kept in row-major order.
        name: of the tensor.
        held_by: 16 bits that are known to hold every number of a float32 array, as of one that is moved; None looks.
    """
    file, array = weight_file(), np.asarray(array)
    if file is None or array.nbytes < LEAST_BYTES or not _is_laid_down(array.dtype):
        return ir.tensor(np.asarray(array, order="C"), name=name)
    return file.add(row_major(array), name, held_by)


def _is_laid_down(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fiu" or dtype in _NARROW.values()


def stored_bytes(tensor: ir.TensorProtocol) -> int:
    """Return the bytes of a tensor where it lies: half of its own where it is widened."""
    return as_stored(tensor).nbytes
