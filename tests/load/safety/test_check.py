"""Files from strangers: each bad one is refused in one line, before anything large is allocated.

Covers: load/safety/files.py, load/safety/structure.py, load/safety/wire.py
"""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import InputError, word
from onnxopt.load.safety.check import check_onnx
from onnxopt.load.safety.files import hub_repository
from tests.support.bad_models import BAD_FILES, FLOAT, good_model, model_of, save, weight_file, write_good

EDITS = st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3))  # place, byte, what to do there
NAMED = {
    "missing-file": "no such file",
    "empty-file": "is empty",
    "folder-named-onnx": "is a folder",
    "truncated-file": "cut short",
    "text-file": "text file",
    "git-lfs-pointer": "git lfs pull",
    "random-bytes": "not a sound ONNX file",
    "escaping-external-data": "../secret.data",
    "absolute-external-data": "secret.data",
    "windows-external-data": "secret.data",
    "symlinked-external-data": "goes through a link",
    "symlinked-data-folder": "goes through a link",
    "hard-linked-external-data": "hard link",
    "missing-external-data": "gone.data",
    "offset-past-the-end": "4096 to 4160",
    "negative-offset": "'-8'",
    "wrong-external-length": "needs 64 bytes",
    "unknown-external-key": "__class__",
    "memory-address-marker": "points into memory",
    "huge-declared-tensor": "[2147483648, 2147483648]",
    "overflowing-dims": "[4611686018427387904, 4611686018427387904, 4]",
    "negative-dims": "[-4, -4]",
    "huge-external-tensor": "[4611686018427387904]",
    "huge-input": "value 'x'",
    "huge-made-tensor": "'maker' (ConstantOfShape) makes a tensor of 35184372088832 elements",
    "dims-disagree-with-data": "needs 80 bytes of data and has 64",
    "cyclic-graph": "'first' (Add)",
    "undefined-input": "'nowhere'",
    "undefined-in-subgraph": "'inner_add' (Add) reads 'nowhere'",
    "duplicate-value": "'twice'",
    "duplicate-initializer": "'bias'",
    "unknown-operator": "'frob' (Frobnicate)",
    "unknown-domain": "evil.ops::Frobnicate",
    "operator-newer-than-opset": "'Gelu', which ai.onnx does not have in opset 17",
    "unknown-operator-in-subgraph": "'inner_frob'",
    "nested-graph-bomb": "deeper than",
    "function-bomb": "expand to",
    "recursive-function": "'loop' calls itself",
    "sparse-weight": "sparse",
    "untyped-input": "'x' has no type",
    "opset-too-old": "opset 6",
    "opset-too-new": "opset 29",
    "hostile-name": "Frobnicate",
}


def test_every_bad_file_has_an_expected_line() -> None:
    assert set(NAMED) == set(BAD_FILES)


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_refuses_in_one_line_that_names_the_thing(name: str, tmp_path: Path) -> None:
    check_onnx(write_good(_new(tmp_path, "warm")))  # the first call imports onnx; its memory is not the file's
    path = BAD_FILES[name](_new(tmp_path, "bad"))
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            check_onnx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert NAMED[name] in line
    assert line.isprintable()
    assert len(line) < 600
    assert peak < 4 << 20


def test_passes_a_sound_file_with_external_data(tmp_path: Path) -> None:
    checked = check_onnx(write_good(tmp_path))
    assert {"model.data": (tmp_path / "model.data").resolve()} == checked.external
    assert checked.notes == ()


def test_sorts_nodes_that_only_stand_in_the_wrong_order(tmp_path: Path) -> None:
    model = good_model()
    nodes = [onnx.NodeProto.FromString(model.graph.node[index].SerializeToString()) for index in (2, 0, 1)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    checked = check_onnx(save(model, tmp_path))
    assert [node.name for node in checked.proto.graph.node] == ["matmul", "add", "relu"]
    assert checked.notes == ("nodes that were stored out of order were sorted",)


def test_sorts_by_what_a_subgraph_reads(tmp_path: Path) -> None:
    outputs = [helper.make_tensor_value_info("z", FLOAT, ["batch", 4])]
    then = helper.make_graph([helper.make_node("Relu", ["late"], ["z"])], "then", [], outputs)
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "else", [], outputs)
    true = numpy_helper.from_array(np.array(1, dtype=np.bool_), "true")
    nodes = [
        helper.make_node("If", ["true"], ["y"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Neg", ["x"], ["late"], name="neg"),
    ]
    checked = check_onnx(save(model_of(nodes, [true]), tmp_path))
    assert [node.name for node in checked.proto.graph.node] == ["neg", "if"]


def test_refuses_a_circle_that_runs_through_a_subgraph(tmp_path: Path) -> None:
    outputs = [helper.make_tensor_value_info("z", FLOAT, ["batch", 4])]
    body = helper.make_graph([helper.make_node("Relu", ["y"], ["z"])], "then", [], outputs)
    true = numpy_helper.from_array(np.array(1, dtype=np.bool_), "true")
    node = helper.make_node("If", ["true"], ["y"], name="if", then_branch=body, else_branch=body)
    with pytest.raises(InputError, match=r"circle: node 'if' \(If\)"):
        check_onnx(save(model_of([node], [true]), tmp_path))


def test_allows_links_inside_one_hugging_face_cache_repository(tmp_path: Path) -> None:
    snapshot = _hub_snapshot(tmp_path)
    checked = check_onnx(snapshot / "model.onnx")
    assert snapshot == checked.folder
    assert {"model.data": (tmp_path / "models--a--b/blobs/0da7a").resolve()} == checked.external
    assert tmp_path / "models--a--b" == hub_repository(snapshot / "model.onnx")


def test_refuses_links_that_leave_the_hugging_face_repository(tmp_path: Path) -> None:
    snapshot = _hub_snapshot(tmp_path)
    weight_file(tmp_path, "models--other--repo/blobs/0da7a")
    (snapshot / "model.data").unlink()
    (snapshot / "model.data").symlink_to("../../../models--other--repo/blobs/0da7a")
    with pytest.raises(InputError, match="goes through a link"):
        check_onnx(snapshot / "model.onnx")


def test_refuses_a_model_link_that_leaves_the_hugging_face_repository(tmp_path: Path) -> None:
    snapshot = _hub_snapshot(tmp_path)
    outside = save(good_model(), tmp_path, "outside.onnx")
    (snapshot / "model.onnx").unlink()
    (snapshot / "model.onnx").symlink_to(outside)
    with pytest.raises(InputError, match="leaves its Hugging Face cache"):
        check_onnx(snapshot / "model.onnx")


def test_follows_a_link_that_the_user_names(tmp_path: Path) -> None:
    real = write_good(_new(tmp_path, "real"))
    link = tmp_path / "link.onnx"
    link.symlink_to(real)
    assert real.parent.resolve() == check_onnx(link).folder


def test_refuses_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a regular file"):
        check_onnx(pipe)


def test_refuses_a_link_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.symlink_to(path)
    with pytest.raises(InputError, match="cannot be opened"):
        check_onnx(path)


def test_reads_minus_one_in_an_input_as_any_size(tmp_path: Path) -> None:
    model = good_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    checked = check_onnx(save(model, tmp_path))
    assert not checked.proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_refuses_a_function_that_takes_the_name_of_an_operator(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("", "Relu", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets)
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], functions=[function])
    with pytest.raises(InputError, match="name of a standard operator"):
        check_onnx(save(model, tmp_path))


def test_checks_the_bodies_of_functions(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Frobnicate", ["a"], ["b"], name="inside")]
    function = helper.make_function("local", "f", ["a"], ["b"], body, opsets)
    node = helper.make_node("f", ["x"], ["y"], domain="local")
    with pytest.raises(InputError, match="'inside'"):
        check_onnx(save(model_of([node], functions=[function], domains=("local",)), tmp_path))


def test_checks_tensors_held_by_nodes(tmp_path: Path) -> None:
    tensor = TensorProto(name="held", data_type=FLOAT, dims=[1 << 62])
    nodes = [
        helper.make_node("Constant", [], ["c"], name="constant", value=tensor),
        helper.make_node("Add", ["x", "c"], ["y"], name="add"),
    ]
    with pytest.raises(InputError, match="'held' declares the shape"):
        check_onnx(save(model_of(nodes), tmp_path))


def test_checks_external_data_of_tensors_held_by_nodes(tmp_path: Path) -> None:
    tensor = TensorProto(name="held", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    nodes = [
        helper.make_node("Constant", [], ["c"], name="constant", value=tensor),
        helper.make_node("Add", ["x", "c"], ["y"], name="add"),
    ]
    with pytest.raises(InputError, match="outside the model's folder"):
        check_onnx(save(model_of(nodes), tmp_path))


@pytest.mark.parametrize("dtype", [FLOAT, TensorProto.FLOAT16, TensorProto.INT4, TensorProto.COMPLEX64])
def test_knows_the_length_of_typed_data(dtype: int, tmp_path: Path) -> None:
    model = good_model()
    model.graph.initializer.append(helper.make_tensor("typed", dtype, [3], [1.0, 2.0, 3.0]))
    check_onnx(save(model, tmp_path))
    model.graph.initializer[-1].dims[:] = [7]
    with pytest.raises(InputError, match=r"'typed' with shape \[7\]"):
        check_onnx(save(model, tmp_path))


def test_takes_contrib_operators_and_refuses_unknown_ones(tmp_path: Path) -> None:
    known = helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft")
    check_onnx(save(model_of([known], domains=("com.microsoft",)), tmp_path))
    unknown = helper.make_node("SlowGelu", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(InputError, match="'SlowGelu', which the installed ONNX Runtime does not have"):
        check_onnx(save(model_of([unknown], domains=("com.microsoft",)), tmp_path))


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    data = good_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as caught:
            check_onnx(path)
        assert str(caught.value).isprintable()


def test_names_stay_short_and_printable() -> None:
    assert word("a\x1bb") == "a?b"
    assert len(word("x" * 100)) == 80


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_meet_nothing_but_input_error(data: bytes, scratch: Path) -> None:
    _check_or_refuse(scratch / "random.onnx", data)


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3)), min_size=1, max_size=6)
)
def test_mutated_files_meet_nothing_but_input_error(edits: list[tuple[int, int, int]], scratch: Path) -> None:
    weight_file(scratch)
    data = bytearray(good_model(external={"location": "model.data", "offset": "0"}).SerializeToString())
    for place, byte, kind in edits:
        index = place % len(data)
        if kind == 0:
            data.insert(index, byte)
        elif kind == 1:
            del data[index : index + 1 + byte % 8]
            data = data or bytearray(b"\x08")
        else:
            data[index] = byte
    _check_or_refuse(scratch / "mutated.onnx", bytes(data))


def _check_or_refuse(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        check_onnx(path)
    except InputError as error:
        assert str(error).isprintable()


def _new(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def _hub_snapshot(folder: Path) -> Path:
    repository = folder / "models--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_good(blobs)
    (blobs / "model.onnx").rename(blobs / "f00")
    (blobs / "model.data").rename(blobs / "0da7a")
    (snapshot / "model.onnx").symlink_to("../../blobs/f00")
    (snapshot / "model.data").symlink_to("../../blobs/0da7a")
    return snapshot
