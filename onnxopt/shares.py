"""How much of an accuracy budget a search may use, after a judge has seen what its plans lose on other samples.

Losses are told as shares of the loss that a budget allows: 1 is all of it. A search measures on its own samples, and
perhaps by another measure than the judge; what both said of earlier plans tells what to ask for next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AIM = 0.95  # of what is allowed
NEARLY = 0.8  # of it is near enough
LEAST, MOST, STRICTER = 0.5, 2.5, 0.9  # of the last share: how far one step goes


@dataclass(frozen=True)
class Mark:
    """What is known of one plan.

    Attributes:
        asked: the share that its search was given.
        searched: the share it lost in the search.
        judged: the share it lost for the judge.
    """

    asked: float
    searched: float
    judged: float


def next_share(marks: Sequence[Mark], *, relax: bool) -> float | None:
    """Return the share to search with next; None where there is nothing to gain.

    Args:
        marks: of the plans so far, at least one.
        relax: whether more may be asked for than the last plan that was within the budget lost.
    """
    kept = max((mark for mark in marks if mark.judged <= 1), key=lambda mark: mark.searched, default=None)
    beyond = min((mark for mark in marks if mark.judged > 1), key=lambda mark: mark.searched, default=None)
    if kept is None and beyond is not None:
        return max(min(beyond.searched * AIM / beyond.judged, STRICTER * beyond.asked), LEAST * beyond.asked)
    if kept is None or not relax or kept.judged > NEARLY:
        return None
    if beyond is None:
        return kept.searched * min(AIM / max(kept.judged, 1e-9), MOST)
    if beyond.searched <= kept.searched:
        return None
    part = (AIM - kept.judged) / (beyond.judged - kept.judged)
    return kept.searched + part * (beyond.searched - kept.searched)
