"""The worker: `python -m onnxopt.probe.apart.worker`, which opens and runs graphs as its parent asks, frame by frame.

It imports NumPy and onnxruntime alone, so that it is there before its parent has read the file.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from onnxopt.probe.apart.frames import packed, read_frame, unpacked, write_frame

PARENT_SECONDS = 0.5  # how often it is looked whether the parent is still there


def main() -> int:
    """Answer until the parent ends or says no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its worker when it is interrupted
    asked, answers = _streams()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    import onnxruntime

    write_frame(answers, {"ready": True})
    sessions: dict[int, Any] = {}
    while True:
        try:
            message, buffers = read_frame(asked)
        except EOFError:
            return 0
        made: list[memoryview] = []
        try:
            answer = _answer(onnxruntime, sessions, message, buffers, made)
        except MemoryError:
            answer = {"error": "bad allocation"}
        except Exception as error:  # noqa: BLE001 - the binding raises a class of its own per status code
            answer = {"error": str(error)[:4000] or type(error).__name__}
        write_frame(answers, answer, made)


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes to the parent, out of the way of whatever prints to standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    return sys.stdin.buffer, answers


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def _answer(
    onnxruntime: Any,
    sessions: dict[int, Any],
    message: dict[str, Any],
    buffers: list[bytearray],
    made: list[memoryview],
) -> dict[str, Any]:
    number = message["session"]
    for unused in message["unused"]:
        sessions.pop(unused, None)
    if message["do"] == "close":
        sessions.pop(number, None)
        return {}
    if message["do"] == "open":
        limit_memory(message["memory"])
        graph = bytes(buffers[0]) if buffers else message["path"]
        sessions[number] = session = _open(onnxruntime, graph, message)
        return {name: [_described(one) for one in getattr(session, f"get_{name}")()] for name in ARGUMENTS}
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    feeds = {name: unpacked(spec, buffers) for name, spec in message["feeds"].items()}
    values = sessions[number].run(message["outputs"], feeds, options)
    return {"values": [packed(value, made) for value in values]}


ARGUMENTS = ("inputs", "outputs", "overridable_initializers")


def _described(argument: Any) -> dict[str, Any]:
    return {"name": argument.name, "type": argument.type, "shape": argument.shape}


def _open(onnxruntime: Any, graph: bytes | str, message: dict[str, Any]) -> Any:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if message["optimized"] else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = message["threads"]
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it asks for more than a run needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in message["config"].items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def limit_memory(more: int) -> None:
    """Let this process have so many bytes beyond those that it has, where the system can say so; it dumps no core."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
