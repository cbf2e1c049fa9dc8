"""Optimize one model with one tool in this process; print what it took as JSON.

Memory is counted above that of this process with all libraries imported and no model opened: everything that is
resident at the worst moment (`peak_bytes`: memory of its own and what it has mapped of files), and its own alone
(`own_bytes`). Opening the file is counted apart from optimizing. Run by path in the virtual environments of the peers:
nothing is imported but what is measured.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")  # "5" sets the kernel's own high-water mark back
SAMPLE_SECONDS = 0.005
SAMPLES = ("smollm2-135m",)


Tool = tuple[Callable[[str], Any], Callable[[Any], int]]


def onnxopt_tool() -> Tool:
    """Return our way: canonicalize, fuse and lower for the CPU, every rewrite proved."""
    import onnx_ir as ir
    import onnxruntime  # noqa: F401 - counted as imported
    import onnxscript.optimizer  # noqa: F401 - same

    from onnxopt.load.export.export import export
    from onnxopt.load.onnx_file import load_onnx
    from onnxopt.load.source.source import resolve
    from onnxopt.pipeline.orders import passes_of
    from onnxopt.pipeline.pipeline import run_pipeline
    from onnxopt.rewrite.registry import get
    from onnxopt.spec import Target

    target = Target("cpu")
    for names in passes_of(target).values():
        for name in names:
            get(name)

    def optimize(loaded: Any) -> int:
        run_pipeline(loaded, target)
        return int(loaded.model.graph.num_nodes())

    def opening(source: str) -> Any:
        path = Path(source)
        if path.parent.name not in SAMPLES:
            return load_onnx(path)
        loaded = export(resolve(path.parent.name))
        loaded.model = ir.load(path)  # the same graph, its weights mapped from a file
        gc.collect()  # graphs are full of cycles
        return loaded

    return opening, optimize


def onnxslim_tool() -> Tool:
    """Return OnnxSlim's way."""
    import onnx
    import onnxslim

    return onnx.load, lambda model: len(onnxslim.slim(model).graph.node)


def onnxsim_tool() -> Tool:
    """Return onnxsim's way, with its own check as it is by default."""
    import onnx
    import onnxsim

    return onnx.load, lambda model: len(onnxsim.simplify(model)[0].graph.node)


TOOLS: dict[str, Callable[[], Tool]] = {"onnxopt": onnxopt_tool, "onnxslim": onnxslim_tool, "onnxsim": onnxsim_tool}


class Memory:
    """Watches this process; on systems that do not tell, everything is zero."""

    def __init__(self) -> None:
        self._base = _status()
        self._own = 0
        self.begin()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forget the worst moments so far."""
        with contextlib.suppress(OSError):
            RESET.write_text("5", encoding="ascii")
        self._own = 0

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._own = max(self._own, _status().get("RssAnon", 0))

    def worst(self) -> dict[str, int]:
        """Return the worst moments, above the process before it opened a model."""
        return {
            "peak_bytes": max(0, _status().get("VmHWM", 0) - self._base.get("VmRSS", 0)),
            "own_bytes": max(0, self._own - self._base.get("RssAnon", 0)),
        }


def _status() -> dict[str, int]:
    """Return the sizes in the process's status, in bytes."""
    try:
        text = STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def main() -> int:
    """Run the tool that the first argument names on the file that the second names."""
    tool, source = sys.argv[1:3]
    with contextlib.redirect_stdout(sys.stderr):
        opening, optimize = TOOLS[tool]()
        memory = Memory()
        begin = time.perf_counter()
        model = opening(source)
        took: dict[str, Any] = {"open_seconds": time.perf_counter() - begin}
        took["open_peak_bytes"] = memory.worst()["peak_bytes"]
        memory.begin()
        begin, cpu = time.perf_counter(), time.process_time()
        took["nodes"] = optimize(model)
        took |= {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu, **memory.worst()}
    print(json.dumps(took))
    return 0


if __name__ == "__main__":
    sys.exit(main())
