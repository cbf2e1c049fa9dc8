"""Encoder-decoders: made in two halves, fused, proved alone and together."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.package import check_golden
from onnxopt.session import Session
from tests.support.seq2seq import CONFIGS, save_pair

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
    given = {spec.name.replace("present", "past_key_values") for spec in manifest.parts["encoder"].signature.outputs}
    assert len(crossing) == 8
    assert crossing <= given
    with pytest.raises(InputError, match="is an encoder-decoder, two graphs"):
        Session(artifact.path)
