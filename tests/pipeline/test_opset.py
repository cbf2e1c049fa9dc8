"""Raising an opset: every changed operator keeps its answer, or the model keeps its opset and says why.

Covers: pipeline/opset_rules.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.graph import opset
from onnxopt.graph.weight_files import WeightFile
from onnxopt.load.safety.structure import MAX_OPSET, MIN_OPSET
from onnxopt.pipeline.opset import _by_onnx, _by_rules, raise_opset
from onnxopt.pipeline.opset_rules import RULES, Edit, compatible
from onnxopt.probe.runners import GraphRunner
from onnxopt.qmath.compare import worst_error
from onnxopt.spec import Feeds

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Weights = dict[str, Any]
TYPES = {"float32": FLOAT, "float64": TensorProto.DOUBLE, "int64": INT64, "bool": TensorProto.BOOL}


def build(
    nodes: Sequence[onnx.NodeProto], version: int, feed: Feeds, weights: Weights | None = None, output: int = FLOAT
) -> ir.Model:
    """A model that gives y of any shape; nothing inside has a declared shape, as TorchScript leaves it."""
    graph = helper.make_graph(
        list(nodes),
        "main",
        [
            helper.make_tensor_value_info(name, TYPES[array.dtype.name], [f"{name}_{i}" for i in range(array.ndim)])
            for name, array in feed.items()
        ],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=7))


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=operator.lower(), **attributes)


@pytest.fixture
def only_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the libraries from helping, so that a rule is seen to work by itself."""
    monkeypatch.setattr("onnxopt.pipeline.opset._converters", lambda _: iter([_by_rules]))


# onnxruntime 1.23, the newest for Python 3.10, runs opset 23 at most
TARGETS = (20, 23, 25) if tuple(map(int, onnxruntime.__version__.split(".")[:2])) > (1, 23) else (20, 23)
X3 = {"x": numbers(3, 4, 5)}
IMAGE = {"x": numbers(2, 4, 6, 6)}
ROIS = {"rois": np.array([[0, 0, 3, 3], [1, 1, 5, 4]], dtype=np.float32), "index": np.array([0, 1])}
NORM = {name: np.linspace(0.5, 1.5, 4, dtype=np.float32) for name in ("scale", "bias", "mean", "variance")}

CASES: dict[str, tuple[int, list[onnx.NodeProto], Feeds, Weights]] = {
    "Slice-9": (9, [node("Slice", "x", starts=[1, -4], ends=[3, 100], axes=[1, 2])], X3, {}),
    "Slice-9 without axes": (9, [node("Slice", "x", starts=[1], ends=[3])], X3, {}),
    "TopK-9": (9, [node("TopK", "x", "y places", k=2, axis=1)], X3, {}),
    "Upsample-9 nearest": (
        9,
        [node("Upsample", "x scales", mode="nearest")],
        IMAGE,
        {"scales": np.array([1, 1, 2, 3], dtype=np.float32)},
    ),
    "Upsample-9 linear": (
        9,
        [node("Upsample", "x scales", mode="linear")],
        IMAGE,
        {"scales": np.array([1, 1, 2, 2], dtype=np.float32)},
    ),
    "Resize-10 linear": (
        10,
        [node("Resize", "x scales", mode="linear")],
        IMAGE,
        {"scales": np.array([1, 1, 0.5, 2], dtype=np.float32)},
    ),
    "Scatter-9": (
        9,
        [node("Scatter", "x places new", axis=1)],
        {"x": numbers(3, 5)},
        {"places": np.array([[0, 2], [1, 4]]), "new": numbers(2, 2)},
    ),
    "Clip-9": (9, [node("Clip", "x", min=-0.5, max=0.25)], X3, {}),
    "Clip-9 half open, inner value": (9, [node("Neg", "x", "n"), node("Clip", "n", max=0.25)], X3, {}),
    "Clip-9 open": (9, [node("Clip", "x")], X3, {}),
    "Pad-9": (9, [node("Pad", "x", pads=[0, 1, 0, 2, 0, 1], value=1.5)], X3, {}),
    "Pad-9 reflect": (9, [node("Pad", "x", pads=[0, 1, 1, 0, 1, 1], mode="reflect")], X3, {}),
    "Dropout-9": (9, [node("Dropout", "x", ratio=0.3)], X3, {}),
    "BatchNormalization-9": (9, [node("BatchNormalization", "x scale bias mean variance")], IMAGE, NORM),
    "ReduceSum-11": (11, [node("ReduceSum", "x", axes=[0, -1], keepdims=0)], X3, {}),
    "ReduceSum-11 of all": (11, [node("ReduceSum", "x")], X3, {}),
    "ReduceMean-17": (17, [node("ReduceMean", "x", axes=[-1])], X3, {}),
    "ReduceMax-17 of all": (17, [node("ReduceMax", "x", keepdims=0)], X3, {}),
    "ReduceL2-9": (9, [node("ReduceL2", "x", axes=[1])], X3, {}),
    "Squeeze-9": (9, [node("Squeeze", "x", axes=[1])], {"x": numbers(3, 1, 1)}, {}),
    "Squeeze-9 of all": (9, [node("Squeeze", "x")], {"x": numbers(3, 1, 2)}, {}),
    "Unsqueeze-11": (11, [node("Unsqueeze", "x", axes=[0, -1])], X3, {}),
    "Split-9 by sizes": (9, [node("Split", "x", "y z", axis=1, split=[1, 3])], X3, {}),
    "Split-9 in equal parts": (9, [node("Split", "x", "y z", axis=1)], X3, {}),
    "RoiAlign-10": (10, [node("RoiAlign", "x rois index", output_height=2, output_width=2)], IMAGE, ROIS),
    "GridSample-16": (
        16,
        [node("GridSample", "x grid")],
        {**IMAGE, "grid": np.clip(numbers(2, 3, 3, 2), -1, 1)},
        {},
    ),
    "GridSample-16 bicubic": (
        16,
        [node("GridSample", "x grid", mode="bicubic")],
        {**IMAGE, "grid": np.clip(numbers(2, 3, 3, 2), -1, 1)},
        {},
    ),
    "DFT-17": (17, [node("DFT", "x")], {"x": numbers(2, 8, 6, 2)}, {}),
    "LSTM-9": (
        9,
        [node("LSTM", "x w r", "y", hidden_size=2)],
        {"x": numbers(3, 2, 4)},
        {"w": numbers(1, 8, 4), "r": numbers(1, 8, 2)},
    ),
    "AveragePool-9": (9, [node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])], IMAGE, {}),
    "OneHot-9": (
        9,
        [node("OneHot", "ids depth values")],
        {"ids": np.array([[0, 2], [1, 4]])},
        {"depth": np.array(5), "values": np.array([0, 1], dtype=np.float32)},
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_keeps_the_answer_of_each_changed_operator(case: str, target: int, only_rules: None) -> None:
    version, nodes, feed, weights = CASES[case]
    model = build(nodes, version, feed, weights)
    raised, reason = raise_opset(model, target, [feed])
    if "Could not find an implementation" in reason:  # ONNX Runtime has no kernel yet for the newer version
        assert (case, raised) == ("RoiAlign-10", model)
        return
    assert reason == ""
    assert opset(raised) == target
    assert opset(model) == version
    assert_same(model, raised, feed)


def assert_same(model: ir.Model, raised: ir.Model, feed: Feeds) -> None:
    expected, found = GraphRunner(model).run(feed)[0], GraphRunner(raised).run(feed)[0]
    assert list(expected) == list(found)
    for name, reference in expected.items():
        assert worst_error(found[name], reference)[0] <= 1e-5


def test_every_rule_has_a_case() -> None:
    covered = {item.op_type for _, nodes, _, _ in CASES.values() for item in nodes}
    elsewhere = {"Softmax", "LogSoftmax", "Hardmax", "GroupNormalization", "Scan"}
    assert {operator.replace("Resize", "Upsample") for operator, _ in RULES} - covered - elsewhere == {
        f"Reduce{name}"
        for name in ("L1", "LogSum", "LogSumExp", "Min", "Prod", "SumSquare")  # one rule for all
    }


def test_every_change_between_opsets_is_known_or_only_adds() -> None:
    unknown = set()
    for schema in onnx.defs.get_all_schemas_with_history():
        version = schema.since_version
        if schema.domain or not MIN_OPSET < version <= MAX_OPSET or (schema.name, version) in RULES:
            continue
        try:
            old = onnx.defs.get_schema(schema.name, version - 1, "")
        except onnx.defs.SchemaError:
            continue
        if not old.deprecated and not compatible(old, schema):
            unknown.add((schema.name, version))
    assert unknown == set()


@settings(max_examples=60, deadline=None)
@given(
    operator=st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    place=st.integers(0, 3),
    sign=st.sampled_from([1, -1]),
    source=st.sampled_from(["x", "n"]),
)
def test_softmax_keeps_its_meaning_on_every_axis(
    operator: str, shape: list[int], place: int, sign: int, source: str
) -> None:
    axis = place % len(shape)
    middle = node(operator, source, "s", axis=axis - len(shape) if sign < 0 else axis)
    nodes = [node("Neg", "x", "n"), middle, node("Abs", "s")]
    feed = {"x": numbers(*shape)}
    model = build(nodes, 11, feed)
    raised, reason = raise_opset(model, 13, [feed])
    assert reason == ""
    assert_same(model, raised, feed)


def test_softmax_over_the_last_axis_stays_one_node(only_rules: None) -> None:
    model = build([node("Neg", "x", "n"), node("Softmax", "n", axis=2)], 12, X3)
    raised, reason = raise_opset(model, 20, [X3])
    assert reason == ""
    assert [item.op_type for item in raised.graph] == ["Neg", "Softmax"]


def test_softmax_that_is_the_output_keeps_its_name(only_rules: None) -> None:
    model = build([node("Softmax", "x", axis=1)], 12, X3)
    raised, reason = raise_opset(model, 20, [X3])
    assert reason == ""
    assert [value.name for value in raised.graph.outputs] == ["y"]
    assert [item.op_type for item in raised.graph] == ["Flatten", "Shape", "Softmax", "Reshape"]


def test_raises_the_bodies_of_branches(only_rules: None) -> None:
    outputs = [helper.make_tensor_value_info("z", FLOAT, None)]
    body = [node("ReduceSum", "x", "r", axes=[1]), node("Softmax", "r", "z", axis=1)]
    then = helper.make_graph(body, "then", [], outputs)
    other = helper.make_graph([node("Unsqueeze", "x", "z", axes=[0])], "else", [], outputs)
    feed = {"x": numbers(3, 4, 5), "condition": np.array(True)}  # noqa: FBT003 - a tensor
    model = build([node("If", "condition", then_branch=then, else_branch=other)], 12, feed)
    opposite = {**feed, "condition": np.array(False)}  # noqa: FBT003 - same
    raised, reason = raise_opset(model, 23, [feed, opposite])
    assert reason == ""
    assert_same(model, raised, feed)
    assert_same(model, raised, opposite)


def test_raises_through_functions_of_the_model(only_rules: None) -> None:
    opsets = [helper.make_opsetid("", 13)]
    function = helper.make_function("local", "f", ["a"], ["b"], [node("ReduceMean", "a", "b", axes=[1])], opsets)
    graph = helper.make_graph(
        [helper.make_node("f", ["x"], ["y"], domain="local")],
        "main",
        [helper.make_tensor_value_info("x", FLOAT, ["a", "b", "c"])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    imports = [*opsets, helper.make_opsetid("local", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8))
    raised, reason = raise_opset(model, 20, [X3])
    assert reason == ""
    assert_same(model, raised, X3)


def test_leaves_a_new_enough_model_alone() -> None:
    model = build([node("Relu", "x")], 20, X3)
    assert raise_opset(model, 18, [X3]) == (model, "")


def test_stays_and_says_why_when_there_is_nothing_to_compare_on() -> None:
    model = build([node("Relu", "x")], 17, X3)
    assert raise_opset(model, 20, []) == (model, "there are no inputs to compare the result on")


def test_stays_and_says_why_when_a_scan_runs_over_batches() -> None:
    assert "over batches" in RULES["Scan", 9](Edit(ir.node("Scan", []), set(), {}))


def test_refuses_statistics_for_each_element_of_a_channel() -> None:
    edit = Edit(ir.node("BatchNormalization", [], {"spatial": 0}), set(), {})
    assert "each element" in RULES["BatchNormalization", 9](edit)


def test_stays_and_says_why_beyond_the_newest_opset() -> None:
    model = build([node("Relu", "x")], 17, X3)
    assert raise_opset(model, 29, [X3]) == (model, "opset 29 is beyond the newest supported, 28")


def test_stays_and_says_why_when_nearest_rounding_changed() -> None:
    scales = {"scales": np.array([1, 1, 0.4, 0.4], dtype=np.float32)}
    model = build([node("Resize", "x scales", mode="nearest")], 10, IMAGE, scales)
    raised, reason = raise_opset(model, 20, [IMAGE])
    assert raised is model
    assert opset(model) == 10
    assert reason.startswith("opset stays 10 instead of 20: node 'resize' (Resize) shrinks by nearest neighbour")


def test_stays_and_says_why_when_the_answer_moves(monkeypatch: pytest.MonkeyPatch, only_rules: None) -> None:
    def wrong(edit: Any) -> str:
        edit.take("axes")
        return ""

    monkeypatch.setitem(RULES, ("ReduceMean", 18), wrong)
    model = build([node("ReduceMean", "x", axes=[1])], 17, X3)
    raised, reason = raise_opset(model, 20, [X3])
    assert raised is model
    assert "gives another answer: output 'y'" in reason


def test_falls_back_to_a_library_when_no_rule_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, ("ReduceMean", 18))
    model = build([node("ReduceMean", "x", axes=[1])], 17, X3)
    raised, reason = raise_opset(model, 20, [X3])
    assert reason == ""
    assert_same(model, raised, X3)


def test_large_weights_stay_in_their_files_while_onnx_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.pipeline.opset.LEAST_BYTES", 256)
    monkeypatch.setattr("onnxopt.pipeline.opset.MAX_NATIVE_BYTES", 600)
    feed, weights = {"x": numbers(3, 8)}, {"w": numbers(8, 40), "b": numbers(40)}
    nodes = [node("MatMul", "x w", "p"), node("Add", "p b", "s"), node("Unsqueeze", "s", axes=[0])]
    model = build(nodes, 11, feed, weights)
    stored = WeightFile(tmp_path / "weights").add(weights["w"], "w")
    model.graph.initializers["w"].const_value = stored
    expected = GraphRunner(model).run(feed)[0]["y"]
    raised = _by_onnx(model, 13, feed)
    assert raised.graph.initializers["w"].const_value is stored
    assert model.graph.initializers["w"].const_value is stored
    assert [value.name for value in raised.graph.inputs] == [value.name for value in model.graph.inputs] == ["x"]
    assert (opset(raised), {"w", "b"} - set(raised.graph.initializers)) == (13, set())
    np.testing.assert_array_equal(GraphRunner(raised).run(feed)[0]["y"], expected)


def test_onnx_converts_no_more_small_weights_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.pipeline.opset.MAX_NATIVE_BYTES", 600)
    model = build([node("MatMul", "x w")], 11, {"x": numbers(3, 8)}, {"w": numbers(8, 40)})
    with pytest.raises(Exception, match="its weights of 1280 bytes are too large"):
        _by_onnx(model, 13, {})


def test_group_normalization_repeats_its_scale_when_channels_are_known(only_rules: None) -> None:
    weights = {"scale": np.array([1, 2], dtype=np.float32), "bias": np.array([0, 1], dtype=np.float32)}
    model = build([node("GroupNormalization", "x scale bias", num_groups=2)], 20, IMAGE, weights)
    raised, reason = raise_opset(model, 21, [IMAGE])
    assert raised is model
    assert reason.endswith("(GroupNormalization) has an unknown number of channels")
    model.graph.inputs[0].shape = ir.Shape(["batch", 4, "height", "width"])
    raised, reason = raise_opset(model, 21, [IMAGE])
    assert reason == ""
    assert_same(model, raised, IMAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("version", [11, 12, 14, 17])
def test_raises_a_torchscript_export_of_bert(version: int, folder: Path, only_rules: None) -> None:
    import torch
    from transformers import AutoModel, BertConfig

    from onnxopt.load.onnx_file import load_onnx

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                vocab_size=50,
                max_position_embeddings=24,
            )
            self.model = AutoModel.from_config(config, attn_implementation="eager").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.model(input_ids, attention_mask, return_dict=False)[0]
            return output

    path = folder / f"bert_{version}.onnx"
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Flat(),
        (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)),
        path,
        dynamo=False,
        opset_version=version,
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden": axes},
    )
    loaded = load_onnx(path)
    feeds = [loaded.feeder.make({}, "right", 1), loaded.feeder.make({"batch": 3, "sequence": 5}, "left", 2)]
    for target in (20, 23):
        raised, reason = raise_opset(loaded.model, target, feeds)
        assert reason == ""
        assert sum(1 for _ in raised.graph) == sum(1 for _ in loaded.model.graph)
        assert_same(loaded.model, raised, feeds[1])
