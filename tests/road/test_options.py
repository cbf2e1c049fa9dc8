"""Options are written down once, and have the same names for Python, the command line and a recipe."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

import onnxopt
import onnxopt.cli.main  # registers the commands
from onnxopt.calibrate.ranges import METHODS
from onnxopt.cli.options import FLAGS, TYPES
from onnxopt.cli.shared import app
from onnxopt.compress.recipe import CompressRecipe
from onnxopt.errors import InputError
from onnxopt.prune.spec import ALLOCATIONS, IMPORTANCES, PruneSpec
from onnxopt.qmath.precision import HalfKind, Kind
from onnxopt.road.described import Described, described, keywords
from onnxopt.road.options import (
    PLACES,
    STAGES,
    CalibratorName,
    Keywords,
    LoadOptions,
    Options,
    PrecisionName,
    PruneOptions,
    TargetName,
    types_of,
)
from onnxopt.spec import PROVIDERS

OF_COMMANDS = {"source", "out", "as_json", "progress", "quiet", "verbose"}
# A recipe names its source, and every step hands a checkpoint of its own to the next; code that runs is named by hand.
NOT_IN_RECIPES = {"source", "rewrite"}
HOW_PRUNING_CHOOSES = {"importance", "compensate", "align", "allocation", "seed"}  # of the command `prune`
RECIPE = """
source = "m.onnx"
[package]
target = "portable"
workload = "1x7"
shard_size = "2GB"
[quantize]
budget = 1e-3
precision = "mixed"
calibration = "a.txt"
calibration_samples = 3
calibrator = "mse"
keep = "head"
force_calibration = true
allow_slower = true
require_precision = true
[load]
task = "fill-mask"
with_pooling = false
without = "bbox"
with_cache = false
logits = "all"
exporter = "dynamo"
padding = "right"
feeds = "a.npz"
axes = ["a=1"]
values = { rate = 8000 }
[tune]
measure = false
tune = false
retune = true
forms_from = "manifest.json"
require_speedup = 1.5
[prune]
what = "heads=1"
data = "b.txt"
budget = "cosine>=0.9"
"""
GIVEN: Keywords = {
    "target": "portable",
    "workload": "1x7",
    "shard_size": "2GB",
    "budget": 1e-3,
    "precision": "mixed",
    "calibration": "a.txt",
    "calibration_samples": 3,
    "calibrator": "mse",
    "keep": "head",
    "force_calibration": True,
    "allow_slower": True,
    "require_precision": True,
    "task": "fill-mask",
    "with_pooling": False,
    "without": "bbox",
    "with_cache": False,
    "logits": "all",
    "exporter": "dynamo",
    "padding": "right",
    "feeds": "a.npz",
    "axes": ["a=1"],
    "values": {"rate": 8000},
    "measure": False,
    "tune": False,
    "retune": True,
    "forms_from": "manifest.json",
    "require_speedup": 1.5,
    "prune": "heads=1",
    "prune_data": "b.txt",
    "prune_budget": "cosine>=0.9",
}


def parameters(command: str) -> dict[str, Any]:
    """Return what a command takes, by name."""
    group: Any = typer.main.get_command(app)
    return {one.name: one for one in group.commands[command].params}


def test_keywords_are_those_of_the_classes() -> None:
    assert set(Keywords.__annotations__) == set(PLACES)
    written = {name: one.__forward_arg__ for name, one in Keywords.__annotations__.items()}
    assert {one.name: one.annotation for one in keywords()} == written


def test_python_and_the_command_line_take_the_same_options() -> None:
    own = set(inspect.signature(onnxopt.optimize).parameters)
    assert own == {*PLACES, "source", "out", "progress"}
    assert set(parameters("optimize")) == {*PLACES, *OF_COMMANDS}


def test_a_recipe_takes_the_options_of_python_under_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe, options = CompressRecipe.read(path), Options.of(**GIVEN)
    assert set(GIVEN) == {keyword for keyword, (stage, _) in PLACES.items() if stage not in NOT_IN_RECIPES}
    for stage in set(STAGES) - NOT_IN_RECIPES:
        assert getattr(recipe, stage) == getattr(options, stage)
        fresh = {one.name: one.default for one in described(STAGES[stage])}
        untouched = {name for name, default in fresh.items() if getattr(getattr(recipe, stage), name) == default}
        assert untouched == (HOW_PRUNING_CHOOSES if stage == "prune" else set())


def test_the_command_prune_takes_the_options_of_its_stage() -> None:
    assert set(parameters("prune")) == {one.name for one in described(PruneOptions)} | OF_COMMANDS


@pytest.mark.parametrize("one", [*keywords(), *described(PruneOptions)], ids=lambda one: one.name)
def test_every_option_says_what_it_means(one: Described) -> None:
    assert one.words.endswith(".")
    assert one.words[0].islower() or one.words[0] == "`"


@pytest.mark.parametrize("one", list(keywords()), ids=lambda one: one.name)
def test_defaults_and_words_are_those_of_the_class_everywhere(one: Described) -> None:
    assert inspect.signature(onnxopt.optimize).parameters[one.name].default == one.default
    assert f"{one.name}: {one.words}" in " ".join((onnxopt.optimize.__doc__ or "").split())
    shown = parameters("optimize")[one.name]
    assert getattr(shown.default, "value", shown.default) == one.default
    assert shown.help.lower().startswith(one.words.lower().removesuffix("."))


def test_choices_of_the_command_line_are_those_of_the_options() -> None:
    literals = {
        name: get_args(kind)
        for stage in STAGES.values()
        for name, kind in types_of(stage).items()
        if get_origin(kind) is Literal
    }
    assert set(get_args(TargetName)) == set(PROVIDERS)
    assert set(get_args(CalibratorName)) == {"auto", *METHODS}
    assert {*get_args(PrecisionName), "mixed"} == {"fp32", "auto", "mixed", *get_args(Kind), *get_args(HalfKind)}
    known = {**literals, "target": PROVIDERS, "importance": IMPORTANCES, "allocation": ALLOCATIONS}
    choices = {name: {one.value for one in kind} for name, kind in TYPES.items() if hasattr(kind, "__members__")}
    assert choices == {name: set(words) for name, words in known.items()}
    assert set(FLAGS) <= set(PLACES)


def test_keywords_are_parted_into_stages() -> None:
    spec = PruneSpec.parse("layers=1")
    options = Options.of(target="portable", logits="all", prune=spec, prune_data="a.txt", retune=True, keep="head")
    assert options.package.target == "portable"
    assert options.load == LoadOptions(logits="all")
    assert options.prune == PruneOptions(what=spec, data="a.txt")
    assert (options.tune.measure, options.tune.retune) == (True, True)
    assert options.quantize.keep == "head"
    assert Options.of() == Options()


def test_a_keyword_that_there_is_not_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"optimize\(\) got an unexpected keyword argument 'precison'"):
        onnxopt.optimize("minilm", precison="int8")  # type: ignore[call-arg]  # the slip is the point


@pytest.mark.parametrize(("keyword", "word"), [("logits", "first"), ("exporter", "jax"), ("weights", "none")])
def test_a_word_that_an_option_does_not_take_is_refused(keyword: str, word: str) -> None:
    with pytest.raises(InputError, match=rf"unknown {keyword} '{word}'; use one of "):
        onnxopt.optimize("minilm", **{keyword: word})  # type: ignore[arg-type]  # the slip is the point


def test_options_are_frozen() -> None:
    for kind in STAGES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), next(iter(types_of(kind))), None)
