"""Graphs that draw random numbers: everything but the drawing is proved, and the drawing stays.

Covers: road/drawing.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.load.onnx_file import load_onnx
from onnxopt.probe.draws import put_back

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
NOISY = """g (float[rows,6] x) => (float[rows,6] y)
<float k = {0.1}, float half = {0.5}, float one = {1}, float root = {1.4142135}> {
    d = Div(x, root) e = Erf(d) f = Add(e, one) h = Mul(x, half) gelu = Mul(h, f)
    r = RandomNormalLike(gelu) n = Mul(r, k) y = Add(gelu, n)
}"""
GRAPHS = {
    "of a shape": "=> (float[b,4] y) { r = RandomUniform<shape=[4], low=2.0, high=3.0>() y = Add(x, r) }",
    "like an input": "=> (float[b,4] y) { r = RandomUniformLike(x) y = Mul(x, r) }",
    "an output": "=> (float[b,4] y) { e = Exp(x) y = RandomNormalLike(e) }",
    "drawn twice": "=> (float[b,4] y) { a = RandomNormalLike(x) b = RandomNormalLike(a) y = Sub(a, b) }",
    "chances": "=> (float[b,4] y) { p = Sigmoid(x) y = Bernoulli(p) }",
    "classes": "=> (int32[b,3] y) { l = Neg(x) y = Multinomial<sample_size=3>(l) }",
    "training": """=> (float[b,4] y, bool[b,4] m) <float ratio = {0.5}, bool t = {1}>
        { z = Abs(x) y, m = Dropout(z, ratio, t) }""",
    "as many as were drawn": """=> (float[k,2] y) {
        u = RandomUniformLike(x) c = NonZero(u) t = Transpose(c) w = Cast<to=1>(t) r = RandomNormalLike(w)
        y = Add(w, r) }""",
}
DRAWING = ("RandomUniform", "RandomUniformLike", "RandomNormalLike", "Bernoulli", "Multinomial", "Dropout")


def write(text: str, folder: Path) -> Path:
    onnx.save(onnx.parser.parse_model(f"{HEAD} {text}"), folder / "noise.onnx")
    return folder / "noise.onnx"


def test_what_lies_around_the_drawing_is_fused_and_proved(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(write(NOISY, tmp_path), out=tmp_path / "out", measure=False)
    made = onnx.load(artifact.model_path)
    assert "RandomNormalLike" in [node.op_type for node in made.graph.node]
    assert len(made.graph.node) < 9
    assert [value.name for value in made.graph.input] == ["x"]
    assert [value.name for value in made.graph.output] == ["y"]
    assert any("draws random numbers (RandomNormalLike 'r')" in note for note in artifact.manifest.notes)
    session = ort.InferenceSession(artifact.model_path)
    x = np.zeros((900, 6), np.float32)
    drawn = session.run(None, {"x": x})[0]
    assert abs(float(drawn.std()) - 0.1) < 0.01
    assert not np.array_equal(drawn, session.run(None, {"x": x})[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_every_way_to_draw_goes_the_whole_road(name: str, tmp_path: Path) -> None:
    file = write(f"g (float[b,4] x) {GRAPHS[name]}", tmp_path)
    before = onnx.load(file)
    artifact = onnxopt.optimize(file, out=tmp_path / "out", measure=False)
    made = onnx.load(artifact.model_path)
    drawn = [[node.op_type for node in model.graph.node if node.op_type in DRAWING] for model in (before, made)]
    assert drawn[0] == drawn[1]
    for kind in ("input", "output"):
        assert [v.name for v in getattr(made.graph, kind)] == [v.name for v in getattr(before.graph, kind)]
    feeds = {"x": np.ones((5, 4), np.float32)}
    shapes = [ort.InferenceSession(path).run(None, feeds)[0].shape for path in (file, artifact.model_path)]
    assert shapes[0][1:] == shapes[1][1:]


def test_a_wrong_rewrite_beside_the_drawing_is_seen(tmp_path: Path) -> None:
    loaded = load_onnx(write(NOISY, tmp_path))
    feeds = loaded.feeder.make({"rows": 5}, seed=3)
    expected = loaded.reference.run(feeds)["y"]
    assert np.array_equal(expected, loaded.reference.run(feeds)["y"]), "the same numbers give the same answer"
    name = next(name for name in feeds if name != "x")
    other = loaded.reference.run(feeds | {name: feeds[name] * 2})["y"]
    assert not np.allclose(expected, other)


def test_taking_out_and_putting_back_gives_the_same_graph(tmp_path: Path) -> None:
    loaded = load_onnx(write(NOISY, tmp_path))
    assert loaded.draws is not None
    assert all(node.op_type != "RandomNormalLike" for node in loaded.model.graph)
    put_back(loaded.model, loaded.draws)
    assert [value.name for value in loaded.model.graph.inputs] == ["x"]
    drawn = next(node for node in loaded.model.graph if node.op_type == "RandomNormalLike")
    assert [value.name for value in drawn.inputs if value is not None] == ["gelu"]


def test_refuses_what_draws_in_a_branch_and_names_it(tmp_path: Path) -> None:
    text = """g (float[b,4] x, bool c) => (float[b,4] y) {
        y = If (c) <then_branch = t () => (float[b,4] a) { a = RandomNormalLike(x) },
                    else_branch = e () => (float[b,4] n) { n = Neg(x) }>
    }"""
    with pytest.raises(InputError, match=r"node 'a' \(RandomNormalLike\) draws random numbers inside a loop"):
        load_onnx(write(text, tmp_path))


def test_a_dropout_that_does_not_train_draws_nothing(tmp_path: Path) -> None:
    text = "g (float[b,4] x) => (float[b,4] y) <float r = {0.5}, bool t = {0}> { e = Exp(x) y = Dropout(e, r, t) }"
    assert load_onnx(write(text, tmp_path)).draws is None


DEAD = {
    "of an input": "r = RandomNormalLike(x) s = Add(x, r)",
    "of a shape": "r = RandomUniform<shape=[7]>() s = Relu(r) t = Neg(s)",
    "of itself": "a = RandomNormalLike(x) b = RandomUniformLike(a) c = Sub(b, a)",
    "of what is computed": "h = Exp(x) i = MatMul(h, w) r = RandomNormalLike(i) s = Mul(r, i) t = ReduceSum(s)",
}


@pytest.mark.parametrize("dead", DEAD)
def test_what_is_drawn_for_no_output_is_gone(dead: str, tmp_path: Path) -> None:
    weights = f"<float[4,4] w = {{{', '.join(['1.0'] * 16)}}}>"
    text = f"g (float[b,4] x) => (float[b,4] y) {weights} {{ {DEAD[dead]} y = Relu(x) }}"
    loaded = load_onnx(write(text, tmp_path))
    assert loaded.draws is None
    assert not [node for node in loaded.model.graph if node.op_type in DRAWING]
    artifact = onnxopt.optimize(write(text, tmp_path), out=tmp_path / "out", measure=False)
    assert [node.op_type for node in onnx.load(artifact.model_path).graph.node] == ["Relu"]
    assert (tmp_path / "out" / "golden").is_dir()


def test_a_dead_drawing_beside_a_living_one(tmp_path: Path) -> None:
    text = """g (float[b,4] x) => (float[b,4] y) {
        a = RandomNormalLike(x) k = RandomNormalLike(x) h = Exp(k) b = RandomNormalLike(h) y = Add(x, a) }"""
    loaded = load_onnx(write(text, tmp_path))
    assert loaded.draws is not None
    assert [spec.name for spec in loaded.draws.specs] == ["a::drawn"]
    onnxopt.optimize(write(text, tmp_path), out=tmp_path / "out", measure=False)
