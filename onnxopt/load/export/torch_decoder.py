"""Give a decoder that keeps keys and values a flat face, and see what becomes of texts that grow."""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from dataclasses import replace
from typing import Any, Literal

from onnxopt.graph.cache import PARTS, Cache, CacheLayer
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.mapped import MappedWeights
from onnxopt.load.checkpoint.network import configs_of
from onnxopt.load.export.shapes import shapes_alone
from onnxopt.spec import TensorSpec

logger = logging.getLogger(__name__)


def find_cache(network: Any, weights: MappedWeights | None) -> Cache | None:
    """Return what the model keeps of tokens it has seen, found by running it; None when it keeps other states too."""
    import torch
    from transformers import DynamicCache

    if "past_key_values" not in inspect.signature(network.forward).parameters:
        return None
    ids = torch.ones(2, 3, dtype=torch.int64)

    def run() -> Any:
        return network(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, return_dict=True)

    try:
        with quiet():
            kept = shapes_alone(network, weights, run)
    except Exception:  # noqa: BLE001  a model with states of its own says so in its own way
        return None
    layers = []
    for index, layer in enumerate(getattr(kept.get("past_key_values"), "layers", ())):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            continue  # a layer that shares the cache of another
        if keys.ndim != 4 or keys.shape[:3] != values.shape[:3] or tuple(keys.shape[::2]) != tuple(ids.shape):
            return None
        dtype = str(keys.dtype).removeprefix("torch.")
        layers.append(CacheLayer(index, keys.shape[1], keys.shape[3], values.shape[3], dtype))
    return Cache(tuple(layers)) if layers and not _has_other_states(network) else None


def _has_other_states(network: Any) -> bool:
    """Tell whether layers keep something else than keys and values, by what their config calls them."""
    kinds = set(getattr(configs_of(network.config)[-1], "layer_types", None) or ())
    return any("attention" not in kind or "linear" in kind for kind in kinds)


def over_all(spec: TensorSpec) -> TensorSpec:
    """Let the mask speak of past and new tokens; ids are of new ones."""
    return replace(spec, axes=("batch", "total_sequence")) if spec.name == "attention_mask" else spec


def positions_in(mask: Any, first: int) -> Any:
    """Return int64 positions like a mask: those of its ones in their order, from `first` on."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return positions + first if first else positions  # an addition of nothing would stand in the graph


def flatten_with_cache(
    network: Any, inputs: tuple[TensorSpec, ...], cache: Cache, logits: Literal["last", "all"], first: int = 0
) -> Any:
    """Return a module that takes ids, mask and past, and gives logits and present, as tensors.

    Positions are counted in the mask, so that a row's first real token is at the first position wherever its padding
    lies. The cache keeps every position, also where a layer looks at a window only: the mask knows the window.

    Args:
        network: transformers' module.
        inputs: besides the cache.
        cache: what it keeps.
        logits: those of the last position, or of all.
        first: where positions begin.
    """
    import torch
    from transformers import DynamicCache

    names = tuple(spec.name for spec in inputs)
    accepted = inspect.signature(network.forward).parameters
    counts_positions = "position_ids" in accepted
    kept = {"logits_to_keep": 1} if logits == "last" and "logits_to_keep" in accepted else {}

    class FlatWithCache(torch.nn.Module):
        """The network behind positional tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            feeds: dict[str, Any] = dict(zip(names, tensors[: len(names)], strict=True))
            past = iter(tensors[len(names) :])
            seen = DynamicCache()
            for layer in cache.layers:
                seen.update(next(past), next(past), layer.index)
            if counts_positions:
                positions = positions_in(feeds["attention_mask"], first)
                feeds["position_ids"] = positions[:, -feeds["input_ids"].shape[1] :]
            result = self.network(**feeds, **kept, past_key_values=seen, use_cache=True, return_dict=True)
            rows = result.logits if kept or logits == "all" else result.logits[:, -1:]
            layers = result.past_key_values.layers
            present = (getattr(layers[layer.index], f"{part}s") for layer in cache.layers for part in PARTS)
            return (rows, *present)

    return FlatWithCache().eval()


def rereads(network: Any, length: int) -> bool:
    """Tell whether transformers drops the cache of a text that grows beyond a length, and reads all of it anew.

    Args:
        network: transformers' module; its `prepare_inputs_for_generation` is asked, with a cache of nothing but length.
        length: tokens in the cache.
    """
    import torch
    from transformers import DynamicCache

    seen = DynamicCache()
    seen.update(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1), 0)
    ids = torch.zeros(1, length + 1, dtype=torch.int64)
    options = {"past_key_values": seen, "use_cache": True, "next_sequence_length": 1}
    try:
        given = network.prepare_inputs_for_generation(ids, attention_mask=torch.ones_like(ids), **options)
    except Exception:  # noqa: BLE001  a model with a way of its own; reading anew is never wrong, only slower
        return True
    return int(given["input_ids"].shape[1]) == length + 1


def grows_beyond(network: Any, longest: int) -> bool:
    """Tell whether every token beyond a length changes how the rotary embeddings turn those before it.

    Dynamic NTK does so beyond the positions that a config speaks of, where an exported graph ends: no exporter follows
    tables that hang on the largest position so far.

    Args:
        network: transformers' module; copies of the parts in it with frequencies (`inv_freq`) are asked.
        longest: the most tokens that the config speaks of.
    """
    import torch

    def tables(part: Any, length: int) -> Any:
        # a few positions and the last one, which is what transformers takes for the length
        positions = torch.tensor([[1, longest // 2, longest - 1, length - 1]])
        return torch.stack([table[0, :-1] for table in part(torch.zeros(1, 1, 1), positions)])

    for part in (copy.deepcopy(one) for one in network.modules() if hasattr(one, "inv_freq")):
        try:
            with torch.inference_mode():
                found = [tables(part, longest + more) for more in range(3)]
        except Exception:  # noqa: BLE001  a part that is called in a way of its own
            logger.info("%s is not asked for tables of positions", type(part).__name__)
            continue
        if all(not torch.equal(one, other) for one, other in itertools.pairwise(found)):
            return True
    return False
