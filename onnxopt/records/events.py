"""What a run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Step(str):
    """What is done now, in words, with how much of its work is done: a text for whoever shows no more than that.

    Attributes:
        work: what the pieces are of, the same words for each of them.
        done: pieces that are done.
        total: pieces in all; 0 where they are not counted.
    """

    __slots__ = ("done", "total", "work")

    work: str
    done: int
    total: int

    def __new__(cls, words: str, *, work: str = "", done: int = 0, total: int = 0) -> Step:  # noqa: PYI034
        """Make a step of its words."""
        made = super().__new__(cls, words)
        made.work, made.done, made.total = work or words, min(done, total), total
        return made

    @classmethod
    def piece(cls, work: str, number: int, total: int, what: str = "") -> Step:
        """Return a step for a piece of work that begins.

        Args:
            work: what all pieces are of.
            number: of the piece, from 1 on.
            total: how many there are.
            what: the piece itself.
        """
        words = f"{work} {number} of {total}"
        return cls(f"{words}: {what}" if what else words, work=work, done=number - 1, total=total)

    @property
    def fraction(self) -> float:
        """The share of the work that is done, from 0 to 1."""
        return self.done / self.total if self.total else 0.0

    def under(self, name: str) -> Step:
        """Return the step with the words of what it is a part of in front."""
        return Step(f"{name}: {self}", work=f"{name}: {self.work}", done=self.done, total=self.total)


class Said(str):
    """A step that stays to be read once it is over: what a user should know before a long job goes on."""

    __slots__ = ()


def under(name: str, step: str) -> str:
    """Return a step with the words of what it is a part of in front; what is counted stays so.

    Args:
        name: what it is a part of.
        step: its words; a `Step` or any other text.
    """
    return step.under(name) if isinstance(step, Step) else f"{name}: {step}"


@dataclass(frozen=True)
class Event:
    """Something that happened on the road, for a live view.

    Attributes:
        stage: load, canonicalize, fuse, lower, verify, measure or package.
        step: the pass or the action; a `Step` where its pieces are counted.
        count: rewrites kept so far by the pass.
    """

    stage: str
    step: str = ""
    count: int = 0

    @property
    def fraction(self) -> float | None:
        """The share of the step's work that is done; None where its pieces are not counted."""
        return self.step.fraction if isinstance(self.step, Step) and self.step.total else None


Listener = Callable[[Event], None]


def quiet(told: Event | str) -> None:
    """Listen to what happens, and show nothing: `progress=onnxopt.quiet` leaves no line in a notebook.

    Args:
        told: an event, or the words of a step.
    """
