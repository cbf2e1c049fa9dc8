"""Open the network of a checkpoint in torch, with its weights or made-up ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxopt.errors import ExportError, InputError
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.classes import model_class
from onnxopt.load.checkpoint.folder import Checkpoint
from onnxopt.load.checkpoint.mapped import MappedWeights, laying
from onnxopt.load.checkpoint.stored import is_large, weight_files_of
from onnxopt.tasks.task import Task

RANDOM_SEED = 0

logger = logging.getLogger(__name__)


def load_network(checkpoint: Checkpoint, config: Any, task: Task) -> Any:
    """Load a checkpoint in float32 as transformers' own module, for inference.

    Parts of the body that it lacks are as drawn: what a pooling of its own is not asked for is often left out.

    Raises:
        InputError: when the weights are broken, of another architecture, or without the head of the task.
    """
    kind = model_class(config, task, where=checkpoint.source.text)
    with quiet():
        network, missing = build_network(checkpoint, config, kind)
    if lacking := _of_head(network, missing):
        raise InputError(
            f"the checkpoint has no weights for {', '.join(lacking[:3])}, the head of {task.name}",
            where=checkpoint.source.text,
            hint="name the task that it was trained for",
        )
    return network.eval()


def _of_head(network: Any, names: Sequence[str]) -> list[str]:
    """Return those of some parameters that are not in the body of a network; a body alone has no head."""
    if getattr(network, "base_model", network) is network:
        return []
    return [name for name in names if not name.startswith(f"{network.base_model_prefix}.")]


def build_network(checkpoint: Checkpoint, config: Any, kind: Any) -> tuple[Any, list[str]]:
    """Return the network and the names of parameters that the checkpoint does not have."""
    import torch

    def make(common: Mapping[str, Any]) -> tuple[Any, list[str]]:
        if checkpoint.source.weights != "random":
            return _from_files(checkpoint, config, kind, common)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return _made_up(checkpoint, config, kind, common), []

    return _with_attention(make, config, where=checkpoint.source.text)


def mapped_network(checkpoint: Checkpoint, config: Any, kind: Any) -> tuple[Any, list[str], MappedWeights] | None:
    """Return the network of a large checkpoint with its weights in their files, as `build_network` does with its own.

    Returns:
        The network, the names of parameters that the checkpoint does not have, and where the others lie; None for a
        checkpoint that is not large, or that does not load so: it is loaded as ever then.
    """
    more = getattr(type(config), "extra_files", ())  # files beside the weights, which transformers adds by itself
    if not is_large(checkpoint) or checkpoint.folder is None or more:
        return None
    try:
        weights = MappedWeights(weight_files_of(checkpoint.folder))

        def make(common: Mapping[str, Any]) -> tuple[Any, list[str]]:
            network, report = kind.from_pretrained(
                None, config=config, state_dict=dict(weights.state), output_loading_info=True, **common
            )
            return network, sorted(report["missing_keys"])

        with laying(weights):
            network, missing = _with_attention(make, config, where=checkpoint.source.text)
        weights.settle(network)
    except Exception as error:  # noqa: BLE001  whatever is wrong with it is said where it is loaded as ever
        logger.info("the weights are loaded into memory: %s", error)
        return None
    return network, missing, weights


def _with_attention(
    make: Callable[[Mapping[str, Any]], tuple[Any, list[str]]], config: Any, *, where: str
) -> tuple[Any, list[str]]:
    """Return what a maker makes with the fastest attention that an architecture has."""
    import torch

    common: dict[str, Any] = {"dtype": torch.float32}
    if any(hasattr(part, "num_experts") or hasattr(part, "num_local_experts") for part in configs_of(config)):
        # each token looks its experts' weights up; the other ways call operators that no exporter knows, or loop
        # over the experts that the example happened to use
        common["experts_implementation"] = "batched_mm"
    config.use_cache = False
    for attempt in ("sdpa", "eager"):  # not every architecture has an sdpa form
        common["attn_implementation"] = attempt
        try:
            return make(common)
        except ValueError as error:
            if attempt == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            raise InputError(f"the weights cannot be loaded: {error}", where=where) from error
        except ImportError as error:
            said = " ".join(str(error).split())
            hint = "install the library that it names beside onnxopt"
            raise InputError(f"the model cannot be built: {said}", where=where, hint=hint) from error
        except Exception as error:
            raise InputError(f"the weights cannot be loaded: {error}", where=where) from error
    raise ExportError("no attention implementation works", where=where)


def configs_of(config: Any) -> list[Any]:
    """Return a config and that of its text part."""
    return [config, *([config.get_text_config()] if hasattr(config, "get_text_config") else [])]


def _made_up(checkpoint: Checkpoint, config: Any, kind: Any, common: Mapping[str, Any]) -> Any:
    """Return the network with weights as its own initialisation draws them."""
    if hasattr(kind, "from_config"):  # an Auto class, for a checkpoint with its own code
        return kind.from_config(config, trust_remote_code=checkpoint.source.trust_remote_code, **common)
    return kind._from_config(config, **common)  # noqa: SLF001  the only constructor that takes dtype and attention


def _from_files(checkpoint: Checkpoint, config: Any, kind: Any, common: Mapping[str, Any]) -> tuple[Any, list[str]]:
    network, report = kind.from_pretrained(
        checkpoint.folder,
        config=config,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=checkpoint.source.trust_remote_code,
        output_loading_info=True,
        **common,
    )
    return network, sorted(report["missing_keys"])
