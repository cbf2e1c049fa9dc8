"""The table of the recipes."""

from __future__ import annotations

from onnxopt.load.source.recipe import Recipe, SampleFolder, all_recipes
from tools.docs.blocks import code, table


def recipes_table() -> str:
    """Return the recipes as a table: source, task, where real weights are, what a full fusion finds."""
    rows = [
        [code(recipe.name), recipe.source, recipe.task, _offline(recipe), _expected(recipe)]
        for recipe in all_recipes().values()
    ]
    return table(["recipe", "model", "task", "weights without the Hub", "expected when fully fused"], rows)


def _expected(recipe: Recipe) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in recipe.expected.items())


def _offline(recipe: Recipe) -> str:
    if isinstance(recipe.sample, SampleFolder):
        return "real, carried by onnxopt"
    if recipe.sample is not None:
        return f"real, from the package {recipe.sample.requirement.split('==')[0]}"
    return "random (`--weights random`)" if recipe.architecture else "none"
