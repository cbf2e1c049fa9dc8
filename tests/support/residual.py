"""Graphs with a residual stream, as decoders have one: a table, blocks of two products, and a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Residual:
    """Sizes and spelling of a graph.

    Attributes:
        width: of the residual stream.
        inner: of the blocks.
        blocks: how many.
        words: rows of the table and outputs of the head.
        tied: the head reads the table.
        turned: weights are stored [out, in] behind a Transpose.
        seed: of the weights.
    """

    width: int = 48
    inner: int = 80
    blocks: int = 3
    words: int = 120
    tied: bool = True
    turned: bool = False
    seed: int = 0

    def model(self) -> ir.Model:
        """Return the graph, `input_ids` [batch, sequence] to `logits`; all blocks read a mask that no weight makes."""
        random = np.random.default_rng(self.seed)
        nodes, weights = [], []

        def weight(name: str, rows: int, columns: int) -> str:
            array = random.standard_normal((columns, rows) if self.turned else (rows, columns)).astype(np.float32)
            weights.append(numpy_helper.from_array(array / np.float32(rows**0.5), name))
            if not self.turned:
                return name
            nodes.append(helper.make_node("Transpose", [name], [f"{name}::turned"], perm=[1, 0]))
            return f"{name}::turned"

        table = (random.standard_normal((self.words, self.width)) * 0.3).astype(np.float32)
        weights.append(numpy_helper.from_array(table, "table.weight"))
        nodes.append(helper.make_node("Gather", ["table.weight", "input_ids"], ["x0"]))
        nodes.append(helper.make_node("Cast", ["input_ids"], ["kinds"], to=TensorProto.FLOAT))
        weights.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
        nodes.append(helper.make_node("Unsqueeze", ["kinds", "last"], ["column"]))
        nodes.append(helper.make_node("Sigmoid", ["column"], ["mask"]))  # made without a weight, read by every block
        for number in range(self.blocks):
            up = weight(f"layers.{number}.up.weight", self.width, self.inner)
            down = weight(f"layers.{number}.down.weight", self.inner, self.width)
            weights.append(numpy_helper.from_array(np.full(self.inner, 0.1, np.float32), f"layers.{number}.up.bias"))
            x = f"x{number}"
            nodes += [
                helper.make_node("LpNormalization", [x], [f"{x}n"], axis=-1, p=2),
                helper.make_node("MatMul", [f"{x}n", up], [f"{x}u"]),
                helper.make_node("Add", [f"{x}u", f"layers.{number}.up.bias"], [f"{x}b"]),
                helper.make_node("Tanh", [f"{x}b"], [f"{x}a"]),
                helper.make_node("Mul", [f"{x}a", "mask"], [f"{x}m"]),
                helper.make_node("MatMul", [f"{x}m", down], [f"{x}d"]),
                helper.make_node("Add", [x, f"{x}d"], [f"x{number + 1}"]),
            ]
        last = f"x{self.blocks}"
        if self.tied:
            nodes.append(helper.make_node("Transpose", ["table.weight"], ["head"], perm=[1, 0]))
        nodes.append(
            helper.make_node(
                "MatMul", [last, "head" if self.tied else weight("head.weight", self.width, self.words)], ["logits"]
            )
        )
        graph = helper.make_graph(
            nodes,
            "residual",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", self.words])],
            weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))
