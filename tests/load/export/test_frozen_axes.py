"""An axis that an exporter froze is named, with the node that froze it; what differs everywhere is blamed on none.

Covers: load/export/axes.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import ExportError
from onnxopt.load.export.axes import prove_axes
from onnxopt.load.export.torch_model import TorchModel, TorchReference
from onnxopt.load.export.trace import trace
from onnxopt.load.feeds import TextFeeder, Tokens
from onnxopt.spec import Feeds, Signature, TensorSpec

AXES = ("batch", "sequence")


def baking_model(axis: str) -> TorchModel:
    """Return a model whose trace bakes one axis into a Reshape."""
    import torch
    from transformers import PretrainedConfig

    class Baking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(40, 6)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hidden = self.table(tensors[0])
            if axis == "sequence":
                return (hidden.reshape(-1, int(hidden.shape[1]), 2, 3).sum(-1),)
            return (hidden.reshape(int(hidden.shape[0]), -1, 2, 3).sum(-1),)

    inputs = (TensorSpec("input_ids", "int64", AXES),)
    return TorchModel(Baking().eval(), "baking", inputs, ("out",), 0, (), PretrainedConfig())


@pytest.mark.parametrize("axis", AXES)
def test_frozen_axis_is_named_with_its_node(axis: str, tmp_path: Path) -> None:
    model = baking_model(axis)
    traced = trace(model, "torchscript", tmp_path / "model.onnx")
    graph = ir.load(tmp_path / "model.onnx")
    frozen = traced.example[axis]
    reshape = next(node for node in graph.graph if node.op_type == "Reshape")
    shape = [frozen if axis == name else -1 for name in AXES] + [2, 3]
    constant = ir.Value(name="frozen", const_value=ir.tensor(np.array(shape, np.int64), name="frozen"))
    graph.graph.register_initializer(constant)
    reshape.replace_input_with(1, constant)
    ir.save(graph, tmp_path / "model.onnx")
    feeder = TextFeeder(model.inputs, Tokens(vocabulary=40))
    with pytest.raises(ExportError, match=f"axis '{axis}' is frozen at Reshape node '.*{reshape.name}'"):
        prove_axes(
            tmp_path / "model.onnx",
            traced.signature,
            TorchReference("torch", lambda: model),
            feeder,
            example=traced.example,
        )


FROZEN_QUIETLY = """
<ir_version: 10, opset_import: ["" : 20]>
frozen (int64[batch, sequence] input_ids) => (float[batch, sequence] out)
<int64[1] start = {0}, int64[1] end = {5}, int64[1] axis = {1}>
{
    x = Cast<to = 1>(input_ids)
    cut = Slice(x, start, end, axis)
    out = Neg(cut)
}
"""


def test_axis_that_is_cut_without_an_error_is_named_with_its_node(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(FROZEN_QUIETLY)
    graph.graph.node[1].name = "cutter"
    onnx.save(graph, tmp_path / "model.onnx")

    class Negation:
        name = "numpy"

        def run(self, feeds: Any) -> Feeds:
            return {"out": -feeds["input_ids"].astype(np.float32)}

    inputs = (TensorSpec("input_ids", "int64", AXES),)
    signature = Signature(inputs, (TensorSpec("out", "float32", AXES),))
    feeder = TextFeeder(inputs, Tokens(vocabulary=40))
    with pytest.raises(ExportError, match=r"axis 'sequence' is frozen at Slice node 'cutter'.*shape \[3, 5\], torch"):
        prove_axes(tmp_path / "model.onnx", signature, Negation(), feeder, example={"batch": 3, "sequence": 5})


def test_dynamo_names_the_axis_that_the_model_fixes(tmp_path: Path) -> None:
    import torch

    class Counting(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (sum((tensors[0][:, place] for place in range(tensors[0].shape[1])), tensors[0][:, 0]) * 0.5,)

    model = replace(baking_model("sequence"), flat=Counting())
    with pytest.raises(ExportError, match="torch cannot export the model: axis 'sequence' is frozen") as caught:
        trace(model, "dynamo", tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_file_that_differs_everywhere_is_not_blamed_on_an_axis(tmp_path: Path) -> None:
    model = baking_model("batch")
    traced = trace(model, "torchscript", tmp_path / "model.onnx")
    other = baking_model("batch")
    feeder = TextFeeder(model.inputs, Tokens(vocabulary=40))
    with pytest.raises(ExportError, match="wrong even at the sizes it was traced with: output out differs from torch"):
        prove_axes(
            tmp_path / "model.onnx",
            traced.signature,
            TorchReference("torch", lambda: other),
            feeder,
            example=traced.example,
        )
