"""The record of a run: what each pass matched, refused, proved, kept and rolled back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxopt.records.rewrites import PassOrigin
from onnxopt.spec import SizeClaims


@dataclass(frozen=True)
class Refused:
    """A match that a guard turned down.

    Attributes:
        node: the root of the match.
        reason: why.
        where: the value or node that did not fit; may be empty.
        needless: nothing was missed; such refusals are for `explain`, not for a report.
    """

    node: str
    reason: str
    where: str = ""
    needless: bool = False


@dataclass(frozen=True)
class RolledBack:
    """A rewrite that was not equal to what it replaced, or a pass that failed.

    Attributes:
        node: the root of the match, or the first output that differed.
        reason: in words.
        error: worst relative error; inf when shapes, dtypes or the places of NaN differ.
        repro: folder with the replaced region, the replacement and the inputs, when one was written.
    """

    node: str
    reason: str
    error: float
    repro: Path | None = None


@dataclass
class PassEntry:
    """One pass of a run.

    Attributes:
        name: the pass.
        stage: its stage.
        numerics: its contract in words.
        applied: rewrites kept, or changes made by a whole-graph pass.
        refused: what guards turned down.
        rolled_back: what the proof turned down.
        worst_error: largest relative error among what was kept.
        nodes_before: nodes of the main graph, or of the body, before.
        nodes_after: and after.
        seconds: time spent, proof included.
        bytes_saved: initializer bytes that disappeared (negative when some were added).
        choices: for rules with several forms, the form of each class of regions and the times it was chosen by.
        where: the body of an If, a Loop or a Scan that the pass worked on; empty for the main graph.
        origin: where a pass from outside of onnxopt came from; None for any other.
    """

    name: str
    stage: str
    numerics: str
    applied: int = 0
    refused: list[Refused] = field(default_factory=list)
    rolled_back: list[RolledBack] = field(default_factory=list)
    worst_error: float = 0.0
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    bytes_saved: int = 0
    choices: list[str] = field(default_factory=list)
    where: str = ""
    origin: PassOrigin | None = None

    @property
    def title(self) -> str:
        """The name for a person, with the body in front: `then of If_3: fuse-gelu`."""
        return f"{self.where}: {self.name}" if self.where else self.name

    def refusal_counts(self) -> Counter[str]:
        """Count refusals by reason."""
        return Counter(item.reason for item in self.refused)


@dataclass
class Ledger:
    """The passes of a run in order, and sentences about the run as a whole.

    Attributes:
        entries: of the passes.
        notes: the sentences.
        claims: what was known of the sizes of the graph as it was loaded.
        forms: of kernels in the lowered graph: by pass and class of regions, what they became. Set anew, not changed.
    """

    entries: list[PassEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    claims: SizeClaims = field(default_factory=SizeClaims)
    forms: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def applied(self, name: str) -> int:
        """Return how often a pass was applied in the whole run."""
        return sum(entry.applied for entry in self.entries if entry.name == name)

    def rolled_back(self) -> list[tuple[str, RolledBack]]:
        """Return what was rolled back, with the name of its pass."""
        return [(entry.title, item) for entry in self.entries for item in entry.rolled_back]
