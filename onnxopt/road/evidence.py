"""Gather what a run found out about its result, as the manifest has it."""

from __future__ import annotations

from onnxopt.graph import op_counts
from onnxopt.graph.blocks import KINDS, count_blocks
from onnxopt.proof.cases import proved_ranges
from onnxopt.records.manifest import Evidence, FormRecord
from onnxopt.records.rewrites import BlockCount, PassRecord, RefusalRecord, RollbackRecord
from onnxopt.road.forms import Before
from onnxopt.road.shipping import Decision


def evidence_of(decision: Decision, before: Before) -> Evidence:
    """Return what was found out about the graph that is shipped; the ledger of an original is what was tried.

    Args:
        decision: the form that is shipped, with its proof.
        before: the graph as it was loaded.
    """
    form = decision.form
    loaded, ledger = form.loaded, form.ledger
    records = tuple(
        PassRecord(
            name=entry.title,
            stage=entry.stage,
            numerics=entry.numerics,
            matches=entry.applied + len(entry.refused) + len(entry.rolled_back),
            applied=entry.applied,
            refused=tuple(
                RefusalRecord(node=item.node, reason=item.reason, where=item.where)
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
            origin=entry.origin,
        )
        for entry in ledger.entries
    )
    counts = count_blocks(loaded.model)
    notes: list[str] = []
    if form.name != "original":  # what was raised, chosen or missed on the way is not in that
        notes.extend(note for note in ledger.notes if note not in loaded.notes)
        notes.extend(f"{entry.title}: {choice}" for entry in ledger.entries for choice in entry.choices)
        notes.extend(f"{kind} not fused: {node}" for kind in KINDS for node in counts[kind].missed)
    return Evidence(
        proof=form.proof,
        proved=proved_ranges(loaded, [record.sizes for record in form.proof]),
        ledger=records,
        blocks={
            kind: BlockCount(fused=count.fused, total=count.total) for kind, count in counts.items() if count.total
        },
        nodes_before=before.nodes,
        nodes_after=sum(op_counts(loaded.model).values()),
        bytes_before=before.size_bytes,
        notes=tuple(notes),
        sizes=ledger.claims,
        shipped=decision.shipped,
        forms=tuple(FormRecord(name=name, kind=kind, form=form) for (name, kind), form in sorted(ledger.forms.items())),
    )
