"""Graphs of any size: encoder layers of a few channels, spelt node by node as exporters spell them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxopt.load.graph_feeder import GraphFeeder, plan_input
from onnxopt.load.loaded import Loaded
from onnxopt.spec import Array, Signature, TensorSpec
from tests.support.loaded import loaded
from tests.support.rules import parse

HIDDEN, HEADS, WIDE = 16, 2, 32
LAYER_NODES = 69
_VECTORS = ("gamma", "beta", "q_bias", "k_bias", "v_bias", "o_bias", "gamma_2", "beta_2", "down_bias")
_SHAPES = (
    *((name, (HIDDEN,)) for name in _VECTORS),
    *((name, (HIDDEN, HIDDEN)) for name in ("q_weight", "k_weight", "v_weight", "o_weight")),
    ("up_weight", (HIDDEN, WIDE)),
    ("up_bias", (WIDE,)),
    ("down_weight", (WIDE, HIDDEN)),
)


def encoder(layers: int) -> ir.Model:
    """Make an encoder of `LAYER_NODES` nodes per layer, which uses masked attention, LayerNorm and GELU in parts."""
    body = ["weights = Cast<to=1>(attention_mask)", "far = Sub(one, weights)", "low = Mul(far, minus)"]
    body += ["mask = Unsqueeze(low, axes_1_2)", "h_0 = Gather(table, input_ids)"]
    for index in range(layers):
        body += _layer(index)
    body.append(f"y = Identity(h_{layers})")
    text = (
        "g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) "
        f"=> (float[batch,sequence,{HIDDEN}] y) {{\n" + "\n".join(body) + "\n}"
    )
    return parse(text, _weights(layers))


def encoder_of(nodes: int) -> ir.Model:
    """Make an encoder of about this many nodes."""
    return encoder(max(1, round(nodes / LAYER_NODES)))


def loaded_encoder(nodes: int) -> Loaded:
    """Make an encoder of about this many nodes, with inputs to run it on."""
    model = encoder_of(nodes)
    inputs = tuple(TensorSpec(value.name or "", "int64", ("batch", "sequence")) for value in model.graph.inputs)
    signature = Signature(inputs, (TensorSpec("y", "float32", ("batch", "sequence", HIDDEN)),))
    plans = (plan_input(value, spec, {}) for value, spec in zip(model.graph.inputs, inputs, strict=True))
    return replace(loaded(model, signature=signature, task="feature-extraction"), feeder=GraphFeeder(tuple(plans)))


def _layer(index: int) -> list[str]:
    def named(line: str) -> str:
        return line.replace("@", f"_{index}")

    heads = []
    for part in "qkv":
        heads += [
            f"{part}m@ = MatMul(n@, {part}_weight@)",
            f"{part}l@ = Add({part}m@, {part}_bias@)",
            f"{part}s@ = Shape({part}l@)",
            f"{part}b@ = Gather({part}s@, zero)",
            f"{part}t@ = Gather({part}s@, first)",
            f"{part}c@ = Unsqueeze({part}b@, axis_0)",
            f"{part}d@ = Unsqueeze({part}t@, axis_0)",
            f"{part}e@ = Concat<axis=0>({part}c@, {part}d@, split)",
            f"{part}r@ = Reshape({part}l@, {part}e@)",
            f"{part}h@ = Transpose<perm=[0,2,1,3]>({part}r@)",
        ]
    lines = [
        *_norm("x", "n", "gamma", "beta", f"h_{index}"),
        *heads,
        "turned@ = Transpose<perm=[0,1,3,2]>(kh@)",
        "raw@ = MatMul(qh@, turned@)",
        "scaled@ = Div(raw@, root)",
        "masked@ = Add(scaled@, mask)",
        "p@ = Softmax<axis=-1>(masked@)",
        "context@ = MatMul(p@, vh@)",
        "back@ = Transpose<perm=[0,2,1,3]>(context@)",
        "both@ = Reshape(back@, joined)",
        "om@ = MatMul(both@, o_weight@)",
        "ol@ = Add(om@, o_bias@)",
        f"a@ = Add(ol@, h_{index})",
        *_norm("z", "m", "gamma_2", "beta_2", "a@"),
        "um@ = MatMul(m@, up_weight@)",
        "u@ = Add(um@, up_bias@)",
        "ue@ = Div(u@, sqrt_2)",
        "uf@ = Erf(ue@)",
        "ug@ = Add(uf@, one)",
        "uh@ = Mul(u@, ug@)",
        "ui@ = Mul(uh@, half)",
        "dm@ = MatMul(ui@, down_weight@)",
        "d@ = Add(dm@, down_bias@)",
        f"h_{index + 1} = Add(d@, a@)",
    ]
    return [named(line) for line in lines]


def _norm(prefix: str, result: str, gamma: str, beta: str, source: str) -> list[str]:
    return [
        f"{prefix}m@ = ReduceMean<keepdims=1>({source}, last)",
        f"{prefix}d@ = Sub({source}, {prefix}m@)",
        f"{prefix}p@ = Pow({prefix}d@, two)",
        f"{prefix}v@ = ReduceMean<keepdims=1>({prefix}p@, last)",
        f"{prefix}e@ = Add({prefix}v@, epsilon)",
        f"{prefix}s@ = Sqrt({prefix}e@)",
        f"{prefix}n@ = Div({prefix}d@, {prefix}s@)",
        f"{prefix}g@ = Mul({prefix}n@, {gamma}@)",
        f"{result}@ = Add({prefix}g@, {beta}@)",
    ]


def _weights(layers: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    weights = {
        f"{name}_{index}": (generator.standard_normal(shape) * 0.2).astype(np.float32)
        for index in range(layers)
        for name, shape in _SHAPES
    }
    for index in range(layers):
        weights[f"gamma_{index}"] += 1
        weights[f"gamma_2_{index}"] += 1
    numbers = {"one": 1, "minus": -1e9, "two": 2, "epsilon": 1e-5, "root": (HIDDEN // HEADS) ** 0.5, "half": 0.5}
    weights |= {name: np.array(value, np.float32) for name, value in {**numbers, "sqrt_2": 2**0.5}.items()}
    weights["table"] = generator.standard_normal((64, HIDDEN)).astype(np.float32)
    lists = {
        "axes_1_2": [1, 2],
        "axis_0": [0],
        "split": [HEADS, HIDDEN // HEADS],
        "joined": [0, 0, HIDDEN],
        "last": [-1],
    }
    weights |= {name: np.array(value, np.int64) for name, value in {**lists, "zero": 0, "first": 1}.items()}
    return weights
