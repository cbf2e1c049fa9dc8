"""The options of a run, a class per stage: what Python, the command line and the tables of a recipe have in common.

Each option is written down here once: its name, type and default as a field, and what it means among the attributes of
its class, from where the documents, `help(onnxopt.optimize)` and `onnxopt optimize --help` have it. An option is what
the user wrote; `onnxopt.road.goal` reads it. Types of other rooms are named and not imported, since the command line
looks at this file before it knows what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

from onnxopt.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from onnxopt.judge.metrics import MetricBudget
    from onnxopt.load.given import Axes, Examples, Values
    from onnxopt.prune.spec import PruneSpec
    from onnxopt.rewrite.own import Named
    from onnxopt.spec import Budget, Target, Workload

# What an editor offers; a precision may say more than its name: `int4-weights:64`.
TargetName = Literal["cpu", "cuda", "tensorrt", "portable"]
PrecisionName = Literal["fp32", "auto", "mixed", "int8", "int8-dynamic", "int8-weights", "int4-weights", "fp16", "bf16"]
CalibratorName = Literal["auto", "min-max", "moving-average", "percentile", "entropy", "mse"]


class _OfPython:
    """Stands for types whose objects a Python program alone can give; in its place everybody may write words."""


# What a table may hold for the types that are not imported.
_WRITTEN: Mapping[str, Any] = {
    **dict.fromkeys(("Budget", "MetricBudget", "Named", "Path", "PruneSpec", "Target", "Workload"), _OfPython),
    **dict.fromkeys(("Axes", "Values"), list[str] | dict[str, Any]),
    "Examples": str,
}


def types_of(kind: type) -> Mapping[str, Any]:
    """Return the type of each field of a class of options, as it may be written: words, numbers, lists and tables."""
    return get_type_hints(kind, localns=dict(_WRITTEN))


class Stage:
    """Options of one stage; those that are one of a few words are held to these."""

    def __post_init__(self) -> None:
        for name, kind in types_of(type(self)).items():
            known = get_args(kind) if get_origin(kind) is Literal else ()
            value = getattr(self, name)
            if known and value not in known:
                raise InputError(f"unknown {name} {value!r}", hint=f"use one of {', '.join(known)}")


@dataclass(frozen=True)
class PackageOptions(Stage):
    """Where the model will run, and what will be asked of it.

    Attributes:
        target: where the model will run: `cpu`, `cuda`, `tensorrt` or `portable`.
        workload: request shapes, batch x sequence: `1x16,8x128`; `32x256@0.26` when 26 % are real tokens; `1x1+256` for
            a token behind 256 others; the recipe's when not given.
        shard_size: the largest file of weights that is written, such as `2GB`; one file holds all when not given.
    """

    target: TargetName | Target = "cpu"
    workload: str | Workload | None = None
    shard_size: str | int | None = None


@dataclass(frozen=True)
class PrecisionOptions(Stage):
    """How far the answer may move, and in how many bits the model may compute for it.

    Attributes:
        budget: largest relative error of any output of the float graph, such as 1e-4, the recipe's when not given; with
            a precision how far the task's metric may fall: `perplexity<=+2%`, `cosine>=0.995` or `agreement>=99%`.
        precision: `fp32`, `auto`, `mixed`, `int8`, `int8-dynamic`, `int8-weights[:block]`,
            `int4-weights[:block[:asymmetric]]`; for cuda and tensorrt `fp16` (auto) or `bf16`, with `:io` for inputs
            and outputs in it, too. Decoders of a billion parameters are served in `int8` or `int4-weights` on a CPU.
        calibration: samples for int8: `builtin`, `self` (a language model writes its own), a .txt, .json, .jsonl,
            .ndjson or .npz file, a folder of images, .wav or .npz, or `hf:dataset`; `none` for weights by themselves.
        calibration_samples: the most samples to use; 256 when not given.
        calibrator: how ranges are found: `min-max`, `moving-average`, `percentile`, `entropy`, `mse`, or `auto`, which
            compares all of them on held-out samples.
        keep: linear layers that stay in float: `layer.0|lm_head`, `*dense`, `/regex/`.
        force_calibration: accept calibration data that says nothing; marks the result.
        allow_slower: ship what was asked for in fewer bits for its size, though it is not faster than the float graph.
        require_precision: write nothing, and exit with 1, where the float graph would be shipped in its place.
    """

    budget: float | str | Budget | None = None
    precision: PrecisionName | str = "fp32"
    calibration: str | Path = "builtin"
    calibration_samples: int | None = None
    calibrator: CalibratorName = "auto"
    keep: str = ""
    force_calibration: bool = False
    allow_slower: bool = False
    require_precision: bool = False


@dataclass(frozen=True)
class SourceOptions(Stage):
    """Which model a name stands for.

    Attributes:
        weights: `random` builds the architecture with made-up weights.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let Python code of the checkpoint run.
    """

    weights: Literal["pretrained", "random"] = "pretrained"
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoadOptions(Stage):
    """How a source becomes a graph.

    Attributes:
        task: task in the words of transformers, such as `feature-extraction`; found when not given.
        with_pooling: add the sentence embedding as an output where the checkpoint describes one.
        without: inputs of a checkpoint to leave out though its answer may depend on them, such as `bbox,pixel_values`;
            the result says so.
        with_cache: let a language model keep keys and values of what it has seen, as inputs and outputs.
        logits: with a cache, logits of the `last` position, or of `all`.
        exporter: `dynamo`, `torchscript`, or `auto`: dynamo first.
        padding: `right` promises an encoder on cuda that no row is padded elsewhere, where its answers would be wrong;
            attention is told lengths, and rows are not packed, which is faster.
        feeds: inputs of an .onnx file that run: an .npz with an array per input, or a folder of them.
        axes: sizes of an axis of an .onnx file: `name=8..4096`, `name=8..4096:8` or `name=16`.
        values: what an input of an .onnx file takes: `sr=16000,8000`.
    """

    task: str | None = None
    with_pooling: bool = True
    without: str = ""
    with_cache: bool = True
    logits: Literal["last", "all"] = "last"
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto"
    padding: Literal["any", "right"] = "any"
    feeds: Examples | None = None
    axes: Axes | None = None
    values: Values | None = None


@dataclass(frozen=True)
class RewriteOptions(Stage):
    """What is done to the graph beside what onnxopt does.

    Attributes:
        passes: passes of your own, which are proved like those of onnxopt: a .py file, a module, or what an installed
            package offers by that name; their code runs.
    """

    passes: Named | Iterable[Named] | None = None


@dataclass(frozen=True)
class TuneOptions(Stage):
    """What may be measured on this machine.

    Attributes:
        measure: time the model on the workload, kernels, and before and after; the fastest proved form of it is
            shipped, the original's included. Without, the optimized graph is shipped and nothing said of its speed.
        tune: choose kernels by measuring them in this model, at most a minute, where nothing is known of it; without,
            or where nothing is measured, a table of earlier measurements decides.
        retune: measure kernels anew, whatever is known.
        forms_from: the `manifest.json` of another build, or its folder, whose measured choices are taken over: the same
            source, options and versions then give the same `model.onnx` on any machine.
        require_speedup: write nothing, and exit with 1, where what would be shipped is seen to be less than so many
            times as fast as the original over the workload, its interval included: `1.0` where it is slower.
    """

    measure: bool = True
    tune: bool = True
    retune: bool = False
    forms_from: str | Path | None = None
    require_speedup: float | None = None


@dataclass(frozen=True)
class PruneOptions(Stage):
    """What to make smaller, and how to choose.

    Attributes:
        what: what goes: `ffn=25%`, `heads=2`, `layers=2` (or `layers=2:last`, `layers=2:random`),
            `channels=25%`, `vocab=keep:texts.txt`, `zeros=2:4`; with commas. `ffn=auto`, `heads=auto`, `channels=auto`:
            as much as makes it fastest within the budget.
        data: what to calibrate pruning with: `builtin`, a file or a folder.
        importance: by the `error` left, by `activation`, or by weights alone (`magnitude`).
        compensate: refit what stays by least squares.
        align: sizes that stay are multiples of this.
        allocation: the same share everywhere (`uniform`), or more where it costs less (`sensitivity`).
        budget: what must be left of the answers on held-out data, such as `cosine>=0.97`.
        seed: of what is drawn.
    """

    what: str | PruneSpec | None = None
    data: str = "builtin"
    importance: str = "error"
    compensate: bool = True
    align: int = 16
    allocation: str = "uniform"
    budget: str | MetricBudget | None = None
    seed: int = 0


class Keywords(TypedDict, total=False):
    """The options of a run as keywords of `optimize`; a test holds them to the fields of the classes."""

    target: TargetName | Target
    workload: str | Workload | None
    shard_size: str | int | None
    budget: float | str | Budget | None
    precision: PrecisionName | str
    calibration: str | Path
    calibration_samples: int | None
    calibrator: CalibratorName
    keep: str
    force_calibration: bool
    allow_slower: bool
    require_precision: bool
    weights: Literal["pretrained", "random"]
    revision: str | None
    trust_remote_code: bool
    task: str | None
    with_pooling: bool
    without: str
    with_cache: bool
    logits: Literal["last", "all"]
    exporter: Literal["auto", "dynamo", "torchscript"]
    padding: Literal["any", "right"]
    feeds: Examples | None
    axes: Axes | None
    values: Values | None
    passes: Named | Iterable[Named] | None
    measure: bool
    tune: bool
    retune: bool
    forms_from: str | Path | None
    require_speedup: float | None
    prune: str | PruneSpec | None
    prune_data: str
    prune_budget: str | MetricBudget | None


# What is asked of pruning on the way; how it chooses is said with `onnxopt prune`, in a recipe, or by a `PruneSpec`.
_OF_PRUNE: Mapping[str, str] = {"what": "prune", "data": "prune_data", "budget": "prune_budget"}


@dataclass(frozen=True)
class Options:
    """All that decides what becomes of a source.

    Attributes:
        package: where the model will run.
        quantize: how far the answer may move, and in how many bits.
        source: which model it is.
        load: how it becomes a graph.
        rewrite: what is done to the graph beside what onnxopt does.
        tune: what may be measured.
        prune: what to make smaller first.
    """

    package: PackageOptions = field(default_factory=PackageOptions)
    quantize: PrecisionOptions = field(default_factory=PrecisionOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    rewrite: RewriteOptions = field(default_factory=RewriteOptions)
    tune: TuneOptions = field(default_factory=TuneOptions)
    prune: PruneOptions = field(default_factory=PruneOptions)

    @classmethod
    def of(cls, **given: Unpack[Keywords]) -> Options:
        """Part the keywords of `optimize` into stages.

        Raises:
            InputError: a word is none of those that its option takes.
            TypeError: there is no such keyword.
        """
        stages: dict[str, dict[str, Any]] = {}
        for keyword, value in given.items():
            if keyword not in PLACES:
                raise TypeError(f"optimize() got an unexpected keyword argument {keyword!r}")
            stage, name = PLACES[keyword]
            stages.setdefault(stage, {})[name] = value
        made: dict[str, Any] = {stage: STAGES[stage](**values) for stage, values in stages.items()}
        return cls(**made)


STAGES: Mapping[str, type[Stage]] = get_type_hints(Options)
# Stage and field of each keyword.
PLACES: Mapping[str, tuple[str, str]] = {
    keyword: (stage, name)
    for stage, kind in STAGES.items()
    for name in types_of(kind)
    if (keyword := _OF_PRUNE.get(name, "") if stage == "prune" else name)
}
