"""What ONNX Runtime runs goes the whole road: words, sequences, optionals, defaults, ranks that vary, every opset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

import onnxopt
from onnxopt import Session
from onnxopt.artifact.golden import read_cases
from onnxopt.artifact.package import check_golden
from onnxopt.road.options import TargetName

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING


def write(text: str, folder: Path, opset: int = 18, ir_version: int = 9) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')
    onnx.save(model, folder / "given.onnx")
    return folder / "given.onnx"


def answers(file: Path, feeds: dict[str, Any]) -> list[Any]:
    return list(ort.InferenceSession(file).run(None, feeds))


def optimized(file: Path, target: TargetName = "cpu") -> onnxopt.Artifact:
    artifact = onnxopt.optimize(file, out=file.parent / "out", target=target, measure=False)
    assert check_golden(artifact.path) == []
    return artifact


def opset_of(file: Path) -> int:
    return int(onnx.load(file, load_external_data=False).opset_import[0].version)


def test_words_in_and_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("StringConcat", ["words", "mark"], ["named"]),
        helper.make_node("Equal", ["named", "wanted"], ["found"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("words", STRING, ["n"])],
        [
            helper.make_tensor_value_info("found", TensorProto.BOOL, ["n"]),
            helper.make_tensor_value_info("named", STRING, ["n"]),
        ],
        [numpy_helper.from_array(np.array([word], object), name) for name, word in (("mark", "?"), ("wanted", "où?"))],
    )
    file = tmp_path / "given.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), file)
    artifact = optimized(file)
    feeds = {"words": np.array(["OÙ", "", "là", "où"], object)}
    for before, after in zip(answers(file, feeds), answers(artifact.model_path, feeds), strict=True):
        assert np.array_equal(before, after)
    stored = read_cases(artifact.path / "golden")[0]
    assert stored.feeds["words"].dtype == object
    assert '"string"' in (artifact.path / "io.json").read_text(encoding="utf-8")


def test_sequences_in_and_out(tmp_path: Path) -> None:
    text = """g (seq(float[n,3]) s, float[n,3] x) => (seq(float[n,3]) t, float[m,3] y) {
        e = Exp(x) l = Log(e) t = SequenceInsert(s, l) y = ConcatFromSequence<axis=0>(t)
    }"""
    file = write(text, tmp_path)
    artifact = optimized(file)
    ones = np.ones((4, 3), np.float32)
    feeds = {"s": [ones, 2 * ones], "x": 3 * ones}
    before, after = answers(file, feeds), answers(artifact.model_path, feeds)
    assert [part.shape for part in after[0]] == [(4, 3)] * 3
    assert np.allclose(before[1], after[1])
    assert {spec.name: spec.form for spec in artifact.manifest.signature.outputs} == {"t": "sequence", "y": ""}
    assert isinstance(read_cases(artifact.path / "golden")[0].feeds["s"], list)


def test_an_optional_that_holds_nothing(tmp_path: Path) -> None:
    pair = helper.make_tensor_type_proto(FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Optional", [], ["y"], type=pair), helper.make_node("Neg", ["x"], ["z"])],
        "nothing",
        [helper.make_tensor_value_info("x", FLOAT, ["n"])],
        [
            helper.make_value_info("y", helper.make_optional_type_proto(pair)),
            helper.make_tensor_value_info("z", FLOAT, ["n"]),
        ],
    )
    file = tmp_path / "given.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    artifact = optimized(file)
    assert answers(artifact.model_path, {"x": np.ones(3, np.float32)})[0] is None


def test_a_default_stays_one_and_can_be_set(tmp_path: Path) -> None:
    text = """g (float[n,4] x, float[4] scale, float[1] shift) => (float[n,4] y) <float[4] scale = {1, 2, 3, 4}> {
        e = Mul(x, scale) y = Add(e, shift)
    }"""
    file = write(text, tmp_path)
    artifact = optimized(file)
    made = onnx.load(artifact.model_path)
    assert [value.name for value in made.graph.input] == ["x", "scale", "shift"]
    x, shift = np.ones((2, 4), np.float32), np.ones(1, np.float32)
    for given in ({}, {"scale": np.array([5, -1, 0, 9], np.float32)}):
        feeds = {"x": x, "shift": shift, **given}
        assert np.array_equal(answers(file, feeds)[0], answers(artifact.model_path, feeds)[0])
    session = Session(artifact.path)
    assert session.run({"x": x, "shift": shift})["y"].tolist() == [[2, 3, 4, 5]] * 2


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("g (float[a,b,2] x) => (float y) { e = Abs(x) y = Squeeze(e) }", [(1, 4, 2), (3, 1, 2), (1, 1, 2), (3, 4, 2)]),
        ("g (float[a] x, int64[k] shape) => (float y) { e = Abs(x) y = Reshape(e, shape) }", [(6,), (24,)]),
    ],
)
def test_an_output_whose_rank_varies_is_declared_without_one(
    text: str, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "given.onnx")
    artifact = optimized(tmp_path / "given.onnx")
    assert not onnx.load(artifact.model_path).graph.output[0].type.tensor_type.HasField("shape")
    for shape in shapes:
        feeds = {"x": -np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
        wanted = ([-1, 2, 3], [2, -1]) if "shape" in text else (None,)
        for given in wanted:
            full = feeds | ({} if given is None else {"shape": np.array(given)})
            before, after = answers(tmp_path / "given.onnx", full)[0], answers(artifact.model_path, full)[0]
            assert before.shape == after.shape
            assert np.array_equal(before, after)


@pytest.mark.parametrize("place", ["main graph", "branch"])
def test_a_constant_that_lies_in_a_file(place: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(3).standard_normal((32, 48)).astype(np.float32)
    tensor = numpy_helper.from_array(weight, "k")
    (tmp_path / "k.bin").write_bytes(bytes(16) + tensor.raw_data)
    set_external_data(tensor, "k.bin", offset=16, length=weight.nbytes)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    held = helper.make_node("Constant", [], ["k"], value=tensor)
    product = helper.make_node("MatMul", ["x", "k"], ["p"])
    nodes = [held, product, helper.make_node("Relu", ["p"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 32])]
    if place == "branch":
        branches = {
            name: helper.make_graph([held, product], name, [], [helper.make_tensor_value_info("p", FLOAT, None)])
            for name in ("then_branch", "else_branch")
        }
        nodes = [helper.make_node("If", ["c"], ["q"], **branches), helper.make_node("Relu", ["q"], ["y"])]
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph(nodes, "held", inputs, [helper.make_tensor_value_info("y", FLOAT, ["n", 48])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path / "given.onnx"
    file.write_bytes(model.SerializeToString())
    artifact = optimized(file)
    feeds: dict[str, Any] = {"x": np.ones((3, 32), np.float32)} | (
        {"c": np.array(0, bool)} if place == "branch" else {}
    )
    assert np.allclose(answers(artifact.model_path, feeds)[0], np.maximum(feeds["x"] @ weight, 0), atol=1e-4)


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    file = write("g (float[n,3] x) => (float[n,3] x, float[n,3] y) { a = Abs(x) y = Sqrt(a) }", tmp_path)
    artifact = optimized(file)
    made = onnx.load(artifact.model_path)
    assert [value.name for value in made.graph.input] == ["x"]
    assert [value.name for value in made.graph.output] == ["x", "y"]
    feeds = {"x": np.full((2, 3), -4, np.float32)}
    for before, after in zip(answers(file, feeds), answers(artifact.model_path, feeds), strict=True):
        assert np.array_equal(before, after)


def test_bfloat16_in_and_out(tmp_path: Path) -> None:
    text = """g (bfloat16[n,8] x) => (bfloat16[n,8] y) <float half = {0.5}> {
        w = Cast<to=1>(x) h = Mul(w, half) y = Cast<to=16>(h)
    }"""
    artifact = optimized(write(text, tmp_path))
    given = np.arange(16).reshape(2, 8).astype(ml_dtypes.bfloat16)
    found = Session(artifact.path).run({"x": given})["y"]
    assert found.dtype == given.dtype
    assert np.array_equal(found.astype(np.float32), np.arange(16, dtype=np.float32).reshape(2, 8) / 2)


@pytest.mark.parametrize("opset", [7, 8, 11, 15, 24, 26, 27, 28])
def test_a_file_keeps_its_opset_where_nothing_needs_another(opset: int, tmp_path: Path) -> None:
    text = "g (float[n,6] x) => (float[n,6] y) { a = Relu(x) b = Identity(a) c = Neg(b) y = Exp(c) }"
    artifact = optimized(write(text, tmp_path, opset, 3 if opset < 9 else 8))
    assert opset_of(artifact.model_path) == opset


NORM = """g (float[n,m,8] x) => (float[n,m,8] y)
<float[8] g = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {1, 1, 1, 1, 1, 1, 1, 1}, float two = {2}, float eps = {0.00001}> {
    mean = ReduceMean<axes=[-1]>(x) d = Sub(x, mean) sq = Pow(d, two) v = ReduceMean<axes=[-1]>(sq) ve = Add(v, eps)
    sd = Sqrt(ve) q = Div(d, sd) s = Mul(q, g) y = Add(s, b)
}"""


@pytest.mark.parametrize(("opset", "expected"), [(11, 17), (13, 17), (17, 17)])
def test_the_opset_is_raised_as_far_as_a_fusion_needs_and_no_further(opset: int, expected: int, tmp_path: Path) -> None:
    artifact = optimized(write(NORM, tmp_path, opset, 7))
    assert opset_of(artifact.model_path) == expected
    assert [node.op_type for node in onnx.load(artifact.model_path).graph.node] == ["LayerNormalization"]
    said = [note for note in artifact.manifest.notes if note.startswith("opset")]
    assert said == ([] if opset == expected else [f"opset raised from {opset} to {expected} for the fused operators"])


def test_a_weight_of_few_bits_does_not_make_the_file_larger(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (512, 384)).astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["codes"], ["wide"], to=FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "few",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 512])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 384])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(np.full(384, 0.01, np.float32), "scale")],
    )
    file = tmp_path / "given.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    assert optimized(file).model_path.stat().st_size < 1.1 * file.stat().st_size
