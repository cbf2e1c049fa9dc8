"""Boxes, segments, depth and images are what transformers' own processors make of the same tensors.

Covers: run/pictures.py, run/inputs/image.py, run/inputs/image_sizes.py, run/inputs/enlarged.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.run.answers import run_text
from onnxopt.run.inputs.enlarged import enlarged
from onnxopt.run.inputs.image import Seen, prepare
from onnxopt.run.pictures import PictureRun, depth, detections, images, segments
from onnxopt.run.results import Depth
from onnxopt.spec import Feeds
from tests.support import loaded as support

SIZE = (53, 37)  # width and height of the image in the file
FIVE = {"id2label": {str(index): f"label {index}" for index in range(5)}}


def drawn(*shape: int, scale: float = 4.0) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape) * scale, np.float32)


def run_of(
    monkeypatch: pytest.MonkeyPatch, outputs: Feeds, *, out: Path | None = None, processor: str = "", **given: Any
) -> PictureRun:
    seen = Seen(outputs, SIZE, given.get("given", SIZE), given.get("warped", False))
    monkeypatch.setattr("onnxopt.run.pictures.see_images", lambda *_: [seen])
    monkeypatch.setattr("onnxopt.run.pictures.read_settings", lambda *_: {"image_processor_type": processor})
    session: Any = SimpleNamespace(path=Path("model.onnx"))
    return PictureRun(Path(), session, FIVE, "task", ("picture.png",), out)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 30), (3, 7), (8, 5)])
def test_maps_are_resized_as_torch_does(kernel: Any, size: tuple[int, int]) -> None:
    import torch

    maps = drawn(2, 8, 13)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size=size, mode=kernel)[0].numpy()
    np.testing.assert_allclose(enlarged(maps, size, kernel), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("DetrImageProcessor", 6),
        ("YolosImageProcessor", 6),
        ("DeformableDetrImageProcessor", 5),
        ("RTDetrImageProcessor", 5),
    ],
)
def test_boxes_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch, kind: str, labels: int) -> None:
    import torch
    import transformers

    logits, places = drawn(1, 40, labels), np.abs(drawn(1, 40, 4, scale=0.3))
    found = detections(run_of(monkeypatch, {"logits": logits, "pred_boxes": places}, processor=kind)).boxes[0]
    processor = getattr(transformers, f"{kind}Pil")()
    given = SimpleNamespace(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(places))
    theirs = processor.post_process_object_detection(given, threshold=0.5, target_sizes=[SIZE[::-1]])[0]
    assert 2 < len(found) == len(theirs["scores"])
    order = torch.argsort(-theirs["scores"], stable=True)
    assert [one.label for one in found] == [f"label {int(theirs['labels'][at])}" for at in order]
    corners = [[one.score, one.left, one.top, one.right, one.bottom] for one in found]
    wanted = torch.cat([theirs["scores"][order, None], theirs["boxes"][order]], dim=1).numpy()
    np.testing.assert_allclose(corners, wanted, rtol=1e-4, atol=1e-4)


def test_an_image_with_nothing_on_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"logits": np.zeros((1, 4, 6), np.float32), "pred_boxes": np.zeros((1, 4, 4), np.float32)}
    assert detections(run_of(monkeypatch, outputs)).lines() == ["'picture.png': nothing with a score above 0.5"]


def test_segments_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    import transformers
    from PIL import Image

    logits = drawn(1, 5, 9, 12)
    result = segments(run_of(monkeypatch, {"logits": logits}, out=tmp_path))
    processor = transformers.SegformerImageProcessorPil()
    given = SimpleNamespace(logits=torch.from_numpy(logits))
    theirs = processor.post_process_semantic_segmentation(given, target_sizes=[SIZE[::-1]])[0].numpy()
    written = np.asarray(Image.open(result.files[0]))
    assert (written == theirs).mean() > 0.999  # where two labels are equal, rounding decides
    shares = {one.label: one.share for one in result.shares[0]}
    assert shares == {f"label {at}": pytest.approx((written == at).mean()) for at in np.unique(written)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert result.lines()[-1] == f"written: {tmp_path / 'picture.png'}"


@pytest.mark.parametrize("kind", ["MaskFormer", "Mask2Former", "Detr"])
def test_masks_with_labels_become_segments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    import torch
    import transformers
    from PIL import Image

    names = ("logits", "pred_masks") if kind == "Detr" else ("class_queries_logits", "masks_queries_logits")
    outputs = dict(zip(names, (drawn(1, 7, 6), drawn(1, 7, 9, 12)), strict=True))
    result = segments(run_of(monkeypatch, outputs, out=tmp_path, processor=f"{kind}ImageProcessor"))
    processor = getattr(transformers, f"{kind}ImageProcessorPil")()
    given = SimpleNamespace(**{name: torch.from_numpy(one) for name, one in outputs.items()})
    theirs = processor.post_process_semantic_segmentation(given, target_sizes=[SIZE[::-1]])[0].numpy()
    assert (np.asarray(Image.open(result.files[0])) == theirs).mean() > 0.999


def test_depth_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    import transformers
    from PIL import Image

    found = drawn(1, 9, 12)
    result = depth(run_of(monkeypatch, {"predicted_depth": found}, out=tmp_path))
    given: Any = SimpleNamespace(predicted_depth=torch.from_numpy(found))
    theirs = transformers.DPTImageProcessorPil().post_process_depth_estimation(given, [SIZE[::-1]])[0][
        "predicted_depth"
    ]
    told = result.ranges[0]
    assert (told.width, told.height) == SIZE
    assert told.least == pytest.approx(float(theirs.min()), abs=1e-4)
    assert told.most == pytest.approx(float(theirs.max()), abs=1e-4)
    written = np.asarray(Image.open(result.files[0]))
    assert (written.min(), written.max()) == (0, 65535)
    scaled = written / 65535 * (told.most - told.least) + told.least
    np.testing.assert_allclose(scaled, theirs.numpy(), atol=1e-3)


def test_a_larger_image_is_cut_to_what_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    made = drawn(1, 3, 80, 112, scale=0.5)
    run = run_of(monkeypatch, {"reconstruction": made}, out=tmp_path, given=(56, 40))
    result = images(run)
    assert (result.sizes[0].width, result.sizes[0].height) == (106, 74)
    written = np.asarray(Image.open(result.files[0]))
    np.testing.assert_allclose(written, made[0].clip(0, 1).transpose(1, 2, 0)[:74, :106] * 255, atol=0.51)


def test_what_cannot_be_told_or_written_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gives maps, and none of it is predicted_depth"):
        depth(run_of(monkeypatch, {"maps": drawn(1, 4, 4)}))
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(InputError, match="would be written over; name another folder"):
        depth(run_of(monkeypatch, {"predicted_depth": drawn(1, 4, 4)}, out=tmp_path))
    with pytest.raises(InputError, match=r"picture\.png.*: cannot be written"):
        depth(run_of(monkeypatch, {"predicted_depth": drawn(1, 4, 4)}, out=tmp_path / "picture.png"))


def test_a_stretched_image_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(monkeypatch, {"predicted_depth": drawn(1, 4, 4)}, given=(64, 64), warped=True)
    assert "takes 64 x 64 pixels alone" in depth(run).lines()[-1]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("Detr", {}),
        ("Detr", {"size": {"shortest_edge": 40, "longest_edge": 60}}),
        ("Yolos", {"size": {"shortest_edge": 50, "longest_edge": 90}}),
        ("Segformer", {"size": {"height": 40, "width": 48}}),
        ("DPT", {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}),
        ("DPT", {"size": {"height": 64, "width": 96}}),
        ("GLPN", {}),
        ("RTDetr", {"size": {"height": 64, "width": 64}}),
        ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}),
        ("MobileViT", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}),
        ("Mask2Former", {"size": {"shortest_edge": 48, "longest_edge": 80}, "size_divisor": 32}),
        ("Swin2SR", {}),
    ],
)
@pytest.mark.parametrize("size", [(53, 37), (70, 128)])
def test_pixels_are_those_of_the_processor(kind: str, given: Mapping[str, Any], size: tuple[int, int]) -> None:
    import transformers
    from PIL import Image

    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**given)
    settings = {name: value for name, value in processor.to_dict().items() if value is not None}
    settings["image_processor_type"] = f"{kind}ImageProcessor"
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    ours = prepare(image, settings)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-2)


def test_processors_with_ways_of_their_own_are_refused() -> None:
    from PIL import Image

    with pytest.raises(InputError, match=r"images for ZoeDepth are prepared in ways of their own.*onnxopt\.Session"):
        prepare(Image.new("RGB", (8, 8)), {"image_processor_type": "ZoeDepthImageProcessor"})


DEPTH = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 3, SIDES] pixel_values, int64[batch, SIDES] pixel_mask) => (float[batch, SIDES] predicted_depth)
{
    one = Constant<value = int64[1] {1}>()
    grey = ReduceMax<keepdims = 0>(pixel_values, one)
    kept = Cast<to = 1>(pixel_mask)
    predicted_depth = Mul(grey, kept)
}"""
DIFFERING = {"do_normalize": False, "size": {"shortest_edge": 8, "longest_edge": 40}}


def deep(folder: Path, sides: str, processor: Mapping[str, Any]) -> Path:
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    model = ir.from_proto(onnx.parser.parse_model(DEPTH.replace("SIDES", sides)))
    given = support.loaded(
        model, task="depth-estimation", assets=tuple(source.iterdir()), origin={"folder": str(source)}
    )
    return support.write(folder / "out", given).path


def white_image(folder: Path) -> Path:
    from PIL import Image

    path = folder / "white.png"
    Image.new("RGB", (32, 16), (255, 255, 255)).save(path)
    return path


def test_a_whole_image_is_told_as_such(tmp_path: Path) -> None:
    image = str(white_image(tmp_path))
    result = run_text(deep(tmp_path / "open", "height, width", DIFFERING), [image], out=tmp_path / "maps")
    assert isinstance(result, Depth)
    told = result.ranges[0]
    assert (told.width, told.height) == (32, 16)
    assert (told.least, told.mean, told.most) == pytest.approx((1.0, 1.0, 1.0))  # where the mask were 0, depth would be
    assert result.files == (str(tmp_path / "maps" / "white.png"),)
    assert result.notes == ()


def test_a_model_of_one_size_gets_that_size(tmp_path: Path) -> None:
    image = str(white_image(tmp_path))
    result = run_text(deep(tmp_path / "fixed", "6, 10", DIFFERING), [image])
    assert "takes 10 x 6 pixels alone" in result.lines()[-1]
    exact = {"do_normalize": False, "size": {"height": 6, "width": 10}}
    assert run_text(deep(tmp_path / "exact", "6, 10", exact), [image]).notes == ()


def test_what_writes_no_images_says_so(tmp_path: Path) -> None:
    folder = deep(tmp_path / "a", "6, 10", DIFFERING)
    manifest = folder / "manifest.json"
    for task, said in (("object-detection", "writes no images"), ("image-matting", "cannot be tried with text")):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"task": task}))
        with pytest.raises(InputError, match=said):
            out = tmp_path if task == "object-detection" else None
            run_text(folder, [str(white_image(tmp_path))], out=out)


def test_the_command_writes_maps_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image = deep(tmp_path / "a", "height, width", DIFFERING), str(white_image(tmp_path))
    assert main(["run", str(folder), image, "--out", str(tmp_path / "maps"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kind"], answer["files"]) == ("depth", [str(tmp_path / "maps" / "white.png")])
    assert answer["ranges"] == [{"width": 32, "height": 16, "least": 1.0, "mean": 1.0, "most": 1.0}]
    assert main(["run", str(folder), image, "--out", image]) == 2
    assert "cannot be written" in capsys.readouterr().err
