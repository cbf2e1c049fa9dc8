"""Decoders that no artifact describes: where their rotary tables change is looked for in the file.

Covers: probe/crossing.py, run/generate/decoder.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.artifact.io_json import io_description
from onnxopt.errors import InputError
from onnxopt.graph.sides import Crossings
from onnxopt.load.onnx_file import load_onnx
from onnxopt.probe.crossing import crossings_of, crossings_of_file
from onnxopt.proof.prepare import prepare
from onnxopt.records.manifest import Manifest
from onnxopt.run.generate import decoder as decoders
from onnxopt.run.generate.decoder import Decoder, SidedBatch
from onnxopt.run.generate.generator import Generator
from onnxopt.run.session import Session
from tests.support.cached import LEARNED, LONGEST, lower
from tests.support.cached import Decoder as Text
from tests.support.crossing import COUNTED, ENDLESS, SPELLINGS, TURNED, crossing_decoder
from tests.support.decoder import VOCABULARY, decoder_artifact

NEW = 8
Change = Callable[[onnx.ModelProto], None]


def as_written(model: onnx.ModelProto) -> None:
    """Keep what onnxopt's own helpers write."""


def without_types(model: onnx.ModelProto) -> None:
    """Leave out what is known of inner values, as most tools do."""
    del model.graph.value_info[:]


def without_names(model: onnx.ModelProto) -> None:
    """Leave the axes of the inputs without names, and outputs too."""
    without_types(model)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()


def other_names(model: onnx.ModelProto) -> None:
    """Call the axes something else."""
    names = {"batch": "b", "sequence": "s0", "past_sequence": "kv", "total_sequence": "s1"}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, "s1")


CHANGES: tuple[Change, ...] = (as_written, without_types, without_names, other_names)


def wide(start: str, limit: int) -> Text:
    """Return a decoder over the letters of `decoder_artifact`, so that the tokens it writes differ."""
    small, rng = crossing_decoder(start, limit), np.random.default_rng(2)
    words = {
        "words_table": rng.standard_normal((VOCABULARY, small.width)).astype(np.float32),
        "head": (rng.standard_normal((small.width, VOCABULARY)) * small.width**-0.5).astype(np.float32),
    }
    return replace(small, weights={**small.weights, **words}, outputs=f"float[batch,1,{VOCABULARY}] logits")


def written(folder: Path, start: str, limit: int, change: Change = as_written) -> Path:
    """Write a file without a word on crossings."""
    model = ir.to_proto(lower(wide(start, limit).model(), "lower-last-token").model)
    assert not any("crossing" in one.key for one in model.metadata_props)
    change(model)
    onnx.save(model, folder / "foreign.onnx")
    return folder / "foreign.onnx"


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


def whole(decoder: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """Return the likeliest tokens, the whole text read anew for each."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(decoder.read([ids], new_tokens=1).logits[0].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("start", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("limit", [6, 23])
def test_a_file_is_looked_into(limit: int, start: str, change: Change, tmp_path: Path) -> None:
    path = written(tmp_path, start, limit, change)
    assert crossings_of_file(path) == Crossings((limit,))


@pytest.mark.parametrize("start", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("limit", [11, 20])
def test_texts_across_are_what_they_are_read_at_once(limit: int, start: str, tmp_path: Path) -> None:
    decoder = Decoder.of(Session(written(tmp_path, start, limit, without_types), threads=1))
    assert (decoder.crossings, decoder.rereads, decoder.endless_from) == ((limit,), True, 0)
    rows = prompts((3, limit - 2, limit, limit + 1, limit + 19))
    batch = decoder.prefill(rows, new_tokens=NEW)
    assert isinstance(batch, SidedBatch)
    found: list[list[int]] = [[] for _ in rows]
    for _ in range(NEW):
        best = batch.logits.argmax(axis=-1).tolist()
        for row, token in zip(found, best, strict=True):
            row.append(token)
        batch.step(best)
    assert found == [whole(decoder, row, NEW) for row in rows]


def artifact(folder: Path, start: str, limit: int, **options: Any) -> Path:
    model = lower(wide(start, limit).model(), "lower-last-token").model
    return decoder_artifact(folder, ir.to_proto(model), shared=False, context=LONGEST, ends=(), **options)


def test_an_artifact_that_says_nothing_of_crossings_is_looked_into(tmp_path: Path) -> None:
    """Those of earlier versions are."""
    folder = artifact(tmp_path / "old", SPELLINGS["the largest position"], 15)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("crossings", "crossing", "endless_from"):
        del manifest["decoding"][key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    generator = Generator(folder)
    assert generator.decoder.crossings == (15,)
    rows = prompts((4, 13, 15, 33))
    found = generator.generate(rows, max_new_tokens=NEW).results
    assert [list(one.tokens) for one in found] == [whole(generator.decoder, row, NEW) for row in rows]


@pytest.mark.parametrize("said", [(), (15,)])
def test_what_an_artifact_says_is_believed(
    said: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Crossings:
        raise AssertionError("the file is read for nothing")

    monkeypatch.setattr(decoders, "crossings_of_file", never)
    folder = artifact(tmp_path / "new", SPELLINGS["the largest position"], 15, crossings=said)
    assert Generator(folder).decoder.crossings == said


def test_a_file_that_cannot_be_read_has_no_crossings(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model at all")
    assert crossings_of_file(tmp_path / "m.onnx") == Crossings()


@pytest.mark.parametrize("limit", [9, 31])
def test_tables_that_change_with_every_token_end_the_text_in_words(limit: int, tmp_path: Path) -> None:
    path = written(tmp_path, f"{COUNTED} {ENDLESS} {TURNED}", limit)
    decoder = Decoder.of(Session(path, threads=1))
    assert (decoder.crossings, decoder.endless_from, decoder.context_length) == ((), limit, limit)
    decoder.prefill(prompts((limit,)))
    with pytest.raises(InputError, match="change with every token beyond") as refused:
        decoder.prefill(prompts((2, limit + 1)))
    assert refused.value.what.startswith(f"prompt 2 has {limit + 1} tokens, the model takes {limit}")
    assert refused.value.where == str(path)
    assert "rope_type" in refused.value.hint


def test_a_limit_of_other_kinds_is_said_as_before(tmp_path: Path) -> None:
    decoder = Decoder.of(Session(written(tmp_path, SPELLINGS["a branch"], 9)), context_length=30)
    with pytest.raises(InputError) as refused:
        decoder.prefill(prompts((31,)))
    assert (refused.value.what, refused.value.where) == ("prompt 1 has 31 tokens, the model takes 30", "")
    assert refused.value.hint == "shorten it"


@pytest.mark.parametrize("longest", [16, 40])
def test_the_end_of_a_model_is_told_from_the_end_of_its_tables(longest: int) -> None:
    """Dynamic NTK begins where most checkpoints end; learned positions just end."""
    plain = f"{COUNTED} {TURNED.replace('chosen', 'frequencies')}"
    for start, expected in ((f"{COUNTED} {ENDLESS} {TURNED}", Crossings((), longest)), (plain, Crossings())):
        model = crossing_decoder(start, longest).model()
        prepare(model)
        assert crossings_of(model, longest=longest) == expected
    model = Text(start=LEARNED, turn=None).model()
    prepare(model)
    assert crossings_of(model, longest=LONGEST) == Crossings()


def test_other_programs_are_told_of_the_limit(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "ntk", f"{COUNTED} {ENDLESS} {TURNED}", 21)
    manifest = Manifest.read(folder)
    assert manifest.decoding is not None
    for endless, told in ((0, False), (21, True)):
        decoding = manifest.decoding.model_copy(update={"endless_from": endless})
        said = io_description(folder, "x", manifest.task, manifest.signature, decoding)["decoding"]
        assert said["endless_from"] == endless
        assert ("limit_contract" in said) == told


def test_a_file_that_is_optimized_says_where_its_tables_change(tmp_path: Path) -> None:
    for start, note in (
        (SPELLINGS["a branch"], "the rotary tables change beyond 19 tokens"),
        (f"{COUNTED} {ENDLESS} {TURNED}", "the rotary tables change with every token beyond 19"),
    ):
        notes = load_onnx(written(tmp_path, start, 19)).notes
        assert sum(one.startswith(note) for one in notes) == 1, notes
    plain = ir.to_proto(Text().model())
    onnx.save(plain, tmp_path / "plain.onnx")
    assert not any("rotary" in one for one in load_onnx(tmp_path / "plain.onnx").notes)
