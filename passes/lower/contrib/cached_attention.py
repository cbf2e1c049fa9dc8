"""Lower a decoder's attentions to GroupQueryAttention, with rotary embedding and cache inside.

Before::

    input_ids [a b · ·], attention_mask [1 1 0 0] ─ … ─ RotaryEmbedding ─ Attention(mask, past) ─ y, present

After::

    input_ids ─ GatherElements(real tokens first) ─ … ─ GroupQueryAttention(past, lengths, cos, sin) ─ y, present

Meets: decoders after fuse-cache whose masks are causal, with or without a window, padded in any way; with ALiBi's bias;
    decoders of encoder-decoders, whose rows have no padding, with any bias (T5).
Numerics: reassociated. The kernel wants each row's real tokens in front, as right padding leaves them. So rows are
    packed: ids and positions are gathered by the mask, and what leaves by position is gathered back. The cache stays
    packed; graph and mask agree about it from the first token on. A token's place in the cache is then its position,
    which is what the kernel's own rotary embedding counts; tables that are no function of the position, or positions
    that are not counted in the mask, keep RotaryEmbedding outside. A window counts the real tokens of a row, where the
    mask counts places: they differ for a row with padding between its tokens that is longer than the window. The same
    holds for ALiBi where it counts columns (MPT).
Source: ONNX Runtime contrib operator GroupQueryAttention: seqlens_k is the length of a row less one; new tokens behind
    a past, more than one at a time, are for a batch of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, ancestors, attribute, dims, is_constant, is_op, remove_dead
from onnxopt.graph.cache import (
    COLUMNS_KEY,
    CONTEXT_KEY,
    ENCODED,
    LAYOUT_KEY,
    PACKED,
    PAST,
    SEQUENCE,
    TOTAL,
    complete_all,
    keeps_packed,
)
from onnxopt.passes.lower.contrib.packing import Lengths, Packing
from onnxopt.passes.words.layout import HEADS_FIRST, takes_last
from onnxopt.passes.words.scores import hides_for_good
from onnxopt.probe.crossing import telling_lengths_of_tables
from onnxopt.probe.program import ProbeError
from onnxopt.probe.sidegraph import (
    MASKED_BELOW,
    MaskMeaning,
    SideGraph,
    counts_positions,
    distance_of,
    meaning_of_mask,
)
from onnxopt.rewrite import Builder, Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

BIAS_INPUT = 10  # of the kernel: what is added to the scores
PLAIN_PROBES = ((2, 1, 0), (2, 5, 0), (1, 1, 7), (1, 3, 40), (1, 150, 0))  # batch, new tokens, past
HEAD_SIZE_MULTIPLE = 8
ANGLES_MULTIPLE = 8  # the kernel's rotary embedding takes tables of this many angles, or a multiple
LARGEST_TABLE_BYTES = 2**28
ROUNDING = 2.0**-22  # the runtime's cosine of one angle depends on its place among others by 2**-24
# Batch and length at which a table must hold for positions in any order, and below which these are. It must also hold
# for positions in order up to each length that may be a crossing: a table may depend on the largest one (longrope).
CHECKED_POSITIONS = (((3, 11), 2**31), ((1, 64), 2**31), ((2, 9), 16), ((1, 1), 1))


_Tables = tuple[ir.Value, ir.Value, int]


@dataclass(frozen=True)
class _Rotary:
    """A rotary embedding that the kernel can do itself.

    Attributes:
        values: cosines and sines, float32 [positions, angles] each.
        interleaved: pairs lie side by side.
    """

    values: list[ir.Value]
    interleaved: int


@dataclass(frozen=True)
class _Block:
    """One attention that can be lowered.

    Attributes:
        node: the Attention.
        meaning: of its mask.
        query: [batch, heads, sequence, size], before a rotary embedding that goes inside.
        key: likewise.
        tables: cosines, sines [batch, sequence, angles] and whether pairs lie side by side; None without an embedding.
    """

    node: ir.Node
    meaning: MaskMeaning
    query: ir.Value
    key: ir.Value
    tables: _Tables | None


@register
class LowerCachedAttention(Pass):
    """Attention(q, k, v, causal mask, past)  →  com.microsoft.GroupQueryAttention(q, k, v, past, lengths)."""

    name = "lower-cached-attention"
    min_opset = 18
    numerics = Reassociated(rtol=1e-4, atol=1e-5)
    touches_padding = True

    def run(self, model: ir.Model) -> int:
        """Lower every attention with a cache, or none: the layout of the cache is one for all. Return how many."""
        nodes = [node for node in model.graph if is_op(node, "Attention") and len(node.inputs) > 4]
        mask = next((value for value in model.graph.inputs if (dims(value) or ()) == ("batch", TOTAL)), None)
        if not nodes or keeps_packed(model):
            return 0
        if mask is None:
            return self._without_padding(model, nodes)
        blocks = [_block(model, node, mask) for node in nodes]
        for node, block in zip(nodes, blocks, strict=True):
            if isinstance(block, str):
                self.refuse(block, node)
        positions = _positions(model, mask)
        found = [block for block in blocks if isinstance(block, _Block)]
        if len(found) < len(nodes):
            return 0
        other = _read_elsewhere(mask, positions, nodes)
        if other is not None:
            self.refuse("the padding mask reaches something else than positions and masks of attentions", other)
            return 0
        ids = next((value for value in model.graph.inputs if dims(value) == ("batch", SEQUENCE)), None)
        if ids is None:
            return 0
        op = Builder(model, "packing", self.name)
        packing = Packing(op, ids, mask)
        every = dict.fromkeys(block.tables for block in found)
        rotary = {tables: _rotary(op, tables, found, positions) for tables in every}
        replaced: list[tuple[ir.Value, ir.Value]] = []
        biases = {block.meaning.slopes: _alibi(op, block.meaning.slopes, packing, ids) for block in found}
        for block in found:
            made = _attend(op, block, packing, rotary[block.tables], biases[block.meaning.slopes])
            replaced += zip(block.node.outputs, made, strict=True)
        _pack_rows(model, op, packing, positions)
        replaced += _unpack_rows(model, packing)
        _insert(model, op, replaced)
        model.graph.metadata_props[LAYOUT_KEY] = PACKED
        if any(block.meaning.columns for block in found):
            model.graph.metadata_props[COLUMNS_KEY] = "1"
        return len(found)

    def _without_padding(self, model: ir.Model, nodes: Sequence[ir.Node]) -> int:
        """Lower the decoder of an encoder-decoder: its rows begin together, so a row is as long as its cache."""
        ids = next((value for value in model.graph.inputs if dims(value) == ("batch", SEQUENCE)), None)
        past = next((node.inputs[4] for node in nodes), None)
        if ids is None or past is None or (dims(past) or ())[2] != PAST:
            return 0
        blocks = []
        for node in nodes:
            reason = _unfit(node)
            bias = reason or _plain_bias(model, node)
            if isinstance(bias, str):
                self.refuse(bias, node)
                return 0
            blocks.append((_Block(node, MaskMeaning(ids, causal=True), *_queries_and_keys(node), None), bias))
        op = Builder(model, "lengths", self.name)
        lengths = Lengths(op, ids, past)
        replaced: list[tuple[ir.Value, ir.Value]] = []
        for block, bias in blocks:
            made = _attend(op, block, lengths, None, bias)
            replaced += zip(block.node.outputs, made, strict=True)
        _insert(model, op, replaced)
        return len(blocks)


def _block(model: ir.Model, node: ir.Node, mask: ir.Value) -> _Block | str:
    """Return an attention with what the kernel needs to know of it, or why the kernel cannot do it."""
    reason = _unfit(node)
    if reason:
        return reason
    (query, key), bias = _queries_and_keys(node), node.inputs[3]
    assert bias is not None  # noqa: S101  # for the type checker; the line above looked
    meaning = meaning_of_mask(model, bias)
    if isinstance(meaning, str):
        return meaning
    if not meaning.causal or meaning.source is not mask:
        return "the mask is not causal"
    if not hides_for_good(node, meaning.distance):
        return f"hidden keys get {-meaning.distance:g}, which scores may come near"
    if meaning.slopes and len(meaning.slopes) not in (1, (dims(query) or ())[1]):
        return f"the mask has {len(meaning.slopes)} heads"
    turns = [one.producer() for one in (query, key)]
    turned = [turn for turn in turns if turn is not None and is_op(turn, "RotaryEmbedding") and len(turn.inputs) == 3]
    tables = {(turn.inputs[1], turn.inputs[2], int(attribute(turn, "interleaved") or 0)) for turn in turned}
    if len(turned) == 2 and len(tables) == 1:
        cos, sin, interleaved = tables.pop()
        if cos is not None and sin is not None:
            before = [turn.inputs[0] for turn in turned]
            if before[0] is not None and before[1] is not None:
                return _Block(node, meaning, before[0], before[1], (cos, sin, interleaved))
    return _Block(node, meaning, query, key, None)


def _queries_and_keys(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    query, key = node.inputs[:2]
    assert query is not None and key is not None  # noqa: S101  # for the type checker; `_unfit` looked
    return query, key


def _unfit(node: ir.Node) -> str:
    """Return why the kernel cannot do an attention whatever its mask says, an empty string when it can."""
    query, key, value, bias, past_key, past_value = node.inputs[:6]
    if query is None or key is None or value is None or bias is None or past_key is None or past_value is None:
        return "the attention has no mask" if bias is None else "an input of the attention is missing"
    shapes = [dims(one) or () for one in (query, key, value)]
    if {len(shape) for shape in shapes} != {4} or {one.dtype for one in (query, key, value)} != {ir.DataType.FLOAT}:
        return "queries, keys and values are not float32 [batch, heads, sequence, size]"
    if not all(isinstance(size, int) for shape in shapes for size in (shape[1], shape[3])):
        return f"the heads have shapes {shapes}"
    if len({shape[3] for shape in shapes}) != 1 or shapes[1][1] != shapes[2][1]:
        return f"the kernel takes one size for all heads, not {shapes}"
    if int(shapes[0][3] or 0) % HEAD_SIZE_MULTIPLE:
        return f"the kernel takes heads of a multiple of {HEAD_SIZE_MULTIPLE}, not {shapes[0][3]}"
    if attribute(node, "is_causal"):
        return "the attention has a mask and is causal besides"
    return ""


def _plain_bias(model: ir.Model, node: ir.Node) -> ir.Value | str | None:
    """Return what a causal mask that hangs on sizes alone adds to allowed keys, None for nothing, or why it is none.

    A bias of any kind will do, T5's for instance: the kernel takes it as it is, and is causal itself.
    """
    mask = node.inputs[3]
    assert mask is not None  # noqa: S101  # for the type checker; `_unfit` looked
    side = SideGraph(model, (mask,))
    if side.read:
        return f"the mask depends on {', '.join(leaf.name or '' for leaf in side.read)}"
    adds = False
    for batch, new, past in PLAIN_PROBES:
        sizes = complete_all({"batch": batch, SEQUENCE: new, PAST: past}, (ENCODED,), 0)
        try:
            found = side.run(sizes, {})[0]
            full = np.broadcast_to(found, (batch, found.shape[1] if found.ndim == 4 else 1, new, past + new))
        except (ProbeError, ValueError) as error:
            return f"the mask cannot be probed: {error}"
        allowed = np.broadcast_to(np.arange(past + new)[None] <= np.arange(past, past + new)[:, None], full.shape)
        if full.dtype == np.bool_:
            if not np.array_equal(full, allowed):
                return "the mask is not causal"
        elif np.any(full[~allowed] > MASKED_BELOW) or np.any(full[allowed] <= MASKED_BELOW):
            return "the mask is not causal"
        elif not hides_for_good(node, distance_of(full, allowed)):
            return "what comes later gets a number that scores may come near"
        else:
            adds |= bool(np.any(full[allowed] != 0))
    if not adds:
        return None
    shape, heads = dims(mask) or (), (dims(node.inputs[0]) or ())[1]
    fits = len(shape) == 4 and shape[0] in (1, "batch") and shape[1] in (1, heads) and shape[2:] == (SEQUENCE, TOTAL)
    return mask if fits else f"what is added to the scores has the shape {list(shape)}"


def _positions(model: ir.Model, mask: ir.Value) -> list[ir.Value]:
    """Return the values that hold positions [batch, sequence] counted in the mask."""
    found = []
    for node in model.graph:
        for value in node.outputs:
            whole = dims(value) == ("batch", SEQUENCE) and value.dtype == ir.DataType.INT64
            if whole and mask in ancestors(value)[1] and counts_positions(model, value) is mask:
                found.append(value)
    return found


def _read_elsewhere(
    mask: ir.Value, positions: Iterable[ir.Value], nodes: Iterable[ir.Node]
) -> ir.Value | ir.Node | None:
    """Return what the mask's numbers reach besides positions and the masks of the attentions."""
    ends = set(positions)
    attentions = set(nodes)
    seen: set[ir.Value] = set()
    stack = [mask]
    while stack:
        value = stack.pop()
        if value in seen or value in ends:
            continue
        seen.add(value)
        if value.is_graph_output():
            return value
        for user, index in value.uses():
            if is_op(user, "Shape", "Size") or (user in attentions and index == 3):
                continue
            if user in attentions or is_op(user, "MatMul", "Gemm"):
                return user
            stack.extend(user.outputs)
    return None


def _rotary(
    op: Builder, tables: _Tables | None, blocks: Sequence[_Block], positions: Sequence[ir.Value]
) -> _Rotary | None:
    """Write the tables for every position, None when they are no function of counted positions alone."""
    model = op.model
    longest = int(model.graph.metadata_props.get(CONTEXT_KEY, "0"))
    if tables is None or not longest:
        return None
    cos, sin, interleaved = tables
    sizes = {(dims(block.query) or ())[3] for block in blocks if block.tables == tables}
    angles = (dims(cos) or ())[-1]
    if not isinstance(angles, int) or angles % ANGLES_MULTIPLE or any(2 * angles > int(size or 0) for size in sizes):
        return None
    if 8 * angles * longest > LARGEST_TABLE_BYTES:
        return None
    ahead = set(ancestors(cos)[0])
    start = next((value for value in reversed(positions) if value.producer() in ahead), None)
    if start is None:
        return None
    side = SideGraph(model, (cos, sin), stop=(start,))
    if set(side.leaves) != {start}:
        return None
    try:
        whole = [table[0] for table in side.run({}, {start: np.arange(longest)[None]})]
        generator = np.random.default_rng(0)
        drawn = [generator.integers(0, min(top, longest), shape) for shape, top in CHECKED_POSITIONS]
        counted = [np.arange(length)[None] for length in telling_lengths_of_tables(side.nodes, longest)]
        for some in (*drawn, *counted):
            found = side.run({}, {start: some})
            pairs = zip(whole, found, strict=True)
            if not all(np.allclose(table[some], one, rtol=0.0, atol=ROUNDING) for table, one in pairs):
                return None
    except (ProbeError, KeyError, ValueError):
        return None
    names = (f"{kind}_{cos.name}" for kind in ("cos", "sin"))
    values = [op.constant(table.astype(np.float32), name) for table, name in zip(whole, names, strict=True)]
    return _Rotary(values, interleaved)


def _pack_rows(model: ir.Model, op: Builder, packing: Packing, positions: Sequence[ir.Value]) -> None:
    """Let everything read ids and positions in packed order."""
    own = set(op.nodes)
    inner = {value.producer() for value in positions}
    for value in (*(v for v in model.graph.inputs if dims(v) == ("batch", SEQUENCE)), *positions):
        users = [
            use
            for use in value.uses()
            if use.node not in own and use.node not in inner and not is_op(use.node, "Shape", "Size")
        ]
        if not users:
            continue
        packed = packing.pack(value)
        for use in users:
            use.node.replace_input_with(use.idx, packed)


def _unpack_rows(model: ir.Model, packing: Packing) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield what leaves the rows by position, and what gives the same from packed rows."""
    for node in list(model.graph):
        keep = takes_last(node)
        if keep is not None and node.inputs[0] is not None:
            yield node.outputs[0], packing.last(node.inputs[0], keep=keep)
    for value in model.graph.outputs:
        if (dims(value) or ())[:2] == ("batch", SEQUENCE):
            narrow = _before_linears(value)
            yield narrow, packing.unpack(narrow)


def _before_linears(value: ir.Value) -> ir.Value:
    """Return what a value is computed from by linears alone: that is narrower than logits."""
    node = value.producer()
    if node is not None and is_op(node, "MatMul", "Add") and len([v for v in node.inputs if not is_constant(v)]) == 1:
        inner = next(v for v in node.inputs if v is not None and not is_constant(v))
        if len(inner.uses()) == 1 and not inner.is_graph_output() and (dims(inner) or ())[:2] == ("batch", SEQUENCE):
            return _before_linears(inner)
    return value


def _insert(model: ir.Model, op: Builder, replaced: Iterable[tuple[ir.Value, ir.Value]]) -> None:
    """Put the new nodes into the graph and hand over names and users of what they replace."""
    graph = model.graph
    for value in op.initializers:
        graph.register_initializer(value)
    graph.insert_before(next(iter(graph)), op.nodes)
    own = set(op.nodes)
    for old, new in replaced:
        name, old.name = old.name, f"{old.name}/aligned"
        new.name, new.shape, new.type = name, old.shape, old.type
        if old.is_graph_output():
            graph.outputs[list(graph.outputs).index(old)] = new
        for use in list(old.uses()):
            if use.node not in own or use.node.op_type != "GatherND":
                use.node.replace_input_with(use.idx, new)
    remove_dead([node for old, _ in replaced if (node := old.producer()) is not None])
    graph.sort()


def _alibi(op: Builder, slopes: Sequence[float], packing: Packing, ids: ir.Value) -> ir.Value | None:
    """Build the bias [1, heads, new, total] of keys that count by their place; None without slopes."""
    if not slopes:
        return None
    places = op.Cast(packing.keys, to=ir.DataType.FLOAT.value)
    grown = op.Mul(op.constant(np.array(slopes, np.float32).reshape(1, -1, 1, 1), f"slopes_{len(op.nodes)}"), places)
    shape = op.Concat(
        op.ints([1, 1], f"ones_{len(op.nodes)}"),
        op.Shape(ids, start=1, end=2),
        op.ints([1], f"key_{len(op.nodes)}"),
        axis=0,
    )
    return op.Expand(grown, shape)


def _attend(
    op: Builder, block: _Block, packing: Packing | Lengths, rotary: _Rotary | None, bias: ir.Value | None = None
) -> tuple[ir.Value, ...]:
    """Build the kernel's node and what turns heads into tokens around it; return output and present."""
    node = block.node
    _, key, value, _, past_key, past_value = node.inputs[:6]
    inside = rotary is not None
    query, key = (block.query, block.key) if inside else (node.inputs[0], key)
    shape, grouped = dims(query) or (), dims(key) or ()
    tokens = [_tokens(op, one) for one in (query, key, value)]
    attributes = {
        "num_heads": shape[1],
        "kv_num_heads": grouped[1],
        "scale": attribute(node, "scale"),
        "softcap": attribute(node, "softcap") or None,
        "local_window_size": block.meaning.window or None,
        "do_rotary": int(inside),
        "rotary_interleaved": rotary.interleaved if rotary is not None else None,
    }
    inputs = [*tokens, past_key, past_value, packing.lengths, packing.total]
    inputs += rotary.values if rotary is not None else []
    if bias is not None:
        inputs += [None] * (BIAS_INPUT - len(inputs)) + [bias]
    made = op.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB, outputs=3)
    heads = op.Reshape(made[0], op.ints([0, 0, int(shape[1] or 0), -1], f"heads_{node.name}"))
    return op.Transpose(heads, perm=HEADS_FIRST), made[1], made[2]


def _tokens(op: Builder, heads: ir.Value | None) -> ir.Value:
    """[batch, sequence, heads·size] of [batch, heads, sequence, size]."""
    shape = dims(heads) or ()
    width = int(shape[1] or 0) * int(shape[3] or 0)  # known: the block was checked
    return op.Reshape(op.Transpose(heads, perm=HEADS_FIRST), op.ints([0, 0, width], f"width_{len(op.nodes)}"))
