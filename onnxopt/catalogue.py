"""Write the generated tables of the README: `python -m onnxopt.catalogue README.md`.

A table lies between `<!-- name -->` and `<!-- /name -->`; what stands between the markers is replaced.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.explain import describe_pass
from onnxopt.recipe import Recipe, SampleFolder, all_recipes
from onnxopt.registry import catalogue


def passes_table() -> str:
    """Return the passes as a Markdown table."""
    rows = ["| pass | stage | before → after | numerics |", "|---|---|---|---|"]
    for step in catalogue().values():
        described = describe_pass(step)
        identity = described.identity.replace("|", "\\|")
        rows.append(f"| `{described.name}` | {described.stage} | {identity} | {described.numerics} |")
    return "\n".join(rows)


def recipes_table() -> str:
    """Return the recipes as a Markdown table."""
    rows = ["| recipe | model | task | weights without the Hub | expected when fully fused |", "|---|---|---|---|---|"]
    for recipe in all_recipes().values():
        counts = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in recipe.expected.items())
        rows.append(f"| `{recipe.name}` | {recipe.source} | {recipe.task} | {_offline(recipe)} | {counts} |")
    return "\n".join(rows)


def _offline(recipe: Recipe) -> str:
    if isinstance(recipe.sample, SampleFolder):
        return "real, carried by onnxopt"
    if recipe.sample is not None:
        return f"real, from the package {recipe.sample.requirement.split('==')[0]}"
    return "random (`WEIGHTS=random`)" if recipe.architecture else "none"


def fill(text: str, name: str, table: str) -> str:
    """Replace what stands between the markers of a table.

    Raises:
        InputError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"no markers for the table {name!r}", hint=f"add <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found.group(1)}{table}\n{found.group(2)}", text)


def fill_all(text: str) -> str:
    """Replace every generated table of this module."""
    for name, table in (("passes", passes_table()), ("recipes", recipes_table())):
        text = fill(text, name, table)
    return text


def main(path: Path) -> None:
    """Rewrite a file in place."""
    path.write_text(fill_all(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
