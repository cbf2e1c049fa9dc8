"""What image models take is found by trying: channels, frames, the size they are for, and whether others run.

Covers: load/export/images.py, load/export/processors.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import ExportError
from onnxopt.load.checkpoint.classes import infer_task
from onnxopt.load.checkpoint.folder import load_config, read_checkpoint
from onnxopt.load.export.export import export
from onnxopt.load.export.forward_inputs import ExtraInput
from onnxopt.load.export.images import image_input
from onnxopt.load.export.torch_model import TorchModel, load_torch
from onnxopt.load.source.source import resolve
from onnxopt.spec import TensorSpec
from tests.support.tiny_images import image_checkpoint

OPEN = ("height", "width")


def loaded(folder: Path) -> tuple[str, TorchModel]:
    checkpoint = read_checkpoint(resolve(str(folder)))
    config = load_config(checkpoint)
    task = infer_task(config)
    return task.name, load_torch(checkpoint, config, task, None)


@pytest.mark.parametrize(
    ("kind", "task", "axes", "size_and_outputs"),
    [
        ("segformer", "image-segmentation", (3, *OPEN), ((224, 224), ("logits",))),
        ("glpn", "depth-estimation", (3, *OPEN), ((224, 224), ("predicted_depth",))),
        ("yolos", "object-detection", (3, *OPEN), ((64, 96), ("logits", "pred_boxes"))),
        ("swin2sr", "image-to-image", (3, *OPEN), ((16, 16), ("reconstruction",))),
        ("vitpose", "pose-estimation", (3, 64, 48), ((64, 48), ("heatmaps",))),
        ("vitmatte", "image-matting", (4, *OPEN), ((64, 64), ("alphas",))),
        ("videomae", "video-classification", (4, 3, 32, 32), ((32, 32), ("logits",))),
        ("timesformer", "video-classification", (3, 3, *OPEN), ((32, 32), ("logits",))),
        ("clip", "image-classification", (3, 48, 48), ((48, 48), ("logits",))),
        ("siglip", "image-classification", (3, 48, 48), ((48, 48), ("logits",))),
        ("deit", "image-classification", (3, 48, 48), ((48, 48), ("logits",))),
    ],
)
def test_each_head_is_found_with_what_it_takes(
    tmp_path: Path, kind: str, task: str, axes: tuple[Any, ...], size_and_outputs: tuple[Any, Any]
) -> None:
    name, model = loaded(image_checkpoint(kind, tmp_path))
    assert name == task
    assert [(spec.name, spec.axes) for spec in model.inputs] == [("pixel_values", ("batch", *axes))]
    assert (model.image_size, model.outputs) == size_and_outputs


@pytest.mark.parametrize("kind", ["detr", "conditional_detr"])
def test_what_tells_an_image_from_its_filling_is_an_input(tmp_path: Path, kind: str) -> None:
    name, model = loaded(image_checkpoint(kind, tmp_path))
    assert name == "object-detection"
    assert [(spec.name, spec.axes) for spec in model.inputs] == [
        ("pixel_values", ("batch", 3, *OPEN)),
        ("pixel_mask", ("batch", *OPEN)),
    ]
    assert [extra.region for extra in model.extras] == [True]
    fixed = model.fixed_image()
    assert [spec.axes[-2:] for spec in fixed.inputs] == [(224, 224), (224, 224)]
    pixels = np.random.default_rng(0).standard_normal((1, 3, 96, 128)).astype(np.float32)
    whole, part = np.ones((1, 96, 128), np.int64), np.ones((1, 96, 128), np.int64)
    part[:, :, 64:] = 0
    first, second = (model.run({"pixel_values": pixels, "pixel_mask": mask})["pred_boxes"] for mask in (whole, part))
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("processor", "made"),
    [
        ({"size": {"height": 96, "width": 64}}, (96, 64)),
        ({"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": 72}, (72, 72)),
        ({"size": {"shortest_edge": 64, "longest_edge": 96}}, (64, 64)),
        ({"size": {"height": 96, "width": 64}, "do_resize": False}, ()),
        ({}, ()),
    ],
)
def test_where_one_size_is_left_it_is_what_the_processor_makes(
    tmp_path: Path, processor: dict[str, Any], made: tuple[int, ...]
) -> None:
    _, model = loaded(image_checkpoint("segformer", tmp_path, processor=processor))
    assert (model.image_size, model.made_size) == ((224, 224), made)
    fixed = model.fixed_image()
    assert fixed.inputs[0].axes == ("batch", 3, *(made or (224, 224)))
    assert fixed.image_size == (made or (224, 224))


def test_a_size_that_the_model_does_not_take_is_none(tmp_path: Path) -> None:
    for index, size in enumerate(({"height": 96, "width": 96}, {"shortest_edge": 64, "longest_edge": 80})):
        _, model = loaded(image_checkpoint("clip", tmp_path / str(index), processor={"size": size}))
        assert (model.image_size, model.made_size) == ((48, 48), ())


def test_a_model_that_runs_on_no_image_says_what_was_tried() -> None:
    import torch

    class Picky(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"no image of {pixel_values.shape[-1]}")

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"vision_config": {"image_size": [40, 56]}}

    with pytest.raises(
        ExportError, match=r"here: .*does not run on pixel_values of 40 × 56, 224 × 224: no image of 56"
    ):
        image_input(Picky(), Config(), {}, where="here")


def test_regions_begin_in_the_corner_and_hold_half_of_each_side() -> None:
    extra = ExtraInput(TensorSpec("pixel_mask", "int64", ("batch", *OPEN)), (2,), region=True)
    assert ExtraInput.from_json(extra.to_json()) == extra
    drawn = extra.draw((40, 9, 6), np.random.default_rng(0))
    assert drawn.dtype == np.int64
    heights, widths = drawn[:, :, 0].sum(axis=1), drawn[:, 0, :].sum(axis=1)
    assert set(heights.tolist()) <= {5, 6, 7, 8, 9}
    assert set(widths.tolist()) <= {3, 4, 5, 6}
    assert len(set(heights.tolist())) > 2
    for mask, height, width in zip(drawn, heights, widths, strict=True):
        assert mask[:height, :width].all()
        assert mask.sum() == height * width


@pytest.mark.parametrize(
    ("kind", "open_axes"),
    [
        ("videomae", {"batch"}),
        ("vitpose", {"batch"}),
        ("deit", {"batch"}),
        ("detr", {"batch", *OPEN}),
        ("timesformer", {"batch", *OPEN}),
        ("yolos", {"batch", *OPEN}),
    ],
)
def test_what_is_exported_is_proved_at_every_size(tmp_path: Path, kind: str, open_axes: set[str]) -> None:
    loaded = export(resolve(str(image_checkpoint(kind, tmp_path))), use_cache=False)
    assert set(loaded.signature.axes) == open_axes
    assert {sizes["batch"] for sizes in loaded.proved_sizes} == {1, 2, 5}
    sides = {axis: {sizes[axis] for sizes in loaded.proved_sizes} for axis in open_axes & set(OPEN)}
    assert all(len(found) == 2 for found in sides.values())
    assert set(loaded.ranges) == set(sides)
