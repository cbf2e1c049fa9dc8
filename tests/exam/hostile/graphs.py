"""Hostile .onnx files: damaged, lying, endless, growing, deadly, and named to confuse."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from tests.exam.hostile.cases import Case, inspected, of_bytes, of_models
from tests.support.bad_models import BAD_FILES, good_model, model_of
from tests.support.hostile_graphs import counting_without_end, dividing_the_smallest, growing

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SEED = 16


def text_model(text: str) -> onnx.ModelProto:
    """A graph written as text."""
    return onnx.parser.parse_model(f"{HEAD} {text}")


# what is small in the file and large, endless or deadly when it runs; y is a float output of any shape
RUNS = {
    "a range without end": "n = Constant<value_int = 4000000000>() z = Constant<value_int = 0>() "
    "o = Constant<value_int = 1>() r = Range(z, n, o) c = Cast<to = 1>(r) y = ReduceSum(c)",
    "tiles of tiles": "k = Constant<value_ints = [30000, 30000]>() h = Constant<value_ints = [1, 1]>() m = Mul(k, h) "
    "t = Tile(x, m) u = Tile(t, m) y = ReduceSum(u)",
    "an expansion": "a = Constant<value_ints = [60000, 20000, 1, 4]>() o = Constant<value_int = 1>() m = Mul(a, o) "
    "e = Expand(x, m) y = ReduceMax(e)",
    "pads of billions": "p = Constant<value_ints = [0, 0, 2000000000, 0]>() o = Constant<value_int = 1>() "
    "m = Mul(p, o) e = Pad(x, m) y = ReduceMax(e)",
    "a division by zero": "i = Cast<to = 7>(x) z = Sub(i, i) d = Div(i, z) y = Cast<to = 1>(d)",
    "a remainder by zero": "i = Cast<to = 7>(x) z = Sub(i, i) d = Mod(i, z) y = Cast<to = 1>(d)",
    "the smallest remainder": "s = Constant<value_int = -9223372036854775808>() m = Constant<value_int = -1>() "
    "d = Mod(s, m) c = Cast<to = 1>(d) y = Add(x, c)",
    "an index out of range": "i = Constant<value_int = 123456789>() y = Gather<axis = 1>(x, i)",
    "an index far below": "i = Constant<value_int = -9223372036854775808>() y = Gather<axis = 1>(x, i)",
    "a shape that does not fit": "s = Constant<value_ints = [7, -1, 13]>() y = Reshape(x, s)",
    "a shape beyond 64 bits": "s = Constant<value_ints = [9223372036854775807, 9223372036854775807]>() "
    "y = Reshape(x, s)",
    "a slice of extremes": "a = Constant<value_ints = [9223372036854775807]>() b = Constant<value_ints = "
    "[-9223372036854775808]>() c = Constant<value_ints = [1]>() d = Constant<value_ints = [-9223372036854775808]>() "
    "y = Slice(x, a, b, c, d)",
    "a product of a wide row": "t = Transpose(x) k = Constant<value_ints = [1, 90000]>() o = Constant<value_int = 1>() "
    "m = Mul(k, o) w = Tile(t, m) v = Transpose(w) p = MatMul(v, w) y = ReduceMax(p)",
    "a sum of one-hots": "i = Cast<to = 7>(x) d = Constant<value_int = 2000000000>() "
    "v = Constant<value_floats = [0.0, 1.0]>() h = OneHot(i, d, v) y = ReduceSum(h)",
    "a window of billions": "f = Unsqueeze(x, k) g = Unsqueeze(f, k) y = MaxPool<kernel_shape = [1, 2000000000]>(g) "
    "k = Constant<value_ints = [0]>()",
    "not a number": "z = Sub(x, x) n = Div(z, z) y = Add(x, n)",
    "infinity": "l = Constant<value_float = 3e38>() m = Mul(l, l) y = Add(x, m)",
    "a negative size": "s = Constant<value_ints = [-5]>() f = ConstantOfShape(s) y = ReduceSum(f)",
    "an einsum of letters": 'y = Einsum<equation = "ab,cd,ef,gh->abcdefgh">(x, x, x, x)',
    "an einsum that is none": 'y = Einsum<equation = "->->..,,(">(x)',
    "a split into nothing": "s = Constant<value_ints = [0, 0]>() y, z = Split<axis = 1>(x, s)",
    "a cast of text": 's = Constant<value_strings = ["no number"]>() y = Cast<to = 1>(s)',
    "a comparison of ranks": "s = Shape(x) r = Reshape(x, s) q = Squeeze(r) y = Concat<axis = 5>(q, x)",
}
NAMES = {
    "an escape of a terminal": "\x1b[2J\x1b[31mhacked",
    "a line that looks like ours": "x\nerror: all is well",
    "a path": "../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "right to left": "\u202eevil\u202c",
    "no width": "\u200b",
    "an emoji": "🤯" * 30,
    "markup": "<script>alert(1)</script>[bold]",
    "a format": "{0.__class__} %s %n {x!r:>{width}}",
    "a template": "{{ 7 * 7 }}{% raw %}",
    "a key of npz": "arr_0.npy",
    "a name of Python": "self",
    "spaces": "   ",
    "a quote": "'; DROP TABLE models; --",
    "sixty thousand letters": "n" * 60_000,
}


def renamed(name: str) -> onnx.ModelProto:
    """A sound graph whose input, output, axis and node are called so."""
    model = good_model()
    graph = model.graph
    for value in (*graph.input, *graph.output):
        old = value.name
        value.name = f"{name}{old}"
        value.type.tensor_type.shape.dim[0].dim_param = f"{name}axis"
        for node in graph.node:
            node.input[:] = [value.name if one == old else one for one in node.input]
            node.output[:] = [value.name if one == old else one for one in node.output]
    graph.node[0].name = name
    return model


def weighted(fill: float, dtype: type = np.float32) -> onnx.ModelProto:
    """A sound graph whose weights are all one number."""
    model = good_model()
    for tensor in model.graph.initializer:
        array = np.full(tensor.dims, fill, dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def wide(inputs: int, outputs: int) -> onnx.ModelProto:
    """Many inputs, and many outputs."""
    values = [helper.make_tensor_value_info(f"i{n}", TensorProto.FLOAT, [f"a{n}", 2]) for n in range(inputs)]
    made = [helper.make_tensor_value_info(f"o{n}", TensorProto.FLOAT, None) for n in range(outputs)]
    nodes = [helper.make_node("Neg", [f"i{n % inputs}"], [f"o{n}"]) for n in range(outputs)]
    graph = helper.make_graph(nodes, "wide", values, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(count: int, kind: str = "Relu") -> onnx.ModelProto:
    """So many nodes, one behind the other."""
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    return model_of([helper.make_node(kind, [names[index]], [names[index + 1]]) for index in range(count)])


def stacking(trips: int) -> onnx.ModelProto:
    """A Loop that keeps what every turn gives."""
    model = counting_without_end(trips)
    loop = model.graph.node[0]
    body = loop.attribute[0].g
    body.node.append(helper.make_node("Identity", ["next"], ["kept"]))
    body.output.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, None))
    loop.output.append("all")
    model.graph.node.append(helper.make_node("Size", ["all"], ["count"]))
    model.graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    return model


def dead_branch() -> onnx.ModelProto:
    """An If whose branch that is never taken holds the division that kills."""
    deadly = dividing_the_smallest().graph
    inner = helper.make_graph(
        list(deadly.node), "then", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], deadly.initializer
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"])],
        "else",
        [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)
    never = numpy_helper.from_array(np.array(False), "flag")  # noqa: FBT003  an array's content
    inner.node[-1].output[0] = inner.output[0].name = "inner_y"
    return model_of([node], [never])


MADE: dict[str, Callable[[], onnx.ModelProto]] = {
    "a loop without end": counting_without_end,
    "a loop that keeps everything": lambda: stacking(2**40),
    "the smallest divided by minus one": dividing_the_smallest,
    "the same in 32 bits": lambda: dividing_the_smallest(TensorProto.INT32),
    "the same in a branch that is never taken": dead_branch,
    "two gibibytes": lambda: growing(1 << 29),
    "sixteen gibibytes": lambda: growing(1 << 32),
    "an overflowing count": lambda: growing((1 << 63) - 2),
    "more nodes than any network": lambda: chain(200_001),
    "ten thousand nodes": lambda: chain(10_000),
    "three hundred inputs": lambda: wide(300, 1),
    "a thousand outputs": lambda: wide(1, 1000),
    "no nodes": lambda: text_model("g (float[n,4] x) => (float[n,4] x) { }"),
    "no inputs": lambda: text_model("g () => (float y) { y = Constant<value_float = 1.0>() }"),
    "text in and out": lambda: text_model("g (string[n] x) => (string[n] y) { y = Identity(x) }"),
    "ir version 99": lambda: _with(good_model(), lambda model: setattr(model, "ir_version", 99)),
    "ten megabytes of prose": lambda: _with(good_model(), lambda model: setattr(model, "doc_string", "d" * 10**7)),
    "a producer that writes to terminals": lambda: _with(
        good_model(), lambda model: setattr(model, "producer_name", "\x1b]0;owned\x07\x1b[31m")
    ),
    "weights listed twice": lambda: _with(good_model(), lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "an attribute of the wrong type": lambda: model_of([helper.make_node("Concat", ["x", "x"], ["y"], axis="left")]),
    "an attribute that is missing": lambda: model_of([helper.make_node("Concat", ["x"], ["y"])]),
    "too many inputs of a node": lambda: model_of([helper.make_node("Relu", ["x"] * 500, ["y"])]),
    "too few inputs of a node": lambda: model_of([helper.make_node("Add", ["x"], ["y"])]),
    "a constant of two values": lambda: model_of(
        [
            helper.make_node("Constant", [], ["k"], value_float=1.0, value_int=1),
            helper.make_node("Add", ["x", "k"], ["y"]),
        ]
    ),
    "three thousand axes": lambda: _with(
        model_of([helper.make_node("Relu", ["x"], ["y"])]),
        lambda m: m.graph.input[0].type.tensor_type.shape.dim.extend(
            [m.graph.input[0].type.tensor_type.shape.dim[0]] * 3000
        ),
    ),
}


def _with(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    change(model)
    return model


def damaged(count: int, seed: int = SEED) -> Iterator[tuple[str, bytes]]:
    """Yield a sound file cut short, with flipped bytes, and with bytes put in."""
    whole = good_model().SerializeToString()
    draw = random.Random(seed)  # noqa: S311  damage, no secrets
    for number in range(count):
        yield f"cut short {number}", whole[: draw.randrange(1, len(whole))]
        flipped = bytearray(whole)
        for _ in range(1 + number % 4):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        yield f"flipped {number}", bytes(flipped)
        if number % 3 == 0:
            place = draw.randrange(len(whole))
            yield f"put in {number}", whole[:place] + draw.randbytes(draw.randrange(1, 40)) + whole[place:]


def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "model.onnx")
    return inspected(folder / "model.onnx")


def _link(target: str, folder: Path) -> list[str]:
    (folder / "model.onnx").symlink_to(target)
    return inspected(folder / "model.onnx")


def _weights_in_a_pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "model.data")
    model = good_model(external={"location": "model.data", "offset": "0", "length": "64"})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return inspected(folder / "model.onnx")


def _bad(builder: Callable[[Path], Path], folder: Path) -> list[str]:
    return inspected(builder(folder))


def cases() -> list[Case]:
    """All of them."""
    noise = random.Random(SEED)  # noqa: S311  noise, no secrets
    kinds = [
        *(("zip", b"PK\x03\x04" + bytes(60)), ("gzip", b"\x1f\x8b\x08" + bytes(60)), ("pickle", b"\x80\x02}q\x00.")),
        *((f"noise {size}", noise.randbytes(size)) for size in (1, 7, 100, 5000)),
        ("zeros", bytes(4096)),
        ("a length of 2^63", b"\x3a" + b"\xff" * 8 + b"\x7f"),
        ("empty parts without end", b"\x3a\x80\x80\x04" + b"\x0a\x00" * 32_768),
    ]
    head = "g (float[n,4] x) => (float y)"
    runs = {name: functools.partial(_loose, f"{head} {{ {body} }}") for name, body in RUNS.items()}
    return [
        *(Case("file", name, functools.partial(_bad, builder)) for name, builder in BAD_FILES.items()),
        *of_bytes("file", [*kinds, *damaged(22)], "model.onnx", inspected),
        *of_models("file", {f"runs {name}": made for name, made in runs.items()}),
        *of_models("file", MADE),
        *of_models(
            "file", {f"named {name}": functools.partial(renamed, text) for name, text in NAMES.items()}, whole=True
        ),
        *of_models(
            "file",
            {
                f"weights of {fill}": functools.partial(weighted, fill)
                for fill in (np.nan, np.inf, -np.inf, 3e38, 1e-45)
            },
            whole=True,
        ),
        Case("file", "a pipe", _pipe),
        Case("file", "a link to a device without end", functools.partial(_link, "/dev/zero")),
        Case("file", "a link to itself", functools.partial(_link, "model.onnx")),
        Case("file", "weights in a pipe", _weights_in_a_pipe),
    ]


def _loose(text: str) -> onnx.ModelProto:
    """A graph whose output may have any shape; nodes in any order."""
    model = text_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model
