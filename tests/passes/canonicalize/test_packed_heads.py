import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

CONSTANTS: dict[str, Array] = {
    "cut": np.array([0, 0, 3, 2, 4]),
    "inferred": np.array([0, -1, 3, 2, 4]),
    "five": np.array([0, 0, 5, 2, 4]),
    "outside": np.array([0, 0, 2, 3, 4]),
    "i0": np.array(0),
    "i1": np.array(1),
    "im": np.array(-1),
    "list": np.array([1]),
    "s0": np.array([0]),
    "s1": np.array([1]),
    "s2": np.array([2]),
    "sm": np.array([-1]),
    "s3": np.array([3]),
    "end": np.array([2**63 - 1]),
}
TIMM = "r = Reshape(x, cut) t = Transpose<perm=[2,0,3,1,4]>(r)"
GATHERED = "q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, im)"
SPELLINGS = {
    "timm": f"{TIMM} {GATHERED}",
    "a Reshape that infers": f"{TIMM} {GATHERED}".replace("cut", "inferred"),
    "Slice and Squeeze": f"{TIMM} a = Slice(t, s0, s1, s0) q = Squeeze(a, s0) b = Slice(t, s1, s2, s0, s1) "
    "k = Squeeze(b, s0) c = Slice(t, sm, end, s0) v = Squeeze(c, s0)",
    "Split and Squeeze": f"{TIMM} a, b, c = Split<num_outputs=3>(t) q = Squeeze(a, s0) "
    "k = Squeeze(b, s0) v = Squeeze(c, s0)",
    "not turned": "t = Reshape(x, cut) q = Gather<axis=2>(t, i0) k = Gather<axis=2>(t, i1) v = Gather<axis=-3>(t, im)",
    "turned otherwise": f"r = Reshape(x, cut) t = Transpose<perm=[0,3,2,1,4]>(r) {GATHERED}".replace(
        "axis=0", "axis=2"
    ),
}


def run(body: str, x: str = "batch,sequence,24", outputs: str = "float q, float k, float v") -> Outcome:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    text = f"g (float[{x}] x) => ({outputs}) {{ {body} }}"
    outcome = run_passes(text, *("split-packed-heads",) * 2, "merge-initializers", "merge-equal-nodes", weights=used)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_takes_the_parts_apart_first(body: str) -> None:
    outcome = run(body)
    assert [entry.applied for entry in outcome.entries][:2] == [3, 0]
    turned = [] if "t = Reshape" in body else ["Transpose"] * 3
    assert sorted(outcome.ops) == sorted(["Split", *["Reshape"] * 3, *turned])
    assert outcome.worst_error_at(3, 4) == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_axes_and_sizes_are_attributes_below_opset_13() -> None:
    body = f"{TIMM} a = Slice(t, s1, s2, s0) k = Squeeze<axes=[0]>(a)"
    text = f"g (float[batch,sequence,24] x) => (float k) {{ {body} }}"
    used = {name: CONSTANTS[name] for name in ("cut", "s0", "s1", "s2")}
    outcome = run_passes(text, "split-packed-heads", weights=used, opset=12)
    assert outcome.ops == ["Split", "Reshape", "Transpose"]
    assert outcome.worst_error_at(3, 4) == 0


def test_five_parts_of_which_one_is_read() -> None:
    outcome = run(f"{TIMM} q = Gather<axis=0>(t, im)".replace("cut", "five"), "batch,sequence,40", "float q")
    assert outcome.ops == ["Split", "Reshape", "Transpose"]
    assert outcome.worst_error_at(2, 3) == 0


def test_attention_is_found_behind_it() -> None:
    body = f"{TIMM} {GATHERED} y = Attention(q, k, v) u = Transpose<perm=[0,2,1,3]>(y) z = Reshape(u, merged)"
    text = f"g (float[batch,sequence,24] x) => (float z) {{ {body} }}"
    used = {name: CONSTANTS[name] for name in ("cut", "i0", "i1", "im")} | {"merged": np.array([0, 0, 8])}
    steps = ("split-packed-heads", "merge-initializers", "merge-equal-nodes", "fuse-attention-heads")
    outcome = run_passes(text, *steps, weights=used)
    assert outcome.ops == ["Split", "Attention"]
    assert outcome.worst_error_at(2, 5) < 1e-6


STAYS = {
    "a list of one": f"{TIMM} q = Gather<axis=0>(t, list)",
    "another axis": f"{TIMM} q = Gather<axis=1>(t, i1)",
    "two parts": f"{TIMM} a = Slice(t, s1, s3, s0) b = Slice(a, s0, s1, s0) q = Squeeze(b, s0)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_others_stay(body: str) -> None:
    assert run(body, "2,sequence,24", "float q").entries[0].applied == 0


def test_heads_outside_of_the_parts_stay() -> None:
    body = "r = Reshape(x, outside) t = Transpose<perm=[3,0,2,1,4]>(r) q = Gather<axis=0>(t, i0)"
    assert run(body, outputs="float q").entries[0].applied == 0


REFUSED = {
    "x has rank 2, needs 3": ("r = Reshape(x, shape)", "6,24"),
    "the leading axes are not known to stay": ("r = Reshape(x, shape)", "6,2,24"),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED)
def test_says_why_it_holds_back(reason: str, case: tuple[str, str]) -> None:
    body = f"{case[0]} t = Transpose<perm=[2,0,3,1,4]>(r) q = Gather<axis=0>(t, i0)"
    text = f"g (float[{case[1]}] x) => (float q) {{ {body} }}"
    used = {"shape": np.array([3, -1, 3, 2, 4]), "i0": CONSTANTS["i0"]}
    assert run_passes(text, "split-packed-heads", weights=used).reasons == [reason]
