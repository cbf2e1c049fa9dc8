"""Tell by the names of its weights whether a checkpoint has the head of a task: in no time, without torch.

transformers gives a head that is not in the files weights as it draws them, and says so in a warning only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from onnxopt.errors import InputError, word
from onnxopt.load.checkpoint.folder import Checkpoint
from onnxopt.load.checkpoint.stored import header_of
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import Task

# How the names of the modules of a head begin, each with a dot behind it: one of them is in every class but Perceiver's
# of the tables of transformers 5.
_CLASSIFIERS = (
    *("classifier", "classification_head", "score", "head", "logits_proj", "fc.", "cls_classifier"),
    "sequence_summary",
)
HEADS: Mapping[str, tuple[str, ...]] = {
    "text-classification": _CLASSIFIERS,
    "text-ranking": _CLASSIFIERS,
    "zero-shot-classification": _CLASSIFIERS,
    "token-classification": _CLASSIFIERS,
    "image-classification": _CLASSIFIERS,
    "question-answering": (
        *("qa_outputs", "qa_classifier", "start_logits", "end_logits", "classifier", "score", "answer_head"),
        "splinter_qass",
    ),
    "fill-mask": (
        "cls",
        "lm_head",
        "predictions",
        "vocab_transform",
        "generator",
        "mlm",
        "head",
        "decoder",
        "pred_layer",
    ),
}


def require_head(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse a task whose head is not among the weights of a checkpoint.

    What has no entry in `HEADS` is not looked for: the head of a decoder is often its table of tokens. What was saved
    by the class of the task has it. What gets past this is found where the network is opened.

    Args:
        checkpoint: with real weights, or made-up ones, of which nothing is asked.
        task: what it is to do.

    Raises:
        InputError: it has no such head, or its weights cannot be read.
    """
    saved = next(iter(checkpoint.settings.get("architectures") or ()), "")
    words = HEADS.get(task.name, ())
    if not words or not isinstance(saved, str) or not saved or not checkpoint.weights:
        return
    if checkpoint.source.trust_remote_code:  # its own code has names of its own
        return
    if saved.endswith(tuple(head.ending for head in task.heads)):
        return
    parts = {f"{part}." for name in weight_names(checkpoint.weights) for part in name.split(".")}
    if any(part.startswith(words) for part in parts):
        return
    able = ", ".join(other for other in _tasks_of(saved, task) if other != task.name)
    raise InputError(
        f"the checkpoint has no weights for {task.name}: it was saved as {word(saved)}, and no head like {words[0]} is "
        "in its files",
        where=checkpoint.source.text,
        hint=f"name a task that it has with --task{f' ({able})' if able else ''}, or try the structure with "
        "--weights random",
    )


def weight_names(files: Iterable[Path]) -> set[str]:
    """Return the names of all tensors in safetensors files, from their headers alone.

    Raises:
        InputError: a file is none of that format.
    """
    return {name for path in files for name in header_of(path)[0]}


def _tasks_of(saved: str, asked: Task) -> list[str]:
    """Return the tasks of a class by the end of its name; features, of text or of images, are what every class has."""
    named = [
        task.name
        for task in TASKS.values()
        if not task.asked and any(head.ending and saved.endswith(head.ending) for head in task.heads)
    ]
    named += ["text-generation"] if saved.endswith("LMHeadModel") else []
    return [*named, "image-feature-extraction" if asked.takes == ("image",) else "feature-extraction"]
