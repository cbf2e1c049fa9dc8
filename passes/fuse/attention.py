"""Fuse scaled dot-product attention into one Attention node.

Before::

    q ─ Mul(s) ─┐
    k ─ Transpose ─ Mul(s) ─ MatMul ─ Add(bias) ─ Where(mask) ─ Softmax ─ Where(IsNaN, 0) ─┐
    v ─────────────────────────────────────────────────────────────────────────────────────┴─ MatMul ─ y

After::

    bias ─ Where(mask) ─┐
    q, k, v ────────────┴─ Attention(scale) ─ y

    k, v ─ Pad(one key of zeros) ─┐
    mask ─ Concat(sink) ──────────┴─ Attention(scale) ─ y        (where a sink takes part in the softmax)

Meets: TorchScript exports of SDPA and eager attention, decomposed dynamo exports (opset 18), with the scale on q, on k,
    on both or on the product; scores that are soft-capped (Gemma 2); masks that are added and masks that are written
    over the scores, relative-position and ALiBi biases, up to three of them in any order; with or without the
    exporter's guard for fully masked rows; learned sinks, scores of no key that only take weight (gpt-oss).
Numerics: reassociated. What hides keys comes from integers or flags [batch, keys] in every export: 0 and 1, and a row
    that sees nothing is one of padding, whose answer means nothing. Where it may be anything (floats, flags for every
    query), each row keeps its answer, equal weights for a row that sees nothing among them; what the operator cannot
    say so is left as it is written. A number that is added to scores is added still. One that is written over them
    cannot be: -1e30 is added instead, which is the same from finfo.min to where no score comes near; -10000 or -1e9 is
    taken only where norms, squashes and weights bound the scores (`onnxopt.graph.magnitude`).
Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; ONNX operator Attention-23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Dim, attribute, dims, integers, number, rank
from onnxopt.graph.magnitude import magnitude
from onnxopt.passes.words.scores import VANISHES, largest_score, out_of_reach
from onnxopt.probe.sidegraph import MaskOrigin, origin_of_mask
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Const, Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, either, scalar
from onnxopt.sizes.derive import same_dimension
from onnxopt.sizes.emptiness import may_be_empty
from onnxopt.spec import Reassociated

# How keys become [..., size, keys], and what brings the same keys to [..., keys, size]; None where they are that
# already.
KEY_TURNS: dict[tuple[int, ...], tuple[int, ...] | None] = {
    (0, 1, 3, 2): None,  # [batch, heads, keys, size]
    (0, 2, 3, 1): (0, 2, 1, 3),  # [batch, keys, heads, size]
    (0, 2, 1): None,  # [matrices, keys, size]
    (1, 2, 0): (1, 0, 2),  # [keys, matrices, size]: torch's multi_head_attention_forward
}
STEPS = (1, 2, 3)  # what may happen to the scores, from the product outwards; DeBERTa and Swin have two
MASKED_BELOW = -1e4  # what is written over a masked score: -10000 (GPT-J of 2021), finfo.min or -inf
LARGEST_NEAR = 1e18  # times the largest int64, it is far from finfo.min; nobody hides keys by numbers in between
ABOVE_LOWEST = 0.999  # of finfo.min, and no number that a row of it would be told apart from


@dataclass(frozen=True)
class Scores:
    """What the scores are multiplied by, and where they are capped, 0 for nowhere."""

    scale: float
    softcap: float


@dataclass(frozen=True)
class Mask:
    """All that is done to the scores.

    Attributes:
        shape: of all parts together.
        exact: rows that see nothing have an answer too, which must stay.
        kept: the numbers that are written over scores stay as they are.
        lowest: it may add finfo.min.
        undefined: a row of -inf has an answer that is not a number.
    """

    shape: tuple[Dim, ...]
    exact: bool = False
    kept: bool = False
    lowest: bool = False
    undefined: bool = False


@register
class FuseAttention(Rule):
    """softmax(s · q kᵀ + mask) v  →  Attention(q, k, v, mask)."""

    name = "fuse-attention"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-padding-mask", "fuse-attention-heads")

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat) -> Iterator[Pat]:
        """Every place of the scale, with and without masks and guard."""
        turned = op.Transpose(k, perm=_turns_keys, _name="turn")
        query = either(op.Mul(q, scalar(name="scale_q")), op.Div(q, scalar(name="divide_q")), q)
        scaled_before = op.Transpose(op.Mul(k, scalar(name="scale_k")), perm=_turns_keys, _name="turn")
        scaled_after = either(op.Mul(turned, scalar(name="scale_k")), op.Div(turned, scalar(name="divide_k")))
        key = either(scaled_before, scaled_after, turned)  # the bare one last: it would leave the Mul in front
        stored = Var("turned")  # keys that a convolution or a cache gives as [batch, heads, size, keys]
        key = either(key, op.Mul(stored, scalar(name="scale_k")), op.Div(stored, scalar(name="divide_k")), stored)
        product = op.MatMul(query, key)
        scores = either(product, op.Mul(product, scalar(name="scale")), op.Div(product, scalar(name="divide")))
        inner = either(op.Div(scores, scalar(name="cap_divide")), op.Mul(scores, scalar(name="cap_factor")))
        scores = either(op.Mul(op.Tanh(inner), scalar(name="cap")), scores)
        for step in STEPS:
            scores = either(*_steps(op, scores, step), scores)
        scores = either(scores, op.Div(scores, scalar(name="divide_all")), op.Mul(scores, scalar(name="scale_all")))
        beside = op.Concat(scores, Var("sink"), axis=_last)
        largest = either(op.ReduceMax(beside, Var("maybe_axes", optional=True)), op.ReduceMax(beside))
        weights = op.Softmax(either(op.Sub(beside, largest), beside, scores), axis=_last, _name="softmax")
        guarded = op.Where(op.IsNaN(weights), scalar(0.0), weights, _name="guarded")
        stride = Var("maybe_step", optional=True)
        cut = op.Slice(weights, _ints(0), _ints(-1), _ints(-1, 3), stride, _name="cut")
        yield op.MatMul(either(guarded, cut, weights), v)

    def guard(self, match: Match, q: ir.Value, k: ir.Value | None, v: ir.Value, turned: ir.Value | None) -> None:
        """Heads, or matrices without heads; the mask must have the dimensions of the scores that the operator wants."""
        keys = k or turned or q
        match.require(all(value.dtype in FLOATS for value in (q, keys, v)), "q, k or v is not a float tensor", q)
        ranks = {rank(value) for value in (q, keys, v)}
        match.require(ranks in ({3}, {4}), "q, k and v are not [batch, heads, sequence, size]", q)
        match.require(isinstance((dims(q) or ())[-1], int), "the size of heads is not known", q)
        place = _batch_of_keys(match)
        alike = same_dimension(q, v, 0) and same_dimension(q, keys, 0, place)
        batches = [(dims(value) or ())[axis] for value, axis in ((q, 0), (keys, place), (v, 0))]
        match.require(alike, f"queries, keys and values have the batches {batches}", q)
        for value, axes in ((q, (0, -2)), (v, (-2,))):
            rows = not any(may_be_empty(match.model, value, axis) for axis in axes)
            match.require(rows, "there may be no queries or no keys, and Attention takes some", value)
        if ranks == {4}:
            _require_heads(match, q, keys, v)
        axis = attribute(match.named["softmax"], "axis")
        match.require(axis in (-1, (rank(q) or 0) - 1), f"the weights of axis {axis} sum to one, not of the keys", v)
        scale, softcap = _scale(match), _softcap(match)
        largest = min(largest_score(q, keys, scale, turned=k is None), softcap or np.inf)
        mask = _require_masks(match, v, largest)
        _require_sink(match, mask)
        match.note(mask)
        match.note(Scores(scale * _outer(match), softcap))

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value | None, v: ir.Value, turned: ir.Value | None
    ) -> ir.Value:
        """One node; matrices without heads become heads of their own."""
        width = rank(q) or 4
        if k is None:
            k = op.Transpose(turned, perm=[*range(width - 2), width - 1, width - 2])
        back = KEY_TURNS.get(_turn(match))
        key = op.Transpose(k, perm=back) if back is not None else k
        sink = match.values.get("sink")
        if sink is not None:
            return _with_sink(op, match, key, sink)
        mask = _full_rows(op, _mask(op, match), match.noted(Mask).shape, q)
        scores = match.noted(Scores)
        given = {"scale": scores.scale, "softcap": scores.softcap or None}
        if width == 4:
            return op.Attention(q, key, v, mask, **given)
        head = op.ints([1], "head")
        apart = [op.Unsqueeze(value, head) if value is not None else None for value in (q, key, v, mask)]
        return op.Squeeze(op.Attention(*apart, **given), head)


def _scale(match: Match) -> float:
    """Return the factor of the scores ahead of the masks; those behind them must be positive, too."""
    scale = 1.0
    for name in ("q", "k", "", "all"):
        found = [number(match.values.get("_".join(filter(None, (kind, name))))) for kind in ("scale", "divide")]
        for factor in found:
            wrong = factor is not None and factor <= 0
            match.require(not wrong, f"the scores are scaled by {factor}; Attention takes a positive scale")
        if name != "all":
            scale *= (found[0] or 1.0) / (found[1] or 1.0)
    return scale


def _outer(match: Match) -> float:
    """Return the factor of what the masks made of the scores."""
    return (number(match.values.get("scale_all")) or 1.0) / (number(match.values.get("divide_all")) or 1.0)


def _require_sink(match: Match, mask: Mask) -> None:
    """A sink has a place of its own behind the keys, on four axes, and takes its weight along."""
    sink = match.values.get("sink")
    match.require((sink is None) == ("cut" not in match.named), "the weights are cut, or one is left over", sink)
    if sink is None:
        return
    shape = dims(sink) or ()
    match.require(rank(match.values["q"]) == 4 and len(shape) == 4 and shape[-1] == 1, "more than one sink", sink)
    match.require(mask.shape, "a sink without a mask", sink)
    match.require(not number(match.values.get("cap")), "a sink beside soft-capped scores", sink)


def _with_sink(op: Builder, match: Match, key: ir.Value, sink: ir.Value) -> ir.Value:
    """A sink is one more key and one more value of zeros, whose score is all mask: it takes weight and adds nothing."""
    last = op.ints([0, 0, 0, 0, 0, 0, 1, 0], "one_more")
    mask = op.Expand(_mask(op, match), op.Shape(sink))
    keys, values = op.Pad(key, last), op.Pad(match.values["v"], last)
    wide = op.Concat(mask, sink, axis=-1)
    return op.Attention(match.values["q"], keys, values, wide, scale=match.noted(Scores).scale)


def _softcap(match: Match) -> float:
    """Return c of c · tanh(scores / c), 0 when there is none; scaling behind the cap has no place in the operator."""
    cap = number(match.values.get("cap"))
    if cap is None:
        return 0.0
    divided, factor = number(match.values.get("cap_divide")), number(match.values.get("cap_factor"))
    inner = divided if divided is not None else 1.0 / factor if factor else 0.0
    match.require(cap > 0 and abs(inner - cap) <= 1e-5 * cap, f"scores are divided by {inner} and multiplied by {cap}")
    outer = [match.values.get(name) for name in ("scale_all", "divide_all")]
    match.require(not any(value is not None for value in outer), "soft-capped scores are scaled once more")
    return cap


def _full_rows(op: Builder, mask: ir.Value | None, shape: tuple[Dim, ...], q: ir.Value) -> ir.Value | None:
    """Give the mask the rank of the scores, and a row for every query: runtimes want every row."""
    width = rank(q) or 4
    if mask is None:
        return None
    if len(shape) < width:
        mask = op.Unsqueeze(mask, op.ints(range(width - len(shape)), "leading"))
    if (1, *shape)[-2] != 1 or (dims(q) or ())[-2] == 1:
        return mask
    queries = op.Shape(q, start=width - 2, end=width - 1)
    return op.Expand(mask, op.Concat(op.ints([1] * (width - 2), "ones"), queries, op.ints([1], "one"), axis=0))


def _batch_of_keys(match: Match) -> int:
    """The axis that pairs keys with queries: the first, the second where torch's attention has the keys in front."""
    return 1 if KEY_TURNS.get(_turn(match)) == (1, 0, 2) else 0


def _require_heads(match: Match, q: ir.Value, keys: ir.Value, v: ir.Value) -> None:
    """As many heads of keys and values as of queries, or one of each for all."""
    heads, values = (dims(q) or ())[1], (dims(v) or ())[1]
    found = (dims(keys) or ())[2 if KEY_TURNS.get(_turn(match)) else 1]
    match.require(isinstance(heads, int), "the number of heads is not known", q)
    match.require(found in (heads, 1), f"queries have {heads} heads, keys have {found}", keys)
    match.require(found == values, f"keys have {found} heads, values have {values}", v)


def _steps(op: Ops, scores: Pat, step: int) -> Iterator[Pat]:
    """What may happen to the scores: masked ones are written over, or get a large negative number, or a bias is added.

    The second is a bias too, but told apart its number can be chosen anew.
    """
    fill, allowed, masked = scalar(name=f"fill_{step}"), Var(f"allowed_{step}"), Var(f"masked_{step}")
    zero = scalar(0.0, name=f"zero_{step}")
    yield op.Where(masked, fill, scores)  # torch's masked_fill
    yield op.Where(allowed, scores, fill)  # torch.where(causal_mask, ...)
    yield op.Add(scores, op.Where(allowed, zero, fill, _shared=True))  # transformers' eager_mask, SDPA's boolean mask
    yield op.Add(scores, op.Where(masked, fill, zero, _shared=True))
    yield op.Max(scores, scalar(name=f"floor_{step}"))  # XGLM; only masked scores lie that low
    yield op.Add(scores, Var(f"bias_{step}"))


def _require_masks(match: Match, v: ir.Value, largest: float) -> Mask:
    """Masks hide keys for good, and broadcast to [batch, heads, queries, keys]; return what they are together.

    Args:
        match: the attention.
        v: its values.
        largest: a bound of the scores ahead of the masks.
    """
    shape: tuple[Dim, ...] = ()
    parts: dict[str, ir.Value] = {}
    for step in STEPS:
        fill = number(match.values.get(f"fill_{step}"))
        match.require(fill is None or fill <= MASKED_BELOW, f"masked scores become {fill}, which keeps them a weight")
        floor = number(match.values.get(f"floor_{step}"))
        match.require(floor is None or floor <= MASKED_BELOW, f"scores are cut off at {floor}")
        for kind in ("bias", "masked", "allowed"):
            part = match.values.get(f"{kind}_{step}")
            if part is not None:
                match.require(dims(part) is not None, "the rank of the mask is not known", part)
                shape = _broadcast(shape, dims(part) or (1,))  # a number is one entry for all keys
                parts[f"{kind}_{step}"] = part
    match.require(len(shape) <= (rank(v) or 0), f"the mask has rank {len(shape)}, the heads have {rank(v)}")
    batch, leading = (dims(v) or ())[0], shape[0] if len(shape) == rank(v) else 1
    alike = leading in (1, batch) or None in (leading, batch)
    match.require(alike, f"the mask has the batch {leading}, queries and values have {batch}", v)
    keys = (dims(v) or ())[-2]
    match.require(not shape or shape[-1] != 1 or keys == 1, "the mask has one entry for all keys")
    match.require(None not in shape[-2:], "how many rows or keys the mask has is not known")
    origins = {name: origin_of_mask(part) for name, part in parts.items()}
    exact = any(origin.free is not None for origin in origins.values())
    mask = (_require_exact if exact else _require_order)(match, origins, shape)
    added = sum(magnitude(part).entry for name, part in parts.items() if "bias" in name and not origins[name].far)
    _require_reach(match, largest + 2 * added)
    return mask


def _require_reach(match: Match, largest: float) -> None:
    """Refuse where a score may outweigh the number that is written over others, since the operator can only add.

    Args:
        match: the attention.
        largest: a bound of the scores.
    """
    far = out_of_reach(_kind(match))
    for step in STEPS:
        over = match.values.get(f"zero_{step}") is None
        for name in (f"fill_{step}", f"floor_{step}") if over else ():
            below = number(match.values.get(name))
            if below is not None and below > -far:
                vanishes = _outer(match) * (-below - largest) > VANISHES
                match.require(vanishes, f"masked scores become {below:g}, which others may come near")


def _require_order(match: Match, origins: Mapping[str, MaskOrigin], shape: tuple[Dim, ...]) -> Mask:
    """Of several things that hide keys each must stay as far below the others as it is.

    A row of padding sees nothing where order hides the rest of its keys, and is shared among those that are hidden
    least. A number as far below as -1e30 swallows the score that it is added to, so it is kept; a nearer one that is
    written over a score becomes -1e30, and what else hides keys must be much nearer, or beyond that.

    Args:
        match: the attention.
        origins: of `bias_1`, `masked_1`, `allowed_1` and so on, from the product outwards.
        shape: of the mask.
    """
    kind, kept = _kind(match), False
    far = -out_of_reach(kind)
    fills = {name: number(match.values[f"fill_{name[-1]}"]) or 0.0 for name in origins if not name.startswith("bias")}
    over = {name for name in fills if match.values.get(f"zero_{name[-1]}") is None}
    for name, fill in fills.items():
        changed = _fill(fill, kind, added=name not in over) != fill
        same = {other for other in over if name in over and fills[other] == fill}
        rest = [
            size
            for other, origin in origins.items()
            if other not in {name, *same}
            for size in ((-fills[other],) if other in fills else origin.numbers)
        ]
        if not changed or not rest:
            continue
        if fill <= far:
            kept = True
            continue
        nearer = sum(size for size in rest if size <= -far)
        match.require(2 * nearer <= -fill, "scores that are written over are hidden otherwise too")
    return Mask(shape, kept=kept, lowest=kept)


def _kind(match: Match) -> np.dtype[Any]:
    """The type of the scores."""
    q = match.values["q"]
    return np.dtype(q.dtype.numpy() if q is not None and q.dtype is not None else np.float32)


def _require_exact(match: Match, origins: Mapping[str, MaskOrigin], shape: tuple[Dim, ...]) -> Mask:
    """What hides keys may hold anything: rows that see nothing have an answer too, and it must stay.

    What is added stays as it is. A score that is written over gets -1e30 instead of its own number, so nothing may be
    done to it afterwards, and nothing else may hide a key before. A row of -inf has no weights at all, and its answer
    is not a number; where these are guarded, they are zeros, as the operator's, and where a sink takes all.

    Args:
        match: the attention.
        origins: of `bias_1`, `masked_1`, `allowed_1` and so on, from the product outwards.
        shape: of the mask.
    """
    place = next(origin.free for origin in origins.values() if origin.free is not None)
    fills = {name: number(match.values[f"fill_{name[-1]}"]) for name in origins if not name.startswith("bias")}
    over = [name for name in fills if match.values.get(f"zero_{name[-1]}") is None]
    floored = any(match.values.get(f"floor_{step}") is not None for step in STEPS)
    match.require(not floored, "scores are cut off, and rows may see nothing", place)
    hiding = [name for name, origin in origins.items() if name in fills or origin.free is not None or origin.far]
    rest = [name for name in hiding if name not in over]
    numbers = {fills[name] for name in over}
    last = list(origins)[len(origins) - len(over) :] == over
    fits = not over or (last and len(numbers) == 1 and (not rest or numbers == {-np.inf}))
    match.require(fits, "scores that are written over are hidden otherwise too", place)
    defined = "guarded" in match.named or match.values.get("sink") is not None
    lowest = [name for name in rest if _may_be_lowest(origins[name], fills.get(name))]
    endless = -np.inf in fills.values() or len(lowest) > 1 or any(map(_may_be_endless, origins.values()))
    return Mask(shape, exact=True, lowest=bool(lowest), undefined=endless and not defined)


def _may_be_lowest(origin: MaskOrigin, fill: float | None) -> bool:
    """Tell whether a part of the mask may add finfo.min: floats that are given, a number beyond what int64 multiplies.

    Args:
        origin: what the part is made of.
        fill: what it adds, where that is one number.
    """
    given = origin.free is not None and origin.free.dtype in FLOATS
    return given or any(size > LARGEST_NEAR for size in (*origin.numbers, abs(fill or 0.0)))


def _may_be_endless(origin: MaskOrigin) -> bool:
    """Tell whether a part of the mask may add -inf: it is written so, or given, or twice finfo.min."""
    given = origin.free is not None and origin.free.dtype in FLOATS
    return origin.endless or given or (origin.reckoned and any(size > LARGEST_NEAR for size in origin.numbers))


def _broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of a + b; both are known to be added somewhere already."""
    width = max(len(a), len(b))
    left, right = ((1,) * (width - len(shape)) + shape for shape in (a, b))
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


def _mask(op: Builder, match: Match) -> ir.Value | None:
    """Do to zero what is done to the scores: the sum is the same where no score is written over.

    A score that is written over gets a weight of zero in both ways, or, in a row of nothing else, equal weights.
    """
    values, kind, mask = match.values, _kind(match), match.noted(Mask)
    total: ir.Value | None = None
    for step in STEPS:
        part = values.get(f"bias_{step}")
        written = number(values.get(f"fill_{step}"))
        if written is not None:
            added = values.get(f"zero_{step}") is not None
            kept = mask.kept or (added and mask.exact)
            below = written if kept else _fill(written, kind, added=added)
            fill = op.constant(np.array(below, dtype=kind), f"fill_{step}")
            zero = op.constant(np.zeros((), dtype=kind), f"zero_{step}")
            seen = zero if added or total is None else total
            masked, allowed = values.get(f"masked_{step}"), values.get(f"allowed_{step}")
            part = op.Where(masked, fill, seen) if masked is not None else op.Where(allowed, seen, fill)
            total = total if added else None  # what is written over holds the earlier steps inside
        if part is not None:
            total = op.Add(total, part) if total is not None else part
    outer = _outer(match)
    if total is not None and outer != 1.0:
        total = op.Mul(total, op.constant(np.array(outer, dtype=kind), "scale_all"))
    if total is not None and mask.lowest:
        lowest = op.constant(np.array(np.finfo(kind).min, dtype=kind), "lowest")
        above = op.constant(np.array(ABOVE_LOWEST * np.finfo(kind).min, dtype=kind), "above_lowest")
        total = op.Where(op.Equal(total, lowest), above, total)
    if total is not None and mask.undefined:
        largest = op.ReduceMax(total, op.ints([-1], "keys"), keepdims=1)
        endless = op.constant(np.array(-np.inf, dtype=kind), "endless")
        nan = op.constant(np.array(np.nan, dtype=kind), "nan")
        total = op.Where(op.Equal(largest, endless), nan, total)
    return total


def _fill(written: float, kind: np.dtype[Any], *, added: bool) -> float:
    """What to add to a masked score; -inf stays, since a row of it has no weights at all."""
    far = -out_of_reach(kind)
    return written if written == -np.inf or (added and written > far) else far


def _turn(match: Match) -> tuple[int, ...]:
    """The permutation that puts the size of a head before the keys; empty when they are stored so."""
    turn = match.named.get("turn")
    return tuple(attribute(turn, "perm")) if turn is not None else ()


def _ints(*allowed: int) -> Pat:
    """One whole number of some."""
    return Const(lambda value: integers(value) in {(number,) for number in allowed}, f"one of {allowed}")


def _turns_keys(perm: tuple[int, ...]) -> bool:
    """A permutation that puts the size of a head before the keys."""
    return tuple(perm or ()) in KEY_TURNS


def _last(axis: int) -> bool:
    """The last of three or four axes; the guard knows how many there are."""
    return axis in (-1, 2, 3)
