"""Time left of work that is done in pieces, from how long the pieces so far took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxopt.records.events import Step

_MINUTE, _HOUR = 60.0, 3600.0
_SHORT = 90.0  # seconds, and minutes, up to which a time is told in them


@dataclass
class _Work:
    """When how many pieces of a work were done: where it was first seen, and where the next piece was done.

    Attributes:
        total: pieces in all.
        last: how many were done when it was last seen.
        first: pieces and seconds.
        second: the same.
    """

    total: int
    last: int
    first: tuple[int, float]
    second: tuple[int, float] | None = None


class Pace:
    """Remembers the pace of each work of a stage.

    The first piece often takes longer than all others: something is loaded, compiled or measured for it. It counts as
    long as it is the only one.
    """

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def seconds_left(self, step: Step, now: float) -> float | None:
        """Return the seconds that the rest of a work will take, None as long as no piece of it is done.

        Args:
            step: how far it is.
            now: seconds on a clock that goes only forward.
        """
        known = self._works.get(step.work)
        if known is None or known.total != step.total or step.done < known.last:  # begun anew
            self._works[step.work] = _Work(step.total, step.done, (step.done, now))
            return None
        known.last = step.done
        if known.second is None and step.done > known.first[0]:
            known.second = (step.done, now)
        if known.second is None:
            return None
        since = known.second if step.done > known.second[0] else known.first
        return (now - since[1]) / (step.done - since[0]) * (step.total - step.done)


def kept_text(step: str, count: int) -> str:
    """Return a step in words, with the rewrites that its pass has kept so far; without them where there are none."""
    return f"{step}  {count} kept" if count else str(step)


def share_text(fraction: float, left: float | None) -> str:
    """Return the share of a work that is done, with the seconds that are left where they are known."""
    return f"{fraction:.0%}{'' if left is None else f', {left_text(left)}'}"


def left_text(seconds: float) -> str:
    """Return a time that is left in words, no finer than it is known."""
    if seconds < _SHORT:
        return f"{seconds:.0f} s left"
    if seconds < _SHORT * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min left"
    return f"{seconds / _HOUR:.1f} h left"
