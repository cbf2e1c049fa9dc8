"""Passes from outside of onnxopt: where they come from, what is wrong with them, and what they do to a graph.

Covers: rewrite/own.py, rewrite/own_checks.py, rewrite/blame.py, rewrite/built.py, pipeline/own.py
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import OwnPassError
from onnxopt.load.onnx_file import load_onnx
from onnxopt.pipeline.explain import describe_pass, explain
from onnxopt.pipeline.inspection import inspect_model
from onnxopt.pipeline.orders import CANONICALIZE, FUSE, TIDY, passes_of
from onnxopt.pipeline.own import own_passes, with_own
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.probe.runners import GraphRunner
from onnxopt.records.ledger import Ledger, PassEntry
from onnxopt.records.rewrites import PassOrigin, PassRecord
from onnxopt.rewrite import Builder, Exact, Pass, Rewrite, Rule, register
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import catalogue, get, name_of
from onnxopt.spec import Target

HEAD = "from onnxopt.rewrite import Builder, Exact, Lossy, Pass, Reassociated, Refusal, Rule, register\n"

# no pass of onnxopt knows this one
GOOD = '''
@register
class LeaveOutNegations(Rule):
    """−(−x)  →  x."""

    name = "leave-out-negations"

    def patterns(self, op, x):
        yield op.Neg(op.Neg(x))

    def rewrite(self, op, x):
        return x
'''
GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[rows, 6] x) => (float[rows, 6] y)
<float[1] shift = {0.25}>
{
    a = Neg (x)
    b = Neg (a)
    c = Cos (b)
    d = Add (c, shift)
    e = Neg (d)
    f = Neg (e)
    y = Sin (f)
}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a file of passes into an empty folder, which is the one we are in."""
    monkeypatch.chdir(tmp_path)

    def written(body: str, name: str = "mine.py") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + dedent(body), encoding="utf-8")
        return path

    return written


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def rule(method: str, *, facts: str = "") -> str:
    """A rule over Sin with its own methods."""
    lines = ["@register", "class Mine(Rule):", '    name = "mine"', *(f"    {line}" for line in facts.splitlines())]
    return "\n".join([*lines, *(f"    {line}" for line in method.splitlines()), ""])


def line_of(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def run(own: tuple[type[Rewrite], ...], text: str = GRAPH) -> tuple[ir.Model, Ledger]:
    """Take a graph through the pipeline for the CPU."""
    Path("model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    loaded = load_onnx(Path("model.onnx"))
    return loaded.model, run_pipeline(loaded, Target("cpu", 1), own=own)


def entry_of(ledger: Ledger, name: str) -> PassEntry:
    return next(entry for entry in ledger.entries if entry.name == name)


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
    assert Halve.origin.file == "test_own_passes.py"
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
    with pytest.raises(OwnPassError, match=r"test_own_passes\.py:\d+: the pass name 'fuse-gelu' is taken by onnxopt"):
        own_passes(Mine)


# ------------------------------------------------------------------------------------------------------- where they run


def placed(**facts: Any) -> list[str]:
    """The order of the passes for the CPU with three of one's own, the one in the middle with some facts."""

    def make(name: str, **more: Any) -> type[Pass]:
        return type("Own", (Pass,), {"name": name, "run": lambda self, model: 0, **more})

    own = own_passes([make("one"), make("two", **facts), make("three", **facts)])
    stages = with_own(passes_of(Target("cpu")), own)
    assert len(stages["lower"]) == len(passes_of(Target("cpu"))["lower"])
    return [f"{stage} {name_of(step)}" for stage in ("canonicalize", "fuse") for step in stages[stage]]


def test_they_run_at_the_end_of_their_stage() -> None:
    fuse = [*FUSE[: -len(TIDY)], "one", "two", "three", *TIDY]
    assert placed() == [*(f"canonicalize {name}" for name in CANONICALIZE), *(f"fuse {name}" for name in fuse)]
    names = placed(stage="canonicalize")
    at = names.index("canonicalize two")
    assert names[at + 1 : at + 3] == ["canonicalize three", f"canonicalize {TIDY[0]}"]


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"before": "fuse-softmax"}, ["fuse two", "fuse three", "fuse fuse-softmax"]),
        ({"after": "fuse-softmax"}, ["fuse fuse-softmax", "fuse two", "fuse three"]),
        ({"before": "raise-mean"}, ["canonicalize two", "canonicalize three", "canonicalize raise-mean"]),
        ({"after": "one"}, ["fuse one", "fuse two", "fuse three"]),
        ({"after": "remove-unused", "stage": "canonicalize"}, ["canonicalize remove-unused", "canonicalize two"]),
    ],
)
def test_they_run_beside_the_pass_that_they_name(facts: dict[str, str], shown: list[str]) -> None:
    names = placed(**facts)
    at = names.index(shown[0])
    assert names[at : at + len(shown)] == shown


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"before": "fuse-nothing"}, "two runs before fuse-nothing, and there is no such pass; `onnxopt passes`"),
        (
            {"after": "lower-gelu"},
            "two runs after lower-gelu, which is in stage lower/cpu; name a pass of canonicalize",
        ),
        ({"after": "fuse-gelu", "stage": "canonicalize"}, "which is in stage fuse; name a pass of canonicalize"),
        ({"min_opset": 99}, "min_opset of two is 99, and the newest that onnxopt knows is "),
        ({"stage": "lower"}, "the stage of two is 'lower'; passes from outside run in canonicalize or fuse"),
        ({"after": "fuse-gelu", "before": "fuse-silu"}, "two names a pass before and one after"),
    ],
)
def test_a_place_that_there_is_not_is_said(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(OwnPassError) as error:
        placed(**facts)
    assert said in str(error.value)


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("body", "at", "said"),
    [
        ("def broken(:", "def broken", "does not import: SyntaxError: "),
        ("import no_such_thing", "import no", "does not import: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def f():\n    return {}['k']\nf()\n", "return {}", "does not import: KeyError: 'k'"),
        ("raise SystemExit(0)", "raise", "does not import: SystemExit: 0"),
        ("@register\nclass Nameless(Rule):\n    pass\n", "@register", "has no name; mend it"),
        ("class Forgotten(Rule):\n    name = 'f'\n", "", "it registers no pass; put @register of onnxopt.rewrite"),
    ],
)
def test_a_file_that_does_not_import(write: Callable[..., Path], body: str, at: str, said: str) -> None:
    path = write(body)
    with pytest.raises(OwnPassError) as error:
        own_passes(str(path))
    assert str(error.value).startswith(f"mine.py:{line_of(path, at)}: " if at else "mine.py: ")
    assert said in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("none.py", "none.py: no such file; name a .py file, a module, or what an installed package offers"),
        ("./folder", "folder: is a folder; name"),
        ("folder/rules.txt", "folder/rules.txt: is not a Python file; name"),
        ("no.such.module", "no.such.module: there is no module of that name"),
        ("not a module", "not a module: is neither a file nor the name of a module; name"),
        ("", "--pass: is neither a file"),
        (".", ".: is neither a file nor the name of a module"),
        ("json", "json: it registers no pass"),
        ("fuse-gelu", "fuse-gelu: is neither a file nor the name of a module"),
        ("onnxopt.passes.fuse.gelu", "onnxopt.passes.fuse.gelu: it registers no pass"),
    ],
)
def test_what_is_no_file_and_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rules.txt").write_text(HEAD + GOOD, encoding="utf-8")
    with pytest.raises(OwnPassError) as error:
        own_passes([named])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("wrong", [int, 3, object()])
def test_what_is_no_pass_at_all(wrong: Any) -> None:
    with pytest.raises(OwnPassError, match=r"neither a Rule nor a Pass|is no class of a pass"):
        own_passes([wrong])


def test_a_module_that_breaks_while_it_is_imported(importable: Path) -> None:
    (importable / "breaks.py").write_text("import json\njson.loads('{')\n", encoding="utf-8")
    with pytest.raises(OwnPassError, match=r"breaks\.py:2: does not import: JSONDecodeError: "):
        own_passes("breaks")


PATTERNS = "def patterns(self, op, x):\n    yield op.Sin(x)\n"
REWRITE = "def rewrite(self, op, x):\n    return op.Sin(x)\n"
MADE = "def rewrite(self, op, x, match):\n    return "
OF_COS = PATTERNS.replace("Sin", "Cos")
GUARD = "def guard(self, match):\n    match.model.graph.inputs[0].name = 'other'\n    match.require(0, 'no')\n"


@pytest.mark.parametrize(
    ("body", "at", "said"),
    [
        (rule(PATTERNS), "@register", "mine has no rewrite; write it"),
        (rule(PATTERNS + REWRITE, facts="numerics = Exact"), "@register", "numerics of mine is <class"),
        (rule(PATTERNS + REWRITE, facts="min_opset = '17'"), "@register", "min_opset of mine is '17'"),
        (rule(PATTERNS + REWRITE, facts="forms = 'one'"), "@register", "forms of mine is 'one'"),
        (rule(PATTERNS + REWRITE, facts="name = '../up'"), "@register", "the name of Mine is '../up'"),
        (rule(PATTERNS + REWRITE + "def __init__(self, size): ...\n"), "@register", "cannot be made without"),
        (rule(PATTERNS + REWRITE + "def __init__(self):\n    1 / 0\n"), "1 / 0", "mine: __init__ raised ZeroDiv"),
        (rule(PATTERNS + "def rewrite(self, op, y):\n    return y"), "def rewrite", "rewrite of mine takes y, which"),
        (rule(PATTERNS + REWRITE + "def guard(self, mach): ...\n"), "def guard", "guard of mine takes mach, which"),
        (rule(PATTERNS + REWRITE + "def guard(self, op): ...\n"), "def guard", "guard of mine takes op; build in"),
        (rule(PATTERNS + "def rewrite(self, op, *all):\n    return op"), "def rewrite", "rewrite of mine takes *all"),
        (rule("def patterns(self, x, op):\n    yield op.Sin(x)\n" + REWRITE), "def patterns", "is not op; write def"),
        (rule("def patterns(self):\n    yield 1\n" + REWRITE), "def patterns", "is not op; write def"),
        (rule("def patterns(self, op, x):\n    op.Sin(x)\n" + REWRITE), "def patterns", "of mine gives NoneType"),
        (rule("def patterns(self, op, x):\n    return op.Sin(x)\n" + REWRITE), "def patterns", "of mine gives Op"),
        (rule("def patterns(self, op, x):\n    yield from ()\n" + REWRITE), "def patterns", "yields nothing"),
        (rule("def patterns(self, op, x):\n    yield x\n" + REWRITE), "def patterns", "begins at no operator"),
        (rule("def patterns(self, op, x):\n    yield op.Mul(x, 2.0)\n" + REWRITE), "def patterns", "2.0 is no pattern"),
        (rule("def patterns(self, op, x):\n    yield op.Sin(x, _nam=1)\n" + REWRITE), "yield", "patterns raised TypeE"),
        (rule("def run(self, model): ...\n").replace("Rule", "Pass").replace("run", "go"), "@register", "has no run"),
        (rule("def run(self): ...\n").replace("Rule", "Pass"), "def run", "run of mine cannot be called as it is"),
        (rule(PATTERNS + REWRITE + "def class_of(self): ...\n"), "def class_of", "write def class_of(self, match), or"),
        (rule(PATTERNS + REWRITE + "def build(self, x): ...\n"), "def build", "write def build(self, match, op), or"),
        (rule(PATTERNS + REWRITE + "guard = 3\n"), "@register", "guard of mine is no method; write def guard(self"),
        (rule(PATTERNS + REWRITE + "root_types = 3\n"), "@register", "root_types of mine cannot be called"),
        (
            rule("def run(self, m): ...\ndef __init__(self): ...\n").replace("Rule", "Pass"),
            "@register",
            "mine has no list of refusals; call super().__init__()",
        ),
        ("@register\nclass Mine:\n    name = 'mine'\n", "@register", "Mine is neither a Rule nor a Pass; derive it"),
        (GOOD + GOOD.replace("class Leave", "class Also"), "class Also", "'leave-out-negations' is taken at mine.py:"),
    ],
)
def test_a_class_that_is_not_made_as_a_pass_must_be(write: Callable[..., Path], body: str, at: str, said: str) -> None:
    path = write(body)
    with pytest.raises(OwnPassError) as error:
        own_passes(path)
    line = line_of(path, at) - (at == "class Also")  # a class begins at its decorator
    assert str(error.value).startswith(f"mine.py:{line}: "), str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("methods", "at", "said"),
    [
        (PATTERNS + MADE + "{}['w']\n", "{}['w']", "mine: rewrite raised KeyError: 'w'"),
        (PATTERNS + REWRITE + "def guard(self, x):\n    x.nothing()\n", "x.nothing", "mine: guard raised AttributeEr"),
        (PATTERNS + REWRITE + "def class_of(self, match):\n    1 / 0\n", "1 / 0", "mine: class_of raised ZeroDiv"),
        (PATTERNS + REWRITE + "def guard(self):\n    raise SystemExit\n", "raise", "mine: guard raised SystemExit;"),
        (PATTERNS + MADE + "3\n", "@register", "mine: rewrite gives int, not a value"),
        (PATTERNS + MADE + "op\n", "@register", "mine: rewrite gives Builder, not a value"),
        (PATTERNS + MADE + "x, x\n", "@register", "mine built 2 outputs for 1"),
        (
            PATTERNS + MADE + "op.Sin(match.root.outputs[0])\n",
            "@register",
            "mine: rewrite uses y, which is not there in",
        ),
        (OF_COS + MADE + "op.Cos(match.model.graph.outputs[0])\n", "@register", "mine: rewrite uses y, which is not"),
        (PATTERNS.replace("(x)", "(x, made=lambda found: found.nothing)") + REWRITE, "yield", "mine: <lambda> raised"),
        (PATTERNS + MADE + "op.Sin(op.Identity(x))\n", "@register", "mine did not come to rest after 64 sweeps"),
        (OF_COS + GUARD + MADE + "op.Cos(x)\n", "@register", "mine changed the names of the graph's inputs or"),
    ],
)
def test_a_rule_that_fails_where_it_works(write: Callable[..., Path], methods: str, at: str, said: str) -> None:
    path = write(rule(methods))
    own = own_passes(path)
    with pytest.raises(OwnPassError) as error:
        run(own)
    assert str(error.value).startswith(f"mine.py:{line_of(path, at)}: {said}"), str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("body", "at", "said"),
    [
        ("return model.nothing", "return model", "mine: run raised AttributeError"),
        ("return None", "@register", "run of mine gives None, not the number of its changes"),
        ("return True", "@register", "run of mine gives True, not the number of its changes"),
        (
            "model.graph[-1].op_type = 'Cos'\nreturn 0",
            "@register",
            "gives 0, and has",
        ),
        ("model.graph.outputs[0].name = 'z'\nreturn 1", "@register", "mine changed the names of the graph's inputs"),
    ],
)
def test_a_whole_graph_pass_that_fails(write: Callable[..., Path], body: str, at: str, said: str) -> None:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path = write(rule(f"def run(self, model):\n{lines}").replace("Rule", "Pass"))
    own = own_passes(path)
    with pytest.raises(OwnPassError) as error:
        run(own)
    assert str(error.value).startswith(f"mine.py:{line_of(path, at)}: "), str(error.value)
    assert said in str(error.value)


def test_what_fails_in_a_helper_is_said_at_its_line(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importable / "helped"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "words.py").write_text("def count(value):\n    return value.nothing\n", encoding="utf-8")
    body = HEAD + "from helped.words import count\n" + rule(PATTERNS + REWRITE + "def guard(self, x):\n    count(x)\n")
    (package / "rules.py").write_text(body, encoding="utf-8")
    monkeypatch.chdir(importable)
    own = own_passes("helped.rules")
    with pytest.raises(OwnPassError, match=r"^helped/words\.py:2: mine: guard raised AttributeError"):
        run(own)


def test_a_failure_of_onnxopt_itself_is_not_put_on_the_pass(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_passes(write(GOOD))
    monkeypatch.setattr("onnxopt.proof.driver.Proof", None)
    with pytest.raises(TypeError, match="NoneType"):
        run(own)


# ----------------------------------------------------------------------------------------------------- what is written


def test_a_record_has_an_origin_only_where_there_is_one() -> None:
    plain = PassRecord(name="fuse-gelu", stage="fuse", numerics="exact")
    assert "origin" not in plain.model_dump_json()
    own = plain.model_copy(update={"origin": PassOrigin(named="mine.py", file="mine.py", sha256="0" * 64)})
    assert PassRecord.model_validate_json(own.model_dump_json()) == own
    assert PassRecord.model_validate_json(plain.model_dump_json()) == plain
    assert str(own.origin) == "mine.py (sha256 000000000000)"
    assert str(PassOrigin(named="__main__")) == "__main__ (typed in)"
