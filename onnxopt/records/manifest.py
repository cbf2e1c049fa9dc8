"""What an artifact says of itself: the records of `manifest.json`.

An artifact keeps two records apart:

* `manifest.json` (`Manifest`) holds what the inputs decide: same source, options, versions and machine, same bytes.
* `measurements.json` (`onnxopt.records.measurements`) holds what differs from run to run: the date, latencies and
  seconds.

Numbers that JSON cannot spell (infinity, not-a-number) are written as the strings `Infinity`, `-Infinity` and `NaN`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from onnxopt.errors import InputError
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.records.record import REMAKE, ProvedRange, Record, read_object, validated
from onnxopt.records.rewrites import BlockCount, PassRecord, ProofRecord
from onnxopt.spec import Budget, Signature, SizeClaims, Target, Workload

SCHEMA_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"


class FileRecord(Record):
    """One file of the artifact.

    Attributes:
        sha256: hexadecimal digest of its bytes.
        size_bytes: its length.
    """

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


FormName = Literal["optimized", "fused", "original"]


class Shipped(Record):
    """Which form of the graph an artifact holds. How fast each is, `measurements.json` says.

    Attributes:
        form: `optimized`, all passes; `fused`, in standard operators, without the target's kernels; `original`, the
            graph as it was loaded.
        tried: forms that were measured and are not shipped.
        reason: why this one is; empty where nothing speaks against the optimized graph.
    """

    form: FormName = "optimized"
    tried: tuple[FormName, ...] = ()
    reason: str = ""


class FormRecord(Record):
    """The form that a class of regions has, where a pass has several; the notes say why. `--forms-from` repeats it.

    Attributes:
        name: the pass.
        kind: the class of regions, in the pass's words; empty where it has one class only.
        form: what they became.
    """

    name: str
    kind: str = ""
    form: str


class Evidence(Record):
    """What a run found out about its result: the part of the manifest that the pipeline fills.

    Attributes:
        proof: comparisons of the whole result with its reference.
        proved: for each open axis between which sizes these were.
        ledger: one entry per pass that ran, in order; a name may occur more than once. Where the original is shipped,
            that is what was tried.
        blocks: recognised blocks by kind (`attention`, `layer_norm`, ...).
        nodes_before: nodes of the graph as loaded, subgraphs included.
        nodes_after: nodes of the graph as written.
        bytes_before: size of the model as loaded.
        bytes_after: size of the model files as written; `write_artifact` fills it in.
        notes: sentences a user should read.
        sizes: dimensions of the graph as loaded, by how they are known; passes lean on what is derived or computed.
        quantization: how the graph was quantized; None for one in float. The proof is then that of the float graph that
            was quantized, and the gate in here is that of the result.
        shipped: which form of the graph the files hold; None for the two of an encoder-decoder, whose parts say it.
        forms: the forms of kernels in it; None for the two of an encoder-decoder, and where none were recorded.
    """

    proof: tuple[ProofRecord, ...] = ()
    proved: dict[str, ProvedRange] = Field(default_factory=dict)
    ledger: tuple[PassRecord, ...] = ()
    blocks: dict[str, BlockCount] = Field(default_factory=dict)
    nodes_before: int = Field(default=0, ge=0)
    nodes_after: int = Field(default=0, ge=0)
    bytes_before: int = Field(default=0, ge=0)
    bytes_after: int = Field(default=0, ge=0)
    notes: tuple[str, ...] = ()
    sizes: SizeClaims = Field(default_factory=SizeClaims)
    quantization: QuantizationRecord | None = None
    shipped: Shipped | None = None
    forms: tuple[FormRecord, ...] | None = None

    @property
    def worst_relative_error(self) -> float | None:
        """The worst error over all proofs; None when nothing was compared."""
        errors = (record.worst_relative_error for record in self.proof)
        return max((math.inf if math.isnan(error) else error for error in errors), default=None)


class DecodingRecord(Record):
    """How a decoder with a cache is to be run.

    Attributes:
        shared_buffers: past and present may be one buffer longer than what is in it; the mask's length counts.
        logits: `last` gives [batch, 1, vocabulary] of the last position, `all` one row per position.
        context_length: the most positions the model takes, past and new together; 0 when unknown.
        vocabulary: entries of a row of logits.
        crossings: lengths beyond which other rotary tables turn all positions; on two sides of one no batch is shared.
        crossing: a text that grows beyond one is read anew, or goes on from its keys as they are.
        endless_from: tables change with every token beyond this length, at which texts end; 0 where they do not.
    """

    shared_buffers: bool
    logits: Literal["last", "all"]
    context_length: int = Field(default=0, ge=0)
    vocabulary: int = Field(default=0, ge=0)
    crossings: tuple[int, ...] = ()
    crossing: Literal["reread", "continue"] = "reread"
    endless_from: int = Field(default=0, ge=0)


class PartRecord(Record):
    """One graph of an encoder-decoder.

    Attributes:
        file: the .onnx file.
        signature: its inputs and outputs.
        blocks: its recognised blocks by kind.
        nodes_before: nodes of the graph as loaded.
        nodes_after: nodes of the graph as written.
        golden: folder of its golden cases.
        shipped: which form of the graph the file holds.
        forms: the forms of kernels in it; None where none were recorded.
    """

    file: str
    signature: Signature
    blocks: dict[str, BlockCount] = Field(default_factory=dict)
    nodes_before: int = Field(default=0, ge=0)
    nodes_after: int = Field(default=0, ge=0)
    golden: str
    shipped: Shipped | None = None
    forms: tuple[FormRecord, ...] | None = None


class Manifest(Evidence):
    """`manifest.json`: everything about an artifact that its inputs decide.

    Attributes:
        producer: marks the file as ours; an output folder without it is never replaced.
        schema_version: version of this schema.
        name: short name of the model.
        origin: where the model came from: source, revision, weights hash, exporter.
        task: the transformers task name, or `onnx` for an imported file.
        random_weights: true when the weights are made up and accuracy means nothing.
        signature: inputs and outputs of the graph; of an encoder-decoder, what the encoder takes and the decoder gives.
        decoding: for a decoder with a cache; None for every other model.
        parts: the graphs of an encoder-decoder, `encoder` and `decoder`; empty for every other model. The evidence is
            then that of both: ledger and counts of one after the other, and the proof of the two together last.
        target: where it is meant to run.
        workload: the request shapes it was optimized for.
        budget: how far the answer may move.
        versions: installed versions of the tools that made it.
        machine: the machine that made it, without anything that changes between runs.
        files: every file that the inputs decide, by its path in the folder with forward slashes.
        extras: names of files that may differ from run to run and therefore carry no hash.
    """

    producer: Literal["onnxopt"] = "onnxopt"
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    origin: dict[str, Any] = Field(default_factory=dict)
    task: str
    random_weights: bool = False
    signature: Signature
    decoding: DecodingRecord | None = None
    parts: dict[str, PartRecord] = Field(default_factory=dict)
    target: Target
    workload: Workload
    budget: Budget
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    extras: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the manifest as indented JSON, what it is first and the evidence last."""
        data = json.loads(self.model_dump_json())  # this road spells infinities, `model_dump` does not
        evidence = {key: data.pop(key) for key in Evidence.model_fields}
        return json.dumps(data | evidence, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of an artifact folder.

        Args:
            folder: the artifact.

        Returns:
            The validated manifest.

        Raises:
            InputError: when the folder, the file or the schema is not what an artifact has.
        """
        folder = Path(folder)
        if not folder.is_dir():
            what = "is a file, not an artifact folder" if folder.exists() else "no such folder"
            raise InputError(what, where=str(folder), hint="name a folder that `onnxopt optimize` wrote")
        return cls.read_file(folder / MANIFEST_NAME)

    @classmethod
    def read_file(cls, path: Path) -> Manifest:
        """Read a manifest, wherever it lies.

        Args:
            path: the file.

        Returns:
            The validated manifest.

        Raises:
            InputError: when the file or the schema is not what an artifact has.
        """
        data = read_object(path)
        if data.get("producer") != "onnxopt":
            raise InputError("not a manifest of onnxopt", where=str(path), hint=REMAKE)
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"manifest schema version {version}, this onnxopt reads {SCHEMA_VERSION}",
                where=str(path),
                hint="update onnxopt or make the artifact again",
            )
        return validated(cls, data, path)
