"""The pages of the passes, from the docstrings of their files."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType

from onnxopt.pipeline.explain import describe_pass
from onnxopt.rewrite import Rewrite
from onnxopt.rewrite.registry import catalogue
from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import markdown, parse

STAGES = ("canonicalize", "fuse", "prune", "quantize", "lower")
_LABELLED = re.compile(r"^(Meets|Numerics|Source):[ \n]", re.MULTILINE)


def overview() -> str:
    """Return all passes as one table, each with a link to its place."""
    rows = [
        [
            f"[{code(step.name)}]({step.stage.split('/')[0]}.md#{step.name})",
            step.stage,
            cell(described.identity),
            cell(described.numerics),
        ]
        for step in catalogue().values()
        for described in [describe_pass(step)]
    ]
    return table(["pass", "stage", "before → after", "numerics"], rows)


def stage_page(stage: str) -> str:
    """Return the sections of the passes of one stage, a section per file; of `lower`, by target."""
    folders: defaultdict[str, list[type[Rewrite]]] = defaultdict(list)
    for step in catalogue().values():
        if step.stage.split("/")[0] == stage:
            folders[step.stage].append(step)
    parts: list[str] = []
    for folder, steps in folders.items():
        if len(folders) > 1:
            parts.append(f"## {folder}")
        files: defaultdict[str, list[type[Rewrite]]] = defaultdict(list)
        for step in steps:
            files[step.__module__].append(step)
        depth = 3 if len(folders) > 1 else 2
        parts += [_section(found, depth) for found in sorted(files.values(), key=lambda found: found[0].name)]
    return "\n\n".join(parts)


def _section(steps: Sequence[type[Rewrite]], depth: int) -> str:
    """Return what one file says of its passes."""
    module = inspect.getmodule(steps[0])
    if module is None:
        raise TypeError(f"{steps[0].name} has no module")
    title = " · ".join(f"`{step.name}`" for step in steps)
    # a title of one name is its own anchor
    anchors = "".join(f'<a id="{step.name}"></a>' for step in steps) if len(steps) > 1 else ""
    facts = [
        [
            code(step.name),
            cell(described.identity),
            cell(described.numerics),
            str(step.min_opset) if step.min_opset > 1 else "any",
        ]
        for step in steps
        for described in [describe_pass(step)]
    ]
    return "\n\n".join(
        [
            f"{'#' * depth} {title}",
            anchors + _prose(module),
            table(["pass", "before → after", "numerics", "opset"], facts),
            f"`{module.__name__.removeprefix('onnxopt.').replace('.', '/')}.py`",
        ]
    )


def _prose(module: ModuleType) -> str:
    """Return the docstring of a pass file: its diagrams, and its labelled parts as paragraphs."""
    documented = inspect.getdoc(module) or ""
    labels = list(_LABELLED.finditer(documented))
    head = parse(documented[: labels[0].start()] if labels else documented)
    parts = [head.summary, head.body]
    for index, found in enumerate(labels):
        end = labels[index + 1].start() if index + 1 < len(labels) else len(documented)
        said = " ".join(documented[found.end() : end].split())
        parts.append(f"**{found.group(1)}.** {markdown(said)}")
    return "\n\n".join(part for part in parts if part)
