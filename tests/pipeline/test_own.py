"""Passes from outside of onnxopt run at the end of their stage, or beside the pass that they name."""

from __future__ import annotations

from typing import Any

import pytest

from onnxopt.errors import OwnPassError
from onnxopt.pipeline.orders import CANONICALIZE, FUSE, TIDY, passes_of
from onnxopt.pipeline.own import own_passes, with_own
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import name_of
from onnxopt.spec import Target


def placed(**facts: Any) -> list[str]:
    """The order of the passes for the CPU with three of one's own, the one in the middle with some facts."""

    def make(name: str, **more: Any) -> type[Pass]:
        return type("Own", (Pass,), {"name": name, "run": lambda self, model: 0, **more})

    own = own_passes([make("one"), make("two", **facts), make("three", **facts)])
    stages = with_own(passes_of(Target("cpu")), own)
    assert len(stages["lower"]) == len(passes_of(Target("cpu"))["lower"])
    return [f"{stage} {name_of(step)}" for stage in ("canonicalize", "fuse") for step in stages[stage]]


def test_they_run_at_the_end_of_their_stage() -> None:
    fuse = [*FUSE[: -len(TIDY)], "one", "two", "three", *TIDY]
    assert placed() == [*(f"canonicalize {name}" for name in CANONICALIZE), *(f"fuse {name}" for name in fuse)]
    names = placed(stage="canonicalize")
    at = names.index("canonicalize two")
    assert names[at + 1 : at + 3] == ["canonicalize three", f"canonicalize {TIDY[0]}"]


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"before": "fuse-softmax"}, ["fuse two", "fuse three", "fuse fuse-softmax"]),
        ({"after": "fuse-softmax"}, ["fuse fuse-softmax", "fuse two", "fuse three"]),
        ({"before": "raise-mean"}, ["canonicalize two", "canonicalize three", "canonicalize raise-mean"]),
        ({"after": "one"}, ["fuse one", "fuse two", "fuse three"]),
        ({"after": "remove-unused", "stage": "canonicalize"}, ["canonicalize remove-unused", "canonicalize two"]),
    ],
)
def test_they_run_beside_the_pass_that_they_name(facts: dict[str, str], shown: list[str]) -> None:
    names = placed(**facts)
    at = names.index(shown[0])
    assert names[at : at + len(shown)] == shown


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"before": "fuse-nothing"}, "two runs before fuse-nothing, and there is no such pass; `onnxopt passes`"),
        (
            {"after": "lower-gelu"},
            "two runs after lower-gelu, which is in stage lower/cpu; name a pass of canonicalize",
        ),
        ({"after": "fuse-gelu", "stage": "canonicalize"}, "which is in stage fuse; name a pass of canonicalize"),
        ({"min_opset": 99}, "min_opset of two is 99, and the newest that onnxopt knows is "),
        ({"stage": "lower"}, "the stage of two is 'lower'; passes from outside run in canonicalize or fuse"),
        ({"after": "fuse-gelu", "before": "fuse-silu"}, "two names a pass before and one after"),
    ],
)
def test_a_place_that_there_is_not_is_said(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(OwnPassError) as error:
        placed(**facts)
    assert said in str(error.value)
