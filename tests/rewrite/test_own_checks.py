"""What is wrong with a pass from outside of onnxopt is one line, at its place, before or while it works.

Covers: rewrite/blame.py, rewrite/built.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import OwnPassError
from onnxopt.pipeline.own import own_passes
from tests.support.own import GOOD, HEAD, line_of, rule, run

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
