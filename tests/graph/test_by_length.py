"""Two graphs behind one interface: each answers for its lengths, and what they share is stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxopt.graph.by_length import by_length
from tests.support.rules import parse

SHAPES = "int64[batch_size,sequence] input_ids, float[batch_size,sequence,4] past"
TABLE = np.arange(400, dtype=np.float32).reshape(100, 4)


def half(operator: str, outputs: str = "y, past_too", **weights: np.ndarray) -> ir.Model:
    """Rows of a table, then one operator with a weight; the second output is handed on as it came."""
    return parse(
        f"""
        g ({SHAPES}) => (float[batch_size,sequence,4] y, float[batch_size,sequence,4] past_too) {{
          rows = Gather (table, input_ids)
          y = {operator} (rows, w)
          past_too = Identity (past)
        }}""",
        {"table": TABLE, **weights},
    )


def test_each_length_takes_its_own_way_and_a_shared_table_is_stored_once(tmp_path: Path) -> None:
    w = np.array([2, 3, 4, 5], np.float32)
    model = by_length(half("Mul", w=w), half("Add", w=w + 1), longest_step=2)
    assert sorted(value.const_value.size for value in model.graph.initializers.values() if value.const_value) == [
        1,
        4,
        4,
        400,
    ]
    ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [one.name for one in session.get_outputs()] == ["y", "past_too"]
    for length in (1, 2, 3, 7):
        ids = np.arange(2 * length).reshape(2, length)
        past = np.random.default_rng(length).standard_normal((2, length, 4)).astype(np.float32)
        y, handed_on = session.run(None, {"input_ids": ids, "past": past})
        assert np.array_equal(y, TABLE[ids] * w if length > 2 else TABLE[ids] + (w + 1))
        assert np.array_equal(handed_on, past)


def test_graphs_with_other_outputs_are_not_put_together() -> None:
    one, other = half("Mul", w=np.ones(4, np.float32)), half("Mul", w=np.ones(4, np.float32))
    other.graph.outputs[0].name = "z"
    with pytest.raises(ValueError, match="other outputs"):
        by_length(one, other, longest_step=1)
