"""What a graph costs once its functions are written out is bounded, and what no runtime takes is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import InputError
from onnxopt.host.bounds import VARIABLE
from onnxopt.load.safety.check import check_onnx
from tests.support.bad_models import FLOAT, model_of, save

DOMAIN = "own"


def doubling(levels: int) -> onnx.ModelProto:
    """A function that calls another one twice, and so on: 2 to the power of `levels` nodes."""
    functions = []
    for level in range(levels):
        kind, domain = (f"level{level - 1}", DOMAIN) if level else ("Neg", "")
        calls = [helper.make_node(kind, [a], [b], domain=domain) for a, b in (("u", "v"), ("v", "w"))]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        functions.append(helper.make_function(DOMAIN, f"level{level}", ["u"], ["w"], calls, imports))
    call = helper.make_node(f"level{levels - 1}", ["x"], ["y"], domain=DOMAIN)
    return model_of([call], functions=functions, domains=(DOMAIN,))


@pytest.mark.parametrize("levels", [15, 17])
def test_a_few_functions_that_become_very_many_nodes_are_refused(levels: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"expand to {2**levels} nodes.*ONNXOPT_LIMITS=growth="):
        check_onnx(save(doubling(levels), tmp_path))


def test_beyond_all_nodes_both_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(doubling(18), tmp_path)
    with pytest.raises(InputError, match=r"2\.62e\+05 nodes, more than 200000; .*nodes=262144,growth=262144"):
        check_onnx(path)
    monkeypatch.setenv(VARIABLE, "nodes=262144,growth=262144")
    check_onnx(path)


def test_functions_that_grow_as_those_of_exporters_do_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_onnx(save(doubling(14), tmp_path))
    monkeypatch.setenv(VARIABLE, "growth=1100")
    check_onnx(save(doubling(15), tmp_path))


@pytest.mark.parametrize(("count", "said"), [(0, "has 0 values"), (2, "has 2 values"), (3, "has 3 values")])
def test_a_constant_has_one_value(count: int, said: str, tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["k"], name="odd")
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("value_float", {"type": 1, "f": 1.0}),
        ("value_int", {"type": 2, "i": 1}),
        ("value_ints", {"type": 7}),
    ]
    for name, content in kinds[:count]:
        node.attribute.add(name=name, **content)
    with pytest.raises(InputError, match=f"'odd' .*{said}"):
        check_onnx(save(model_of([node, helper.make_node("Add", ["x", "k"], ["y"])]), tmp_path))


@pytest.mark.parametrize("place", ["input", "output", "inner", "weight"])
def test_more_axes_than_an_array_can_have_are_refused(place: str, tmp_path: Path) -> None:
    for rank, is_refused in ((65, True), (3000, True), (64, False)):
        model = model_of([helper.make_node("Relu", ["x"], ["y"])])
        if place == "weight":
            model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1] * rank, float_data=[1.0])
        else:
            values = {"input": model.graph.input, "output": model.graph.output, "inner": model.graph.value_info}[place]
            del values[:]
            name = {"input": "x", "output": "y", "inner": "z"}[place]
            values.append(helper.make_tensor_value_info(name, FLOAT, ["n"] * rank))
        path = save(model, tmp_path)
        if not is_refused:
            check_onnx(path)
            continue
        with pytest.raises(InputError, match=f"has {rank} axes, more than 64"):
            check_onnx(path)
