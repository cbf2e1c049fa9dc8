from typing import Any

import numpy as np
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(9)
CONSTANTS: dict[str, Array] = {
    "table": GENERATOR.standard_normal((9, 4)).astype(np.float32),
    "deep": GENERATOR.standard_normal((2, 9, 4)).astype(np.float32),
    "numbers": np.arange(9, dtype=np.int64).reshape(1, 1, 9),
    "flat": np.arange(9, dtype=np.int64),
    "later": np.arange(1, 10, dtype=np.int64),
    "more": np.arange(9, dtype=np.int64).reshape(1, 1, 1, 9),
    "depth": np.array(9, np.int64),
    "switch": np.array([0, 1], np.float32),
    "signs": np.array([-1, 1], np.float32),
    "one": np.array(1, np.float32),
    "nought": np.array(0, np.float32),
}
BEYOND = (-20, -10, -9, -5, -1, 0, 1, 7, 8, 9, 10, 30)
EQUAL = "h = Equal(i, numbers) f = Cast<to=1>(h) y = MatMul(f, table)"
SPELLINGS = {
    "JAX": ("int64[batch,sequence,1]", EQUAL),
    "a row of numbers": ("int64[batch,sequence,1]", EQUAL.replace("numbers", "flat")),
    "numbers first": ("int64[sequence,1]", "h = Equal(flat, i) f = Cast<to=1>(h) y = MatMul(f, table)"),
    "chosen": ("int64[batch,sequence,1]", "h = Equal(i, numbers) f = Where(h, one, nought) y = MatMul(f, table)"),
    "OneHot": ("int64[batch,sequence]", "f = OneHot(i, depth, switch) y = MatMul(f, table)"),
    "OneHot of a list": ("int64[sequence]", "f = OneHot<axis=1>(i, depth, switch) y = MatMul(f, table)"),
}


def run(declared: str, body: str, **given: Array) -> Outcome:
    known = CONSTANTS | given
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    weights = {name: array for name, array in known.items() if name in words}
    outputs = "(float y, float z)" if " z = " in body else "(float y)"
    outcome = run_passes(f"g ({declared} i) => {outputs} {{ {body} }}", "fuse-one-hot", "fuse-one-hot", weights=weights)
    assert outcome.rolled_back == []
    return outcome


@pytest.mark.parametrize(("declared", "body"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_looks_rows_up(declared: str, body: str) -> None:
    outcome = run(declared, body)
    assert "MatMul" not in outcome.ops
    assert outcome.ops[-1] == "Gather"
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    shape = {"sequence": (12,), "batch,sequence": (2, 6), "sequence,1": (12, 1), "batch,sequence,1": (3, 4, 1)}
    index = np.array(BEYOND).reshape(shape[declared[6:-1]])
    assert outcome.worst_error_at(1, 1, i=index) == 0


def test_narrow_integers_stay_narrow() -> None:
    outcome = run("int32[batch,sequence,1]", EQUAL.replace("numbers", "narrow"), narrow=np.arange(9, dtype=np.int32))
    assert outcome.entries[0].applied == 1
    assert outcome.worst_error_at(1, 1, i=np.array(BEYOND, np.int32).reshape(2, 6, 1)) == 0


def test_both_widths_of_float() -> None:
    body = EQUAL.replace("to=1", "to=11").replace("table", "wide")
    outcome = run_passes(
        f"g (int64[batch,sequence,1] i) => (double y) {{ {body} }}",
        "fuse-one-hot",
        weights={"wide": CONSTANTS["table"].astype(np.float64), "numbers": CONSTANTS["numbers"]},
    )
    assert outcome.entry.applied == 1
    assert outcome.worst_error_at(2, 3) == 0


REFUSED = {
    "the table is shared": ("int64[batch,sequence,1]", EQUAL + " z = Neg(table)"),
    "the table is not a matrix": ("int64[2,5,1]", EQUAL.replace("table", "deep")),
    "the last axis of the index is not known to be 1": ("int64[batch,sequence,9]", EQUAL),
    "the numbers give the result its axes": ("int64[batch,sequence,1]", EQUAL.replace("numbers", "more")),
    "the vectors hold other numbers than 0 and 1": (
        "int64[batch,sequence]",
        "f = OneHot(i, depth, signs) y = MatMul(f, table)",
    ),
    "the vectors do not lie along the last axis": (
        "int64[9,4]",
        "f = OneHot<axis=0>(i, depth, switch) y = MatMul(f, low)",
    ),
    "the table holds infinities, times zero no number": ("int64[batch,sequence,1]", EQUAL.replace("table", "endless")),
    "the index is INT8; Gather takes int32 or int64": ("int8[batch,sequence,1]", EQUAL.replace("numbers", "bytes")),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED)
def test_says_why_it_holds_back(reason: str, case: tuple[str, str]) -> None:
    table = CONSTANTS["table"]
    more: dict[str, Any] = {
        "low": table[:4],
        "endless": np.where(table == table[0, 0], np.inf, table).astype(np.float32),
        "bytes": np.arange(9, dtype=np.int8),
    }
    assert run(*case, **more).entries[0].refused[0].reason == reason


def test_chosen_numbers_with_more_axes_stay() -> None:
    body = SPELLINGS["chosen"][1].replace("one", "many")
    outcome = run("int64[batch,sequence,1]", body, many=np.ones((1, 1, 1, 1), np.float32))
    assert outcome.entry.applied == 0
    assert outcome.rolled_back == []


@pytest.mark.parametrize("numbers", ["later", "twice"])
def test_other_numbers_stay(numbers: str) -> None:
    outcome = run("int64[batch,sequence,1]", EQUAL.replace("numbers", numbers), twice=np.arange(9) * 2)
    assert outcome.entry.applied == 0
