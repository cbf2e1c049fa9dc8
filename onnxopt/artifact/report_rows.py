"""The rows of a report's tables, from a manifest and what was measured."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxopt.host.sizes import size_text
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Latency
from onnxopt.records.numbers import error_text
from onnxopt.records.rewrites import PassRecord, ProofRecord
from onnxopt.records.savings import net_bytes

SHOWN_NODES = 6  # per reason; the manifest lists all of them
SHOWN_REASONS = 12  # per pass
LEAST_GROUP = 3  # outputs that are alike but for a number, such as those of a cache, are shown as one
_ALIKE = re.compile(r"(?<=[._/])\d+(?=[._/])")


@dataclass(frozen=True)
class Reason:
    """Why a pass left candidates alone.

    Attributes:
        text: the precondition that did not hold.
        count: how many candidates.
        nodes: some of them.
    """

    text: str
    count: int
    nodes: tuple[str, ...]

    @property
    def more(self) -> int:
        """How many candidates are not named."""
        return self.count - len(self.nodes)


@dataclass(frozen=True)
class PassRow:
    """One pass over all its runs.

    Attributes:
        name: the pass.
        stage: its stage.
        numerics: its contract.
        runs: how often it ran.
        applied: rewrites kept.
        refused: candidates left alone.
        reasons: why, the most frequent first.
        rolled_back: rewrites undone: node, reason and error.
        worst_error: over the kept rewrites; None when nothing was compared.
        nodes: nodes added (negative: removed).
        bytes_saved: bytes of the file's own weights that went; negative for new ones that stayed.
        seconds: how long it took; None when not measured.
        origin: for a pass from outside of onnxopt, where it came from; empty for any other.
    """

    name: str
    stage: str
    numerics: str
    runs: int
    applied: int
    refused: int
    reasons: tuple[Reason, ...]
    rolled_back: tuple[tuple[str, str, str], ...]
    worst_error: float | None
    nodes: int
    bytes_saved: int
    seconds: float | None
    origin: str = ""

    @property
    def idle(self) -> bool:
        """Whether it found nothing at all; of a pass that a user has named that is worth a word of its own."""
        return not (self.applied or self.refused or self.rolled_back or self.origin)


@dataclass(frozen=True)
class OperatorRow:
    """How often an operator occurs, with the length of its bars in percent of the most frequent one's."""

    name: str
    before: int
    after: int
    before_share: float
    after_share: float


def pass_rows(ledger: Sequence[PassRecord], seconds: Mapping[str, float]) -> list[PassRow]:
    """Sum up the runs of each pass, in the order of their first runs."""
    runs: dict[tuple[str, str], list[PassRecord]] = {}
    gone: Counter[tuple[str, str]] = Counter()
    for record, count in zip(ledger, net_bytes(ledger), strict=True):
        runs.setdefault((record.stage, record.name), []).append(record)
        gone[record.stage, record.name] += count
    return [_pass_row(records, seconds.get(key[1]), gone[key]) for key, records in runs.items()]


def _pass_row(records: Sequence[PassRecord], seconds: float | None, bytes_saved: int) -> PassRow:
    refused = [refusal for record in records for refusal in record.refused]
    counts = Counter(refusal.reason for refusal in refused)
    errors = [record.max_error for record in records if record.max_error is not None]
    return PassRow(
        name=records[0].name,
        stage=records[0].stage,
        numerics=records[0].numerics,
        runs=len(records),
        applied=sum(record.applied for record in records),
        refused=len(refused),
        reasons=tuple(
            Reason(text, count, tuple(item.node for item in refused if item.reason == text)[:SHOWN_NODES])
            for text, count in counts.most_common(SHOWN_REASONS)
        ),
        rolled_back=tuple(
            (item.node, item.reason, error_text(item.error)) for record in records for item in record.rolled_back
        ),
        worst_error=max(errors, default=None),
        nodes=sum(record.nodes_after - record.nodes_before for record in records),
        bytes_saved=bytes_saved,
        seconds=seconds,
        origin=str(records[0].origin or ""),
    )


def operator_rows(before: Mapping[str, int], after: Mapping[str, int]) -> list[OperatorRow]:
    """Set operators side by side, the most frequent first."""
    names = sorted({*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    most = max((*before.values(), *after.values(), 1))
    return [
        OperatorRow(
            name,
            before.get(name, 0),
            after.get(name, 0),
            round(100 * before.get(name, 0) / most, 2),
            round(100 * after.get(name, 0) / most, 2),
        )
        for name in names
    ]


def grouped(proof: Sequence[ProofRecord]) -> list[ProofRecord]:
    """Return comparisons with the outputs of a cache as one, `present.*.key`, at the worst of their errors."""
    numbered = Counter(_ALIKE.sub("*", name) for name in dict.fromkeys(record.output for record in proof))
    worst: dict[tuple[str, str, str], ProofRecord] = {}
    for record in proof:
        pattern = _ALIKE.sub("*", record.output)
        name = pattern if numbered[pattern] >= LEAST_GROUP else record.output
        place = shape_text(record.sizes), record.padding, name
        known = worst.get(place)
        errors = [one for one in (known, record) if one is not None]
        worst[place] = record.model_copy(
            update={
                "output": name,
                "worst_relative_error": _worst([one.worst_relative_error for one in errors]),
                "worst_absolute_error": _worst([one.worst_absolute_error for one in errors]),
            }
        )
    return list(worst.values())


def _worst(errors: Sequence[float]) -> float:
    """Return the largest error; what is no number is worse than any."""
    return next((error for error in errors if math.isnan(error)), max(errors))


def cases_of_proof(proof: Sequence[ProofRecord]) -> dict[tuple[str, str], list[ProofRecord]]:
    """Group comparisons by sizes and padding."""
    cases: dict[tuple[str, str], list[ProofRecord]] = {}
    for record in proof:
        cases.setdefault((shape_text(record.sizes), record.padding), []).append(record)
    return cases


def proof_rows(proof: Sequence[ProofRecord]) -> list[dict[str, Any]]:
    """Return a row per size and padding of the proof, with the errors of each output."""
    return [
        {
            "sizes": sizes,
            "padding": padding,
            "errors": [(record.output, record.worst_relative_error, record.worst_absolute_error) for record in records],
        }
        for (sizes, padding), records in cases_of_proof(proof).items()
    ]


def flattened(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as pairs of words; empty ones are left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs.extend(flattened(value, f"{name}, "))
        elif isinstance(value, (list, tuple)):
            pairs.append((name, ", ".join(str(item) for item in value)))
        elif key.endswith("_bytes") and isinstance(value, int):
            pairs.append((name.removesuffix(" bytes"), size_text(value)))
        else:
            pairs.append((name, str(value)))
    return [(name, text) for name, text in pairs if text not in ("", "None")]


def tools_of(manifest: Manifest) -> dict[str, str]:
    """Return the versions of the tools that took part, by the names of their packages."""
    loading = manifest.origin.get("versions")
    known = {**(loading if isinstance(loading, Mapping) else {}), **manifest.versions}
    return {str(name).replace("_", "-"): str(version) for name, version in known.items()}


def shape_text(shape: Mapping[str, int]) -> str:
    """Write sizes as `8 × 128`."""
    return " × ".join(f"{size:,}" for size in shape.values()) or "fixed"


def request_text(entry: Latency) -> str:
    """Write the sizes of a request, and how much of it was real tokens when some was padding."""
    return shape_text(entry.shape) + (f", {entry.fill:.0%} real" if entry.fill < 1 else "")
