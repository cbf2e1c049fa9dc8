"""The catalogue is complete: every pass has its test, its documentation and its place in a pipeline.

Covers: pipeline/orders.py
"""

import inspect
import sys
from pathlib import Path

import pytest

from onnxopt.pipeline.orders import (
    CANONICALIZE,
    COLUMNS,
    FUSE,
    HALF,
    LOWER,
    ON_GRIDS,
    PRUNE,
    WEIGHTS_ONLY,
    WITHOUT_PADDING,
)
from onnxopt.rewrite import Rewrite
from onnxopt.rewrite.registry import catalogue

HERE = Path(__file__).parent
PASSES = catalogue()
PIPELINES = {
    "canonicalize": set(CANONICALIZE),
    "fuse": set(FUSE),
    "prune": set(PRUNE),
    "quantize": {*COLUMNS, *HALF, *ON_GRIDS, *(name for names in WEIGHTS_ONLY.values() for name in names)},
    **{f"lower/{target}": set(names) for target, names in LOWER.items()},
}
PIPELINES["lower/cpu"] |= set(WITHOUT_PADDING)
PIPELINES["lower/contrib"] = set(LOWER["cpu"]) & set(LOWER["cuda"])  # kernels that several targets share
PARTS = ("Before::", "After::", "Meets:", "Numerics:", "Source:")


def test_there_is_something_to_check() -> None:
    assert len(PASSES) > 30


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES.keys())
def test_every_pass_has_a_test_file_in_the_same_place(cls: type[Rewrite]) -> None:
    path = cls.__module__.removeprefix("onnxopt.passes.").split(".")
    mirror = HERE.joinpath(*path[:-1], f"test_{path[-1]}.py")
    assert mirror.is_file(), f"{mirror.relative_to(HERE)} is missing"
    assert f'"{cls.name}"' in mirror.read_text(encoding="utf-8"), f"{mirror.name} never runs {cls.name}"


@pytest.mark.parametrize("test", sorted(HERE.rglob("*/test_*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_every_test_file_belongs_to_a_pass_file(test: Path) -> None:
    modules = {cls.__module__ for cls in PASSES.values()}
    parts = [*test.relative_to(HERE).parent.parts, test.stem.removeprefix("test_")]
    assert ".".join(("onnxopt.passes", *parts)) in modules


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES.keys())
def test_every_pass_file_tells_its_five_parts_in_order(cls: type[Rewrite]) -> None:
    text = sys.modules[cls.__module__].__doc__ or ""
    assert text.splitlines()[0].endswith("."), "the first line is a sentence"
    places = [text.find(f"\n{part}") for part in PARTS]
    assert -1 not in places, f"missing: {[part for part, place in zip(PARTS, places, strict=True) if place < 0]}"
    assert places == sorted(places)


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES.keys())
def test_every_class_shows_the_rewrite_as_an_arrow(cls: type[Rewrite]) -> None:
    text = inspect.getdoc(cls) or ""
    if cls.name == "remove-unused":
        assert "goes" in text
        return
    assert "→" in text.splitlines()[0]


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES.keys())
def test_every_pass_runs_in_the_pipeline_of_its_stage(cls: type[Rewrite]) -> None:
    assert cls.name in PIPELINES[cls.stage]


@pytest.mark.parametrize("stage", PIPELINES)
def test_every_name_in_a_pipeline_is_a_pass(stage: str) -> None:
    assert PIPELINES[stage] <= set(PASSES)


@pytest.mark.parametrize("cls", PASSES.values(), ids=PASSES.keys())
def test_what_a_pass_enables_exists_and_comes_later_or_again(cls: type[Rewrite]) -> None:
    roads = [[*CANONICALIZE, *FUSE, *COLUMNS, *lowering] for lowering in (*LOWER.values(), WITHOUT_PADDING)]
    for name in cls.enables:
        assert name in PASSES
        assert any(name in road[road.index(cls.name) + 1 :] for road in roads if cls.name in road)
