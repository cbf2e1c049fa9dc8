"""Inputs that steer an operator get values under which it runs, others from seed to seed, at sizes of all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt.load.onnx_file import load_onnx

# a graph whose made-up inputs must be more than numbers; names say nothing on purpose
GRAPHS = {
    "reshape": "(float[7,6] a, int64[3] b) => (float[p,q,r] y) { y = Reshape(a, b) }",
    "reshape behind a cast": "(float[5,4] a, int32[2] b) => (float[p,q] y) { c = Cast<to=7>(b) y = Reshape(a, c) }",
    "reshape as declared": "(float[6,4] a, int64[3] b) => (float[2,3,4] y) { y = Reshape(a, b) }",
    "slice of two axes": """(float[5,6,7] a, int64[2] b, int64[2] c, int64[2] d, int64[2] e) => (float[p,q,r] y)
        { y = Slice(a, b, c, d, e) }""",
    "resize by factors": '(float[1,2,5,3] a, float[4] b) => (float[1,2,h,w] y) { y = Resize<mode="linear">(a, , b) }',
    "resize to sizes": '(float[1,2,5,3] a, int64[4] b) => (float[p,q,h,w] y) { y = Resize<mode="nearest">(a, , , b) }',
    "squeeze": "(float[3,1,4,1] a, int64[2] b) => (float[p,q] y) { y = Squeeze(a, b) }",
    "unsqueeze": "(float[3,4] a, int64[3] b) => (float[p,q,r,s,t] y) { y = Unsqueeze(a, b) }",
    "split": "(float[9,2] a, int64[2] b) => (float[p,2] y, float[q,2] z) { y, z = Split<axis=0>(a, b) }",
    "cumulative sum": "(float[6] a, int32 b) => (float[6] y) { y = CumSum(a, b) }",
    "one-hot": "(int64[4] a, int64 b, float[2] c) => (float[4,p] y) { y = OneHot(a, b, c) }",
    "boxes": """(float[1,6,4] a, float[1,2,6] b, int64 c, float d, float e) => (int64[p,3] y)
        { y = NonMaxSuppression(a, b, c, d, e) }""",
    "grid": "(float[2,2,3] a, int64[4] b) => (float[2,h,w,2] y) { y = AffineGrid(a, b) }",
    "range": "(float a, float b, float c) => (float[p] y) { y = Range(a, b, c) }",
    "reduction": "(float[3,4,5] a, int64[2] b) => (float[p,q,r] y) { y = ReduceMax(a, b) }",
    "reflection": '(float[1,3,4] a, int64[6] b) => (float[p,q,r] y) { y = Pad<mode="reflect">(a, b) }',
}


@pytest.mark.parametrize("name", GRAPHS)
def test_runs_with_what_is_made_up_for_it(name: str, tmp_path: Path) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 20]> g {GRAPHS[name]}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    for seed in range(9):
        loaded.reference.run(loaded.feeder.make({}, seed=seed))


def test_a_reshape_of_an_open_axis_takes_all_of_it(tmp_path: Path) -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 19]> g (float[n,3] a, int64[2] b) => (float[p,q] y) { y = Reshape(a, b) }'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    [axis] = loaded.signature.axes
    shapes = set()
    for size in (1, 4, 29):
        for seed in range(4):
            feeds = loaded.feeder.make({axis: size}, seed=seed)
            shapes.add(loaded.reference.run(feeds)["y"].shape)
    assert {shape[0] * shape[1] for shape in shapes} == {3, 12, 87}
    assert len(shapes) > 3, "seeds give other shapes"


def test_parts_add_up_to_what_is_split(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 19]>
    g (float[2,n] a, int64[3] b) => (float[2,p] x, float[2,q] y, float[2,r] z) { x, y, z = Split<axis=-1>(a, b) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    loaded = load_onnx(tmp_path / "m.onnx")
    [axis], feeder = loaded.signature.axes, loaded.feeder
    for size in (3, 8, 100):
        assert feeder.make({axis: size}, seed=size)["b"].sum() == size
    assert not np.array_equal(feeder.make({axis: 8}, seed=0)["b"], feeder.make({axis: 8}, seed=1)["b"])
