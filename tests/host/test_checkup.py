"""An installation is looked over: facts without names of people, known traps in a sentence with what to do."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from onnxopt.host import checkup
from onnxopt.host.checkup import check_up, out_of_range, tilde, version_numbers
from onnxopt.host.extras import EXTRAS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def with_packages(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let packages have other versions, or none, than they have; `_` stands for `-`."""
    told = {name.replace("_", "-"): version for name, version in versions.items()}
    real = metadata.version

    def version(name: str) -> str:
        if name not in told:
            return real(name)
        if (found := told[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_an_installation_that_is_well_has_no_problem() -> None:
    found = check_up()
    assert found.problems == []
    assert "CPUExecutionProvider" in found.providers
    assert found.versions["onnxruntime"] == metadata.version("onnxruntime")
    assert 0 < found.machine["memory_allowed"] <= found.machine["memory_bytes"]
    assert found.cache["entries"] == 0
    assert {*found.extras} == {*EXTRAS}
    assert not any(extra["missing"] for extra in found.extras.values())


def test_torch_is_never_imported() -> None:
    code = "import sys; from onnxopt.host.checkup import check_up; check_up(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("home", ["/home/somebody", "/Users/some body"])
def test_no_folder_is_told_by_the_name_of_its_user(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("ONNXOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{home}/kept")
    found = check_up()
    assert found.cache["path"] == "~/kept/onnxopt"
    assert home not in json.dumps(asdict(found))
    assert tilde(f"{home}2/x {home}/x, {home}") == f"{home}2/x ~/x, ~"


def test_a_root_without_a_home_changes_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert tilde("/var/cache") == "/var/cache"


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-openvino"])
def test_two_runtimes_over_each_other_are_seen(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, **{other.replace("-", "_"): metadata.version("onnxruntime")})
    (line,) = check_up().problems
    assert line.startswith(f"onnxruntime and {other} are installed together")
    assert line.endswith(f"pip uninstall onnxruntime {other}, then pip install {other}")


def test_a_runtime_that_is_another_than_the_installed_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, onnxruntime="1.99.0")
    assert any("is imported where 1.99.0 is installed" in line for line in check_up().problems)


def test_a_runtime_that_cannot_be_loaded_is_said_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    found = check_up()
    assert found.providers == []
    assert any("onnxruntime cannot be imported (libcudart.so.13" in line for line in found.problems)


@pytest.mark.parametrize(("package", "version"), [("onnx", "1.16.0"), ("transformers", "4.57.1"), ("numpy", "1.26.4")])
def test_a_version_below_its_range_is_seen(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"onnx": "onnx>=1.21", "numpy": "numpy>=2.0", "transformers": 'transformers>=5.5; extra == "hf"'}
    monkeypatch.setattr(metadata, "requires", lambda _: [*asked.values(), 'ruff>=999; extra == "dev"'])
    with_packages(monkeypatch, **{package: version})
    (line,) = check_up().problems
    limit = asked[package].partition(";")[0].removeprefix(package)
    assert line == f"{package} {version} is not in the range {limit}; pip install --upgrade '{package}{limit}'"


def test_a_package_that_is_gone_is_seen_unless_it_is_for_other_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["jinja2>=3.1", "tomli>=2; python_version < '3.5'", 'torch>=2.10; extra == "hf"']
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    with_packages(monkeypatch, jinja2=None, tomli=None, torch=None)
    (line,) = check_up().problems
    assert line.startswith("jinja2 is not installed")


@pytest.mark.parametrize(
    ("asked", "have", "is_out"),
    [
        ("onnx>=1.21", "1.21.0", False),
        ("onnx>=1.21", "1.9", True),
        ("torch>=2.10", "2.13.0+cpu", False),
        ("torch<3,>=2.10", "3.0.1", True),
        ("mkdocs>=1.6,<2", "1.6.1", False),
        ("any", "0.1", False),
        ("odd>=1", "1.0rc1", False),
    ],
)
def test_versions_are_compared_by_their_numbers(asked: str, have: str, *, is_out: bool) -> None:
    assert out_of_range(asked, have) == is_out


def test_a_version_without_numbers_has_none() -> None:
    assert version_numbers("unknown") == ()
    assert version_numbers("2.13.0+cpu") == (2, 13, 0)


def test_a_python_that_nothing_ran_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "RAN_WITH", ((3, 1), (3, 2)))
    assert any("the tests ran with 3.1 to 3.2" in line for line in check_up().problems)


@pytest.mark.skipif(os.name == "nt", reason="rights of folders are others there")
def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("a file in its place", encoding="utf-8")
    (line,) = check_up().problems
    assert line.startswith(f"{tilde(str(cache))}: the cache cannot be written")
    assert line.endswith("set ONNXOPT_CACHE to another folder")


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "LITTLE_ROOM", 1 << 62)
    assert sum("are free for" in line for line in check_up().problems) == 2


def test_settings_that_harm_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    monkeypatch.setenv("ONNXOPT_LIMITS", "speed=9")
    found = check_up().problems
    assert any(line.startswith("ONNXOPT_LIMITS: cannot read 'speed=9'") for line in found)
    assert any(line.startswith("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python makes") for line in found)


@pytest.mark.parametrize("providers", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_a_gpu_that_the_runtime_does_not_use_is_told(
    providers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 590", encoding="utf-8")
    monkeypatch.setattr(checkup, "_NVIDIA", driver)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    told = [line for line in check_up().problems if "there is an NVIDIA GPU" in line]
    assert len(told) == ("CUDAExecutionProvider" not in providers)


def test_a_cache_below_what_is_no_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests: even root cannot write below a file."""
    (closed := tmp_path / "closed").write_text("a file")
    monkeypatch.setenv("ONNXOPT_CACHE", str(closed / "cache"))
    assert any("the cache cannot be written" in line for line in check_up().problems)
