"""The io.json of an encoder-decoder is enough to write with it: a loop that reads nothing else gives its tokens.

Covers: artifact/io_parts.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest

import onnxopt
from onnxopt.artifact.clients import add_client
from onnxopt.errors import InputError
from onnxopt.run.generate.generator import Generator
from tests.support.seq2seq import BINS, FRAMES, save_pair
from tests.support.tiny import tiny_checkpoint

COUNT = 12


@pytest.fixture(scope="module", params=["t5", "bart", "whisper"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp(request.param)
    return onnxopt.optimize(save_pair(request.param, room / "in"), out=room / "out", measure=False).path


def zeros(spec: dict[str, Any]) -> Any:
    """Return an empty past: one row, no positions."""
    return np.zeros(
        [axis if isinstance(axis, int) else int(place == 0) for place, axis in enumerate(spec["axes"])], spec["dtype"]
    )


def written(artifact: Path, io: dict[str, Any], given: dict[str, Any]) -> list[int]:
    """Write greedily with nothing but the files that io.json names and what it says of them."""
    graphs, decoding = io["graphs"], io["decoding"]
    assert set(decoding["rules"]) <= {"forced_eos_token_id"}, "this loop knows no other"
    encoder, decoder = (
        onnxruntime.InferenceSession(str(artifact / graphs[part]["file"])) for part in ("encoder", "decoder")
    )
    names = [spec["name"] for spec in graphs["encoder"]["outputs"]]
    encoded = dict(zip(names, encoder.run(names, given), strict=True))
    across = {to: encoded[source] for to, source in decoding["from_encoder"].items()}
    if "mask" in decoding:
        across[decoding["mask"]] = given["attention_mask"]
    past = {
        spec["name"]: zeros(spec)
        for spec in graphs["decoder"]["inputs"]
        if spec["meaning"] == "past" and spec["name"] not in across
    }
    outputs = [spec["name"] for spec in graphs["decoder"]["outputs"]]
    ids, seen = decoding["start_token_ids"], 0
    tokens: list[int] = []
    while len(tokens) < COUNT:
        made = {
            "ids": np.array([ids]),
            "mask": np.ones((1, seen + len(ids)), np.int64),
            "positions": np.arange(seen, seen + len(ids))[None],
        }
        own = {
            spec["name"]: made[spec["meaning"]].astype(spec["dtype"])
            for spec in graphs["decoder"]["inputs"]
            if spec["meaning"] in made and spec["name"] not in across
        }
        found = dict(zip(outputs, decoder.run(outputs, {**own, **past, **across}), strict=True))
        token = int(found["logits"][0, -1].argmax())
        if len(tokens) == COUNT - 1:
            token = decoding["rules"].get("forced_eos_token_id", token)
        if token in decoding["eos_token_id"]:
            break
        tokens.append(token)
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        seen, ids = seen + len(ids), [token]
    return tokens


def test_a_loop_that_reads_io_json_writes_what_the_artifact_writes(artifact: Path) -> None:
    io = json.loads((artifact / "io.json").read_text())
    inputs = [spec["name"] for spec in io["graphs"]["encoder"]["inputs"]]
    given: dict[str, Any]
    prompt: Any
    rng = np.random.default_rng(5)
    if "input_features" in inputs:
        features = rng.standard_normal((BINS, FRAMES)).astype(np.float32)
        given, prompt = {"input_features": features[None]}, features
    else:
        row = rng.integers(4, 190, 11)
        given, prompt = {"input_ids": row[None], "attention_mask": np.ones((1, 11), np.int64)}, row.tolist()
    assert sorted(given) == sorted(inputs)
    generator = Generator(artifact)
    expected = list(generator.generate([prompt], max_new_tokens=COUNT).results[0].tokens)
    assert len(expected) > 3
    found = written(artifact, io, given)
    assert found == [token for token in expected if token not in io["decoding"]["eos_token_id"]]


def described(kind: Literal["t5", "bart", "whisper"], room: Path, **settings: object) -> dict[str, Any]:
    """Return the io.json of a pair with a tokenizer beside it and other settings of its generation."""
    checkpoint = save_pair(kind, room / "in")
    shutil.copyfile(tiny_checkpoint("gpt2", room / "writer") / "tokenizer.json", checkpoint / "tokenizer.json")
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    artifact = onnxopt.optimize(checkpoint, out=room / "out", measure=False).path
    content: dict[str, Any] = json.loads((artifact / "io.json").read_text())
    return content


def test_rules_of_token_0_are_said_and_counts_of_0_are_not(tmp_path: Path) -> None:
    given = {"forced_bos_token_id": 0, "suppress_tokens": [], "begin_suppress_tokens": [0], "no_repeat_ngram_size": 0}
    io = described("bart", tmp_path, **given, min_length=0, forced_eos_token_id=2)
    assert io["decoding"]["rules"] == {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "begin_suppress_tokens": [0],
    }
    assert io["preprocessing"] == ["tokenize with tokenizer.json, special tokens added, for the encoder"]


def test_a_tokenizer_beside_an_encoder_of_sound_is_for_the_answer(tmp_path: Path) -> None:
    io = described("whisper", tmp_path)
    assert io["preprocessing"] == ["features of sound as preprocessor_config.json says, for the encoder"]
    assert io["postprocessing"][-1] == "tokenizer.json turns the tokens into text"


def test_the_clients_say_why_not(artifact: Path) -> None:
    with pytest.raises(
        InputError, match=r"made of 2 graphs, the clients run one; io\.json says how the two go together"
    ):
        add_client(artifact, "node")


def test_the_file_is_part_of_the_artifact(artifact: Path) -> None:
    opened = onnxopt.Artifact.open(artifact)
    assert "io.json" in opened.manifest.files
    assert opened.changed_files() == []
