"""Networks of convolutions: random ones of two kinds, their chains of integers, and the search among layers.

Covers: graph/convs.py
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.errors import InputError
from onnxopt.graph import constant
from onnxopt.passes.quantize.static_conv import QuantizeConv
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.affine import kernels
from onnxopt.qmath.precision import Affine, Plan, PlannedLinear, Precision
from onnxopt.quantize.convs import emulate, ranked_on
from onnxopt.records.quantization import QuantizationRecord
from onnxopt.road.optimize import optimize
from onnxopt.spec import Array
from tests.support.rules import parse, run_passes

GENERATOR = np.random.default_rng(11)


def weight(*shape: int) -> Array:
    return np.asarray(GENERATOR.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


MOBILE = """
  c0 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0)  b0 = Add(c0, t0)  a0 = Add(b0, three)  k0 = Clip(a0, zero, six)
  m0 = Mul(b0, k0)  h0 = Div(m0, six)
  e1 = Conv(h0, w1, t1)  r1 = Relu(e1)
  d1 = Conv<pads=[1,1,1,1], group=24>(r1, w2, t1)  q1 = Relu(d1)
  g1 = GlobalAveragePool(q1)  s1 = Conv(g1, w3, t3)  u1 = Relu(s1)  v1 = Conv(u1, w4, t1)
  z1 = HardSigmoid<alpha=0.2, beta=0.5>(v1)  o1 = Mul(q1, z1)
  p1 = Conv(o1, w5, t5)  x1 = Add(h0, p1)
  f1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x1, w6, t1)  n1 = Clip(f1, zero, six)
  g2 = GlobalAveragePool(n1)  flat = Flatten(g2)  logits = Gemm(flat, w7, t7)  y = Softmax(logits)
"""


def mobile(path: Path) -> Path:
    """Write a network with depthwise convolutions, a gate, a residual and both kinds of activations."""
    tensors = {
        "w0": weight(16, 3, 3, 3),
        "t0": weight(1, 16, 1, 1),
        "w1": weight(24, 16, 1, 1),
        "t1": weight(24),
        "w2": weight(24, 1, 3, 3),
        "w3": weight(8, 24, 1, 1),
        "t3": weight(8),
        "w4": weight(24, 8, 1, 1),
        "w5": weight(16, 24, 1, 1),
        "t5": weight(16),
        "w6": weight(24, 16, 3, 3),
        "w7": 4 * weight(24, 5),
        "t7": weight(5),
        **{name: np.array(value, np.float32) for name, value in (("zero", 0), ("three", 3), ("six", 6))},
    }
    text = f"g (float[batch,3,height,width] x) => (float[batch,5] y) {{ {MOBILE} }}"
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 12]>\n' + text)
    for name, array in tensors.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def pictures(folder: Path, count: int, size: int = 48) -> Path:
    """Write smooth coloured pictures, one file each."""
    folder.mkdir()
    generator = np.random.default_rng(4)
    ramp = np.linspace(0, 3, size)
    for number in range(count):
        waves = [np.sin(a * ramp[:, None] + b * ramp[None] + c) for a, b, c in generator.normal(0, 2, (3, 3))]
        noise = 0.1 * generator.standard_normal((3, size, size))
        np.savez(folder / f"{number:03d}.npz", x=(np.stack(waves) + noise).astype(np.float32)[None])
    return folder


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "feeds", 48)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mobile(tmp_path_factory.mktemp("network") / "mobile.onnx")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, network: Path, feeds: Path) -> Artifact:
    out = tmp_path_factory.mktemp("out") / "int8"
    return optimize(network, out=out, precision="int8", calibration=str(feeds), measure=False, budget="agreement>=90%")


def ops(artifact: Artifact) -> Counter[str]:
    graph = onnx.load(artifact.path / "model.onnx").graph
    return Counter(node.op_type for node in graph.node)


def record_of(artifact: Artifact) -> QuantizationRecord:
    record = artifact.manifest.quantization
    assert record is not None
    return record


def test_integers_go_from_end_to_end(artifact: Artifact) -> None:
    record, found = record_of(artifact), ops(artifact)
    assert record.shipped, record.reason
    assert {layer.precision for layer in record.layers.values()} == {"int8"}
    assert found["QLinearConv"] == 7
    assert found["MatMulIntegerToFloat"] == 1
    assert (found["QuantizeLinear"], found["Conv"], found["Relu"], found["HardSwish"]) == (1, 0, 0, 0)


def test_is_judged_by_the_class_on_pictures_that_were_never_seen(artifact: Artifact) -> None:
    gate = record_of(artifact).gate
    assert gate is not None
    assert (gate.metric, gate.samples) == ("agreement", 12)
    assert gate.holds


def test_layers_are_ranked_with_a_reason(artifact: Artifact) -> None:
    found = record_of(artifact).sensitivities
    assert len(found) == 8
    assert [one.loss for one in found] == sorted((one.loss for one in found), reverse=True)
    assert all(one.reason for one in found)


def test_kept_layers_stay_and_the_rest_still_hands_on_integers(network: Path, feeds: Path, tmp_path: Path) -> None:
    options = {"precision": "int8", "calibration": str(feeds), "measure": False, "budget": "agreement>=75%"}
    made = optimize(network, out=tmp_path / "out", keep="w2|w7", **options)  # type: ignore[arg-type]  # of both types
    assert {label for label, one in record_of(made).layers.items() if one.reason == "kept by the user"} == {"w2", "w7"}
    found = ops(made)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (6, 1)
    with pytest.raises(InputError, match="matches no"):
        optimize(network, out=tmp_path / "none", keep="no_such_layer", **options)  # type: ignore[arg-type]  # same


def test_a_budget_that_nothing_meets_ships_the_float_graph(network: Path, feeds: Path, tmp_path: Path) -> None:
    made = optimize(
        network, out=tmp_path / "out", precision="int8", calibration=str(feeds), measure=False,
        budget="agreement>=100%", keep="w0|w1|w2|w3|w4|w5|w6",
    )  # fmt: skip
    record = record_of(made)
    assert record.gate is not None
    assert record.shipped == record.gate.holds
    assert ops(made)["QLinearConv"] == 0


def test_portable_and_tensorrt_get_plain_grids(network: Path, feeds: Path, tmp_path: Path) -> None:
    for target in ("portable", "tensorrt"):
        made = optimize(
            network, out=tmp_path / target, target=target, precision="int8", calibration=str(feeds), measure=False,
            budget="agreement>=75%",
        )  # fmt: skip
        graph = onnx.load(made.path / "model.onnx").graph
        assert record_of(made).shipped, record_of(made).reason
        assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
        kinds = {init.name: init.data_type for init in graph.initializer}
        points = {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"}
        assert points == {onnx.TensorProto.UINT8 if target == "portable" else onnx.TensorProto.INT8}
        assert Counter(node.op_type for node in graph.node)["Conv"] == 7


def test_resnet_of_transformers_is_quantized_through_its_residuals(tmp_path: Path, feeds: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(num_channels=3, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic")
    ResNetForImageClassification(config).eval().save_pretrained(tmp_path / "resnet")
    images = tmp_path / "images"
    images.mkdir()
    for file in feeds.iterdir():
        np.savez(images / file.name, pixel_values=np.load(file)["x"])
    made = optimize(
        tmp_path / "resnet", out=tmp_path / "out", task="image-classification", precision="int8",
        calibration=str(images), measure=False, budget="agreement>=50%",
    )  # fmt: skip
    found = ops(made)
    assert record_of(made).shipped, record_of(made).reason
    assert found["QLinearConv"] == len([label for label in record_of(made).layers if "classifier" not in label])
    assert found["QLinearAdd"] == 3
    assert (found["Conv"], found["Relu"]) == (0, 0)


def test_layers_inside_a_branch_stay_and_are_listed(tmp_path: Path) -> None:
    """Quantizers skip or refuse what lies in subgraphs; here the rest is quantized, and the list says so."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch,16] x) => (float[batch,8] y) {
        h = MatMul(x, outer) most = ReduceMax<keepdims=0>(x) flag = Greater(most, limit)
        y = If (flag) <
            then_branch = t () => (float[batch,8] a) { a = MatMul(h, inner) },
            else_branch = e () => (float[batch,8] b) { c = MatMul(h, inner) b = Relu(c) }
        >
    }"""
    proto = onnx.parser.parse_model(text)
    for name, array in (("outer", weight(16, 16)), ("inner", weight(16, 8)), ("limit", np.array(2, np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path, feeds = tmp_path / "branches.onnx", tmp_path / "feeds.npz"
    onnx.save(proto, path)
    np.savez(feeds, x=GENERATOR.standard_normal((32, 16)).astype(np.float32))
    options = {"precision": "int8", "calibration": str(feeds), "measure": False, "budget": "cosine>=0.9"}
    layers = record_of(optimize(path, out=tmp_path / "out", **options)).layers  # type: ignore[arg-type]  # of all types
    assert layers["outer"].precision == "int8"
    assert (layers["inner"].precision, layers["inner"].reason) == ("fp32", "it lies inside a branch or a loop")


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_answers_do_not_depend_on_what_the_session_makes_of_the_graph(
    artifact: Artifact, feeds: Path, level: str
) -> None:
    """A known fault of quantized graphs: accuracy that is lost only with the session's optimizations on."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(str(artifact.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    golden = artifact.session()
    for file in sorted(feeds.iterdir())[:4]:
        x = np.load(file)["x"]
        assert np.abs(session.run(None, {"x": x})[0] - golden.run({"x": x})["y"]).max() < 0.02


def test_the_emulation_rounds_what_the_graph_rounds() -> None:
    """What a plan is measured by is what its integers give."""
    model = parse(
        "g (float[batch,3,height,height] x) => (float y) { c = Conv(x, w, b) r = Relu(c) y = Conv(r, v) }",
        {"w": weight(6, 3, 3, 3), "b": weight(6), "v": weight(4, 6, 1, 1)},
    )
    grids = {"x": Affine(0.03, 128), "r": Affine(0.02, 0), "y": Affine(0.03, 128)}
    weights = {name: constant(model.graph.initializers[name]) for name in ("w", "v")}
    plan = Plan(
        {
            name: PlannedLinear(Precision("int8"), columns=kernels(array))
            for name, array in weights.items()
            if array is not None
        },
        grids,
    )
    feeds = {"x": GENERATOR.standard_normal((2, 3, 9, 9)).astype(np.float32)}
    emulated = GraphRunner(emulate(model, plan)).run(feeds)[0]["y"]
    outcome = run_passes(model, QuantizeConv(plan), "drop-requantize", "lower-quantized-conv", "remove-unused")
    assert "Conv" not in outcome.ops
    found = GraphRunner(outcome.model).run(feeds)[0]["y"]
    assert np.abs(found - emulated).max() <= 0.03 * 1.01, "one step at most"
    assert (np.abs(found - emulated) > 1e-6).mean() < 0.02


@pytest.mark.parametrize(("products", "layers", "samples"), [(0, 1, 8), (1e6, 37, 8), (3e8, 60, 3), (5e9, 150, 1)])
def test_layers_are_ranked_on_as_many_samples_as_a_network_computes_fast(
    products: float, layers: int, samples: int
) -> None:
    assert ranked_on(products, layers) == samples
