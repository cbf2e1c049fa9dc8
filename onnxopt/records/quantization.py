"""What is written down about quantization: calibration, gate, layers, grids."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from onnxopt.records.record import Record
from onnxopt.records.speed import speed_text

NOT_FASTER = "not faster than the float graph on this machine"  # begins the reason where that is why it is shipped
IN_PROMPTS = "in prompts"  # ends what is said of a layer that has a second way


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

    metric: Literal["cosine", "agreement", "rank", "perplexity"]
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

    @property
    def counts(self) -> dict[str, int]:
        """How many layers became what, the most frequent first."""
        named = (f"{one.precision}{' smoothed' if one.smoothed else ''}" for one in self.layers.values())
        return dict(Counter(named).most_common())

    def lines(self) -> list[str]:
        """Say what became of the layers, how the result was judged and by which samples."""
        became = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        if self.half is not None:
            became = f"{self.half.nodes} nodes in {self.half.kind}, {len(self.layers)} that could be stayed in float32"
        if not self.shipped:  # what was never judged was never tried
            became = f"the float graph is shipped; {self.reason}" + (
                f"; tried {became}" if self.gate or self.half else ""
            )
        lines = [f"precision     {self.asked}: {became}"]
        prompts = sum(one.reason.endswith(IN_PROMPTS) for one in self.layers.values())
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
