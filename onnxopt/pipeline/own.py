"""Place passes from outside of onnxopt among those of a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnxopt.errors import OwnPassError
from onnxopt.load.safety.structure import MAX_OPSET
from onnxopt.pipeline.orders import CANONICALIZE, FUSE, TIDY
from onnxopt.rewrite import Rewrite
from onnxopt.rewrite.blame import place_of
from onnxopt.rewrite.own import Named, load_own
from onnxopt.rewrite.registry import Step, catalogue, name_of

USUAL = "fuse"  # the stage of a pass that says nothing of where it runs


def own_passes(named: Named | Iterable[Named] | None) -> tuple[type[Rewrite], ...]:
    """Load passes that a user has named, and decide in which stage each runs.

    Args:
        named: files, modules, what packages offer, or classes, as `load_own` takes them; None for none.

    Returns:
        The classes in their order; each knows its stage.

    Raises:
        OwnPassError: one cannot be loaded, or asks for a place that there is not.
    """
    loaded = load_own(named or ())
    orders: dict[str, list[str]] = {"canonicalize": [*CANONICALIZE], USUAL: [*FUSE]}
    for kind in loaded:
        if kind.min_opset > MAX_OPSET:
            what = f"min_opset of {kind.name} is {kind.min_opset}, and the newest that onnxopt knows is {MAX_OPSET}"
            raise OwnPassError(what, where=place_of(kind), hint="write the opset that its new nodes need")
        kind.stage = _stage_of(kind, orders)
        orders[kind.stage].append(kind.name)
    return loaded


def with_own(stages: Mapping[str, Sequence[str]], own: Sequence[type[Rewrite]]) -> dict[str, tuple[Step, ...]]:
    """Return the passes of a target with those from outside among them.

    One that names a pass stands in front of where that first is, or behind where it last is; any other stands at the
    end of its stage, in front of the tidying up. Those with the same place stand in the order in which they were named.

    Args:
        stages: the names of each stage, in order.
        own: as `own_passes` gives them.
    """
    placed: dict[str, list[Step]] = {stage: list(names) for stage, names in stages.items()}
    for kind in own:
        steps = placed[kind.stage]
        steps.insert(_place_of(kind, steps), kind)
    return {stage: tuple(steps) for stage, steps in placed.items()}


def _place_of(kind: type[Rewrite], steps: Sequence[Step]) -> int:
    names = [name_of(step) for step in steps]
    if kind.before:
        return names.index(kind.before)
    if not kind.after:
        return len(steps) - len(TIDY)
    place = len(names) - names[::-1].index(kind.after)
    while place < len(steps) and getattr(steps[place], "after", "") == kind.after:
        place += 1
    return place


def _stage_of(kind: type[Rewrite], orders: Mapping[str, Sequence[str]]) -> str:
    """Return the stage in which a pass runs: the one it says, or that of the pass it wants to be beside."""
    beside = kind.before or kind.after
    if not beside:
        return kind.stage or USUAL
    stages = [stage for stage in (USUAL, *orders) if beside in orders[stage]]
    if kind.stage in stages:
        return kind.stage
    if stages and not kind.stage:
        return stages[0]
    word = "before" if kind.before else "after"
    what, hint = f"{kind.name} runs {word} {beside}, and there is no such pass", "`onnxopt passes` lists them"
    found = catalogue().get(beside)
    if stages or found is not None:
        stage = stages[0] if stages else found.stage if found is not None else ""
        what = f"{kind.name} runs {word} {beside}, which is in stage {stage}"
        hint = f"name a pass of {kind.stage or ' or '.join(orders)}"
    raise OwnPassError(what, where=place_of(kind), hint=hint)
