"""The graph as it was loaded: its file is that of the graph as it was, also where it is written late."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph import weight_files
from onnxopt.probe.runners import GraphRunner
from onnxopt.road import forms
from onnxopt.road.forms import Before
from onnxopt.spec import Target
from tests.support.rules import parse

TEXT = """
g (float[batch,30] x) => (float[batch,30] y) {
  a = MatMul(x, w)
  b = Relu(a)
  y = Add(b, v)
}"""


def model() -> ir.Model:
    rng = np.random.default_rng(7)
    weights = {"w": rng.standard_normal((30, 30)).astype(np.float32), "v": np.ones(30, np.float32)}
    return parse(TEXT, weights)


def test_a_large_graph_is_written_where_its_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).standard_normal((2, 30)).astype(np.float32)
    small = Before.of(model(), tmp_path / "small")
    assert small.path.exists()
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 100)
    loaded = model()
    expected = GraphRunner(loaded).run({"x": x})[0]["y"]
    large = Before.of(loaded, tmp_path / "large")
    assert not (tmp_path / "large").exists()
    for node in list(loaded.graph):  # what becomes of the graph afterwards is not the original's
        if node.op_type == "Relu":
            node.op_type = "Neg"
    assert (large.size_bytes, large.ops, large.outline) == (small.size_bytes, small.ops, small.outline)
    assert large.nodes == 3
    assert large.path.read_bytes() == small.path.read_bytes()
    assert large.path == large.path
    np.testing.assert_array_equal(GraphRunner(ir.load(large.path)).run({"x": x})[0]["y"], expected)


def test_weights_of_a_large_graph_stay_mapped_while_it_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(forms, "Session", lambda _, **settings: opened.append(settings))
    loaded: Any = SimpleNamespace(model=model(), name="given")
    for limit in (1 << 30, 100):
        monkeypatch.setattr(weight_files, "LARGE_BYTES", limit)
        forms._opened(tmp_path, Target("cpu"), loaded)
    assert [one["config"] for one in opened] == [None, {"session.disable_prepacking": "1"}]


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.int32])
def test_large_weights_in_fewer_bits_are_packed_as_ever(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(forms, "Session", lambda _, **settings: opened.append(settings))
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 100)
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 100)
    given = model()
    given.graph.register_initializer(ir.Value(name="codes", const_value=ir.tensor(np.zeros(100, kind), name="codes")))
    loaded: Any = SimpleNamespace(model=given, name="given")
    forms._opened(tmp_path, Target("cpu"), loaded)
    assert [one["config"] for one in opened] == [None]
