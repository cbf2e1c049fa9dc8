"""Models in pieces: parted where the residual stream alone crosses, with the results of the whole.

Covers: probe/pieces.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.weight_files import WeightFile, Widened
from onnxopt.probe import pieces as module
from onnxopt.probe.pieces import Pieces
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Feeds
from tests.support.residual import Residual

FORMS = {
    "tied": Residual(),
    "turned": Residual(width=32, inner=112, blocks=2, turned=True, tied=False),
    "one block": Residual(width=96, inner=40, blocks=1, words=77),
}


@pytest.fixture(autouse=True)
def small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_WEIGHT_BYTES", 1 << 10)


def parted(form: Residual) -> Pieces:
    model = form.model()
    return Pieces(model, model.graph.outputs[0])


def windows(form: Residual, count: int = 3) -> list[Feeds]:
    random = np.random.default_rng(1)
    return [{"input_ids": random.integers(0, form.words, (2, 5 + number))} for number in range(count)]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_stream_alone_crosses(form: Residual) -> None:
    pieces = parted(form).pieces
    assert [[value.name for value in piece.gives] for piece in pieces] == [
        *([f"x{number}"] for number in range(form.blocks + 1)),
        ["logits"],
    ]
    assert [len(piece.weights) for piece in pieces] == [1, *[2] * form.blocks, 1]
    assert [piece.takes for piece in pieces[1:]] == [piece.gives for piece in pieces[:-1]]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_pieces_give_what_the_whole_gives(form: Residual) -> None:
    pieces, given = parted(form), windows(form)
    for feeds, logits in zip(given, pieces.results(given), strict=True):
        expected = GraphRunner(pieces.model).run(feeds)[0]["logits"]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_swapped_in_their_own_piece() -> None:
    form = FORMS["tied"]
    pieces, given = parted(form), windows(form)
    name = "layers.1.down.weight"
    swap = {name: np.zeros((form.inner, form.width), np.float32)}
    asked = []

    def swaps_of(piece: module.Piece) -> Feeds:
        asked.append(piece)
        return swap if name in {weight.name for weight in piece.weights} else {}

    found = list(pieces.results(given, swaps_of))
    assert asked == pieces.pieces
    for feeds, logits in zip(given, found, strict=True):
        whole = GraphRunner(pieces.model)
        np.testing.assert_allclose(logits, whole.run({**feeds, **swap})[0]["logits"], rtol=1e-5, atol=1e-5)
        assert np.abs(logits - whole.run(feeds)[0]["logits"]).max() > 0.01


def test_a_weight_in_16_bits_is_swapped_for_one_in_float(tmp_path: Path) -> None:
    form = FORMS["turned"]
    pieces, given = parted(form), windows(form)
    file = WeightFile(tmp_path / "weights")
    for weight in {weight for piece in pieces.pieces for weight in piece.weights}:
        array = weight.const_value.numpy() if weight.const_value is not None else np.zeros(0)
        weight.const_value = file.add(array.astype(ml_dtypes.bfloat16).astype(np.float32), weight.name or "")
        assert isinstance(weight.const_value, Widened)
    exact = pieces.model.graph.initializers["layers.0.up.weight"].const_value
    assert exact is not None
    swap = {"layers.0.up.weight": exact.numpy() * np.float32(1.37)}  # 16 bits do not hold it
    found = list(pieces.results(given, lambda piece: swap if piece is pieces.pieces[1] else {}))
    pieces.model.graph.initializers["layers.0.up.weight"].const_value = ir.tensor(swap["layers.0.up.weight"])
    for feeds, logits in zip(given, found, strict=True):
        expected = GraphRunner(pieces.model).run(feeds)[0]["logits"]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_values_inside_of_a_piece_are_fetched_and_those_that_it_takes() -> None:
    form = FORMS["tied"]
    pieces, feeds = parted(form), windows(form, 1)[0]
    values = {value.name: value for node in pieces.model.graph for value in node.outputs}
    wanted = [values["x1n"], values["x1"]]
    expected = GraphRunner(pieces.model, wanted).run(feeds)[1]
    crossing = {"x1": expected[values["x1"]]}
    ((gives, found),) = pieces.run(2, [{**feeds, **crossing}], fetch=wanted)
    assert list(gives) == ["x2"]
    for value in wanted:
        np.testing.assert_allclose(found[value], expected[value], rtol=1e-5, atol=1e-6)


def test_products_that_read_one_tensor_stay_together() -> None:
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["batch", 32])
    weights = {
        name: ir.Value(name=name, const_value=ir.tensor(random.standard_normal((32, 32)).astype(np.float32), name=name))
        for name in "abcd"
    }
    p = ir.node("MatMul", [x, weights["a"]])
    q, r = (ir.node("MatMul", [p.outputs[0], weights[name]]) for name in "bc")
    s = ir.node("Add", [q.outputs[0], r.outputs[0]])
    t = ir.node("Add", [p.outputs[0], s.outputs[0]])
    y = ir.node("MatMul", [t.outputs[0], weights["d"]])
    nodes = [p, q, r, s, t, y]
    for name, node in zip("pqrsty", nodes, strict=True):
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], y.outputs, nodes=nodes, initializers=list(weights.values()), opset_imports={"": 18})
    found = Pieces(ir.Model(graph, ir_version=9), y.outputs[0])
    assert [[weight.name for weight in piece.weights] for piece in found.pieces] == [["a"], ["b", "c"], ["d"]]
    feeds = {"x": random.standard_normal((3, 32)).astype(np.float32)}
    (whole,) = found.results([feeds])
    np.testing.assert_allclose(whole, GraphRunner(found.model).run(feeds)[0]["y"], rtol=1e-4, atol=1e-4)


def test_digests_tell_weights_and_what_lies_before_them() -> None:
    form = FORMS["tied"]
    first, again = parted(form), parted(form)
    known = first.digests("text")
    assert again.digests("text") == known
    assert not set(again.digests("other text")) & set(known)
    weight = next(one for one in again.pieces[2].weights if one.name == "layers.1.up.weight")
    changed = np.array(weight.const_value.numpy() if weight.const_value else 0)
    changed[3, 4] += 1e-3
    weight.const_value = ir.tensor(changed, name=weight.name)
    assert [one == other for one, other in zip(again.digests("text"), known, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not set(parted(replace(form, inner=81)).digests("text")) & set(known)
