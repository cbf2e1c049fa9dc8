import numpy as np
import pytest

from tests.support.rules import run_passes


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [("", "Gelu"), ('<approximate="none">', "Gelu"), ('<approximate="tanh">', "FastGelu")],
)
def test_takes_the_kernel_of_the_same_approximation(attributes: str, kernel: str) -> None:
    text = f"g (float[batch,sequence,4] x) => (float[batch,sequence,4] y) {{ y = Gelu{attributes}(x) }}"
    outcome = run_passes(text, "lower-gelu", "lower-gelu")
    assert outcome.ops == [f"com.microsoft::{kernel}"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() < 1e-5
    values = np.linspace(-9, 9, 36, dtype=np.float32).reshape(1, 9, 4)
    assert outcome.worst_error_at(1, 9, x=values) < 1e-5


def test_holds_back_on_half_precision() -> None:
    text = "g (float16[batch,4] x) => (float16[batch,4] y) { y = Gelu(x) }"
    outcome = run_passes(text, "lower-gelu")
    assert (outcome.ops, outcome.reasons) == (["Gelu"], ["x is FLOAT16; the CPU kernel takes float32"])
