"""The words at the end of a run: every number of the summary on graphs where it is known."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from rich.console import Console

from onnxopt.artifact.package import Artifact
from onnxopt.cli.live import (
    done_lines,
    next_of_checkpoint,
    next_steps,
    notices,
    print_summary,
    shipped_lines,
    speed_lines,
)
from onnxopt.cli.main import main
from onnxopt.graph import op_counts
from onnxopt.host.sizes import size_text
from onnxopt.load.export.forward_inputs import LEFT_OUT
from onnxopt.pipeline.inspection import inspect_model
from onnxopt.records.manifest import FormName, FormRecord, Manifest, PartRecord, Shipped
from onnxopt.records.measurements import Latency, Measurements, Race
from onnxopt.records.notes import TOO_DEAR
from onnxopt.records.quantization import NOT_FASTER, LayerRecord, QuantizationRecord
from onnxopt.spec import Signature, Target
from tests.artifact.test_report import make_manifest
from tests.support.rules import parse


def optimized(model: onnx.ModelProto, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, Manifest]:
    """Take a model the road; return what was printed, each run of blanks as one, and the manifest."""
    onnx.save(model, folder / "model.onnx")
    assert main(["optimize", str(folder / "model.onnx"), "--out", str(folder / "out"), "--no-measure"]) == 0
    text = "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    return text, Artifact.open(folder / "out").manifest


def weights(model: onnx.ModelProto, **arrays: np.ndarray) -> onnx.ModelProto:
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weights_in_constant_nodes_have_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,96] x) => (float[batch,96] y) { w = Constant() y = MatMul(x, w) }""")
    value = onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(noise(96, 96)))
    model.graph.node[0].attribute.append(value)
    text, manifest = optimized(model, tmp_path, capsys)
    assert 96 * 96 * 4 < manifest.bytes_before < 96 * 96 * 4 + 1000
    assert f"size {size_text(manifest.bytes_before)} {size_text(manifest.bytes_after)}" in text


def test_a_graph_without_weights_has_a_size_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,3] x) => (float[batch,3] y) { y = Relu(x) }""")
    text, manifest = optimized(model, tmp_path, capsys)
    assert 50 < manifest.bytes_before < 1000
    assert "fused nothing to fuse" in text
    assert "initializers" not in text


def test_rewrites_without_a_block_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = 5
    body = [
        f"n{i} = Neg(h{i}) e{i} = Exp(n{i}) p{i} = Add(e{i}, one) h{i + 1} = Div(h{i}, p{i})" for i in range(layers)
    ]
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,8] x) => (float[batch,8] y) <float[1] one = {{1.0}}>
    {{ h0 = Sin(x) {" ".join(body)} y = Sin(h{layers}) }}""")
    text, manifest = optimized(model, tmp_path, capsys)
    assert f"fuse-silu {layers}" in text
    assert "nothing to fuse" not in text
    assert manifest.blocks == {}
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "0 of 0" not in report
    assert "rewrites kept" in report


def test_weights_that_went_are_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch,64] x) => (float[batch,64] y) {
      a = MatMul(x, u) b = Sin(a) c = MatMul(b, v) d = Sin(c)
      t = Transpose <perm = [1, 0]> (w) e = MatMul(d, t) y = Sin(e)
    }""")
    same = noise(64, 64)
    weights(model, u=same, v=same, w=np.ascontiguousarray(same.T), gone=noise(100, 10, seed=1))
    text, manifest = optimized(model, tmp_path, capsys)
    # of 16 KiB each: the transpose of w is folded and then equal to the two others
    (line,) = (one for one in text.splitlines() if one.startswith("initializers"))
    assert sorted(line.removeprefix("initializers ").split(", ")) == [
        "3.9 KiB no longer read",
        "32.0 KiB duplicate or tied",
    ]
    assert manifest.bytes_before - manifest.bytes_after == pytest.approx(2 * 16384 + 4000, abs=400)


def test_copies_that_folding_makes_are_no_duplicates_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 512  # a mebibyte; each of the transposes is folded into a copy, and one of these is kept
    body = [f"t{i} = Transpose <perm = [1, 0]> (w) h{i + 1} = MatMul(h{i}, t{i})" for i in range(4)]
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch,n] ids) => (float[batch,n,{size}] y) {{ h0 = Gather(w, ids) {" ".join(body)} y = Relu(h4) }}""")
    weights(model, w=noise(size, size) / 20)
    text, manifest = optimized(model, tmp_path, capsys)
    assert manifest.bytes_before == pytest.approx(2**20, abs=2000)
    merged = sum(entry.bytes_saved for entry in manifest.ledger if entry.name == "merge-initializers")
    assert merged == 3 * 2**20
    assert "duplicate" not in text
    assert manifest.bytes_after == pytest.approx(2 * 2**20, abs=2000)


def test_functions_count_as_what_is_in_them() -> None:
    model = parse("g (float[batch,3] x) => (float[batch,3] y) { a = Sin(x) y = Cos(a) }")
    assert op_counts(model) == {"Sin": 1, "Cos": 1}
    text = """
    <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
    g (float[batch,3] x) => (float[batch,3] y) { a = mine.twice(x) b = mine.twice(a) y = Relu(b) }
    <opset_import: ["" : 20, "mine" : 1], domain: "mine"> once (x) => (y) { y = Sin(x) }
    <opset_import: ["" : 20, "mine" : 1], domain: "mine"> twice (x) => (y) {
      a = mine.once(x) b = mine.once(a) y = Neg(b)
    }
    """
    assert op_counts(ir.from_onnx_text(text)) == {"Sin": 4, "Neg": 2, "Relu": 1}


def test_inspect_counts_weights_wherever_they_lie(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
    g (float[batch,96] x, bool c) => (float[batch,96] y) {
      w = Constant() a = MatMul(x, w) b = Add(a, v) d = mine.scaled(b)
      y = If(c) <then_branch = left () => (float[batch,96] l) { l = Mul(d, u) },
                 else_branch = right () => (float[batch,96] r) { r = Neg(d) }>
    }
    <opset_import: ["" : 20], domain: "mine"> scaled (x) => (y) { s = Constant() y = Div(x, s) }""")
    parts = {"w": noise(96, 96), "s": np.abs(noise(96)) + 1}
    for node in (*model.graph.node, *model.functions[0].node):
        if node.op_type == "Constant":
            array = onnx.numpy_helper.from_array(parts[node.output[0]])
            node.attribute.append(onnx.helper.make_attribute("value", array))
    weights(model, v=noise(96, seed=1))
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.initializer.append(onnx.numpy_helper.from_array(noise(96, seed=2), "u"))
    onnx.save(model, tmp_path / "model.onnx")
    found = inspect_model(tmp_path / "model.onnx", Target("cpu"))
    assert found.bytes_by_operator == {"MatMul": 4 * 96 * 96, "Add": 384, "Mul": 384, "Div": 384}
    assert found.size_bytes == 4 * 96 * 96 + 3 * 384


def race(form: FormName, low: float, high: float, *shapes: Latency, trouble: str = "", part: str = "") -> Race:
    speedup = (low + high) / 2
    return Race(form=form, speedup=speedup, low=low, high=high, turns=6, shapes=shapes, trouble=trouble, part=part)


def measured(*races: Race) -> Measurements:
    return Measurements(created="2026-11-02T03:04:05+00:00", races=races, latency=races[0].shapes)


def test_a_shape_that_lost_is_named_where_the_whole_gained() -> None:
    loser = Latency(shape={"batch": 8}, before_ms=9.0, after_ms=10.0, low=0.88, high=0.93)
    winner = Latency(shape={"batch": 1}, before_ms=2.0, after_ms=1.0, low=1.9, high=2.1)
    manifest = make_manifest(shipped=Shipped())
    assert speed_lines(manifest, measured(race("optimized", 1.2, 1.4, winner, loser))) == [
        "slower        batch 8: 0.90x (0.88 to 0.93): slower; the workload as a whole is not"
    ]
    assert speed_lines(manifest, measured(race("optimized", 1.2, 1.4, winner))) == []


def test_no_difference_and_a_busy_machine_are_said() -> None:
    found = measured(race("optimized", 0.97, 1.07, trouble="other processes took 1.3 of 2 processors"))
    manifest = make_manifest(shipped=Shipped())
    assert speed_lines(manifest, found) == ["speed         1.02x (0.97 to 1.07): no difference seen over the workload"]
    assert notices(manifest, found) == [
        "busy          other processes took 1.3 of 2 processors: the times are worth less for it"
    ]


def test_the_table_shows_what_an_interval_shows(tmp_path: Path) -> None:
    bounds = ((1.9, 2.1), (0.92, 1.06), (0.7, 0.9))
    shapes = tuple(
        Latency(shape={"batch": number}, before_ms=10.0, after_ms=20 / (low + high), low=low, high=high)
        for number, (low, high) in enumerate(bounds, start=1)
    )
    found = measured(race("optimized", 1.1, 1.3, *shapes))
    (tmp_path / "measurements.json").write_text(found.to_json(), encoding="utf-8")
    console = Console(file=io.StringIO(), width=160)
    print_summary(console, Artifact(tmp_path, make_manifest(shipped=Shipped())))
    assert isinstance(console.file, io.StringIO)
    rows = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "latency, batch 1 10.00 ms 5.00 ms 2.00x (1.90 to 2.10)" in rows
    assert "latency, batch 2 10.00 ms 10.10 ms 0.99x (0.92 to 1.06) no difference seen" in rows
    assert "latency, batch 3 10.00 ms 12.50 ms 0.80x (0.70 to 0.90) slower" in rows
    assert "slower batch 3: 0.80x (0.70 to 0.90): slower; the workload as a whole is not" in rows


def test_each_part_of_a_pair_says_what_it_ships() -> None:
    def part(name: str, shipped: Shipped) -> PartRecord:
        return PartRecord(file=f"{name}.onnx", signature=Signature((), ()), golden="golden", shipped=shipped)

    reason = "the optimized graph is slower than the original on this machine"
    parts = {
        "encoder": part("encoder", Shipped()),
        "decoder": part("decoder", Shipped(form="original", tried=("optimized",), reason=reason)),
    }
    races = race("optimized", 1.2, 1.3, part="encoder"), race("optimized", 0.8, 0.9, part="decoder")
    assert shipped_lines(make_manifest(parts=parts), measured(*races)) == [
        f"shipped       the original graph of the decoder: {reason}",
        "tried         the optimized graph of the decoder: 0.85x (0.80 to 0.90): slower over the workload",
    ]
    assert shipped_lines(make_manifest(), None) == []


@pytest.mark.parametrize("verbose", [False, True])
def test_why_a_kernel_was_chosen_is_for_who_asks(tmp_path: Path, *, verbose: bool) -> None:
    forms = (
        FormRecord(name="lower-attention", kind="12 heads of 32", form="Attention"),
        FormRecord(name="lower-gelu", form="kernel"),
    )
    why = (
        "lower-attention: 12 heads of 32: Attention (measured, ms of the model per shape: Attention 3.2)",
        "lower-gelu: kernel (not measured)",
    )
    manifest = make_manifest(forms=forms, notes=(*why, "lower-gelu does more than that"))
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, Artifact(tmp_path, manifest), verbose=verbose)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [f"note          {note}" in lines for note in why] == [verbose, verbose]
    assert "note          lower-gelu does more than that" in lines
    short = "kernels       lower-attention Attention, lower-gelu kernel (why: --verbose, or the report)"
    assert (short in lines) != verbose


def test_what_is_shipped_although_it_is_slower_is_said() -> None:
    reason = "slower than the original on this machine, and shipped all the same: it is pruned, as asked for"
    lines = shipped_lines(make_manifest(shipped=Shipped(reason=reason)), measured(race("optimized", 0.8, 0.9)))
    assert lines == [
        f"shipped       the optimized graph: {reason}",
        "measured      the optimized graph: 0.85x (0.80 to 0.90): slower over the workload",
    ]


def test_what_is_not_shipped_was_tried() -> None:
    layers = {"a": LayerRecord(precision="int8"), "b": LayerRecord(precision="fp32", reason="rolled back: 3 dB")}
    shipped = QuantizationRecord(asked="int8", shipped=True, layers=layers)
    assert shipped.lines()[0] == "precision     int8: 1 int8, 1 fp32"
    kept = QuantizationRecord(asked="int8", shipped=False, reason="beyond its budget", layers=layers)
    assert kept.lines()[0] == "precision     int8: the float graph is shipped; beyond its budget"


@pytest.mark.parametrize("is_shipped", [True, False])
def test_the_error_of_a_quantized_graph_is_not_that_of_the_float_graph(*, is_shipped: bool) -> None:
    found = QuantizationRecord(asked="int8", shipped=is_shipped, reason="" if is_shipped else "beyond its budget")
    (line,) = (one for one in done_lines(make_manifest(quantization=found)) if one.startswith("worst error"))
    assert ("of the float graph that it was made from" in line) == is_shipped


def test_what_must_be_noticed_comes_first_and_in_colour(tmp_path: Path) -> None:
    reason = f"{NOT_FASTER} (0.91x)"
    asked = QuantizationRecord(asked="int8", shipped=False, reason=reason)
    dear = f"axis 'frames' is proved from 1 up to 96; sizes up to 3000 {TOO_DEAR}"
    left_out = f"{LEFT_OUT}bbox: optional"
    shipped = Shipped(form="original", tried=("optimized",), reason="the optimized graph is slower than the original")
    manifest = make_manifest(
        quantization=asked, random_weights=True, shipped=shipped, notes=("an ordinary note", dear, left_out)
    )
    found = measured(race("optimized", 0.7, 0.8, trouble="other processes took 2 of 4 processors"))
    (tmp_path / "measurements.json").write_text(found.to_json(), encoding="utf-8")
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard", highlight=False)
    print_summary(console, Artifact(tmp_path, manifest))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    above, _, below = text.partition(manifest.name)
    lines = above.splitlines()[:-1]
    assert all(line.startswith("\x1b[1;33m") for line in lines)
    heads = ["weights", "shipped", "tried", "precision", "busy", "not proved", "note"]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line)[:14].strip() for line in lines] == heads
    assert f"the float graph is shipped; {reason}; --allow-slower ships the smaller file" in above
    assert above.count(dear) == above.count(left_out) == 1
    assert "an ordinary note" in below
    assert not [said for said in (dear, left_out, reason) if said in below]


def test_nothing_is_noticed_where_all_is_well() -> None:
    found = QuantizationRecord(asked="int8", shipped=True)
    assert notices(make_manifest(quantization=found, shipped=Shipped()), measured(race("optimized", 1.9, 2.1))) == []
    beyond = QuantizationRecord(asked="int8", shipped=False, reason="beyond its budget: cosine 0.9")
    (line,) = notices(make_manifest(quantization=beyond), None)
    assert "--allow-slower" not in line


@pytest.mark.parametrize(
    ("task", "folder", "words"),
    [
        ("feature-extraction", "out/a", 'onnxopt run out/a "..."; read out/a/report.html'),
        ("image-classification", "out/b", "onnxopt run out/b picture.png; read out/b/report.html"),
        ("text-generation", "my out/c", "onnxopt generate 'my out/c' \"...\"; read my out/c/report.html"),
        ("text2text-generation", "t5", 'onnxopt generate t5 "..."; read t5/report.html'),
        ("automatic-speech-recognition", "w", "onnxopt generate w speech.wav; read w/report.html"),
        ("onnx", "out/d", "read out/d/report.html"),
    ],
)
def test_the_last_line_says_what_to_do_next(task: str, folder: str, words: str) -> None:
    console = Console(file=io.StringIO(), width=60)
    assert next_steps(task, Path(folder)) == words
    print_summary(console, Artifact(Path(folder), make_manifest(task=task)))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-2:] == [f"artifact      {folder}", f"next          {words}"]


@pytest.mark.parametrize(("name", "typed"), [("small", "small"), ("my student", "'my student'")])
def test_a_checkpoint_is_optimized_next(name: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    assert next_of_checkpoint(folder) == f"onnxopt optimize {typed}"
    (folder / "model.onnx").touch()
    assert next_of_checkpoint(folder) == "onnxopt optimize " + typed.replace(name, f"{name}/model.onnx")
