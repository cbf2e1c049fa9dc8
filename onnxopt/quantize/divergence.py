"""Measure what other weights do to the words that a language model predicts: the divergence KL(p ‖ q), in nats.

p are the probabilities of the model as it is, q those with other weights. Small models are run whole, in one session
whose weights are inputs, so that a swap costs no new one; large ones piece by piece, so that what is swapped in is
restored from its codes for one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from onnxopt.graph.layers import Layers
from onnxopt.probe.pieces import Piece, Pieces
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.blocks import dequantize, restored
from onnxopt.qmath.precision import Blocked
from onnxopt.spec import Array, Feeds

LOGITS, IDS = "logits", "input_ids"
CLOSEST, MOST_KEPT = 2, 1 << 26  # every how manieth position is compared; numbers that are kept of what is predicted
ROWS_AT_ONCE = 64
OUTPUTS_AT_ONCE = 4096  # of a weight that is restored


class Probe(Protocol):
    """Measures the divergence of a model whose weights are replaced."""

    def diverged(self, blocks: Mapping[str, Blocked]) -> float:
        """Return the mean divergence in nats, for the codes of layers by label."""

    def release(self) -> None:
        """Let go of the session and of the weights it reads; the next run opens them again."""


class LanguageProbe:
    """A language model with weights that can be replaced for one run.

    Args:
        layers: of a float graph with `logits` of all positions, which is not changed.
        windows: inputs without padding; what the last `input_ids` of a window predicts is not known.
    """

    def __init__(self, layers: Layers, windows: Sequence[Feeds]) -> None:
        self.linears = {linear.label: linear for linear in layers.linears}
        self.windows = list(windows)
        self._model = layers.model
        self._runner: GraphRunner | None = None
        self._base: list[Array] = []

    def logits(self, window: Feeds, replaced: Mapping[str, Array] | None = None) -> Array:
        """Return float32 [batch, sequence, words].

        Args:
            window: the inputs.
            replaced: float32 [in, out] weights by label.
        """
        swaps = {}
        for label, weight in (replaced or {}).items():
            linear = self.linears[label]
            swaps[linear.weight.name or ""] = np.ascontiguousarray(weight.T if linear.transposed else weight)
        if self._runner is None:
            self._runner = GraphRunner(self._model)
        return self._runner.run({**window, **swaps})[0][LOGITS]

    def release(self) -> None:
        """Let go of the session and of the weights it reads; the next run opens them again."""
        self._runner = None

    def diverged(self, blocks: Mapping[str, Blocked]) -> float:
        """Return the mean divergence in nats, for the codes of layers by label."""
        return self.divergence({label: dequantize(one) for label, one in blocks.items()})

    def divergence(self, replaced: Mapping[str, Array], *, most: int | None = None) -> float:
        """Return the mean KL(p ‖ q) of the words predicted by the model, p, and with replaced weights, q, in nats.

        Args:
            replaced: float32 [in, out] weights by label.
            most: the most windows to run.
        """
        windows = self.windows[:most]
        for window in windows[len(self._base) :]:
            self._base.append(_log_softmax(self._compared(window)))
        return _mean(self._base, (self._compared(window, replaced) for window in windows))

    def _compared(self, window: Feeds, replaced: Mapping[str, Array] | None = None) -> Array:
        return compared(self.logits(window, replaced), self.windows)


class PiecewiseProbe:
    """A large language model in pieces, run with the weights that codes stand for.

    Args:
        pieces: to its logits of all positions.
        layers: of the same graph.
        windows: inputs without padding; what crosses between pieces is held for all of them.
    """

    def __init__(self, pieces: Pieces, layers: Layers, windows: Sequence[Feeds]) -> None:
        self._pieces, self._windows = pieces, list(windows)
        self._linears = layers.linears
        self._base: list[Array] = []

    def release(self) -> None:
        """Nothing is open between two runs."""

    def diverged(self, blocks: Mapping[str, Blocked]) -> float:
        """Return the mean divergence in nats, for the codes of layers by label."""
        if not self._base:
            known = self._pieces.results(self._windows)
            self._base = [_log_softmax(compared(logits, self._windows)) for logits in known]
        found = self._pieces.results(self._windows, lambda piece: self._swapped(piece, blocks))
        return _mean(self._base, (compared(logits, self._windows) for logits in found))

    def _swapped(self, piece: Piece, blocks: Mapping[str, Blocked]) -> Feeds:
        """Return the weights of a piece that have codes, by name, as its graph reads them."""
        weights = set(piece.weights)
        return {
            linear.weight.name or "": _restored(blocks[linear.label], transposed=linear.transposed)
            for linear in self._linears
            if linear.weight in weights and linear.label in blocks  # a table that shares it is replaced too
        }


def _restored(blocked: Blocked, *, transposed: bool) -> Array:
    """Return the float32 [in, out] weight that codes stand for, or [out, in], some outputs at a time."""
    outputs, inputs = blocked.codes.shape
    made = np.empty((outputs, inputs) if transposed else (inputs, outputs), np.float32)
    for start in range(0, outputs, OUTPUTS_AT_ONCE):
        own = restored(blocked.outputs(start, start + OUTPUTS_AT_ONCE))
        if transposed:
            made[start : start + OUTPUTS_AT_ONCE] = own
        else:
            made[:, start : start + OUTPUTS_AT_ONCE] = own.T
    return made


def compared(logits: Array, windows: Sequence[Feeds]) -> Array:
    """Return float32 [positions, words]: logits of some positions, as many as may be kept of all windows.

    Args:
        logits: float32 [batch, sequence, words].
        windows: inputs of all runs.
    """
    tokens = sum(one[IDS].size for one in windows)
    every = max(CLOSEST, -(-tokens * logits.shape[-1] // MOST_KEPT))
    return logits[:, ::every].reshape(-1, logits.shape[-1])


def _mean(known: Sequence[Array], found: Iterable[Array]) -> float:
    """Return the mean divergence of logits from the logarithms of known probabilities, [positions, words] each."""
    total, count = 0.0, 0
    for own, logits in zip(known, found, strict=False):
        for start in range(0, len(logits), ROWS_AT_ONCE):
            p, rows = own[start : start + ROWS_AT_ONCE], logits[start : start + ROWS_AT_ONCE]
            total += float((np.exp(p) * (p - _log_softmax(rows))).sum())
        count += len(logits)
    return total / max(count, 1)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
