"""The stage between fusing and quantizing: prune the fused graph, judge what was lost, cut out what is dead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt.calibrate.data import Part, read_calibration
from onnxopt.errors import InputError
from onnxopt.graph import initializer_bytes
from onnxopt.graph.cache import PAST, SEQUENCE, complete
from onnxopt.judge.metrics import Metric, MetricBudget
from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.orders import PRUNE, TIDY
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.prune.checkpoint.network import Pruned
from onnxopt.prune.graph.channels import prune_channels
from onnxopt.prune.graph.layers import drop_layers
from onnxopt.prune.graph.search import Bounds, search
from onnxopt.prune.graph.zeros import NO_GAIN, set_zeros
from onnxopt.prune.judging import check_metric, hold
from onnxopt.prune.spec import PruneSpec
from onnxopt.rewrite.registry import get
from onnxopt.spec import Array, Feeds, Say, Target, Workload
from onnxopt.texts.files import BUILTIN
from onnxopt.timing.requests import fit_workload

SAMPLES = 800  # texts at most; a refit of n channels wants several times n tokens
MADE_UP, ROWS, LENGTH = 10, 4, 32  # batches of random inputs, when nothing better is known


@dataclass(frozen=True)
class PrunedReference:
    """What the rest of the road must be equal to: the pruned graph before anything was cut out of it.

    Attributes:
        name: for reports.
        runner: runs it with the runtime's optimisations off.
    """

    name: str
    runner: GraphRunner

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name."""
        return self.runner.run(dict(feeds))[0]


@dataclass
class GraphPruning:
    """Prunes a loaded model when the pipeline comes to it.

    Attributes:
        loaded: its reference is replaced, since from here on the pruned model is what must not change.
        spec: what to prune.
        data: calibration source, as `onnxopt.calibrate` names them.
        budget: what must be left of the answers on held-out samples; None judges without a limit.
        say: told what happens.
        workload: the requests that a search measures.
        target: where it measures them.
        report: filled in: what became smaller.
        metric: filled in: name of what was judged, and its value.
        bytes_before: filled in: of the fused graph's weights.
    """

    loaded: Loaded
    spec: PruneSpec
    data: str = BUILTIN
    budget: MetricBudget | None = None
    say: Say = lambda _: None
    workload: Workload = field(default_factory=Workload)
    target: Target = field(default_factory=lambda: Target("cpu"))
    report: list[Pruned] = field(default_factory=list)
    metric: tuple[str, float] = ("", math.nan)
    bytes_before: int = 0

    def __call__(self, driver: Driver) -> None:
        """Prune the driver's model.

        Raises:
            InputError: when what was asked for cannot go.
            ProofError: when less is left than the budget asks for.
        """
        model, notes = driver.model, driver.ledger.notes
        self.bytes_before = initializer_bytes(model)
        fit, held = self._feeds("fit", notes), self._feeds("judge", notes)
        metric = Metric.of(self.loaded.signature)
        fit, held, before = _that_run(GraphRunner(model), fit, held, metric.output)
        if metric.name == "perplexity" and any(
            len(feeds["input_ids"][0]) != answer.shape[1] for feeds, answer in zip(held, before, strict=True)
        ):
            metric = Metric("cosine", metric.output)  # logits of the last position predict nothing that is known

        def judged(one: ir.Model | GraphRunner) -> float:
            runner = one if isinstance(one, GraphRunner) else GraphRunner(one)
            after = _answers(runner, held, metric.output)
            return metric.value(metric.over(after, before, held))

        if self.spec.searched:
            self._search(model, fit, metric, judged, notes)
        if "layers" in self.spec.amounts:
            self.report.append(drop_layers(model, self.spec, fit, self.say))
            prepare(model, driver.derivation)
        self.report += prune_channels(model, self.spec, fit, self.say)
        if self.spec.zeros:
            self.report += set_zeros(model, self.spec.zeros)
            notes.append(NO_GAIN)
        driver.forget()
        reference = GraphRunner(model.clone())
        self.metric = metric.name, judged(reference)
        notes.extend(self.notes())
        hold(*self.metric, self.budget, spec=str(self.spec))
        driver.apply_all(map(get, (*PRUNE, *TIDY)))
        self.loaded.reference = PrunedReference(
            f"the model pruned by {self.spec}, before anything was cut out", reference
        )

    def _search(
        self, model: ir.Model, fit: list[Feeds], metric: Metric, judged: Callable[[ir.Model], float], notes: list[str]
    ) -> None:
        """Put what was found in place of what was left open."""
        if self.budget is None:
            said = f"{self.spec.searched[0]}=auto goes as far as a budget allows"
            raise InputError(said, where="--prune", hint="add --prune-budget, such as cosine>=0.97")
        check_metric(metric.name, self.budget)
        workload = fit_workload(self.workload, self.loaded)
        make = self.loaded.feeder.make
        requests = [make(shape, "none", seed=seed) for seed, shape in enumerate(workload.shapes)]
        bounds = Bounds(self.budget, requests, workload.weights or (1.0,) * len(requests), self.target)
        open_spec = self.spec
        self.spec, trials = search(model, open_spec, fit, bounds, judged=judged, say=self.say)
        found = min(trials, key=lambda trial: trial.ms)
        notes.append(
            f"{open_spec} found to be {self.spec} in {len(trials) - 1} trials: {trials[0].ms:.2f} ms before, "
            f"{found.ms:.2f} ms after, {metric.name} {found.value:.4f} within {self.budget}"
        )

    def notes(self) -> list[str]:
        """Return what happened, in sentences."""
        return [*summary(self.report), f"pruned: {self.metric[0]} {self.metric[1]:.4f} on held-out samples"]

    def _feeds(self, part: Part, notes: list[str]) -> list[Feeds]:
        """Return samples without padding; random inputs where the model takes neither text nor images of the user."""
        try:
            data = read_calibration(self.loaded, self.data, samples=SAMPLES)
            return list(data.batches(part))
        except InputError:
            if self.data != BUILTIN:
                raise
        said = "pruned by random inputs, since nothing is known of real ones: give --prune-data"
        if said not in notes:
            notes.append(said)
        first = 0 if part == "fit" else MADE_UP
        sizes = {"batch": ROWS, SEQUENCE: LENGTH, **({PAST: 0} if PAST in self.loaded.signature.axes else {})}
        make = self.loaded.feeder.make
        return [make(complete(sizes), "none", seed=seed) for seed in range(first, first + MADE_UP)]


def summary(report: Sequence[Pruned]) -> list[str]:
    """Return one sentence per kind of what became smaller."""
    found = []
    for kind in dict.fromkeys(item.kind for item in report):
        items = [item for item in report if item.kind == kind]
        before, after = (sum(getattr(item, name) for item in items) for name in ("before", "after"))
        extra = "; ".join(dict.fromkeys(item.note for item in items if item.note))
        found.append(f"pruned {kind}: {after} of {before} stay" + (f" ({extra})" if extra else ""))
    return found


def _that_run(
    runner: GraphRunner, fit: list[Feeds], held: list[Feeds], output: str
) -> tuple[list[Feeds], list[Feeds], list[Array]]:
    """Leave out samples that are longer than the model takes, which an .onnx file does not say; answer the rest."""
    kept: list[Feeds] = []
    answers: list[Array] = []
    failure: ProbeError | None = None
    for feeds in held:
        try:
            answers.append(runner.run(feeds)[0][output])
        except ProbeError as error:
            failure = error
            continue
        kept.append(feeds)
    if failure is None:
        return fit, held, answers
    if not kept:
        raise InputError(f"the model does not run on the calibration data: {failure}") from failure
    longest = max(_length(feeds) for feeds in kept)
    return [feeds for feeds in fit if _length(feeds) <= longest], kept, answers


def _length(feeds: Feeds) -> int:
    return max(array.shape[1] if array.ndim > 1 else 0 for array in feeds.values())


def _answers(runner: GraphRunner, held: Sequence[Feeds], output: str) -> list[Array]:
    return [runner.run(feeds)[0][output] for feeds in held]
