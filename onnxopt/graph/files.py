"""Write a graph into a new folder, while other graphs and sessions go on reading the file of its weights."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from onnxopt.graph.nodes import SMALL_CONSTANT_BYTES, all_nodes
from onnxopt.graph.values import tensor_shape
from onnxopt.graph.weight_files import LARGE_BYTES
from onnxopt.host.disk import needing
from onnxopt.spec import Signature

DATA_SUFFIX = "_data"  # where transformers.js looks for the weights of a large model
DATA_NAME = f"model.onnx{DATA_SUFFIX}"
SHARD = re.compile(rf"(.+)-\d{{5}}-of-\d{{5}}\.onnx{DATA_SUFFIX}")  # one of several files of weights
MAX_IR_VERSION = 11  # the newest that every ONNX Runtime we accept (1.23 on) reads
EXTERNAL_DATA_BYTES = LARGE_BYTES  # the runtime maps a file beside the graph, and copies what is in the graph, twice


def save_graph(model: ir.Model, folder: Path) -> Path:
    """Write a model and return its file.

    Args:
        model: afterwards it holds its weights, or those of a large one lie in the new folder.
        folder: made here.
    """
    folder.mkdir()
    return write_graph(model, folder / "model.onnx")[0]


def write_graph(model: ir.Model, path: Path, shard_bytes: int | None = None) -> list[Path]:
    """Write a model into a folder that is there, and return its files: the graph, and the weights of a large one.

    Args:
        model: what it computes stays; afterwards it holds its weights, or those of a large one lie where they lay.
        path: of the graph; weights of more than `EXTERNAL_DATA_BYTES` go into a file beside it.
        shard_bytes: weights of more than this go into files of no more each, `model-00001-of-00003.onnx_data`; one that
            is larger has a file of its own. None writes one file, `model.onnx_data`, as does what fits into one.
    """
    make_writable(model)
    size = _bytes_of_all(model)
    threshold = SMALL_CONSTANT_BYTES if shard_bytes and size > shard_bytes else _threshold(size)
    _take_in(model, threshold)
    data = path.with_name(f"{path.name}{DATA_SUFFIX}")
    with needing(size):
        # without `external_data`, a weight that lies in another folder would be looked for in this one
        ir.save(
            model,
            path,
            external_data=data.name,
            size_threshold_bytes=threshold,
            max_shard_size_bytes=shard_bytes if shard_bytes and size > shard_bytes else None,
        )
    if data.exists() and not data.stat().st_size:
        data.unlink()
    shards = (one for one in path.parent.iterdir() if (found := SHARD.fullmatch(one.name)) and found[1] == path.stem)
    return [one for one in (path, data, *sorted(shards)) if one.exists()]


def make_writable(model: ir.Model) -> None:
    """Bring a model into the form in which every runtime that we accept reads it."""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    _open_empty_axes(model)


def written_bytes(model: ir.Model) -> int:
    """Return how many bytes `write_graph` would write, without doing so.

    Args:
        model: made writable; not changed.
    """
    size = _bytes_of_all(model)
    threshold = _threshold(size)
    if threshold >= size:
        return int(ir.to_proto(model).ByteSize())
    stub, end = model.clone(), 0
    for graph in stub.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > threshold:
                shape = tensor_shape(tensor)
                name = tensor.name or ""
                value.const_value = ir.ExternalTensor(
                    DATA_NAME, end, tensor.nbytes, tensor.dtype, shape=shape, name=name
                )
                end += tensor.nbytes
    return end + int(ir.to_proto(stub).ByteSize())


def _threshold(size: int) -> int:
    """Return the bytes of the largest weight that stays in the graph, where all together are so many."""
    # shapes stay in the graph: the runtime reads those of a branch there alone
    return SMALL_CONSTANT_BYTES if size > EXTERNAL_DATA_BYTES else max(size, SMALL_CONSTANT_BYTES)


def _bytes_of_all(model: ir.Model) -> int:
    """Return the bytes of the weights of the main graph and of all inside it."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _take_in(model: ir.Model, most_bytes: int) -> None:
    """Let the model hold what it maps from a file and is stored in the next one itself.

    The library would close the mapping, which fails as long as a session or an array of another copy of the model reads
    from it.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= most_bytes:
                value.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)


def _open_empty_axes(model: ir.Model) -> None:
    """Let the runtime find out for itself which inner tensors are empty.

    Told that an axis is 0, ONNX Runtime 1.32 takes a target of Reshape that copies it, beside a size that it cannot
    follow, for a 0 beside a -1, and does not open the file.
    """
    for node in all_nodes(model):
        for value in node.outputs:
            shape = value.shape
            if shape is not None and 0 in shape.dims and not value.is_graph_output():
                value.shape = ir.Shape([None if size == 0 else size for size in shape.dims])


def leave_ranks_open(model: ir.Model, signature: Signature) -> ir.Model:
    """Declare no dimensions for the outputs whose number of dimensions differs from run to run; return the model."""
    for value, spec in zip(model.graph.outputs, signature.outputs, strict=True):
        if spec.form == "any rank":
            value.shape = None
    return model
