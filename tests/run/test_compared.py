"""An image is read with labels of one's own: in words from the folder, from Python, and by what io.json says.

Covers: run/compared.py, run/claims.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.run.claims import HYPOTHESIS, Claims
from onnxopt.run.compared import PHOTO, pixels_of
from onnxopt.spec import TensorSpec
from tests.support.dual import POSITIONS, tiny_dual

LABELS = ("the object", "a function of it", "name")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Return the kind, its checkpoint and its artifact."""
    room = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(room / "cache"))
        folder = tiny_dual(request.param, room / "checkpoint")
        onnxopt.optimize(folder, out=room / "out", measure=False, progress=onnxopt.quiet)
    return request.param, folder, room / "out"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return files of images, which are not square."""
    from PIL import Image

    paths = []
    for number, size in enumerate([(50, 41), (37, 64), (90, 40)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    return paths


def by_torch(kind: str, folder: Path, pictures: list[str], sentence: str) -> Any:
    """Return the scores [images, labels] of transformers, its tokenizer and its processor."""
    import torch
    import transformers
    from PIL import Image

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    padding: dict[str, Any] = (
        {"padding": "max_length", "max_length": POSITIONS} if kind == "siglip" else {"padding": True}
    )
    tokens = tokenizer([sentence.format(label) for label in LABELS], return_tensors="pt", **padding)
    kept = ("input_ids",) if kind == "siglip" else ("input_ids", "attention_mask")
    pixels = processor([Image.open(path) for path in pictures], return_tensors="pt")["pixel_values"]
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = network(**{name: tokens[name] for name in kept}, pixel_values=pixels).logits_per_image
    return (logits.sigmoid() if kind == "siglip" else logits.softmax(-1)).numpy()


@pytest.mark.parametrize("sentence", [None, "{} is there"])
def test_scores_are_those_of_transformers(
    made: tuple[str, Path, Path], pictures: list[str], sentence: str | None
) -> None:
    kind, folder, out = made
    found = onnxopt.Model(out).choose(pictures, LABELS, hypothesis=sentence)
    wanted = by_torch(kind, folder, pictures, sentence or PHOTO)
    assert isinstance(found, list)
    for row, scores in zip(found, wanted, strict=True):
        np.testing.assert_allclose([row[label] for label in LABELS], scores, atol=2e-3)  # bilinear, as pillow rounds it
        assert list(row) == sorted(LABELS, key=lambda label: -row[label])
    alone = onnxopt.Model(out).choose(pictures[1], LABELS, hypothesis=sentence)
    assert isinstance(alone, dict)
    assert alone == pytest.approx(found[1], abs=1e-5)


def test_the_command_says_labels_and_what_it_needs(
    made: tuple[str, Path, Path], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(made[2])
    assert main(["run", out, *pictures[:2], "--labels", ", ".join(LABELS), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [len(row) for row in answer["labels"]] == [3, 3]
    assert answer["texts"] == pictures[:2]
    assert main(["run", out, pictures[0]]) == 2
    assert "needs labels to choose from; write them with --labels a,b,c" in capsys.readouterr().err
    assert main(["run", out, pictures[0], "--hypothesis", "{}"]) == 2
    assert "name them with --labels" in capsys.readouterr().err
    assert main(["run", out, str(Path(pictures[0]).parent / "none.png"), "--labels", "a,b"]) == 2
    assert "no such image file" in capsys.readouterr().err


def test_io_json_says_what_programs_need(made: tuple[str, Path, Path]) -> None:
    kind, _, out = made
    io = json.loads((out / "io.json").read_text(encoding="utf-8"))
    assert io["scores"] == ("sigmoid" if kind == "siglip" else "softmax")
    assert io["postprocessing"][0].startswith(io["scores"])
    assert [one["name"] for one in io["outputs"]] == ["logits_per_image", "text_embeds", "image_embeds"]
    assert all(one["meaning"] for one in io["outputs"])
    padding, images = io["preprocessing"][-2:]
    assert ("pad every row" in padding and f"to {POSITIONS} tokens" in padding) is (kind == "siglip")
    assert images.startswith("images for pixel_values")
    assert set(io["sizes"]) == {"batch", "image_batch"} | ({"sequence"} if kind == "clip" else set())


def test_labels_are_read_as_written() -> None:
    assert Claims.of(["a ", " b"]) == Claims(("a", "b"), HYPOTHESIS)
    for labels, why in ((["a", ""], "empty"), ([], "empty"), (["a", "a "], "twice")):
        with pytest.raises(InputError, match=why):
            Claims.of(labels)
    with pytest.raises(InputError, match="for a label"):
        Claims.of(["a"], "a photo")


def test_an_image_of_another_size_is_refused(tmp_path: Path, pictures: list[str]) -> None:
    settings = {"image_processor": {"size": {"height": 30, "width": 20}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    spec = TensorSpec("pixel_values", "float32", ("image_batch", 3, 30, 20))
    assert pixels_of(tmp_path, [Path(one) for one in pictures], spec).shape == (3, 3, 30, 20)
    other = TensorSpec("pixel_values", "float32", ("image_batch", 3, 20, 30))
    with pytest.raises(InputError, match="as 30 x 20 pixels, the model takes 20 x 30"):
        pixels_of(tmp_path, [Path(pictures[0])], other)
