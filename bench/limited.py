"""Run a command under a limit of its memory, and see what it takes: cached pages of files count, as in a container.

The limit is a control group of the kernel, of version 1 or 2, made below the one of this process; where none can be
made, a scope of systemd; where there is none either, a limit of the process's own data, which counts no page of a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from onnxopt.host.cgroups import groups_of, text_of

ROOT = Path("/sys/fs/cgroup")
How = Literal["cgroup", "systemd", "rlimit"]
WORDS: Mapping[How, str] = {
    "cgroup": "a memory cgroup",
    "systemd": "a scope of systemd",
    "rlimit": "RLIMIT_DATA, which counts no pages of files",
}
_LOOK_S = 0.1
_LEAVING_S = 5.0
_LAST_LINES = 40
_IN_GROUP = 'echo $$ > "$0" && exec "$@"'
_RLIMITED = 'ulimit -d "$0" && exec "$@"'  # in units of 1024 bytes
_SYSTEMD = ("systemd-run", "--user", "--scope", "--quiet")


@dataclass
class Outcome:
    """What became of a command.

    Attributes:
        code: its exit code; negative for a signal.
        seconds: that it took.
        how: what held the limit.
        limit_bytes: of its memory; None for none.
        peak_bytes: of all its processes at their largest, with the pages of files that are charged to them where a
            control group tells.
        anonymous_bytes: of that, what is no page of a file, at its largest.
        out_of_memory: whether the kernel ended a process of it for the limit.
        stopped: whether it was killed because the caller wanted so.
        stages: seconds of each stage, and the most anonymous bytes meanwhile, from what `--progress json` says.
        lines: the last that it said on standard error and that is no JSON.
    """

    code: int = 0
    seconds: float = 0.0
    how: How = "cgroup"
    limit_bytes: int | None = None
    peak_bytes: int = 0
    anonymous_bytes: int = 0
    out_of_memory: bool = False
    stopped: bool = False
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def error(self) -> str:
        """Why it came to nothing; empty where it did not."""
        if self.out_of_memory:
            return "out of memory"
        return "" if self.code == 0 else (self.lines[-1] if self.lines else f"it ended with code {self.code}")


def run_limited(
    command: Sequence[str],
    limit_bytes: int | None = None,
    *,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    most_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a command whose processes together may use so much memory, and return what became of it.

    Args:
        command: program and arguments; what it writes to standard output is dropped.
        limit_bytes: of all its processes; None sees what it takes.
        stop: told each line of `--progress json`; true kills the command at once, as a power cut would.
        most_seconds: after which it is killed.
        environment: variables beside those of this process.
    """
    with _room(limit_bytes) as (how, group):
        outcome = Outcome(how=how, limit_bytes=limit_bytes)
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*_entry(how, group, limit_bytes), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        looks = _Looks(process, group, outcome)
        timer = threading.Timer(most_seconds or threading.TIMEOUT_MAX, _kill, (process, group))
        timer.daemon = True
        timer.start()
        try:
            with process:
                _listen(process, looks, outcome, lambda told: stop is not None and stop(told), group)
            outcome.code = process.returncode
        finally:
            timer.cancel()
            _kill(process, group)
            looks.end()
        outcome.seconds = time.perf_counter() - begin
        return outcome


def _listen(
    process: subprocess.Popen[str],
    looks: _Looks,
    outcome: Outcome,
    stop: Callable[[Mapping[str, Any]], bool],
    group: Path | None,
) -> None:
    """Write down what a command says, until it says no more; kill it where that is wanted."""
    said: deque[str] = deque(maxlen=_LAST_LINES)
    for line in process.stderr or ():
        told = _told(line)
        if told is None:
            said.extend([line.rstrip()] if line.strip() else [])
            continue
        looks.stage = str(told["stage"])
        if told.get("event") == "stage":
            one = outcome.stages.setdefault(looks.stage, {})
            one["seconds"] = one.get("seconds", 0.0) + float(told["seconds"])
        if not outcome.stopped and stop(told):
            outcome.stopped = True
            _kill(process, group)
    outcome.lines = list(said)


def has_group() -> bool:
    """Tell whether a memory cgroup can be made here."""
    with _room(None) as (how, _):
        return how == "cgroup"


def forget(folder: Path) -> None:
    """Let the system drop the cached pages of the files of a folder, so that whoever reads them next is charged."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _told(line: str) -> dict[str, Any] | None:
    """Return what a line of `--progress json` says; None for any other line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "stage" in found else None


@contextlib.contextmanager
def _room(limit_bytes: int | None) -> Iterator[tuple[How, Path | None]]:
    """Give what holds a limit: a control group of our own with its folder, or the next best."""
    group = _new_group(limit_bytes)
    if group is None:
        yield ("systemd" if _has_systemd() else "rlimit"), None
        return
    try:
        yield "cgroup", group
    finally:
        end = time.monotonic() + _LEAVING_S
        while not _is_removed(group) and time.monotonic() < end:
            time.sleep(_LOOK_S)


def _is_removed(group: Path) -> bool:
    """Remove a control group; false as long as its last process is not gone yet."""
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _new_group(limit_bytes: int | None) -> Path | None:
    """Make a control group with a limit below one of ours; None where that is not allowed."""
    for parent in groups_of("memory", ROOT, Path("/proc/self/cgroup"), folder="memory"):
        group = parent / f"onnxopt-bench-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if _is_bounded(group, limit_bytes):
            return group
        group.rmdir()
    return None


def _is_bounded(group: Path, limit_bytes: int | None) -> bool:
    """Write a limit into a new control group; false where it counts no memory, or the limit is not for us to write."""
    limit = next((one for one in ("memory.max", "memory.limit_in_bytes") if (group / one).is_file()), None)
    if limit is None:
        return False
    try:
        if limit_bytes is not None:
            (group / limit).write_text(str(limit_bytes), encoding="ascii")
    except OSError:
        return False
    return True


def _has_systemd() -> bool:
    if shutil.which(_SYSTEMD[0]) is None:
        return False
    return subprocess.run([*_SYSTEMD, "true"], capture_output=True, check=False).returncode == 0


def _entry(how: How, group: Path | None, limit_bytes: int | None) -> list[str]:
    """Return what stands in front of a command, so that it runs under the limit from its first byte on."""
    if group is not None:
        return ["sh", "-c", _IN_GROUP, str(group / "cgroup.procs")]
    if limit_bytes is None:
        return []
    if how == "systemd":
        return [*_SYSTEMD, "-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0"]
    return ["sh", "-c", _RLIMITED, str(limit_bytes // 1024)]


def _kill(process: subprocess.Popen[str], group: Path | None) -> None:
    """End a command and all that it started, without a word."""
    members = text_of(group / "cgroup.procs").split() if group is not None else []
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for member in members:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(member), signal.SIGKILL)


class _Looks:
    """Look at what a command holds, ten times a second, until it ends.

    Args:
        process: the command.
        group: its control group; None where another's is looked for.
        outcome: where the largest is written.
    """

    def __init__(self, process: subprocess.Popen[str], group: Path | None, outcome: Outcome) -> None:
        self.stage = ""
        self._process, self._group, self._outcome = process, group, outcome
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bench-limited", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look for the last time."""
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        found = self._of_group() if self._group is not None or self._outcome.how == "systemd" else None
        peak, anonymous = found or self._of_processes()
        self._outcome.peak_bytes = max(self._outcome.peak_bytes, peak)
        self._outcome.anonymous_bytes = max(self._outcome.anonymous_bytes, anonymous)
        if self.stage:
            one = self._outcome.stages.setdefault(self.stage, {})
            one["anonymous_bytes"] = max(one.get("anonymous_bytes", 0), anonymous)

    def _of_group(self) -> tuple[int, int] | None:
        """Return peak and anonymous bytes as the control group tells them; None where there is none to ask."""
        group = self._group
        if group is None:  # the scope that systemd has made, once the command is in it
            membership = Path(f"/proc/{self._process.pid}/cgroup")
            group = next(iter(groups_of("memory", ROOT, membership, folder="memory")), None)
        if group is None:
            return None
        peak, anonymous, killed = told_by(group)
        self._outcome.out_of_memory |= killed > 0
        return (peak, anonymous) if peak else None

    def _of_processes(self) -> tuple[int, int]:
        """Return resident bytes and those of its own of the command with all that it started."""
        resident = own = 0
        try:
            family = [psutil.Process(self._process.pid)]
            family += family[0].children(recursive=True)
        except psutil.Error:
            return 0, 0
        for one in family:
            with contextlib.suppress(psutil.Error):
                memory = one.memory_info()
                resident += int(memory.rss)
                own += int(memory.rss - getattr(memory, "shared", 0))
        return resident, own


def told_by(group: Path) -> tuple[int, int, int]:
    """Return what a control group of version 1 or 2 says: peak and anonymous bytes, and how often its limit killed.

    Args:
        group: its folder; of one that is gone all is 0.
    """
    said = text_of(group / "memory.peak") or text_of(group / "memory.max_usage_in_bytes")
    current = text_of(group / "memory.current") or text_of(group / "memory.usage_in_bytes")  # kernels before 5.19
    stat = numbers_of(text_of(group / "memory.stat"))
    events = numbers_of(text_of(group / "memory.events") or text_of(group / "memory.oom_control"))
    peak = int(said.strip() or current.strip() or 0)
    return peak, stat.get("anon", stat.get("total_rss", 0)), events.get("oom_kill", 0)


def numbers_of(text: str) -> dict[str, int]:
    """Read lines of a word and a number, as the files of a control group have them."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
