from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import onnxopt
from onnxopt.run.cost import unknown_cost
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.text import TextModel
from onnxopt.run.session import Session
from onnxopt.serve.weighing import token_bytes, weigh_decoder, weigh_encoder
from tests.support.tiny import tiny_checkpoint


def test_an_encoder_is_weighed_on_tokens(encoder_folder: Path) -> None:
    session = Session(encoder_folder)
    cost = weigh_encoder(session, TextModel.open(encoder_folder, session))
    assert cost.measured
    # a token's hidden state is float32 [32], of which several are there at the same time; three inputs each
    assert 32 * 4 * 2 < cost.run_bytes(100, 3 * 128) / 100 / 128 < 32 * 4 * 1000


def test_a_decoder_is_weighed_with_its_cache(decoder_folder: Path) -> None:
    decoder = Generator(decoder_folder).decoder
    assert weigh_decoder(decoder).measured
    assert token_bytes(decoder.cache) == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, size, float32


def test_a_model_for_images_is_weighed_on_its_golden_cases(tmp_path: Path) -> None:
    artifact = onnxopt.optimize(tiny_checkpoint("vit", tmp_path / "c"), out=tmp_path / "pictures", measure=False).path
    session = Session(artifact)
    cost = weigh_encoder(session, None)
    assert cost.measured
    elements = int(np.prod([axis for axis in session.inputs[0].axes if isinstance(axis, int)]))
    assert cost.rows_within(64 << 20, elements) > 1
    alone = shutil.copytree(artifact, tmp_path / "alone", ignore=shutil.ignore_patterns("golden"))
    guessed = weigh_encoder(Session(alone), None)
    assert guessed == unknown_cost(session)
    assert guessed.linear == pytest.approx(512)
