import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant
from onnxopt.proof.driver import Driver
from onnxopt.rewrite.registry import get
from tests.support.rules import observe, parse, run_passes

CONSTANTS = """
g (float[batch,4] x) => (float[batch,4] y) {
  half = Constant <value = float {0.5}> ()
  list = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
  one = Constant <value_float = 1.0> ()
  a = Mul(x, half)
  b = Add(a, list)
  y = Sub(b, one)
}"""


def test_lifts_every_way_to_write_a_constant() -> None:
    outcome = run_passes(CONSTANTS, "lift-constants")
    assert outcome.ops == ["Mul", "Add", "Sub"]
    assert outcome.entry.applied == 3
    found = {name: constant(value) for name, value in outcome.model.graph.initializers.items()}
    assert {name: array.tolist() for name, array in found.items() if array is not None} == {
        "half": 0.5,
        "list": [1.0, 2.0, 3.0, 4.0],
        "one": 1.0,
    }
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_a_second_run_changes_nothing() -> None:
    outcome = run_passes(CONSTANTS, "lift-constants", "lift-constants")
    assert [entry.applied for entry in outcome.entries] == [3, 0]


def model_with_an_initializer_that_is_an_input(ir_version: int) -> ir.Model:
    model = parse(
        "g (float[batch,4] x, float[4] w) => (float[batch,4] y) { y = Mul(x, w) }", {"w": np.ones(4, np.float32)}
    )
    model.ir_version = ir_version
    return model


def test_an_initializer_that_ir_3_forced_to_be_an_input_stops_being_one() -> None:
    model = model_with_an_initializer_that_is_an_input(3)
    driver = Driver(model, observe(model), prove=False)  # the proof feeds the inputs, one of which goes
    assert driver.apply(get("lift-constants")).applied == 1
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["w"]


def test_a_default_that_callers_may_override_since_ir_4_stays_an_input() -> None:
    outcome = run_passes(model_with_an_initializer_that_is_an_input(10), "lift-constants")
    assert outcome.entry.applied == 0
    assert [value.name for value in outcome.model.graph.inputs] == ["x", "w"]
