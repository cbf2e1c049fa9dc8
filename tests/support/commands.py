"""A call of every command that answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.cli.main import main
from onnxopt.records.quantization import QuantizationRecord, SensitivityRecord
from tests.artifact.test_report import make_manifest
from tests.support.decoder import folder_of
from tests.support.own_text import sentences, text_encoder
from tests.support.tiny import tiny_checkpoint


def arguments_of_all(room: Path) -> Mapping[str, list[str]]:
    """Return for each command that answers what it is given, in small: seconds for all of them.

    Args:
        room: a folder for what they read and write.
    """
    model, decoder = text_encoder(room / "model", layers=1), folder_of(room, "shared")
    taught = tiny_checkpoint("gpt2", room / "gpt2", layers=2)
    texts, prose, made = room / "texts.txt", room / "prose.txt", room / "made"
    texts.write_text("\n".join(sentences(48)) + "\n", encoding="utf-8")
    prose.write_text("the dog sat on the log. " * 12, encoding="utf-8")
    assert main(["optimize", str(model), "-o", str(made), "--no-measure", "--quiet"]) == 0
    ranked = room / "ranked"
    ranked.mkdir()
    layers = (SensitivityRecord(label="a", loss=float("inf"), precision="fp32", reason="its inputs overflow"),)
    record = QuantizationRecord(asked="int8", shipped=True, sensitivities=layers)
    (ranked / "manifest.json").write_text(make_manifest(quantization=record).to_json(), encoding="utf-8")
    recipe = room / "recipe.toml"
    lines = (f'source = "{model}"', f'data = "{texts}"', "[prune]", 'what = "ffn=25%"')
    recipe.write_text("\n".join(lines), encoding="utf-8")
    bench = ["-w", "1x8", "--rounds", "1", "--seconds", "0.2"]
    teach = ["--student", "layers=1", "--steps", "1", "--batch", "2", "--length", "16"]
    given: dict[str, list[Any]] = {
        "optimize": [model, "-o", room / "out", "--no-measure"],
        "inspect": [model],
        "passes": [],
        "explain": [model, "fuse-gelu"],
        "verify": [model, made],
        "bench": [model, made, *bench],
        "run": [made, "of the one", "it was"],
        "generate": [decoder, "hello", "you", "-n", "3"],
        "perplexity": [decoder, "--text", prose, "--window", "16"],
        "placement": [made],
        "package": [made, "--for", "node", "--for", "cpp"],
        "prune": [model, "ffn=25%", "-o", room / "pruned", "--data", texts],
        "distill": [taught, *teach, "--data", prose, "-o", room / "student"],
        "compress": [recipe, "-o", room / "small", "--no-measure"],
        "sensitivity": [ranked],
        "tasks": [],
        "doctor": [],
        "cache": [],
        "schema": [],
    }
    return {name: [name, *map(str, own)] for name, own in given.items()}
