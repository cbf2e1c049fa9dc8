"""Say why a pass fires on a graph or not: node by node, the nearest miss first."""

from __future__ import annotations

import inspect as inspection
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxopt.errors import InputError
from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.opset import raise_opset_for
from onnxopt.pipeline.orders import passes_of
from onnxopt.pipeline.own import with_own
from onnxopt.proof.driver import Driver
from onnxopt.proof.observations import observations_of
from onnxopt.proof.prepare import derivation_of, prepare
from onnxopt.records.events import Step
from onnxopt.rewrite import Builder, Refusal, Rewrite, Rule
from onnxopt.rewrite.blame import blamed
from onnxopt.rewrite.patterns import Miss
from onnxopt.rewrite.registry import get, name_of
from onnxopt.spec import Target


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one node at which it could start.

    Attributes:
        node: the candidate root.
        fires: the guard accepts it.
        depth: how many nodes of the pattern matched before it failed; all of them when a guard refused.
        where: the value or node that did not fit.
        reason: why it does not fire; empty when it does.
    """

    node: str
    fires: bool
    depth: int
    where: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Description:
    """A pass in words, read from its file.

    Attributes:
        name: the pass.
        stage: its stage.
        identity: before → after in one line.
        numerics: its contract.
        min_opset: the opset that its result needs.
        source: where the identity comes from.
        origin: for a pass from outside of onnxopt, where it came from; empty for any other.
    """

    name: str
    stage: str
    identity: str
    numerics: str
    min_opset: int
    source: str
    origin: str = ""


def describe_pass(step: type[Rewrite]) -> Description:
    """Read a pass's class docstring and the `Source:` part of its module docstring."""
    module = inspection.getmodule(step)
    text = inspection.getdoc(module) or ""
    found = re.search(r"^Source:\s*(.*?)(?=\n\S|\Z)", text, re.DOTALL | re.MULTILINE)
    source = " ".join(found.group(1).split()) if found else ""
    identity = inspection.cleandoc(step.__doc__ or "").split("\n", 1)[0].strip()
    origin = str(step.origin) if step.origin is not None else ""
    return Description(
        step.name, step.stage, " ".join(identity.split()), str(step.numerics), step.min_opset, source, origin
    )


def explain(
    loaded: Loaded,
    name: str,
    target: Target,
    progress: Callable[[str], None] | None = None,
    own: Sequence[type[Rewrite]] = (),
) -> list[Verdict]:
    """Run the passes in front of one pass, then ask that pass about every node at which it could start.

    Args:
        loaded: its model is changed.
        name: the pass.
        target: whose pipeline to follow.
        progress: told the passes that run before.
        own: passes from outside of onnxopt, of which it may be one.

    Returns:
        One verdict per candidate: what fires first, then the nearest misses.

    Raises:
        InputError: the pass is not in the pipeline, or works on the graph as a whole.
    """
    rule = get(next((kind for kind in own if kind.name == name), name))
    if not isinstance(rule, Rule):
        raise InputError(
            f"{name} changes the graph as a whole; it has no candidates to explain", hint="use `onnxopt inspect`"
        )
    driver = Driver(loaded.model, observations_of(loaded), derivation=derivation_of(loaded))
    prepare(loaded.model, driver.derivation)
    stages = with_own(passes_of(target), own)
    order, done = [name_of(step) for steps in stages.values() for step in steps], 0
    before = order.index(name) if name in order else len(order)
    for stage, steps in stages.items():
        if stage == "fuse":
            raise_opset_for(driver, steps)
        for step in steps:
            if name_of(step) == name:
                with blamed(rule):
                    return sorted(judge(rule, driver), key=lambda verdict: (not verdict.fires, -verdict.depth))
            if progress is not None:
                progress(Step(name_of(step), work="passes", done=done, total=before))
            driver.apply(get(step))
            done += 1
    raise InputError(
        f"{name} is not part of the pipeline for {target.provider}", hint="choose its target with --target"
    )


def judge(rule: Rule, driver: Driver) -> list[Verdict]:
    """Ask a rule about every node at which one of its patterns could start."""
    patterns, types = rule.compiled(), rule.root_types()
    verdicts: list[Verdict] = []
    for node in driver.model.graph:
        if node.op_type not in types:
            continue
        miss, label = Miss(), node.name or node.op_type
        refused: Verdict | None = None
        for match in rule.find(node, patterns, driver.model, miss):
            try:
                rule.decide(match)
                rule.build(match, Builder(driver.model, label, rule.name))
            except Refusal as refusal:
                refused = refused or Verdict(
                    label, fires=False, depth=len(match.nodes), where=refusal.where, reason=refusal.reason
                )
                continue
            verdicts.append(Verdict(label, fires=True, depth=len(match.nodes)))
            break
        else:
            verdicts.append(
                refused or Verdict(label, fires=False, depth=max(miss.depth, 0), where=miss.where, reason=miss.reason)
            )
    return verdicts
