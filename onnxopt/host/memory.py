"""How much memory this process may use, and how much it does."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from onnxopt.host.cgroups import groups_of, text_of

_NO_LIMIT = 1 << 60  # cgroups of version 1 without a limit say a number near 2⁶³
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size
_ARENA_MAX = -8  # mallopt(3): M_ARENA_MAX
_SAMPLE_S = 0.001


def memory_allowed() -> int:
    """Return how many bytes this process may use: the least of the machine's, its cgroup's and its own limit."""
    import psutil

    found = [int(psutil.virtual_memory().total)]
    found += cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    with contextlib.suppress(ImportError, OSError, ValueError):  # where there are no such limits
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [soft] if soft != resource.RLIM_INFINITY else []
    return min(found)


def cgroup_limits(root: Path, membership: Path) -> list[int]:
    """Return the memory limits of the cgroups of this process, its own and all above it.

    Args:
        root: where the cgroup file system is mounted.
        membership: the file `/proc/self/cgroup`: lines of `id:controllers:path`, no controllers in version 2.
    """
    found: list[int] = []
    for folder in groups_of("memory", root, membership, folder="memory"):
        # version 2: a number or "max"; version 1: always a number
        said = text_of(folder / "memory.max").strip() or text_of(folder / "memory.limit_in_bytes").strip()
        if said.isdigit() and int(said) < _NO_LIMIT:
            found.append(int(said))
    return found


def resident_bytes() -> int:
    """Return how many bytes of memory this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def own_bytes() -> int | None:
    """Return how many bytes of memory this process holds that are no pages of files; None where the system keeps it.

    What is a page of a file can go and be read again, and processes that map one file share it.
    """
    return told_bytes("RssAnon")


def peak_bytes() -> int:
    """Return how many bytes of memory this process had at most.

    Linux' `ru_maxrss` survives exec and would tell the parent's peak, so there proc(5) is asked.
    """
    if told := _peak():
        return told
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_of(work: Callable[[], object]) -> int:
    """Return by how many bytes this process grew while it did something, at its largest.

    Linux tells the largest; elsewhere it is looked for every millisecond.
    """
    before = resident_bytes()
    if _reset_peak():
        work()
        return max(0, _peak() - before)
    seen, over = [before], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(resident_bytes())
            time.sleep(_SAMPLE_S)

    watcher = threading.Thread(target=watch, name="onnxopt-peak", daemon=True)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(seen) - before


def few_arenas(count: int = 2) -> None:
    """Let all threads share a few arenas of the C library, where it has them: each keeps memory for itself."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, count)


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return _peak() > 0


def _peak() -> int:
    return told_bytes("VmHWM") or 0


def told_bytes(field: str) -> int | None:
    """Return what proc(5) has of this process under a name such as `VmData`; None where there is no such file."""
    line = next((line for line in text_of(_STATUS).splitlines() if line.startswith(f"{field}:")), "")
    words = line.split()
    return int(words[1]) * 1024 if len(words) == 3 else None
