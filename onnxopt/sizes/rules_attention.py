"""Attention in its standard and in its contrib forms, with what hangs on it."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.sizes.facts import UNKNOWN, Fact, of_rank
from onnxopt.sizes.rules import Step, contrib, rule
from onnxopt.sizes.terms import Size, add, divide, exact_quotient, fresh, multiply


@rule("Attention")
def _attention(step: Step) -> Sequence[Fact]:
    """ONNX operator Attention-23: [batch, length, heads·size] or [batch, heads, length, size], and its cache."""
    query, key, value = step.dims(0), step.dims(1), step.dims(2)
    if query is None or value is None or key is None:
        return []
    past = step.dims(4) if step.has(4) else None
    if len(query) == 4:
        heads, length = query[1], query[2]
        made: tuple[Size, ...] = (query[0], heads, length, value[-1])
        kv_heads, key_size, value_size, new = key[1], key[-1], value[-1], key[2]
    else:
        heads, kv_heads = int(step.attribute("q_num_heads")), int(step.attribute("kv_num_heads"))
        length, new = query[1], key[1]
        key_size, value_size = divide(key[-1], kv_heads), divide(value[-1], kv_heads)
        made = (query[0], length, multiply(value_size, heads))
    total = add(past[2], new) if past is not None else (fresh() if step.has(4) else new)
    present = [Fact((query[0], kv_heads, total, size)) for size in (key_size, value_size)]
    return [Fact(made), *present, Fact((query[0], heads, length, total))][: len(step.node.outputs)]


@contrib("Attention", "QAttention")
def _packed_attention(step: Step) -> Sequence[Fact]:
    """Projects and attends in one: [batch, length, input] → [batch, length, hidden]."""
    dims, bias = step.dims(0), step.dims(2)
    given = step.node.attributes.get("qkv_hidden_sizes")
    if dims is None or step.node.op_type == "QAttention":
        return [of_rank(3)]
    hidden: Size = given.as_ints()[2] if given is not None else (divide(bias[0], 3) if bias else fresh())
    return [Fact((*dims[:2], hidden))]


@contrib("MultiHeadAttention")
def _multi_head(step: Step) -> Sequence[Fact]:
    query, value = step.dims(0), step.dims(2)
    heads = int(step.attribute("num_heads"))
    if query is None:
        return [of_rank(3)]
    if len(query) == 5:  # packed [batch, length, heads, 3, size]
        return [Fact((query[0], query[1], multiply(query[2], query[4])))]
    if value is None:
        return [Fact((query[0], query[1], query[2]))] if not step.has(2) and step.has(1) else [of_rank(3)]
    if len(value) == 4:  # [batch, heads, length, size]
        return [Fact((query[0], query[1], multiply(value[1], value[3])))]
    size = exact_quotient(value[-1], heads)
    made = Fact((query[0], query[1], value[-1]))
    if len(step.node.outputs) == 1 or size is None:
        return [made]
    return [made, *(of_rank(4) for _ in step.node.outputs[1:])]


@contrib("GroupQueryAttention")
def _group_query(step: Step) -> Sequence[Fact]:
    query, value = step.dims(0), step.dims(2)
    if query is None:
        return [of_rank(3)]
    heads, kv_heads = int(step.attribute("num_heads")), int(step.attribute("kv_num_heads"))
    packed = not step.has(1)
    size = divide(query[2], heads + 2 * kv_heads) if packed else divide(query[2], heads)
    made = Fact((query[0], query[1], multiply(size, heads)))
    past = step.dims(3) if step.has(3) else None
    if past is None or (value is None and not packed):
        return [made, *(of_rank(4) for _ in step.node.outputs[1:])]
    present = Fact((query[0], kv_heads, fresh(), size))
    return [made, present, present][: len(step.node.outputs)]


@contrib("EmbedLayerNormalization")
def _embed_norm(step: Step) -> Sequence[Fact]:
    ids, table = step.dims(0), step.dims(2)
    if ids is None or table is None:
        return [of_rank(3)]
    made = Fact((*ids, table[-1]))
    return [made, Fact((ids[0],)), made][: len(step.node.outputs)]


@contrib(
    "PackedMultiHeadAttention",
    "PackedAttention",
    "RemovePadding",
    "RestorePadding",
    "SparseAttention",
    "LongformerAttention",
)
def _packed(step: Step) -> Sequence[Fact]:
    del step
    return [UNKNOWN]
