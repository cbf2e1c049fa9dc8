"""Search how much of each kind can go: the fastest model, as measured, whose answers stay within a budget.

Steps of an eighth, then of a sixteenth: of the kinds that could lose one more, the one goes that saves most time for
the accuracy it costs. Every trial is pruned and refitted from the original, judged on held-out samples, cut and timed.

Source: the loop of measured speed against measured loss as in Yang et al. 2018 (NetAdapt), arXiv:1804.03230, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxopt.errors import ProofError
from onnxopt.graph.files import save_graph
from onnxopt.host.scratch import scratch_folder
from onnxopt.judge.metrics import MetricBudget
from onnxopt.prune.graph.channels import prune_channels, read_moments
from onnxopt.prune.spec import Amount, PruneSpec
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import get
from onnxopt.spec import Feeds, Say, Target
from onnxopt.timing.rounds import run_rounds, write_job

STEPS = (0.125, 0.0625)
MOST = 0.8  # of a kind
ROUNDS, SECONDS = 3, 2.0  # of each trial
LEAST_LOSS = 1e-6  # of a metric, so that what costs nothing comes first

Judged = Callable[[ir.Model], float]


@dataclass(frozen=True)
class Tried:
    """One try.

    Attributes:
        shares: what goes of each kind.
        value: of the metric.
        ms: of the requests together, each by its weight and median; infinite beyond the budget, where it was not timed.
    """

    shares: Mapping[str, float]
    value: float
    ms: float


@dataclass(frozen=True)
class Bounds:
    """What a search is held to.

    Attributes:
        budget: what must be left of the answers.
        requests: feeds that speed is measured with.
        weights: how much the time of each counts.
        target: where.
    """

    budget: MetricBudget
    requests: Sequence[Feeds]
    weights: Sequence[float]
    target: Target


def search(
    model: ir.Model, spec: PruneSpec, fit: Sequence[Feeds], bounds: Bounds, *, judged: Judged, say: Say
) -> tuple[PruneSpec, list[Tried]]:
    """Find the shares of the kinds that the spec leaves open.

    Args:
        model: fused, with shapes; left as it is.
        spec: with `auto` amounts.
        fit: calibration feeds.
        bounds: budget and requests.
        judged: gives the metric of a pruned model.
        say: told what happens.

    Returns:
        The spec with the shares that were found, and all trials, the original first.

    Raises:
        ProofError: when not even the smallest step is within the budget.
    """
    known = read_moments(model, spec.searched, fit, say)

    def attempt(shares: Mapping[str, float]) -> Tried:
        clone = model.clone()
        prune_channels(clone, _with(spec, shares), fit, lambda _: None, known)
        value = judged(clone)
        within = bounds.budget.holds(value)
        found = Tried(dict(shares), value, _time(clone, bounds) if within else float("inf"))
        took = f", {found.ms:.2f} ms" if within else ", too much"
        say(f"{_shown(shares)}: {bounds.budget.metric} {value:.4f}{took}")
        return found

    # a cosine, a share that agrees, a ratio of perplexities: all are 1 for the original
    here = Tried(dict.fromkeys(spec.searched, 0.0), 1.0, _time(model.clone(), bounds))
    say(f"the original: {here.ms:.2f} ms")
    trials = [here]
    for step in STEPS:
        open_kinds = set(spec.searched)
        while open_kinds:
            tries = []
            for kind in sorted(open_kinds):
                if here.shares[kind] + step > MOST:
                    open_kinds.discard(kind)
                    continue
                found = attempt({**here.shares, kind: here.shares[kind] + step})
                trials.append(found)
                if bounds.budget.holds(found.value):
                    tries.append(found)
                else:
                    open_kinds.discard(kind)
            if tries:
                at = here
                here = max(tries, key=lambda one: (at.ms - one.ms) / max(abs(one.value - at.value), LEAST_LOSS))
    best = min(trials, key=lambda one: one.ms)
    if best is trials[0]:
        raise ProofError(
            f"no {' or '.join(spec.searched)} can go within {bounds.budget} and make it faster",
            where=f"--prune {spec}",
            hint="widen --prune-budget, or prune and distil",
        )
    return _with(spec, best.shares), trials


def _with(spec: PruneSpec, shares: Mapping[str, float]) -> PruneSpec:
    amounts = {kind: Amount(share=shares[kind]) if kind in shares else one for kind, one in spec.amounts.items()}
    kept = {kind: one for kind, one in amounts.items() if one.share or one.count}
    return replace(spec, amounts=kept, allocation="sensitivity")


def _shown(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def cut(model: ir.Model) -> None:
    """Cut out what is dead."""
    step = get("drop-dead-channels")
    if isinstance(step, Pass):
        step.run(model)


def _time(model: ir.Model, bounds: Bounds) -> float:
    """Cut a model, which is changed, and return the milliseconds of its requests together."""
    cut(model)
    with scratch_folder() as folder:
        path = save_graph(model, folder / "trial")
        job = write_job(path, bounds.requests, bounds.target, folder / "inputs")
        (starts,) = run_rounds([job], ["trial"], rounds=ROUNDS, seconds=SECONDS, progress=None)
    medians = [np.median(np.concatenate(times)) for times in zip(*(one.times_ms for one in starts), strict=True)]
    return float(np.dot(medians, bounds.weights))
