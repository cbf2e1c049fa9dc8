"""What can be refused at once is refused before a model is fetched, hashed or loaded, and torch is not imported.

Covers: calibrate/sources.py, road/ready.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onnxopt
from onnxopt.cli.main import main
from onnxopt.errors import InputError
from onnxopt.host import disk
from onnxopt.load.source.source import Source, resolve
from onnxopt.road import ready
from onnxopt.road.ahead import require_readable
from onnxopt.road.options import LoadOptions, Options, PackageOptions, PrecisionOptions, PruneOptions
from onnxopt.road.ready import require_ready, weight_bytes
from onnxopt.spec import Target
from tests.support.tiny import tiny_checkpoint

GIB = 1 << 30
CPU = Target("cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(quantize=PrecisionOptions(precision="int8", calibration="none.txt")), "no such calibration"),
        (Options(quantize=PrecisionOptions(precision="int8", calibration="empty.txt")), "samples are empty"),
        (Options(quantize=PrecisionOptions(precision="int8", calibration="empty")), "samples are empty"),
        (Options(quantize=PrecisionOptions(precision="int8", calibration_samples=0)), "number of calibration samples"),
        (Options(quantize=PrecisionOptions(precision="int8", budget="good")), "cannot read the budget"),
        (Options(prune=PruneOptions(what="ffn=lots")), "ffn"),
        (Options(prune=PruneOptions(what="vocab=keep:none.txt")), "none.txt"),
        (Options(prune=PruneOptions(what="heads=1", data="none.jsonl")), "none.jsonl: no such"),
        (Options(prune=PruneOptions(what="heads=1", budget="good")), "cannot read the budget"),
        (Options(package=PackageOptions(workload="big")), "big"),
        (Options(package=PackageOptions(shard_size="much")), "--shard-size: 'much' is no size"),
        (Options(package=PackageOptions(shard_size=0)), "--shard-size: '0' is no size"),
        (Options(load=LoadOptions(task="make-coffee")), "make-coffee"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_are_read_before_anything_is_looked_for(
    options: Options, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)):
        require_readable(options, CPU)


def test_options_that_can_be_read_pass(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n", encoding="utf-8")
    texts = str(tmp_path / "texts.txt")
    require_readable(Options(), CPU)
    require_readable(Options(quantize=PrecisionOptions(calibration="none.txt")), CPU)  # fp32 reads none
    precision = PrecisionOptions(precision="int8", calibration=texts, budget="cosine>=0.9")
    require_readable(Options(quantize=precision, prune=PruneOptions(what="ffn=25%", data=texts)), CPU)
    require_readable(Options(quantize=PrecisionOptions(precision="int8", calibration="hf:some/set")), CPU)


def test_a_run_reads_options_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("onnxopt.road.optimize.resolve", never)
    with pytest.raises(InputError, match="no such calibration"):
        onnxopt.optimize("a/model", precision="int8", calibration="none.txt")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prune", "a/model", "heads=1", "--data", "none.txt"], "none.txt"),
        (["prune", "a/model", "vocab=keep:none.txt"], "none.txt"),
        (["distill", "a/model", "--student", "layers=1", "--data", "none.txt"], "none.txt"),
        (["compress", "recipe.toml"], "none.txt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_looks_for_its_files_first(
    command: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = 'source = "a/model"\n[quantize]\nprecision = "int8"\ncalibration = "none.txt"\n'
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for place in ("prune.run", "load.checkpoint.opened", "road.optimize", "compress.run"):
        monkeypatch.setattr(f"onnxopt.{place}.resolve", never)
    assert main([*command, "-o", "out", "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("place", "name"), [("out", "--out"), ("temporary", "TMPDIR")])
def test_a_disk_without_room_is_said_at_once(
    place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {one: tmp_path / one for one in ("out", "temporary")}
    monkeypatch.setattr("tempfile.tempdir", str(folders["temporary"]))
    monkeypatch.setattr(ready, "weight_bytes", lambda _: 3 * GIB)
    free = dict.fromkeys(folders.values(), 4 * GIB) | {folders[place]: 2 * GIB}
    monkeypatch.setattr(
        ready, "free_bytes", lambda path: next(size for top, size in free.items() if path.is_relative_to(top))
    )
    source = resolve(str(tiny_checkpoint("bert", tmp_path / "bert")))
    with pytest.raises(
        InputError, match=rf"{place}.*: has no room for the result: 2.00 GiB free, at least 3.00 GiB.*{name}"
    ):
        require_ready(source, Options(), folders["out"])
    if place == "out":  # in 4 bits of 32 it may fit
        require_ready(source, Options(quantize=PrecisionOptions(precision="int4-weights")), folders["out"])


def test_what_the_weights_take_is_what_their_files_are(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "bert")
    assert weight_bytes(resolve(str(folder))) == (folder / "model.safetensors").stat().st_size
    assert weight_bytes(resolve(str(folder), weights="random")) == 0
    (tmp_path / "m.onnx").write_bytes(b"12345")
    assert weight_bytes(Source("m.onnx", "m", "onnx", tmp_path / "m.onnx")) == 5
    assert disk.free_bytes(tmp_path / "not" / "there") is not None


def test_a_head_that_is_not_there_is_said_without_torch(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "bert", task="fill-mask")
    program = f"""
import sys
from onnxopt.cli.main import main
code = main(["optimize", {str(folder)!r}, "--task", "token-classification", "-o", {str(tmp_path / "out")!r}, "-q"])
print(code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "has no weights for token-classification: it was saved as BertForMaskedLM" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_said_before_weights_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "bert", tokenizer=False)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("onnxopt.load.export.export.weights_digest", never)
    with pytest.raises(InputError, match="has no tokenizer"):
        onnxopt.optimize(folder, out=tmp_path / "out")
