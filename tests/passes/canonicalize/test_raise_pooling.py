import numpy as np
import pytest

from tests.support.rules import run_passes

TEXT = "g (float[batch,3,height,height] x) => (float y) {{ {} }}"


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
@pytest.mark.parametrize("opset", [13, 23])
def test_the_mean_over_an_image_is_its_pooling(axes: list[int], opset: int) -> None:
    given = f"<axes={axes}>(x)" if opset < 18 else "(x, axes)"
    weights = {} if opset < 18 else {"axes": np.array(axes)}
    steps = ("raise-global-average-pool", "raise-global-average-pool")
    outcome = run_passes(TEXT.format(f"y = ReduceMean{given}"), *steps, weights=weights, opset=opset)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.ops == ["GlobalAveragePool"]
    assert outcome.worst_error() <= 1e-6


@pytest.mark.parametrize(
    ("body", "axes"), [("y = ReduceMean(x, axes)", [3]), ("y = ReduceMean<keepdims=0>(x, axes)", [2, 3])]
)
def test_other_means_stay(body: str, axes: list[int]) -> None:
    outcome = run_passes(TEXT.format(body), "raise-global-average-pool", weights={"axes": np.array(axes)})
    assert outcome.ops == ["ReduceMean"]
