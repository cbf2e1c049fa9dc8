"""Random graphs keep their answers, their inputs and their outputs through the canonicalize stage."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxopt.pipeline.orders import CANONICALIZE
from onnxopt.pipeline.pipeline import run_to_rest
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite.registry import get
from tests.support.rules import observe, parse

UNARY = ("Relu", "Neg", "Abs", "Identity", "Sigmoid")
BINARY = ("Add", "Mul", "Sub", "Max")
SHAPED = (
    "Cast <to = 1> ({0})",
    "Dropout ({0})",
    "Reshape ({0}, keep)",
    "Reshape ({0}, whole)",
    "Expand ({0}, ones)",
    "Transpose <perm = [0, 1, 2]> ({0})",
    "Concat <axis = 0> ({0})",
    "Add ({0}, w)",
    "Mul (w, {0})",
    "Slice ({0}, zero, far, zero)",
)


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Write a graph of 3 to 14 nodes over tensors [batch, 3, 4], with dead, equal and useless nodes among them."""
    values = ["x", "z"]
    lines: list[str] = []
    for index in range(draw(st.integers(3, 14))):
        kind = draw(st.sampled_from(("unary", "binary", "shaped", "twice", "turned")))
        first = draw(st.sampled_from(values))
        name = f"v{index}"
        if kind == "unary":
            body = f"{draw(st.sampled_from(UNARY))} ({first})"
        elif kind == "binary":
            body = f"{draw(st.sampled_from(BINARY))} ({first}, {draw(st.sampled_from(values))})"
        elif kind == "shaped":
            body = draw(st.sampled_from(SHAPED)).format(first)
        elif kind == "twice":
            lines.append(f"{name}a = Transpose <perm = [0, 2, 1]> ({first})")
            body = f"Transpose <perm = [0, 2, 1]> ({name}a)"
        else:
            lines.append(f"{name}s = Shape ({first})")
            lines.append(f"{name}f = Reshape ({first}, flat)")
            body = f"Reshape ({name}f, {name}s)"
        lines.append(f"{name} = {body}")
        values.append(name)
    first, second = draw(st.sampled_from(values)), values[-1]
    lines += [f"y = Identity ({first})", f"t = Tanh ({second})"]
    body = "\n  ".join(lines)
    return f"""
    g (float[batch,3,4] x, float[batch,3,4] z) => (float[batch,3,4] y, float[batch,3,4] t)
    <int64[3] keep = {{0, 0, -1}}, int64[3] whole = {{-1, 3, 4}}, int64[3] ones = {{1, 1, 1}}, int64[1] flat = {{-1}},
     int64[1] zero = {{0}}, int64[1] far = {{9223372036854775807}}> {{
      {body}
    }}"""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(text=programs())
def test_canonicalize_keeps_answers_signature_and_comes_to_rest(text: str) -> None:
    weights = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    model = parse(text, weights)
    observations = observe(model)
    before = [GraphRunner(model).run(item.feeds)[0] for item in observations]
    inputs = [value.name for value in model.graph.inputs]
    outputs = [value.name for value in model.graph.outputs]
    prepare(model)
    driver = Driver(model, observations)
    run_to_rest(driver, CANONICALIZE)
    assert not driver.ledger.rolled_back()
    assert inputs == [value.name for value in model.graph.inputs]
    assert outputs == [value.name for value in model.graph.outputs]
    for item, expected in zip(observations, before, strict=True):
        found = GraphRunner(model).run(item.feeds)[0]
        for name, array in expected.items():
            np.testing.assert_allclose(array, found[name], rtol=1e-6, atol=1e-6)
    again = Driver(model, observations)
    for name in CANONICALIZE:
        assert again.apply(get(name)).applied == 0, name
