"""What is written down about rewrites: passes, refusals, rollbacks, proofs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from onnxopt.records.record import Record
from onnxopt.spec import Padding


class ProofRecord(Record):
    """One comparison of the result with its reference, the worst over the elements of one output.

    Attributes:
        sizes: size of each dynamic axis.
        padding: where the padded positions lay.
        output: name of the output.
        worst_relative_error: max|result - reference| / max|reference|, over the rows that matter.
        worst_absolute_error: max|result - reference|, over the rows that matter.
    """

    sizes: dict[str, int]
    padding: Padding
    output: str
    worst_relative_error: float
    worst_absolute_error: float


class RefusalRecord(Record):
    """A candidate that a pass left alone.

    Attributes:
        node: name of the candidate's root node.
        reason: the precondition that did not hold.
        where: the value or node that did not fit; may be empty.
    """

    node: str
    reason: str
    where: str = ""


class RollbackRecord(Record):
    """A rewrite that was undone because its proof failed.

    Attributes:
        node: name of the root node of the replaced region.
        reason: what was compared and how it differed.
        error: worst relative error; infinity when shapes, dtypes or the places of not-a-number differed.
    """

    node: str
    reason: str
    error: float


class PassOrigin(Record):
    """Where a pass from outside of onnxopt came from.

    Attributes:
        named: how the user named it, a path by its last part: `my_rules.py`, `my_package.rules`.
        file: name of the file that it was read from, without its folder; empty where it was typed into a notebook.
        sha256: hexadecimal digest of that file's bytes; empty where there is none.
    """

    named: str
    file: str = ""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    def __str__(self) -> str:
        shown = f"sha256 {self.sha256[:12]}" if self.sha256 else "typed in"
        return f"{self.named} ({shown})" if self.file in {"", self.named} else f"{self.named} ({self.file}, {shown})"


class PassRecord(Record):
    """What one pass did: an entry of the ledger.

    Attributes:
        name: the pass.
        stage: the stage it belongs to.
        numerics: its contract in words.
        matches: candidates it found.
        applied: rewrites that were kept, or changes made by a whole-graph pass.
        refused: candidates it left alone, with the reason.
        rolled_back: rewrites that failed their proof and were undone.
        max_error: worst relative error over the kept rewrites' proofs; None when nothing was compared.
        nodes_before: nodes of the main graph before.
        nodes_after: and after.
        bytes_saved: initializer bytes that disappeared; negative when some were added.
        seconds: how long it took. Written to `measurements.json`, never to the manifest.
        origin: for a pass from outside of onnxopt, where it came from; not written for any other.
    """

    name: str
    stage: str
    numerics: str
    matches: int = Field(default=0, ge=0)
    applied: int = Field(default=0, ge=0)
    refused: tuple[RefusalRecord, ...] = ()
    rolled_back: tuple[RollbackRecord, ...] = ()
    max_error: float | None = None
    nodes_before: int = Field(default=0, ge=0)
    nodes_after: int = Field(default=0, ge=0)
    bytes_saved: int = 0
    seconds: float = Field(default=0.0, exclude=True)
    origin: PassOrigin | None = None

    @model_serializer(mode="wrap")
    def _without_empty_origin(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the origin out where there is none: a manifest says what is special, not what is not."""
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if key != "origin" or value is not None}


class BlockCount(Record):
    """How many blocks of one kind the graph has and how many of them are fused.

    Attributes:
        fused: those that are one operator.
        total: all of them.
    """

    fused: int = Field(ge=0)
    total: int = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.fused} of {self.total}"
