from __future__ import annotations

import pytest

from onnxopt.errors import InputError, PassAuthorError
from onnxopt.rewrite import Pass, registry
from onnxopt.rewrite.registry import register


def test_a_second_registration_of_a_name_names_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})

    def make(module: str) -> type[Pass]:
        return type("Twice", (Pass,), {"name": "twice", "__module__": module, "run": lambda self, model: 0})

    register(make("onnxopt.passes.fuse.one"))
    with pytest.raises(PassAuthorError, match=r"onnxopt\.passes\.fuse\.one and by onnxopt\.passes\.fuse\.two"):
        register(make("onnxopt.passes.fuse.two"))


def test_the_stage_is_the_folder_of_the_file() -> None:
    assert registry.catalogue()["fuse-gelu"].stage == "fuse"
    assert registry.catalogue()["lower-gelu"].stage == "lower/cpu"


def test_an_unknown_pass_is_said_with_names_near_to_it() -> None:
    with pytest.raises(InputError, match="fuse-gelu"):
        registry.get("fuse-geluu")


def test_the_catalogue_is_in_the_order_of_the_stages() -> None:
    stages = [step.stage.split("/")[0] for step in registry.catalogue().values()]
    assert stages == sorted(stages, key=["canonicalize", "fuse", "prune", "quantize", "lower"].index)
