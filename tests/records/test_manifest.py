"""The records of an artifact: what they keep, and how they refuse what is not theirs.

Covers: records/measurements.py, records/record.py, records/rewrites.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.records.manifest import FileRecord, Manifest
from onnxopt.records.measurements import Latency, Measurements
from onnxopt.records.rewrites import BlockCount, PassRecord, ProofRecord, RefusalRecord, RollbackRecord
from onnxopt.spec import Budget, Signature, Target, TensorSpec, Workload


def make(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "tiny",
        "task": "feature-extraction",
        "origin": {"source": "somewhere", "sizes": [1, 2]},
        "signature": Signature(
            (TensorSpec("ids", "int64", ("batch", "sequence")),), (TensorSpec("y", "float32", ("batch", 4)),)
        ),
        "target": Target("cpu", threads=2),
        "workload": Workload(),
        "budget": Budget(),
        "proof": (
            ProofRecord(
                sizes={"batch": 1}, padding="right", output="y", worst_relative_error=1e-6, worst_absolute_error=2e-6
            ),
        ),
        "ledger": (
            PassRecord(
                name="fuse-gelu",
                stage="fuse",
                numerics="exact",
                matches=3,
                applied=1,
                refused=(RefusalRecord(node="/a", reason="x is int64"),),
                rolled_back=(RollbackRecord(node="/b", reason="shapes differ", error=math.inf),),
                seconds=1.5,
            ),
        ),
        "blocks": {"attention": BlockCount(fused=6, total=6)},
        "files": {"model.onnx": FileRecord(sha256="0" * 64, size_bytes=3)},
    }
    return Manifest(**(facts | changes))


def store(folder: Path, data: object) -> Path:
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return folder


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    manifest = make()
    store(tmp_path, manifest.to_json())
    assert manifest.to_json() == Manifest.read(tmp_path).to_json()
    assert Manifest.read(tmp_path).signature.axes == ("batch", "sequence")
    assert math.inf == Manifest.read(tmp_path).ledger[0].rolled_back[0].error


def test_json_is_strict_and_starts_with_what_it_is() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(make(origin={"loss": math.nan}).to_json(), parse_constant=refuse)
    assert list(data)[:3] == ["producer", "schema_version", "name"]
    assert data["origin"]["loss"] == "NaN"


def test_seconds_never_reach_the_manifest() -> None:
    assert "seconds" not in make().to_json()


def test_worst_error_counts_not_a_number_as_infinite() -> None:
    proof = make().proof[0]
    assert make().worst_relative_error == 1e-6
    assert (
        math.inf
        == make(proof=(proof, proof.model_copy(update={"worst_relative_error": math.nan}))).worst_relative_error
    )
    assert make(proof=()).worst_relative_error is None


def test_a_block_count_reads_as_words() -> None:
    assert str(BlockCount(fused=5, total=6)) == "5 of 6"


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; name a folder that `onnxopt optimize` wrote"):
        Manifest.read(tmp_path / "nothing")


def test_refuses_a_file_and_a_folder_without_manifest(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not an artifact folder"):
        Manifest.read(tmp_path / "file")
    with pytest.raises(InputError, match=r"no manifest\.json: not an artifact"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no JSON object"),
        ({"schema_version": 1}, "not a manifest of onnxopt"),
        ({"producer": "onnxopt", "schema_version": 7}, "manifest schema version 7, this onnxopt reads 1"),
        (
            {"producer": "onnxopt", "schema_version": 1, "name": "x"},
            r"malformed at task: Field required \(and 4 more\)",
        ),
    ],
)
def test_refuses_a_malformed_manifest_in_one_line(tmp_path: Path, content: object, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        Manifest.read(store(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_refuses_an_unknown_key(tmp_path: Path) -> None:
    data = json.loads(make().to_json()) | {"surprise": 1}
    with pytest.raises(InputError, match="malformed at surprise"):
        Manifest.read(store(tmp_path, data))


def test_measurements_are_optional_and_read_back(tmp_path: Path) -> None:
    assert Measurements.read(tmp_path) is None
    measured = Measurements(
        created="2026-11-23T00:00:00Z", latency=(Latency(shape={"batch": 1}, before_ms=3.0, after_ms=1.5),)
    )
    (tmp_path / "measurements.json").write_text(measured.to_json(), encoding="utf-8")
    assert measured == Measurements.read(tmp_path)
    assert measured.latency[0].speedup == 2.0
