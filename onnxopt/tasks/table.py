"""The table of tasks.

transformers' own tables (one per head, from model type to class) say which classes exist; nothing here lists model
types. The entries stand in a file for each kind of thing that a model is given. `onnxopt tasks` prints them all.
"""

from __future__ import annotations

from onnxopt.errors import InputError
from onnxopt.tasks.image import IMAGE_TASKS
from onnxopt.tasks.several import SEVERAL_TASKS
from onnxopt.tasks.sound import SOUND_TASKS
from onnxopt.tasks.task import Task
from onnxopt.tasks.text import TEXT_TASKS

TASKS: dict[str, Task] = {task.name: task for task in (*TEXT_TASKS, *SOUND_TASKS, *IMAGE_TASKS, *SEVERAL_TASKS)}
_NAMES = {synonym: task.name for task in TASKS.values() for synonym in (task.name, *task.synonyms)}


def trained_as(task: Task) -> Task:
    """Return the task that a model is trained as: of several that share their classes the one that nobody asks for."""
    own = (other for other in TASKS.values() if not other.asked and task.head in other.heads)
    return next((other.narrowed(task.head) for other in own), task) if task.asked else task


def parse_task(text: str) -> Task:
    """Return the task of that name, or of a synonym; raises InputError that lists the names when there is none."""
    task = TASKS.get(_NAMES.get(text.strip().lower(), ""))
    if task is None:
        raise InputError(
            f"task {text!r} is not supported", hint=f"use one of {', '.join(TASKS)}; `onnxopt tasks` says what they do"
        )
    return task
