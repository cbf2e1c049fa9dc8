"""What is slower than the original is not shipped, and the command says so.

Covers: road/evidence.py, road/forms.py, road/shipping.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxopt
from onnxopt.artifact.package import Artifact, check_golden
from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.graph import op_counts
from onnxopt.pipeline import orders
from onnxopt.records.ledger import Ledger
from onnxopt.records.manifest import FormName, Shipped
from onnxopt.records.measurements import Latency, Race
from onnxopt.rewrite import Pass, registry
from onnxopt.road import forms
from onnxopt.road.shipping import Form, decide
from onnxopt.run.generate.generator import Generator
from onnxopt.spec import Exact
from onnxopt.timing import latency
from tests.support.decoders import save_decoder
from tests.support.loaded import loaded
from tests.support.seq2seq import save_pair
from tests.support.tiny import tiny_checkpoint

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,256] x) => (float[batch,256] y) <float[1] two = {2.0}> {
  a = Mul(x, two)
  b = Relu(a)
  y = Mul(b, two)
}
"""
LONG = 600  # operators that change nothing, each a pass over memory


class Lengthen(Pass):
    """Relu(x)  →  Relu(Relu(... x)): the same bits, later."""

    name = "test-lengthen"
    stage = "fuse"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Put operators behind the only Relu; returns how many."""
        nodes = [node for node in model.graph if node.op_type == "Relu"]
        for number in range(LONG if len(nodes) == 1 else 0):
            last = next(node for node in model.graph if node.op_type == "Mul" and node.outputs[0].is_graph_output())
            read = last.inputs[0]
            assert read is not None
            more = ir.node("Relu", [read], name=f"more_{number}")
            more.outputs[0].name = f"more_{number}"
            more.outputs[0].type, more.outputs[0].shape = read.type, read.shape
            model.graph.insert_before(last, [more])
            last.replace_input_with(0, more.outputs[0])
        return LONG if len(nodes) == 1 else 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    return path


@pytest.fixture
def _lengthened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, Lengthen.name, Lengthen)
    monkeypatch.setattr(orders, "FUSE", (*orders.FUSE, Lengthen.name))


@pytest.mark.usefixtures("_lengthened")
def test_an_optimized_graph_that_is_slower_is_not_shipped_and_the_command_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 1.0)
    out = tmp_path / "out"
    assert main(["optimize", str(source), "--out", str(out), "--no-tune", "--workload", "batch=64,batch=256"]) == 0
    text, artifact = capsys.readouterr().out, Artifact.open(out)
    assert text.startswith("shipped       the original graph: the optimized and the fused graph are slower than")
    assert "tried         the optimized graph: 0." in text
    assert "tried         test-lengthen 600" in text
    assert artifact.manifest.shipped == Shipped(
        form="original",
        tried=("optimized", "fused"),
        reason="the optimized and the fused graph are slower than the original on this machine",
    )
    counts = op_counts(ir.load(artifact.model_path))
    assert counts == {"Mul": 2, "Relu": 1}
    assert (artifact.manifest.nodes_before, artifact.manifest.nodes_after) == (3, 3)
    assert {record.worst_relative_error for record in artifact.manifest.proof} == {0.0}
    assert check_golden(out) == []
    assert artifact.measurements is not None
    assert [race.verdict for race in artifact.measurements.races] == ["slower", "slower"]
    assert {shape.speedup for shape in artifact.measurements.latency} == {1.0}
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "The original graph is shipped: the optimized and the fused graph are slower" in report
    assert "What was tried; none of it is in the graph that is shipped." in report


@pytest.mark.usefixtures("_lengthened")
def test_without_measuring_nothing_is_claimed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["optimize", str(source), "--out", str(out), "--no-measure"]) == 0
    text, artifact = capsys.readouterr().out, Artifact.open(out)
    assert artifact.manifest.shipped == Shipped()
    assert op_counts(ir.load(artifact.model_path))["Relu"] == LONG + 1
    assert not any(word in text for word in ("shipped", "slower", "faster", "tried", "latency", "speed"))
    assert "rewritten     test-lengthen 600" in text
    assert "speed not measured" in (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[float, float]]]:
    """Intervals by form, in place of races."""
    known: dict[str, tuple[float, float]] = {}

    def race(before: Path, after: Path, requests: object, *, form: FormName, **_: object) -> Race:
        del requests
        assert before.is_file()
        assert after.is_file()
        low, high = known.get(f"{form} {before.parent.parent.name}") or known[form]
        shape = Latency(shape={"batch": 1}, before_ms=1.0, after_ms=2 / (low + high), low=low, high=high)
        speedup = (low + high) / 2
        return Race(form=form, speedup=speedup, low=low, high=high, turns=6, shapes=(shape,))

    monkeypatch.setattr(forms, "race", race)
    yield known


def made(source: Path, tmp_path: Path) -> tuple[Artifact, str]:
    artifact = onnxopt.optimize(source, out=tmp_path / "out", tune=False)
    assert artifact.manifest.shipped is not None
    return artifact, artifact.manifest.shipped.form


def test_what_cannot_be_told_apart_is_shipped_optimized(
    source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    speeds["optimized"] = (0.8, 1.1)
    artifact, form = made(source, tmp_path)
    assert form == "optimized"
    assert artifact.measurements is not None
    assert str(artifact.measurements.latency[0]) == "0.95x (0.80 to 1.10): no difference seen"


@pytest.mark.usefixtures("_lengthened")
@pytest.mark.parametrize(
    ("fused", "shipped"), [((1.1, 1.2), "fused"), ((0.99, 1.1), "fused"), ((0.9, 1.05), "original")]
)
def test_the_steps_are_taken_back_as_far_as_they_must(
    fused: tuple[float, float], shipped: str, source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    speeds |= {"optimized": (0.8, 0.9), "fused": fused}
    artifact, form = made(source, tmp_path)
    assert form == shipped
    assert artifact.manifest.shipped is not None
    assert artifact.manifest.shipped.tried == (("optimized",) if shipped == "fused" else ("optimized", "fused"))
    assert op_counts(ir.load(artifact.model_path))["Relu"] == (LONG + 1 if shipped == "fused" else 1)
    assert check_golden(artifact.path) == []
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    np.testing.assert_array_equal(artifact.session().run({"x": x})["y"], np.maximum(x * 2, 0) * 2)


def test_what_was_raised_on_the_way_is_no_note_of_an_original(
    tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 15]>
    g (float[batch,16] x) => (float[batch,16] y)
    <float[1] root = {1.4142135}, float[1] one = {1.0}, float[1] half = {0.5}> {
      a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)
    }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "gelu.onnx")
    speeds |= {"optimized": (0.8, 0.9), "fused": (0.7, 0.9)}
    shipped = onnxopt.optimize(tmp_path / "gelu.onnx", out=tmp_path / "out", tune=False)
    optimized = onnxopt.optimize(tmp_path / "gelu.onnx", out=tmp_path / "optimized", measure=False)
    assert any("opset raised" in note for note in optimized.manifest.notes)
    assert shipped.manifest.notes == ()
    assert ir.load(shipped.model_path).opset_imports[""] == 15
    assert str(shipped.manifest.blocks["gelu"]) == "0 of 1"


def test_the_same_race_gives_the_same_manifest(
    source: Path, tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    speeds |= {"optimized": (0.8, 0.9), "fused": (0.7, 0.9)}
    first, _ = made(source, tmp_path)
    content = (first.path / "manifest.json").read_bytes()
    speeds |= {"optimized": (0.85, 0.88), "fused": (0.9, 0.97)}
    again, _ = made(source, tmp_path)
    assert (again.path / "manifest.json").read_bytes() == content


@pytest.mark.parametrize(
    ("fused", "shipped"), [((0.8, 0.95), "fused"), ((0.65, 0.75), "optimized"), ((0.9, 1.05), "fused")]
)
def test_where_the_original_is_no_choice_the_fastest_of_the_others_is_shipped(
    fused: tuple[float, float], shipped: FormName
) -> None:
    def form(name: FormName) -> Form:
        empty = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
        return Form(name, loaded(empty, name=name), Path(name), Ledger(), ())

    def compare(one: Form) -> Race:
        low, high = {"optimized": (0.6, 0.7), "fused": fused}[one.name]
        return Race(form=one.name, speedup=(low + high) / 2, low=low, high=high, turns=12, shapes=())

    def refused() -> Form:
        raise InputError("it answers for padding", where="/a/temporary/file")

    found = decide(form("optimized"), {"fused": lambda: form("fused"), "original": refused}, compare)
    assert found.form.name == found.shipped.form == shipped
    assert found.shipped.tried == (("optimized",) if shipped == "fused" else ("fused",))
    assert found.shipped.reason.endswith("all the same: the original graph cannot be shipped: it answers for padding")
    assert found.shipped.reason.startswith("faster than the optimized one" if shipped == "fused" else "slower than")


def test_an_original_that_the_target_excludes_is_not_shipped(
    tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[batch,16] x) => (float[batch,16] y) { y = com.microsoft.Gelu(x) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "foreign.onnx")
    speeds |= {"optimized": (0.8, 0.9), "fused": (0.7, 0.9)}
    artifact = onnxopt.optimize(tmp_path / "foreign.onnx", out=tmp_path / "out", target="portable")
    assert artifact.manifest.shipped is not None
    assert artifact.manifest.shipped.form == "optimized"
    assert "shipped all the same: the original graph cannot be shipped" in artifact.manifest.shipped.reason
    assert {node.domain for node in ir.load(artifact.model_path).graph} == {""}


def test_a_decoder_writes_the_same_in_standard_operators(
    tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    folder = save_decoder("gpt2", tmp_path / "gpt2")
    speeds |= {"optimized": (0.8, 0.9), "fused": (1.1, 1.2)}
    shipped = onnxopt.optimize(folder, out=tmp_path / "shipped", tune=False)
    optimized = onnxopt.optimize(folder, out=tmp_path / "optimized", measure=False)
    assert shipped.manifest.shipped is not None
    assert shipped.manifest.shipped.form == "fused"
    counts = [op_counts(ir.load(one.model_path)) for one in (shipped, optimized)]
    assert [one["com.microsoft::GroupQueryAttention"] for one in counts] == [0, 2]
    assert shipped.manifest.signature == optimized.manifest.signature
    assert check_golden(shipped.path) == []
    prompts = [[5, 9, 17, 3], [11, 2]]
    tokens = [
        [result.tokens for result in Generator(one.path).generate(prompts, max_new_tokens=8).results]
        for one in (shipped, optimized)
    ]
    assert tokens[0] == tokens[1]
    np.testing.assert_allclose(padded_right(shipped)[0], padded_right(shipped, columns=3)[0], atol=1e-5)


def padded_right(artifact: Artifact, columns: int = 5) -> np.ndarray:
    """Logits of two rows, the first of three tokens, both padded on the right."""
    session = artifact.session()
    ids = np.array([[5, 9, 17, 0, 0], [2, 4, 6, 8, 10]])[:, :columns]
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:, :columns]
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.arange(columns)[None].repeat(2, axis=0)}
    for spec in session.inputs:
        if spec.name not in feeds:  # the cache, empty
            feeds[spec.name] = np.zeros([size if isinstance(size, int) else 0 for size in spec.axes], spec.dtype)
            feeds[spec.name] = np.zeros([2, *feeds[spec.name].shape[1:]], spec.dtype)
    return session.run({spec.name: feeds[spec.name] for spec in session.inputs})["logits"]


def test_a_decoder_that_answers_for_padding_is_not_shipped_as_it_was_loaded(
    tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    speeds |= {"optimized": (0.8, 0.9), "fused": (0.9, 0.95)}
    folder = save_decoder("gpt2", tmp_path / "gpt2")
    last, every = (onnxopt.optimize(folder, out=tmp_path / kind, tune=False, logits=kind) for kind in ("last", "all"))
    assert last.manifest.shipped is not None
    assert last.manifest.shipped.form == "optimized"
    assert "answers for the last column of a row, padding or not" in last.manifest.shipped.reason
    assert every.manifest.shipped is not None
    assert every.manifest.shipped.form == "original"
    assert check_golden(every.path) == []


def test_each_half_of_an_encoder_decoder_is_decided_by_itself(
    tmp_path: Path, speeds: dict[str, tuple[float, float]]
) -> None:
    folder = save_pair("t5", tmp_path / "t5")
    speeds |= {"optimized encoder": (1.2, 1.3), "optimized decoder": (0.7, 0.8), "fused": (0.7, 0.8)}
    artifact = onnxopt.optimize(folder, out=tmp_path / "out", tune=False)
    forms_shipped = {name: part.shipped.form for name, part in artifact.manifest.parts.items() if part.shipped}
    assert forms_shipped == {"encoder": "optimized", "decoder": "original"}
    assert artifact.manifest.shipped is None
    assert artifact.measurements is not None
    assert [(race.part, race.form) for race in artifact.measurements.races] == [
        ("encoder", "optimized"),
        ("decoder", "optimized"),
        ("decoder", "fused"),
    ]
    assert check_golden(artifact.path) == []
    assert "The original graph of the decoder is shipped" in (artifact.path / "report.html").read_text(encoding="utf-8")


def test_what_was_asked_for_by_name_is_not_taken_back(tmp_path: Path, speeds: dict[str, tuple[float, float]]) -> None:
    speeds |= {"optimized": (0.8, 0.9), "fused": (0.8, 0.9)}
    source = tiny_checkpoint("bert", tmp_path / "bert")
    pruned = onnxopt.optimize(source, out=tmp_path / "pruned", tune=False, prune="heads=1")
    assert pruned.manifest.shipped is not None
    assert (pruned.manifest.shipped.form, pruned.manifest.shipped.tried) == ("optimized", ("fused",))
    assert pruned.manifest.shipped.reason.endswith("shipped all the same: it is pruned, as asked for")
    quantized = onnxopt.optimize(
        source, out=tmp_path / "int8", tune=False, precision="int8-weights:32", budget="cosine>=0.9"
    )
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.shipped
    assert quantized.manifest.shipped is not None
    assert quantized.manifest.shipped.reason.endswith("it is in fewer bits, as asked for")
