"""The precision of every linear layer: the words in which quantization is planned, and how a user writes them.

A plan says for each linear (by its label, see `onnxopt.graph.linears`) how its weight is stored and how its product is
computed. Passes of the quantize stage carry it out; a target decides the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxopt.errors import InputError
from onnxopt.spec import Array

Kind = Literal["fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights"]
KINDS: tuple[Kind, ...] = ("fp32", "int8", "int8-dynamic", "int8-weights", "int4-weights")

HalfKind = Literal["fp16", "bf16"]
HALF_KINDS: tuple[HalfKind, ...] = ("fp16", "bf16")

DEFAULT_BLOCK = 32  # what every runtime that reads block-quantized weights takes


@dataclass(frozen=True)
class Precision:
    """How one linear layer computes.

    Attributes:
        kind: `fp32`; `int8` with activations quantized by fixed, calibrated scales; `int8-dynamic` with scales taken
            from each request; `int8-weights` and `int4-weights` with float activations.
        block_size: rows of the weight that share a scale, for weights only; 0 otherwise.
        symmetric: without zero points, for weights only.
    """

    kind: Kind = "fp32"
    block_size: int = 0
    symmetric: bool = True

    def __str__(self) -> str:
        if not self.block_size:
            return self.kind
        return f"{self.kind}:{self.block_size}{'' if self.symmetric else ':asymmetric'}"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read `fp32`, `int8`, `int8-dynamic`, `int8-weights:128` or `int4-weights:32:asymmetric`."""
        kind, *rest = text.strip().lower().split(":")
        known = next((one for one in KINDS if one == kind), None)
        if known is None:
            raise InputError(f"unknown precision {kind!r}", hint=f"use one of {', '.join(KINDS)}")
        if not known.endswith("-weights"):
            if rest:
                raise InputError(f"{kind} takes no block size", where=text, hint="write it alone")
            return cls(known)
        block, symmetric = DEFAULT_BLOCK, True
        for part in rest:
            if part.isdigit() and 16 <= int(part) <= 256 and int(part) & (int(part) - 1) == 0:
                block = int(part)
            elif part in ("symmetric", "asymmetric"):
                symmetric = part == "symmetric"
            else:
                raise InputError(
                    f"cannot read {part!r} of the precision {text!r}",
                    hint="write int4-weights:32, a block of 16, 32, 64, 128 or 256, and :asymmetric for zero points",
                )
        return cls(known, block, symmetric)


@dataclass(frozen=True)
class Affine:
    """A uniform grid of integers: real = scale · (integer − zero_point).

    Attributes:
        scale: step of the grid.
        zero_point: the integer that stands for 0.
        dtype: NumPy name, `uint8` or `int8`.
    """

    scale: float
    zero_point: int
    dtype: str = "uint8"

    @property
    def unsigned(self) -> int:
        """The zero point of the same grid in uint8."""
        return self.zero_point + (128 if self.dtype == "int8" else 0)


@dataclass(frozen=True)
class Scheme:
    """How a target wants int8.

    Attributes:
        symmetric: inputs without a zero point, in int8, as TensorRT computes them; else uint8 with one.
        weight_bits: 7 where a sum of two u8 × s8 products saturates in 16 bits: x86 without VNNI.
    """

    symmetric: bool = False
    weight_bits: int = 8


@dataclass(frozen=True)
class Blocked:
    """A weight in blocks along its input axis, as MatMulNBits stores it.

    Attributes:
        codes: uint8 [out, in], one unsigned code per element, not yet packed; below 2^bits.
        scales: float32 [out, blocks].
        zero_points: uint8 [out, blocks], or None for the middle of the codes everywhere (8 or 128).
        bits: 4 or 8.
        block_size: columns of `codes` that share a scale; the last block may be shorter.
    """

    codes: Array
    scales: Array
    zero_points: Array | None
    bits: int
    block_size: int

    def outputs(self, start: int, stop: int) -> Blocked:
        """Return the codes of some outputs: the rows from `start` on and before `stop`."""
        points = None if self.zero_points is None else self.zero_points[start:stop]
        return Blocked(self.codes[start:stop], self.scales[start:stop], points, self.bits, self.block_size)


@dataclass(frozen=True)
class PlannedLinear:
    """What becomes of one linear layer or convolution.

    Attributes:
        precision: how it computes.
        reason: why it is kept in float, or why it was chosen; empty when the plan's default holds.
        activation: the grid of its input, for `int8`.
        columns: for `int8` and `int8-dynamic`: int8 [in, out] codes and float32 [out] scales of the weight; of a
            convolution the codes have the shape of its weight, [out, ...].
        blocks: for weights only.
        bias: float32 [out] to use instead of the layer's own, corrected for what quantization shifts.
        factors: float32 [in]; the input is divided by them before it is quantized, and `columns` are those of the
            weight whose rows are multiplied by them.
    """

    precision: Precision
    reason: str = ""
    activation: Affine | None = None
    columns: tuple[Array, Array] | None = None
    blocks: Blocked | None = None
    bias: Array | None = None
    factors: Array | None = None

    @classmethod
    def as_given(cls, blocks: Blocked) -> PlannedLinear:
        """Return a layer in codes that stand for its weight exactly, as its checkpoint has them."""
        kind: Kind = "int4-weights" if blocks.bits == 4 else "int8-weights"
        precision = Precision(kind, blocks.block_size, blocks.zero_points is None)
        return cls(precision, "the checkpoint's own grid", blocks=blocks)


@dataclass(frozen=True)
class Plan:
    """What becomes of every linear layer, convolution and table of a model, by label.

    Attributes:
        linears: the layers.
        grids: of the tensors that convolutions and what lies between them exchange in integers, by name.
        symmetric: the target takes biases in float, and all grids without a zero point.
    """

    linears: Mapping[str, PlannedLinear] = field(default_factory=dict)
    grids: Mapping[str, Affine] = field(default_factory=dict)
    symmetric: bool = False

    def get(self, label: str, kind: Kind) -> PlannedLinear | None:
        """Return the plan of a linear when it is of that kind."""
        found = self.linears.get(label)
        return found if found is not None and found.precision.kind == kind else None

    def __iter__(self) -> Iterator[tuple[str, PlannedLinear]]:
        return iter(self.linears.items())

    def __len__(self) -> int:
        return len(self.linears)


@dataclass(frozen=True)
class HalfPlan:
    """What of a lowered graph computes and is stored in 16 bits.

    Attributes:
        kind: `fp16` or `bf16`.
        wide: nodes that could and yet stay in float32, by the name of their first output, with the reason.
        caches: inputs and outputs of the graph that are handed over in 16 bits; all others stay as they are.
    """

    kind: HalfKind = "fp16"
    wide: Mapping[str, str] = field(default_factory=dict)
    caches: frozenset[str] = frozenset()
