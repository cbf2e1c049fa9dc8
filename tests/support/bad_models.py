"""Files that onnxopt must refuse: each builder writes one into a folder and returns the path a user would name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def good_model(*, external: dict[str, str] | None = None) -> onnx.ModelProto:
    """y = Relu(x · weight + bias); `weight` lies in external data when its keys are given."""
    weight = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "weight")
    if external is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            weight.external_data.add(key=key, value=value)
    bias = numpy_helper.from_array(np.ones(4, dtype=np.float32), "bias")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="matmul"),
        helper.make_node("Add", ["product", "bias"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    return model_of(nodes, [weight, bias])


def model_of(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto] | None = None,
    *,
    opset: int = 17,
    functions: list[onnx.FunctionProto] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model with input x and output y, both float [batch, 4]."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 4])],
        weights or [],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=8)


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write the model and nothing else."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def weight_file(folder: Path, name: str = "model.data", size: int = 64) -> Path:
    """Write the 64 bytes of the external weight."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def write_good(folder: Path) -> Path:
    """A sound file with external data, to show that the checks let it pass."""
    weight_file(folder)
    return save(good_model(external={"location": "model.data", "offset": "0", "length": "64"}), folder)


def missing_file(folder: Path) -> Path:
    return folder / "absent.onnx"


def empty_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"")
    return path


def folder_named_onnx(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.mkdir()
    return path


def truncated_file(folder: Path) -> Path:
    path = save(good_model(), folder)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


def text_file(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_text("This is not a model.\n" * 20, encoding="utf-8")
    return path


def git_lfs_pointer(folder: Path) -> Path:
    path = folder / "model.onnx"
    digest = "0" * 64
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 123\n"
    path.write_text(text, encoding="utf-8")
    return path


def random_bytes(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    return path


def escaping_external_data(folder: Path) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    weight_file(folder, "secret.data")
    return save(good_model(external={"location": "../secret.data"}), inner)


def absolute_external_data(folder: Path) -> Path:
    return save(good_model(external={"location": "/etc/secret.data"}), folder)


def windows_external_data(folder: Path) -> Path:
    return save(good_model(external={"location": "C:\\weights\\secret.data"}), folder)


def symlinked_external_data(folder: Path) -> Path:
    outside = weight_file(folder, "outside/secret.data")
    inner = folder / "inner"
    inner.mkdir()
    (inner / "model.data").symlink_to(outside)
    return save(good_model(external={"location": "model.data"}), inner)


def symlinked_data_folder(folder: Path) -> Path:
    weight_file(folder, "outside/model.data")
    inner = folder / "inner"
    inner.mkdir()
    (inner / "weights").symlink_to(folder / "outside", target_is_directory=True)
    return save(good_model(external={"location": "weights/model.data"}), inner)


def hard_linked_external_data(folder: Path) -> Path:
    secret = weight_file(folder, "outside/secret.data")
    inner = folder / "inner"
    inner.mkdir()
    os.link(secret, inner / "model.data")
    return save(good_model(external={"location": "model.data"}), inner)


def missing_external_data(folder: Path) -> Path:
    return save(good_model(external={"location": "gone.data"}), folder)


def offset_past_the_end(folder: Path) -> Path:
    weight_file(folder)
    return save(good_model(external={"location": "model.data", "offset": "4096", "length": "64"}), folder)


def negative_offset(folder: Path) -> Path:
    weight_file(folder)
    return save(good_model(external={"location": "model.data", "offset": "-8", "length": "64"}), folder)


def wrong_external_length(folder: Path) -> Path:
    weight_file(folder, size=4096)
    return save(good_model(external={"location": "model.data", "length": "4096"}), folder)


def unknown_external_key(folder: Path) -> Path:
    weight_file(folder)
    return save(good_model(external={"location": "model.data", "__class__": "os.system"}), folder)


def memory_address_marker(folder: Path) -> Path:
    external = {"location": "*/_ORT_MEM_ADDR_/*", "offset": "140737488355328", "length": "64"}
    return save(good_model(external=external), folder)


def huge_declared_tensor(folder: Path) -> Path:
    model = good_model()
    model.graph.initializer[0].dims[:] = [1 << 31, 1 << 31]
    return save(model, folder)


def overflowing_dims(folder: Path) -> Path:
    model = good_model()
    model.graph.initializer[0].dims[:] = [1 << 62, 1 << 62, 4]
    return save(model, folder)


def negative_dims(folder: Path) -> Path:
    model = good_model()
    model.graph.initializer[0].dims[:] = [-4, -4]
    return save(model, folder)


def huge_external_tensor(folder: Path) -> Path:
    weight_file(folder)
    model = good_model(external={"location": "model.data"})
    model.graph.initializer[0].dims[:] = [1 << 62]
    return save(model, folder)


def huge_input(folder: Path) -> Path:
    model = good_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 62
    return save(model, folder)


def dims_disagree_with_data(folder: Path) -> Path:
    model = good_model()
    model.graph.initializer[0].dims[:] = [4, 5]
    return save(model, folder)


def cyclic_graph(folder: Path) -> Path:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"], name="third"),
    ]
    return save(model_of(nodes), folder)


def undefined_input(folder: Path) -> Path:
    return save(model_of([helper.make_node("Add", ["x", "nowhere"], ["y"], name="add")]), folder)


def undefined_in_subgraph(folder: Path) -> Path:
    return save(model_of(_branch([helper.make_node("Add", ["x", "nowhere"], ["z"], name="inner_add")])), folder)


def duplicate_value(folder: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["twice"], name="first"),
        helper.make_node("Abs", ["x"], ["twice"], name="second"),
        helper.make_node("Neg", ["twice"], ["y"], name="third"),
    ]
    return save(model_of(nodes), folder)


def duplicate_initializer(folder: Path) -> Path:
    model = good_model()
    model.graph.initializer.append(model.graph.initializer[1])
    return save(model, folder)


def unknown_operator(folder: Path) -> Path:
    return save(model_of([helper.make_node("Frobnicate", ["x"], ["y"], name="frob")]), folder)


def unknown_domain(folder: Path) -> Path:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="frob", domain="evil.ops")
    return save(model_of([node], domains=("evil.ops",)), folder)


def operator_newer_than_opset(folder: Path) -> Path:
    node = helper.make_node("Gelu", ["x"], ["y"], name="gelu")  # since opset 20
    return save(model_of([node], opset=17), folder)


def unknown_operator_in_subgraph(folder: Path) -> Path:
    return save(model_of(_branch([helper.make_node("Frobnicate", ["x"], ["z"], name="inner_frob")])), folder)


def huge_made_tensor(folder: Path) -> Path:
    """Twenty bytes of shape ask for 2^45 elements at the first run."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 25], dtype=np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["made"], name="maker"),
        helper.make_node("ReduceMax", ["made"], ["top"], name="reduce"),
        helper.make_node("Add", ["x", "top"], ["y"], name="add"),
    ]
    return save(model_of(nodes, [shape]), folder)


def nested_graph_bomb(folder: Path) -> Path:
    """A node whose attribute holds a graph whose node holds a graph, a thousand times; bytes from inside out."""

    def block(number: int, payload: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(payload)) + payload

    graph = b""
    for _ in range(1000):
        graph = block(1, block(5, block(6, graph)))  # graph.node.attribute.g
    opset = block(8, b"\x10\x11")
    path = folder / "model.onnx"
    path.write_bytes(b"\x08\x08" + opset + block(7, graph))
    return path


def function_bomb(folder: Path) -> Path:
    """Forty functions, each of which calls the next one twice: 2^40 nodes when inlined."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for index in range(40):
        calls = [
            helper.make_node(f"f{index + 1}", ["a"], ["b"], domain="local"),
            helper.make_node(f"f{index + 1}", ["b"], ["c"], domain="local"),
        ]
        functions.append(helper.make_function("local", f"f{index}", ["a"], ["c"], calls, opsets))
    last = [helper.make_node("Relu", ["a"], ["c"])]
    functions.append(helper.make_function("local", "f40", ["a"], ["c"], last, opsets))
    node = helper.make_node("f0", ["x"], ["y"], name="call", domain="local")
    return save(model_of([node], functions=functions, domains=("local",)), folder)


def recursive_function(folder: Path) -> Path:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body = [helper.make_node("loop", ["a"], ["c"], domain="local")]
    function = helper.make_function("local", "loop", ["a"], ["c"], body, opsets)
    node = helper.make_node("loop", ["x"], ["y"], name="call", domain="local")
    return save(model_of([node], functions=[function], domains=("local",)), folder)


def sparse_weight(folder: Path) -> Path:
    model = good_model()
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, dtype=np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1 << 40], dtype=np.int64), "sparse_indices"))
    sparse.dims[:] = [4]
    return save(model, folder)


def untyped_input(folder: Path) -> Path:
    model = good_model()
    model.graph.input[0].ClearField("type")
    return save(model, folder)


def opset_too_old(folder: Path) -> Path:
    return save(model_of([helper.make_node("Relu", ["x"], ["y"], name="relu")], opset=6), folder)


def opset_too_new(folder: Path) -> Path:
    return save(model_of([helper.make_node("Relu", ["x"], ["y"], name="relu")], opset=29), folder)


def hostile_name(folder: Path) -> Path:
    """A name with a line break, a terminal escape and ten thousand letters: the error must stay one short line."""
    name = "evil\n\x1b[31m" + "A" * 10_000
    return save(model_of([helper.make_node("Frobnicate", ["x"], ["y"], name=name)]), folder)


def _branch(body: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    outputs = [helper.make_tensor_value_info("z", FLOAT, ["batch", 4])]
    then = helper.make_graph(body, "then", [], outputs)
    otherwise = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "else", [], outputs)
    true = numpy_helper.from_array(np.array(1, dtype=np.bool_), "true")
    return [
        helper.make_node("Constant", [], ["condition"], value=true),
        helper.make_node("If", ["condition"], ["y"], name="if", then_branch=then, else_branch=otherwise),
    ]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


BAD_FILES: dict[str, Callable[[Path], Path]] = {
    builder.__name__.replace("_", "-"): builder
    for builder in (
        missing_file,
        empty_file,
        folder_named_onnx,
        truncated_file,
        text_file,
        git_lfs_pointer,
        random_bytes,
        escaping_external_data,
        absolute_external_data,
        windows_external_data,
        symlinked_external_data,
        symlinked_data_folder,
        hard_linked_external_data,
        missing_external_data,
        offset_past_the_end,
        negative_offset,
        wrong_external_length,
        unknown_external_key,
        memory_address_marker,
        huge_declared_tensor,
        overflowing_dims,
        negative_dims,
        huge_external_tensor,
        huge_input,
        huge_made_tensor,
        dims_disagree_with_data,
        cyclic_graph,
        undefined_input,
        undefined_in_subgraph,
        duplicate_value,
        duplicate_initializer,
        unknown_operator,
        unknown_domain,
        operator_newer_than_opset,
        unknown_operator_in_subgraph,
        nested_graph_bomb,
        function_bomb,
        recursive_function,
        sparse_weight,
        untyped_input,
        opset_too_old,
        opset_too_new,
        hostile_name,
    )
}
