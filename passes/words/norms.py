"""What normalizations have in common."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import dims, integers, rank
from onnxopt.rewrite import Match

SKIP_EPSILON = 1e-12


def require_last_axis(match: Match, x: ir.Value, *names: str) -> None:
    """Refuse unless every bound list of axes means the last axis of x."""
    last = (rank(x) or 0) - 1
    for name in names:
        axes = integers(match.values.get(name))
        match.require(axes is None or axes[0] in (-1, last), f"reduces axis {axes and axes[0]}, not the last", x)


def require_vector(match: Match, x: ir.Value, *names: str) -> None:
    """Refuse unless every bound constant is a vector as long as the last axis of x."""
    width = (dims(x) or (None,))[-1]
    for name in names:
        value = match.values.get(name)
        if value is not None:
            match.require(dims(value) == (width,), f"{name} has shape {dims(value)}, needs [{width}]", value)
