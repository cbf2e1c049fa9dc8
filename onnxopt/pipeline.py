"""The ordered passes of a target, and the run of them over a loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, OutputFixPass, TopologicalSortPass

from onnxopt.cache import (
    CONTEXT_KEY,
    SEQUENCE,
    Cache,
    keeps_packed,
)
from onnxopt.cases import SEED, cases_of
from onnxopt.driver import Driver
from onnxopt.errors import InputError
from onnxopt.graph import all_nodes, opset
from onnxopt.inside import Inside, Work, for_bodies
from onnxopt.ledger import Ledger
from onnxopt.lowering import lower
from onnxopt.model import Loaded
from onnxopt.observations import generated, looks_through_windows, observations_of, others_of
from onnxopt.observe import Observation
from onnxopt.opset import raise_opset
from onnxopt.patterns import Miss
from onnxopt.precision import Plan
from onnxopt.probe import MAX_IR_VERSION, ProbeError
from onnxopt.profit import Profit
from onnxopt.registry import get
from onnxopt.rewrite import Rewrite, Rule
from onnxopt.sidegraph import FREE_KEY
from onnxopt.sizes import Derivation
from onnxopt.sizes.annotate import annotate, declared
from onnxopt.sizes.derive import claims
from onnxopt.spec import AxisRange, Provider, Target, Workload

logger = logging.getLogger(__name__)

TIDY = ("merge-initializers", "merge-equal-nodes", "remove-unused")

CANONICALIZE = (
    "inline-functions",
    "lift-constants",
    "raise-gelu",
    "raise-quick-gelu",
    "raise-skip-layer-norm",
    "raise-skip-rms-norm",
    "raise-rms-norm",
    "raise-layer-norm",
    "raise-embed-layer-norm",
    "raise-fused-matmul",
    "raise-fused-gemm",
    "raise-fused-conv",
    "raise-attention",
    "raise-multi-head-attention",
    "raise-group-query-attention",
    "raise-rotary-embedding",
    "raise-global-average-pool",
    "raise-mean",
    "fold-constants",
    "remove-no-ops",
    "split-sequence",
    "split-packed-heads",
    "remove-expand",
    "order-operands",
    "drop-leading-axes",
    "flatten-weight",
    "merge-initializers",
    "merge-equal-nodes",
    "make-reshape-static",
    "read-dimension",
    "read-known-dimension",
    "read-dimension-from-input",
    "unfold-batch",
    "unfold-transpose",
    "merge-transposes",
    "merge-squeezes",
    "merge-reshapes",
    "slice-position-table",
    "fold-constants",
    *TIDY,
)

FUSE = (
    "compute-before-squeeze",
    "fold-conv-mul",
    "fold-conv-add",
    "fold-batch-norm",
    "fold-conv-mul",
    "fold-conv-add",
    "fuse-one-hot",
    "fuse-softmax",
    "fuse-gelu",
    "fuse-gelu-tanh",
    "fuse-silu",
    "fuse-hard-swish",
    "fold-shift-before-conv",
    "fold-scale-before-conv",
    "fold-shift-before-conv",
    "fuse-layer-norm",
    "fuse-layer-norm-bias",
    "fuse-rms-norm",
    "fuse-group-norm",
    "fuse-linear",
    "store-weight-untransposed",
    "fuse-attention",
    "read-dimension-from-input",
    "fuse-grouped-heads",
    "fuse-rotary",
    "fuse-cache",
    "fuse-padding-mask",
    "fuse-attention-heads",
    "trim-rows",
    "pack-qkv",
    "fuse-mean-pooling",
    *TIDY,
)

# What takes out of the weights what `onnxopt.prune` has set to zero on the fused graph.
PRUNE = ("drop-dead-channels",)

# What carries out a plan of int8 with a scale per column; `onnxopt.quantize` decides it on the fused graph.
COLUMNS = ("quantize-conv", "quantize-between", "quantize-static", "quantize-dynamic", "sum-tokens-in-order")
ON_GRIDS = ("drop-requantize", *TIDY)  # behind them

# What stores and computes a lowered graph in 16 bits; `onnxopt.quantize.half` decides what of it.
HALF = ("half-precision",)

# Behind the passes that lower: with these the answer depends on the last bit of an activation.
WEIGHTS_ONLY: dict[Provider, tuple[str, ...]] = {
    "cpu": ("quantize-weights-4", "quantize-weights-8", "quantize-embedding"),
    "portable": ("quantize-weights-4-portable", "quantize-weights-8-portable"),
    "cuda": (),
    "tensorrt": (),
}

# The attention of a decoder with its cache, the choice of the last token where rows are not packed by that, and what is
# left over around them.
CACHED_ATTENTION = (
    "lower-cached-attention",
    "lower-last-token",
    "merge-transposes",
    "remove-no-ops",
    "merge-reshapes",
    "remove-no-ops",
    "remove-unused",
)

# CUDA gets the runtime's own operators where they save passes over memory, which the CPU would rather keep apart.
# TensorRT takes standard operators only: every other one would cut its engine in two.
LOWER: dict[Provider, tuple[str, ...]] = {
    "cpu": (
        "lower-quantized-conv",
        "lower-quantized-between",
        "lower-quantized-linear",
        "lower-dynamic-linear",
        *CACHED_ATTENTION,
        "pack-cached-qkv",
        "lower-attention",
        "lower-token-attention",
        "lower-group-norm",
        "lower-conv-1d",
        "compute-before-squeeze",
        "merge-squeezes",
        "lower-gelu",
        "lower-silu",
        "lower-linear",
        "merge-initializers",
        "merge-equal-nodes",
        "flatten-tokens",
        "lower-norm",
        "fold-residual",
        "lower-normalize",
        "drop-scale-before-normalize",
        "read-dimension-from-input",
        *TIDY,
    ),
    "portable": ("lower-last-token", "lower-group-norm", *TIDY),
    "cuda": (
        *CACHED_ATTENTION,
        "pack-cached-qkv",
        "lower-attention",
        "lower-group-norm",
        "lower-silu",
        "spread-linear",
        "lower-bias-gelu",
        "lower-skip-norm",
        "lower-embed-norm",
        "pack-rows",
        "lower-rms-norm",
        "read-dimension-from-input",
        *TIDY,
    ),
    "tensorrt": ("lower-last-token", "lower-group-norm", *TIDY),
}

# For the prompts of a decoder in int8: its attention first, each projection apart, as the plan has them, then grids.
BEFORE_GRIDS = (
    *CACHED_ATTENTION,
    "lower-silu",
    *TIDY,
)

# What tidies up again behind a change of the opset, in bodies before anything is fused there.
AGAIN = ("lift-constants", "fold-constants", *TIDY)

MOST_TURNS = 5


def passes_of(target: Target) -> dict[str, tuple[str, ...]]:
    """Return the pass names of a target by stage, in order."""
    return {"canonicalize": CANONICALIZE, "fuse": FUSE, "lower": LOWER[target.provider]}


def carrying_out(plan: Plan, target: Target) -> list[Rewrite]:
    """Return the passes that carry out a plan."""
    return [get(name, plan) for name in (*COLUMNS, *WEIGHTS_ONLY[target.provider])]


def prepare(model: ir.Model, derivation: Derivation | None = None) -> None:
    """Give every value a unique name, a dtype, and the dimensions that hold for every size; sort the nodes.

    Args:
        model: changed in place.
        derivation: extended by what is known of the model's sizes.

    Raises:
        InputError: types are missing, and ONNX Runtime cannot open the model.
    """
    NameFixPass()(model)
    if len(set(model.graph.outputs)) < len(model.graph.outputs):
        OutputFixPass()(model)  # it would also rename an input that is an output as it is, which runtimes take
    TopologicalSortPass()(model)
    for graph in model.graph.subgraphs():  # files say it once, for all that is inside
        graph.opset_imports.update(model.opset_imports)
    model.ir_version = min(max(model.ir_version, 8), MAX_IR_VERSION)
    try:
        annotate(model, derivation or Derivation(), everything=True)
    except ProbeError as error:
        raise InputError(f"ONNX Runtime cannot open the model: {error}", hint="export it again") from error


def derivation_of(loaded: Loaded) -> Derivation:
    """Return what is known of a loaded model's sizes before its graph is looked at."""
    # what is broadcast at 1 has no other size for certain
    ranges = {axis: known for axis, known in loaded.ranges.items() if axis not in loaded.ones}
    if Cache.of(loaded.signature) is not None:  # a step reads one new position at least
        ranges[SEQUENCE] = replace(ranges.get(SEQUENCE, AxisRange()), least=max(1, loaded.range_of(SEQUENCE).least))
    return Derivation(ranges, int(loaded.origin.get("context_length", 0) or 0))


@dataclass
class Pipeline:
    """The passes over one loaded model, stage by stage; `fork` after a stage tries several ways to go on.

    Attributes:
        loaded: its model is changed by proved rewrites only.
        target: which lowering.
        workload: what will be asked of it; padding in it makes the removal of padding a choice.
        profit: knows and measures the forms of regions; None takes those that passes name first.
        progress: called with (stage, pass, rewrites kept so far).
        repro_folder: where refuted rewrites leave their inputs.
        ledger: what happened.
    """

    loaded: Loaded
    target: Target
    workload: Workload | None = None
    profit: Profit | None = None
    progress: Callable[[str, str, int], None] | None = None
    repro_folder: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)
    _observations: Sequence[Observation] = ()
    _others: Sequence[Observation] = ()
    _derivation: Derivation = field(default_factory=Derivation)

    @property
    def model(self) -> ir.Model:
        """The graph as it is now."""
        return self.loaded.model

    def canonicalize_and_fuse(self) -> None:
        """Raise the graph to what it means."""
        self._observations = observations_of(self.loaded)
        self._derivation = derivation_of(self.loaded)
        if self._cached:
            self.model.graph.metadata_props[CONTEXT_KEY] = str(self.loaded.origin.get("context_length", 0))
        self.model.graph.meta[FREE_KEY] = self.loaded.free
        driver, stages = self._driver("canonicalize"), passes_of(self.target)
        prepare(self.model, self._derivation)
        self.loaded.signature = driver.signature = declared(self.loaded.signature, self.model, self._derivation)
        self.ledger.claims = claims(self.model, self._derivation)
        self._note_turning(self._derivation.turning(self.model))
        self.ledger.notes.extend(self.loaded.notes)
        run_to_rest(driver, stages["canonicalize"])
        names = for_bodies(stages["canonicalize"])
        inside = self._rewrite_bodies(driver, lambda inner: run_to_rest(inner, names))
        self._note_turning(inside.turning)
        self.ledger.notes.extend(inside.notes())
        self._report(driver, "fuse")
        fuse(driver, stages["fuse"], self._rewrite_bodies)

    def fork(self) -> Pipeline:
        """Return a pipeline of a copy of the graph; weights are shared."""
        ledger = replace(self.ledger, entries=list(self.ledger.entries), notes=list(self.ledger.notes))
        return replace(self, loaded=replace(self.loaded, model=self.model.clone()), ledger=ledger)

    def prune(self, step: Callable[[Driver], None]) -> None:
        """Make the fused graph smaller."""
        step(self._driver("prune"))

    def raise_to_quantize(self) -> None:
        """Raise the opset as far as quantizing needs it."""
        raise_opset_for(self._driver("quantize"), COLUMNS)

    def quantize(self, steps: Sequence[Rewrite]) -> None:
        """Carry out what is quantized before the graph is lowered; `quantize_lowered` does the rest."""
        self._driver("quantize").apply_all([*(one for one in steps if not one.behind_lowering), *map(get, ON_GRIDS)])

    def quantize_lowered(self, steps: Sequence[Rewrite]) -> None:
        """Carry out what must come behind the passes that lower."""
        late = [step for step in steps if step.behind_lowering]
        if late:
            self._driver("quantize", generating=True).apply_all([*late, *map(get, TIDY)])

    def lower_and_quantize(self, steps: Sequence[Rewrite]) -> None:
        """Lower a decoder for the CPU, then quantize it.

        The passes that lower are proved to rounding errors of the whole. Behind a grid one of those moves a value by a
        step, so they must come first.
        """
        self._driver("lower", generating=True).apply_all(map(get, BEFORE_GRIDS))
        early = [step for step in steps if not step.behind_lowering]
        driver = self._driver("quantize", generating=True)
        driver.apply_all([*early, *map(get, (*ON_GRIDS, "lower-quantized-linear", *TIDY))])
        self.quantize_lowered(steps)

    def lower(self) -> None:
        """Turn meaning into the target's kernels."""
        names = passes_of(self.target)["lower"]
        driver = self._driver("lower", generating=True)
        if self._cached:
            lower(driver, names, None, self.profit, self.loaded.name)
            if keeps_packed(self.model) and looks_through_windows(self.model):
                self.ledger.notes.append(
                    "windows and distances count real tokens: padding in the middle of a row, which torch counts, "
                    "is not counted"
                )
        elif names:
            workload = self.workload if self.target.provider == "cpu" else None
            lower(driver, names, workload, self.profit, self.loaded.name)
        inner_names = for_bodies(names)
        self._rewrite_bodies(driver, lambda inner: inner.apply_all(map(get, inner_names)))
        if self.target.provider in ("cuda", "tensorrt"):
            self.ledger.notes.append(
                f"target {self.target.provider}: "
                + ("kernels as recorded" if self.target.provider == "cuda" else "fused standard operators")
                + "; none was chosen by measure"
            )

    @property
    def _cached(self) -> bool:
        return Cache.of(self.loaded.signature) is not None

    def _driver(self, stage: str, *, generating: bool = False) -> Driver:
        """Return a driver; `generating` proves a model with a cache on what generating text feeds it."""
        driver = Driver(
            self.model,
            generated(self.loaded) if generating and self._cached else self._observations,
            self.ledger,
            repro_folder=self.repro_folder,
            signature=self.loaded.signature,
            derivation=self._derivation,
        )
        self._report(driver, stage)
        return driver

    def _rewrite_bodies(self, driver: Driver, work: Work) -> Inside:
        """Let passes work on what nodes carry, and return what was found in there."""
        inside = Inside(work, prepare, self._proved_on)
        if inside.rewrite(driver):
            driver.apply_all(map(get, TIDY))
        return inside

    def _proved_on(self) -> Sequence[Observation]:
        """Return inputs on which the whole is going to be proved; made where something asks for them."""
        self._others = self._others or others_of(self.loaded, cases_of(self.loaded, self.workload), SEED)
        return self._others

    def _note_turning(self, turning: Mapping[str, Collection[int]]) -> None:
        for axis, sizes in turning.items():
            known = self.loaded.turning.get(axis, ())
            self.loaded.turning = {**self.loaded.turning, axis: tuple(sorted({*known, *sizes}))}

    def _report(self, driver: Driver, stage: str) -> None:
        progress = self.progress
        if progress is not None:
            driver.progress = lambda step, count: progress(stage, step, count)


def run_pipeline(
    loaded: Loaded,
    target: Target,
    *,
    workload: Workload | None = None,
    profit: Profit | None = None,
    prune: Callable[[Driver], None] | None = None,
    quantize: Callable[[ir.Model], Sequence[Rewrite]] | None = None,
    progress: Callable[[str, str, int], None] | None = None,
    repro_folder: Path | None = None,
) -> Ledger:
    """Rewrite `loaded.model` in place for a target; see `Pipeline` for the arguments that it has too.

    Args:
        loaded: its model is changed by proved rewrites only.
        target: which lowering.
        workload: what will be asked of it.
        profit: knows and measures the forms of regions.
        prune: makes the fused graph smaller, by the driver.
        quantize: decides on the fused graph what is stored and computed in fewer bits, and returns the passes that do
            it.
        progress: called with (stage, pass, rewrites kept so far).
        repro_folder: where refuted rewrites leave their inputs.

    Returns:
        The ledger of the run.
    """
    pipeline = Pipeline(loaded, target, workload, profit, progress, repro_folder)
    pipeline.canonicalize_and_fuse()
    if prune is not None:
        pipeline.prune(prune)
    steps = quantize(pipeline.model) if quantize is not None else ()
    if steps:
        pipeline.quantize(steps)
    pipeline.lower()
    pipeline.quantize_lowered(steps)
    return pipeline.ledger


def run_to_rest(driver: Driver, names: Sequence[str]) -> None:
    """Run passes in turns until a turn changes nothing; later turns are in the ledger only where they did something."""
    for turn in range(MOST_TURNS):
        start = len(driver.ledger.entries)
        refuted = {entry.name for entry in driver.ledger.entries if entry.rolled_back}
        for name in names:
            if name not in refuted:
                driver.apply(get(name))
        entries = driver.ledger.entries[start:]
        if turn:
            driver.ledger.entries[start:] = [entry for entry in entries if entry.applied or entry.rolled_back]
        if not any(entry.applied for entry in entries):
            return


def fuse(driver: Driver, names: Sequence[str], rewrite_bodies: Callable[[Driver, Work], object]) -> None:
    """Apply the passes that fuse, at an opset that is raised no further than those need that did something.

    Patterns match more than guards and proofs let through, so what is needed shows afterwards. Where the opset was
    raised for nothing, the graph from before is taken again, raised as far as was needed, and fused: runtimes that are
    too old for the newest operators go on reading it.

    Args:
        driver: its model is fused, with what nodes carry.
        names: the passes, in order.
        rewrite_bodies: lets passes work on what the nodes of a driver's model carry.
    """

    def fuse_all() -> None:
        driver.apply_all(map(get, names))
        rewrite_bodies(driver, lambda inner: inner.apply_all(map(get, (*AGAIN, *for_bodies(names)))))

    model, ledger = driver.model, driver.ledger
    start, notes, wanted = len(ledger.entries), list(ledger.notes), needed_opset(driver.model, names)
    before = model.clone() if wanted > opset(model) else None
    raise_to(driver, wanted)
    fused = len(ledger.entries)
    fuse_all()
    if before is None or opset(model) == opset(before):
        return
    used = [get(entry.name).min_opset for entry in ledger.entries[fused:] if entry.applied]
    needed = max([opset(before), *used])
    if needed >= opset(model):
        return
    _put(model, before)
    del ledger.entries[start:]
    ledger.notes[:] = notes
    driver.forget()
    prepare(model, driver.derivation)
    raise_to(driver, needed)
    fuse_all()


def raise_opset_for(driver: Driver, names: Iterable[str]) -> None:
    """Raise the opset as far as the passes that may have something to do here need it, and say so."""
    raise_to(driver, needed_opset(driver.model, names))


def raise_to(driver: Driver, wanted: int) -> None:
    """Raise the opset, and say so; or say why it stays."""
    model, before = driver.model, opset(driver.model)
    if wanted <= before:
        return
    raised, reason = raise_opset(model, wanted, [item.feeds for item in driver.observations])
    if reason:
        driver.ledger.notes.append(f"opset {before} stays, although {wanted} would allow more fusions: {reason}")
        return
    _put(model, raised)
    driver.forget()
    driver.ledger.notes.append(f"opset raised from {before} to {wanted} for the fused operators")
    prepare(model, driver.derivation)
    for name in AGAIN:
        driver.apply(get(name))


def _put(model: ir.Model, other: ir.Model) -> None:
    """Let a model have the graph and the functions of another."""
    model.graph = other.graph
    model.opset_imports.update(other.opset_imports)
    model.functions.clear()
    model.functions.update(other.functions)
    model.ir_version = min(other.ir_version, MAX_IR_VERSION)


def needed_opset(model: ir.Model, names: Iterable[str]) -> int:
    """Return the highest `min_opset` among the rules that match somewhere, in bodies too, whatever their guards say."""
    needed = opset(model)
    for name in names:
        rule = get(name)
        if not isinstance(rule, Rule) or rule.min_opset <= needed:
            continue
        patterns, types = rule.compiled(), rule.root_types()
        for node in all_nodes(model):
            if node.op_type in types and next(iter(rule.find(node, patterns, model, Miss())), None) is not None:
                needed = rule.min_opset
                break
    return needed
