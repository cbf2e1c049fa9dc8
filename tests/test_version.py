"""One version: what is written into manifests is what the package is released as."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxopt
from onnxopt.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == onnxopt.__version__ == project["version"]
