"""Let the graph of a large checkpoint name its weights where they lie, instead of holding them.

While a network is traced, a weight that is widened at each use stands aside for an empty one of its shape: tracing asks
for shapes, not for numbers. In the graph each large weight becomes a reference into the checkpoint's own file. The
cache keeps the graph alone: a reference is written relative to the checkpoint, and bound to its folder when it is read.
What was converted while it was loaded lies in no file of the checkpoint; it is kept beside the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.graph.weight_files import Widened, in_file
from onnxopt.host.disk import needing
from onnxopt.load.checkpoint.mapped import MappedWeights, stored_type
from onnxopt.load.checkpoint.stored import Place

EMBEDDED_LIMIT_BYTES = 2**26  # larger weights lie beside the graph: they are written as they are, and read as needed
OF_CHECKPOINT = "checkpoint/"  # how the location of a weight begins that lies in the checkpoint's own file
_CONVERTED = ".weights"  # how the name of a file of weights ends that lie in no file of the checkpoint
_NAMES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@contextlib.contextmanager
def stand_ins(flat: Any, weights: MappedWeights | None, *, real: bool) -> Iterator[Mapping[int, Place]]:
    """While it lasts, let plain tensors stand in a module for its weights that are widened at each use.

    Args:
        flat: torch module.
        weights: where its parameters lie; None where they are in memory.
        real: with their numbers, all at once; empty, which takes no memory until it is written, when False.

    Yields:
        Where each weight lies, by the address of the tensor that stands for it.
    """
    import torch

    if weights is None:
        yield {}
        return
    places: dict[int, Place] = {}
    made: dict[int, Any] = {}
    before: list[tuple[Any, str, Any]] = []
    for module in flat.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001  setting an attribute would register it
            if parameter is None:
                continue
            shown = parameter
            if isinstance(parameter, stored_type()):
                if id(parameter) not in made:
                    made[id(parameter)] = _stand_in(parameter, real=real)
                shown = made[id(parameter)]
                before.append((module, name, parameter))
                module._parameters[name] = shown  # noqa: SLF001  the same
            place = weights.place_of(getattr(parameter, "stored", parameter))
            if place is not None and shown.is_contiguous():
                places[shown.data_ptr()] = place
    try:
        with torch.no_grad():
            yield places
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter  # noqa: SLF001  as it was


def _stand_in(parameter: Any, *, real: bool) -> Any:
    import torch

    made = parameter.stored.to(torch.float32) if real else torch.empty_like(parameter.stored, dtype=torch.float32)
    return torch.nn.Parameter(made, requires_grad=parameter.requires_grad)


def refer(graph: ir.Model, places: Mapping[int, Place]) -> None:
    """Replace the large weights of an exported graph by references to where they lie.

    Args:
        graph: as torch's exporter gives it, with tensors of torch.
        places: by the address of each.
    """
    for value in graph.graph.initializers.values():
        raw: Any = getattr(value.const_value, "raw", None)
        if value.const_value is None or not hasattr(raw, "data_ptr"):
            continue
        place = places.get(raw.data_ptr())
        large = value.const_value.nbytes >= weight_files.LEAST_BYTES
        if place is None or not large or place.dtype not in _NAMES or tuple(raw.shape) != place.shape:
            continue
        value.const_value = _reference(str(place.path.resolve()), place, value.name or "")


def _reference(location: str, place: Place, name: str) -> ir.TensorProtocol:
    """Return a float32 tensor that is read from a place."""
    kind = _NAMES[place.dtype]
    found = ir.ExternalTensor(location, place.offset, place.nbytes, kind, shape=ir.Shape(place.shape), name=name)
    return found if kind == ir.DataType.FLOAT else Widened(found, name)


def write_graph(graph: ir.Model, path: Path, folder: Path | None = None) -> None:
    """Save a graph; weights beside it where they do not fit into one protobuf, those of a checkpoint not at all.

    Args:
        graph: its tensors are those of the file afterwards.
        path: where to; what is held in memory goes to `<path>.data`, what was converted to `<path>.weights`.
        folder: of the checkpoint whose files the graph refers to.
    """
    values = [value for value in graph.graph.initializers.values() if value.const_value is not None]
    referring = [value for value in values if in_file(value.const_value) is not None]
    held = [value for value in values if in_file(value.const_value) is None]
    size = sum(value.const_value.nbytes for value in held if value.const_value is not None)
    beside = f"{path.name}.data" if size > EMBEDDED_LIMIT_BYTES else None
    if not referring:
        with needing(size):
            ir.save(graph, path, external_data=beside)
        return
    files = {one.resolve(): one.name for one in folder.glob("*.safetensors")} if folder is not None else {}
    converted: list[ir.Value] = []
    for value in referring:
        found = in_file(value.const_value)
        value.const_value = found  # 16 bits stay 16 bits
        if found is not None and Path(found.path) in files:
            value.const_value = _moved(found, OF_CHECKPOINT + files[Path(found.path)])
        else:
            converted.append(value)
    _put_beside(converted, path, f"{path.name}{_CONVERTED}")
    if beside is not None:
        _put_beside(held, path, beside)
    ir.save(graph, path)


def _put_beside(values: Sequence[ir.Value], path: Path, name: str) -> None:
    """Write the tensors of some values into a file beside a graph, each in the type in which it lies."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    if not tensors:
        return
    with needing(sum(tensor.nbytes for tensor in tensors)):
        written = ir.external_data.convert_tensors_to_external(tensors, path.parent, name)
    for value, tensor in zip(values, written, strict=True):
        value.const_value = tensor


def _moved(found: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    """Return a tensor as one at the same place in another file."""
    shape = ir.Shape(found.shape)
    return ir.ExternalTensor(location, found.offset, found.length, found.dtype, shape=shape, name=found.name)


def read_graph(path: Path, folder: Path | None = None) -> ir.Model:
    """Read what `write_graph` wrote, and bind its references to the checkpoint.

    Args:
        path: the graph's file.
        folder: of the checkpoint.

    Raises:
        InputError: a file of the checkpoint is gone, or shorter than it was.
    """
    graph = ir.load(path)
    for value in graph.graph.initializers.values():
        found = value.const_value
        if not isinstance(found, ir.ExternalTensor):
            continue
        location = str(found.location)
        if folder is not None and location.startswith(OF_CHECKPOINT):
            found = _bound(found, folder / location.removeprefix(OF_CHECKPOINT))
        elif location != f"{path.name}{_CONVERTED}":
            continue  # as any graph has them
        value.const_value = found if found.dtype == ir.DataType.FLOAT else Widened(found, found.name)
        value.dtype = ir.DataType.FLOAT
    return graph


def _bound(found: ir.ExternalTensor, path: Path) -> ir.ExternalTensor:
    """Return a tensor as one that lies in a file of the checkpoint."""
    hint = "put the checkpoint's file back as it was"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"the weights cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    if size < (found.offset or 0) + (found.length or 0):
        raise InputError(f"ends before the weight {found.name}", where=str(path), hint=hint)
    return _moved(found, str(path.resolve()))
