"""Small files whose axes are called anything, for what is learned by running them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxopt.load.given import Given
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\n'


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    """Write a graph in ONNX text with its weights; `{a}` and the like in names of axes are the caller's matter."""
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return path


def load(folder: Path, text: str, given: Given | None = None, **weights: np.ndarray) -> Loaded:
    """Write a graph and load it as a user's file."""
    return load_onnx(write(folder / "m.onnx", text, **weights), given=given)


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """Return a model whose open axes have other names, which ONNX text cannot always spell."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    return model


def encoder_text(ids: str = "input_ids", mask: str = "attention_mask", batch: str = "b", positions: str = "s") -> str:
    """Return one attention over words, masked, pooled into one row: positions touch each other, rows do not."""
    return f"""
    g (int64[{batch},{positions}] {ids}, int64[{batch},{positions}] {mask})
      => (float[{batch},{positions},8] hidden, float[{batch},8] pooled) {{
      w_ = Gather(table, {ids}) turned = Transpose<perm = [0, 2, 1]>(w_) scores = MatMul(w_, turned)
      kept = Cast<to = 1>({mask}) one = Constant<value = float {{1}}>() gone = Sub(one, kept)
      lowest = Constant<value = float {{-10000}}>() low = Mul(gone, lowest)
      middle = Constant<value_ints = [1]>() wide = Unsqueeze(low, middle) masked = Add(scores, wide)
      chances = Softmax<axis = -1>(masked) hidden = MatMul(chances, w_)
      last = Constant<value_ints = [2]>() column = Unsqueeze(kept, last) only = Mul(hidden, column)
      pooled = ReduceSum<keepdims = 0>(only, middle)
    }}"""


def table(rows: int = 50) -> np.ndarray:
    """Return float32 [rows, 8], words that differ."""
    return np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
