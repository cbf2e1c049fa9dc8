"""See what a decoder takes as it runs: `python -m bench.large_worker model.onnx onnxopt` prints JSON.

How long it takes to open, what the process holds then and after it has answered (memory of its own, and pages of files
that it has mapped), and how long a prompt and a token behind it take. `onnxopt` opens it as our sessions do; with
`onnxruntime` in its place it is opened with the runtime's own defaults, as the graph of another tool is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime

from bench.decode_worker import THREADS, measure
from onnxopt.host.memory import own_bytes, resident_bytes
from onnxopt.run.session import open_session  # with all that it imports, which is no part of what a model takes
from onnxopt.spec import Target

PROMPT = 128  # tokens
SIZES = {"token": (1, 1, PROMPT, 2 * PROMPT), "prompt": (1, PROMPT, 0, 2 * PROMPT)}


def main() -> None:
    """Open the model, run it, print what was seen."""
    path = Path(sys.argv[1])
    base = held()
    begin = time.perf_counter()
    session = opened(path, sys.argv[2])
    result: dict[str, Any] = {"open_seconds": time.perf_counter() - begin, "base": base, "opened": held()}
    for name, sizes in SIZES.items():
        result[f"{name}_seconds"] = measure(session, *sizes)
        result[f"after_{name}"] = held()
    print(json.dumps(result))


def opened(path: Path, how: str) -> onnxruntime.InferenceSession:
    """Return a session of two threads, opened as our own are or as the runtime does by default."""
    if how == "onnxopt":
        return open_session(path, target=Target("cpu", THREADS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def held() -> dict[str, int]:
    """Return the bytes of memory that this process holds, and those of them that are no pages of files."""
    return {"resident": resident_bytes(), "anonymous": own_bytes() or 0}


if __name__ == "__main__":
    main()
