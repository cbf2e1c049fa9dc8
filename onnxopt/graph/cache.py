"""The contract of a decoder's cache of keys and values: names, shapes, and how sizes of axes hang together.

A graph with a cache takes `past_key_values.N.key` and `.value` [batch, kv_heads, past_sequence, size] and gives
`present.N.key` and `.value` [batch, kv_heads, total_sequence, size], where total = past + sequence. Positions lie in
the order in which they were given; a window is a matter of the mask, not of the cache. The names are those that
optimum, onnxruntime-genai and transformers.js use. In files the axis `batch` of such a graph is called `batch_size`:
transformers.js makes the empty past from the names of its axes, and this is the one that it knows.

The decoder of an encoder-decoder says `past_key_values.N.decoder.key` and `present.N.decoder.key`. What it knows of the
encoder's text does not grow: the encoder gives `present.N.encoder.key` and `.value` [batch, heads, sequence, size], and
the decoder takes them at every step as `past_key_values.N.encoder.key` [batch, heads, encoder_sequence, size].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.spec import Array, Signature, TensorSpec

Part = Literal["key", "value"]
PARTS: tuple[Part, ...] = ("key", "value")

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past_sequence", "total_sequence"
ENCODER_MASK = "encoder_attention_mask"  # of the decoder of an encoder-decoder, over the encoder's text
ENCODED = "encoder_sequence"  # positions of the text that a decoder looks at across
Side = Literal["", "decoder", "encoder"]
_PAST = re.compile(r"past_key_values\.(\d+)\.(?:(decoder)\.)?(key|value)")


_ACROSS = re.compile(r"past_key_values\.(\d+)\.encoder\.(key|value)")


def past_name(layer: int, part: Part, side: Side = "") -> str:
    """Return the name of the input that brings what a layer has seen."""
    return f"past_key_values.{layer}.{side}{'.' if side else ''}{part}"


def present_name(layer: int, part: Part, side: Side = "") -> str:
    """Return the name of the output that holds what a layer has seen now."""
    return f"present.{layer}.{side}{'.' if side else ''}{part}"


def encoded_name(given: str) -> str:
    """Return the encoder's output that a decoder's input takes, an empty string for other inputs."""
    found = _ACROSS.fullmatch(given)
    if found is None:
        return ""
    return present_name(int(found.group(1)), "key" if found.group(2) == "key" else "value", "encoder")


@dataclass(frozen=True)
class CacheLayer:
    """One attention's part of the cache.

    Attributes:
        index: N of the names; layers without a cache have no entry.
        heads: heads of keys and values.
        key_size: last dimension of the keys.
        value_size: last dimension of the values.
        dtype: NumPy name.
        side: part of the names in an encoder-decoder.
    """

    index: int
    heads: int
    key_size: int
    value_size: int
    dtype: str
    side: Side = ""

    def size(self, part: Part) -> int:
        """Return the last dimension of keys or values."""
        return self.key_size if part == "key" else self.value_size

    def spec(self, part: Part, *, present: bool = False) -> TensorSpec:
        """Return name, dtype and axes of an input, or of an output when `present`."""
        name = (present_name if present else past_name)(self.index, part, self.side)
        lengths = (SEQUENCE, ENCODED) if self.side == "encoder" else (TOTAL, PAST)
        return TensorSpec(name, self.dtype, (BATCH, self.heads, lengths[0 if present else 1], self.size(part)))


@dataclass(frozen=True)
class Cache:
    """The whole cache, layers in order of their index."""

    layers: tuple[CacheLayer, ...]

    @classmethod
    def of(cls, signature: Signature) -> Cache | None:
        """Read the cache off a signature; None for a model without one."""
        found: dict[int, dict[str, TensorSpec]] = {}
        side: Side = ""
        for spec in signature.inputs:
            name = _PAST.fullmatch(spec.name)
            if name is not None:
                found.setdefault(int(name.group(1)), {})[name.group(3)] = spec
                side = "decoder" if name.group(2) else side
        whole = {index: parts for index, parts in found.items() if set(parts) == set(PARTS)}
        if not whole:
            return None
        return cls(
            tuple(
                CacheLayer(
                    index,
                    int(parts["key"].axes[1]),
                    int(parts["key"].axes[3]),
                    int(parts["value"].axes[3]),
                    parts["key"].dtype,
                    side,
                )
                for index, parts in sorted(whole.items())
            )
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The past, in graph order: keys and values of each layer."""
        return tuple(layer.spec(part) for layer in self.layers for part in PARTS)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The present, in the same order."""
        return tuple(layer.spec(part, present=True) for layer in self.layers for part in PARTS)


def complete(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes with `total_sequence` as past and new tokens make it, when there is a past axis."""
    if PAST not in sizes:
        return dict(sizes)
    return {**sizes, TOTAL: sizes[PAST] + sizes.get(SEQUENCE, 0)}


def complete_all(sizes: Mapping[str, int], axes: Iterable[str], index: int) -> dict[str, int]:
    """Return sizes as `complete` does, with one for the encoder's text where a decoder looks at one.

    Args:
        sizes: of batch, sequence and past.
        axes: of the signature.
        index: number of the case; texts of different lengths take turns.
    """
    full = complete(sizes)
    return {ENCODED: ENCODED_LENGTHS[index % len(ENCODED_LENGTHS)], **full} if ENCODED in axes else full


ENCODED_LENGTHS = (9, 1, 34, 130)
SERVED_BATCH = "batch_size"


def served(signature: Signature, names: Mapping[str, str] | None = None) -> Signature:
    """Return a signature as the file has it.

    Args:
        signature: as onnxopt speaks of it.
        names: what axes are called in the file that was imported, by their names in here; the `batch` of a model with a
            cache that is not among them gets the name that other programs look for.
    """
    inputs, outputs = (
        tuple(replace(spec, axes=tuple((names or {}).get(str(axis), axis) for axis in spec.axes)) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    )
    return _with_axis(replace(signature, inputs=inputs, outputs=outputs), BATCH, SERVED_BATCH)


def _with_axis(signature: Signature, old: str, new: str) -> Signature:
    if not any(_PAST.fullmatch(spec.name) and spec.axes[:1] == (old,) for spec in signature.inputs):
        return signature
    inputs, outputs = (
        tuple(replace(spec, axes=tuple(new if axis == old else axis for axis in spec.axes)) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    )
    return replace(signature, inputs=inputs, outputs=outputs)


PADDING_KEY = "onnxopt.run.padding"  # in a graph's metadata: `right` when that is the only padding it is made for
CONTEXT_KEY = "onnxopt.context_length"  # in a graph's metadata: the most positions the model takes
LAYOUT_KEY = "onnxopt.cache_layout"  # in a graph's metadata; a cache without it is aligned
COLUMNS_KEY = "onnxopt.columns"  # in a graph's metadata: distances were counted in columns, packed rows count tokens
PACKED = "packed"  # a row's real tokens lie at the front of the cache, wherever its padding was among the inputs


def keeps_packed(model: ir.Model) -> bool:
    """Tell whether a graph keeps a row's real tokens at the front of its cache."""
    return model.graph.metadata_props.get(LAYOUT_KEY) == PACKED


def packed_rows(mask: Array) -> Array:
    """Return bool [batch, total]: where a packed cache holds the real tokens of a padding mask [batch, total]."""
    real = np.asarray(mask) != 0
    return np.asarray(np.arange(real.shape[1])[None] < real.sum(axis=1)[:, None])
