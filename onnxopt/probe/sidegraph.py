"""Ask a side graph what it computes: cut out what a mask, a table or positions are made of, and run it on probes.

Structure says where to look; behaviour decides. A side graph hangs on few inputs of the model (the padding mask, the
sizes of ids and cache), so it can be run alone, at any size, in microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from onnxopt.graph import ancestors, dims, has_subgraph, is_constant, known_dims, number, rank, region
from onnxopt.graph.bodies import COMPUTED
from onnxopt.graph.cache import CONTEXT_KEY, PAST, SEQUENCE, TOTAL, complete
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import RegionRunner
from onnxopt.sizes.derive import sizes_mentioned
from onnxopt.spec import Array

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
LARGEST = 200  # nodes of a side graph
LONGEST_PROBE = 2050  # [2050, 2050] int64 positions take 32 MiB
LARGEST_POSITION = 2**24  # beyond, a number is no position but finfo.min or the end of a Slice
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Clip", "Min", "Max", "Trilu")
SLOPE_ERROR = 1e-5  # of the largest bias: float32 products of a slope and a place
# What makes a size of another one: a number of blocks, what is left over, the shorter of two
SIZE_STEPS = frozenset(
    {"Div", "Mod", "Min", "Max", "Clip", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Slice"}
)
LONGEST_ROW = 1026
MASKED_BELOW = -1e4  # additive masks use -10000 (BERT of 2018), finfo.min or -inf
LONGEST_USUAL = 50
# What makes activations: ordinary numbers, whatever goes in
ACTIVATIONS = frozenset(
    {"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "LayerNormalization", "MatMul", "RMSNormalization"}
    | {"Sigmoid", "Softmax", "Tanh"}
)
ARITHMETIC = frozenset({"Add", "CumSum", "Div", "Exp", "Mul", "Pow", "ReduceSum", "Reciprocal", "Sub", "Sum"})
SOFT = (0.0, 0.0, 1.0, 0.25, 0.5, 2.0, -1.0)  # what a mask of floats may hold
ODD = (0, 0, 1, 2, -1, 3)  # what one of integers may hold, where nobody has said that it holds 0 and 1
FREE_KEY = "onnxopt.free_inputs"  # in a graph's meta: names of inputs whose masks need not be of 0 and 1
PROBES = ((1, 1, 0), (2, 5, 0), (3, 8, 0), (2, 1, 6), (3, 4, 7), (4, 37, 0), (2, 9, 41))  # batch, new tokens, past


class SideGraph:
    """What some values are computed from.

    Args:
        model: it lies in.
        values: computed by the side graph.
        stop: values that count as inputs of it although something computes them.

    Attributes:
        leaves: non-constant inputs of the side graph.
        read: those whose numbers matter; of the others only sizes are read.
        nodes: in topological order.
    """

    def __init__(self, model: ir.Model, values: tuple[ir.Value, ...], stop: tuple[ir.Value, ...] = ()) -> None:
        nodes: dict[ir.Node, None] = {}
        read: dict[ir.Value, None] = {}
        leaves: dict[ir.Value, None] = {}
        for value in values:
            order, ends = ancestors(value, stop=stop)
            nodes.update(dict.fromkeys(order))
            leaves.update(dict.fromkeys(ends))
            read.update(dict.fromkeys(ancestors(value, stop=stop, through_shape=False)[1]))
        self.nodes = tuple(nodes)
        self.leaves = tuple(leaves)
        self.read = tuple(read)
        self._model = model
        self._values = values
        self._runner: RegionRunner | None = None

    def run(self, sizes: Mapping[str, int], given: Mapping[ir.Value, Array]) -> list[Array]:
        """Return the values at some sizes of the axes.

        Args:
            sizes: of every axis that a leaf has.
            given: the numbers of the leaves that matter; others become ones.

        Raises:
            ProbeError: it does not run so, or a size is not known.
        """
        if self._runner is None:
            self._runner = RegionRunner([region(self.nodes, self._values)], self._model)
        feeds = {}
        for leaf in self.leaves:
            kind = (leaf.dtype or ir.DataType.INT64).numpy()
            feeds[leaf] = given[leaf].astype(kind) if leaf in given else np.ones(_shape(leaf, sizes), kind)
        return self._runner.run(feeds)


def _shape(leaf: ir.Value, sizes: Mapping[str, int]) -> list[int]:
    found = known_dims(leaf)
    if found is None or any(isinstance(dim, str) and dim not in sizes for dim in found):
        raise ProbeError(f"the sizes of {leaf.name} are not known")
    return [sizes[dim] if isinstance(dim, str) else dim for dim in found]


@dataclass(frozen=True)
class Probe:
    """One padding mask to ask about.

    Attributes:
        sizes: of the axes batch, sequence, past_sequence and total_sequence.
        kind: where the padding lies, for messages.
        mask: int64 [batch, total_sequence]; floats where others than 0 and 1 are asked about.
    """

    sizes: Mapping[str, int]
    kind: str
    mask: Array

    @property
    def past(self) -> int:
        """Positions that were seen before."""
        return self.sizes[PAST]

    def __str__(self) -> str:
        past = f", past {self.past}" if self.past else ""
        return f"batch {self.sizes['batch']}, sequence {self.sizes[SEQUENCE]}{past}, {self.kind}"


@lru_cache(maxsize=2)
def probes(*, with_past: bool) -> tuple[Probe, ...]:
    """Return masks of several sizes without padding, with padding right, left and in holes, and with an empty row."""
    return tuple(
        probe for batch, new, past in PROBES if with_past or not past for probe in _probes_of_size(batch, new, past)
    )


def long_probe(length: int, *, past: int = 0) -> Probe:
    """Return one row without padding, long enough to show a window or a stored table."""
    sizes = complete({"batch": 1, SEQUENCE: length - past, PAST: past})
    return Probe(sizes, "no padding", np.ones((1, length), np.int64))


def _probes_of_size(batch: int, new: int, past: int) -> Iterator[Probe]:
    sizes = complete({"batch": batch, SEQUENCE: new, PAST: past})
    total = sizes[TOTAL]
    generator = np.random.default_rng(total)
    full = np.ones((batch, total), np.int64)
    right, left, holes, empty = full.copy(), full.copy(), full.copy(), full.copy()
    for row in range(batch):
        pads = (row * total) // (batch + 1)
        right[row, total - pads :] = 0
        left[row, :pads] = 0
        holes[row] = generator.integers(0, 2, total)
        holes[row, row % total] = 1
    empty[-1] = 0
    kinds = (
        ("no padding", full),
        ("right padding", right),
        ("left padding", left),
        ("holes", holes),
        ("an empty row", empty),
    )
    for kind, mask in kinds:
        yield Probe(sizes, kind, mask)


def telling_lengths(nodes: tuple[ir.Node, ...]) -> list[int]:
    """Return the lengths, longer than the usual probes, from which on a window or a stored table would show.

    A window of 64 keys looks like no window at 37. Its size is a constant ahead of a comparison, or a number at which
    the sizes of the graph themselves change. What is only measured, an embedding behind a Shape say, does not count.
    """
    lengths = {length + 2 for length in sizes_mentioned(value for node in nodes for value in node.outputs)}
    for node in nodes:
        tables = [value for value in node.inputs if is_constant(value) and (rank(value) or 0) > 1]
        lengths.update(dim for table in tables for dim in dims(table) or () if isinstance(dim, int))
        if node.op_type in COMPARISONS:
            ahead = [node]
            for value in node.inputs:
                if value is not None:
                    ahead.extend(ancestors(value, through_shape=False)[0])
            found = [number(value) for member in ahead for value in member.inputs]
            lengths.update(int(abs(size)) + 2 for size in found if size is not None and abs(size) < LARGEST_POSITION)
    return sorted(length for length in lengths if length > LONGEST_USUAL)


def telling_size(nodes: Iterable[ir.Node]) -> int:
    """Return a size beyond the whole numbers that sizes are divided by, cut at or compared with; 0 without any.

    Only those up to `LONGEST_ROW` count: a longer row would cost more than it tells.
    """
    largest = 0
    for node in nodes:
        if node.op_type not in SIZE_STEPS:
            continue
        for value in node.inputs:
            found = number(value)
            if found is not None and found.is_integer() and abs(found) <= LONGEST_ROW:
                largest = max(largest, abs(int(found)))
    return largest + 3 if largest > 1 else 0


@dataclass(frozen=True)
class MaskMeaning:
    """What a mask of attention allows, besides real keys only.

    Attributes:
        source: the padding mask [batch, total_sequence] of the model.
        causal: a query sees itself and what came before.
        window: how many of these, itself included; 0 for all.
        slopes: for each head, what a key gets for every place that it stands further on (ALiBi); empty for nothing.
        columns: the places are columns, padding among them; else the real tokens of a row are counted.
        fill: the number that hidden keys get added, where it is always the same; None where it is not, or where the
            source may hold anything and a row that sees nothing has no answer by it.
        distance: how far hidden keys lie below those that are seen, at least; infinite for flags and what is as far.
    """

    source: ir.Value
    causal: bool
    window: int = 0
    slopes: tuple[float, ...] = ()
    columns: bool = False
    fill: float | None = None
    distance: float = math.inf

    def allowed(self, probe: Probe) -> Array:
        """Return bool [batch, 1, new tokens, all tokens]."""
        batch, total = probe.mask.shape
        queries = np.arange(probe.past, total)[:, None]
        keys = np.arange(total)[None]
        seen = np.ones((total - probe.past, total), bool)
        if self.causal:
            seen &= keys <= queries
        if self.window:
            seen &= keys > queries - self.window
        return np.broadcast_to((probe.mask != 0)[:, None, None, :] & seen, (batch, 1, total - probe.past, total))


@dataclass(frozen=True)
class MaskOrigin:
    """What a mask is made of.

    Attributes:
        free: an input that may hold anything (see `is_contract`).
        numbers: magnitudes of the numbers among it that are so large that they hide keys, each once.
        reckoned: numbers are added or multiplied on the way, so that others may come out.
    """

    free: ir.Value | None
    numbers: tuple[float, ...]
    reckoned: bool = False

    @property
    def far(self) -> bool:
        """Whether it hides keys."""
        return bool(self.numbers)

    @property
    def endless(self) -> bool:
        """Whether it hides them by an infinite number."""
        return math.inf in self.numbers


def origin_of_mask(mask: ir.Value) -> MaskOrigin:
    """Tell what a mask, or another part of the scores, is made of; activations count as neither free nor far."""
    free: ir.Value | None = None
    sizes: set[float] = set()
    seen: set[ir.Value] = set()
    reckoned = False
    stack = [mask]
    while stack:
        value = stack.pop()
        node = value.producer()
        if value in seen:
            continue
        seen.add(value)
        if is_constant(value):
            found = number(value) if value.dtype in FLOAT_TYPES else None
            sizes.add(abs(found or 0.0))
        elif node is None or has_subgraph(node):
            free = free if node is None and is_contract(value) else value
        elif node.op_type not in (*ACTIVATIONS, "Shape", "Size"):
            reckoned = reckoned or (node.op_type in ARITHMETIC and value.dtype in FLOAT_TYPES)
            stack.extend(parent for parent in node.inputs if parent is not None)
    return MaskOrigin(free, tuple(sorted(size for size in sizes if size >= -MASKED_BELOW)), reckoned)


def is_contract(value: ir.Value) -> bool:
    """Tell whether an input holds 0 and 1 where it is a mask, and leaves every row of a text a key.

    That is so of integers of two axes at most, and of flags [batch, keys], of a checkpoint: its graph is our export,
    and tokenizers write the mask. A decoder with a cache counts positions by its mask, which is part of the contract of
    the cache. Of any other file nobody has said it: ONNX Runtime takes 2 and -1 and rows of zeros, which
    `(1 - mask) * -10000` answers in a way of its own, and so must what is made of it, unless its user promises 0 and 1.
    """
    shape = dims(value)
    graph = value.graph
    if shape is None or value.dtype is None or value.dtype in FLOAT_TYPES or COMPUTED in value.meta:
        return False
    if isinstance(graph, ir.Graph) and value.name in graph.meta.get(FREE_KEY, ()):
        return False
    flags = value.dtype == ir.DataType.BOOL
    return len(shape) == len(set(shape)) == 2 if flags else len(shape) <= 2


def meaning_of_mask(model: ir.Model, mask: ir.Value) -> MaskMeaning | str:
    """Return what a mask allows, or why that is not known.

    Args:
        model: it lies in.
        mask: bool or additive, broadcastable to [batch, heads, new tokens, all tokens].
    """
    cached = mask.meta.get("onnxopt.meaning")
    # a copy of a model takes the meaning along, but not the input that it speaks of
    if cached is None or (isinstance(cached, MaskMeaning) and cached.source not in model.graph.inputs):
        cached = mask.meta["onnxopt.meaning"] = _meaning_of_mask(model, mask)
    return cached


def _source_of_mask(side: SideGraph) -> ir.Value | str:
    """Return the input [batch, keys] that a mask hangs on, or why it hangs on none."""
    if len(side.nodes) > LARGEST:
        return f"more than {LARGEST} nodes compute the mask"
    if len(side.read) != 1 or not side.read[0].is_graph_input():
        return f"the mask depends on {', '.join(leaf.name or '' for leaf in side.read) or 'no input'}"
    source = side.read[0]
    if COMPUTED in source.meta:
        return f"{source.name} is computed outside of the branch or loop"
    shape = known_dims(source) or ()
    if len(shape) != 2 or not all(isinstance(dim, str) for dim in shape):
        return f"{source.name} is not [batch, keys]"
    return source


def _meaning_of_mask(model: ir.Model, mask: ir.Value) -> MaskMeaning | str:
    side = SideGraph(model, (mask,))
    source = _source_of_mask(side)
    if isinstance(source, str):
        return source
    with_past = (known_dims(source) or ())[1] == TOTAL
    lengths = _lengths(model, mask)
    if lengths and lengths[-1] > LONGEST_PROBE:
        return f"the mask compares with a number or a table that asks for a probe of {lengths[-1]} keys"
    try:
        guess = _guess(side, source, max([*lengths, LONGEST_USUAL]))
        if isinstance(guess, str):
            return guess
        distance, fills = math.inf, set[float]()
        for probe in (*probes(with_past=with_past), *_long_probes(lengths, with_past=with_past)):
            found = side.run(_sizes(source, probe), {source: probe.mask})[0]
            reason = _differs(found, probe, guess)
            if reason and guess.slopes and not guess.columns:
                guess = replace(guess, columns=True)
                reason = _differs(found, probe, guess)
            if reason:
                return f"{reason} ({probe})"
            distance = min(distance, distance_of(found, guess.allowed(probe), fills))
        guess = replace(guess, distance=distance)
        if not is_contract(source):
            return _held_to_all_numbers(side, source, guess)
        if math.isfinite(distance) and len(fills) == 1:
            return replace(guess, fill=fills.pop())
    except (ProbeError, KeyError, ValueError) as error:
        return f"the mask cannot be probed: {error}"
    return guess


def distance_of(mask: Array, allowed: Array, fills: set[float] | None = None) -> float:
    """Return how far hidden keys lie below seen ones at least, in rows that see some; infinite for flags.

    Args:
        mask: that broadcasts to [batch, heads, new tokens, all tokens].
        allowed: bool [batch, 1 or heads, new tokens, all tokens].
        fills: is told the least and the largest number that hidden keys get.
    """
    heads = mask.shape[1] if mask.ndim == 4 else 1
    seen = np.broadcast_to(allowed, (len(allowed), max(heads, allowed.shape[1]), *allowed.shape[2:]))
    rows = seen.any(axis=-1) & ~seen.all(axis=-1)
    if mask.dtype == np.bool_ or not rows.any():
        return math.inf
    seen, full = seen[rows], np.broadcast_to(mask, seen.shape)[rows].astype(np.float64)
    if fills is not None:
        fills.update((float(full[~seen].min()), float(full[~seen].max())))
    least = np.where(seen, full, np.inf).min(axis=-1)
    return float((least - np.where(seen, -np.inf, full).max(axis=-1)).min())


def _lengths(model: ir.Model, value: ir.Value) -> list[int]:
    """Return the lengths at which a side graph may do something else, up to what the model takes."""
    longest = int(model.graph.metadata_props.get(CONTEXT_KEY, "0")) or LARGEST_POSITION
    return [length for length in telling_lengths(tuple(ancestors(value, through_shape=False)[0])) if length <= longest]


def _long_probes(lengths: Iterable[int], *, with_past: bool) -> list[Probe]:
    """Return a row of each length, in one piece and as the last three of its positions behind the others."""
    return [long_probe(length, past=past) for length in lengths for past in ((0, length - 3) if with_past else (0,))]


def _held_to_all_numbers(side: SideGraph, source: ir.Value, guess: MaskMeaning) -> MaskMeaning | str:
    """Return the meaning where it holds for numbers of any kind, and for rows that see nothing; else why it does not.

    With nothing to see the operator gives zeros, as it does where all keys get -inf or finfo.min. Where they get
    another number, always the same, that is part of the meaning.
    """
    floats = source.dtype in FLOAT_TYPES
    advice = "" if floats else f"; --value {source.name}=0,1 excludes them"
    pool: tuple[float, ...] = SOFT if floats else (0, 1) if source.dtype == ir.DataType.BOOL else ODD
    fills: set[float] = set()
    for index, (batch, new, past) in enumerate(size for size in PROBES if not size[2]):
        sizes = complete({"batch": batch, SEQUENCE: new, PAST: past})
        mask = np.random.default_rng(index).choice(pool, (batch, sizes[TOTAL]))
        mask[-1] = 0 if index % 2 else mask[-1]
        probe = Probe(sizes, f"{'floats' if floats else 'integers'} that are not 0 and 1", mask)
        found = side.run(_sizes(source, probe), {source: mask})[0]
        allowed = guess.allowed(probe)
        full = np.broadcast_to(found, (len(allowed), found.shape[1] if found.ndim == 4 else 1, *allowed.shape[2:]))
        wanted = np.broadcast_to(allowed, full.shape)
        below = ~full if full.dtype == np.bool_ else full <= MASKED_BELOW
        if not np.array_equal(below, ~wanted):
            return f"not a padding mask of {'floats' if floats else 'any numbers'} ({probe}{advice})"
        reason = _differs(found, probe, guess)
        if reason:
            return f"{reason} ({probe}{advice})"
        if full.dtype != np.bool_:
            hidden = full[~wanted]
            fills.update(np.where(hidden > np.finfo(full.dtype).min, hidden, -np.inf).tolist())
    if len(fills) > 1:
        return "hidden keys get several numbers"
    return guess if fills <= {-np.inf} else replace(guess, fill=fills.pop())


def _sizes(source: ir.Value, probe: Probe) -> dict[str, int]:
    """Return sizes under the names that the mask's own axes have."""
    names = known_dims(source) or ()
    return {**probe.sizes, **{str(name): size for name, size in zip(names, probe.mask.shape, strict=True)}}


def _guess(side: SideGraph, source: ir.Value, length: int) -> MaskMeaning | str:
    """Read causality and window off one long row without padding; the probes then hold the guess to it."""
    probe = long_probe(length)
    found = side.run(_sizes(source, probe), {source: probe.mask})[0]
    heads = found.shape[1] if found.ndim == 4 else 1
    try:
        every = np.broadcast_to(found, (1, heads, length, length))[0]
    except ValueError:
        return f"the shape of the mask is {list(found.shape)} for {length} tokens"
    full = every[0]
    seen = full if full.dtype == np.bool_ else full > MASKED_BELOW
    causal = bool(seen[0, 0]) and not seen[0, 1:].any()
    window = int(seen[-1].sum()) if causal else length
    slopes = () if full.dtype == np.bool_ else _slopes(every[:, -1], seen[-1])
    return MaskMeaning(source, causal, 0 if window == length else window, slopes)


def _slopes(rows: Array, seen: Array) -> tuple[float, ...]:
    """Return what a key further on gets more, from the last query of every head [heads, keys]; empty for nothing."""
    keys = np.flatnonzero(seen)
    if len(keys) < 2 or not rows[:, keys].any():
        return ()
    spread = (rows[:, keys[-1]].astype(np.float64) - rows[:, keys[0]]) / (keys[-1] - keys[0])
    return tuple(float(slope) for slope in spread) if spread.any() else ()


def _differs(found: Array, probe: Probe, guess: MaskMeaning) -> str:
    """Return how a mask differs from what it is held to be, an empty string when it does not."""
    wanted = guess.allowed(probe)
    kind = "not a padding mask" if not guess.causal else "not a causal mask"
    heads = found.shape[1] if found.ndim == 4 else 1  # T5 adds zeros for each head to what it hides
    wanted = np.broadcast_to(wanted, (len(wanted), heads, *wanted.shape[2:]))
    try:
        full = np.broadcast_to(found, wanted.shape)
    except ValueError:
        return f"{kind}: its shape is {list(found.shape)}"
    rows = wanted.any(axis=-1, keepdims=True) & np.ones_like(wanted)  # a row that may see nothing has no answer
    if full.dtype == np.bool_:
        return "" if np.array_equal(full[rows], wanted[rows]) else f"{kind}: it allows other keys"
    if guess.slopes:
        if not _follows(full, wanted, probe, guess):
            return f"{kind}: what it adds to allowed keys does not grow evenly with their place"
    elif np.any(full[wanted] != 0):
        return f"{kind}: it adds something to allowed keys"
    return "" if np.all(full[~wanted & rows] <= MASKED_BELOW) else f"{kind}: masked keys keep a weight"


def _follows(full: Array, allowed: Array, probe: Probe, guess: MaskMeaning) -> bool:
    """Tell whether allowed keys of a query differ by their places times the slope; softmax sees no more than that."""
    places = np.arange(probe.mask.shape[1])[None] if guess.columns else np.cumsum(probe.mask != 0, axis=1) - 1
    grown = np.array(guess.slopes)[None, :, None, None] * places[:, None, None, :]
    rest = np.where(allowed, full - grown, np.nan)
    some = allowed.any(axis=-1)
    spread = np.nanmax(rest[some], axis=-1) - np.nanmin(rest[some], axis=-1)
    return bool(np.all(spread <= SLOPE_ERROR * max(1.0, float(np.abs(grown).max()))))


def counts_positions(model: ir.Model, positions: ir.Value) -> ir.Value | None:
    """Return the padding mask in which positions are counted, None when they are something else.

    Args:
        model: it lies in.
        positions: [batch, sequence]; the position of a real token is how many real ones came before it.
    """
    side = SideGraph(model, (positions,))
    if len(side.nodes) > LARGEST or len(side.read) != 1 or not side.read[0].is_graph_input():
        return None
    source = side.read[0]
    if COMPUTED in source.meta:
        return None
    lengths = _lengths(model, positions)
    if (known_dims(source) or ())[1:] != (TOTAL,) or (lengths and lengths[-1] > LONGEST_PROBE):
        return None
    try:
        for probe in (*probes(with_past=True), *_long_probes(lengths, with_past=True)):
            found = side.run(_sizes(source, probe), {source: probe.mask})[0]
            wanted = (np.cumsum(probe.mask, axis=1) - 1)[:, probe.past :]
            real = probe.mask[:, probe.past :] != 0
            if found.shape != wanted.shape or not np.array_equal(found[real], wanted[real]):
                return None
    except ProbeError:
        return None
    return source
