"""Extras: the code and pyproject.toml name the same packages, and a missing one is a line with a command."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.host.extras import EXTRAS, missing, require
from onnxopt.run.inputs.image import open_image
from onnxopt.run.inputs.sound import PROCESSOR_NAME, SoundReader

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def names(requirements: list[str]) -> set[str]:
    return {match[0] for one in requirements if (match := re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?", one))}


def test_the_code_names_what_the_package_does() -> None:
    asked = project()["optional-dependencies"]
    assert {*asked} == {*EXTRAS, "dev"}
    for name, extra in EXTRAS.items():
        assert names(asked[name]) == {*extra.packages, *(f"onnxopt[{other}]" for other in extra.also)}
    assert f"onnxopt[{','.join(sorted(EXTRAS))}]" in names(asked["dev"]), "who develops has everything"


def test_the_core_brings_nothing_that_makes_models() -> None:
    assert not names(project()["dependencies"]) & {*EXTRAS["hf"].packages, "matplotlib"}


@pytest.mark.parametrize("gone", ["PIL", "accelerate", "torch"])
def test_what_is_missing_is_told_by_the_name_to_install(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, gone, None)
    name, package = next(
        (name, package)
        for name, extra in EXTRAS.items()
        for package, module in extra.packages.items()
        if module == gone
    )
    assert missing(name) == (package,)
    with pytest.raises(InputError, match=rf"a thing: looking needs {package}, which is not installed") as told:
        require(name, "looking", where="a thing", instead="look elsewhere")
    assert str(told.value).endswith(f"pip install 'onnxopt[{name}]', or look elsewhere")


def test_an_extra_lacks_what_those_that_it_brings_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing("gguf") == ("torch",)
    assert missing("serve") == ()


def test_pictures_and_sounds_say_what_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PROCESSOR_NAME).write_text("{}", encoding="utf-8")
    for module in ("PIL", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"needs pillow, .*; pip install 'onnxopt\[image\]'$"):
        open_image(tmp_path / "red.png")
    with pytest.raises(InputError, match=r"needs transformers, .*; pip install 'onnxopt\[hf\]', or give features"):
        SoundReader(tmp_path)
