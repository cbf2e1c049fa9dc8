"""See what a decoder takes as it runs: `python -m bench.large_worker model.onnx onnxopt` prints JSON.

How long it takes to open, what the process holds then and after it has answered (memory of its own, and pages of files
that it has mapped), and how long a prompt and a token behind it take. `onnxopt` opens it as our sessions do,
`onnxruntime` with the runtime's own defaults, as the graph of another tool is, and `mapped` without packing weights for
their kernels. `pack` with a further file opens it once and writes it with all its weights packed, for this processor.
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
    if sys.argv[2] == "pack":
        pack(path, Path(sys.argv[3]))
        return
    base = held()
    begin = time.perf_counter()
    session = opened(path, sys.argv[2])
    result: dict[str, Any] = {"open_seconds": time.perf_counter() - begin, "base": base, "opened": held()}
    for name, sizes in SIZES.items():
        result[f"{name}_seconds"] = measure(session, *sizes)
        result[f"after_{name}"] = held()
    print(json.dumps(result))


def opened(path: Path, how: str) -> onnxruntime.InferenceSession:
    """Return a session of two threads, opened in one of the ways that are named above."""
    if how == "onnxopt":
        return open_session(path, target=Target("cpu", THREADS))
    options = _options()
    if how == "mapped":
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pack(path: Path, out: Path) -> None:
    """Write a model as the runtime has it once it is open, packed weights included.

    The settings are those of onnxruntime_session_options_config_keys.h.

    Args:
        path: the model.
        out: the file; its weights lie beside it.
    """
    options = _options()
    options.optimized_model_filepath = str(out)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": f"{out.name}_data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: that an optimized model is for this machine alone is what is wanted
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    return options


def held() -> dict[str, int]:
    """Return the bytes of memory that this process holds, and those of them that are no pages of files."""
    return {"resident": resident_bytes(), "anonymous": own_bytes() or 0}


if __name__ == "__main__":
    main()
