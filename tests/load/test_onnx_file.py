"""Importing a file: axes get names, inputs get sense, the file itself stays the reference.

Covers: load/graph_feeder.py, load/reference.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.artifact.stacks import served_model
from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.graph.cache import served
from onnxopt.graph.roles import role_of
from onnxopt.load.graph_feeder import GraphFeeder, InputPlan, plan_input
from onnxopt.load.onnx_file import load_onnx
from onnxopt.load.reference import OrtReference
from onnxopt.pipeline.pipeline import run_pipeline
from onnxopt.proof.cases import cases_of
from onnxopt.proof.observations import observations_of
from onnxopt.spec import PADDINGS, Array, Padding, Target, TensorSpec
from tests.support.bad_models import good_model, save, write_good
from tests.support.rules import parse

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Dims = Sequence[int | str | None]


def build(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Dims]],
    outputs: Mapping[str, tuple[int, Dims | None]],
    weights: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """A model at opset 17."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, dtype, list(dims)) for name, (dtype, dims) in inputs.items()],
        [
            helper.make_tensor_value_info(name, dtype, None if dims is None else list(dims))
            for name, (dtype, dims) in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def encoder(dims: Dims = (None, None), positions: int = 24) -> onnx.ModelProto:
    """Token embedding + learned positions, masked: the smallest thing that looks like an encoder."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "word.weight": rng.standard_normal((50, 4)).astype(np.float32),
        "position.weight": rng.standard_normal((positions, 4)).astype(np.float32),
        "zero": np.array(0, dtype=np.int64),
        "one": np.array(1, dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32),
        helper.make_node("Gather", ["word.weight", "ids"], ["words"]),
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["range"]),
        helper.make_node("Gather", ["position.weight", "range"], ["places"]),
        helper.make_node("Add", ["words", "places"], ["sum"]),
        helper.make_node("Unsqueeze", ["attention_mask", "two"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["mask"], to=FLOAT),
        helper.make_node("Mul", ["sum", "mask"], ["hidden"]),
    ]
    inputs = {"input_ids": (INT64, dims), "attention_mask": (INT64, dims)}
    return build(nodes, inputs, {"hidden": (FLOAT, None)}, weights)


def test_names_open_axes_of_an_encoder(tmp_path: Path) -> None:
    loaded = load_onnx(save(encoder(), tmp_path, "tiny.onnx"))
    assert [spec.axes for spec in loaded.signature.inputs] == [("batch", "sequence")] * 2
    assert [spec.axes for spec in loaded.signature.outputs] == [("batch", "sequence", 4)]
    assert loaded.name == "tiny"
    assert loaded.task == "onnx"
    assert len(loaded.notes) == 3
    assert loaded.notes[0].startswith(
        "axis 0 of 'input_ids', axis 0 of 'attention_mask' without a name: taken for 'batch'"
    )
    assert loaded.notes[1].startswith(
        "axis 1 of 'input_ids', axis 1 of 'attention_mask' without a name: taken for 'seq"
    )
    assert loaded.notes[2] == "axis 'sequence' runs up to 24 only"
    assert [str(dim.value) for dim in loaded.model.graph.inputs[0].shape or [] if not isinstance(dim, int)] == [
        "batch",
        "sequence",
    ]


def test_keeps_the_names_of_the_file(tmp_path: Path) -> None:
    loaded = load_onnx(save(encoder(dims=("N", "seq_len")), tmp_path))
    assert loaded.names == {"batch": "N", "sequence": "seq_len"}
    assert served(loaded.signature, loaded.names).axes == ("N", "seq_len")
    written = served_model(loaded.model, loaded.signature, loaded.names)
    assert [str(dim) for dim in written.graph.inputs[0].shape or []] == ["N", "seq_len"]
    assert [str(dim) for dim in written.graph.outputs[0].shape or []] == ["N", "seq_len", "4"]


def test_answers_to_the_usual_names_of_axes(tmp_path: Path) -> None:
    loaded = load_onnx(save(encoder(dims=("N", "seq_len")), tmp_path))
    assert loaded.feeder.make({"batch": 3, "sequence": 5})["input_ids"].shape == (3, 5)


def test_finds_the_longest_sequence(tmp_path: Path) -> None:
    loaded = load_onnx(save(encoder(positions=24), tmp_path))
    assert loaded.feeder.make({"sequence": 24})["input_ids"].shape == (2, 24)
    with pytest.raises(InputError, match="'sequence' is asked at 25; the model takes at most 24"):
        loaded.feeder.make({"sequence": 25})


def test_proves_other_sizes(tmp_path: Path) -> None:
    loaded = load_onnx(save(encoder(), tmp_path))
    assert {"batch": 2, "sequence": 8} in loaded.proved_sizes
    assert {"batch": 1, "sequence": 8} in loaded.proved_sizes
    assert {"batch": 2, "sequence": 11} in loaded.proved_sizes


def test_ids_stay_inside_the_table_and_masks_are_flags(tmp_path: Path) -> None:
    feeds = load_onnx(save(encoder(), tmp_path)).feeder.make({"batch": 16, "sequence": 24}, "right", seed=1)
    assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() < 50
    assert set(np.unique(feeds["attention_mask"])) == {0, 1}
    assert feeds["attention_mask"][0].all()
    assert not feeds["attention_mask"][1:, -1].any()


def test_open_axes_that_need_not_be_equal_get_names_of_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["a"], ["mean_a"], axes=[0, 1], keepdims=0),
        helper.make_node("ReduceMean", ["b"], ["mean_b"], axes=[0, 1], keepdims=0),
        helper.make_node("Add", ["mean_a", "mean_b"], ["y"]),
    ]
    model = build(nodes, {"a": (FLOAT, (None, None, 3)), "b": (FLOAT, (None, None, 3))}, {"y": (FLOAT, (3,))})
    loaded = load_onnx(save(model, tmp_path))
    assert [spec.axes for spec in loaded.signature.inputs] == [("a_dim0", "a_dim1", 3), ("batch", "sequence", 3)]


def test_notes_an_axis_that_is_frozen_inside(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = np.array([2, -1], dtype=np.int64)
    model = build(nodes, {"x": (FLOAT, ("batch", 3))}, {"y": (FLOAT, (2, "rest"))}, {"shape": shape})
    nodes.append(helper.make_node("Add", ["y", "fixed"], ["z"]))
    frozen = build(
        nodes,
        {"x": (FLOAT, ("batch", 3))},
        {"z": (FLOAT, (2, 3))},
        {"shape": shape, "fixed": np.ones((2, 3), dtype=np.float32)},
    )
    even = load_onnx(save(model, tmp_path))
    assert even.notes == ["axis 'batch' runs at multiples of 2 only"]
    assert even.runnable({"batch": 3}) == {"batch": 4}
    fixed = load_onnx(save(frozen, tmp_path))
    assert fixed.notes == ["axis 'batch' is declared dynamic but only size 2 was seen to run; it is written as 2"]
    assert fixed.signature.inputs[0].axes == (2, 3)


def test_notes_axes_that_are_tied(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["a", "fixed"], ["wide"], axis=1),
        helper.make_node("MatMul", ["wide", "b"], ["y"]),
    ]
    inputs: dict[str, tuple[int, Dims]] = {"a": (FLOAT, (3, "left")), "b": (FLOAT, ("right", 3))}
    untied = build([helper.make_node("MatMul", ["a", "b"], ["y"])], inputs, {"y": (FLOAT, (3, 3))})
    assert load_onnx(save(untied, tmp_path)).notes == ["axes 'left', 'right' only run at equal sizes"]
    model = build(nodes, inputs, {"y": (FLOAT, (3, 3))}, {"fixed": np.ones((3, 1), dtype=np.float32)})
    with pytest.raises(InputError, match="cannot be run with a"):
        load_onnx(save(model, tmp_path))


def test_corrects_an_output_axis_that_the_runs_contradict(tmp_path: Path) -> None:
    model = encoder()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("hidden", FLOAT, ["batch", "batch", 4]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input_ids", INT64, ["batch", "sequence"]))
    loaded = load_onnx(save(model, tmp_path))
    assert loaded.signature.outputs[0].axes == ("batch", "sequence", 4)
    assert any("'hidden' declares axis 1 as batch" in note for note in loaded.notes)


def test_inputs_with_defaults_stay_inputs_that_may_be_left_out(tmp_path: Path) -> None:
    model = good_model()
    model.graph.input.append(helper.make_tensor_value_info("bias", FLOAT, [4]))
    loaded = load_onnx(save(model, tmp_path))
    assert [(spec.name, spec.form) for spec in loaded.signature.inputs] == [("x", ""), ("bias", "default")]
    assert loaded.notes == []
    assert np.array_equal(loaded.feeder.make({}, seed=0)["bias"], numpy_helper.to_array(model.graph.initializer[1]))
    assert not np.array_equal(loaded.feeder.make({}, seed=0)["bias"], loaded.feeder.make({}, seed=1)["bias"])


def test_weights_that_are_all_listed_as_inputs_become_weights(tmp_path: Path) -> None:
    weight = np.ones((128, 256), np.float32)
    model = build(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        {"x": (FLOAT, ("n", 128)), "w": (FLOAT, (128, 256)), "b": (FLOAT, (256,))},
        {"y": (FLOAT, ("n", 256))},
        {"w": weight, "b": weight[0]},
    )
    loaded = load_onnx(save(model, tmp_path))
    assert [spec.name for spec in loaded.signature.inputs] == ["x"]
    assert loaded.notes == ["all weights were listed as inputs and are none any more (2): w, b"]


def test_reads_external_data_where_it_lies(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    (tmp_path / "model.data").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    loaded = load_onnx(path)
    weight = loaded.model.graph.initializers["weight"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.numpy()[3, 3] == 15
    assert set(loaded.origin["external_sha256"]) == {"model.data"}


def test_reads_external_data_through_a_hugging_face_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_good(blobs)
    for name in ("model.onnx", "model.data"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (blobs / "config.json").write_text("{}", encoding="utf-8")
    (snapshot / "config.json").symlink_to("../../blobs/config.json")
    (tmp_path / "outside.json").write_text("{}", encoding="utf-8")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    loaded = load_onnx(snapshot / "model.onnx")
    weight = loaded.model.graph.initializers["weight"].const_value
    assert weight is not None
    assert weight.numpy().shape == (4, 4)
    assert loaded.assets == (snapshot / "config.json",)
    assert loaded.reference.run(loaded.feeder.make({}))["y"].shape == (2, 4)


def test_names_the_artifact_after_the_folder_when_the_file_is_called_model(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    assert load_onnx(save(good_model(), folder)).name == "my-model"


def test_takes_sequences_for_what_they_are(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
    model = build([node], {"x": (FLOAT, ("batch", 4))}, {"y": (FLOAT, ("batch", 4))})
    value = model.graph.output[0]
    value.type.sequence_type.elem_type.CopyFrom(helper.make_tensor_type_proto(FLOAT, ["batch", 4]))
    loaded = load_onnx(save(model, tmp_path))
    assert [(spec.form, spec.dtype) for spec in loaded.signature.outputs] == [("sequence", "float32")]
    assert [part.shape for part in loaded.reference.run(loaded.feeder.make({"batch": 3}))["y"]] == [(3, 4), (3, 4)]


def test_refuses_outputs_that_are_neither_tensors_nor_sequences_of_them(tmp_path: Path) -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    model = build([node], {"x": (FLOAT, ("batch", 2))}, {"y": (FLOAT, None)})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    kind = model.graph.output[0].type.sequence_type.elem_type.map_type
    kind.key_type = INT64
    kind.value_type.tensor_type.elem_type = FLOAT
    with pytest.raises(InputError, match="output 'y' is neither a tensor nor a sequence of tensors"):
        load_onnx(save(model, tmp_path))


def test_refuses_types_that_cannot_be_fed(tmp_path: Path) -> None:
    dims = ("batch", 4)
    node = helper.make_node("Identity", ["x"], ["y"])
    model = build([node], {"x": (TensorProto.COMPLEX64, dims)}, {"y": (TensorProto.COMPLEX64, dims)})
    with pytest.raises(InputError, match="'x' has the type COMPLEX64"):
        load_onnx(save(model, tmp_path))


def test_says_in_one_line_why_a_model_does_not_run(tmp_path: Path) -> None:
    model = good_model()
    model.graph.node[2].op_type = "Gather"  # takes two inputs
    with pytest.raises(InputError, match=r"ONNX Runtime .* cannot open it: ") as caught:
        load_onnx(save(model, tmp_path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_reference_names_itself_and_starts_late(tmp_path: Path) -> None:
    reference = OrtReference(tmp_path / "absent.onnx", "absent")
    assert reference.name.startswith("absent in onnxruntime ")
    with pytest.raises(InputError, match="cannot open it"):
        reference.run({})


def _packs(options: Any) -> bool:
    """Tell whether the sessions of some options copy weights for their kernels."""
    try:
        return bool(options.get_session_config_entry("session.disable_prepacking") != "1")
    except RuntimeError:  # nobody has set it
        return True


@pytest.mark.parametrize(("kind", "is_mapped"), [(np.float32, True), (np.float16, False)])
def test_weights_of_a_large_file_stay_where_they_are_mapped(
    kind: type, *, is_mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight: Array = np.random.default_rng(0).standard_normal((24, 40)).astype(kind)
    model = parse(
        "m (float[batch, 24] x) => (float[batch, 40] y) { w = Cast<to = 1>(stored) y = MatMul(x, w) }",
        {"stored": weight},
    )
    onnx.save_model(
        ir.to_proto(model), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)}
    monkeypatch.setattr(weight_files, "LEAST_BYTES", 512)
    found = []
    for limit in (1 << 20, 256):
        monkeypatch.setattr(weight_files, "LARGE_BYTES", limit)
        reference = load_onnx(tmp_path / "net.onnx").reference
        assert isinstance(reference, OrtReference)
        for one in (reference, reference.with_threads(1)):
            found.append(one.run(feeds)["y"])
            options = one._open(optimized=False).get_session_options()
            assert _packs(options) == options.enable_cpu_mem_arena != (is_mapped and limit == 256)
    np.testing.assert_allclose(found, [feeds["x"] @ weight.astype(np.float32)] * 4, rtol=1e-4, atol=1e-5)


def test_refuses_to_make_inputs_of_insane_size() -> None:
    feeder = GraphFeeder((InputPlan(TensorSpec("x", "float32", ("batch", 1 << 20)), "float"),))
    with pytest.raises(InputError, match="too large to make"):
        feeder.make({"batch": 1 << 20})


def decoder_feeder() -> GraphFeeder:
    """Inputs as exporters of decoders with a cache declare them."""
    total = "past_sequence_length + sequence_length"
    cache = ("batch_size", 2, "past_sequence_length", 4)
    return GraphFeeder(
        (
            InputPlan(TensorSpec("input_ids", "int64", ("batch_size", "sequence_length")), "ids", 100),
            InputPlan(TensorSpec("attention_mask", "int64", ("batch_size", total)), "mask"),
            InputPlan(TensorSpec("position_ids", "int64", ("batch_size", "sequence_length")), "positions"),
            InputPlan(TensorSpec("past_key_values.0.key", "float32", cache), "float"),
        )
    )


def test_sizes_of_a_cache_follow_from_each_other() -> None:
    feeds = decoder_feeder().make({"batch": 3, "sequence": 2, "past_sequence": 5})
    assert feeds["attention_mask"].shape == (3, 7)
    assert feeds["past_key_values.0.key"].shape == (3, 2, 5, 4)
    assert feeds["position_ids"].tolist() == [[5, 6]] * 3


def test_positions_count_tokens_that_are_not_padding() -> None:
    feeds = decoder_feeder().make({"batch": 4, "sequence": 6, "past_sequence": 0}, "left")
    expected = np.maximum(np.cumsum(feeds["attention_mask"], axis=-1) - 1, 0)
    assert np.array_equal(feeds["position_ids"], expected)


def test_names_the_open_axes_of_a_cache(tmp_path: Path) -> None:
    weights: dict[str, Array] = {
        "word.weight": np.ones((50, 8), dtype=np.float32),
        "heads": np.array([0, 0, 2, 4], dtype=np.int64),
        "middle": np.array([1, 3], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["word.weight", "input_ids"], ["words"]),
        helper.make_node("Reshape", ["words", "heads"], ["split"]),
        helper.make_node("Transpose", ["split"], ["new"], perm=[0, 2, 1, 3]),
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("Unsqueeze", ["attention_mask", "middle"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["mask"], to=FLOAT),
        helper.make_node("Mul", ["present.0.key", "mask"], ["seen"]),
    ]
    inputs: dict[str, tuple[int, Dims]] = {
        "input_ids": (INT64, (None, None)),
        "attention_mask": (INT64, (None, None)),
        "past_key_values.0.key": (FLOAT, (None, 2, None, 4)),
    }
    outputs: dict[str, tuple[int, Dims | None]] = {"present.0.key": (FLOAT, None), "seen": (FLOAT, None)}
    loaded = load_onnx(save(build(nodes, inputs, outputs, weights), tmp_path))
    assert [spec.axes for spec in loaded.signature.inputs] == [
        ("batch", "sequence"),
        ("batch", "total_sequence"),
        ("batch", 2, "past_sequence", 4),
    ]
    assert [spec.axes for spec in loaded.signature.outputs] == [("batch", 2, "total_sequence", 4)] * 2
    (note,) = loaded.notes
    assert note.startswith("axis 0 of 'attention_mask' without a name: taken for 'batch'")
    feeds = loaded.feeder.make({"batch": 1, "sequence": 1, "past_sequence": 0})
    assert loaded.reference.run(feeds)["present.0.key"].shape == (1, 2, 1, 4)


@pytest.mark.parametrize(
    ("axis", "role"),
    [
        ("batch_size", "batch"),
        ("N", "batch"),
        ("sequence_length", "sequence"),
        ("past_sequence", "past"),
        ("total_sequence_length", "total"),
        ("past_sequence_length + 1", "total"),
        ("height", "other"),
    ],
)
def test_reads_what_an_axis_counts_from_its_name(axis: str, role: str) -> None:
    assert role_of(axis) == role


def test_follows_ids_to_a_table_behind_an_offset() -> None:
    table, two = np.zeros((30, 4), dtype=np.float32), np.array(2, dtype=np.int64)
    nodes = [
        helper.make_node("Add", ["two", "ids"], ["shifted"]),
        helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Gather", ["wide", "shifted"], ["y"]),
    ]
    outputs: dict[str, tuple[int, Dims | None]] = {"y": (TensorProto.DOUBLE, None)}
    proto = build(nodes, {"ids": (INT64, ("b", "s"))}, outputs, {"table": table, "two": two})
    graph = ir.from_proto(proto).graph
    plan = plan_input(graph.inputs[0], TensorSpec("ids", "int64", ("b", "s")), {})
    assert (plan.kind, plan.rows) == ("ids", 28)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    sequence=st.integers(1, 9),
    past=st.integers(0, 6),
    padding=st.sampled_from(PADDINGS),
    seed=st.integers(0, 99),
)
def test_feeds_have_the_declared_shapes_and_do_not_change(
    batch: int, sequence: int, past: int, padding: Padding, seed: int
) -> None:
    feeder = decoder_feeder()
    sizes = {"batch_size": batch, "sequence_length": sequence, "past_sequence_length": past}
    feeds = feeder.make(sizes, padding, seed)
    again = feeder.make(sizes, padding, seed)
    for plan in feeder.plans:
        array = feeds[plan.spec.name]
        assert array.shape == plan.spec.shape(feeder.resolve(sizes))
        assert array.dtype == np.dtype(plan.spec.dtype)
        assert np.array_equal(array, again[plan.spec.name])
    mask = feeds["attention_mask"]
    assert mask[0].all()
    assert mask.any(axis=1).all()


def test_weights_beside_the_file_may_be_of_any_size(tmp_path: Path) -> None:
    """Small ones too: what is cut out of the model and run has no folder to find them in."""
    text = """
    g (float[batch,sequence,8] x) => (float[batch,sequence,8] y) {
      h = MatMul(x, w) half = Mul(h, point_five) scaled = Div(h, root) e = Erf(scaled) more = Add(e, one)
      y = Mul(half, more)
    }"""
    weights = {
        "w": np.eye(8, dtype=np.float32),
        "point_five": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
    }
    model = parse(text, {**weights, "root": np.array(2**0.5, np.float32)})
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    loaded = load_onnx(tmp_path / "model.onnx")
    ledger = run_pipeline(loaded, Target("portable"))
    assert ledger.applied("fuse-gelu") == 1
    assert [entry.rolled_back for entry in ledger.entries if entry.rolled_back] == []


def pyramid(names: Dims) -> onnx.ModelProto:
    """An image halved twice, doubled twice and added to itself: it runs at multiples of 4 only."""
    halve: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["half"], **halve),
        helper.make_node("MaxPool", ["half"], ["quarter"], **halve),
        helper.make_node("Resize", ["quarter", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Add", ["x", "large"], ["y"]),
    ]
    weights = {"scales": np.array([1, 1, 4, 4], np.float32)}
    return build(nodes, {"x": (FLOAT, names)}, {"y": (FLOAT, None)}, weights)


def test_finds_of_what_the_sides_of_an_image_must_be_multiples(tmp_path: Path) -> None:
    loaded = load_onnx(save(pyramid((None, 3, None, None)), tmp_path))
    assert {axis: size.step for axis, size in loaded.ranges.items()} == {"height": 4, "width": 4}
    assert "axis 'height' runs at multiples of 4 only" in loaded.notes
    assert loaded.runnable({"batch": 3, "height": 9}) == {"batch": 3, "height": 12}
    assert loaded.usual("height", 1) % 4 == 0
    for observation in observations_of(loaded):
        loaded.reference.run(observation.feeds)
        assert len(set(observation.sizes.values())) == 3, "sizes that tell the axes apart"
    for sizes, _ in cases_of(loaded):
        loaded.reference.run(loaded.feeder.make(sizes))


@pytest.mark.parametrize(
    "names", [("?", 3, "?", "?"), ("p2o.DynamicDimension.0", 3, "unk__1", "p2o.DynamicDimension.2")]
)
def test_names_that_say_nothing_are_replaced(names: Dims, tmp_path: Path) -> None:
    loaded = load_onnx(save(pyramid(names), tmp_path))
    assert loaded.signature.inputs[0].axes == ("batch", 3, "height", "width")
    assert loaded.signature.outputs[0].axes == ("batch", 3, "height", "width")
