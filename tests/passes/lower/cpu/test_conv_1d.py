import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(8)


def filters(*shape: int) -> Array:
    return np.asarray(GENERATOR.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


def run(call: str, weights: dict[str, Array], channels: int, *steps: str, opset: int = 23) -> Outcome:
    text = f"g (float[batch,{channels},rows] x) => (float y) {{ {call} }}"
    outcome = run_passes(text, *(steps or ("lower-conv-1d", "lower-conv-1d")), weights=weights, opset=opset)
    assert outcome.rolled_back == []
    return outcome


FIRES = {
    "plain": ("y = Conv(x, w, b)", {"w": (32, 16, 3), "b": (32,)}, 16),
    "no bias": ("y = Conv<kernel_shape=[5]>(x, w)", {"w": (16, 48, 5)}, 48),
    "padded unevenly": ("y = Conv<pads=[3,1], strides=[2], dilations=[2]>(x, w)", {"w": (16, 16, 3)}, 16),
    "padded by itself": ('y = Conv<auto_pad="SAME_LOWER", strides=[3]>(x, w)', {"w": (16, 16, 4)}, 16),
    "each channel apart": ("y = Conv<group=32, pads=[2,2]>(x, w, b)", {"w": (32, 1, 5), "b": (32,)}, 32),
    "groups": ("y = Conv<group=2>(x, w)", {"w": (32, 16, 2)}, 32),
}


@pytest.mark.parametrize("opset", [12, 23])
@pytest.mark.parametrize(("call", "shapes", "channels"), FIRES.values(), ids=FIRES)
def test_runs_over_two_axes(call: str, shapes: dict[str, tuple[int, ...]], channels: int, opset: int) -> None:
    outcome = run(call, {name: filters(*shape) for name, shape in shapes.items()}, channels, opset=opset)
    assert outcome.ops == ["Unsqueeze", "Conv", "Squeeze"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error_at(2, 3) < 1e-5
    assert outcome.worst_error_at(1, 1) < 1e-5


def test_a_chain_goes_on_over_two_axes() -> None:
    weights = {"w": filters(16, 16, 3), "v": filters(32, 16, 3), "b": filters(1, 32, 1)}
    call = "c = Conv(x, w) r = Relu(c) d = Conv(r, v) y = Add(d, b)"
    outcome = run(call, weights, 16, "lower-conv-1d", "compute-before-squeeze", "merge-squeezes", "remove-unused")
    assert outcome.ops == ["Unsqueeze", "Conv", "Relu", "Conv", "Add", "Squeeze"]
    assert outcome.worst_error_at(3, 2) < 1e-5


STAYS = {
    "one channel": ("y = Conv(x, w)", {"w": (16, 1, 3)}, 1),
    "results that fill no block": ("y = Conv(x, w)", {"w": (30, 16, 3)}, 16),
    "groups that fill no block": ("y = Conv<group=4>(x, w)", {"w": (32, 8, 3)}, 32),
    "two results per channel": ("y = Conv<group=16>(x, w)", {"w": (32, 1, 3)}, 16),
}


@pytest.mark.parametrize(("call", "shapes", "channels"), STAYS.values(), ids=STAYS)
def test_others_stay(call: str, shapes: dict[str, tuple[int, ...]], channels: int) -> None:
    outcome = run(call, {name: filters(*shape) for name, shape in shapes.items()}, channels)
    assert [entry.applied for entry in outcome.entries] == [0, 0]


def test_images_stay() -> None:
    text = "g (float[batch,16,rows,9] x) => (float y) { y = Conv(x, w) }"
    assert run_passes(text, "lower-conv-1d", weights={"w": filters(16, 16, 3, 3)}).entry.applied == 0


def test_shared_filters_stay() -> None:
    weights = {"w": filters(16, 16, 3)}
    shared = run("c = Conv(x, w) d = Conv<pads=[1,1]>(c, w) y = Relu(d)", weights, 16)
    assert set(shared.reasons) == {"the weight is shared"}
