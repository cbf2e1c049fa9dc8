from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.catalogue import fill, fill_all, passes_table, recipes_table
from onnxopt.errors import InputError
from onnxopt.recipe import all_recipes
from onnxopt.registry import catalogue

README = Path(__file__).parents[2] / "README.md"


def test_the_tables_of_the_readme_are_fresh() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == fill_all(text), "run `make catalogue`"


def test_the_tables_have_every_pass_and_every_recipe() -> None:
    assert all(f"`{name}`" in passes_table() for name in catalogue())
    assert all(f"`{name}`" in recipes_table() for name in all_recipes())


def test_a_table_without_markers_is_an_error() -> None:
    assert fill("<!-- a -->\nold\n<!-- /a -->", "a", "new") == "<!-- a -->\nnew\n<!-- /a -->"
    with pytest.raises(InputError, match="markers"):
        fill("nothing here", "a", "new")
