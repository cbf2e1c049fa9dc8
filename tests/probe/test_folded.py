"""What folding is proved by: the values that became constants are made again, and nothing else has changed.

Covers: probe/memory.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.probe import folded
from onnxopt.probe.folded import became_constants, computed
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import get
from onnxopt.spec import Reassociated
from tests.support.rules import observe, parse

TEXT = """
g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) <float two = {2.0}, int64[1] last = {-1}> {
  t = Transpose <perm = [1, 0]> (w)
  s = Mul (t, two)
  m = MatMul (x, s)
  one = CastLike (last, m)
  r = RandomNormal <shape = [8]> ()
  a = Add (m, one)
  k = Mul (r, two)
  z = Mul (k, k)
  b = Sub (a, a)
  y = Add (a, b)
}"""
WEIGHT = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)


@pytest.fixture
def model() -> ir.Model:
    found = parse(TEXT, {"w": WEIGHT}, opset=21)
    prepare(found)
    return found


def fold(model: ir.Model, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, array: array) -> None:
    """Replace t, s and one by constants."""
    right = {"t": WEIGHT.T, "s": WEIGHT.T * 2, "one": np.full(1, -1, np.float32)}
    for node in list(model.graph):
        name = node.outputs[0].name or ""
        if name not in right:
            continue
        array = change(name, np.ascontiguousarray(right[name]))
        new = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        node.outputs[0].name = f"{name}/old"
        node.outputs[0].replace_all_uses_with(new)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(new)


class Folding(Pass):
    """Fold by hand, right or wrong."""

    name = "test-folding"
    numerics = Reassociated(rtol=1e-6, atol=1e-6)

    def __init__(self, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self._change = change

    def run(self, model: ir.Model) -> int:
        if not any(node.outputs[0].name == "t" for node in model.graph):
            return 0
        fold(model, self._change)
        return 3


def never(*_: object) -> None:
    raise AssertionError("the whole model ran")


def test_values_that_depend_on_no_input_are_found_and_made_again(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "BYTES_AT_A_TIME", 100)  # one matrix at a time
    after = model.clone()
    fold(after)
    values = became_constants(model, after)
    assert sorted(value.name or "" for value in values) == ["one", "s", "t"]
    pairs = list(computed(model, values, observe(model)[0].feeds))
    assert len(pairs) == 3
    for made, kept in pairs:
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, kept)


def test_what_is_drawn_is_no_constant(model: ir.Model) -> None:
    after = model.clone()
    z = next(node.outputs[0] for node in after.graph if node.outputs[0].name == "z")
    z.producer().outputs[0].name = "z/old"  # type: ignore[union-attr]  # a node makes it
    after.graph.register_initializer(ir.Value(name="z", const_value=ir.tensor(np.zeros(8, np.float32), name="z")))
    assert became_constants(model, after) == {}


def test_right_constants_need_no_run_of_the_whole_model(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "_prove_whole", never)
    driver = Driver(model, observe(model))
    entry = driver.apply(Folding(lambda _, array: array))
    assert entry.applied == 3
    assert not entry.rolled_back


@pytest.mark.parametrize("name", ["t", "s", "one"])
def test_a_wrong_constant_is_not_kept(model: ir.Model, name: str) -> None:
    driver = Driver(model, observe(model))
    entry = driver.apply(Folding(lambda found, array: array * 1.001 if found == name else array))
    if name == "t":  # nobody reads it any more, so nothing is wrong
        assert entry.applied == 3
        return
    assert entry.applied == 0
    assert len(entry.rolled_back) == 1
    assert any(node.outputs[0].name == "t" for node in model.graph)


def test_a_change_beside_the_constants_is_proved_by_a_run(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(Driver, "_prove_whole", lambda *_: ran.append(True))

    class More(Folding):
        name = "test-more"

        def run(self, model: ir.Model) -> int:
            node = next(node for node in model.graph if node.op_type == "Add")
            node.op_type = "Sub"
            return super().run(model)

    Driver(model, observe(model)).apply(More(lambda _, array: array))
    assert ran == [True]


def test_fold_constants_is_proved_that_way(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "_prove_whole", never)
    entry = Driver(model, observe(model)).apply(get("fold-constants"))
    assert entry.applied > 0
    assert not entry.rolled_back
    assert not any(node.op_type == "Transpose" for node in model.graph)
