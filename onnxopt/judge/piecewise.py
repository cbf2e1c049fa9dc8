"""What a large language model loses on texts, run piece by piece, so that the weights of one piece are in use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.data import feeds_of
from onnxopt.judge.language_models import token_losses
from onnxopt.load.loaded import Loaded
from onnxopt.probe.pieces import Piece, Pieces
from onnxopt.records.events import Step
from onnxopt.spec import Feeds, Say

LOGITS = "logits"


def piecewise_losses(loaded: Loaded, model: ir.Model, rows: Sequence[tuple[int, ...]], say: Say) -> list[float] | None:
    """Return the mean negative log likelihood of the tokens of each row but its first, in nats.

    Args:
        loaded: the model, for its inputs.
        model: a float graph of it, with `logits`.
        rows: token ids; what crosses between pieces is held for all of them.
        say: told what is done.

    Returns:
        One number per row; None where the graph answers for the last position only.

    Raises:
        ProbeError: the model does not run.
    """
    pieces = Pieces.to_output(model, LOGITS)
    every = [np.array([row], np.int64) for row in rows]
    numbers = count(1)

    def begin(_: Piece) -> Feeds:
        say(Step.piece("judge: original, part", next(numbers), len(pieces.pieces)))
        return {}

    found = []
    for logits, ids in zip(pieces.results([feeds_of(loaded, ids) for ids in every], begin), every, strict=True):
        if logits.shape[1] != ids.shape[1]:
            return None
        found.append(float(np.mean(token_losses(logits, ids))))
    return found
