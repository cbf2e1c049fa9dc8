"""Write a torch model as an ONNX graph, by torch's dynamo exporter or by TorchScript."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import ExportError
from onnxopt.graph import dims
from onnxopt.graph.cache import TOTAL, complete
from onnxopt.host.quiet import quiet
from onnxopt.host.scratch import scratch_folder
from onnxopt.load.export.references import refer, stand_ins, write_graph
from onnxopt.load.export.torch_model import TorchModel
from onnxopt.load.export.untraced import capture, types_as_captured
from onnxopt.spec import Signature, TensorSpec

logger = logging.getLogger(__name__)

Road = Literal["dynamo", "torchscript"]
ROADS: tuple[Road, ...] = ("dynamo", "torchscript")  # in the order of preference
DYNAMO_OPSET = 23  # at exactly 23 torch writes Attention, RMSNormalization, RotaryEmbedding, Gelu as one operator each
TORCHSCRIPT_OPSET = 17  # has LayerNormalization; the last one that most runtimes of its time read
FEW_IMAGES = 2  # less than any size that is traced
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
_SHOWN = 300  # characters of a message of torch
_KEPT_METADATA = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Traced:
    """An export that lies on disk.

    Attributes:
        exporter: which road was taken.
        opset: of ai.onnx.
        signature: inputs and outputs with their named axes.
        example: the sizes it was traced with.
    """

    exporter: Road
    opset: int
    signature: Signature
    example: Mapping[str, int]


def trace(model: TorchModel, exporter: Road, path: Path) -> Traced:
    """Export a model.

    Args:
        model: what to export.
        exporter: which road.
        path: where to write; weights that are many go into files beside it, or stay in those of the checkpoint.

    Returns:
        The signature and the sizes of the trace.

    Raises:
        ExportError: when torch cannot export the model.
    """
    import torch

    example = example_sizes(model)
    signature = _signature(model, example)
    feeds = _feeds(model, example)
    tensors = tuple(torch.from_numpy(feeds[spec.name]) for spec in signature.inputs)
    script = exporter == "torchscript"  # which reads the weights
    try:
        with quiet(), torch.no_grad(), stand_ins(model.flat, model.weights, real=script) as places:
            graph = _script(model, signature, tensors) if script else _dynamo(model, signature, tensors)
            refer(graph, places)
    except Exception as error:
        raise ExportError(f"torch cannot export the model: {_reason(error, signature)}") from error
    _clean(graph, signature)
    write_graph(graph, path, model.folder)
    opset = int(graph.opset_imports[""])
    return Traced(exporter, opset, signature, example)


def example_sizes(model: TorchModel) -> dict[str, int]:
    """Return a prime for each dynamic axis, one that no size of the model's config equals.

    A frozen axis then shows as that prime, and no other dimension can be taken for it.
    """
    said = model.config.to_dict()
    parts = [said, *(part for part in said.values() if isinstance(part, dict))]
    taken = {value for part in parts for value in part.values() if isinstance(value, int)}
    free = [prime for prime in _PRIMES if prime not in taken] or list(_PRIMES)
    axes = Signature(model.inputs, ()).axes
    sizes = dict(zip(axes, free, strict=False))
    if "height" in sizes:  # an image has a least size, and height and width must differ to be told apart
        sizes |= {"height": model.image_size[0], "width": model.image_size[1] + 32}
    return complete(sizes | dict(model.usual))


def _signature(model: TorchModel, example: Mapping[str, int]) -> Signature:
    """Return inputs and outputs; which output dimension follows which axis shows when sizes change."""
    # the second sizes stay whole patches of an image
    other = complete({axis: size + (64 if axis in ("height", "width") else 1) for axis, size in example.items()})
    # a few samples more of a sound may give no frame more
    other |= {axis: 3 * size for axis, size in example.items() if axis in model.usual}
    if model.image_size:  # few images tell the same as one more would
        other |= {"batch": FEW_IMAGES}
    first, second = (model.shapes(_feeds(model, sizes)) for sizes in (example, other))
    outputs = []
    for (name, left, dtype), (_, right, _) in zip(first, second, strict=True):
        axes = tuple(
            _axis(f"{name}_dim_{index}", sizes, example, other)
            for index, sizes in enumerate(zip(left, right, strict=True))
        )
        outputs.append(TensorSpec(name, dtype, axes))
    return Signature(model.inputs, tuple(outputs))


def _axis(unknown: str, sizes: tuple[int, int], example: Mapping[str, int], other: Mapping[str, int]) -> int | str:
    if sizes[0] == sizes[1]:
        return sizes[0]
    return next((axis for axis in example if sizes == (example[axis], other[axis])), unknown)


def _feeds(model: TorchModel, sizes: Mapping[str, int]) -> dict[str, Any]:
    extras = {one.spec.name: one for one in model.extras}
    rng = np.random.default_rng(0)
    return {
        spec.name: extras[spec.name].draw(spec.shape(sizes), rng) if spec.name in extras else _example(spec, sizes)
        for spec in model.inputs
    }


def _example(spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
    """Return an array to trace with; a mask has both values, so that no branch is taken for all ones."""
    shape = spec.shape(sizes)
    if spec.name.endswith("attention_mask"):
        mask = np.ones(shape, dtype=spec.dtype)
        mask[1:, slice(0, 1) if spec.axes[1] == TOTAL else slice(-1, None)] = 0
        return mask
    rng = np.random.default_rng(0)
    if spec.dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, 2, size=shape).astype(spec.dtype)


def _dynamo(model: TorchModel, signature: Signature, tensors: tuple[Any, ...]) -> ir.Model:
    import torch

    options: dict[str, Any] = {
        "dynamo": True,
        "opset_version": DYNAMO_OPSET,
        "optimize": False,  # the passes do that, and prove it
        "verbose": False,
        "input_names": [spec.name for spec in signature.inputs],
        "output_names": [spec.name for spec in signature.outputs],
    }
    captured = capture(model.flat, signature, tensors)
    if captured is not None:
        try:
            with types_as_captured():
                program = torch.onnx.export(captured, **options)
        except Exception as error:  # noqa: BLE001  the long way may know better, and says what is wrong
            logger.info("the short way through the exporter failed: %s", error)
        else:
            if program is not None:
                return program.model
    shapes = tuple(
        {index: axis for index, axis in enumerate(spec.axes) if isinstance(axis, str)} for spec in signature.inputs
    )
    program = torch.onnx.export(model.flat, tensors, dynamic_shapes=(shapes,), **options)  # one entry for *tensors
    if program is None:
        raise ExportError("the exporter gave nothing")
    return program.model


def _script(model: TorchModel, signature: Signature, tensors: tuple[Any, ...]) -> ir.Model:
    import torch

    axes = {
        spec.name: {index: axis for index, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in (*signature.inputs, *signature.outputs)
    }
    with scratch_folder() as room:
        file = room / "model.onnx"
        torch.onnx.export(
            model.flat,
            tensors,
            str(file),
            dynamo=False,
            opset_version=TORCHSCRIPT_OPSET,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_axes=axes,
        )
        graph = ir.load(file)
        ir.external_data.load_to_model(graph)
        return graph


def _clean(graph: ir.Model, signature: Signature) -> None:
    """Give the axes the names of the contract, and take out what tells about this machine (source paths)."""
    given = {value.name: value for value in (*graph.graph.inputs, *graph.graph.outputs)}
    renamed: dict[str, str] = {}
    for spec in (*signature.inputs, *signature.outputs):
        value = given.get(spec.name)
        if value is None:
            raise ExportError(f"the exported graph has no {spec.name}")
        both = zip(dims(value) or (), spec.axes, strict=False)
        renamed |= {dim: axis for dim, axis in both if isinstance(dim, str) and isinstance(axis, str)}
        value.shape = ir.Shape(list(spec.axes))
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.doc_string = None
        for key in [key for key in node.metadata_props if key != _KEPT_METADATA]:
            del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
            if (known := dims(value)) is not None:
                value.shape = ir.Shape([renamed.get(dim, dim) if isinstance(dim, str) else dim for dim in known])
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()


def _reason(error: BaseException, signature: Signature) -> str:
    """Return the root cause in one line; a size that the model fixes is named by its axis."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(root)).split()) or type(root).__name__
    frozen: list[str] = []
    if any(word in text for word in ("Constraints violated", "static shape", "specialized")):
        frozen += [axis for axis in signature.axes if re.search(rf"\b{re.escape(axis)}\b", text)]
        places = re.findall(r"\[(\d+)\]\.(?:shape|size\(\))\[(\d+)\]", text)  # torch counts inputs and dimensions
        axes = (signature.inputs[int(one)].axes[int(dim)] for one, dim in places if int(one) < len(signature.inputs))
        frozen += [axis for axis in axes if isinstance(axis, str)]
    if frozen:
        return f"axis {' and '.join(repr(axis) for axis in dict.fromkeys(frozen))} is frozen: {text[:_SHOWN]}"
    return text[:_SHOWN]
