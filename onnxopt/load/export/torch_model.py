"""Load a checkpoint into torch and give it a flat face: named tensors in, named tensors out.

What the model takes, gives, and how long its inputs may be is found by reading its forward signature and running it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.errors import ExportError, InputError, OnnxoptError, said
from onnxopt.graph.cache import Cache, complete_all
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.classes import fitting, model_class
from onnxopt.load.checkpoint.folder import Checkpoint
from onnxopt.load.checkpoint.mapped import MappedWeights
from onnxopt.load.checkpoint.network import build_network, mapped_network
from onnxopt.load.checkpoint.pooling import Pooling, build_head
from onnxopt.load.export.forward_inputs import ExtraInput, choose_inputs, drop_inputs, inputs_of_pair
from onnxopt.load.export.images import PIXELS, image_input, made_size, trained_size
from onnxopt.load.export.marked_rows import as_written, end_of, read_at_marks, runs_alone
from onnxopt.load.export.shapes import shapes_alone
from onnxopt.load.export.sound_inputs import Heard, left_out_of_sound, sound_inputs
from onnxopt.load.export.torch_decoder import find_cache, flatten_with_cache, over_all, positions_in
from onnxopt.load.export.torch_pair import SeqPart, face_of, is_pair
from onnxopt.load.export.towers import (
    always_padded,
    picture_of,
    reads_both,
    text_config,
    tower_of,
)
from onnxopt.load.export.whole_text import first_position
from onnxopt.run.inputs.sound import sound_settings
from onnxopt.spec import SENTENCE, SOUND_INPUTS, Array, Feeds, Signature, TensorSpec, shape_text
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import IMAGE_BATCH, Task

logger = logging.getLogger(__name__)

Logits = Literal["last", "all"]
_SAID = 300  # letters of what a network says


@dataclass(frozen=True)
class TorchModel:
    """A loaded model behind its flat face.

    Attributes:
        flat: torch module; takes the inputs in order, gives the outputs in order.
        title: what it is, for reports.
        inputs: names, types and axes.
        outputs: names.
        longest: the longest sequence it takes, or 0.
        image_size: height and width it was trained with; empty for text.
        config: transformers' config object.
        cache: what the model keeps of the tokens it has seen; None when it keeps nothing.
        logits: positions of the output `logits` of a model with a cache.
        extras: what is known of inputs besides ids, mask, token types and an image alone.
        left_out: sentences about what `forward` takes and the inputs lack.
        weights: where its parameters lie; None where they are in memory.
        folder: of the checkpoint in whose files they lie; None for the same.
        end: the id without which it takes no row; None where it takes rows of any ids.
        first: the position at which a text begins, of one that is told positions.
        least: of sound, the shortest that it answers, by open axis.
        usual: of sound, a length to trace with, by open axis.
        made_size: height and width that its processor makes, where its sides are open and it runs at these; else empty.
    """

    flat: Any
    title: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    longest: int
    image_size: tuple[int, ...]
    config: Any
    cache: Cache | None = None
    logits: Logits = "all"
    extras: tuple[ExtraInput, ...] = ()
    left_out: tuple[str, ...] = ()
    weights: MappedWeights | None = None
    folder: Path | None = None
    end: int | None = None
    first: int = 0
    least: Mapping[str, int] = field(default_factory=dict)
    usual: Mapping[str, int] = field(default_factory=dict)
    made_size: tuple[int, ...] = ()

    def fixed_image(self) -> TorchModel:
        """Return the same model for images of one size only: what its processor makes, else what it is for."""
        size = self.made_size or self.image_size
        inputs = tuple(replace(spec, axes=(*spec.axes[:-2], *size)) for spec in self.inputs)
        return replace(self, inputs=inputs, image_size=size)

    def taking(self, names: Collection[str]) -> TorchModel:
        """Return the same model with fewer inputs, of sound the mask left out: then rows are as long as each other."""
        return replace(self, inputs=tuple(spec for spec in self.inputs if spec.name in names))

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output for inputs by name, from the network as transformers wrote it."""
        with as_written(getattr(self.flat, "network", self.flat)):
            return self.tried(feeds)

    def tried(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output as the network is traced, which takes rows without the mark that it looks for, too."""
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs]
        with torch.inference_mode():
            results = self.flat(*tensors)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, results, strict=True)}

    def shapes(self, feeds: Mapping[str, Array]) -> list[tuple[str, tuple[int, ...], str]]:
        """Return name, shape and dtype of every output for inputs by name; a large network is not run for it."""
        import torch

        if self.weights is None:
            return [(name, array.shape, str(array.dtype)) for name, array in self.tried(feeds).items()]
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs]
        results = shapes_alone(self.flat, self.weights, lambda: self.flat(*tensors))
        kinds = [str(one.dtype).removeprefix("torch.") for one in results]
        return [(name, tuple(one.shape), kind) for name, one, kind in zip(self.outputs, results, kinds, strict=True)]


@dataclass
class TorchReference:
    """The original model run by torch; it is loaded on the first run, since a cached export may never need it.

    Attributes:
        name: what it is, for reports.
        load: makes the model.
    """

    name: str
    load: Callable[[], TorchModel]
    _model: TorchModel | None = None

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """Return every output by name for inputs by name.

        Raises:
            ExportError: the network does not run on these.
        """
        if self._model is None:
            self._model = self.load()
        try:
            return self._model.run(feeds)
        except (OnnxoptError, MemoryError):
            raise
        except Exception as error:  # a network raises what it likes: the size is beyond it, or the fault is its own
            shown = {name: value for name, value in feeds.items() if not name.startswith("past")}
            sizes = ", ".join(f"{name} {shape_text(value)}" for name, value in shown.items())
            raise ExportError(f"{self.name} does not run on {sizes}: {said(error, _SAID)}") from error


def load_torch(
    checkpoint: Checkpoint,
    config: Any,
    task: Task,
    pooling: Pooling | None,
    *,
    with_cache: bool = True,
    logits: Logits = "last",
    part: SeqPart | None = None,
    without: tuple[str, ...] = (),
    extras: tuple[ExtraInput, ...] | None = None,
    first: int | None = None,
) -> TorchModel:
    """Load a checkpoint in float32 for inference.

    Args:
        checkpoint: what to load.
        config: transformers' config object of it.
        task: which head.
        pooling: adds the output `sentence_embedding` when given.
        with_cache: give a language model inputs and outputs for the keys and values that it has seen.
        logits: with a cache, whether `logits` are those of the last position or of all.
        part: which part of an encoder-decoder; None for every other model.
        without: inputs that the user leaves out.
        extras: inputs besides the plain ones, where they are known; found by trying when None.
        first: the position at which texts begin, where it is known; found by trying when None.

    Returns:
        The model behind its flat face.

    Raises:
        InputError: when weights are missing, broken or of another architecture, or the answer depends on an argument
            that cannot be an input.
        ExportError: when the model takes inputs that are not supported.
    """
    import torch

    where, task = checkpoint.source.text, fitting(task, config)
    kind = model_class(config, task, where=where)
    with quiet():
        opened = mapped_network(checkpoint, config, kind)
        network, missing, weights = opened or (*build_network(checkpoint, config, kind), None)
    network = network.eval()
    lie: dict[str, Any] = {"weights": weights, "folder": checkpoint.folder if weights else None}
    title = f"torch {torch.__version__} {type(network).__name__} float32"
    if part is not None:
        face = face_of(network, config, part, last=logits == "last", tried=first is not None, where=where)
        own = (face.flat, f"{title} {part}", face.inputs, face.outputs, face.longest, (), config, face.cache, logits)
        lost = inputs_of_pair(network, face.inputs, without, where=where)
        return _complete(TorchModel(*own, left_out=lost, **lie), network, missing, where)
    heard = _heard(network, config, task, checkpoint, weights)
    whole, network = network, network if heard else tower_of(network, task.head)
    plain, image_size = (heard.inputs, ()) if heard else _inputs(network, config, task, checkpoint)
    if image_size and not reads_both(task):
        lie["made_size"] = made_size(network, plain[0], checkpoint.image_processor)
    plain = drop_inputs(network, plain, without, where=where)
    notes: tuple[str, ...] = ()
    if heard:
        extras, notes = (), left_out_of_sound(network, plain, without, where=where)
    elif extras is None:
        extras, notes = choose_inputs(
            network,
            plain,
            () if reads_both(task) else image_size,
            outputs=task.head.outputs,
            writes=task.head.generates,
            without=without,
            where=where,
        )
    inputs = plain + tuple(extra.spec for extra in extras)
    longest = _longest(network, text_config(config)) if task.reads_text else 0
    usual = heard.usual if heard else {}
    sizes = _trial_sizes(image_size, usual)
    names = _output_names(network, inputs, task, sizes, extras=extras, weights=weights, where=where)
    cache = find_cache(network, weights) if with_cache and task.head.generates else None
    if first is None:
        first, cache = _goes_on(network, inputs, names, task, cache) if task.head.generates else (0, None)
    if cache is not None:
        flat = flatten_with_cache(network, inputs, cache, logits, first)
        inputs = tuple(over_all(spec) for spec in inputs) + cache.inputs
        outputs = ("logits", *(spec.name for spec in cache.outputs))
        model = TorchModel(flat, title, inputs, outputs, longest, image_size, config, cache, logits)
    else:
        flat = _flatten(network, inputs, names, task, head=build_head(pooling) if pooling else None, first=first)
        outputs = (*names, SENTENCE) if pooling else names
        model = TorchModel(flat, title, inputs, outputs, longest, image_size, config)
    end = end_of(network, config) if is_pair(config) and not heard else None
    lie |= {"end": end, "least": heard.least if heard else {}, "usual": usual, "first": first}
    return _complete(replace(model, extras=extras, left_out=notes, **lie), whole, missing, where)


def _complete(model: TorchModel, network: Any, missing: list[str], where: str) -> TorchModel:
    """Return the model, when no weights are missing that its outputs need."""
    if missing:
        _check_missing(model, network, missing, where)
    return model


def _heard(
    network: Any, config: Any, task: Task, checkpoint: Checkpoint, weights: MappedWeights | None
) -> Heard | None:
    """Return what a model of sound takes, None for every other model."""
    where = checkpoint.source.text
    if network.main_input_name not in SOUND_INPUTS:
        return None
    if "sound" not in task.takes:
        raise InputError(f"{type(network).__name__} takes sound, {task.name} is for {task.takes[0]}s", where=where)
    settings = sound_settings(checkpoint.folder) if checkpoint.folder else {}
    return sound_inputs(network, config, settings, weights)


def _inputs(
    network: Any, config: Any, task: Task, checkpoint: Checkpoint
) -> tuple[tuple[TensorSpec, ...], tuple[int, ...]]:
    """Return the inputs by the forward signature, and the image size."""
    where = checkpoint.source.text
    main = network.main_input_name
    if main == PIXELS:
        spec, size = image_input(network, config, checkpoint.image_processor, where=where)
        return (spec,), size
    if is_pair(config):
        read_at_marks(network)
        if reason := runs_alone(network):
            raise InputError(
                f"{type(network).__name__} is an encoder-decoder that does not run on one text alone, as {task.name} "
                f"would have it: {reason}",
                where=where,
                hint="use --task text2text-generation, or automatic-speech-recognition for sound",
            )
    if main != "input_ids":
        raise InputError(
            f"{type(network).__name__} takes {main}; only text, images and sound are supported", where=where
        )
    if not task.reads_text:
        raise InputError(f"{type(network).__name__} takes text, {task.name} is for images", where=where)
    texts = _text_inputs(network, config)
    if not reads_both(task):
        return texts, ()
    size = trained_size(config)
    return (*texts, picture_of(network, config, task.head, size, where=where)), size


def _text_inputs(network: Any, config: Any) -> tuple[TensorSpec, ...]:
    """Return ids, mask and token types, as far as a model takes them."""
    accepted, part = inspect.signature(network.forward).parameters, text_config(config)
    whole = always_padded(getattr(network, "network", network), config, TASKS["feature-extraction"].head)
    axes = ("batch", whole or "sequence")
    names = ["input_ids"]
    if "attention_mask" in accepted and not whole:
        names.append("attention_mask")
    if "token_type_ids" in accepted and int(getattr(part, "type_vocab_size", 0) or 0) > 1:
        names.append("token_type_ids")
    return tuple(TensorSpec(name, "int64", axes) for name in names)


def _longest(network: Any, config: Any) -> int:
    """Return the longest sequence: the positions, less those that a table keeps for its padding id and below."""
    import torch

    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    tables = (one for one in network.modules() if isinstance(one, torch.nn.Embedding))
    for table in tables:
        if table.num_embeddings == positions and table.padding_idx is not None:
            return positions - int(table.padding_idx) - 1
    return max(positions, 0)


def _trial_sizes(image_size: tuple[int, ...], usual: Mapping[str, int]) -> dict[str, int]:
    """Return sizes of a small run: those of texts and images, and what else is usual of a model."""
    sides = dict(zip(("height", "width"), image_size, strict=False))
    return {"batch": 2, "sequence": 3, IMAGE_BATCH: 1, **sides, **usual}


def _output_names(
    network: Any,
    inputs: tuple[TensorSpec, ...],
    task: Task,
    sizes: Mapping[str, int],
    *,
    extras: tuple[ExtraInput, ...],
    weights: MappedWeights | None,
    where: str,
) -> tuple[str, ...]:
    """Return the outputs of the task that the model gives, found by running it."""
    import torch

    feeds = {spec.name: torch.ones(spec.shape(sizes), dtype=getattr(torch, spec.dtype)) for spec in inputs}
    rng = np.random.default_rng(0)
    feeds |= {one.spec.name: torch.from_numpy(one.draw(one.spec.shape(sizes), rng)) for one in extras}
    try:
        with quiet():
            result = shapes_alone(network, weights, lambda: network(**feeds, return_dict=True))
    except Exception as error:
        shown = ", ".join(feeds)
        size = f" of {sizes['height']} × {sizes['width']}" if "height" in sizes else ""
        raise ExportError(f"the model does not run on {shown}{size}: {error}", where=where) from error
    given = [name for name, value in result.items() if isinstance(value, torch.Tensor)]
    wanted = task.head.answers(given)
    if not wanted and not given:
        raise ExportError("the model gives no tensor", where=where)
    return wanted or tuple(given)


def _goes_on(
    network: Any, inputs: tuple[TensorSpec, ...], names: tuple[str, ...], task: Task, cache: Cache | None
) -> tuple[int, Cache | None]:
    """Return where positions begin, and the cache where the network goes on from it as it reads a text whole."""
    if cache is not None:
        kept = cache
        found = first_position(network, inputs, kept, lambda at: flatten_with_cache(network, inputs, kept, "last", at))
        if found is not None:
            return found, kept
    whole = first_position(network, inputs, None, lambda at: _flatten(network, inputs, names, task, first=at))
    return whole or 0, None


def _flatten(
    network: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    task: Task,
    *,
    head: Any = None,
    first: int = 0,
) -> Any:
    """Return a module with tensors in and tensors out; a decoder's positions begin at `first`."""
    import torch

    names = tuple(spec.name for spec in inputs)
    accepted = inspect.signature(network.forward).parameters
    # a causal model with learned or rotary positions must count them from each row's first real token
    counts_positions = task.name == "text-generation" and "position_ids" in accepted and "attention_mask" in names
    fixed = {"use_cache": False} if "use_cache" in accepted else {}

    class Flat(torch.nn.Module):
        """The network behind positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.head = head

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            feeds: dict[str, Any] = dict(zip(names, tensors, strict=False))  # the mask is last, and may be left out
            mask = feeds.get("attention_mask")
            if counts_positions and mask is not None:
                feeds["position_ids"] = positions_in(mask, first)
            result = self.network(**feeds, **fixed, return_dict=True)
            values = tuple(result[name] for name in outputs)
            if self.head is None:
                return values
            return (*values, self.head(values[0], torch.ones_like(tensors[0]) if mask is None else mask))

    return Flat().eval()


def _check_missing(model: TorchModel, network: Any, missing: list[str], where: str) -> None:
    """Refuse weights that the checkpoint lacks and the outputs need; parts that no output uses may lack theirs.

    NaN in a parameter reaches every output that depends on it.
    """
    import torch

    parameters = {name: one for name, one in network.named_parameters() if name in missing}
    with torch.no_grad():
        for one in parameters.values():
            one.fill_(float("nan"))
    sizes = _trial_sizes(model.image_size, model.usual)
    sizes = complete_all(sizes | ({"past_sequence": 0} if model.cache else {}), Signature(model.inputs, ()).axes, 0)
    ones = {spec.name: np.ones(spec.shape(sizes), dtype=spec.dtype) for spec in model.inputs}
    ones |= {one.spec.name: one.draw(one.spec.shape(sizes), np.random.default_rng(0)) for one in model.extras}
    broken = [name for name, array in model.tried(ones).items() if np.isnan(array).any()]
    if broken:
        names = sorted(parameters)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"the checkpoint has no weights for {', '.join(names[:3])}{more}, which {broken[0]} needs",
            where=where,
            hint="name the task that it was trained for with --task",
        )
    with torch.no_grad():
        for one in parameters.values():
            one.zero_()
