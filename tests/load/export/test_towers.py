"""Models that read texts and images are exported whole, with as many of each as one likes, or one tower alone.

Covers: load/export/towers.py, tasks/several.py
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import InputError
from onnxopt.load.export.export import export, look_at
from onnxopt.load.export.towers import channels_of, reads_both, scores_of_compared, tower_of
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.tasks.table import TASKS
from tests.support.dual import POSITIONS, SIDES, tiny_dual
from tests.support.tiny import tiny_checkpoint

SEVERAL = "zero-shot-image-classification"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(loaded: Loaded, folder: Path) -> Any:
    import onnxruntime

    ir.save(loaded.model, folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def of_torch(folder: Path, name: str, feeds: dict[str, Any], *, method: str = "") -> Any:
    import torch
    import transformers

    network = getattr(transformers, name).from_pretrained(folder).eval()
    tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
    with torch.inference_mode():
        return (getattr(network, method) if method else network)(**tensors)


def inputs_of(loaded: Loaded, texts: int, images: int, length: int, side: int) -> dict[str, Any]:
    rng = np.random.default_rng(texts)
    made: dict[str, Any] = {
        "input_ids": rng.integers(4, 200, (texts, length)),
        "attention_mask": np.ones((texts, length), np.int64),
        "token_type_ids": np.zeros((texts, length), np.int64),
        "pixel_values": rng.standard_normal((images, 3, side, side)).astype(np.float32),
    }
    made["attention_mask"][0, length - 2 :] = 0
    return {spec.name: made[spec.name] for spec in loaded.signature.inputs}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "CLIPModel"),
        ("siglip", "SiglipModel"),
        ("chinese_clip", "ChineseCLIPModel"),
        ("altclip", "AltCLIPModel"),
        ("align", "AlignModel"),
        ("groupvit", "GroupViTModel"),
    ],
)
def test_texts_and_images_are_as_many_as_one_likes(kind: str, name: str, tmp_path: Path) -> None:
    folder = tiny_dual(kind, tmp_path / kind)
    loaded = export(resolve(str(folder)))
    side = SIDES.get(kind, 36)
    axes = {spec.name: spec.axes for spec in (*loaded.signature.inputs, *loaded.signature.outputs)}
    always = kind == "siglip"
    assert loaded.task == SEVERAL
    assert axes["input_ids"] == ("batch", POSITIONS if always else "sequence")
    assert ("attention_mask" in axes) is not always
    assert axes["pixel_values"] == ("image_batch", 3, side, side)
    assert axes["logits_per_image"] == ("image_batch", "batch")
    assert ("token_type_ids" in axes) is (kind in ("chinese_clip", "align"))
    assert loaded.origin["scores"] == ("sigmoid" if kind == "siglip" else "softmax")
    assert {sizes["image_batch"] for sizes in loaded.proved_sizes} == {1, 3}

    session = opened(loaded, tmp_path)
    for texts, images in ((4, 1), (1, 2), (3, 5)):
        feeds = inputs_of(loaded, texts, images, POSITIONS if always else 6, side)
        found = dict(zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True))
        wanted = of_torch(folder, name, feeds)
        assert found["logits_per_image"].shape == (images, texts)
        for output, array in found.items():
            np.testing.assert_allclose(array, wanted[output].numpy(), rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(found["text_embeds"], axis=1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_alone_is_asked_for_by_its_task(kind: str, tmp_path: Path) -> None:
    folder = tiny_dual(kind, tmp_path / kind)
    for task, method, name in (
        ("feature-extraction", "get_text_features", "text_embeds"),
        ("image-feature-extraction", "get_image_features", "image_embeds"),
    ):
        loaded = export(resolve(str(folder)), task=task)
        assert loaded.task == task
        assert [spec.name for spec in loaded.signature.outputs] == [name]
        feeds = inputs_of(loaded, 3, 2, POSITIONS if kind == "siglip" else 5, 36)
        (found,) = opened(loaded, tmp_path).run(None, feeds)
        wanted = of_torch(folder, f"{'CLIP' if kind == 'clip' else 'Siglip'}Model", feeds, method=method)
        np.testing.assert_allclose(found, wanted.pooler_output.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("saved", "output"),
    [("CLIPTextModelWithProjection", "text_embeds"), ("CLIPVisionModelWithProjection", "image_embeds")],
)
def test_a_saved_tower_keeps_its_projection(saved: str, output: str, tmp_path: Path) -> None:
    folder = tiny_dual("clip", tmp_path / saved, saved=saved)
    loaded = export(resolve(str(folder)))
    assert [(spec.name, spec.axes) for spec in loaded.signature.outputs] == [(output, ("batch", 16))]
    feeds = inputs_of(loaded, 2, 3, 7, 36)
    (found,) = opened(loaded, tmp_path).run(None, feeds)
    np.testing.assert_allclose(found, of_torch(folder, saved, feeds)[output].numpy(), rtol=2e-4, atol=2e-5)


def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path: Path) -> None:
    bert = tiny_checkpoint("bert", tmp_path / "bert")
    with pytest.raises(InputError, match="BertModel does not compare texts with images"):
        look_at(resolve(str(bert)), SEVERAL)
    patches = tiny_dual("siglip2", tmp_path / "siglip2")
    with pytest.raises(InputError, match="Siglip2Model takes patches of pictures that each have a number of their own"):
        export(resolve(str(patches)))


def test_parts_are_found_by_what_networks_have() -> None:
    import torch

    plain = torch.nn.Linear(2, 2)
    assert tower_of(plain, TASKS["feature-extraction"].head) is plain
    assert scores_of_compared(plain) == "softmax"
    biased = torch.nn.Module()
    biased.logit_bias = torch.nn.Parameter(torch.zeros(1))
    assert scores_of_compared(torch.nn.ModuleList([biased])) == "sigmoid"
    assert channels_of(SimpleNamespace(num_channels=4)) == 4
    assert channels_of(SimpleNamespace(vision_config=SimpleNamespace(num_channels=1))) == 1
    assert [name for name, task in TASKS.items() if reads_both(task) and task.compares] == [SEVERAL]
