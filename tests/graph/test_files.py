"""A graph is written in one way: small weights in it, those of a large one beside it, the model as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxopt.graph import files
from onnxopt.graph.files import MAX_IR_VERSION, make_writable, save_graph, write_graph, written_bytes
from tests.support.rules import parse


def model_of(sizes: tuple[int, ...]) -> ir.Model:
    """Return a sum of an input and vectors, a number of elements each; a vector of one element is broadcast."""
    total = ir.Value(name="x", shape=ir.Shape([max(sizes)]), type=ir.TensorType(ir.DataType.FLOAT))
    inputs, nodes, weights = [total], [], []
    for place, size in enumerate(sizes):
        weight = ir.Value(
            name=f"w{place}", const_value=ir.tensor(np.full(size, place + 1, np.float32), name=f"w{place}")
        )
        weights.append(weight)
        nodes.append(ir.Node("", "Add", [total, weight]))
        total = nodes[-1].outputs[0]
    total.name = "y"
    total.shape, total.type = ir.Shape([max(sizes)]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [total], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="sum")
    return ir.Model(graph, ir_version=MAX_IR_VERSION + 2)


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    found = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy().copy() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("name", ["model.onnx", "encoder_model.onnx"])
@pytest.mark.parametrize(("sizes", "beside"), [((700, 1), True), ((400, 1), False), ((250, 250, 1), False)])
def test_only_large_weights_of_large_models_lie_beside(
    name: str, sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 1800)
    model = model_of(sizes)
    before = weights_of(model)
    written = write_graph(model, tmp_path / name)
    assert [path.name for path in written] == [name, *([f"{name}_data"] if beside else [])]
    assert set(tmp_path.iterdir()) == set(written), "no empty file is left"
    read = ir.load(tmp_path / name)
    assert read.ir_version == MAX_IR_VERSION
    assert not isinstance(read.graph.initializers["w1"].const_value, ir.ExternalTensor)
    for found in (weights_of(read), weights_of(model)):
        assert {key: array.tolist() for key, array in found.items()} == {
            key: array.tolist() for key, array in before.items()
        }


def test_a_graph_is_the_same_file_wherever_its_weights_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ir.load(save_graph(model_of((700, 1)), tmp_path / "small"))
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 100)
    parted = ir.load(save_graph(model_of((700, 1)), tmp_path / "large"))
    monkeypatch.undo()
    first, second = (save_graph(model, tmp_path / str(place)) for place, model in enumerate((whole, parted)))
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "large" / "model.onnx_data").unlink()
    assert weights_of(parted)["w0"].tolist() == [1.0] * 700, "the model holds what lay there"


@pytest.mark.parametrize("sizes", [(700, 1), (300, 2, 450, 256, 257), (100,)])
@pytest.mark.parametrize("beside_from", [0, 2000, 1 << 28])
def test_how_much_is_written_is_known_before(
    sizes: tuple[int, ...], beside_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", beside_from)
    model = model_of(sizes)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    make_writable(model)
    known = written_bytes(model)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    assert known == sum(path.stat().st_size for path in write_graph(model, tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("limit", "files_of"),
    [(2500, [["w0", "w2"], ["w3"], ["w4"]]), (1000, [["w0"], ["w2"], ["w3"], ["w4"]]), (1 << 20, [])],
)
@pytest.mark.parametrize("name", ["model.onnx", "decoder_model.onnx"])
def test_weights_go_into_files_of_the_size_that_is_asked_for(
    name: str, limit: int, files_of: list[list[str]], tmp_path: Path
) -> None:
    model = model_of((300, 2, 300, 300, 450))
    before = weights_of(model)
    (tmp_path / f"other-{name}").touch()
    written = write_graph(model, tmp_path / name, limit)
    stem, count = name.removesuffix(".onnx"), len(files_of)
    names = [f"{stem}-{place:05}-of-{count:05}.onnx_data" for place in range(1, count + 1)]
    assert [path.name for path in written] == [name, *names]
    read = ir.load(tmp_path / name)
    lie = {key: value.const_value for key, value in read.graph.initializers.items()}
    for file, keys in zip(names, files_of, strict=True):
        assert [key for key, one in lie.items() if isinstance(one, ir.ExternalTensor) and one.location == file] == keys
        assert (tmp_path / file).stat().st_size == sum(before[key].nbytes for key in keys)
    assert {key: array.tolist() for key, array in weights_of(read).items()} == {
        key: array.tolist() for key, array in before.items()
    }


CUT = """
g (float[batch,s,6] x, float[rows,s,6] z) => (float[n,0,6] y) {
  w = Add(x, z)
  cut = Slice(w, last, last, one)
  parted = Reshape(cut, heads)
  batch = Shape<start = 0, end = 1>(cut)
  target = Concat<axis = 0>(batch, none, six)
  y = Reshape(parted, target)
}"""


def opens(path: Path) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(path, options)
    except ort.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


def test_a_graph_with_an_empty_tensor_opens_whatever_is_known_of_it(tmp_path: Path) -> None:
    numbers = {"last": [900], "one": [1], "heads": [0, 0, 2, 3], "none": [0], "six": [6]}
    model = parse(CUT, {name: np.array(value, np.int64) for name, value in numbers.items()})
    known = {"cut": [None, 0, 6], "parted": [None, 0, 2, 3]}
    for node in model.graph:
        shape = known.get(node.outputs[0].name or "")
        if shape is not None:
            node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    ir.save(model, tmp_path / "as-known.onnx")
    assert not opens(tmp_path / "as-known.onnx"), "the runtime mends it: shapes may be written as they are known"
    [path] = write_graph(model, tmp_path / "model.onnx")
    assert opens(path)
    assert list(ir.load(path).graph.outputs[0].shape or ()) == ["n", 0, 6], "what is declared is kept"
