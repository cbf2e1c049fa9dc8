"""What a page takes from the code is what the code says now."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.load.source.recipe import all_recipes
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Measurements
from onnxopt.rewrite.registry import catalogue
from tools.docs import api, blocks, docstrings, errors, layout, passes, recipes, records
from tools.docs.__main__ import PAGES, fresh

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_fresh(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == fresh(name, text), "run `make catalogue`"


def test_a_stale_part_is_seen() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert fresh("docs/models.md", text.replace("| `minilm` |", "| `maxilm` |")) == text


def test_the_tables_have_every_pass_and_every_recipe() -> None:
    assert all(f"`{name}`" in passes.overview() for name in catalogue())
    assert all(f"`{name}`" in recipes.recipes_table() for name in all_recipes())


def test_every_pass_has_a_place_of_its_own() -> None:
    pages = {stage: passes.stage_page(stage) for stage in passes.STAGES}
    for name, step in catalogue().items():
        page = pages[step.stage.split("/")[0]]
        assert f'<a id="{name}">' in page or f"# `{name}`\n" in page
    assert "```text\nx ─ Gelu ─ y\n```" in pages["fuse"]  # diagrams stay diagrams


def test_every_public_name_has_a_docstring_and_a_place() -> None:
    grouped = [name for names in api.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(onnxopt.__all__)
    assert set(api.FOR_PASSES) <= set(importlib.import_module("onnxopt.rewrite").__all__)
    page = api.public_face()
    for name in grouped:
        assert f"### {name}\n" in page
        assert docstrings.read(getattr(onnxopt, name)).summary, name


def test_public_names_are_things_and_not_the_modules_they_come_from() -> None:
    importlib.import_module("onnxopt.cli.serving")  # imports what `placement` is made of
    for name in onnxopt.__all__:
        assert callable(getattr(onnxopt, name)), name


def test_a_class_says_what_it_is_made_of() -> None:
    page = api.public_face()
    for name in ("Session", "Batcher", "Generator", "FixedShapes"):
        section = page.split(f"### {name}\n")[1].split("\n### ")[0].split("\n#### ")[0]
        assert "**Args**" in section


def test_a_signature_takes_a_line_per_parameter_when_it_is_long() -> None:
    def short(self: object, path: str, *, limit: int = 3) -> bool:
        """Say something."""
        return bool(self or path or limit)

    assert api.signature_of("a.short", short) == "a.short(path: str, *, limit: int = 3) -> bool"
    long = api.signature_of("onnxopt.optimize", onnxopt.optimize)
    assert long.startswith("onnxopt.optimize(\n    source: str | Path,\n    *,\n")
    assert long.endswith("\n) -> Artifact")


@pytest.mark.parametrize("kind", [Manifest, Measurements])
def test_every_field_of_a_record_is_described(kind: type) -> None:
    assert "|  |" not in records.schema(kind)


def test_a_schema_names_each_record_once_and_says_what_json_has() -> None:
    text = records.manifest()
    assert text.count("### TensorSpec\n") == 1
    assert "| `worst_absolute_error` | `float` |" in text
    assert "`seconds`" not in text.split("### PassRecord\n")[1].split("###")[0]  # it is never written
    assert "<code>DecodingRecord &#124; null</code>" in text
    assert "### TensorSpec" not in records.measurements()  # told with the manifest


def test_errors_have_their_exit_codes() -> None:
    assert "| `ProofError` | 1 |" in errors.errors_table()
    assert "| `ExportError` | 2 |" in errors.errors_table()
    assert "BusyError" not in errors.errors_table()


def test_the_layout_has_every_file_of_the_machine() -> None:
    text = layout.rooms()
    for path in (ROOT / "onnxopt").rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"} and not {"passes", "models", "templates"} & set(path.parts):
            assert f"`{path.name}`" in text
    assert "## `passes/fuse/`" in text


def test_a_block_without_marks_is_an_error() -> None:
    assert blocks.fill("<!-- a -->\nold\n<!-- /a -->", "a", "new") == "<!-- a -->\n\nnew\n\n<!-- /a -->"
    with pytest.raises(InputError, match="marks"):
        blocks.fill("nothing here", "a", "new")


def test_cells_keep_their_table() -> None:
    assert blocks.cell("max|a - b|\n of <x>") == "max\\|a - b\\| of &lt;x>"
    assert blocks.cell("`a|b` and x_y") == "<code>a&#124;b</code> and x\\_y"
    assert blocks.code("a_b") == "`a_b`"
    assert blocks.code("") == ""


def test_a_docstring_is_read_in_its_parts() -> None:
    found = docstrings.parse(
        """Do a thing.

        It is done like this::

            x ─ y

        And then.

        Args:
            one: the first,
                on two lines.
            *rest: what is left.

        Returns:
            What came out.

        Raises:
            ValueError: never.
        """
    )
    assert found.summary == "Do a thing."
    assert found.body == "It is done like this:\n\n```text\nx ─ y\n```\n\nAnd then."
    assert found.items("Args") == {"one": "the first, on two lines.", "*rest": "what is left."}
    assert found.items("Returns") == {"": "What came out."}
    assert docstrings.described(found).endswith("**Raises**\n\n* `ValueError`: never.")
