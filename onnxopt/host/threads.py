"""How many threads this process may use, and which of them others go before."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from onnxopt.host.cgroups import groups_of, text_of

Item = TypeVar("Item")
Made = TypeVar("Made")
_here = threading.local()


def available_threads() -> int:
    """Return how many CPU threads this process may use: the smaller of its affinity mask and its cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, cores if quota is None else min(cores, int(quota)))


def side_by_side(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """Do a piece of work for every item in as many threads as this process may use; NumPy lets go of Python's lock.

    Work that is itself done in such a thread is not parted again.

    Args:
        work: reads what others read, and writes nothing that they do.
        items: of the pieces.

    Returns:
        What came of each, in the order of the items.
    """
    every, threads = list(items), available_threads()
    if len(every) < 2 or threads < 2 or getattr(_here, "is_part", False):
        return [work(one) for one in every]

    def begin() -> None:
        _here.is_part = True

    with ThreadPoolExecutor(min(threads, len(every)), "onnxopt-part", begin) as pool:
        return list(pool.map(work, every))


def step_back(steps: int = 2) -> None:
    """Let others go before the thread that calls this, where the system knows priorities of threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()  # of Linux, a process to the scheduler
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + steps)


def cgroup_quota(root: Path, membership: Path) -> float | None:
    """Return how many cores the cgroups of this process allow, the smallest over its own and all above it.

    Args:
        root: where the cgroup file system is mounted.
        membership: the file `/proc/self/cgroup`: lines of `id:controllers:path`, no controllers in version 2.

    Returns:
        Quota divided by period; None when nothing limits them.
    """
    found: list[float] = []
    for folder in groups_of("cpu", root, membership):
        # version 2: "<quota> <period>" in microseconds, or "max <period>"; version 1: a file each, -1 for none
        words = text_of(folder / "cpu.max").split() or [
            text_of(folder / "cpu.cfs_quota_us").strip(),
            text_of(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)
