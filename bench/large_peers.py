"""The peers of `bench.large` on the same checkpoints, under the same limits: do they finish, and what do they take?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import peers
from bench.checkpoints import SHAPES
from bench.large_worker import SIZES
from bench.limited import Outcome, forget, run_limited

GENAI = "onnxruntime-genai's model builder, int4"
LLAMA = "llama.cpp, Q4_0"
_ENVIRONMENT = "llamacpp"
_MOST_SECONDS = 2 * 3600.0
GB = 10**9


@dataclass(frozen=True)
class Peer:
    """A peer on a checkpoint.

    Attributes:
        title: which, for people.
        shape: of the checkpoint.
        limit_bytes: as that of our own case.
    """

    title: str
    shape: str
    limit_bytes: int


PEERS: Mapping[str, Peer] = {
    **{f"genai-{shape}": Peer(GENAI, shape, limit * GB) for shape, limit in (("100m", 2), ("1.1b", 4), ("3b", 8))},
    **{f"llama-{shape}": Peer(LLAMA, shape, limit * GB) for shape, limit in (("100m", 2), ("1.1b", 4))},
}


def run_peer(peer: Peer, checkpoint: Path, folder: Path, *, limit: int | None) -> dict[str, Any]:
    """Return what a peer took on a checkpoint, and what its model takes as it runs.

    Args:
        peer: which.
        checkpoint: the folder.
        folder: for what it makes; empty.
        limit: another limit than the peer's, in bytes; 0 for none, None for its own.
    """
    bound = (peer.limit_bytes if limit is None else limit) or None
    shape = SHAPES[peer.shape]
    forget(checkpoint)
    made, outcome = (_genai if peer.title == GENAI else _llama)(checkpoint, folder, bound)
    found: dict[str, Any] = {
        "peer": peer.title,
        "shape": asdict(shape),
        "error": outcome.error,
        "how": outcome.how,
        "limit_bytes": bound,
        "seconds": outcome.seconds,
        "peak_bytes": outcome.peak_bytes,
        "anonymous_bytes": outcome.anonymous_bytes,
    }
    if outcome.error:
        return found
    from bench.large import bytes_of, running

    if peer.title == GENAI:
        return {**found, "artifact_bytes": bytes_of(made.parent), "running": running(made, "onnxruntime")}
    return {**found, "artifact_bytes": made.stat().st_size, "running": _llama_running(made)}


def _genai(checkpoint: Path, folder: Path, limit_bytes: int | None) -> tuple[Path, Outcome]:
    """Let the model builder make its int4 graph, which it rounds to nearest in blocks of 32."""
    out = folder / "genai"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    command += ["-i", str(checkpoint), "-o", str(out), "-c", str(folder / "cache")]
    environment = {"HF_HUB_OFFLINE": "1"}
    outcome = run_limited(command, limit_bytes, most_seconds=_MOST_SECONDS, environment=environment)
    if not outcome.error and not (out / "model.onnx").is_file():
        outcome.code, outcome.lines = 1, ["it wrote no model"]
    return out / "model.onnx", outcome


def _llama(checkpoint: Path, folder: Path, limit_bytes: int | None) -> tuple[Path, Outcome]:
    """Write the checkpoint as Q4_0, tensor by tensor; llama.cpp's own converter is not on PyPI."""
    out = folder / "model.gguf"
    command = [sys.executable, "-m", "bench.gguf_q4", str(checkpoint), str(out)]
    return out, run_limited(command, limit_bytes, most_seconds=_MOST_SECONDS)


def _llama_running(model: Path) -> dict[str, Any]:
    if error := peers.install(_ENVIRONMENT):
        return {"error": error}
    worker = peers.ROOT / "bench" / "llama_worker.py"
    job = {"model": str(model), "sizes": SIZES, "held": True}
    command = [str(peers.python_of(_ENVIRONMENT)), str(worker), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1])["running"])
    except (IndexError, ValueError, KeyError):
        return {"error": peers.error_line(done.stderr) or "it does not run"}
