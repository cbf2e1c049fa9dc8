"""The stage between fusing and quantizing: prune the fused graph, judge what was lost, cut out what is dead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.cache import PAST, SEQUENCE, complete
from onnxopt.driver import Driver
from onnxopt.errors import InputError, ProofError
from onnxopt.model import Array, Feeds, Loaded
from onnxopt.pipeline import TIDY, prepare
from onnxopt.probe import GraphRunner
from onnxopt.prune.graph import prune_channels
from onnxopt.prune.layers import drop_layers
from onnxopt.prune.network import Pruned
from onnxopt.prune.spec import PruneSpec
from onnxopt.prune.zeros import NO_GAIN, set_zeros
from onnxopt.registry import get

BATCHES, ROWS, LENGTH = 12, 8, 128
HELD_OUT = ((16, 900), (32, 901), (64, 902), (128, 903))  # lengths and seeds of what is judged on

Say = Callable[[str], None]


@dataclass(frozen=True)
class PrunedReference:
    """What the rest of the road must be equal to: the pruned graph before anything was cut out of it.

    Attributes:
        name: for reports.
        runner: runs it with the runtime's optimisations off.
    """

    name: str
    runner: GraphRunner

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name."""
        return self.runner.run(dict(feeds))[0]


@dataclass
class GraphPruning:
    """Prunes a loaded model when the pipeline comes to it.

    Attributes:
        loaded: its reference is replaced, since from here on the pruned model is what must not change.
        spec: what to prune.
        least_cosine: the least mean cosine of the answers on held-out inputs; 0 for none.
        batches: calibration feeds; made by the model's own feeder when empty.
        held_out: feeds to judge on; the same.
        say: told what happens.
        report: filled in: what became smaller.
        cosine: filled in: mean cosine of the first output, or of the sentence embedding, on held-out inputs.
    """

    loaded: Loaded
    spec: PruneSpec
    least_cosine: float = 0.0
    batches: Sequence[Feeds] = ()
    held_out: Sequence[Feeds] = ()
    say: Say = lambda _: None
    report: list[Pruned] = field(default_factory=list)
    cosine: float = math.nan

    def __call__(self, driver: Driver) -> None:
        """Prune the driver's model.

        Raises:
            InputError: when what was asked for cannot go.
            ProofError: when less than the least cosine is left.
        """
        model = driver.model
        calibration = list(self.batches) or self._feeds([(LENGTH, seed) for seed in range(BATCHES)])
        held = list(self.held_out) or self._feeds(HELD_OUT)
        before = [GraphRunner(model).run(feeds)[0] for feeds in held]
        if "layers" in self.spec.amounts:
            self.report.append(drop_layers(model, self.spec, calibration, self.say))
            prepare(model, driver.observations)
        self.report += prune_channels(model, self.spec, calibration, self.say)
        if self.spec.zeros:
            self.report += set_zeros(model, self.spec.zeros)
            driver.ledger.notes.append(NO_GAIN)
        driver.forget()
        reference = GraphRunner(model.clone())
        self.cosine = _cosine(before, [reference.run(feeds)[0] for feeds in held])
        driver.ledger.notes.extend(self.notes())
        if self.cosine < self.least_cosine:
            raise ProofError(
                f"mean cosine {self.cosine:.4f} on held-out inputs, the budget is {self.least_cosine:g}",
                where=f"--prune {self.spec}",
                hint="prune less",
            )
        for name in ("drop-dead-channels", *TIDY):
            driver.apply(get(name))
        name = f"the model pruned by {self.spec}, before anything was cut out"
        self.loaded.reference = PrunedReference(name, reference)

    def notes(self) -> list[str]:
        """Return what happened, in sentences."""
        found = []
        for kind in dict.fromkeys(item.kind for item in self.report):
            items = [item for item in self.report if item.kind == kind]
            before, after = (sum(getattr(item, name) for item in items) for name in ("before", "after"))
            extra = "; ".join(dict.fromkeys(item.note for item in items if item.note))
            found.append(f"pruned {kind}: {after} of {before} stay" + (f" ({extra})" if extra else ""))
        found.append(f"pruned: mean cosine with the original {self.cosine:.4f} on held-out inputs")
        return found

    def _feeds(self, wanted: Sequence[tuple[int, int]]) -> list[Feeds]:
        made = []
        cached = PAST in self.loaded.signature.axes
        for length, seed in wanted:
            sizes = {"batch": ROWS, SEQUENCE: length, **({PAST: 0} if cached else {})}
            try:
                made.append(self.loaded.feeder.make(complete(sizes), "none", seed=seed))
            except InputError:
                continue  # longer than the model takes
        if not made:
            raise InputError("no calibration inputs could be made", where=self.loaded.name)
        return made


def _cosine(before: Sequence[Feeds], after: Sequence[Feeds]) -> float:
    """Return the mean cosine of rows of the main output: the sentence embedding, or else the first."""
    total, count = 0.0, 0
    for old, new in zip(before, after, strict=True):
        name = "sentence_embedding" if "sentence_embedding" in old else next(iter(old))
        left, right = (one[name].reshape(-1, one[name].shape[-1]).astype(np.float64) for one in (old, new))
        scale = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = (left * right).sum(axis=1) / np.maximum(scale, 1e-12)
        total, count = total + float(cosines.sum()), count + len(cosines)
    return total / max(count, 1)


def fused_size(model: ir.Model) -> int:
    """Return how many numbers the weights of a graph hold."""
    return sum(one.const_value.size for one in model.graph.initializers.values() if one.const_value is not None)
