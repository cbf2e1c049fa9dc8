import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import run_passes

CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "t": np.array(0.05, np.float32),
    "z": np.array(120, np.uint8),
    "u": np.array(7, np.uint8),
    "i": np.array(-3, np.int8),
}
TEXT = "g (float[batch,4] x) => (float[batch,4] y) {{ {} }}"


def run(body: str) -> list[str]:
    used = {name: array for name, array in CONSTANTS.items() if f" {name}" in body}
    outcome = run_passes(TEXT.format(body), "drop-requantize", "drop-requantize", weights=used)
    assert outcome.rolled_back == []
    assert outcome.entries[1].applied == 0
    assert outcome.worst_error() == 0
    return outcome.ops


def test_what_is_on_a_grid_is_not_rounded_to_it_again() -> None:
    body = "a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = QuantizeLinear(b, s, z)"
    assert run(f"{body} y = DequantizeLinear(c, s, z)") == ["QuantizeLinear", "DequantizeLinear"]


def test_others_may_read_the_tensor_in_float() -> None:
    body = "a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = QuantizeLinear(b, s, z)"
    assert run(f"{body} d = DequantizeLinear(c, s, z) y = Add(b, d)").count("QuantizeLinear") == 1


@pytest.mark.parametrize("again", ["t, z", "s, u", "s, i"], ids=["scale", "zero point", "type"])
def test_another_grid_stays(again: str) -> None:
    body = f"a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = QuantizeLinear(b, {again})"
    assert run(f"{body} y = DequantizeLinear(c, {again})").count("QuantizeLinear") == 2
