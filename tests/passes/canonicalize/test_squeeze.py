import numpy as np
import pytest

from tests.support.rules import Outcome, run_passes

AXES = {
    "two": np.array([2]),
    "back": np.array([-2]),
    "both": np.array([0, 2]),
    "turned": np.array([-2, 0]),
    "last": np.array([3]),
}
GONE = {
    "out and in": "s = Squeeze(h, two) u = Unsqueeze(s, two)",
    "named from the other end": "s = Squeeze(h, back) u = Unsqueeze(s, two)",
    "in and out": "i = Unsqueeze(h, two) u = Squeeze(i, two)",
    "in and out from the other end": "i = Unsqueeze(h, two) u = Squeeze(i, inner)",
}


def run(body: str, x: str = "batch,4,1,sequence", opset: int = 23) -> Outcome:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    known = AXES | {"inner": np.array([-3])}
    weights = {name: array for name, array in known.items() if name in words}
    text = f"g (float[{x}] x) => (float y) {{ h = Relu(x) {body} y = Neg(u) }}"
    outcome = run_passes(text, "merge-squeezes", "merge-squeezes", "remove-unused", weights=weights, opset=opset)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("body", GONE.values(), ids=GONE)
def test_what_is_undone_goes(body: str) -> None:
    outcome = run(body)
    assert outcome.ops == ["Relu", "Neg"]
    assert [entry.applied for entry in outcome.entries[:2]] == [1, 0]
    assert outcome.worst_error_at(3, 2) == 0


def test_several_axes_in_any_order() -> None:
    outcome = run("s = Squeeze(h, both) u = Unsqueeze(s, turned)", "1,4,1,sequence")
    assert outcome.ops == ["Relu", "Neg"]
    assert outcome.worst_error_at(3, 2) == 0


def test_axes_are_attributes_below_opset_13() -> None:
    assert run("s = Squeeze<axes=[2]>(h) u = Unsqueeze<axes=[-2]>(s)", opset=12).ops == ["Relu", "Neg"]


STAYS = {
    "another axis": "s = Squeeze(h, two) u = Unsqueeze(s, last)",
    "fewer axes": "s = Squeeze(h, both) u = Unsqueeze(s, two)",
    "all axes of one": "s = Squeeze(h) u = Unsqueeze(s, two)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_others_stay(body: str) -> None:
    assert run(body, "1,4,1,sequence").entries[0].applied == 0


def test_other_readers_keep_the_inner_one() -> None:
    outcome = run("s = Squeeze(h, two) v = Unsqueeze(s, two) t = Unsqueeze(s, two) u = Sub(v, t)")
    assert outcome.ops.count("Squeeze") == 0
    assert outcome.worst_error_at(3, 2) == 0


def test_an_output_is_no_input() -> None:
    text = "g (float[batch,4,1,sequence] x) => (float y) { s = Squeeze(x, two) y = Unsqueeze(s, two) }"
    outcome = run_passes(text, "merge-squeezes", weights={"two": AXES["two"]})
    assert outcome.reasons == ["an output cannot be an input"]
