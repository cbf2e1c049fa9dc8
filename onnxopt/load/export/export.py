"""Turn a checkpoint into a proved ONNX graph: load, trace, prove every axis, keep the result for the next time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.errors import ExportError, InputError
from onnxopt.host.folders import sealed
from onnxopt.host.usercache import cache_root, make_entry, use_entry
from onnxopt.load.checkpoint.classes import (
    features_task,
    fitting,
    infer_task,
    is_bare,
    model_class,
    require_labels,
    require_readable,
)
from onnxopt.load.checkpoint.folder import Checkpoint, load_config, read_checkpoint, weights_digest, write_assets
from onnxopt.load.checkpoint.heads import require_head
from onnxopt.load.checkpoint.network import RANDOM_SEED
from onnxopt.load.checkpoint.pooling import Pooling, read_pooling
from onnxopt.load.export.axes import learn_ranges, prove_axes, range_notes
from onnxopt.load.export.forward_inputs import ExtraInput
from onnxopt.load.export.images import SIDES
from onnxopt.load.export.references import read_graph
from onnxopt.load.export.sound_inputs import MASK
from onnxopt.load.export.torch_decoder import grows_beyond, rereads
from onnxopt.load.export.torch_model import Logits, TorchModel, TorchReference, load_torch
from onnxopt.load.export.torch_pair import SeqPart
from onnxopt.load.export.towers import scores_of_compared
from onnxopt.load.export.trace import ROADS, Road, Traced, example_sizes, trace
from onnxopt.load.feeds import ImageFeeder, SoundFeeder, TextFeeder, Tokens, read_tokens
from onnxopt.load.loaded import Feeder, Loaded
from onnxopt.load.source.source import Source
from onnxopt.probe.crossing import crossings_of
from onnxopt.spec import SOUND_AXES, SOUND_INPUTS, AxisRange, Signature, TensorSpec
from onnxopt.tasks.table import parse_task
from onnxopt.tasks.task import Task
from onnxopt.version import __version__

Exporter = Literal["auto", "dynamo", "torchscript"]
Progress = Callable[[str], None]

_FORMAT = 12
_RECORD = "export.json"
_MODEL = "model.onnx"
_ASSETS = "assets"
_VERSIONED = ("torch", "transformers", "onnxscript", "onnx-ir", "onnxruntime", "huggingface-hub")

logger = logging.getLogger(__name__)


def export(
    source: Source,
    *,
    task: str | None = None,
    with_pooling: bool = True,
    with_cache: bool = True,
    logits: Logits = "last",
    part: SeqPart | None = None,
    without: tuple[str, ...] = (),
    exporter: Exporter = "auto",
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Loaded:
    """Export a checkpoint to ONNX and prove that the file follows its named axes.

    The graph, its proof and the assets are kept in the user's cache under the content they were made of, so the same
    export is not made twice.

    Args:
        source: from `onnxopt.load.source.source.resolve`; anything but an .onnx file.
        task: transformers task name; the default is the recipe's, else what the config says.
        with_pooling: add the output `sentence_embedding` when the checkpoint says how tokens become one vector.
        with_cache: give a language model inputs and outputs for the keys and values that it has seen.
        logits: with a cache, whether `logits` are those of the last position or of all.
        part: which part of an encoder-decoder; None for every other model.
        without: inputs that are left out though the answer may depend on them; a note says so.
        exporter: `dynamo` (opset 23), `torchscript` (opset 17), or `auto`: dynamo, and TorchScript if that fails.
        progress: told what is being done.
        use_cache: false makes the export again and replaces what the cache has.

    Returns:
        The graph with signature, reference (torch, loaded on first use), feeder and assets. The assets lie in one
        folder as they lay in the checkpoint; `onnxopt.load.checkpoint.folder.relative_assets` gives their paths
        relative to it.

    Raises:
        InputError: when the source or the task is not usable, or the answer depends on something that the file would
            have no input for.
        ExportError: when no exporter takes the model, or the file differs from torch at some size.
    """
    if source.kind == "onnx":
        raise InputError("is an .onnx file, which is imported, not exported", where=source.text)
    say = progress or (lambda _: None)
    asked = parse_task(task).name if task else (source.recipe.task if source.recipe else "")
    checkpoint = read_checkpoint(source)
    weights = weights_digest(checkpoint, say)
    form = _Form(with_pooling, with_cache, logits, part, without)
    options = {"task": asked, "form": asdict(form), "exporter": exporter, "weights": source.weights}
    key = _digest([_FORMAT, weights, dict(checkpoint.settings), options, _versions(), source.trust_remote_code])
    entry = cache_root() / "exports" / f"{source.name}{f'-{part}' if part else ''}-{key[:24]}"
    use_entry(entry)
    if not (use_cache and sealed(entry)):
        entry, model = make_entry(
            entry, lambda fresh: _make(fresh, checkpoint, asked, form, exporter=exporter, say=say)
        )
        return _open(entry, checkpoint, weights, model)
    say("export found in the cache")
    return _open(entry, checkpoint, weights)


@dataclass(frozen=True)
class _Form:
    """What inputs and outputs a model gets besides its own."""

    pooling: bool
    cache: bool
    logits: Logits
    part: SeqPart | None = None
    without: tuple[str, ...] = ()


def look_at(source: Source, task: str | None = None) -> None:
    """Refuse a checkpoint that lacks what its task takes, before anything of it is hashed, loaded or run.

    Args:
        source: from `onnxopt.load.source.source.resolve`; of an .onnx file nothing is asked.
        task: as `export` takes it.

    Raises:
        InputError: there is no such task, no tokenizer for its text, or no head for it among the weights.
    """
    if source.kind == "onnx":
        return
    checkpoint = read_checkpoint(source)
    asked = parse_task(task).name if task else (source.recipe.task if source.recipe else "")
    named = parse_task(asked) if asked else None
    if named is not None:  # without a look into transformers, which takes longer than all the rest
        require_head(checkpoint, named)
    found = _task(load_config(checkpoint), asked, source)
    _require_tokenizer(checkpoint, found)


def is_pair(source: Source, task: str | None = None) -> bool:
    """Tell whether a source is an encoder-decoder, which is exported in two parts.

    Args:
        source: from `onnxopt.load.source.source.resolve`.
        task: transformers task name; the default is the recipe's, else what the config says.

    Raises:
        InputError: when the source or the task is not usable.
    """
    if source.kind == "onnx":
        return False
    asked = parse_task(task).name if task else (source.recipe.task if source.recipe else "")
    config = load_config(read_checkpoint(source))
    return _task(config, asked, source).head.paired


def _make(
    folder: Path, checkpoint: Checkpoint, asked: str, form: _Form, *, exporter: Exporter, say: Progress
) -> TorchModel:
    """Write graph, assets and record of one export into `folder`; return the model it was made from."""
    source = checkpoint.source
    say("loading the model in torch")
    config = load_config(checkpoint)
    task = _task(config, asked, source)
    notes = _notes(checkpoint)
    pooling, left_out = _pooling(checkpoint, task, with_pooling=form.pooling)
    notes += [left_out] if left_out else []
    if _require_tokenizer(checkpoint, task):
        notes.append("there is no tokenizer; inputs are random ids and the artifact cannot read text")
    write_assets(checkpoint, config, folder / _ASSETS)
    model = load_torch(
        checkpoint,
        config,
        task,
        pooling,
        with_cache=form.cache,
        logits=form.logits,
        part=form.part,
        without=form.without,
    )
    notes = [*model.left_out, *notes]
    if form.cache and task.head.generates and model.cache is None and form.part is None:
        notes.append("the model keeps other states than keys and values; exported without a cache")
    words = folder / _ASSETS if checkpoint.has_tokenizer else None
    reads = any(spec.name == "input_ids" for spec in model.inputs)
    tokens = read_tokens(words, config, longest=model.longest, end=model.end) if reads else None
    if tokens is not None and tokens.writes_no_end:
        notes.append(f"the model reads at the mark with id {tokens.end}, which its tokenizer writes behind no text")
    traced, proved, failures = _first_road(model, tokens, exporter, folder / _MODEL, say=say)
    only = _narrower(model, traced)
    model = model.taking([spec.name for spec in traced.signature.inputs])
    notes += [f"{failure}; exported with {traced.exporter}{only} instead" for failure in failures]
    crossing, endless_from = _crossing(folder / _MODEL, model, notes)
    record = _record(traced, task, model, tokens, notes) | {"crossing": crossing, "endless_from": endless_from}
    record |= {"pooling": str(pooling) if pooling else "", "proved_sizes": list(proved)}
    record |= {"with_cache": model.cache is not None, "logits": model.logits, "longest": model.longest}
    record |= {"scores": scores_of_compared(model.flat) if task.compares else ""}
    record |= {
        "first": model.first,
        "part": form.part,
        "without": form.without,
        "extras": [one.to_json() for one in model.extras],
    }
    if {*SIDES, *SOUND_AXES} & set(traced.signature.axes):
        say("trying sizes of images" if model.image_size else "trying lengths of sounds")
    feeder = _feeder(traced.signature.inputs, tokens, traced.example, model.extras, model.least)
    reference = TorchReference(model.title, lambda: model)
    given: dict[str, Any] = {"example": traced.example, "folder": model.folder}
    ranges = learn_ranges(folder / _MODEL, traced.signature, reference, feeder, **given)
    notes += range_notes(ranges)
    record |= {"notes": notes, "ranges": {axis: asdict(known) for axis, known in ranges.items()}}
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return model


def _crossing(path: Path, model: TorchModel, notes: list[str]) -> tuple[str, int]:
    """Return what a decoder does where its rotary tables change, and from where they change with every token.

    Returns:
        Both empty where they do not; notes say what else there is.
    """
    if model.cache is None:
        return "", 0
    found = crossings_of(read_graph(path, model.folder), longest=model.longest)
    if model.longest and not found.endless_from and grows_beyond(model.flat.network, model.longest):
        found = replace(found, endless_from=model.longest)
    anew = all(rereads(model.flat.network, length) for length in found.at)
    if found.note():
        notes.append(found.note(rereads=anew))
    return "" if not found.at else "reread" if anew else "continue", found.endless_from


def _first_road(
    model: TorchModel, tokens: Tokens | None, exporter: Exporter, path: Path, *, say: Progress
) -> tuple[Traced, tuple[dict[str, int], ...], list[str]]:
    """Take the first road that gives a proved file.

    Returns:
        The export at `path`, the sizes that were proved, and why earlier roads failed.
    """
    roads: list[tuple[Road, TorchModel]] = []
    for road in ROADS if exporter == "auto" else (exporter,):
        roads.append((road, model))
        if "height" in Signature(model.inputs, ()).axes:
            roads.append((road, model.fixed_image()))
    if model.usual and len(model.inputs) > 1:  # the mask of a sound
        roads += [(road, model.taking([model.inputs[0].name])) for road, _ in roads]

    def walk(road: Road, variant: TorchModel) -> tuple[Traced, tuple[dict[str, int], ...]]:
        say(f"exporting with {road}")
        traced = trace(variant, road, path)
        feeder = _feeder(traced.signature.inputs, tokens, traced.example, model.extras, model.least)
        example, longest = traced.example, model.longest
        given: dict[str, Any] = {"example": example, "longest": longest, "folder": variant.folder, "least": model.least}
        reference = TorchReference(model.title, lambda: variant if model.usual else model)
        sizes = prove_axes(path, traced.signature, reference, feeder, **given, say=say)
        return traced, sizes

    failures: list[str] = []
    for road, variant in roads:
        try:
            return (*walk(road, variant), failures)
        except ExportError as error:  # noqa: PERF203  at most four turns
            failures.append(f"{road} failed: {error}")
            logger.info("%s", failures[-1])
    if _draws(model, tokens):
        raise ExportError(
            "its answer to the same input is another one each time, since it draws random numbers while it answers: no "
            "export can be proved equal",
            hint="export it to ONNX by other means with its random numbers as an input, and give the .onnx file",
        )
    extras = ",".join(one.spec.name for one in model.extras)
    hint = f"it may be exported without {extras}, knowingly: --without {extras}" if extras else ""
    raise ExportError("; ".join(dict.fromkeys(failures)), hint=hint)


def _draws(model: TorchModel, tokens: Tokens | None) -> bool:
    """Tell whether a model answers the same input differently, where it answers at all."""
    sizes = example_sizes(model)
    feeds = _feeder(model.inputs, tokens, sizes, model.extras, model.least).make(sizes)
    try:
        first, second = (model.run(feeds) for _ in range(2))
    except Exception:  # noqa: BLE001  whatever torch raises, it has been said
        return False
    return any(
        first[name].shape != second[name].shape or not np.array_equal(first[name], second[name], equal_nan=True)
        for name in first
    )


def _narrower(model: TorchModel, traced: Traced) -> str:
    """Return, as a phrase, what an export takes less than its model; empty where it takes the same."""
    if model.image_size and not set(Signature(model.inputs, ()).axes) <= set(traced.signature.axes):
        height, width = model.made_size or model.image_size
        return f" for images of {height} × {width} alone"
    if len(traced.signature.inputs) < len(model.inputs):
        return " without a mask, for rows of a batch as long as each other,"
    return ""


def _task(config: Any, asked: str, source: Source) -> Task:
    """Return the task, asked for or by the config, when the architecture does it; the model tells text from image."""
    task = fitting(parse_task(asked), config) if asked else infer_task(config, where=source.text)
    if is_bare(task):
        task = features_task(config, task if asked else None, where=source.text)
    kind = model_class(config, task, where=source.text)
    require_labels(task, config, where=source.text)
    if not getattr(config, "is_encoder_decoder", False):
        require_readable(kind, where=source.text)
    return task


def _pooling(checkpoint: Checkpoint, task: Task, *, with_pooling: bool) -> tuple[Pooling | None, str]:
    if not with_pooling or task.name != "feature-extraction":
        return None, ""
    return read_pooling(checkpoint.folder)


def _notes(checkpoint: Checkpoint) -> list[str]:
    """Return what the ledger should say about how the checkpoint was read."""
    notes: list[str] = []
    if checkpoint.removed:
        notes.append(f"config keys that can run code were left out: {', '.join(checkpoint.removed)}")
    if checkpoint.source.trust_remote_code:
        notes.append("the checkpoint's own code was allowed to run (trust_remote_code)")
    if checkpoint.source.weights == "random":
        notes.append(f"the weights are made up (seed {RANDOM_SEED}); accuracy means nothing")
    return notes


def _require_tokenizer(checkpoint: Checkpoint, task: Task) -> bool:
    """Tell whether the tokenizer of a model of text is missing, where its weights are made up; else refuse that."""
    if not (task.reads_text or task.head.generates) or checkpoint.has_tokenizer:
        return False
    if checkpoint.source.weights == "random":
        return True
    raise InputError(
        "the checkpoint has no tokenizer",
        where=checkpoint.source.text,
        hint="put tokenizer.json (or vocab.txt, tokenizer.model) beside config.json",
    )


def _feeder(
    inputs: tuple[TensorSpec, ...],
    tokens: Tokens | None,
    example: Mapping[str, int],
    extras: tuple[ExtraInput, ...],
    least: Mapping[str, int],
) -> Feeder:
    if tokens is not None:
        return TextFeeder(inputs, tokens, extras)
    usual = {axis: size for axis, size in example.items() if axis != "batch"}
    if inputs[0].name in SOUND_INPUTS and {spec.name for spec in inputs[1:]} <= {MASK}:
        return SoundFeeder(inputs, usual, least)
    return ImageFeeder(inputs, usual, extras)


def _record(traced: Traced, task: Task, model: TorchModel, tokens: Tokens | None, notes: list[str]) -> dict[str, Any]:
    """Return what must be known of an export besides its graph."""
    return {
        "format": _FORMAT,
        "task": task.name,
        "exporter": traced.exporter,
        "opset": traced.opset,
        "reference": model.title,
        "inputs": [[one.name, one.dtype, list(one.axes)] for one in traced.signature.inputs],
        "outputs": [[one.name, one.dtype, list(one.axes)] for one in traced.signature.outputs],
        "example": dict(traced.example),
        "least": dict(model.least),
        "tokens": tokens.to_json() if tokens else None,
        "notes": notes,
    }


def _open(entry: Path, checkpoint: Checkpoint, weights: Mapping[str, str], model: TorchModel | None = None) -> Loaded:
    """Return the export that lies in a cache entry; `model` is what it was made from, when that is loaded already."""
    source = checkpoint.source
    record = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    signature = Signature(
        tuple(TensorSpec(name, dtype, tuple(axes)) for name, dtype, axes in record["inputs"]),
        tuple(TensorSpec(name, dtype, tuple(axes)) for name, dtype, axes in record["outputs"]),
    )
    tokens = Tokens.from_json(record["tokens"]) if record["tokens"] else None
    task = parse_task(record["task"])
    extras = tuple(ExtraInput.from_json(one) for one in record["extras"])

    def load() -> TorchModel:
        if model is not None:
            return model
        pooling = read_pooling(checkpoint.folder)[0] if record["pooling"] else None
        given = {name: record[name] for name in ("with_cache", "logits", "part", "first")}
        given |= {"without": tuple(record["without"]), "extras": extras}
        original = load_torch(checkpoint, load_config(checkpoint), task, pooling, **given)
        return original.taking([spec.name for spec in signature.inputs])

    return Loaded(
        name=source.name,
        model=read_graph(entry / _MODEL, checkpoint.folder),
        signature=signature,
        reference=TorchReference(record["reference"], load),
        feeder=_feeder(signature.inputs, tokens, record["example"], extras, record["least"]),
        task=task.name,
        assets=tuple(sorted(path for path in (entry / _ASSETS).rglob("*") if path.is_file())),
        origin={
            "source": source.recipe.source if source.recipe and source.kind != "folder" else source.text,
            "kind": source.made or source.kind,
            "revision": source.revision,
            "weights": source.weights,
            "weights_sha256": _digest(weights) if source.weights == "pretrained" else "",
            "task": task.name,
            "pooling": record["pooling"],
            "exporter": record["exporter"],
            "opset": record["opset"],
            "context_length": record["longest"],
            # entries of a cache that are older than the second say nothing of it
            **{key: record[key] for key in ("crossing", "endless_from", "scores") if record.get(key)},
            "versions": _versions(),
        },
        notes=[*source.notes, *record["notes"]],
        proved_sizes=tuple(record["proved_sizes"]),
        ranges={axis: AxisRange(**known) for axis, known in record["ranges"].items()},
        random_weights=source.weights == "random",
    )


def _versions() -> dict[str, str]:
    """Return the versions that decide how an export looks."""
    return {"onnxopt": __version__, **{name: metadata.version(name) for name in _VERSIONED}}


def _digest(content: Any) -> str:
    """Return the SHA-256 of a value as sorted JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
