"""What the rules say of every operator, against what ONNX Runtime gives: ONNX's own cases with every axis left open.

Covers: sizes/facts.py, sizes/fallback.py, sizes/rules.py, sizes/rules_attention.py, sizes/rules_elementwise.py,
sizes/rules_flow.py, sizes/rules_movement.py, sizes/rules_products.py, sizes/rules_resize.py, sizes/rules_sequence.py
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.probe.annotate import annotate
from onnxopt.sizes import Derivation, Fact
from onnxopt.sizes.check import Computation, NotComputable

CHUNKS = 8


def cases() -> list[Any]:
    """ONNX's cases of single operators, models with the inputs they come with."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda case: str(case.name))


def opened(proto: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Give every dimension of every input a name of its own; return input and place by that name."""
    places: dict[str, tuple[str, int]] = {}
    for value in proto.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            name = f"a{len(places)}"
            dim.Clear()
            dim.dim_param = name
            places[name] = (value.name, place)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return places


def answer(proto: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any] | None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [output.name for output in proto.graph.output]
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options)
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception:  # noqa: BLE001 - what ONNX Runtime does not run tells nothing about sizes
        return None


def wrong(case: Any) -> list[str] | None:
    """Return the dimensions of outputs that are derived otherwise than they are; None where nothing runs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    if not proto.graph.node or any(not value.type.HasField("tensor_type") for value in proto.graph.input):
        return None
    proto.ir_version = min(proto.ir_version, 10)
    inputs, _ = case.data_sets[0]
    feeds = {value.name: array for value, array in zip(proto.graph.input, inputs, strict=False)}
    found = answer(proto, feeds)
    if found is None or any(not isinstance(array, np.ndarray) for array in feeds.values()):
        return None
    places = opened(proto)
    model = ir.from_proto(proto)
    derivation = Derivation()
    try:
        annotate(model, derivation, everything=True)
    except Exception as error:  # noqa: BLE001 - told with the name of the case
        return [f"{type(error).__name__}: {error}"]
    sizes = {axis: np.array([feeds[name].shape[place]]) for axis, (name, place) in places.items()}
    outputs = [(value, found[value.name or ""]) for value in model.graph.outputs]
    return [
        fault
        for value, array in outputs
        if isinstance(array, np.ndarray)
        for fault in differs(derivation.of(value), array, sizes)
    ]


def differs(fact: Fact, array: Any, sizes: dict[str, Any]) -> Iterator[str]:
    """Yield how a fact differs from the tensor that it speaks of."""
    if fact.dims is None:
        return
    if len(fact.dims) != array.ndim:
        yield f"rank {array.ndim}, derived {fact.dims}"
        return
    expected = [*zip(fact.dims, array.shape, strict=True), *zip(fact.elements or (), array.reshape(-1), strict=False)]
    for number, real in expected:
        try:
            derived = Computation(sizes).of(number)[0]
        except NotComputable:
            continue
        if not np.isclose(float(derived), float(real), equal_nan=True):
            yield f"{real}, derived {number} = {derived}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_operator_gives_other_dimensions_than_its_rule_says(chunk: int) -> None:
    """In chunks, so that a failure says roughly where; each names its case."""
    chosen = cases()[chunk::CHUNKS]
    results = {str(case.name): wrong(case) for case in chosen}
    assert sum(faults is not None for faults in results.values()) > 100
    assert {name: faults for name, faults in results.items() if faults} == {}
