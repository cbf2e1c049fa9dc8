"""Static int8 for real networks of convolutions: `python -m bench.convs`.

The three networks inside the package rapidocr-onnxruntime (pip downloads it, nothing is installed): one finds lines
of text, one tells whether a line stands on its head, one reads it. Calibrated and judged on rendered lines and pages,
parts of which nothing sees before the judge. Whatever is not faster or beyond its budget is said so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import table
from bench.peers import ROOT, error_line

FOLDER = ROOT / "build" / "bench" / "convs"
RESULT = ROOT / "bench" / "results" / "convs-int8.json"
MARKS = ("<!-- convs -->", "<!-- /convs -->")
PACKAGE = "rapidocr-onnxruntime==1.4.4"
PAGE, LINE_HEIGHT = 320, 48
# name: file, width of an image, how many images, batches to time
NETWORKS: dict[str, tuple[str, int, int, tuple[int, ...]]] = {
    "finds lines": ("ch_PP-OCRv4_det_infer.onnx", PAGE, 64, (1,)),
    "which way up": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", 192, 160, (1, 6)),
    "reads a line": ("ch_PP-OCRv4_rec_infer.onnx", 320, 96, (1, 6)),
}
MEANS, SPREADS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of a page, as the package has them


def main() -> int:
    """Fetch, render, quantize, write the results."""
    parser = argparse.ArgumentParser(description="Quantize real networks of convolutions.")
    parser.add_argument("--only", default="", help="names of networks, separated by commas")
    parser.add_argument("--make", action="store_true", help="fetch and render, and stop")
    table.add_option(parser)
    arguments = parser.parse_args()
    if arguments.table:
        return table.put_last(arguments.table, MARKS, RESULT, render)
    fetch()
    only = [name for name in arguments.only.split(",") if name] or list(NETWORKS)
    for name in only:
        pictures(name)
    if arguments.make:
        return 0
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"networks": {}}
    result = {**_described(), "networks": {**known["networks"], **{name: measure(name) for name in only}}}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(render(result))
    return 0


def fetch() -> None:
    """Download the package and take its networks out."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if all((FOLDER / file).is_file() for file, *_ in NETWORKS.values()):
        return
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet", "--dest", str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(FOLDER.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise SystemExit(error_line(done.stderr) or f"pip could not download {PACKAGE}")
    with zipfile.ZipFile(wheel) as archive:
        for file, *_ in NETWORKS.values():
            (FOLDER / file).write_bytes(archive.read(f"rapidocr_onnxruntime/models/{file}"))


def pictures(name: str) -> Path:
    """Render what a network reads, one .npz per image as it takes it, and return their folder."""
    import numpy as np

    _, width, count, _ = NETWORKS[name]
    folder = FOLDER / name.replace(" ", "-")
    if folder.is_dir() and len(list(folder.iterdir())) == count:
        return folder
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(pages(count) if width == PAGE and name == "finds lines" else lines(count, width)):
        np.savez(folder / f"{number:03d}.npz", x=image.transpose(2, 0, 1)[None])
    return folder


def lines(count: int, width: int) -> Iterator[Any]:
    """Yield float32 [48, width, 3] in −1 to 1: lines of text in many sizes and colours, half of them on their head."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    draws, texts, fonts = np.random.default_rng(0), _texts(), _fonts()
    for number in range(count):
        ink, paper = _colours(draws)
        font = ImageFont.truetype(fonts[draws.integers(len(fonts))], int(draws.integers(18, 44)))
        text = texts[number][: int(draws.integers(6, 26))]
        left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
        image = Image.new("RGB", (right - left + 20, bottom - top + 14), paper)
        ImageDraw.Draw(image).text((10 - left, 7 - top), text, fill=ink, font=font)
        if width < PAGE and draws.random() < 0.5:
            image = image.rotate(180)
        shown = min(width, max(1, image.width * LINE_HEIGHT // image.height))
        made = np.zeros((LINE_HEIGHT, width, 3), np.float32)
        made[:, :shown] = _noisy(image.resize((shown, LINE_HEIGHT)), draws) / 127.5 - 1
        yield made


def pages(count: int) -> Iterator[Any]:
    """Yield float32 [320, 320, 3], normalized: pages with lines of text in many sizes."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    draws, texts, fonts = np.random.default_rng(1), _texts(), _fonts()
    for number in range(count):
        ink, paper = _colours(draws)
        image = Image.new("RGB", (PAGE, PAGE), paper)
        below, font = 4, fonts[draws.integers(len(fonts))]
        for line in range(int(draws.integers(2, 9))):
            size = int(draws.integers(10, 34))
            text = texts[(number * 9 + line) % len(texts)][: int(draws.integers(5, 40))]
            place = int(draws.integers(0, 80)), below
            ImageDraw.Draw(image).text(place, text, fill=ink, font=ImageFont.truetype(font, size))
            below += int(size * draws.uniform(1.2, 2.2))
        made = (_noisy(image, draws) / 255 - np.array(MEANS)) / np.array(SPREADS)
        yield made.astype(np.float32)


def _texts() -> list[str]:
    from onnxopt.texts.builtin import builtin_texts

    return [text for text in builtin_texts() if len(text) > 40]


def _fonts() -> list[str]:
    import matplotlib as mpl

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return sorted(str(path) for path in folder.glob("DejaVu*.ttf") if "Display" not in path.name)


def _colours(draws: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    dark, light = (tuple(int(part) for part in draws.integers(*ends, 3)) for ends in ((0, 110), (150, 256)))
    return (dark, light) if draws.random() < 0.8 else (light, dark)


def _noisy(image: Any, draws: Any) -> Any:
    import numpy as np

    pixels = np.asarray(image, np.float32)
    return np.clip(pixels + draws.normal(0, draws.uniform(0, 8), pixels.shape), 0, 255)


def measure(name: str) -> dict[str, Any]:
    """Quantize one network and return what came of it."""
    from onnxopt.road.optimize import optimize

    file, width, _, batches = NETWORKS[name]
    height = PAGE if name == "finds lines" else LINE_HEIGHT
    workload = ",".join(f"batch={batch}:height={height}:width={width}" for batch in batches)
    print(f"{name}: {file}", flush=True)
    made = optimize(
        FOLDER / file,
        out=FOLDER / "out" / name.replace(" ", "-"),
        precision="int8",
        calibration=str(FOLDER / name.replace(" ", "-")),
        workload=workload,
    )
    found, measured = made.manifest.quantization, made.measurements
    if found is None or found.gate is None or measured is None:
        raise SystemExit(f"{name} was not quantized")
    return {
        "file": file,
        "layers": {kind: sum(one.precision == kind for one in found.layers.values()) for kind in ("int8", "fp32")},
        "metric": found.gate.metric,
        "value": found.gate.value,
        "worst": found.gate.worst,
        "samples": found.gate.samples,
        "shipped": found.shipped,
        "reason": found.reason,
        "latency": [one.model_dump() for one in measured.latency],
    }


def _described() -> dict[str, Any]:
    from onnxopt.host.machine import describe_machine, versions

    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"created": created, "machine": describe_machine(), "versions": versions()}


def render(result: dict[str, Any]) -> str:
    """Return the table and what it was measured on."""
    machine = result["machine"]
    caption = (
        f"Networks of {PACKAGE.replace('==', ' ')} (`make bench-convs` downloads it), static int8 calibrated and "
        "judged on rendered text; the judge's images were not seen before. Speed is that of the graph that is shipped, "
        f"times the original's, by batch. {machine['cores']} threads of {table.escape(str(machine['cpu']))}, "
        f"onnxruntime {result['versions']['onnxruntime']}, {result['created'][:10]}."
    )
    rows = []
    for name, one in result["networks"].items():
        layers = f"{one['layers']['int8']} of {sum(one['layers'].values())}"
        speed = " / ".join(f"{shape['before_ms'] / shape['after_ms']:.2f}×" for shape in one["latency"])
        judged = f"{one['metric']} {one['value']:.4f} (worst {one['worst']:.4f}, {one['samples']} images)"
        rows.append([name, f"`{one['file']}`", layers, judged, speed, "int8" if one["shipped"] else one["reason"]])
    header = ["network", "file", "layers in int8", "beside float", "speed", "shipped"]
    return f"{caption}\n\n{table.lines(header, rows)}\n"


if __name__ == "__main__":
    sys.exit(main())
