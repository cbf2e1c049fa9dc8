"""Say what became of the weights that a model came with, out of a ledger that counts every pass by itself.

A pass that folds constants or packs weights makes new ones, and another takes what is left over: what was made on the
way and went again was never in the file, and is no saving. So each pass that takes bytes away is set off against those
that were made before, the latest first, and only what is left came with the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnxopt.records.rewrites import PassRecord

_UNREAD = "no longer read"
# passes that make weights fewer, by why
_REASONS = {
    "remove-unused": _UNREAD,
    "merge-initializers": "duplicate or tied",
    "merge-equal-nodes": "duplicate or tied",
    "fold-constants": "folded",
    "fold-batch-norm": "folded",
    "drop-dead-channels": "pruned",
}
_LIFTING, _INLINING = "lift-constants", "inline-functions"


def net_bytes(ledger: Sequence[PassRecord]) -> list[int]:
    """Return, for each entry, the bytes of the file's own weights that went, or of new ones that stayed (negative).

    A weight in a Constant node came with the file, so lifting it is no change; but where functions were written out,
    the weights in their bodies were multiplied before.

    Args:
        ledger: the passes in order.
    """
    net = [0] * len(ledger)
    made: list[int] = []  # entries with new bytes that are still there, the latest last
    is_inlined = False
    for index, entry in enumerate(ledger):
        is_inlined = is_inlined or (entry.name == _INLINING and entry.applied > 0)
        if entry.name == _LIFTING and entry.bytes_saved < 0 and not is_inlined:
            continue
        net[index] = entry.bytes_saved
        if net[index] < 0:
            made.append(index)
        while net[index] > 0 and made:
            latest = made[-1]
            gone = min(net[index], -net[latest])
            net[index] -= gone
            net[latest] += gone
            if net[latest] == 0:
                made.pop()
    return net


def savings(ledger: Sequence[PassRecord]) -> dict[str, int]:
    """Return the bytes of the file's own weights that went, by why, each reason in the order of the passes.

    What nobody reads since its reader was fused, lowered or quantized has been replaced by something: that is no reason
    of its own.

    Args:
        ledger: the passes in order.
    """
    found: Counter[str] = Counter()
    is_rewritten = False
    for entry, gone in zip(ledger, net_bytes(ledger), strict=True):
        why = _REASONS.get(entry.name)
        if why is not None and gone > 0 and not (why == _UNREAD and is_rewritten):
            found[why] += gone
        is_rewritten = is_rewritten or (entry.applied > 0 and entry.stage != "canonicalize")
    return dict(found)
