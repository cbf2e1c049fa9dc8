"""Wrong rewrites of an attention, planted under every kind of mask; run as a program it prints those that stayed.

A proof that forgives is worse than none: each of these must be refuted whatever the mask holds, and a right one must
stay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.vocabulary import constant, either, scalar
from onnxopt.spec import Array, Reassociated
from tests.support.rules import SIZES, Constant, observe, parse

HEADS, SIZE = 2, 8
SPREAD = 2.0  # of activations: some rows of weights are nearly even, some nearly one
LOWEST = float(np.finfo(np.float32).min)
WRONGS = ("dropped mask", "wrong scale", "wrong axis", "window off by one", "swapped operands", "missing bias")
OF_MASKS = ("dropped mask", "window off by one")
RIGHT = "scale on queries"
PLACES = ("holes", "causal", "left padding", "a row that sees nothing", "a sentence that sees nothing")

# What the graph makes of the mask that it is given, and what is added for a hidden key.
KINDS: dict[str, tuple[str, str, float]] = {
    "none": ("", "", 0.0),
    "bool": ("bool", "m = Where(mask, zero, fill)", LOWEST),
    "bool, -inf": ("bool", "m = Where(mask, zero, fill)", -np.inf),
    "0 and 1": ("float", "i = Sub(one, mask) m = Mul(i, fill)", LOWEST),
    "0 and 1, -10000": ("float", "i = Sub(one, mask) m = Mul(i, fill)", -1e4),
    "soft, finfo.min": ("float", "i = Sub(one, mask) m = Mul(i, fill)", LOWEST),
    "added -10000": ("float", "m = Identity(mask)", -1e4),
    "added finfo.min": ("float", "m = Identity(mask)", LOWEST),
    "added -inf": ("float", "m = Identity(mask)", -np.inf),
}


@dataclass(frozen=True)
class Case:
    """One attention with its mask.

    Attributes:
        kind: of mask, one of `KINDS`.
        place: which keys are hidden, one of `PLACES`; empty without a mask.
        inside: the replaced region computes the mask, instead of being given it.
    """

    kind: str
    place: str
    inside: bool

    def __str__(self) -> str:
        inside = ", mask inside" if self.inside else ""
        return f"{self.kind}, {self.place or 'all keys'}{inside}"


class Planted(Rule):
    """softmax(½ q kᵀ + mask) v + bias, written anew with one thing wrong, or right."""

    name = "test-planted"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def __init__(self, kind: str, *, inside: bool) -> None:
        self._kind, self._inside = kind, inside

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, mask: Pat) -> Iterator[Pat]:
        given = Var("given")
        scores = op.Mul(op.MatMul(q, op.Transpose(k)), scalar(0.5))
        made = either(
            op.Where(given, scalar(0.0, name="zero"), scalar(name="fill")),
            op.Mul(op.Sub(scalar(1.0), given), scalar(name="fill")),
        )
        masked = op.Add(scores, made if self._inside else mask)
        yield op.Add(op.MatMul(op.Softmax(masked), v), constant("bias"))
        yield op.Add(op.MatMul(op.Softmax(scores), v), constant("bias"))

    def rewrite(self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        wrong, bias = self._kind, match.values["bias"]
        if wrong == "swapped operands":
            q, k = k, q
        factor = op.constant(np.array(0.505 if wrong == "wrong scale" else 0.5, np.float32), "factor")
        scores = op.MatMul(op.Mul(q, factor), op.Transpose(k, perm=[0, 1, 3, 2]))
        mask = _mask(op, match)
        if mask is not None and wrong == "window off by one":
            ends = [op.ints(numbers, name) for numbers, name in (([-1], "last"), ([2**62], "end"), ([0], "start"))]
            axis = op.ints([-1], "axis")
            moved = (op.Slice(mask, ends[0], ends[1], axis), op.Slice(mask, ends[2], ends[0], axis))
            mask = op.Concat(*moved, axis=-1)
        if mask is not None and wrong != "dropped mask":
            scores = op.Add(scores, mask)
        result = op.MatMul(op.Softmax(scores, axis=-2 if wrong == "wrong axis" else -1), v)
        return result if wrong == "missing bias" else op.Add(result, bias)


def _mask(op: Builder, match: Match) -> ir.Value | None:
    given, fill = match.values.get("given"), match.values.get("fill")
    if given is None or fill is None:
        return match.values.get("mask")
    zero = match.values.get("zero")
    if zero is not None:
        return op.Where(given, zero, fill)
    return op.Mul(op.Sub(op.constant(np.array(1.0, np.float32), "one"), given), fill)


def cases() -> Iterator[Case]:
    """Yield every kind of mask with every place of what it hides."""
    yield Case("none", "", inside=False)
    for kind in KINDS:
        for place in PLACES if kind != "none" else ():
            for inside in (False, True) if "Identity" not in KINDS[kind][1] else (False,):
                yield Case(kind, place, inside=inside)


def wrongs_of(case: Case) -> list[str]:
    """Return what is wrong under a mask."""
    return [wrong for wrong in WRONGS if case.kind != "none" or wrong not in OF_MASKS]


def stays(case: Case, kind: str) -> bool:
    """Tell whether a rewrite is kept.

    Args:
        case: the attention.
        kind: what is wrong with the rewrite, or `RIGHT`.
    """
    given, made, fill = KINDS[case.kind]
    heads = f"float[batch,{HEADS},sequence,{SIZE}]"
    mask = f", {given}[batch,1,sequence,sequence] mask" if given else ""
    text = f"""
    g ({heads} q, {heads} k, {heads} v{mask}) => ({heads} y) {{
      t = Transpose <perm = [0, 1, 3, 2]> (k) p = MatMul(q, t) s = Mul(p, half) {made}
      {"a = Add(s, m)" if given else "a = Identity(s)"} w = Softmax(a) o = MatMul(w, v) y = Add(o, bias)
    }}"""
    weights: dict[str, Constant] = {
        "half": np.float32(0.5),
        "zero": np.float32(0.0),
        "one": np.float32(1.0),
        "fill": np.float32(fill),
        "bias": np.linspace(-1, 1, SIZE, dtype=np.float32),
    }
    if not given:
        text = text.replace("a = Identity(s) w = Softmax(a)", "w = Softmax(s)")
    used = {name: array for name, array in weights.items() if name in text.replace("Identity", "")}
    model = parse(text, used)
    observations = observe(model, _feeds(case))
    prepare(model)
    return bool(Driver(model, observations).apply(Planted(kind, inside=case.inside)).applied)


def _feeds(case: Case) -> dict[str, list[Array]]:
    generator = np.random.default_rng(7)
    feeds: dict[str, list[Array]] = {name: [] for name in ("q", "k", "v", *(("mask",) if case.place else ()))}
    for batch, sequence in SIZES[:3]:
        shape = (batch, HEADS, sequence, SIZE)
        for name in ("q", "k", "v"):
            feeds[name].append((generator.standard_normal(shape) * SPREAD).astype(np.float32))
        if case.place:
            feeds["mask"].append(_written(case, _allowed(case.place, batch, sequence, generator)))
    return feeds


def _allowed(place: str, batch: int, sequence: int, generator: np.random.Generator) -> Array:
    """Return bool [batch, 1, sequence, sequence]: which keys a query sees."""
    allowed: Array = np.ones((batch, 1, sequence, sequence), bool)
    if place == "causal":
        return np.tril(allowed)
    if place == "left padding":
        allowed[..., : sequence // 3] = False
        return allowed
    allowed = generator.integers(0, 2, allowed.shape) != 0
    allowed[..., 0] = True
    if place == "a row that sees nothing":
        allowed[:, :, sequence // 2] = False
    if place == "a sentence that sees nothing":
        allowed[0] = False
    return allowed


def _written(case: Case, allowed: Array) -> Array:
    given, made, fill = KINDS[case.kind]
    if given == "bool":
        return allowed
    if case.kind.startswith("soft"):  # finfo.min times anything hides a key, as a bias of its own where all are hidden
        between = np.random.default_rng(allowed.size).uniform(0.1, 0.9, allowed.shape)
        return np.where(allowed, 1.0, between).astype(np.float32)
    if "Sub" in made:
        return allowed.astype(np.float32)
    return np.where(allowed, 0.0, fill).astype(np.float32)


def survivors() -> list[str]:
    """Return the wrong rewrites that no proof refuted, and the right ones that one did."""
    found = [f"{wrong}: {case}" for case in cases() for wrong in wrongs_of(case) if stays(case, wrong)]
    return [*found, *(f"refuted: {case}" for case in cases() if not stays(case, RIGHT))]


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in survivors())
