"""A checkpoint that is opened to be changed or taught: its network, tokenizer and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.classes import fitting, infer_task
from onnxopt.load.checkpoint.folder import Checkpoint, load_config, read_checkpoint
from onnxopt.load.checkpoint.heads import require_head
from onnxopt.load.checkpoint.network import load_network
from onnxopt.load.checkpoint.pooling import build_head, read_pooling
from onnxopt.load.source.source import Source, resolve
from onnxopt.tasks.table import parse_task, trained_as
from onnxopt.tasks.task import Task


@dataclass(frozen=True)
class Opened:
    """A checkpoint in torch.

    Attributes:
        network: transformers' module, float32, in inference mode.
        config: its config.
        task: what it does.
        folder: where its files are.
        checkpoint: what was read.
        head: turns token features into an embedding; None without one.
    """

    network: Any
    config: Any
    task: Task
    folder: Path
    checkpoint: Checkpoint
    head: Any = None

    @property
    def parameters(self) -> int:
        """How many parameters."""
        return sum(one.numel() for one in self.network.parameters())

    @property
    def pad(self) -> int:
        """Id at padded positions."""
        found = getattr(self.config, "pad_token_id", None)
        return found if isinstance(found, int) and found >= 0 else 0


def open_checkpoint(named: str | Source, task: str = "") -> Opened:
    """Load what a user names.

    Args:
        named: sample, recipe, Hub id or folder, or what was found under such a name.
        task: transformers task name; found when empty.

    Raises:
        InputError: when it is no checkpoint of text with weights.
    """
    source = resolve(named) if isinstance(named, str) else named
    text = source.text
    if source.weights == "random":
        raise InputError(
            "weights that are made up are neither pruned nor taught", where=text, hint="drop --weights random"
        )
    if source.kind == "onnx" or source.path is None:
        raise InputError("is no checkpoint", where=text, hint="name a folder with config.json and *.safetensors")
    checkpoint = read_checkpoint(source)
    config = load_config(checkpoint)
    asked = task or (source.recipe.task if source.recipe else "")
    kind = trained_as(fitting(parse_task(asked), config) if asked else infer_task(config, where=text))
    if not kind.reads_text:
        raise InputError(f"the task is {kind.name}; only models of text are supported here", where=text)
    require_head(checkpoint, kind)
    network = load_network(checkpoint, config, kind)
    pooling = read_pooling(source.path)[0] if kind.name == "feature-extraction" else None
    return Opened(network, config, kind, source.path, checkpoint, build_head(pooling) if pooling else None)


def answers(
    network: Any, head: Any, feeds: Mapping[str, Any], *, hidden: bool = False, attention: bool = False
) -> dict[str, Any]:
    """Run a network and return what losses read: `logits`, `hidden` (a tuple), `attention`, `embedding`, `last`."""
    asked = {"output_attentions": True} if attention else {}
    result = network(**feeds, output_hidden_states=hidden, return_dict=True, **asked)
    found: dict[str, Any] = {}
    if result.get("logits") is not None:
        found["logits"] = result["logits"]
    if result.get("last_hidden_state") is not None:
        found["last"] = result["last_hidden_state"]
        if head is not None:
            found["embedding"] = head(found["last"], feeds["attention_mask"])
    if hidden:
        found["hidden"] = result["hidden_states"]
    if attention:
        found["attention"] = result["attentions"][-1].transpose(1, 2)  # [rows, queries, heads, keys]
    return found
