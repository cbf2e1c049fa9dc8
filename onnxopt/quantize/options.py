"""What a user asks of quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxopt.calibrate.ranges import METHODS, Method
from onnxopt.calibrate.sources import NONE
from onnxopt.errors import InputError
from onnxopt.host.machine import describe_machine
from onnxopt.judge.metrics import DEFAULT_BUDGETS, MetricBudget, MetricName
from onnxopt.qmath.precision import HALF_KINDS, HalfKind, Precision, Scheme
from onnxopt.spec import Target
from onnxopt.texts.files import BUILTIN

INT4_BUDGET = MetricBudget("perplexity", 1.08)
# A block of 32 in 4 bits takes as long as one of 128 in 8 bits, and loses more.
INT8_CHOICES = tuple(Precision("int8-weights", block) for block in (128, 64, 32))
INT4_CHOICES = (Precision("int4-weights", 128), Precision("int4-weights", 64), INT8_CHOICES[0])

HALF_IO = ":io"  # behind fp16 or bf16: inputs and outputs in 16 bits, too

Wanted = Literal["auto", "mixed"]


@dataclass(frozen=True)
class HalfOptions:
    """What a user asks of 16 bits.

    Attributes:
        kind: `fp16` or `bf16`.
        budget: how far the task's metric may fall; None leaves it to the proofs of the tensors.
        calibration: where the samples come from, see `read_calibration`.
        samples: how many at most.
        force: accept calibration data that says nothing.
        with_io: hand over all float inputs and outputs in 16 bits, not only a cache.
        asked: the precision as the user wrote it.
    """

    kind: HalfKind = "fp16"
    budget: MetricBudget | None = None
    calibration: str = BUILTIN
    samples: int | None = None
    force: bool = False
    with_io: bool = False
    asked: str = "fp16"


@dataclass(frozen=True)
class QuantizeOptions:
    """How far a model may be quantized, and by which data.

    Attributes:
        precision: of every linear layer; `auto` lets measurements choose for the model, `mixed` for each layer.
        budget: how far the metric may fall; the default of the metric when None.
        calibration: where the samples come from, see `read_calibration`.
        samples: how many at most.
        methods: calibrators to compare.
        keep: selector of layers that stay in float.
        force: accept calibration data that says nothing.
        allow_slower: a result that is not faster than the float graph is shipped, too.
        asked: the precision as the user wrote it.
    """

    precision: Precision | Wanted = "auto"
    budget: MetricBudget | None = None
    calibration: str = BUILTIN
    samples: int | None = None
    methods: tuple[Method, ...] = METHODS
    keep: str = ""
    force: bool = False
    allow_slower: bool = False
    asked: str = "auto"

    def __post_init__(self) -> None:
        """Refuse to do without samples where they decide.

        Raises:
            InputError: not weights alone are quantized, and samples are not wanted.
        """
        weights_alone = isinstance(self.precision, Precision) and self.precision.kind.endswith("-weights")
        if self.calibration == NONE and not weights_alone:
            raise InputError(
                f"{self.asked} takes samples: only weights in fewer bits do without",
                where="--calibration none",
                hint="use --precision int4-weights or int8-weights, or give samples",
            )

    def default_budget(self, metric: MetricName) -> MetricBudget:
        """Return the budget that holds when none was asked for; 4 bits by name cost more than 2 % of perplexity."""
        four_bits = isinstance(self.precision, Precision) and self.precision.kind == "int4-weights"
        return INT4_BUDGET if four_bits and metric == "perplexity" else DEFAULT_BUDGETS[metric]

    def of_decoder(self) -> list[Precision]:
        """Return the precisions that layers of a decoder may get: weights only, whose kernels are fast on one row."""
        if isinstance(self.precision, Precision):
            if ":" in self.asked and self.precision.kind.endswith("-weights"):
                return [self.precision]
            return list(INT4_CHOICES if self.precision.kind == "int4-weights" else INT8_CHOICES)
        return [*INT4_CHOICES, *INT8_CHOICES[1:]]

    @property
    def both_ways(self) -> bool:
        """Tell whether a language model may get integers on both sides where it reads prompts."""
        return not isinstance(self.precision, Precision) or self.precision.kind == "int8"

    @classmethod
    def parse_precision(cls, text: str, target: Target) -> Precision | Wanted | HalfKind | None:
        """Read `--precision` for a target; None for fp32. On a GPU `auto` is fp16.

        Raises:
            InputError: the precision is unknown, or the target has no kernels for it.
        """
        name = text.strip().lower()
        on_gpu = target.provider in ("cuda", "tensorrt")
        plain = name.removesuffix(HALF_IO)
        half = next((kind for kind in HALF_KINDS if kind == plain), "fp16" if name == "auto" and on_gpu else None)
        if half is not None:
            if on_gpu:
                return half
            raise InputError(
                f"{name} is not made for target {target.provider}",
                hint="ONNX Runtime's CPU provider computes fp16 graphs in float with casts around every operator"
                if target.provider == "cpu"
                else "use fp32",
            )
        if name in ("auto", "mixed"):
            found: Precision | Wanted = "auto" if name == "auto" else "mixed"
        else:
            found = Precision.parse(name)
            if found.kind == "fp32":
                return None
        if target.provider == "cuda" and not (isinstance(found, Precision) and found.kind.endswith("-weights")):
            raise InputError(
                f"ONNX Runtime's CUDA provider has no int8 linear layers, so {name} would run them in float",
                where="target cuda",
                hint="use --precision fp16, or --target tensorrt for int8",
            )
        return found


def scheme_of(target: Target) -> Scheme:
    """Return how a target wants int8: TensorRT without zero points; an x86 without VNNI with 7-bit weights."""
    if target.provider == "tensorrt":
        return Scheme(symmetric=True)
    machine = describe_machine()
    isa = machine.get("isa") or ()
    is_x86 = str(machine.get("architecture", "")).lower() in ("x86_64", "amd64")
    return Scheme(weight_bits=7 if is_x86 and not any("vnni" in str(flag) for flag in isa) else 8)
