"""Gather what a run found out about its result, as the manifest has it."""

from __future__ import annotations

from onnxopt.blocks import KINDS, count_blocks
from onnxopt.cases import proved_ranges
from onnxopt.graph import all_nodes
from onnxopt.ledger import Ledger
from onnxopt.manifest import BlockCount, Evidence, PassRecord, ProofRecord, Refusal, RollbackRecord
from onnxopt.model import Loaded


def evidence_of(
    loaded: Loaded,
    ledger: Ledger,
    proof: list[ProofRecord],
    nodes_before: int,
    bytes_before: int,
) -> Evidence:
    """Return what the manifest says of a finished graph.

    Args:
        loaded: with the finished graph.
        ledger: of the passes that made it.
        proof: comparisons of the whole.
        nodes_before: of the graph as loaded.
        bytes_before: of its weights.
    """
    records = tuple(
        PassRecord(
            name=entry.name,
            stage=entry.stage,
            numerics=entry.numerics,
            matches=entry.applied + len(entry.refused) + len(entry.rolled_back),
            applied=entry.applied,
            refused=tuple(
                Refusal(node=item.node, reason=item.reason, where=item.where)
                for item in entry.refused
                if not item.needless
            ),
            rolled_back=tuple(
                RollbackRecord(node=item.node, reason=item.reason, error=item.error) for item in entry.rolled_back
            ),
            max_error=entry.worst_error if entry.applied else None,
            nodes_before=entry.nodes_before,
            nodes_after=entry.nodes_after,
            bytes_saved=entry.bytes_saved,
            seconds=entry.seconds,
        )
        for entry in ledger.entries
    )
    counts = count_blocks(loaded.model)
    notes = [note for note in ledger.notes if note not in loaded.notes]
    notes.extend(f"{entry.name}: {choice}" for entry in ledger.entries for choice in entry.choices)
    for kind in KINDS:
        notes.extend(f"{kind} not fused: {node}" for node in counts[kind].missed)
    return Evidence(
        proof=tuple(proof),
        proved=proved_ranges(loaded, [record.sizes for record in proof]),
        ledger=records,
        blocks={
            kind: BlockCount(fused=count.fused, total=count.total) for kind, count in counts.items() if count.total
        },
        nodes_before=nodes_before,
        nodes_after=sum(1 for _ in all_nodes(loaded.model)),
        bytes_before=bytes_before,
        notes=tuple(notes),
        sizes=ledger.claims,
    )
