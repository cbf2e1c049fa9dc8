"""What the documents say can be done: links lead somewhere, commands and targets exist, code compiles."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from onnxopt.cli.shared import app
from tools.docs import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LONGEST_README = 250

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Give language and text of each block of code."""
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        yield found.group(1), found.group(2)


def options() -> dict[str, set[str]]:
    """Return the options of each command."""
    assert cli.commands()  # registers them
    group: Any = typer.main.get_command(app)
    return {
        name: {"--help", *(word for one in command.params for word in (*one.opts, *one.secondary_opts))}
        for name, command in group.commands.items()
    }


def test_the_readme_is_a_door_and_not_a_wall() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_front_door_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]


def test_every_page_is_reached_from_the_readme_or_the_index() -> None:
    door = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    missing = [page for page in PAGES[2:] if page.relative_to(ROOT).as_posix() not in door]
    assert {page.parent.name for page in missing} <= {"passes", "docs"}  # behind passes/index.md; the index itself


def test_commands_and_options_in_the_documents_exist() -> None:
    known = options()
    wrong = []
    for page in PAGES:
        for _, text in fences(page):
            for line in text.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:\$ )?(?:\.venv/bin/)?onnxopt ([a-z]+)(?=\s|$)(.*)", line.split("  #")[0])
                if not found:
                    continue
                command, rest = found.groups()
                bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", rest).partition(" | ")[0]  # of a pipe the first command
                given = set(re.findall(r"(?<=\s)(--?[a-z][\w-]*)", bare))
                if command not in known or not given <= known[command]:
                    wrong.append((page.name, line))
    assert not wrong


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        asked = re.findall(r"(?:^|`)make ([a-z][a-z-]+)(?=[`\s]|$)", text, re.MULTILINE)
        assert set(asked) <= targets, page


def test_every_target_is_phony() -> None:
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    declared = set(phony.group(1).replace("\\", " ").split())
    assert declared == set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_python_in_the_documents_compiles() -> None:
    for page in PAGES:
        if page.name == "api.md":
            continue  # signatures
        for language, text in fences(page):
            if language == "python":
                ast.parse(text)


def tables() -> list[tuple[str, str]]:
    """Return what writes a table and the page it is written to, as the Makefile has them."""
    return sorted(set(re.findall(r"-m (\S+) --table (\S+)", MAKEFILE)))


@pytest.mark.parametrize(("module", "page"), tables(), ids=[module for module, _ in tables()])
def test_tables_show_what_was_recorded(module: str, page: str) -> None:
    writer: Any = import_module(module)
    if hasattr(writer, "__path__"):  # a package is run by what lies in it
        writer = import_module(f"{module}.__main__")
    if module == "tests.census.run":
        (start, end), wanted = writer.MARKS, writer.table()
    elif module == "bench.headline":
        (start, end), wanted = writer.MARKS, writer.recorded()
    else:
        shared: Any = import_module("bench.table")
        (start, end) = getattr(writer, "MARKS", (shared.START, shared.END))
        wanted = getattr(writer, "render", shared.render)(json.loads(writer.RESULT.read_text(encoding="utf-8")))
    shown = (ROOT / page).read_text(encoding="utf-8").split(f"{start}\n")[1].split(end)[0]
    assert shown.strip() == wanted.strip(), f"run `python -m {module} --table {page}`"


def test_every_benchmark_has_a_page() -> None:
    pages = {page for _, page in tables()}
    assert {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs" / "benchmarks").glob("*.md")} <= pages


def test_messages_of_the_troubleshooting_page_are_said() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.split("## A model is refused")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "onnxopt").rglob("*.py"))
    assert messages
    assert not [said for said in messages if said.removesuffix("…").strip() not in source]
