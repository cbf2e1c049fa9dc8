"""Load any source: a checkpoint is exported, a file is checked and read."""

from __future__ import annotations

from onnxopt.errors import InputError
from onnxopt.load.export.export import Exporter, export
from onnxopt.load.export.torch_model import Logits
from onnxopt.load.given import Given
from onnxopt.load.loaded import Loaded
from onnxopt.load.onnx_file import load_onnx
from onnxopt.load.source.source import Source
from onnxopt.records.events import Event, Listener


def load(
    source: Source,
    *,
    task: str | None = None,
    with_pooling: bool = True,
    with_cache: bool = True,
    logits: Logits = "last",
    exporter: Exporter = "auto",
    without: str = "",
    given: Given | None = None,
    progress: Listener | None = None,
) -> Loaded:
    """Export a checkpoint or import an .onnx file.

    Args:
        source: from `onnxopt.load.source.source.resolve`.
        task: transformers task name.
        with_pooling: add the sentence embedding when the checkpoint describes one.
        with_cache: give a language model inputs and outputs for the keys and values that it has seen.
        logits: with a cache, whether `logits` are those of the `last` position or of `all`.
        exporter: which exporter.
        without: inputs that are left out, separated by commas.
        given: what the user says of an .onnx file.
        progress: told what happens.
    """

    def say(step: str) -> None:
        if progress is not None:
            progress(Event("load", step))

    if source.kind == "onnx" and source.path is not None:
        if task is not None:
            raise InputError("a task cannot be chosen for an .onnx file", where=str(source.path), hint="drop --task")
        if without:
            raise InputError("an .onnx file keeps its inputs", where=str(source.path), hint="drop --without")
        return load_onnx(source.path, given=given, progress=say)
    return export(
        source,
        task=task,
        with_pooling=with_pooling,
        with_cache=with_cache,
        logits=logits,
        without=names_in(without),
        exporter=exporter,
        progress=say,
    )


def names_in(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
