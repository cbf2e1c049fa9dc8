"""The wheel, installed alone into a fresh environment of each Python: small, without torch, and able to work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxopt.host.checkup import version_numbers
from tests.support.own_text import sentences, text_encoder

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MOST_BYTES = 350 << 20  # of the core, with what it brings and the bytecode that pip makes of it
HAS_GRIDS = (1, 24)  # of onnxruntime: it has QuantizeLinear-23
OF_THE_ENVIRONMENT = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
BUILT_FROM = ("onnxopt", "passes", "models", "pyproject.toml", "README.md", "LICENSE")
NOT_IN_THE_CORE = ("torch", "transformers", "optimum", "accelerate", "safetensors", "matplotlib")
IMPORT_ALL = """
import importlib, pkgutil, sys
import onnxopt
names = [found.name for found in pkgutil.walk_packages(onnxopt.__path__, "onnxopt.")]
for name in names:
    if "__main__" not in name and ".templates" not in name:
        importlib.import_module(name)
assert "torch" not in sys.modules
print(len(names))
"""

pytestmark = pytest.mark.slow


def ran(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program without what this environment says to Python and pip's cache folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env={**env, "HF_HUB_OFFLINE": "1", **environment},
    )


def interpreter(version: str) -> Path:
    """Return a Python of a version, or skip the test with its name."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    found = [shutil.which(f"python{version}"), *map(str, kept)]
    for path in filter(None, found):
        if ran([path, "-c", "import ensurepip, venv"]).returncode == 0:  # a shim of pyenv may be of no version
            return Path(path)
    pytest.skip(f"there is no Python {version} here")


@dataclass(frozen=True)
class Environment:
    """A fresh environment.

    Attributes:
        folder: of it.
        wheel: the one to install.
    """

    folder: Path
    wheel: Path

    def program(self, name: str) -> Path:
        """Return the path of an installed program."""
        return self.folder / ("Scripts" if sys.platform == "win32" else "bin") / name

    def install(self, extras: str = "") -> None:
        """Install the wheel with extras."""
        pip: list[str | Path] = [
            self.program("python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        done = ran([*pip, "-c", ROOT / "constraints.txt", f"{self.wheel}{extras}"])
        assert done.returncode == 0, done.stderr

    def onnxopt(self, *arguments: object) -> str:
        """Run a command that has to succeed, and return what it prints."""
        done = self.tried(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        return ran([self.program("onnxopt"), *map(str, arguments)], ONNXOPT_CACHE=str(self.folder / "cache"))

    def packages(self) -> Mapping[str, str]:
        """Return what is installed, with versions."""
        done = ran([self.program("python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"])
        return {one["name"].lower(): one["version"] for one in json.loads(done.stdout)}

    def installed_bytes(self) -> int:
        """Return the bytes of the installed files, without what an empty environment has."""
        (place,) = [path for path in self.folder.rglob("site-packages") if path.is_dir()]
        tops = [path for path in place.iterdir() if not path.name.startswith(OF_THE_ENVIRONMENT)]
        files = [path for top in tops for path in (top.rglob("*") if top.is_dir() else (top,)) if path.is_file()]
        return sum(path.stat().st_size for path in files)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `make build` does, in a copy, since the build writes into the folder."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    done = ran([sys.executable, "-m", "build", "--outdir", source / "dist", source])
    assert done.returncode == 0, done.stderr
    assert not re.findall(r".*(?:warning|deprecat|absent).*", done.stdout + done.stderr, re.IGNORECASE), (
        "the build warns of nothing"
    )
    assert len(list((source / "dist").glob("*.tar.gz"))) == 1
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.mark.parametrize("version", PYTHONS)
def test_the_core_is_small_and_works_by_itself(version: str, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    done = ran([interpreter(version), "-m", "venv", folder])
    assert done.returncode == 0, done.stderr
    core = Environment(folder, wheel)
    core.install()
    assert not {*NOT_IN_THE_CORE} & {*core.packages()}
    size = core.installed_bytes()
    assert size > MOST_BYTES // 4, "nothing was counted"
    assert size <= MOST_BYTES, f"{size >> 20} MiB"
    found = json.loads(core.onnxopt("doctor", "--json"))
    assert found["problems"] == []
    assert found["versions"]["python"].startswith(f"{version}.")
    works(core, tmp_path)
    says_what_is_missing(core)
    core.install("[serve]")
    assert not {*NOT_IN_THE_CORE} & {*core.packages()}
    done = ran([core.program("python"), "-c", IMPORT_ALL])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def works(core: Environment, room: Path) -> None:
    """Take a model the whole road and use what comes out of it."""
    model, out, texts = text_encoder(room / "model"), room / "out", room / "texts.txt"
    texts.write_text("\n".join(sentences(48)), encoding="utf-8")
    options = ("-o", out, "--quiet", "--no-measure", "--calibration", texts, "--budget", "cosine>=0.9")
    done = core.tried("optimize", model, *options, "--precision", "int8")
    if version_numbers(core.packages()["onnxruntime"]) < HAS_GRIDS:  # the newest one for Python 3.10
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "use int8-dynamic" in done.stderr
        core.onnxopt("optimize", model, *options, "--precision", "int8-dynamic")
    else:
        assert done.returncode == 0, done.stderr
    assert "'of the one': y of" in core.onnxopt("run", out, "of the one")
    assert core.onnxopt("inspect", out)
    assert json.loads(core.onnxopt("verify", model, model, "--json"))["equal"]
    assert core.onnxopt("bench", model, out, "--rounds", 1, "--seconds", 0.5, "-w", "1x8")
    assert "node" in core.onnxopt("package", out, "--for", "node", "--json")


def says_what_is_missing(core: Environment) -> None:
    """Ask for what needs an extra."""
    for arguments, extra in ((("optimize", "gpt2-mini"), "hf"), (("serve", "build/x"), "serve")):
        done = core.tried(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert f"pip install 'onnxopt[{extra}]'" in done.stderr
