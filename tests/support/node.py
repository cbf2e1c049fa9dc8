"""Run the golden check of an artifact in onnxruntime-node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "clients" / "node"
BUILD = Path(__file__).parents[2] / "build" / "node-clients"


def install_script() -> Path:
    """Install the pinned packages below build/, once, and return the script beside them."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed; `pytest -m 'not node'` leaves these tests out"
    BUILD.mkdir(parents=True, exist_ok=True)
    names = ("package.json", "package-lock.json", "check_golden.mjs")
    stamp = BUILD / "node_modules" / ".package-lock.json"
    fresh = stamp.is_file() and all(
        (BUILD / name).is_file() and (BUILD / name).read_bytes() == (SOURCE / name).read_bytes() for name in names[:2]
    )
    for name in names:
        shutil.copyfile(SOURCE / name, BUILD / name)
    if not fresh:
        # the package's install script only fetches the CUDA provider
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=BUILD, check=True, timeout=600)
    return BUILD / "check_golden.mjs"


def run(script: Path, folder: Path) -> tuple[int, str]:
    """Return exit code and the one line that the script prints for an artifact."""
    node = shutil.which("node")
    assert node
    done = subprocess.run([node, str(script), str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    return done.returncode, lines[0]
