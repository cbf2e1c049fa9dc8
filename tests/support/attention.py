"""Attention spelled out, in the ways in which graphs spell it, for the tests of what is made of it."""

from __future__ import annotations

import numpy as np

from tests.support.rules import Constant, Outcome, run_passes

HEADS = "float[batch,2,sequence,4]"
SQUASHED = f"{HEADS} q0, {HEADS} k0, {HEADS} v"  # behind Tanh no score is larger than 4
SQUASH = "q = Tanh(q0) k = Tanh(k0)"
TURN = "kt = Transpose<perm=[0,1,3,2]>(k)"
SCORES = {
    "no scale": (f"{TURN} s = MatMul(q, kt)", 1.0),
    "scale on q": (f"qs = Mul(q, half) {TURN} s = MatMul(qs, kt)", 0.5),
    "scale ahead of q": (f"qs = Mul(half, q) {TURN} s = MatMul(qs, kt)", 0.5),
    "q divided": (f"qs = Div(q, root) {TURN} s = MatMul(qs, kt)", 0.5),
    "scale on turned keys": (f"{TURN} ks = Mul(kt, half) s = MatMul(q, ks)", 0.5),
    "turned keys divided": (f"{TURN} ks = Div(kt, root) s = MatMul(q, ks)", 0.5),
    "scale on keys": ("ks = Mul(k, half) kt = Transpose<perm=[0,1,3,2]>(ks) s = MatMul(q, kt)", 0.5),
    "scale on both": (f"qs = Mul(q, half) {TURN} ks = Mul(kt, half) s = MatMul(qs, ks)", 0.25),
    "scale on the product": (f"{TURN} p = MatMul(q, kt) s = Mul(p, half)", 0.5),
    "product divided by the root": (f"{TURN} p = MatMul(q, kt) s = Div(p, root)", 0.5),
    "scale on q and the product": (f"qs = Mul(q, half) {TURN} p = MatMul(qs, kt) s = Div(p, root)", 0.25),
}
WEIGHTS: dict[str, Constant] = {"half": np.float32(0.5), "root": np.float32(2.0), "zero": np.float32(0.0)}
MASKS = {
    "no mask": "",
    "a mask of every row": ", float[batch,1,sequence,sequence] mask",
    "a mask of one row": ", float[batch,1,1,sequence] mask",
    "a mask of every head": ", float[batch,2,sequence,sequence] mask",
    "a mask of all sentences": ", float[1,1,sequence,sequence] mask",
    "a mask of rank 3": ", float[2,sequence,sequence] mask",
    "a mask of rank 2": ", float[sequence,sequence] mask",
    "a row for all sentences": ", float[1,sequence] mask",
    "a mask of rank 1": ", float[sequence] mask",
}
ALONE = "float[1,2,sequence,4]"
GUARD = "w = Softmax<axis=-1>(m) nan = IsNaN(w) w2 = Where(nan, zero, w) y = MatMul(w2, v)"
PLAIN = "w = Softmax<axis=3>(m) y = MatMul(w, v)"
LOWEST = float(np.finfo(np.float32).min)
FILLS = (-1e4, LOWEST, -np.inf)


def spelled(scores: str, *, mask: str = "", tail: str = PLAIN, q: str = HEADS, k: str = HEADS, v: str = HEADS) -> str:
    masked = "m = Add(s, mask)" if mask else "m = Identity(s)"
    return f"g ({q} q, {k} k, {v} v{mask}) => (float y) {{ {scores} {masked} {tail} }}"


def run(text: str, *steps: str, opset: int = 23) -> Outcome:
    weights = {name: array for name, array in WEIGHTS.items() if name in text}
    return run_passes(text, "remove-no-ops", *(steps or ("fuse-attention",)), weights=weights, opset=opset)
