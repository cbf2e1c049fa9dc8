"""What a model is made of, and what the passes would make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxopt.graph import is_op, op_counts, opset
from onnxopt.graph.blocks import count_blocks
from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.records.ledger import Ledger
from onnxopt.rewrite import Rewrite
from onnxopt.run.there import model_file
from onnxopt.spec import Signature, Target


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect_model`.

    Attributes:
        path: the file.
        signature: inputs and outputs with their axes.
        opsets: version by domain; ai.onnx is the empty domain.
        ir_version: of the file.
        producer: the tool that wrote the file, and its version.
        nodes: how many, subgraphs included.
        operators: count by operator, largest first.
        bytes_by_operator: bytes of weights by the operator that reads them, largest first.
        size_bytes: of all weights, initializers and Constant nodes, those of subgraphs and functions included.
        blocks: recognised blocks by kind, `fused of total`.
        would_apply: how many rewrites each pass would keep.
        blocks_after: the blocks afterwards.
        nodes_after: the nodes afterwards.
        notes: what the import found out.
    """

    path: str
    signature: Signature
    opsets: dict[str, int]
    ir_version: int
    producer: str
    nodes: int
    operators: dict[str, int]
    bytes_by_operator: dict[str, int]
    size_bytes: int
    blocks: dict[str, str]
    would_apply: dict[str, int]
    blocks_after: dict[str, str]
    nodes_after: int
    notes: tuple[str, ...]


def inspect_model(
    path: Path,
    target: Target,
    progress: Callable[[str, str], None] | None = None,
    own: Sequence[type[Rewrite]] = (),
) -> Inspection:
    """Read a model and try the passes on it; nothing is written.

    Args:
        path: an .onnx file or an artifact folder.
        target: whose passes to try.
        progress: called with (stage, step).
        own: passes from outside of onnxopt, to be tried too.

    Raises:
        InputError: the file is not usable.
    """
    say = progress or (lambda _stage, _step: None)
    file = model_file(path)
    loaded = load_onnx(file, progress=lambda step: say("load", step))
    model = loaded.model
    opsets, counts, sizes = {"": opset(model), **model.opset_imports}, op_counts(model), _bytes_by_operator(model)
    nodes, size, blocks, written = sum(counts.values()), sum(sizes.values()), count_blocks(model), model.ir_version
    producer = f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip()
    ledger = run_pipeline(loaded, target, progress=lambda stage, step, _count: say(stage, step), own=own)
    applied: Counter[str] = Counter()
    for entry in ledger.entries:
        applied[entry.title] += entry.applied
    return Inspection(
        path=str(file),
        signature=loaded.signature,
        opsets=opsets,
        ir_version=written or 0,
        producer=producer,
        nodes=nodes,
        operators=dict(counts.most_common()),
        bytes_by_operator=dict(sizes.most_common()),
        size_bytes=size,
        blocks={kind: str(count) for kind, count in blocks.items() if count.total},
        would_apply={name: count for name, count in applied.items() if count},
        blocks_after={kind: str(count) for kind, count in count_blocks(model).items() if count.total},
        nodes_after=sum(op_counts(model).values()),
        notes=(*ledger.notes, *_undone(ledger)),
    )


def _undone(ledger: Ledger) -> list[str]:
    """Say what the proof turned down of passes from outside, whose makers look for it."""
    return [
        f"rolled back: {entry.title} at {item.node}: {item.reason}"
        for entry in ledger.entries
        if entry.origin is not None
        for item in entry.rolled_back
    ]


def _bytes_by_operator(model: ir.Model) -> Counter[str]:
    """Attribute each weight to the first operator that reads it, in whichever graph or function body it lies."""
    sizes: Counter[str] = Counter()
    for value, tensor in _weights(model):
        reader = next(iter(value.consumers()), None)
        sizes[reader.op_type if reader is not None else "(unused)"] += tensor.nbytes
    return sizes


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield what the model holds as data: initializers, and the tensors of Constant nodes."""
    bodies = [function.graph for function in model.functions.values()]
    for graph in (*model.graphs(), *bodies, *(inner for body in bodies for inner in body.subgraphs())):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            held = node.attributes.get("value") if is_op(node, "Constant") else None
            if held is not None and isinstance(held.value, ir.TensorProtocol):
                yield node.outputs[0], held.value
