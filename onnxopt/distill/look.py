"""Look at held-out rows: perplexity of a language model, agreement or likeness with the teacher of others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxopt.distill import losses
from onnxopt.distill.batches import Batches
from onnxopt.load.checkpoint.opened import Opened, answers
from onnxopt.spec import Array
from onnxopt.texts.rows import IGNORED, Rows

PIECE = 16  # rows that are evaluated together
METRICS = {
    "text-generation": ("perplexity", "lower"),
    "fill-mask": ("agreement with the teacher", "higher"),
    "text-classification": ("agreement with the teacher", "higher"),
    "token-classification": ("agreement with the teacher", "higher"),
    "feature-extraction": ("mean cosine with the teacher", "higher"),
}


@dataclass
class Look:
    """Judges networks on the same rows, over all processes; what the teacher says of them is asked once.

    Attributes:
        engine: accelerate's.
        batches: makes tensors of rows.
        held: the rows.
        teacher: on the engine's device.
        teacher_head: makes its embedding; None without one.
    """

    engine: Any
    batches: Batches
    held: Rows
    teacher: Opened
    teacher_head: Any
    targets: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.teacher.task.name == "text-generation":
            self.targets = [None for _ in self._pieces()]  # the text says what is right
        else:
            self.targets = [self._said(self.teacher.network, self.teacher_head, index)[0] for index in self._pieces()]

    def metric(self, network: Any, head: Any) -> float:
        """Return the metric of a network with its head."""
        import torch

        total, count = 0.0, 0
        for index, target in zip(self._pieces(), self.targets, strict=True):
            said, wanted = self._said(network, head, index)
            if target is None:
                total += float(losses.labels(said, wanted))
                count += int((wanted != IGNORED).sum())
            elif target.is_floating_point():
                total, count = total + len(said) * losses.likeness(said, target), count + len(said)
            else:
                total, count = total + float((said == target).sum()), count + len(said)
        both = self.engine.reduce(torch.tensor([total, float(count)], device=self.engine.device), "sum")
        mean = float(both[0] / both[1].clamp(min=1))
        return math.exp(min(mean, 700.0)) if self.teacher.task.name == "text-generation" else mean

    def _pieces(self) -> list[Array]:
        own = np.arange(len(self.held))[self.engine.process_index :: self.engine.num_processes]
        return [own[start : start + PIECE] for start in range(0, len(own), PIECE)]

    def _said(self, network: Any, head: Any, index: Array) -> tuple[Any, Any]:
        """Return logits with what is right, or the likeliest classes, or vectors, at what counts in some rows."""
        import torch

        batch = self.batches.make(self.held, index, 0)
        with torch.inference_mode(), self.engine.autocast():
            given = answers(network, head, batch.feeds)
        if self.teacher.task.name == "text-generation":
            return given["logits"][batch.tokens], batch.wanted[batch.tokens]
        if "logits" in given:
            best = given["logits"].argmax(dim=-1)
            return best[batch.tokens] if best.ndim == 2 else best, None
        return given["embedding"] if "embedding" in given else given["last"][batch.tokens], None
