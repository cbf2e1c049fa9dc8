"""Take channels out of the weights when everything that reads them multiplies them by zero.

Before::

    x ─ MatMul(W₁ [d, n]) ─ Gelu ─ MatMul(W₂ [n, d]) ─ y          rows of W₂ that are zero

After::

    x ─ MatMul(W₁ [d, m]) ─ Gelu ─ MatMul(W₂ [m, d]) ─ y          m < n

Meets: feed-forward blocks, plain and gated; whole heads of an attention, with the query heads that share a key head;
    channels of convolutions through residuals and concatenations. What decides that a channel may go sets its readers
    to zero (`onnxopt.prune`); this pass then proves, as for any other rewrite, that the smaller graph is equal.
Numerics: reassociated. Products of other sizes add in another order.
Source: dependency groups as in Fang et al. 2023 (DepGraph), arXiv:2301.12900.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph.channels.groups import Channels, Group
from onnxopt.graph.channels.sizes import Ids
from onnxopt.graph.channels.walk import find_channels
from onnxopt.probe.annotate import forget_shape
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@register
class DropDeadChannels(Pass):
    """MatMul(f(MatMul(x, W₁ [d, n])), W₂ [n, d]) with rows of zeros in W₂  →  the same with m < n."""

    name = "drop-dead-channels"
    numerics = Reassociated(rtol=5e-5, atol=5e-6)
    makes_weights = True

    def run(self, model: ir.Model) -> int:
        """Remove; returns how many weights became smaller."""
        found = find_channels(model)
        gone = [dead_members(group) for group in found.groups()]
        if not any(len(one) for one in gone):
            return 0
        return _remove(model, found, np.concatenate(gone))


def dead_members(group: Group) -> Ids:
    """Return the members that no reader looks at; at least one member stays."""
    alive = np.zeros(int(group.members.max()) + 1, bool)
    for slot in group.readers():
        used = np.any(slot.rows() != 0, axis=1)
        ids = slot.ids[used]
        alive[ids[ids < len(alive)]] = True
    dead = group.members[~alive[group.members]]
    return dead[1:] if len(dead) == len(group.members) else dead


def _remove(model: ir.Model, found: Channels, gone: Ids) -> int:
    count = found.remove(model, gone)
    for node in model.graph:  # their sizes are others now
        for value in node.outputs:
            if not value.is_graph_output():
                forget_shape(value)
    return count
