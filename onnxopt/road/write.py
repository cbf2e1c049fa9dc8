"""Write what came out: one graph, or the two of an encoder-decoder."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from onnxopt.artifact.package import Artifact, Part, write_artifact
from onnxopt.artifact.report import REPORT_NAME, Graphs, render_report
from onnxopt.graph import op_counts
from onnxopt.graph.outline import Block, largest_block, outline_of
from onnxopt.load.export.torch_pair import PAIR
from onnxopt.load.loaded import Loaded
from onnxopt.records.events import Event, Listener
from onnxopt.records.manifest import Evidence
from onnxopt.records.measurements import Measurements
from onnxopt.records.rewrites import BlockCount, ProofRecord
from onnxopt.road.goal import Goal
from onnxopt.road.work import Worked
from onnxopt.spec import Signature


def write_result(
    parts: Sequence[Worked], goal: Goal, started: float, say: Listener, *, proof: Sequence[ProofRecord] = ()
) -> Artifact:
    """Write one finished graph as an artifact, or the two of an encoder-decoder with their common proof."""
    say(Event("package", str(goal.out)))
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, spent in part.seconds.items():
            seconds[name] += spent
    pair = len(parts) > 1
    measurements = Measurements(
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        latency=tuple(latency for part in parts for latency in part.decision.latency),
        races=tuple(
            race.model_copy(update={"part": name})
            for name, part in zip(PAIR if pair else ("",), parts, strict=True)
            for race in part.decision.races
        ),
        pass_seconds=dict(seconds),
        seconds=time.perf_counter() - started,
    )
    whole = _whole([part.loaded for part in parts]) if pair else parts[0].loaded
    made = [
        Part(name, part.loaded.model, part.loaded, part.evidence, part.golden)
        for name, part in zip(PAIR, parts, strict=False)
    ]
    graphs = Graphs(
        before=sum((Counter(part.before.ops) for part in parts), Counter[str]()),
        after=sum((Counter(op_counts(part.loaded.model)) for part in parts), Counter[str]()),
        block=_block(parts),
    )
    golden = () if pair else parts[0].golden
    return write_artifact(
        goal.out,
        whole.model,
        whole,
        target=goal.target,
        workload=goal.workload,
        budget=goal.budget,
        evidence=_together(parts, proof) if pair else parts[0].evidence,
        golden=golden,
        measurements=measurements,
        extras={
            REPORT_NAME: lambda manifest: render_report(
                manifest, measurements, graphs, golden=golden, folder=goal.out.name
            )
        },
        parts=made if pair else (),
        shard_bytes=goal.shard_bytes,
    )


def _block(parts: Sequence[Worked]) -> Block | None:
    """Return the block that lost most nodes, of either graph."""
    found = [largest_block(part.before.outline, outline_of(part.loaded.model)) for part in parts]
    return max((block for block in found if block), key=lambda block: block.lost, default=None)


def _whole(parts: Sequence[Loaded]) -> Loaded:
    """Return an encoder-decoder as its user sees it: what the encoder takes, and the decoder's logits."""
    encoder, decoder = parts
    logits = tuple(spec for spec in decoder.signature.outputs if spec.name == "logits")
    return replace(
        decoder,
        signature=Signature(encoder.signature.inputs, logits),
        feeder=encoder.feeder,
        origin={**decoder.origin, "encoder_context_length": encoder.origin.get("context_length", 0)},
        notes=list(dict.fromkeys([*encoder.notes, *decoder.notes])),
    )


def _together(parts: Sequence[Worked], proof: Sequence[ProofRecord]) -> Evidence:
    """Return the evidence of two graphs as one; what is said of a single one names it."""
    found = [part.evidence for part in parts]
    kinds = dict.fromkeys(kind for one in found for kind in one.blocks)
    counts = {kind: [one.blocks[kind] for one in found if kind in one.blocks] for kind in kinds}
    return Evidence(
        proof=(*(record for one in found for record in one.proof), *proof),
        ledger=tuple(record for one in found for record in one.ledger),
        blocks={
            kind: BlockCount(fused=sum(one.fused for one in own), total=sum(one.total for one in own))
            for kind, own in counts.items()
        },
        nodes_before=sum(one.nodes_before for one in found),
        nodes_after=sum(one.nodes_after for one in found),
        bytes_before=sum(one.bytes_before for one in found),
        notes=tuple(f"{name}: {note}" for name, one in zip(PAIR, found, strict=True) for note in one.notes),
    )
