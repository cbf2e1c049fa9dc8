"""See what else a machine did while something was measured on it.

The load average would count the work of this very program; so the time that all processors were busy is taken, less
what this process and those that it started have used.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

LEAST_SECONDS = 0.5  # the system counts in hundredths of a second: of less time than this nothing is said
SLACK_CORES = 0.25  # what the system itself and an idle desktop take


@dataclass(frozen=True)
class Load:
    """What went on beside a measurement, on average.

    Attributes:
        others: processors that other processes kept busy.
        stolen: processors that the host of a virtual machine took away.
        cores: processors of the machine.
        threads: what was measured used.
    """

    others: float
    stolen: float
    cores: int
    threads: int

    @property
    def is_busy(self) -> bool:
        """Whether less was left than what was measured needs."""
        return self.others + self.stolen + self.threads > self.cores + SLACK_CORES

    def __str__(self) -> str:
        taken = [f"other processes took {self.others:.1f}"] if self.others >= self.stolen or self.others > 0.1 else []
        taken += [f"the host of this virtual machine took {self.stolen:.1f}"] if self.stolen > 0.1 else []
        return f"{' and '.join(taken)} of {self.cores} processors"


@dataclass(frozen=True)
class Moment:
    """Seconds since some start.

    Attributes:
        clock: as time goes by.
        busy: that all processors have worked.
        stolen: that the host of a virtual machine took away.
        own: that this process and those it has waited for have used.
    """

    clock: float
    busy: float
    stolen: float
    own: float


class Watch:
    """Counts from when it is made.

    Args:
        threads: what is measured uses so many processors.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start = now()

    def load(self) -> Load | None:
        """Return what has gone on since; None where too little time has passed to tell."""
        import psutil

        start, end = self._start, now()
        seconds = end.clock - start.clock
        if seconds < LEAST_SECONDS:
            return None
        others = (end.busy - start.busy) - (end.own - start.own)
        cores = psutil.cpu_count() or 1
        return Load(max(0.0, others / seconds), max(0.0, (end.stolen - start.stolen) / seconds), cores, self._threads)


def now() -> Moment:
    """Read the clocks of the machine and of this program."""
    import psutil

    times, own = psutil.cpu_times(), os.times()
    stolen = getattr(times, "steal", 0.0)
    kinds = ("user", "system", "nice", "irq", "softirq", "interrupt", "dpc")  # guests are counted as users already
    busy = sum(getattr(times, kind, 0.0) for kind in kinds)
    used = own.user + own.system + own.children_user + own.children_system
    return Moment(time.perf_counter(), busy, stolen, used)
