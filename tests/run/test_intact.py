"""An artifact whose files are not as they were written is noticed when it is opened, whoever opens it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from onnxopt.artifact.package import check_golden
from onnxopt.errors import InputError
from onnxopt.host.bounds import VARIABLE
from onnxopt.records.manifest import Manifest
from onnxopt.run.answers import run_text
from onnxopt.run.generate.generator import Generator
from onnxopt.run.intact import check_intact
from onnxopt.run.session import Session
from tests.support.artifacts import shared_artifact

TEXTS = ("config.json", "tokenizer.json", "io.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared_artifact("gpt2-mini"), tmp_path / "own"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_a_flipped_bit_of_the_model_is_noticed(share: float, folder: Path) -> None:
    path = folder / "model.onnx"
    flip(path, int(share * path.stat().st_size))
    for opening in (Session, Generator, lambda one: run_text(one, ["a"]), check_golden):
        with pytest.raises(InputError, match=r"model\.onnx: was changed or damaged.*ONNXOPT_LIMITS=verify=0"):
            opening(folder)


@pytest.mark.parametrize("name", TEXTS)
def test_so_is_a_text_that_was_changed(name: str, folder: Path) -> None:
    Session(folder)
    content = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(content.replace("e", "f", 1), encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}: was changed"):
        Session(folder)
    (folder / name).write_text(f"{content} ", encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name}: is \d+ bytes long, the manifest says"):
        Session(folder)


def test_golden_cases_are_held_to_their_hashes_where_they_are_used(folder: Path) -> None:
    flip(folder / "golden" / "golden.json", 3)
    Session(folder)
    with pytest.raises(InputError, match=r"golden\.json: was changed"):
        check_golden(folder)


def test_how_texts_are_written_may_be_set(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [3]}', encoding="utf-8")
    assert 3 in Generator(folder).ends


def test_what_is_missing_is_left_to_those_who_read_it(folder: Path) -> None:
    (folder / "io.json").unlink()
    Session(folder)


def test_only_the_length_is_looked_at_beyond_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "verify=1k")
    flip(folder / "model.onnx", (folder / "model.onnx").stat().st_size // 2)
    check_intact(folder, Manifest.read(folder))
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="bytes long"):
        check_intact(folder, Manifest.read(folder))


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "", "nul\0l"])
def test_a_manifest_that_names_files_outside_is_refused(name: str, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": "0" * 64, "size_bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputError, match="outside of the artifact"):
        Session(folder)


def test_nothing_is_compared_where_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "verify=0")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    flip(folder / "tokenizer.json", 5)
    check_intact(folder, Manifest.read(folder))
