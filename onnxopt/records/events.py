"""What a run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened on the road, for a live view.

    Attributes:
        stage: load, canonicalize, fuse, lower, verify, measure or package.
        step: the pass or the action.
        count: rewrites kept so far by the pass.
    """

    stage: str
    step: str = ""
    count: int = 0


Listener = Callable[[Event], None]
