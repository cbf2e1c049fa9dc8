"""Small models of text as .onnx files with their tokenizer, made without torch and transformers."""

from __future__ import annotations

import json
from pathlib import Path

from onnxopt.graph.files import save_graph
from tests.support.synthetic import encoder

WORDS = "the of and to in is a that for it as was with be by on not he his but at are this have from or had an they one"

OPSET = 18  # of exporters of today; every runtime that we accept has all kernels of it


def text_encoder(folder: Path, *, layers: int = 2) -> Path:
    """Write `model.onnx`, an encoder of small words, with tokenizer.json beside it, and return its path.

    Args:
        folder: made here.
        layers: of the encoder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = encoder(layers)
    model.opset_imports[""] = OPSET
    path = save_graph(model, folder)
    words = ["[PAD]", "[UNK]", *WORDS.split()]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106  # a word
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def sentences(count: int) -> list[str]:
    """Return texts of those words, each of another length."""
    words = WORDS.split()
    return [
        " ".join(words[(7 * row + 3 * place) % len(words)] for place in range(3 + row % 17)) for row in range(count)
    ]
