"""The whole road on small models of several architectures, by both exporters and through the command line.

Covers: cli/graphs.py, cli/optimize.py, pipeline/explain.py, pipeline/inspection.py, proof/compare.py,
records/events.py, records/ledger.py, road/optimize.py, road/work.py, road/write.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt
from onnxopt.artifact.package import check_golden
from onnxopt.cli.main import main
from onnxopt.errors import ProofError
from onnxopt.graph.files import save_graph
from onnxopt.load.export.export import Exporter
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.road.options import TargetName
from onnxopt.spec import Exact
from tests.support.command import onnxopt as command
from tests.support.tiny import tiny_checkpoint

KINDS = ("bert", "distilbert", "roberta", "vit")


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_fused_completely_and_proved(kind: str, exporter: Exporter, tmp_path: Path) -> None:
    source = tiny_checkpoint(kind, tmp_path / kind)
    artifact = onnxopt.optimize(source, out=tmp_path / "out", exporter=exporter, measure=False)
    blocks = {name: (count.fused, count.total) for name, count in artifact.manifest.blocks.items()}
    assert blocks == {"attention": (2, 2), "layer_norm": (5, 5), "gelu": (2, 2), "linear": (8, 8)}
    assert artifact.manifest.worst_relative_error is not None
    assert artifact.manifest.worst_relative_error < 1e-5
    assert not [item for entry in artifact.manifest.ledger for item in entry.rolled_back]
    assert check_golden(artifact.path) == []


@pytest.mark.parametrize("target", ["portable", "tensorrt"])
def test_other_targets_get_standard_operators_only(target: TargetName, tmp_path: Path) -> None:
    import onnx

    source = tiny_checkpoint("bert", tmp_path / "bert")
    artifact = onnxopt.optimize(source, out=tmp_path / "out", target=target, measure=False)
    model = onnx.load(artifact.model_path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    onnx.checker.check_model(model, full_check=True)
    assert artifact.manifest.blocks["attention"].fused == 2


def test_cuda_gets_kernels_that_take_bias_and_residual(tmp_path: Path) -> None:
    import onnx

    source = tiny_checkpoint("bert", tmp_path / "bert")
    artifact = onnxopt.optimize(source, out=tmp_path / "out", target="cuda", measure=False)
    made = [node.op_type for node in onnx.load(artifact.model_path).graph.node if node.domain == "com.microsoft"]
    norms = ["EmbedLayerNormalization"] + ["SkipLayerNormalization"] * 4
    assert sorted(made) == ["Attention"] * 2 + ["BiasGelu"] * 2 + norms
    assert not [item for entry in artifact.manifest.ledger for item in entry.rolled_back]
    assert check_golden(artifact.path, target=onnxopt.Target("cpu")) == []


def test_gpt2_without_cache_goes_the_same_road(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(tiny_checkpoint("gpt2", tmp_path / "gpt2"), out=tmp_path / "out", measure=False)
    assert str(artifact.manifest.blocks["attention"]) == "2 of 2"
    assert artifact.manifest.task == "text-generation"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "bert")
    first = onnxopt.optimize(source, out=tmp_path / "a", measure=False)
    second = onnxopt.optimize(source, out=tmp_path / "b", measure=False)
    for name in first.manifest.files:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


def test_an_artifact_can_be_imported_and_optimized_again(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "bert")
    portable = onnxopt.optimize(source, out=tmp_path / "portable", target="portable", measure=False)
    again = onnxopt.optimize(portable.model_path, out=tmp_path / "again", measure=False)
    assert {name: str(count) for name, count in portable.manifest.blocks.items()} == {
        name: str(count) for name, count in again.manifest.blocks.items()
    }
    comparison = onnxopt.compare_models(portable.path, again.path)
    assert comparison.equal
    assert comparison.outputs[0].cosine > 0.99999


def test_a_pass_that_lies_cannot_spoil_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.pipeline import orders
    from onnxopt.rewrite import registry

    class DropMask(Rule):
        """Attention without its mask, under a false promise."""

        name = "test-drop-mask"
        numerics = Exact()

        def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, mask: Pat) -> Iterator[Pat]:
            yield op.Attention(q, k, v, mask)

        def rewrite(self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            return op.Attention(q, k, v, **{name: attr.value for name, attr in match.root.attributes.items()})

    monkeypatch.setitem(registry._registered, DropMask.name, DropMask)
    monkeypatch.setattr(orders, "FUSE", (*orders.FUSE, DropMask.name))
    artifact = onnxopt.optimize(tiny_checkpoint("bert", tmp_path / "bert"), out=tmp_path / "out", measure=False)
    (entry,) = (entry for entry in artifact.manifest.ledger if entry.name == DropMask.name)
    assert (entry.applied, len(entry.rolled_back)) == (0, 2)
    assert artifact.manifest.worst_relative_error is not None
    assert artifact.manifest.worst_relative_error < 1e-5
    assert list((tmp_path / "out.rolled-back").iterdir())


def test_nothing_is_written_when_the_whole_proof_fails(tmp_path: Path) -> None:
    source = tiny_checkpoint("bert", tmp_path / "bert")
    with pytest.raises(ProofError, match="budget"):
        onnxopt.optimize(source, out=tmp_path / "out", budget=0.0, measure=False)
    assert not (tmp_path / "out").exists()


def test_padding_does_not_change_an_answer(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(tiny_checkpoint("bert", tmp_path / "bert"), out=tmp_path / "out", measure=False)
    session = artifact.session()
    ids = np.arange(5, 12, dtype=np.int64)[None]
    alone = session.run(_feeds(session, ids, np.ones_like(ids)))["last_hidden_state"]
    for left, right in ((0, 6), (0, 1), (0, 25)):
        padded = np.pad(ids, ((0, 0), (left, right)))
        mask = np.pad(np.ones_like(ids), ((0, 0), (left, right)))
        both = session.run(_feeds(session, np.repeat(padded, 2, 0), np.repeat(mask, 2, 0)))["last_hidden_state"]
        np.testing.assert_allclose(alone[0], both[1, left : left + 7], atol=1e-5)


def _feeds(session: onnxopt.Session, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {spec.name: known[spec.name] for spec in session.inputs}


def test_every_command_answers_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tiny_checkpoint("bert", tmp_path / "bert"), tmp_path / "out"

    def call(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    summary = call("optimize", source, "--out", out, "--no-measure")
    assert "attention 2 of 2" in summary
    assert json.loads(call("optimize", source, "--out", out, "--no-measure", "--json"))["path"] == str(out)
    file = out / "model.onnx"
    assert "com.microsoft::Attention" in call("inspect", file)
    assert json.loads(call("inspect", out, "--json"))["blocks"]["attention"] == "2 of 2"
    assert "fuse-gelu" in call("passes")
    assert any(row["name"] == "fuse-gelu" and row["source"] for row in json.loads(call("passes", "--json"))["passes"])
    assert "fires at 0 of" in call("explain", file, "fuse-gelu")
    assert {"schema_version", "pass", "candidates"} == set(json.loads(call("explain", file, "lower-norm", "--json")))
    assert "equal within the budget" in call("verify", file, out)
    assert json.loads(call("verify", file, out, "--json"))["equal"] is True
    assert "p50" in call("bench", out, "--workload", "1x8", "--seconds", "1", "--rounds", "1")
    assert json.loads(call("bench", out, "-w", "1x8", "--seconds", "1", "--rounds", "1", "--json"))["candidates"]
    assert call("run", out, "one", "two")
    assert json.loads(call("run", out, "one", "--json"))
    assert "optimize" in call("--help")
    for name in ("optimize", "inspect", "passes", "explain", "verify", "bench", "run"):
        assert "Examples" in call(name, "--help")


def test_verify_exits_1_and_names_the_first_tensor_that_differs(tmp_path: Path) -> None:
    import onnx

    source = tiny_checkpoint("bert", tmp_path / "bert")
    artifact = onnxopt.optimize(source, out=tmp_path / "out", target="portable", measure=False)
    model = onnx.load(artifact.model_path)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for attribute in norms[2].attribute:
        if attribute.name == "epsilon":
            attribute.f = 0.5
    onnx.save(model, tmp_path / "wrong.onnx")
    found = command("verify", artifact.model_path, tmp_path / "wrong.onnx")
    assert found.code == 1
    assert len(found.error_lines[-1:]) == 1
    assert norms[2].output[0] in found.err
    assert "Traceback" not in found.err


def test_explain_names_the_node_of_an_odd_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    g (float[batch,2,sequence,4] q, float[batch,2,sequence,4] k, float[batch,2,sequence,4] v)
      => (float[batch,2,sequence,4] y) <float half = {0.5}, int64[1] last = {-1}> {
      [turned] t = Transpose <perm = [0, 1, 3, 2]> (k)
      [product] s = MatMul(q, t)
      [odd] o = Sin(s)
      [weights] w = Softmax <axis = -1> (o)
      [out] y = MatMul(w, v)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    assert main(["explain", str(tmp_path / "odd.onnx"), "fuse-attention"]) == 0
    assert "Sin odd" in capsys.readouterr().out


def test_interrupting_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.road import forms

    def interrupt(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(forms, "prove", interrupt)
    source = tiny_checkpoint("bert", tmp_path / "bert")
    assert main(["optimize", str(source), "--out", str(tmp_path / "made" / "out"), "--quiet"]) == 130
    assert not (tmp_path / "made").exists()


def test_a_model_is_saved_while_something_else_reads_the_file_it_maps(tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32)
    first = ir.load(saved_outside(tmp_path / "first", weight))
    reading = first.graph.initializers["w"].const_value
    assert isinstance(reading, ir.ExternalTensor)
    seen = reading.numpy()  # keeps the mapping open, as a session of a copy does
    found = ir.load(save_graph(first, tmp_path / "second"))
    tensor = found.graph.initializers["w"].const_value
    assert tensor is not None
    assert not isinstance(tensor, ir.ExternalTensor)
    assert np.array_equal(tensor.numpy(), weight)
    assert np.array_equal(seen, weight)


def saved_outside(folder: Path, weight: np.ndarray) -> Path:
    folder.mkdir()
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { y = Add(x, w) }'
    model = ir.from_onnx_text(text)
    value = next(node for node in model.graph).inputs[1]
    assert value is not None
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    ir.save(model, folder / "model.onnx", external_data="weights", size_threshold_bytes=0)
    return folder / "model.onnx"
