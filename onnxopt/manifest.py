"""What an artifact says of itself: the records of `manifest.json`.

An artifact keeps two records apart:

* `manifest.json` (`Manifest`) holds what the inputs decide: same source, options, versions and machine, same bytes.
* `measurements.json` (`onnxopt.measurements`) holds what differs from run to run: the date, latencies and seconds.

Numbers that JSON cannot spell (infinity, not-a-number) are written as the strings `Infinity`, `-Infinity` and `NaN`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from onnxopt.errors import InputError
from onnxopt.record import ProvedRange, Record
from onnxopt.spec import Budget, Padding, Signature, SizeClaims, Target, Workload
from onnxopt.speed import speed_text

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


class Refusal(Record):
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
    """

    name: str
    stage: str
    numerics: str
    matches: int = Field(default=0, ge=0)
    applied: int = Field(default=0, ge=0)
    refused: tuple[Refusal, ...] = ()
    rolled_back: tuple[RollbackRecord, ...] = ()
    max_error: float | None = None
    nodes_before: int = Field(default=0, ge=0)
    nodes_after: int = Field(default=0, ge=0)
    bytes_saved: int = 0
    seconds: float = Field(default=0.0, exclude=True)


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


class CalibrationRecord(Record):
    """What a model was calibrated with, for the manifest.

    Attributes:
        source: `builtin`, `self`, `random`, a file's name or a data set.
        samples: how many.
        shortest: tokens of the shortest, 0 where samples have no length.
        longest: tokens of the longest.
        tokens: of all samples.
        sha256: over all samples in order.
        meaningless: true when the data is random or too little, and was forced.
    """

    source: str
    samples: int
    shortest: int = 0
    longest: int = 0
    tokens: int = 0
    sha256: str = ""
    meaningless: bool = False


class GateRecord(Record):
    """What a lossy result has kept of its original's answer.

    Attributes:
        metric: `cosine`, `agreement` or `perplexity` (relative to the original's).
        budget: how far it may fall, as it is written on the command line.
        value: measured.
        low: lower end of its interval of 95 %.
        high: upper end.
        worst: of all samples; for perplexity the largest ratio of one window.
        samples: how many were asked.
        holds: whether it is within the budget.
        meaningless: true when weights or data are made up.
    """

    metric: Literal["cosine", "agreement", "perplexity"]
    budget: str
    value: float
    low: float
    high: float
    worst: float
    samples: int
    holds: bool
    meaningless: bool = False

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.5f}, 95 % {self.low:.5f} to {self.high:.5f}, worst {self.worst:.5f}, "
            f"{self.samples} held-out samples (budget {self.budget})"
        )


class SensitivityRecord(Record):
    """What one layer's quantization alone costs at the output.

    Attributes:
        label: the layer.
        loss: of the metric, on samples that were not fitted.
        smoothed: the same with a smoothed input; None when smoothing gains nothing there.
        weights: the same with only the weight quantized.
        precision: what the layer became.
        reason: why it costs what it costs.
    """

    label: str
    loss: float
    smoothed: float | None = None
    weights: float = 0.0
    precision: str = ""
    reason: str = ""


class FrontRecord(Record):
    """One plan that was measured on the way.

    Attributes:
        value: of the metric.
        seconds: estimated, of one token through the linear layers.
        counts: layers by precision.
    """

    value: float
    seconds: float
    counts: dict[str, int]


class LayerRecord(Record):
    """What became of one linear layer, or of a table (its label ends in `#table`).

    Attributes:
        precision: `fp32`, `int8`, `int8-dynamic`, `int8-weights:128`, ...
        reason: why it stayed in float, or what is special about it.
        smoothed: whether its input is divided by factors first.
    """

    precision: str
    reason: str = ""
    smoothed: bool = False


class HalfPrecisionRecord(Record):
    """How far the tensors of a graph in 16 bits are from those of the float graph.

    Attributes:
        kind: `fp16` or `bf16`.
        nodes: how many nodes compute in it.
        compared: tensors that both graphs have, all of them compared on samples.
        worst_error: root mean square of the difference over that of the tensor, the worst of all.
        worst_at: which tensor.
        tolerance: what no tensor may be beyond.
        clamped: literals that became the largest number of fp16.
    """

    kind: Literal["fp16", "bf16"]
    nodes: int
    compared: int
    worst_error: float
    worst_at: str = ""
    tolerance: float
    clamped: tuple[str, ...] = ()


class QuantizationRecord(Record):
    """How a model was quantized, or why it was not.

    Attributes:
        asked: the precision on the command line.
        shipped: whether the graph of this artifact is the quantized one.
        reason: why it is not.
        calibration: the samples.
        gate: the judgement.
        layers: what became of each layer.
        sensitivities: what each layer costs alone, the most harmful first.
        front: plans that were measured on the way, fastest first.
        invariant: whether answers are the same bits alone and in a padded batch; None where that was not asked.
        speedup: of the quantized graph over the float one, geometric mean over the workload by its weights; None when
            not measured. With its interval of at least 95 % it is told, and not written to the manifest.
        speedup_low: lower end of the interval.
        speedup_high: upper end.
        half: for fp16 and bf16: the comparison of all tensors; `layers` are then the nodes that stayed in float32.
    """

    asked: str
    shipped: bool
    reason: str = ""
    calibration: CalibrationRecord | None = None
    gate: GateRecord | None = None
    layers: dict[str, LayerRecord] = Field(default_factory=dict)
    sensitivities: tuple[SensitivityRecord, ...] = ()
    front: tuple[FrontRecord, ...] = ()
    invariant: bool | None = None
    speedup: float | None = Field(default=None, exclude=True)
    speedup_low: float | None = Field(default=None, exclude=True)
    speedup_high: float | None = Field(default=None, exclude=True)
    half: HalfPrecisionRecord | None = None

    def lines(self) -> list[str]:
        """Say what became of the layers, how the result was judged and by which samples."""
        counts = Counter(f"{one.precision}{' smoothed' if one.smoothed else ''}" for one in self.layers.values())
        became = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        if self.half is not None:
            became = f"{self.half.nodes} nodes in {self.half.kind}, {len(self.layers)} that could be stayed in float32"
        if not self.shipped:  # what was never judged was never tried
            became = f"the float graph is shipped; {self.reason}" + (
                f"; tried {became}" if self.gate or self.half else ""
            )
        lines = [f"precision     {self.asked}: {became}"]
        prompts = sum(one.reason.endswith("in prompts") for one in self.layers.values())
        if prompts:
            lines.append(f"              {prompts} layers in int8 on both sides where prompts are read")
        if self.half is not None:
            lines.append(
                f"tensors       worst error {self.half.worst_error:.2%} (rms, limit {self.half.tolerance:.0%}) of all "
                f"{self.half.compared} inside, at {self.half.worst_at}"
            )
        if self.gate is not None:
            lines.append(f"judged        {self.gate}" + (", made-up data" if self.gate.meaningless else ""))
        if self.speedup is not None:
            gain = speed_text(self.speedup, self.speedup_low, self.speedup_high)
            lines.append(f"beside float  {gain}, geometric mean over the workload")
        data = self.calibration
        if data is not None:
            lengths = f" of {data.shortest} to {data.longest} tokens" if data.longest else ""
            lines.append(f"calibrated    with {data.samples} samples{lengths} of {data.source}")
        if self.invariant is not None:
            same = "the same bits alone and in a padded batch" if self.invariant else "depend a little on the batch"
            lines.append(f"answers       {same}")
        return lines


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


class HalfRecord(Record):
    """One graph of an encoder-decoder.

    Attributes:
        file: the .onnx file.
        signature: its inputs and outputs.
        blocks: its recognised blocks by kind.
        nodes_before: nodes of the graph as loaded.
        nodes_after: nodes of the graph as written.
        golden: folder of its golden cases.
        shipped: which form of the graph the file holds.
    """

    file: str
    signature: Signature
    blocks: dict[str, BlockCount] = Field(default_factory=dict)
    nodes_before: int = Field(default=0, ge=0)
    nodes_after: int = Field(default=0, ge=0)
    golden: str
    shipped: Shipped | None = None


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
    parts: dict[str, HalfRecord] = Field(default_factory=dict)
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
        data = read_object(folder / MANIFEST_NAME)
        if data.get("producer") != "onnxopt":
            raise InputError("not a manifest of onnxopt", where=str(folder / MANIFEST_NAME), hint=REMAKE)
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"manifest schema version {version}, this onnxopt reads {SCHEMA_VERSION}",
                where=str(folder / MANIFEST_NAME),
                hint="update onnxopt or make the artifact again",
            )
        return validated(cls, data, folder / MANIFEST_NAME)


REMAKE = "make the artifact again with `onnxopt optimize`"

_R = TypeVar("_R", bound=Record)


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: a file of an artifact.

    Raises:
        InputError: it is missing, unreadable or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no {path.name}: not an artifact", where=str(path.parent), hint=REMAKE) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=str(path), hint=REMAKE) from error
    if not isinstance(data, dict):
        raise InputError("holds no JSON object", where=str(path), hint=REMAKE)
    return data


def validated(kind: type[_R], data: Mapping[str, Any], path: Path) -> _R:
    """Return a record of its JSON.

    Args:
        kind: which record.
        data: the object.
        path: where it was read, for the message.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"malformed at {place}: {first['msg']}{more}", where=str(path), hint=REMAKE) from error
