"""Share out the memory that a server may use, before it takes a request.

What the process holds once its models are open is at rest. Of what is left, a part is for bodies that were received, a
part for answers that were not sent yet, and the rest is shared among the models alike, so that none can take another's:
an encoder's share is for the runs that it has at the same time, a decoder's for its cache and for the prompts that it
reads. Whatever a request would take beyond its part is refused before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from onnxopt.errors import InputError
from onnxopt.host.memory import memory_allowed
from onnxopt.host.sizes import size_text
from onnxopt.run.batcher import BusyError

# of what the machine or its cgroup allows, when nobody says how much
DEFAULT_SHARE = 0.75
# of what is left beside the models: Python's own objects while it answers, threads, what the allocator keeps
_SLACK, _BODIES, _ANSWERS = 0.2, 0.15, 0.15
LEAST_RUN_BYTES = 16 << 20  # of a model, below which nothing can be served


@dataclass(frozen=True)
class MemoryPlan:
    """Who may use how much of a server's memory, in bytes.

    Attributes:
        total: all that the server may use.
        at_rest: what it holds when it does nothing, with the processes beside it.
        bodies: of requests that were received and are not answered.
        answers: that are made and not sent.
        model: the share of each model.
    """

    total: int
    at_rest: int
    bodies: int
    answers: int
    model: int

    @classmethod
    def of(cls, total: int, at_rest: int, models: int) -> MemoryPlan:
        """Share out memory.

        Args:
            total: all of it.
            at_rest: what is taken already.
            models: how many share the rest.

        Raises:
            InputError: when too little is left to serve anything.
        """
        free = total - at_rest
        each = int(free * (1 - _SLACK - _BODIES - _ANSWERS)) // models
        if each < LEAST_RUN_BYTES:
            needed = at_rest + int(LEAST_RUN_BYTES * models / (1 - _SLACK - _BODIES - _ANSWERS)) + 1
            raise InputError(
                f"the models take {size_text(at_rest)} at rest and {size_text(total)} are allowed",
                where="memory",
                hint=f"serve fewer, set a lower --max-body-mb, or allow --memory {(needed >> 20) + 1}MB or more",
            )
        return cls(total, at_rest, int(free * _BODIES), int(free * _ANSWERS), each)

    def line(self) -> str:
        """Return the plan in words."""
        parts = {"at rest": self.at_rest, "for bodies": self.bodies, "for answers": self.answers}
        said = ", ".join(f"{size_text(size)} {name}" for name, size in parts.items())
        return f"memory: {size_text(self.total)} allowed; {said}, {size_text(self.model)} for each model"


def default_memory() -> int:
    """Return how much a server uses when nobody says: a share of what this process may."""
    return int(memory_allowed() * DEFAULT_SHARE)


class Holding:
    """A part of the memory that requests hold and give back; for one event loop.

    Args:
        most: bytes that may be held at the same time.
        what: is held, for those who are refused.
    """

    def __init__(self, most: int, what: str) -> None:
        self.most, self._what, self.held = most, what, 0

    def hold(self, size: int) -> Held:
        """Return a context in which some bytes are held.

        Raises:
            BusyError: when others hold too much of them.
        """
        if self.held + size > self.most:
            raise BusyError(
                f"{self._what} of other requests hold {size_text(self.held)} of {size_text(self.most)}",
                hint="try again later",
            )
        return Held(self, size)


class Held:
    """Bytes that are held until the context ends.

    Args:
        holding: whose bytes.
        size: how many.
    """

    def __init__(self, holding: Holding, size: int) -> None:
        self._holding, self.size = holding, size
        holding.held += size

    def __enter__(self) -> Held:  # noqa: PYI034  # Self is in typing from Python 3.11 on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give all of them back."""
        self._holding.held -= self.size
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            BusyError: when others hold too much of them.
        """
        more = self._holding.hold(size)
        self.size += more.size
