"""A small encoder that pools: fast, with a mask that decides, and exact, so that answers can be compared bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt import Session
from onnxopt.spec import Feeds

# the mean of the embeddings that the mask keeps, and the embeddings
MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
pool (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
    => (float[batch, 2] mean, float[batch, sequence, 2] tokens)
<float[5, 2] table = {9, 9, 1, 2, 3, 4, 5, 6, 7, 8}, int64[1] one = {1}, int64[1] two = {2}>
{
    mask = Cast<to = 1>(attention_mask)
    wide = Unsqueeze(mask, two)
    tokens = Gather(table, input_ids)
    kept = Mul(tokens, wide)
    sum = ReduceSum<keepdims = 0>(kept, one)
    count = ReduceSum<keepdims = 1>(mask, one)
    mean = Div(sum, count)
}
"""


def write_pool(folder: Path) -> Path:
    """Write the model and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.parser.parse_model(MODEL), folder / "model.onnx")
    return folder


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Open the model."""
    return Session(write_pool(tmp_path))


def feeds(rows: int, length: int, first: int = 0) -> Feeds:
    """Return inputs whose ids start at `first`."""
    ids = (np.arange(rows * length).reshape(rows, length) + first) % 4 + 1
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
