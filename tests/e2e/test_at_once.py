"""Two runs into one folder at once: both end well, and what lies there is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.artifact.package import Artifact, check_golden
from tests.exam.stopped_jobs import half, two_layers
from tests.support.tiny import tiny_checkpoint


def together(commands: list[list[object]], cache: Path) -> list[tuple[int, str]]:
    """Run commands at once; each with its exit code and what it said."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "ONNXOPT_CACHE": str(cache)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "onnxopt", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for command in commands
    ]
    said = [one.communicate(timeout=600)[0] for one in running]
    return [(one.returncode, text) for one, text in zip(running, said, strict=True)]


def test_two_runs_into_one_folder_leave_one_whole_artifact(tmp_path: Path) -> None:
    two_layers_file = tmp_path / "in" / "graph.onnx"
    two_layers_file.parent.mkdir()
    two_layers_file.write_bytes(two_layers().SerializeToString())
    out = tmp_path / "results" / "out"
    optimize: list[object] = ["optimize", two_layers_file, "--no-measure", "--quiet", "-o", out]
    for code, said in together([optimize, [*optimize, "--target", "portable"], optimize], tmp_path / "cache"):
        assert code == 0, said
    assert half(out) == ""
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    package: list[list[object]] = [["package", out, "--for", stack] for stack in ("node", "triton", "rust")]
    for code, said in together([*package, [*optimize]], tmp_path / "cache"):
        assert code in (0, 2), said  # where it was replaced between two looks, it is said
        assert "Traceback" not in said
    assert half(out) == ""
    assert check_golden(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_two_cold_caches_at_once_give_the_same(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "bert")
    outs = [tmp_path / name for name in ("a", "b")]
    commands: list[list[object]] = [["optimize", source, "--no-measure", "--quiet", "-o", out] for out in outs]
    for code, said in together(commands, tmp_path / "cache"):
        assert code == 0, said
    first, second = (Artifact.open(out) for out in outs)
    assert first.manifest.files == second.manifest.files
    assert first.changed_files() == second.changed_files() == []
    assert len(list((tmp_path / "cache" / "exports").iterdir())) == 1
