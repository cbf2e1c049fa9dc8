"""A loaded model: its graph, its contract, and the means to prove a rewrite of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from onnxopt.spec import Array, AxisRange, Feeds, Padding, Signature

if TYPE_CHECKING:
    from onnxopt.probe.draws import Draws


class Reference(Protocol):
    """The model that a candidate must be equal to."""

    @property
    def name(self) -> str:
        """What it is, for reports: `torch 2.13.0 BertModel float32`."""

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name for inputs by name."""


class Feeder(Protocol):
    """Makes inputs that the model accepts, as a user would send them."""

    def make(self, sizes: Mapping[str, int], padding: Padding = "none", seed: int = 0) -> Feeds:
        """Return one array per input.

        Args:
            sizes: a size for each dynamic axis; a missing axis takes the feeder's default.
            padding: where padded positions lie in each row but the first; ignored by a model without a mask.
            seed: same seed, same inputs.
        """


@dataclass
class Loaded:
    """What `load` hands to the rest of the road.

    Attributes:
        name: short name of the artifact, from the recipe or the source.
        model: the graph, ai.onnx operators as the exporter wrote them, with named axes.
        signature: inputs and outputs; no pass may change it.
        reference: what the result must be equal to.
        feeder: makes inputs of any size.
        task: the transformers task name (`feature-extraction`, ...), or `onnx` for an imported file.
        assets: tokenizer, processor and config files to copy into the artifact.
        origin: where it came from, for the manifest: source, revision, weights hash, exporter, versions.
        notes: sentences for the ledger, such as "dynamo failed (...); exported with TorchScript".
        proved_sizes: the sizes at which the exported file was run against the reference.
        ranges: sizes of an axis at which the model runs, where those are not all from 1 on.
        tied: groups of axes that only run at equal sizes.
        ones: axes that also run at size 1, whatever their range and the axes they are tied to say: they are broadcast.
        pinned: axes that run at other sizes than the usual one only while all others keep theirs.
        turning: sizes of an axis at which something in the graph changes, derived from it.
        names: of axes in the file, by the names that they have in here, where those differ.
        free: names of inputs that may hold anything: a mask among them need not be of 0 and 1.
        random_weights: true when the weights are made up and accuracy means nothing.
        draws: what the graph draws at random, taken out of it for as long as it is worked on.
    """

    name: str
    model: ir.Model
    signature: Signature
    reference: Reference
    feeder: Feeder
    task: str
    assets: tuple[Path, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    proved_sizes: tuple[Mapping[str, int], ...] = ()
    ranges: Mapping[str, AxisRange] = field(default_factory=dict)
    random_weights: bool = False
    tied: tuple[tuple[str, ...], ...] = ()
    ones: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    turning: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    draws: Draws | None = None

    def runnable(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes that are moved into the range of each axis; axes that are tied take the size of the first."""
        fitted = {
            axis: known.fitted(size) if (known := self.ranges.get(axis)) and not self._is_one(axis, size) else size
            for axis, size in sizes.items()
        }
        for group in self.tied:
            bound = [axis for axis in group if axis in fitted and not self._is_one(axis, fitted[axis])]
            fitted.update(dict.fromkeys(bound, fitted[bound[0]] if bound else 1))
        return fitted

    def _is_one(self, axis: str, size: int) -> bool:
        return size == 1 and axis in self.ones

    def shown(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes under the names that the axes have in the file."""
        return {self.names.get(axis, axis): size for axis, size in sizes.items()}

    def known(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes under the names that the axes have in here; the inverse of `shown`."""
        inner = {name: axis for axis, name in self.names.items()}
        return {inner.get(axis, axis): size for axis, size in sizes.items()}

    def range_of(self, axis: str) -> AxisRange:
        """Return the sizes of an axis at which the model runs."""
        return self.ranges.get(axis, AxisRange())

    def usual(self, axis: str, otherwise: int) -> int:
        """Return the size at which an axis was run first, such as the height of an image; of texts, `otherwise`."""
        of_text = "sequence" in self.signature.axes
        return otherwise if of_text or not self.proved_sizes else self.proved_sizes[0].get(axis, otherwise)
