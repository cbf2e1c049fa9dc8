"""Tasks of models that take several kinds of things at once: an image and a text, a page and its words."""

from __future__ import annotations

from onnxopt.tasks.task import Task

SEVERAL_TASKS: tuple[Task, ...] = ()
