"""Tables of a TOML file become options, or one line that says which word does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.road.options import LoadOptions, PackageOptions, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.road.tables import of_table


@dataclass(frozen=True)
class Whole:
    """Some tables.

    Attributes:
        name: what must be there.
        load: a table.
        tune: another, which may be left out.
    """

    name: str
    load: LoadOptions = LoadOptions()  # noqa: RUF009 - frozen
    tune: TuneOptions | None = None


@pytest.mark.parametrize(
    ("kind", "table", "made"),
    [
        (PackageOptions, {"target": "cuda", "workload": "2x3"}, PackageOptions("cuda", "2x3")),
        (PackageOptions, {"workload": ""}, PackageOptions()),
        (PrecisionOptions, {"budget": 1e-3, "calibration_samples": 9}, PrecisionOptions(1e-3, calibration_samples=9)),
        (PrecisionOptions, {"budget": 1, "keep": ""}, PrecisionOptions(1)),
        (PruneOptions, {"what": "heads=1", "compensate": False}, PruneOptions("heads=1", compensate=False)),
        (LoadOptions, {"axes": ["rows=8..64"]}, LoadOptions(axes=["rows=8..64"])),
        (LoadOptions, {"values": {"rate": 8000}, "feeds": "a.npz"}, LoadOptions(values={"rate": 8000}, feeds="a.npz")),
        (Whole, {"name": "x", "load": {"logits": "all"}}, Whole("x", LoadOptions(logits="all"))),
        (Whole, {"name": "x", "tune": {}}, Whole("x", tune=TuneOptions())),
    ],
)
def test_a_table_becomes_options(kind: type, table: dict[str, Any], made: object) -> None:
    assert of_table(kind, table, where="a.toml") == made


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "x", "nme": 1}, "a.toml: a recipe has no option 'nme'; it takes name, load, tune"),
        ({}, 'a.toml: a recipe names no name; write name = "…"'),
        ({"name": 3}, "a.toml: name is 3; write text"),
        ({"name": "x", "load": 3}, "a.toml: load is 3; write a table: [load]"),
        ({"name": "x", "load": {"logits": "first"}}, "a.toml: logits in [load] is 'first'; write 'last' or 'all'"),
        ({"name": "x", "load": {"with_cache": 1}}, "a.toml: with_cache in [load] is 1; write true or false"),
        ({"name": "x", "load": {"axes": [8]}}, "a.toml: axes in [load] is [8]; write a list of texts or a table"),
        ({"name": "x", "load": {"task": 2}}, "a.toml: task in [load] is 2; write text"),
        (
            {"name": "x", "tune": {"rate": 1}},
            "a.toml: [tune] has no option 'rate'; it takes measure, tune, retune, forms_from, require_speedup",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        of_table(Whole, table, where="a.toml")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("kind", "table", "said"),
    [
        (PrecisionOptions, {"budget": True}, "budget in [t] is True; write a number or text"),
        (PrecisionOptions, {"calibration_samples": True}, "calibration_samples in [t] is True; write a whole number"),
        (PruneOptions, {"align": 2.5}, "align in [t] is 2.5; write a whole number"),
        (
            PackageOptions,
            {"target": {"provider": "cpu"}},
            "target in [t] is {'provider': 'cpu'}; write 'cpu' or 'cuda' or 'tensorrt' or 'portable'",
        ),
    ],
)
def test_true_is_no_number_and_objects_are_not_for_tables(kind: type, table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        of_table(kind, table, where="a.toml", name="t")
    assert str(caught.value) == f"a.toml: {said}"
