"""The peers: what they are, how they are installed, how each makes its model.

Every peer lives in a virtual environment of its own (`.venv-peers/<name>`) and makes its model by a small script in
`bench/makers`, in a process of its own and within a time limit. A peer that fails is part of the result: its error is
kept beside where its model would be. What is made already is not made again unless its script, its requirements or
what it was made from changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MAKERS = ROOT / "bench" / "makers"
REQUIREMENTS = ROOT / "bench" / "requirements"
ENVIRONMENTS = ROOT / ".venv-peers"
MODELS = ROOT / "build" / "peers"

OURS = ""  # the environment this program runs in
INSTALL_SECONDS = 1800
MAKE_SECONDS = 900
_READY = ".ready"
_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Peer:
    """One way to get a model that runs.

    Attributes:
        name: short name, also of its folder.
        title: as the table calls it.
        maker: its script in `bench/makers`, or `onnxopt` for our own command line.
        environment: its virtual environment; `OURS` for the one this program runs in.
        source: the peer whose model it starts from; empty when it starts from the checkpoint.
        runtime: `onnxruntime` or `openvino`.
        precision: `fp32` or `int8`.
        options: handed to the script.
        measured: false for a model that only others start from.
    """

    name: str
    title: str
    maker: str
    environment: str = OURS
    source: str = ""
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    options: tuple[str, ...] = ()
    measured: bool = True

    @property
    def file(self) -> Path:
        """Its model."""
        return MODELS / self.name / ("model.xml" if self.runtime == "openvino" else "model.onnx")


# the first is what the others are compared with; one stands after those it starts from
PEERS = (
    Peer("default", "default export (torch dynamo)", "export_dynamo.py"),
    Peer("onnxopt", "onnxopt", "onnxopt"),
    Peer(
        "onnxopt-ragged",
        "onnxopt --workload 32x256@0.26",
        "onnxopt",
        options=("--workload", "32x256@0.26"),
    ),
    Peer(
        "ort-dynamo", "onnxruntime.transformers on the default export", "ort_optimizer.py", "transformers4", "default"
    ),
    Peer("torchscript", "TorchScript export, transformers 4", "export_torchscript.py", "transformers4", measured=False),
    Peer(
        "ort-torchscript",
        "onnxruntime.transformers on a TorchScript export (transformers 4)",
        "ort_optimizer.py",
        "transformers4",
        "torchscript",
    ),
    Peer("optimum", "optimum-onnx O2 (transformers 4)", "optimum_o2.py", "transformers4"),
    Peer("exporters", "transformers.exporters, ort_fusions=cpu", "transformers_exporters.py"),
    Peer("onnxslim", "OnnxSlim on the default export", "onnxslim_model.py", "simplifiers", "default"),
    Peer("onnxsim", "onnxsim on the default export", "onnxsim_model.py", "simplifiers", "default"),
    Peer("openvino", "OpenVINO", "openvino_model.py", "openvino", "default", "openvino"),
    Peer("onnxopt-int8", "onnxopt --precision int8", "onnxopt", precision="int8", options=("--precision", "int8")),
    Peer(
        "onnxopt-int8-ragged",
        "onnxopt --precision int8 --workload 32x256@0.26",
        "onnxopt",
        precision="int8",
        options=("--precision", "int8", "--workload", "32x256@0.26"),
    ),
    Peer(
        "ort-int8",
        "quantize_dynamic of onnxruntime.transformers on TorchScript",
        "quantize_dynamic.py",
        "transformers4",
        "ort-torchscript",
        precision="int8",
    ),
    Peer(
        "openvino-int8",
        "OpenVINO, NNCF int8",
        "openvino_model.py",
        "openvino",
        "default",
        "openvino",
        "int8",
        ("int8",),
    ),
)
BY_NAME = {peer.name: peer for peer in PEERS}


@dataclass(frozen=True)
class Made:
    """How making a model went.

    Attributes:
        seconds: it took.
        error: why there is no model; empty when there is one.
        note: what the maker said about its result.
        versions: of what made it.
    """

    seconds: float
    error: str
    note: str
    versions: Mapping[str, str]


def python_of(environment: str) -> Path:
    """Return the interpreter of a virtual environment."""
    if environment == OURS:
        return Path(sys.executable)
    folder = ENVIRONMENTS / environment
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(environment: str, *, pip_arguments: tuple[str, ...] = ()) -> str:
    """Make a virtual environment unless it is there with the requirements as they are now.

    Returns:
        An empty string, or the error.
    """
    folder, requirements = ENVIRONMENTS / environment, REQUIREMENTS / f"{environment}.txt"
    wanted = requirements.read_text(encoding="utf-8")
    ready = folder / _READY
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return ""
    ready.unlink(missing_ok=True)
    if not python_of(environment).exists():
        error = _run([sys.executable, "-m", "venv", str(folder)], INSTALL_SECONDS).error
        if error:
            return error
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    error = _run([*pip, *pip_arguments, "-r", str(requirements)], INSTALL_SECONDS).error
    if not error:
        ready.write_text(wanted, encoding="utf-8")
    return error


def make(peer: Peer, facts: Mapping[str, Any], *, retry: bool = False, fresh: bool = False) -> Made:
    """Make the model of a peer, or return how that went before.

    Args:
        peer: whose.
        facts: `checkpoint`, `calibration`, `heads`, `hidden`: what scripts may need.
        retry: try again what failed before.
        fresh: make again what is there.
    """
    folder = MODELS / peer.name
    key = _key(peer)
    known = _known(folder, key)
    if known is not None and not fresh and (not known.error or not retry):
        return known
    source = BY_NAME.get(peer.source)
    if source is not None and not source.file.is_file():
        return _record(folder, key, Made(0.0, f"{source.title} could not be made", "", {}))
    if peer.environment and not python_of(peer.environment).exists():
        return Made(0.0, "not installed; run make peers", "", {})
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*"):
        old.unlink()
    begin = time.perf_counter()
    if peer.maker == "onnxopt":
        command = [sys.executable, "-m", "onnxopt", "optimize", "minilm", "--quiet", "--out", str(folder)]
        done = _run([*command, *peer.options], MAKE_SECONDS)
    else:
        job = {
            **facts,
            **dict.fromkeys(peer.options, True),
            "out": str(folder),
            "source": str(source.file) if source else "",
        }
        done = _run([str(python_of(peer.environment)), str(MAKERS / peer.maker), json.dumps(job)], MAKE_SECONDS)
    seconds = time.perf_counter() - begin
    error = done.error or ("" if peer.file.is_file() else "it wrote no model")
    return _record(folder, key, Made(seconds, error, done.note, tool_versions(peer.environment)))


def _key(peer: Peer) -> str:
    """Return a digest of what decides a peer's model, those it starts from included."""
    script = MAKERS / peer.maker
    parts = [repr(peer)]
    if script.is_file():
        parts.append(script.read_text(encoding="utf-8"))
    if peer.maker == "onnxopt":
        sources = [path for folder in ("onnxopt", "passes", "models") for path in (ROOT / folder).rglob("*.py")]
        parts.extend(path.read_text(encoding="utf-8") for path in sorted(sources) if path.is_file())
    if peer.environment:
        parts.append((REQUIREMENTS / f"{peer.environment}.txt").read_text(encoding="utf-8"))
    if peer.source:
        parts.append(_key(BY_NAME[peer.source]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _known(folder: Path, key: str) -> Made | None:
    try:
        record = json.loads((_beside(folder)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.pop("key", "") != key:
        return None
    made = Made(**record)
    return made if made.error or BY_NAME[folder.name].file.is_file() else None


def _record(folder: Path, key: str, made: Made) -> Made:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _beside(folder).write_text(json.dumps({"key": key, **made.__dict__}, indent=1), encoding="utf-8")
    return made


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


@dataclass(frozen=True)
class _Done:
    error: str
    note: str


def _run(command: list[str], seconds: float) -> _Done:
    """Run a program within a time limit; a JSON object in its last line may carry a `note`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    except subprocess.TimeoutExpired:
        return _Done(f"it took more than {seconds:.0f} s", "")
    except OSError as error:
        return _Done(f"it could not be started: {error.strerror}", "")
    if done.returncode != 0:
        return _Done(error_line(done.stderr or done.stdout) or f"it ended with code {done.returncode}", "")
    lines = done.stdout.strip().splitlines()
    try:
        return _Done("", str(json.loads(lines[-1])["note"]))
    except (IndexError, ValueError, KeyError, TypeError):
        return _Done("", "")


def error_line(text: str) -> str:
    """Return the line of a traceback or log that says what went wrong, without paths of this machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line.split(":")[0] or line.lower().startswith("error")]
    line = (telling or lines or [""])[-1]
    return line.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:_ERROR_CHARACTERS]


def tool_versions(environment: str) -> dict[str, str]:
    """Return the versions of the tools that an environment was asked for."""
    if environment == OURS:
        from onnxopt.host.machine import versions

        return versions()
    lines = (REQUIREMENTS / f"{environment}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.split("[")[0]: version for name, version in pairs}


def main() -> int:
    """Install every peer."""
    parser = argparse.ArgumentParser(description="Install the peers of the benchmark.")
    parser.add_argument("--pip-arguments", default="", help="more arguments for pip install")
    arguments = parser.parse_args()
    failed = 0
    for environment in dict.fromkeys(peer.environment for peer in PEERS if peer.environment):
        print(f"{environment} ...", end=" ", flush=True)
        error = install(environment, pip_arguments=tuple(arguments.pip_arguments.split()))
        failed += bool(error)
        print(error or "ready")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
