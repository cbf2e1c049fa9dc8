"""How many threads this process may use, and which of them others go before."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def available_threads() -> int:
    """Return how many CPU threads this process may use: the smaller of its affinity mask and its cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, cores if quota is None else min(cores, int(quota)))


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
    for line in _text(membership).splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, inner = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        place = base / inner.strip("/")
        # in a container the path may be the host's; then only the mount itself is there
        folders = [folder for folder in (place, *place.parents) if folder == base or base in folder.parents]
        for folder in dict.fromkeys(folders):
            # version 2: "<quota> <period>" in microseconds, or "max <period>"; version 1: a file each, -1 for none
            words = _text(folder / "cpu.max").split() or [
                _text(folder / "cpu.cfs_quota_us").strip(),
                _text(folder / "cpu.cfs_period_us").strip(),
            ]
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
