"""Measure the forms of kernels for some models, and write what was found into the table that ships with the package.

Each model is optimized in a process of its own with `--retune`, as a user would; what that leaves in the user's cache
becomes an entry of the table. Entries of other machines, threads and runtimes stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import ROOT, error_line
from onnxopt.host.usercache import cache_root
from onnxopt.pipeline.profit import RECORDS

TABLE = ROOT / "onnxopt" / "pipeline" / RECORDS
MODELS: tuple[tuple[str, ...], ...] = (
    ("minilm",),
    ("minilm", "--workload", "32x256@0.26"),
    ("bert-base-uncased", "--weights", "random"),
    ("vit-base", "--weights", "random"),
    ("gpt2-mini",),
    ("smollm2-135m",),
)
SAME = ("digest", "provider", "cpu", "isa", "threads", "onnxruntime")
LIMIT_SECONDS = 900


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Record which forms of kernels are faster on this machine.")
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    arguments = parser.parse_args()
    only = {name for name in arguments.only.split(",") if name}
    failed = 0
    for options in MODELS:
        if only and options[0] not in only:
            continue
        print(f"{' '.join(options)} ...", end=" ", flush=True)
        found, error = measure(options)
        print(error or f"{len(found)} recorded", flush=True)
        failed += bool(error)
        write(found, TABLE)
    return 1 if failed else 0


def measure(options: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Optimize one model and return what its choices were kept as, and the error when there are none."""
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="onnxopt-record-") as room:
        command = [sys.executable, "-m", "onnxopt", "optimize", *options, "--retune", "--quiet", "--out", f"{room}/out"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, cwd=ROOT, env=dict(os.environ)
        )
    if done.returncode:
        return [], error_line(done.stderr) or f"it ended with code {done.returncode}"
    files = [path for path in (cache_root() / "profit").glob("*.json") if path.stat().st_mtime >= begin]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return found, "" if found else "nothing was measured: no time, or too much noise"


def write(found: Sequence[dict[str, Any]], table: Path) -> None:
    """Put entries into the table in the place of those of the same model, machine and runtime."""
    old = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    fresh = {json.dumps([entry[name] for name in SAME]) for entry in found}
    titles = {json.dumps([entry[n] for n in (*SAME[1:], "model", "shapes", "fills", "weights")]) for entry in found}
    kept = [
        entry
        for entry in old
        if json.dumps([entry[name] for name in SAME]) not in fresh
        and json.dumps([entry[n] for n in (*SAME[1:], "model", "shapes", "fills", "weights")]) not in titles
    ]
    table.parent.mkdir(exist_ok=True)
    merged = sorted([*kept, *found], key=lambda entry: (entry["model"], entry["cpu"], str(entry["shapes"])))
    lines = ",\n".join(json.dumps(entry) for entry in merged)
    table.write_text(f"[\n{lines}\n]\n" if merged else "[]\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
