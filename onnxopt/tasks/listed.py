"""The table of tasks as people and programs read it."""

from __future__ import annotations

from typing import Literal

from onnxopt.records.record import Record
from onnxopt.tasks.table import TASKS
from onnxopt.tasks.task import Answer, Given, Task


class ListedTask(Record):
    """A task.

    Attributes:
        name: transformers' name of it.
        summary: what it is good for.
        takes: what a person gives for one answer.
        answer: the kind of the result.
        outputs: of the graph, by the class of transformers that has them.
        command: which command tries it.
        example: what is written behind the command and the folder.
        endpoint: where `serve` answers it; empty where tensors alone are served.
        synonyms: other names.
    """

    name: str
    summary: str
    takes: tuple[Given, ...]
    answer: Answer
    outputs: dict[str, tuple[str, ...]]
    command: Literal["run", "generate"]
    example: str
    endpoint: str
    synonyms: tuple[str, ...]


def listed() -> tuple[ListedTask, ...]:
    """Return all tasks in the order of the table."""
    return tuple(
        ListedTask(
            name=task.name,
            summary=task.summary,
            takes=task.takes,
            answer=task.answer,
            outputs={head.auto_class: head.outputs for head in task.heads},
            command=command_of(task),
            example=task.example,
            endpoint=task.endpoint,
            synonyms=task.synonyms,
        )
        for task in TASKS.values()
    )


def command_of(task: Task) -> Literal["run", "generate"]:
    """Return the command that tries a model for a task: `generate` where tokens are written, else `run`."""
    return "generate" if task.answer == "continuations" else "run"
