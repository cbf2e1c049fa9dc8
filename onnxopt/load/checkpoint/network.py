"""Open the network of a checkpoint in torch, with its weights or made-up ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.errors import ExportError, InputError
from onnxopt.host.quiet import quiet
from onnxopt.load.checkpoint.folder import Checkpoint
from onnxopt.load.checkpoint.tasks import Task, model_class

RANDOM_SEED = 0


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

    common: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": torch.float32}
    if any(hasattr(part, "num_experts") or hasattr(part, "num_local_experts") for part in configs_of(config)):
        # each token looks its experts' weights up; the other ways call operators that no exporter knows, or loop
        # over the experts that the example happened to use
        common["experts_implementation"] = "batched_mm"
    config.use_cache = False
    for attempt in ("sdpa", "eager"):  # not every architecture has an sdpa form
        common["attn_implementation"] = attempt
        try:
            if checkpoint.source.weights == "random":
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(RANDOM_SEED)
                    return _made_up(checkpoint, config, kind, common), []
            return _from_files(checkpoint, config, kind, common)
        except ValueError as error:
            if attempt == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            raise InputError(f"the weights cannot be loaded: {error}", where=checkpoint.source.text) from error
        except Exception as error:
            raise InputError(f"the weights cannot be loaded: {error}", where=checkpoint.source.text) from error
    raise ExportError("no attention implementation works", where=checkpoint.source.text)


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
