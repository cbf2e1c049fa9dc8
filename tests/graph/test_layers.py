from __future__ import annotations

import numpy as np

from onnxopt.graph.layers import Layers
from tests.support.rules import parse

TEXT = """
g (float[n,3,h,w] x, int64[n] ids) => (float[n,8] y, float[n,4] z, float[n,8] e) {
  c = Conv <kernel_shape = [1, 1]> (x, kernel)
  r = Relu (c)
  m = GlobalAveragePool (r)
  f = Flatten (m)
  p = MatMul (f, up)
  y = Add (p, bias)
  z = MatMul (y, down)
  e = Gather <axis = 0> (words, ids)
}
"""
WEIGHTS = {"kernel": (5, 3, 1, 1), "up": (5, 8), "bias": (8,), "down": (8, 4), "words": (30, 8)}


def layers() -> Layers:
    return Layers.of(parse(TEXT, {name: np.ones(shape, np.float32) for name, shape in WEIGHTS.items()}))


def test_layers_are_found_by_kind_and_told_by_label() -> None:
    found = layers()
    assert found.labels == ["kernel", "up", "down"]
    assert [table.label for table in found.tables] == ["words#table"]
    assert not found.is_convolutional
    assert found.without({"up", "down"}).is_convolutional


def test_what_is_left_out_computes_nothing_and_tables_stay() -> None:
    rest = layers().without({"kernel", "down", "words#table"})
    assert rest.labels == ["up"]
    assert [table.label for table in rest.tables] == ["words#table"]


def test_a_ledger_knows_a_layer_by_the_node_that_gives_its_result() -> None:
    found = layers()
    names = found.label_by_node()
    assert sorted(names.values()) == ["down", "kernel", "up", "words#table"]
    by_label = {label: name for name, label in names.items()}
    producers = {value.name: node for node in found.model.graph for value in node.outputs}
    for result, label in {"r": "kernel", "y": "up", "z": "down", "e": "words#table"}.items():
        assert by_label[label] == (producers[result].name or producers[result].op_type)
