"""What a file costs to read is bounded before it is read: its nodes, and the length of its names."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from onnxopt.errors import InputError
from onnxopt.host.bounds import VARIABLE
from onnxopt.load.safety.check import check_onnx
from onnxopt.load.safety.wire import MAX_NAME_BYTES
from tests.support.bad_models import model_of, save


def chain(count: int) -> list[onnx.NodeProto]:
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    return [helper.make_node("Abs", [names[index]], [names[index + 1]]) for index in range(count)]


def test_nodes_are_counted_before_a_parser_makes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save(model_of(chain(301)), tmp_path)
    check_onnx(path)
    monkeypatch.setenv(VARIABLE, "nodes=300")
    with pytest.raises(InputError, match=r"more than 300 nodes; .*ONNXOPT_LIMITS=nodes=1500"):
        check_onnx(path)
    check_onnx(save(model_of(chain(300)), tmp_path, "fits.onnx"))


@pytest.mark.parametrize("place", ["attribute", "node", "operator", "value", "weight", "axis", "producer"])
def test_a_name_of_megabytes_is_refused_wherever_it_stands(place: str, tmp_path: Path) -> None:
    model, name = model_of(chain(2)), "n" * (MAX_NAME_BYTES + 1)
    first = model.graph.node[0]
    if place == "attribute":
        first.attribute.add(name=name, type=onnx.AttributeProto.INT, i=1)
    elif place == "node":
        first.name = name
    elif place == "operator":
        first.op_type = name
    elif place == "value":
        first.output[0] = model.graph.node[1].input[0] = name
    elif place == "weight":
        model.graph.initializer.add(name=name, data_type=1, dims=[0])
    elif place == "axis":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    else:
        model.producer_name = name
    with pytest.raises(InputError, match=f"of {MAX_NAME_BYTES + 1} letters") as found:
        check_onnx(save(model, tmp_path))
    assert len(str(found.value)) < 300


def test_prose_may_be_long(tmp_path: Path) -> None:
    model = model_of(chain(2))
    model.doc_string = "d" * (MAX_NAME_BYTES + 1)
    model.metadata_props.add(key="k", value="v" * (MAX_NAME_BYTES + 1))
    check_onnx(save(model, tmp_path))
