"""Run artifacts in Node: the golden check in onnxruntime-node, text in transformers.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from onnxopt.artifact.clients import add_client

SOURCE = Path(__file__).parents[1] / "clients" / "node"
TEMPLATE = Path(__file__).parents[2] / "onnxopt" / "artifact" / "templates" / "clients" / "node"
BUILD = Path(__file__).parents[2] / "build" / "node-clients"
_LOCKS = ("package.json", "package-lock.json")
_SCRIPTS = ("check_golden.mjs", "transformers_js.mjs", "click.mjs")


def install_script(name: str = _SCRIPTS[0]) -> Path:
    """Install the pinned packages below build/, once, and return a script beside them."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed; `pytest -m 'not node'` leaves these tests out"
    BUILD.mkdir(parents=True, exist_ok=True)
    stamp = BUILD / "node_modules" / ".package-lock.json"
    fresh = stamp.is_file() and all(
        (BUILD / lock).is_file() and (BUILD / lock).read_bytes() == (SOURCE / lock).read_bytes() for lock in _LOCKS
    )
    for file in (*_LOCKS, *_SCRIPTS):
        place = TEMPLATE if file == _SCRIPTS[0] else SOURCE
        shutil.copyfile(place / file, BUILD / file)
    if not fresh:
        # onnxruntime-node's install script only fetches the CUDA provider, and the others are not needed either
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=BUILD, check=True, timeout=600)
    return BUILD / name


def run(script: Path, folder: Path) -> tuple[int, str]:
    """Return exit code and the one line that the golden check prints for an artifact."""
    done = _node(script, str(folder))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    return done.returncode, lines[0]


def transformers_js(*arguments: str) -> Any:
    """Return what `transformers_js.mjs` finds."""
    done = _node(install_script("transformers_js.mjs"), *arguments)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"] == "4.3.1"
    return answer["found"]


def run_client(artifact: Path, *texts: str) -> list[str]:
    """Add the Node client to an artifact and return the lines that it prints for texts."""
    add_client(artifact, "node")
    client = link_modules(artifact / "clients" / "node")
    done = _node(client / "run.mjs", *texts)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def refused_by_node(artifact: Path, *arguments: str) -> str:
    """Return what the Node client that an artifact has says where it cannot run."""
    client = link_modules(artifact / "clients" / "node")
    done = _node(client / "run.mjs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def check_texts(artifact: Path) -> tuple[int, str]:
    """Return exit code and the one line of the Node client that an artifact has, for its golden texts."""
    client = link_modules(artifact / "clients" / "node")
    done = _node(client / "check_texts.mjs")
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, line


def link_modules(folder: Path) -> Path:
    """Give a client the packages that are installed for the tests, in place of its own `npm install`."""
    install_script()
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(BUILD / "node_modules")
    return folder


def _node(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    assert node
    return subprocess.run([node, str(script), *arguments], capture_output=True, text=True, timeout=120, check=False)
