"""Take heads out of a transformers network whose config gives heads a size of their own.

A key head goes with its value head and the query heads that share it, so the cache becomes smaller too. Nothing lists
model types: which weights follow is found by changing the numbers in the config, how heads lie in them by running the
smaller network beside the whole one with those heads switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.prune.checkpoint.network import Pruned, moments_of, moved_by, needs_moments, reads_along, stack_of, take
from onnxopt.prune.selection import Ints, choose, entries, left_error, magnitude, refit
from onnxopt.prune.spec import PruneSpec
from onnxopt.spec import Array, Say

TOLERANCE = 1e-3  # of the largest answer: other sizes add in another order

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class _Layer:
    """One layer's attention.

    Attributes:
        name: the layer.
        places: parameter and axis of everything that has entries of heads.
        reader: the parameter that reads what the heads say, and its axis.
    """

    name: str
    places: tuple[tuple[str, int], ...]
    reader: tuple[str, int]

    @property
    def owner(self) -> str:
        """The module that reads."""
        return self.reader[0].rpartition(".")[0]


def has_own_head_size(config: Any) -> bool:
    """Tell whether the number of heads in a config may change while their size stays."""
    return all(isinstance(getattr(config, name, None), int) for name in ("head_dim", "num_attention_heads"))


def shrink_heads(network: Any, config: Any, spec: PruneSpec, batches: Sequence[Batch], say: Say) -> list[Pruned]:
    """Take key heads, with their query heads, out of every layer, and refit what reads them.

    Args:
        network: changed in place.
        config: its config, which follows.
        spec: `heads` is how many key heads go in each layer.
        batches: calibration feeds, int64 [rows, tokens].
        say: told what happens.

    Raises:
        InputError: when the config has no size of heads, or weights do not follow it.
    """
    if not has_own_head_size(config):
        raise InputError(
            f"{type(config).__name__} divides its width by the number of heads, so heads are pruned on a graph, not in "
            "a checkpoint",
            where="--prune heads",
            hint="use `onnxopt optimize --prune --no-cache`, or leave heads out",
        )
    total = int(config.num_attention_heads)
    keys = getattr(config, "num_key_value_heads", None)
    count = int(keys) if isinstance(keys, int) else total
    gone = spec.amounts["heads"].of(count)
    if not 0 < gone < count:
        raise InputError(f"{gone} of {count} heads cannot go", where="--prune heads", hint="leave at least one")
    size = count - gone
    numbers = {"num_attention_heads": (total, total // count * size)}
    numbers |= {"num_key_value_heads": (count, size)} if isinstance(keys, int) else {}
    layers = _layers(network, config, {name: new for name, (_, new) in numbers.items()}, count, size)
    owners = [layer.owner for layer in layers]
    seen = moments_of(network, owners, batches, say) if needs_moments(spec) else {}
    report, kept = [], []
    for layer in layers:
        say(f"{layer.name}: {size} of {count} key heads stay")
        stay, error = _switch_off(network, layer, count, spec, seen.get(layer.owner))
        kept.append(stay)
        report.append(Pruned("heads", layer.name, count, size, error))
    expected = _answer(network, batches)
    for layer, stay in zip(layers, kept, strict=True):
        _cut(network, layer, stay, count, list(numbers.values()))
    for one in {id(c): c for c in (config, network.config)}.values():
        for name, (_, new) in numbers.items():
            setattr(one, name, new)
    found = _answer(network, batches)
    if found.shape != expected.shape or np.abs(found - expected).max() > TOLERANCE * np.abs(expected).max():
        raise InputError(
            f"the heads of {type(network).__name__} do not lie one after the other in its weights",
            where="--prune heads",
            hint="leave heads out",
        )
    return report


def _layers(network: Any, config: Any, changes: Mapping[str, int], count: int, size: int) -> list[_Layer]:
    stack, _ = stack_of(network, config)
    places: dict[str, list[tuple[str, int]]] = {}
    for name, moves in moved_by(network, config, changes).items():
        inside = name.startswith(f"{stack}.")
        for axis, old, new in moves:
            if not inside or old % count or new * count != old * size:
                raise InputError(f"{name} does not follow: {old} would become {new}", where="--prune heads")
            index = name[len(stack) + 1 :].split(".", 1)[0]
            places.setdefault(f"{stack}.{index}", []).append((name, axis))
    found = []
    for layer, some in places.items():
        readers = [place for place in some if reads_along(network, *place)]
        if len(readers) != 1:
            raise InputError(f"{len(readers)} weights read the heads, expected one", where=layer)
        found.append(_Layer(layer, tuple(some), readers[0]))
    if not found:
        raise InputError(
            f"{type(config).__name__} does not let {', '.join(f'{key} be {value}' for key, value in changes.items())}",
            where="--prune heads",
            hint="choose another number",
        )
    return found


def _rows(network: Any, place: tuple[str, int]) -> Array:
    """Return float32 [entries, anything] along an axis."""
    name, axis = place
    moved = np.moveaxis(network.get_parameter(name).detach().float().cpu().numpy(), axis, 0)
    return np.ascontiguousarray(moved.reshape(len(moved), -1))


def _switch_off(network: Any, layer: _Layer, count: int, spec: PruneSpec, moments: Any) -> tuple[Ints, float | None]:
    """Choose the heads that stay, set to zero what reads the others, refit the rest; shapes stay."""
    import torch

    name, axis = layer.reader
    weight = _rows(network, layer.reader)
    unit = len(weight) // count
    owner = network.get_submodule(layer.owner)
    bias = None if owner.bias is None else owner.bias.detach().float().cpu().numpy()
    gone = spec.amounts["heads"].of(count)
    if spec.importance == "magnitude" or moments is None:
        scores = magnitude([_rows(network, place).reshape(count, -1) for place in layer.places])
        stay = np.sort(np.argsort(-scores, kind="stable")[: count - gone])
    else:
        stay = choose(
            spec.importance, gone, slices=(), weight=weight, moments=moments, unit=unit, centred=bias is not None
        )
    kept = entries(stay, unit)
    fresh, shift, error = np.zeros_like(weight), bias, None
    fresh[kept] = weight[kept]
    if moments is not None:
        error = left_error(weight, moments, kept, centred=bias is not None, fitted=spec.compensate)
        if spec.compensate:
            fresh[kept], shift = refit(weight, bias, moments, kept)
    parameter = network.get_parameter(name)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(np.moveaxis(fresh, 0, axis))))
        if owner.bias is not None and shift is not None:
            owner.bias.copy_(torch.from_numpy(shift))
    return stay, error


def _cut(network: Any, layer: _Layer, stay: Ints, count: int, numbers: Sequence[tuple[int, int]]) -> None:
    for name, axis in layer.places:
        unit = network.get_parameter(name).shape[axis] // count
        take(network, name, axis, entries(stay, unit))
    for module in network.get_submodule(layer.name).modules():
        for word, value in list(vars(module).items()):
            known = [new for old, new in numbers if "heads" in word and value == old]
            if known and type(value) is int:
                setattr(module, word, known[0])


def _answer(network: Any, batches: Sequence[Batch]) -> Array:
    import torch

    with torch.inference_mode():
        answer: Array = network(**{name: one[:2] for name, one in batches[0].items()})[0].float().cpu().numpy()
    return answer
