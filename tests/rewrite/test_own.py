"""Passes from outside of onnxopt: what they do to a graph, where they come from, where they run, what is written.

Covers: pipeline/own.py
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OwnPassError
from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.explain import describe_pass, explain
from onnxopt.pipeline.inspection import inspect_model
from onnxopt.pipeline.own import own_passes
from onnxopt.probe.runners import GraphRunner
from onnxopt.records.rewrites import PassOrigin, PassRecord
from onnxopt.rewrite import Builder, Exact, Pass, Rule, register
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import catalogue, get
from onnxopt.spec import Target
from tests.support.own import GOOD, HEAD, entry_of, rule, run

# ------------------------------------------------------------------------------------------------------- what they do


def test_a_rule_in_a_file_is_applied_and_says_where_it_came_from(write: Callable[..., Path]) -> None:
    path = write(GOOD, "rules/mine.py")
    own = own_passes([str(path)])
    model, ledger = run(own)
    assert [node.op_type for node in model.graph] == ["Cos", "Add", "Sin"]
    entry = entry_of(ledger, "leave-out-negations")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry.applied, entry.stage) == (2, "fuse")
    assert entry.origin == PassOrigin(named="mine.py", file="mine.py", sha256=digest)
    x = np.random.default_rng(3).normal(size=(11, 6)).astype(np.float32)
    np.testing.assert_allclose(GraphRunner(model).run({"x": x})[0]["y"], np.sin(np.cos(x) + 0.25), atol=1e-6)


def test_without_being_named_it_does_not_run(write: Callable[..., Path]) -> None:
    own_passes(write(GOOD))
    model, ledger = run(())
    assert sum(node.op_type == "Neg" for node in model.graph) == 4
    assert "leave-out-negations" not in {entry.name for entry in ledger.entries} | set(catalogue())


def test_a_wrong_rule_is_rolled_back_and_said(write: Callable[..., Path]) -> None:
    wrong = GOOD.replace("return x", "return op.Abs(x)")
    model, ledger = run(own_passes(write(wrong)))
    entry = entry_of(ledger, "leave-out-negations")
    assert entry.applied == 0
    assert len(entry.rolled_back) == 2
    assert sum(node.op_type == "Neg" for node in model.graph) == 4
    told = inspect_model(Path("model.onnx"), Target("cpu", 1), own=own_passes(Path("mine.py"))).notes
    assert sum(note.startswith("rolled back: leave-out-negations at ") for note in told) == 2


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("op.Sin(op.Sin(x))", "contract exact"),
        ("op.Unsqueeze(op.Sin(x), op.ints([0], 'axes'))", "gives float32[1, "),
        ("op.Cast(op.Sin(x), to=11)", "gives float64["),
        ("op.node('Sin', [x], {}, domain='somewhere.else')[0]", "does not run"),
        ("op.Sine(x)", "No Op registered for Sine"),
    ],
)
def test_what_is_not_the_same_does_not_stay(write: Callable[..., Path], result: str, reason: str) -> None:
    body = rule(f"def patterns(self, op, x):\n    yield op.Sin(x)\ndef rewrite(self, op, x):\n    return {result}")
    model, ledger = run(own_passes(write(body)))
    assert [node.op_type for node in model.graph][-1] == "Sin"
    [undone] = entry_of(ledger, "mine").rolled_back
    assert reason in undone.reason


def test_a_guard_holds_back_with_its_reason(write: Callable[..., Path]) -> None:
    guarded = GOOD + '    def guard(self, match, x):\n        match.require(x.is_graph_input(), "only inputs", x)\n'
    own = own_passes(write(guarded))
    model, ledger = run(own)
    entry = entry_of(ledger, "leave-out-negations")
    assert (entry.applied, [item.reason for item in entry.refused]) == (1, ["only inputs"])
    verdicts = explain(load_onnx(Path("model.onnx")), "leave-out-negations", Target("cpu", 1), own=own)
    assert [verdict.fires for verdict in verdicts] == [True, False, False, False]
    assert "only inputs" in {verdict.reason for verdict in verdicts}
    del model


def test_it_works_in_the_bodies_of_branches_too(write: Callable[..., Path]) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[rows, 3] x, bool flag) => (float[rows, 3] y)
    {
        y = If (flag) <
            then_branch = t () => (float[rows, 3] p) { a = Neg (x) b = Neg (a) p = Cos (b) },
            else_branch = e () => (float[rows, 3] q) { q = Sin (x) }
        >
    }
    """
    _, ledger = run(own_passes(write(GOOD)), text)
    [inner] = [entry for entry in ledger.entries if entry.name == "leave-out-negations" and entry.where]
    assert inner.applied == 1
    assert inner.origin is not None


def test_a_whole_graph_pass_is_proved_too(write: Callable[..., Path]) -> None:
    body = """
    @register
    class SwapSines(Pass):
        name = "swap-sines"

        def run(self, model):
            found = [node for node in model.graph if node.op_type == "Sin"]
            for node in found:
                node.op_type = "Cos"
            return len(found)
    """
    model, ledger = run(own_passes(write(body)))
    assert [node.op_type for node in model.graph][-1] == "Sin"
    assert len(entry_of(ledger, "swap-sines").rolled_back) == 1


@pytest.mark.parametrize(("result", "version"), [("op.Mish(x)", 18), ("op.Softplus(x)", 17)])
def test_the_opset_is_raised_for_a_rule_that_did_something(
    write: Callable[..., Path], result: str, version: int
) -> None:
    patterns = "def patterns(self, op, x):\n    yield op.Mul(x, op.Tanh(op.Softplus(x)))\n"
    facts = "min_opset = 18\nnumerics = Reassociated()"
    own = own_passes(write(rule(f"{patterns}def rewrite(self, op, x):\n    return {result}\n", facts=facts)))
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[rows, 5] x) => (float[rows, 5] y) { a = Softplus (x) b = Tanh (a) y = Mul (b, x) }
    """
    model, ledger = run(own, text)
    assert entry_of(ledger, "mine").applied == (version == 18)
    refused = [item.reason for item in entry_of(ledger, "mine").refused]
    assert refused == ([] if version == 18 else ["opset 17, needs 18"])
    assert model.opset_imports[""] == version


def test_a_file_that_was_changed_is_read_anew(write: Callable[..., Path]) -> None:
    [first] = own_passes(write(GOOD))
    [second] = own_passes(write(GOOD.replace("−(−x)  →  x.", "Twice the negative.")))
    assert first is not second
    assert first.origin is not None
    assert second.origin is not None
    assert first.origin.sha256 != second.origin.sha256
    assert describe_pass(second).identity == "Twice the negative."


def test_two_spellings_of_one_file_are_one_file(write: Callable[..., Path]) -> None:
    path = write(GOOD)
    assert len(own_passes([path, str(path.resolve()), f"../{path.parent.resolve().name}/{path}"])) == 1


# ------------------------------------------------------------------------------------------------ where they come from


def test_a_module_and_what_lies_below_it(importable: Path) -> None:
    package = importable / "of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from of_mine import inner\n", encoding="utf-8")
    (package / "inner.py").write_text(HEAD + GOOD, encoding="utf-8")
    [kind] = own_passes("of_mine")
    assert str(kind.origin).startswith("of_mine (inner.py, sha256 ")
    assert own_passes(["of_mine", "of_mine.inner"]) == (kind,), "named twice, it is the same"


def test_what_an_installed_package_offers_is_loaded_when_it_is_named(importable: Path) -> None:
    (importable / "offered.py").write_text(HEAD + GOOD + GOOD.replace("egations", "egatives"), encoding="utf-8")
    info = importable / "with_passes-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: with-passes\nVersion: 2.1\n", encoding="utf-8")
    entries = "[onnxopt.passes]\nall-of-it = offered\none = offered:LeaveOutNegatives\nnone = offered:Missing\n"
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
    importlib.invalidate_caches()
    catalogue()
    assert "offered" not in sys.modules, "nothing runs that nobody has named"
    assert [kind.name for kind in own_passes("all-of-it")] == ["leave-out-negations", "leave-out-negatives"]
    [one] = own_passes("one")
    assert str(one.origin).startswith("one of with-passes 2.1 (offered.py, sha256 ")
    with pytest.raises(OwnPassError, match=r"none of with-passes 2\.1: offered has no class Missing"):
        own_passes("none")
    with pytest.raises(OwnPassError, match=r"oen: .*no module of that name.*offer all-of-it, none, one"):
        own_passes("oen")


def test_a_class_in_python_needs_no_file_of_its_own() -> None:
    class Halve(Rule):
        """x / 2  →  x · ½."""

        name = "halve"

        def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
            yield op.Erf(x)

        def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
            return op.Erf(x)

    assert own_passes(Halve) == own_passes([Halve]) == (Halve,)
    assert Halve.origin is not None
    assert Halve.origin.file == "test_own.py"
    assert own_passes(None) == own_passes([]) == ()


def test_a_registered_class_takes_no_name_of_onnxopts_own() -> None:
    @register
    class Mine(Pass):
        name = "fuse-gelu"
        numerics = Exact()

        def run(self, model: ir.Model) -> int:
            del model
            return 0

    assert type(get("fuse-gelu")) is catalogue()["fuse-gelu"] is not Mine
    with pytest.raises(OwnPassError, match=r"test_own\.py:\d+: the pass name 'fuse-gelu' is taken by onnxopt"):
        own_passes(Mine)


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_record_has_an_origin_only_where_there_is_one() -> None:
    plain = PassRecord(name="fuse-gelu", stage="fuse", numerics="exact")
    assert "origin" not in plain.model_dump_json()
    own = plain.model_copy(update={"origin": PassOrigin(named="mine.py", file="mine.py", sha256="0" * 64)})
    assert PassRecord.model_validate_json(own.model_dump_json()) == own
    assert PassRecord.model_validate_json(plain.model_dump_json()) == plain
    assert str(own.origin) == "mine.py (sha256 000000000000)"
    assert str(PassOrigin(named="__main__")) == "__main__ (typed in)"
