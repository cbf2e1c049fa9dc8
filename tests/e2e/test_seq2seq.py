"""Encoder-decoders: made in two parts, fused, proved alone and together, and written with as transformers does it.

Covers: load/export/torch_pair.py, proof/pair.py, run/generate/encoder_decoder.py, run/generate/row.py,
run/inputs/sound.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.artifact.package import check_golden
from onnxopt.errors import InputError
from onnxopt.run.generate.generator import Generator
from onnxopt.run.session import Session
from tests.support.seq2seq import BINS, CONFIGS, FRAMES, save_pair

NEW_TOKENS = 20
LENGTHS = (9, 4, 1, 13)  # of the texts of a batch

QUICK = ("t5", "bart", "whisper")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize("name", NAMES)
def test_both_halves_answer_like_the_original(name: str, tmp_path: Path) -> None:
    folder = save_pair(name, tmp_path / name)
    artifact = onnxopt.optimize(folder, out=tmp_path / "out", measure=False)
    manifest = artifact.manifest
    assert list(manifest.parts) == ["encoder", "decoder"]
    assert not [record.name for record in manifest.ledger if record.rolled_back]
    assert str(manifest.blocks["attention"]) == "6 of 6"
    assert (manifest.worst_relative_error or 1.0) < 1e-5
    assert check_golden(artifact.path) == []
    decoder = manifest.parts["decoder"].signature
    crossing = {spec.name for spec in decoder.inputs if "encoder" in spec.name and spec.name.endswith(("key", "value"))}
    encoder = manifest.parts["encoder"].signature
    made = {spec.name.replace("present", "past_key_values") for spec in encoder.outputs}
    assert len(crossing) == 4  # keys and values of two layers
    assert crossing <= made
    with pytest.raises(InputError, match="is an encoder-decoder, two graphs"):
        Session(artifact.path)
    given = _given(name)
    generator = Generator(artifact.path)
    found = generator.generate(given, max_new_tokens=NEW_TOKENS)
    expected = _in_torch(folder, given)
    assert [list(result.tokens) for result in found.results] == [_until_end(row, generator.ends) for row in expected]
    assert [result.tokens for result in generator.generate(given[:1], max_new_tokens=NEW_TOKENS).results] == [
        found.results[0].tokens
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_a_portable_pair_writes_the_same(name: str, tmp_path: Path) -> None:
    folder = save_pair(name, tmp_path / name)
    artifact = onnxopt.optimize(folder, out=tmp_path / "out", target="portable", measure=False)
    given = _given(name)
    generator = Generator(artifact.path)
    found = generator.generate(given, max_new_tokens=NEW_TOKENS)
    expected = _in_torch(folder, given)
    assert [list(result.tokens) for result in found.results] == [_until_end(row, generator.ends) for row in expected]


def _given(name: str) -> list[Any]:
    """Texts of different lengths as tokens, or sounds as features."""
    generator = np.random.default_rng(0)
    if name == "whisper":
        return list(generator.standard_normal((3, BINS, FRAMES)).astype(np.float32))
    return [generator.integers(5, 200, length).tolist() for length in LENGTHS]


def _in_torch(folder: Path, given: list[Any]) -> list[list[int]]:
    """Return what transformers' own greedy search writes behind the start token, all texts padded in one batch."""
    import torch
    import transformers

    sound = isinstance(given[0], np.ndarray)
    auto = transformers.AutoModelForSpeechSeq2Seq if sound else transformers.AutoModelForSeq2SeqLM
    network: Any = auto.from_pretrained(folder, dtype=torch.float32).eval()
    feeds: dict[str, torch.Tensor] = {}
    if sound:
        feeds["input_features"] = torch.from_numpy(np.stack(given))
    else:
        width = max(map(len, given))
        feeds["input_ids"] = torch.tensor([[*row, *[0] * (width - len(row))] for row in given])
        feeds["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in given])
    with torch.inference_mode():
        found = network.generate(**feeds, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS)
    start = network.generation_config.decoder_start_token_id
    rows: list[list[int]] = found.tolist()
    return [row[1:] if row[0] == start else row for row in rows]


def _until_end(row: list[int], ends: frozenset[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
