"""Prune a transformers network in torch: whole layers, feed-forward channels, rows of the vocabulary.

Nothing lists model types. A field of the config is tried: what changes its shape with the field is what the field
rules, and the axis that a weight reads from tells makers from readers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.prune.selection import Ints, Moments, choose, left_error, refit
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.events import Step
from onnxopt.spec import Array, Say

FFN_FIELD = re.compile(r"inter|inner|ffn|ff_|d_ff|mlp|hidden_dim|feed", re.IGNORECASE)

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Pruned:
    """One thing that was made smaller.

    Attributes:
        kind: `layers`, `ffn`, `heads` or `vocab`.
        where: the module.
        before: members.
        after: members that stayed.
        error: relative squared error that it left in the output of what reads it, on calibration data; None when
            unknown.
        note: which stayed or went, in words.
    """

    kind: str
    where: str
    before: int
    after: int
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class _Place:
    """One axis of one parameter that belongs to a group: `size` entries, `repeats` times in a row."""

    parameter: str
    axis: int
    repeats: int


def stack_of(network: Any, config: Any) -> tuple[str, Any]:
    """Return name and ModuleList of the layers.

    Raises:
        InputError: when no list of modules has as many entries as the config says.
    """
    import torch

    wanted = int(getattr(config, "num_hidden_layers", 0) or 0)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted > 0:
            return name, module
    raise InputError(
        f"{type(network).__name__} has no list of {wanted} layers, so none can be taken out",
        hint="prune its graph instead: `onnxopt optimize --prune` on the exported .onnx",
    )


def layer_changes(network: Any, config: Any, batches: Sequence[Batch]) -> list[float]:
    """Return for each layer how much it turns the residual stream: 1 − mean cosine of what goes in and what comes out.

    Source: Men et al. 2024, arXiv:2403.03853, eq. 1.
    """
    import torch

    _, layers = stack_of(network, config)
    sums, counts = [0.0] * len(layers), [0] * len(layers)
    mask: list[Any] = [None]

    def watch(index: int) -> Callable[..., None]:
        def hook(_: Any, arguments: Any, keywords: Any, output: Any) -> None:
            before = arguments[0] if arguments else keywords["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)[mask[0]]
            sums[index] += float((1 - cosine).sum())
            counts[index] += cosine.numel()

        return hook

    handles = [layer.register_forward_hook(watch(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        for batch in batches:
            mask[0] = batch["attention_mask"].bool()
            with torch.inference_mode():
                network(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]


def keep_layers(network: Any, config: Any, kept: Sequence[int]) -> None:
    """Leave only some layers in the network; its config follows."""
    import torch

    name, layers = stack_of(network, config)
    count = len(layers)
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], torch.nn.ModuleList([layers[index] for index in kept]))
    for new, old in enumerate(kept):
        for module in layers[old].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new
            if getattr(module, "layer_id", None) == old:
                module.layer_id = new
    for one in {id(c): c for c in (config, network.config)}.values():
        for key, value in list(vars(one).items()):
            if isinstance(value, list) and len(value) == count and not key.startswith("architectures"):
                setattr(one, key, [value[index] for index in kept])
        one.num_hidden_layers = len(kept)


def choose_layers(
    network: Any, config: Any, wanted: int, spec: PruneSpec, batches: Sequence[Batch]
) -> tuple[list[int], list[float]]:
    """Return the layers that stay when `wanted` go, and how much each layer changes the residual stream."""
    count = len(stack_of(network, config)[1])
    if not 0 < wanted < count:
        raise InputError(f"{wanted} of {count} layers cannot go", where="--prune layers", hint="leave at least one")
    if spec.layer_order == "last":
        return list(range(count - wanted)), []
    if spec.layer_order == "random":
        gone = np.random.default_rng(spec.seed).choice(count, size=wanted, replace=False)
        return sorted(set(range(count)) - set(gone.tolist())), []
    changes = layer_changes(network, config, batches)
    least = sorted(range(count), key=lambda index: changes[index])[:wanted]
    return sorted(set(range(count)) - set(least)), changes


# Groups inside a layer, found by trying fields of the config


def ffn_field(network: Any, config: Any) -> tuple[str, int]:
    """Return the config's field that rules the width of the feed-forward blocks, and that width.

    Raises:
        InputError: when no field does.
    """
    trial = _one_layer(config)
    layers = len(stack_of(network, config)[1])
    keys = [key for key in _fields(config) if FFN_FIELD.search(key)]
    for key in keys:
        width = getattr(config, key)
        for guess in [width] if isinstance(width, int) else _widths(network):
            if guess < 16:
                continue
            changed = moved_by(network, trial, {key: guess // 2})
            places = {(n, a): (o, w) for n, found in changed.items() for a, o, w in found}
            if len(places) >= 2 and layers and all(w * 2 == o and o % guess == 0 for o, w in places.values()):
                return key, guess
    raise InputError(
        f"{type(config).__name__} has no field for the width of its feed-forward blocks that could be found",
        where="--prune ffn",
        hint="prune the exported graph instead: `onnxopt prune model.onnx`",
    )


def _fields(config: Any) -> list[str]:
    names = [key for key, value in vars(config).items() if value is None or type(value) is int]
    return sorted(names, key=lambda key: (getattr(config, key) is None, key))


def _widths(network: Any) -> list[int]:
    """Return the sizes of weights beyond the width of the network, for fields that say None."""
    hidden = int(network.config.hidden_size)
    sizes = {int(dim) for one in network.parameters() if one.ndim == 2 for dim in one.shape}
    vocabulary = int(getattr(network.config, "vocab_size", 0) or 0)
    return sorted(size for size in sizes if size > hidden and size != vocabulary)


def _one_layer(config: Any) -> Any:
    trial = copy.deepcopy(config)
    count = trial.num_hidden_layers
    for key, value in list(vars(trial).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(trial, key, value[:1])
    trial.num_hidden_layers = 1
    return trial


def _shapes(network: Any, config: Any) -> dict[str, tuple[int, ...]]:
    import torch

    kind = type(network)
    with torch.device("meta"), _no_defaults():
        made = kind(copy.deepcopy(config))
    return {name: tuple(one.shape) for name, one in made.named_parameters()}


@contextmanager
def _no_defaults() -> Iterator[None]:
    """Build without talking and without drawing weights."""
    from onnxopt.host.quiet import quiet

    with quiet():
        yield


def moved_by(network: Any, config: Any, changes: Mapping[str, int]) -> dict[str, list[tuple[int, int, int]]]:
    """Return the parameters whose shape a change of the config changes: (axis, before, after) each."""
    other = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(other, key, value)
    try:
        before, after = _shapes(network, config), _shapes(network, other)
    except Exception:  # noqa: BLE001  a config that its class refuses changes nothing
        return {}
    if before.keys() != after.keys():
        return {}
    found = {}
    for name, shape in before.items():
        pairs = zip(shape, after[name], strict=False)
        found[name] = [(axis, old, new) for axis, (old, new) in enumerate(pairs) if old != new]
    return {name: moves for name, moves in found.items() if moves}


def _groups(network: Any, config: Any, changes: Mapping[str, int], width: int, size: int) -> dict[str, list[_Place]]:
    """Return by layer the places that a change of the config makes smaller.

    Args:
        network: the whole network.
        config: its config.
        changes: fields and their new values, which change `width` to `size`.
        width: entries of the group before.
        size: and after.
    """
    stack, _ = stack_of(network, config)
    found: dict[str, list[_Place]] = {}
    for name, moves in moved_by(network, config, changes).items():
        if not name.startswith(f"{stack}."):
            raise InputError(f"{name} is not inside a layer and would change too", where="--prune")
        index = name[len(stack) + 1 :].split(".", 1)[0]
        for axis, old, new in moves:
            if old % width or new * width != old * size:
                raise InputError(f"{name} does not follow: {old} would become {new}", where="--prune")
            found.setdefault(f"{stack}.{index}", []).append(_Place(name, axis, old // width))
    return found


def reads_along(network: Any, parameter: str, axis: int) -> bool:
    """Tell whether a parameter reads along an axis: the second of a Linear, the first of GPT-2's Conv1D."""
    import torch

    owner = network.get_submodule(parameter.rpartition(".")[0])
    if not parameter.endswith(".weight") or network.get_parameter(parameter).ndim != 2:
        return False
    return axis == (1 if isinstance(owner, torch.nn.Linear) else 0)


def _rows(parameter: Any, place: _Place, width: int) -> Array:
    """Return float32 [width, anything]: what belongs to each entry."""
    array = np.moveaxis(parameter.detach().float().cpu().numpy(), place.axis, 0)
    return np.ascontiguousarray(np.moveaxis(array.reshape(place.repeats, width, -1), 0, 1).reshape(width, -1))


def moments_of(network: Any, names: Sequence[str], batches: Sequence[Batch], say: Say) -> dict[str, Moments]:
    """Run calibration batches and return the moments of what modules read, over real tokens."""
    import torch

    found: dict[str, Moments] = {}
    mask: list[Any] = [None]

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, arguments: Any) -> None:
            rows = arguments[0].reshape(-1, arguments[0].shape[-1])
            kept = mask[0].reshape(-1) if mask[0].numel() == len(rows) else slice(None)
            array = rows[kept].float().cpu().numpy()
            found.setdefault(name, Moments(array.shape[-1])).add(array)

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        for index, batch in enumerate(batches):
            say(Step.piece("calibration batch", index + 1, len(batches)))
            mask[0] = batch["attention_mask"].bool()
            with torch.inference_mode():
                network(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class _Group:
    """Places of one layer's feed-forward block, with what reads them."""

    layer: str
    places: tuple[_Place, ...]
    reader: _Place
    owner: str

    def weight(self, network: Any, width: int) -> Array:
        return _rows(network.get_parameter(self.reader.parameter), self.reader, width)


def shrink_ffn(network: Any, config: Any, spec: PruneSpec, batches: Sequence[Batch], say: Say) -> list[Pruned]:
    """Make the feed-forward blocks of every layer narrower, refit what reads them, and let the config follow.

    A checkpoint has one width for all layers, so the share is the same in each.

    Raises:
        InputError: when the blocks cannot be found, or nothing would go.
    """
    field, width = ffn_field(network, config)
    gone = spec.amounts["ffn"].of(width, spec.align)
    if not 0 < gone < width:
        raise InputError(f"{gone} of {width} channels cannot go", where="--prune ffn", hint="name a smaller share")
    size = width - gone
    groups = []
    for layer, places in _groups(network, config, {field: size}, width, size).items():
        readers = [place for place in places if reads_along(network, place.parameter, place.axis)]
        if len(readers) != 1:
            raise InputError(f"{len(readers)} weights read the channels, expected one", where=layer)
        groups.append(_Group(layer, tuple(places), readers[0], readers[0].parameter.rpartition(".")[0]))
    seen = moments_of(network, [group.owner for group in groups], batches, say) if needs_moments(spec) else {}
    report = []
    for group in groups:
        say(f"{group.layer}: {size} of {width} channels stay")
        report.append(_shrink(network, group, (width, gone), spec, seen.get(group.owner)))
    for one in {id(c): c for c in (config, network.config)}.values():
        setattr(one, field, size)
    return report


def needs_moments(spec: PruneSpec) -> bool:
    """Tell whether calibration has to be run."""
    return spec.compensate or spec.importance != "magnitude"


def _shrink(network: Any, group: _Group, sizes: tuple[int, int], spec: PruneSpec, moments: Moments | None) -> Pruned:
    import torch

    width, gone = sizes
    owner = network.get_submodule(group.owner)
    weight = group.weight(network, width)
    bias = getattr(owner, "bias", None)
    old_bias = None if bias is None else bias.detach().float().cpu().numpy()
    slices = [_rows(network.get_parameter(place.parameter), place, width) for place in group.places]
    kept = choose(spec.importance, gone, slices=slices, weight=weight, moments=moments, centred=old_bias is not None)
    fitted, shift = weight[kept], old_bias
    error = None
    if moments is not None:
        error = left_error(weight, moments, kept, centred=old_bias is not None, fitted=spec.compensate)
        if spec.compensate:
            fitted, shift = refit(weight, old_bias, moments, kept)
    for place in group.places:
        index = np.concatenate([kept + repeat * width for repeat in range(place.repeats)])
        take(network, place.parameter, place.axis, index)
    reader = network.get_parameter(group.reader.parameter)
    with torch.no_grad():
        moved = np.moveaxis(fitted.reshape(len(kept), *_others(reader, group.reader.axis)), 0, group.reader.axis)
        reader.copy_(torch.from_numpy(np.ascontiguousarray(moved)))
        if bias is not None and shift is not None:
            bias.copy_(torch.from_numpy(shift))
    return Pruned("ffn", group.layer, width, len(kept), error)


def _others(parameter: Any, axis: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(parameter.shape) if index != axis)


def take(network: Any, parameter: str, axis: int, index: Ints) -> None:
    """Keep some entries of a parameter along an axis; the module's own word for its size follows."""
    import torch

    owner = network.get_submodule(parameter.rpartition(".")[0])
    name = parameter.rpartition(".")[2]
    old = getattr(owner, name)
    with torch.no_grad():
        fresh = torch.nn.Parameter(old.index_select(axis, torch.from_numpy(index)), old.requires_grad)
    setattr(owner, name, fresh)
    for word, place in (("out_features", 0), ("in_features", 1), ("nx", 0), ("nf", 1)):
        if hasattr(owner, word) and fresh.ndim == 2 and place == axis:
            setattr(owner, word, len(index))


def cut_vocabulary(network: Any, config: Any, kept: Ints) -> list[str]:
    """Leave only some rows in every table of the vocabulary; return the names of the weights that became smaller.

    Args:
        network: changed in place.
        config: its config; its size of the vocabulary follows, ids in it do not.
        kept: int64, the rows that stay.

    Raises:
        InputError: when the config has no size of the vocabulary that rules any weight.
    """
    import torch

    text = config.get_text_config()
    size = int(text.vocab_size)
    trial = _one_layer(config)
    moved = moved_by(network, trial, {"vocab_size": size - 1}) if text is config else {}
    places = [_Place(name, axis, 1) for name, moves in moved.items() for axis, old, new in moves if old - new == 1]
    if not places:
        raise InputError("no weight follows the size of the vocabulary in the config", where="--prune vocab")
    padding = {id(one): one.padding_idx for one in network.modules() if isinstance(one, torch.nn.Embedding)}
    for place in places:
        take(network, place.parameter, place.axis, kept)
        owner = network.get_submodule(place.parameter.rpartition(".")[0])
        if isinstance(owner, torch.nn.Embedding):
            owner.num_embeddings = len(kept)
            old = padding[id(owner)]
            where = np.flatnonzero(kept == old) if old is not None else np.empty(0, np.int64)
            owner.padding_idx = int(where[0]) if len(where) else None
        if hasattr(owner, "out_features"):
            owner.out_features = len(kept)
    for one in {id(c): c for c in (config, network.config)}.values():
        one.vocab_size = len(kept)
    network.tie_weights()
    return [place.parameter for place in places]
