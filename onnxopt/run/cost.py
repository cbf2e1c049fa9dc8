"""How much memory a run of a model takes, measured once and known for every batch.

A row of e elements (all inputs together) takes about a·e + b·e² bytes: activations grow with its length, the scores of
attention with the square of it; and rows add up, to what every run takes. The numbers come from four runs while the
process is watched, so they hold for the kernels as they are, with what these use inside and no graph shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxopt.errors import InputError
from onnxopt.host.memory import peak_of
from onnxopt.probe.memory import release_memory
from onnxopt.run.session import Session
from onnxopt.spec import Array

logger = logging.getLogger(__name__)

# what is measured may be a little less than the worst: the allocator rounds up, and two runs overlap differently
MARGIN = 1.5
# per element where nothing can be measured: of tokens as a large transformer, of others as a network for images
UNKNOWN_OF_TOKENS, UNKNOWN_OF_VALUES = 1 << 15, 1 << 9
_ENOUGH_ELEMENTS = 4096  # of all rows of a measured run, at least; less drowns in what else the process does

Make = Callable[[int, int], Mapping[str, Array]]


@dataclass(frozen=True)
class Cost:
    """Memory of a run.

    Attributes:
        linear: bytes per element of a row.
        square: bytes per square of the elements of a row.
        fixed: bytes that a run takes however small it is.
        measured: whether this was seen; else it is a guess on the safe side.
    """

    linear: float
    square: float = 0.0
    fixed: float = 0.0
    measured: bool = True

    def run_bytes(self, rows: int, elements: int) -> int:
        """Return the bytes that a run takes.

        Args:
            rows: of the run.
            elements: of a row, all inputs together.
        """
        return int(self.fixed + rows * self._row(elements))

    def _row(self, elements: int) -> float:
        return self.linear * elements + self.square * elements * elements + 1

    def rows_within(self, budget: int, elements: int) -> int:
        """Return how many rows fit into a budget of bytes; 0 when not even one does."""
        return max(0, int((budget - self.fixed) // self._row(elements)))

    def elements_within(self, budget: int) -> int:
        """Return the longest row that fits into a budget of bytes."""
        least, most = 0, max(1, budget)
        while least < most:
            middle = (least + most + 1) // 2
            if self.run_bytes(1, middle) <= budget:
                least = middle
            else:
                most = middle - 1
        return least


def elements_of(feeds: Mapping[str, Array], rows: int) -> int:
    """Return the elements of a row of a request, all inputs together."""
    return -(-sum(array.size for array in feeds.values()) // max(1, rows))


def measure_cost(session: Session, make: Make, *, short: int, long: int) -> Cost:
    """Run a model at two lengths and see what it takes.

    Args:
        session: the model.
        make: inputs of so many rows of a length.
        short: a length.
        long: a longer one, best the longest that the model takes; equal where rows have but one length.

    Returns:
        The cost with a margin; a guess where the model cannot be run on these inputs.
    """
    try:
        few = make(1, long)
        elements = elements_of(few, 1)
        rows = max(2, -(-_ENOUGH_ELEMENTS // elements))
        session.run(few, shrink=True)  # what is made once, such as packed weights, is no part of it
        base = _peak(session, few)
        at_long = (_peak(session, make(rows, long)) - base) / (rows - 1) / elements
        if short >= long:
            return _with_margin(max(at_long, 1.0), 0.0, base, elements)
        less = elements_of(make(1, short), 1)
        many = max(2, rows * elements // less)
        at_short = (_peak(session, make(many, short)) - _peak(session, make(1, short))) / (many - 1) / less
    except InputError as error:
        logger.info("the memory of a run is not measured: %s", error)
        return unknown_cost(session)
    at_long, at_short = max(at_long, 1.0), max(at_short, 1.0)
    # per element: a + b·e at both lengths
    square = max(0.0, (at_long - at_short) / (elements - less))
    return _with_margin(max(at_long - square * elements, at_short - square * less, 1.0), square, base, elements)


def _with_margin(linear: float, square: float, base: float, elements: int) -> Cost:
    """Return a cost; what a row took beyond what its elements account for is what every run takes."""
    fixed = max(0.0, base - linear * elements - square * elements * elements)
    return Cost(MARGIN * linear, MARGIN * square, MARGIN * fixed)


def unknown_cost(session: Session) -> Cost:
    """Return what a run takes at most, as far as one can tell without running it."""
    tokens = any("int" in spec.dtype for spec in session.inputs)
    return Cost(UNKNOWN_OF_TOKENS if tokens else UNKNOWN_OF_VALUES, measured=False)


def measure_whole(session: Session, feeds: Mapping[str, Array]) -> Cost:
    """See what a model takes whose rows cannot be joined: all of a request counts as one row.

    Args:
        session: the model.
        feeds: inputs of a usual size.
    """
    try:
        session.run(feeds, shrink=True)
        return Cost(MARGIN * max(_peak(session, feeds) / elements_of(feeds, 1), 1.0))
    except InputError as error:
        logger.info("the memory of a run is not measured: %s", error)
        return unknown_cost(session)


def _peak(session: Session, feeds: Mapping[str, Array]) -> int:
    release_memory()  # the runtime's own is empty: the run before has shrunk it
    return peak_of(lambda: session.run(feeds, shrink=True))
