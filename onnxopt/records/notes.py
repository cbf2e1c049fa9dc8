"""Words by which notes are known: what a user must not overlook is told apart from what is merely of interest."""

from __future__ import annotations

TOO_DEAR = "would cost more than a proof may"  # of an axis that is proved up to less than its end
NOT_TRIED = "not tried at other sizes"  # of an axis that is proved at one size
NOT_RUN = "nothing is proved there"  # of a value that an input may have
NOT_TAKEN = "not proved, since no input"  # of branches and bodies
_UNPROVED = (TOO_DEAR, NOT_TRIED, NOT_RUN, NOT_TAKEN)


def is_unproved(note: str) -> bool:
    """Tell whether a note says that something is not proved which a user may rely on."""
    return any(words in note for words in _UNPROVED)
