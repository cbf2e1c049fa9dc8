"""Give one hostile input to its command, in a process of its own under limits, and judge what came of it.

The process is forked from one that has imported everything, and calls the command line as the console script does: a
start costs milliseconds, and what the imports take is known. It has a folder for temporary files of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.exam.hostile.cases import OUT, Case

SECONDS = 20.0  # of processor time of one input
CLOCK_SECONDS = 60.0  # by the clock, since a machine may be busy
MEMORY_BYTES = 1 << 30  # beyond what the imports take
HARD_BYTES = 6 << 30  # of one process: what is beyond the limit is to be seen, and not to take the machine
PRELOADED = (
    *("onnx", "onnx_ir", "onnxruntime", "onnxscript", "tokenizers", "torch", "torch.onnx", "transformers", "PIL.Image"),
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in ("bert", "gpt2", "vit")),
    *(f"onnxopt.{name}" for name in ("cli.main", "cli.live", "road.optimize", "road.forms", "quantize.run")),
    *(f"onnxopt.{name}" for name in ("run.answers", "run.generate.generator", "pipeline.inspection", "proof.compare")),
    *(f"onnxopt.{name}" for name in ("load.export.export", "calibrate.data", "timing.bench", "artifact.clients")),
    *(f"onnxopt.{name}" for name in ("compress.run", "judge.gate", "run.inputs.image", "artifact.report", "prune.run")),
)
LEAST_POLL_SECONDS = 0.01
MARK = "of-the-campaign"  # in the name of the folder for temporary files: no line may hold it
OF_RUNTIME = ".ses"  # onnxruntime 1.32 writes one of a few bytes wherever a session is opened
_LEFT = re.compile(r"\.onnxopt-.*\.(part|old)")


@dataclass
class Outcome:
    """What came of one input.

    Attributes:
        group: of the case.
        name: of the case.
        code: exit code; negative for a signal.
        line: what was said.
        seconds: processor time.
        clock: seconds by the clock.
        memory: bytes beyond what the imports take, of the largest process.
        faults: what should not be, in words; empty when all is well.
    """

    group: str
    name: str
    code: int
    line: str
    seconds: float
    clock: float
    memory: int
    faults: list[str]


def preload() -> None:
    """Import what commands import; no session is opened, so that a fork takes no thread along that it would miss."""
    for name in PRELOADED:
        importlib.import_module(name)
    from onnxopt.rewrite.registry import load_all

    load_all()


def judged(case: Case, room: Path) -> Outcome:
    """Build a case below a folder, give it to its command, and tell what came of it."""
    folder = room / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scratch = Path(tempfile.mkdtemp(prefix=f"{MARK}-", dir=room))
    try:
        arguments = case.build(folder)
        return _observed(case, folder, scratch, arguments)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _observed(case: Case, folder: Path, scratch: Path, arguments: Sequence[str]) -> Outcome:
    began = time.monotonic()
    said, printed = scratch.parent / "stderr", scratch.parent / "stdout"
    child = os.fork()
    if child == 0:
        _command(arguments, folder, scratch, said, printed)
    code, used, in_time = _awaited(child, began + CLOCK_SECONDS)
    clock = time.monotonic() - began
    line = said.read_text(encoding="utf-8", errors="replace").strip()
    seconds = used.ru_utime + used.ru_stime
    memory = max(0, (used.ru_maxrss << 10) - _own_bytes())
    faults = [] if in_time else [f"not done in {clock:.0f} s"]
    faults += _faults_of_line(code, line, scratch)
    faults += _faults_of_folder(code, folder, scratch)
    if seconds > SECONDS:
        faults.append(f"{seconds:.0f} s of processor time")
    if memory > MEMORY_BYTES:
        faults.append(f"{memory >> 20} MiB of memory")
    return Outcome(case.group, case.name, code, line[-400:], round(seconds, 2), round(clock, 2), memory, faults)


def _command(arguments: Sequence[str], folder: Path, scratch: Path, said: Path, printed: Path) -> NoReturn:
    """Be the command, in a session of processes of its own."""
    code = 99
    try:
        os.setsid()
        for stream, path in ((1, printed), (2, said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_DATA, (_data_limit(), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["onnxopt", *arguments]
        from onnxopt.cli.main import main

        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
        from onnxopt.probe.apart import session

        session._end_worker()
    finally:
        os._exit(code)


def _data_limit() -> int:
    return HARD_BYTES + _own_bytes()


def _own_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _awaited(child: int, until: float) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a process; what is not done in time is killed with all of its own."""
    wait = LEAST_POLL_SECONDS
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # whatever it left behind
            return os.waitstatus_to_exitcode(status), used, True
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            return os.waitstatus_to_exitcode(status), used, False
        time.sleep(wait)
        wait = min(0.2, 1.3 * wait)


def _faults_of_line(code: int, line: str, scratch: Path) -> list[str]:
    faults = []
    if code not in (0, 2):
        faults.append(f"exit code {code}")
    if code == 2 and (line.count("\n") or not line.startswith("error: ")):
        faults.append("not one line")
    if code == 0 and line:
        faults.append("says something though all is well")
    if "Traceback" in line:
        faults.append("a traceback")
    if str(scratch) in line or MARK in line:
        faults.append("names a temporary file")
    if any(not (letter.isprintable() or letter == "\n") for letter in line):
        faults.append("writes to the terminal what is not to be printed")
    if len(line) > 1200:
        faults.append(f"a line of {len(line)} letters")
    return faults


def _faults_of_folder(code: int, folder: Path, scratch: Path) -> list[str]:
    """Tell what was left behind, and whether what was written is whole."""
    from onnxopt.artifact.package import Artifact
    from onnxopt.errors import OnnxoptError

    faults = [f"left {path.name} behind" for path in scratch.iterdir() if path.name != OF_RUNTIME]
    faults += [f"left {path.name} behind" for path in folder.rglob("*") if _LEFT.fullmatch(path.name)]
    out = folder / OUT
    if out.exists() and code != 0:
        faults.append("wrote a result and failed")
    if (out / "manifest.json").is_file():
        try:
            if Artifact.open(out).changed_files():
                faults.append("wrote half a result")
        except OnnxoptError as error:
            faults.append(f"wrote half a result: {error}")
    return faults
