"""The artifact folder: complete or absent, the same bytes twice, and never in the place of something else.

Covers: artifact/golden.py, artifact/place.py, host/folders.py
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.artifact import package
from onnxopt.artifact.clients import add_client
from onnxopt.artifact.golden import Golden
from onnxopt.artifact.package import Artifact, check_golden, read_golden
from onnxopt.artifact.place import check_output_folder
from onnxopt.errors import InputError, PassAuthorError
from onnxopt.graph import files
from onnxopt.host import folders
from onnxopt.load.loaded import Loaded
from onnxopt.records.manifest import Evidence, Manifest
from onnxopt.records.measurements import Latency, Measurements
from onnxopt.spec import Signature, TensorSpec
from tests.support import loaded as support

MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (int64[batch, sequence] ids) => (float[batch, sequence, 2] y, int64[batch, sequence] twice)
<float[3, 2] table = {0.5, 1.0, -2.0, 4.0, 8.0, 16.0}>
{
    y = Gather(table, ids)
    twice = Add(ids, ids)
}
"""
TABLE = np.array([[0.5, 1.0], [-2.0, 4.0], [8.0, 16.0]], np.float32)


def tiny(assets: tuple[Path, ...] = (), origin: dict[str, Any] | None = None) -> Loaded:
    return support.loaded(
        ir.from_proto(onnx.parser.parse_model(MODEL)),
        signature=Signature(
            (TensorSpec("ids", "int64", ("batch", "sequence")),),
            (
                TensorSpec("y", "float32", ("batch", "sequence", 2)),
                TensorSpec("twice", "int64", ("batch", "sequence")),
            ),
        ),
        task="feature-extraction",
        assets=assets,
        origin=origin or {"source": "tiny"},
        notes=["from the loader"],
    )


def golden() -> Golden:
    ids = np.array([[0, 1, 2]], np.int64)
    return Golden({"ids": ids}, {"y": TABLE[ids], "twice": 2 * ids}, 1e-4, {"batch": 1, "sequence": 3})


def write(out: Path, loaded: Loaded | None = None, **more: Any) -> Artifact:
    facts: dict[str, Any] = {
        "evidence": Evidence(notes=("from the run",)),
        "golden": [golden()],
        "measurements": Measurements(created="2026-11-23T08:00:00Z"),
    }
    return support.write(out, loaded or tiny(), **(facts | more))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_a_folder_that_opens_and_reproduces_its_golden_outputs(tmp_path: Path) -> None:
    artifact = write(tmp_path / "deep" / "out")
    assert [path.name for path in artifact.path.parent.iterdir()] == ["out"]
    assert artifact.manifest == Artifact.open(artifact.path).manifest
    assert check_golden(artifact.path) == []
    assert artifact.changed_files() == []
    assert artifact.manifest.notes == ("from the loader", "from the run")
    assert artifact.manifest.bytes_after == artifact.model_path.stat().st_size
    np.testing.assert_array_equal(TABLE[[[2]]], artifact.session().run({"ids": np.array([[2]])})["y"])


def test_it_is_shown_in_a_line_and_in_a_notebook_as_its_report(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain")
    assert repr(plain) == f"Artifact({str(plain.path)!r}): feature-extraction for cpu, 0 of 0 nodes"
    assert plain._repr_html_().startswith("<code>Artifact(")
    (plain.path / "report.html").write_text('<p title="a">report</p>', encoding="utf-8")
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;report&lt;/p&gt;"' in plain._repr_html_()


def test_every_file_is_listed_once(tmp_path: Path) -> None:
    artifact = write(tmp_path / "out", extras={"report.html": b"<p>"})
    listed = [*artifact.manifest.files, *artifact.manifest.extras, "manifest.json"]
    assert sorted(listed) == sorted(tree(artifact.path))
    assert artifact.manifest.extras == ("measurements.json", "report.html")


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first = tree(write(tmp_path / "a", measurements=Measurements(created="2026-01-01T00:00:00Z")).path)
    latency = (Latency(shape={"batch": 1}, before_ms=2.0, after_ms=1.0),)
    second = tree(
        write(tmp_path / "b", measurements=Measurements(created="2027-01-01T00:00:00Z", latency=latency)).path
    )
    assert first.pop("measurements.json") != second.pop("measurements.json")
    assert first == second


def test_the_measurements_read_back(tmp_path: Path) -> None:
    assert write(tmp_path / "a").measurements == Measurements(created="2026-11-23T08:00:00Z")
    assert write(tmp_path / "b", measurements=None).measurements is None


def test_assets_keep_their_folders_and_the_local_folder_is_not_told(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "1_Pooling").mkdir(parents=True)
    (checkpoint / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "blob").write_text("linked")
    (checkpoint / "tokenizer.json").symlink_to(tmp_path / "blob")
    assets = (checkpoint / "1_Pooling" / "config.json", checkpoint / "tokenizer.json")
    for name, origin in (("a", {"folder": str(checkpoint)}), ("b", {"source": "x"})):
        out = write(tmp_path / name, tiny(assets, origin)).path
        assert (out / "1_Pooling" / "config.json").read_text() == "{}"
        assert (out / "tokenizer.json").read_text() == "linked"
        assert not (out / "tokenizer.json").is_symlink()
        assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_assets_from_elsewhere_lie_flat_and_may_not_collide(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    elsewhere = {"folder": str(tmp_path / "c")}
    out = write(tmp_path / "out", tiny((tmp_path / "a" / "config.json",), elsewhere)).path
    assert (out / "config.json").read_text() == "a"
    both = tiny((tmp_path / "a" / "config.json", tmp_path / "b" / "config.json"), elsewhere)
    with pytest.raises(InputError, match=r"two files want to be config\.json"):
        write(tmp_path / "other", both)


def test_an_asset_may_not_take_the_place_of_our_own_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"file manifest\.json has a name that the artifact needs"):
        write(tmp_path / "out", tiny((tmp_path / "manifest.json",)))
    with pytest.raises(PassAuthorError, match="cannot hold a file named"):
        write(tmp_path / "out", extras={"../escape": b""})
    assert not (tmp_path / "out").exists()


def test_an_older_artifact_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out, extras={"report.html": b"old"})
    (out / ".DS_Store").touch()
    write(out)
    assert not (out / "report.html").exists()
    assert check_golden(out) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="holds other files and is no artifact; choose a new or empty output folder"):
        write(mine)
    (mine / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(InputError, match="is no artifact"):
        check_output_folder(mine)
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_output_folder(mine / "thesis.tex")
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_output_folder(mine / "thesis.tex" / "out")
    assert (mine / "thesis.tex").read_text() == "words"


def test_a_users_own_file_inside_an_artifact_is_not_deleted(tmp_path: Path) -> None:
    out = write(tmp_path / "out").path
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, which onnxopt did not write; move it away"):
        write(out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_link_to_a_folder_keeps_pointing_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert check_golden(tmp_path / "real") == []


@pytest.mark.parametrize("name", ["/proc/onnxopt/out", "x" * 300, "a\0b"])
def test_a_folder_that_cannot_be_written_is_refused_early(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(.+\); choose another output folder") as caught:
        check_output_folder(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mount_point_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match="a mount point cannot be replaced; name a folder inside it"):
        check_output_folder(tmp_path)
    with pytest.raises(InputError, match="holds other files and is no artifact"):
        check_output_folder(Path("/"))


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


WRITING = ("package.write_graph", "package.write_golden", "package.sync", "folders._sync_folder")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
@pytest.mark.parametrize("where", WRITING)
@pytest.mark.parametrize("older", [False, True])
def test_a_stop_at_any_moment_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, where: str, *, older: bool
) -> None:
    out = tmp_path / "new" / "out"
    if older:
        write(out)
    before = tree(tmp_path)

    def halt(*_: object) -> None:
        raise stop

    module, _, name = where.partition(".")
    monkeypatch.setattr({"package": package, "folders": folders}[module], name, halt)
    with pytest.raises((KeyboardInterrupt, InputError, ValueError)):
        write(out, evidence=Evidence(notes=("newer",)))
    assert tree(tmp_path) == before
    assert list(tmp_path.rglob(".onnxopt*")) == []
    assert older or list(tmp_path.iterdir()) == []


def test_a_stop_between_the_two_renames_brings_the_older_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "out").path
    before = tree(tmp_path)
    rename: Callable[[Path, Path], Path] = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(folders, "exchanged", lambda *_: False)  # as where a file system has no such step
    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        write(out, evidence=Evidence(notes=("newer",)))
    assert tree(tmp_path) == before


def test_a_large_model_has_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 8)
    monkeypatch.setattr(files, "SMALL_CONSTANT_BYTES", 8)
    artifact = write(tmp_path / "out")
    assert {"model.onnx", "model.onnx_data"} <= set(artifact.manifest.files)
    assert check_golden(artifact.path) == []
    moved = artifact.path.rename(tmp_path / "moved")
    assert check_golden(moved) == []


def test_weights_lie_in_several_files_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL_CONSTANT_BYTES", 4)
    loaded = tiny()
    two = MODEL.replace("16.0}>", "16.0}, float[2] ones = {1.0, 1.0}>").replace("y = G", "g = G")
    loaded.model = ir.from_proto(onnx.parser.parse_model(two.replace("twice =", "y = Mul(g, ones) twice =")))
    artifact = write(tmp_path / "out", loaded, shard_bytes=8)
    shards = [name for name in artifact.manifest.files if files.SHARD.fullmatch(name)]
    assert len(shards) == 2
    assert "model.onnx_data" not in artifact.manifest.files
    assert artifact.manifest.bytes_after == sum(
        artifact.manifest.files[name].size_bytes for name in ("model.onnx", *shards)
    )
    moved = artifact.path.rename(tmp_path / "moved")
    assert check_golden(moved) == []
    add_client(moved, "triton")
    for name in ("model.onnx", *shards):
        assert len(list((moved / "clients" / "triton").rglob(name))) == 1
    with pytest.raises(InputError, match="one of several files of weights"):
        add_client(moved, "web")
    (moved / shards[-1]).write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes long"):
        Artifact.open(moved)


def test_weights_that_lay_elsewhere_are_taken_along(tmp_path: Path) -> None:
    loaded = tiny()
    source = tmp_path / "source"
    source.mkdir()
    ir.save(loaded.model, source / "m.onnx", external_data="weights.bin", size_threshold_bytes=0)
    loaded.model = ir.load(source / "m.onnx")
    artifact = write(tmp_path / "out", loaded)
    assert "model.onnx_data" not in artifact.manifest.files
    (source / "weights.bin").unlink()
    held, fresh = (one.model.graph.initializers["table"].const_value for one in (loaded, tiny()))
    assert held is not None
    assert fresh is not None
    np.testing.assert_array_equal(held.numpy(), fresh.numpy())
    for file in source.iterdir():
        file.unlink()
    assert check_golden(artifact.path) == []


def test_the_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert write(tmp_path / "out").path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_golden_tensors_are_plain_npz_and_raw_little_endian(tmp_path: Path) -> None:
    big_endian = np.array([1.5, -2.0], ">f4")
    half = np.array([[1.0, 3.0]], ml_dtypes.bfloat16)
    scalar = np.array(7, np.int64)
    case = Golden({"a/../b": big_endian, "half": half, "scalar": scalar}, {"y": np.zeros(0, np.float32)}, 1e-3)
    folder = write(tmp_path / "out", golden=[case]).path / "golden"
    index = json.loads((folder / "golden.json").read_text())["cases"][0]
    assert [entry["file"] for entry in index["inputs"]] == ["inputs_0_0.bin", "inputs_0_1.bin", "inputs_0_2.bin"]
    assert [entry["dtype"] for entry in index["inputs"]] == ["float32", "bfloat16", "int64"]
    assert (folder / "inputs_0_0.bin").read_bytes() == np.array([1.5, -2.0], "<f4").tobytes()
    assert (folder / "inputs_0_1.bin").read_bytes() == half.tobytes()
    read = read_golden(folder.parent)[0]
    np.testing.assert_array_equal(read.feeds["half"], half)
    np.testing.assert_array_equal(read.feeds["a/../b"], big_endian)
    assert read.feeds["scalar"].shape == ()
    with zipfile.ZipFile(folder / "inputs_0.npz") as archive:
        assert {(1980, 1, 1, 0, 0, 0)} == {info.date_time for info in archive.infolist()}


def test_a_golden_tensor_of_dates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassAuthorError, match="golden tensors are numbers or strings"):
        write(tmp_path / "out", golden=[Golden({"x": np.array(["2026-11-30"], np.datetime64)}, {}, 0.0)])
    assert list(tmp_path.iterdir()) == []


def test_limits_follow_the_largest_value_and_integers_are_exact(tmp_path: Path) -> None:
    case = read_golden(write(tmp_path / "out").path)[0]
    assert [entry["max_absolute_error"] for entry in case.entries["outputs"]] == [16.0 * 1e-4, 0.0]


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("y", 0.01, r"1 of 6 elements differ by more than 0\.0016; worst at \[0, 1, 0\]: -2, expected -1\.99"),
        ("y", np.nan, "1 of 6 elements differ"),
        ("twice", 1, r"1 of 3 elements differ by more than 0; worst at \[0, 1\]: 2, expected 3"),
    ],
)
def test_tells_how_an_output_differs_from_its_golden_case(tmp_path: Path, name: str, change: float, line: str) -> None:
    case = golden()
    case.outputs[name] = case.outputs[name].copy()
    case.outputs[name][0, 1, ...].flat[0] += change
    found = check_golden(write(tmp_path / "out", golden=[golden(), case]).path)
    assert [difference.case for difference in found] == [1]
    with pytest.raises(AssertionError, match=f"golden case 1, output '{name}': {line}"):
        raise AssertionError(str(found[0]))


def test_tells_a_wrong_shape_and_dtype(tmp_path: Path) -> None:
    case = golden()
    case.outputs.update(y=case.outputs["y"][0], twice=case.outputs["twice"].astype(np.int32))
    found = check_golden(write(tmp_path / "out", golden=[case]).path)
    assert [difference.found for difference in found] == [
        "shape [1, 3, 2], expected [3, 2]",
        "dtype int64, expected int32",
    ]


def test_not_a_number_equals_itself(tmp_path: Path) -> None:
    text = MODEL.replace("Gather(table, ids)", "Gather(roots, ids)")
    loaded = tiny()
    loaded.model = ir.from_proto(onnx.parser.parse_model(text.replace("{\n    y", "{\n    roots = Sqrt(table)\n    y")))
    with np.errstate(invalid="ignore"):
        outputs = {"y": np.sqrt(TABLE)[[[1, 2]]], "twice": np.array([[2, 4]])}
    case = Golden({"ids": np.array([[1, 2]])}, outputs, 1e-4)
    assert np.isnan(outputs["y"]).any()
    assert check_golden(write(tmp_path / "out", loaded, golden=[case]).path) == []


def test_a_damaged_artifact_is_named(tmp_path: Path) -> None:
    out = write(tmp_path / "out").path
    model = (out / "model.onnx").read_bytes()
    (out / "model.onnx").write_bytes(model[:-1] + b"?")
    assert Artifact.open(out).changed_files() == ["model.onnx"]
    (out / "model.onnx").write_bytes(model[:-1])
    with pytest.raises(InputError, match=r"model\.onnx: is \d+ bytes long, the manifest says \d+"):
        Artifact.open(out)
    (out / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx: is missing"):
        Artifact.open(out)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}"])
@pytest.mark.parametrize("name", ["golden.json", "inputs_0.npz"])
def test_damaged_golden_cases_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    out = write(tmp_path / "out").path
    (out / "golden" / name).write_bytes(content)
    with pytest.raises(InputError, match="the golden cases cannot be read") as caught:
        read_golden(out)
    assert "\n" not in str(caught.value)


def test_pickles_in_a_golden_case_are_not_run(tmp_path: Path) -> None:
    out = write(tmp_path / "out").path
    np.savez(out / "golden" / "inputs_0.npz", ids=np.array([print], dtype=object))
    with pytest.raises(InputError, match="the golden cases cannot be read"):
        read_golden(out)


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    out = write(tmp_path / "out").path
    data = json.loads((out / "manifest.json").read_text())
    data["files"]["../../secret"] = {"sha256": "0" * 64, "size_bytes": 0}
    (out / "manifest.json").write_text(json.dumps(data))
    assert Manifest.read(out)
    with pytest.raises(InputError, match=r"names the file '../../secret' outside of the artifact"):
        Artifact.open(out)


def test_a_read_only_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    for call in (check_output_folder, write):
        with pytest.raises(InputError, match=r"cannot be written \(Permission denied\); choose another"):
            call(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
