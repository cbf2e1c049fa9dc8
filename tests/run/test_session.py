"""Opening and running a model: what fits runs, everything else is one clear line.

Covers: host/runtime_errors.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt.errors import InputError, LimitError
from onnxopt.graph import weight_files
from onnxopt.host.machine import describe_machine, parse_cpuinfo, versions
from onnxopt.host.watch import limited_runs
from onnxopt.run.session import Session, open_session
from onnxopt.run.there import model_file
from onnxopt.spec import Target, TensorSpec
from tests.support.hostile_graphs import counting_without_end

SCALE = """
<ir_version: 10, opset_import: ["" : 20]>
scale (float[batch, 3] x, int64 shift) => (float[batch, 3] y, bool[batch, 3] big)
<float two = {2.0}>
{
    xx = Mul(x, two)
    s = Cast<to = 1>(shift)
    y = Add(xx, s)
    big = Greater(y, two)
}
"""


def save(folder: Path, text: str = SCALE, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def feeds(batch: int = 2) -> dict[str, Any]:
    return {"x": np.ones((batch, 3), np.float32), "shift": np.array(1, np.int64)}


def test_runs_a_file_and_a_folder_alike(tmp_path: Path) -> None:
    path = save(tmp_path)
    for place in (path, tmp_path, str(path)):
        got = Session(place).run(feeds())
        np.testing.assert_array_equal(np.full((2, 3), 3.0, np.float32), got["y"])
        assert got["big"].all()


def test_tells_its_inputs_and_outputs(tmp_path: Path) -> None:
    session = Session(save(tmp_path), threads=1)
    assert (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("shift", "int64", ())) == session.inputs
    assert [spec.name for spec in session.outputs] == ["y", "big"]
    assert session.outputs[1].dtype == "bool"


def test_gives_only_the_wanted_outputs_and_takes_strided_arrays(tmp_path: Path) -> None:
    strided = np.ones((2, 6), np.float32)[:, ::2]
    assert list(Session(save(tmp_path)).run(feeds() | {"x": strided}, ["big"])) == ["big"]


def test_works_without_the_runtimes_own_optimisations(tmp_path: Path) -> None:
    session = open_session(save(tmp_path), target=Target(), optimize=False, threads=1)
    assert session.run(["y"], feeds())[0][0, 0] == 3.0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"x": None}, "input 'x' is missing; the model takes x, shift"),
        ({"z": np.ones(1)}, "no input 'z'"),
        ({"x": np.ones((2, 3))}, "input 'x' is float64, the model takes float32"),
        ({"x": np.ones((2, 4), np.float32)}, r"input 'x' has shape \[2, 4\], the model takes \[batch, 3\]"),
        ({"x": np.ones(3, np.float32)}, r"input 'x' has shape \[3\]"),
    ],
)
def test_refuses_inputs_that_do_not_fit(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    given = {name: array for name, array in (feeds() | change).items() if array is not None}
    with pytest.raises(InputError, match=line):
        Session(save(tmp_path)).run(given)


def test_refuses_an_unknown_output(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no output 'z', there is y, big"):
        Session(save(tmp_path)).run(feeds(), ["z"])


def test_a_failure_inside_the_runtime_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[a] x, float[b] y) => (float[c] z) { z = Add(x, y) }
    """
    session = Session(save(tmp_path, text))
    with pytest.raises(InputError, match="onnxruntime failed: ") as caught:
        session.run({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello", "is a text file, not an .onnx file"),
        (b"\x08\x08\x12\x04\xff\xff", r"onnxruntime [\d.]+ cannot open it: "),
    ],
)
def test_refuses_a_file_that_is_no_model(
    tmp_path: Path, content: bytes, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        Session(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_axis_with_two_sizes_is_named_where_the_runtime_refuses_it(tmp_path: Path) -> None:
    pair = "g (float[rows,2] x, float[rows,2] other) => (float[rows,2] y) { y = Add(x, other) }"
    session = Session(save(tmp_path, f'<ir_version: 10, opset_import: ["" : 20]> {pair}'))
    with pytest.raises(InputError, match="axis 'rows' is 3 in input 'x' and 2 in input 'other'"):
        session.run({"x": np.zeros((3, 2), np.float32), "other": np.zeros((2, 2), np.float32)})
    one_row = {"x": np.zeros((3, 2), np.float32), "other": np.zeros((1, 2), np.float32)}
    assert session.run(one_row)["y"].shape == (3, 2)  # what it broadcasts it may have


def test_names_an_operator_that_the_runtime_does_not_have(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "made.up" : 1]>
    g (float[a] x) => (float[a] y) { y = made.up.Thing(x) }
    """
    with pytest.raises(InputError, match="Thing"):
        Session(save(tmp_path, text))


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        model_file(tmp_path / "none.onnx")
    with pytest.raises(InputError, match=r"no model\.onnx in this folder"):
        model_file(tmp_path)
    with pytest.raises(InputError, match="no such model file"):
        open_session(tmp_path / "none.onnx", target=Target())


def test_a_missing_provider_names_the_package_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        InputError, match=r"target cuda: .* has no CUDAExecutionProvider; .* pip install onnxruntime-gpu"
    ):
        Session(save(tmp_path), target=Target("cuda"))


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CpuOnly:
        def __init__(self, path: str, options: object, *, providers: Sequence[Any], enable_fallback: int) -> None:
            assert [name for name, _ in providers] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
            assert enable_fallback == 0

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr("onnxruntime.InferenceSession", CpuOnly)
    with pytest.raises(InputError, match="CUDAExecutionProvider is installed but does not start on this machine"):
        open_session(save(tmp_path), target=Target("cuda"))


def test_the_machine_is_described_the_same_twice() -> None:
    machine = describe_machine()
    assert machine == describe_machine()
    assert {"cpu", "architecture", "cores", "isa", "memory_bytes", "os", "python"} == set(machine)
    assert machine["cores"] >= 1


def test_reads_the_processors_of_both_families() -> None:
    x86 = "processor : 0\nmodel name : Some CPU\nflags : fpu avx2 avx512f avx512_vnni\n\nmodel name : B\n"
    arm = "processor : 0\nFeatures : fp asimd asimddp i8mm\nCPU part : 0xd40\n"
    assert parse_cpuinfo(x86) == ("Some CPU", ["avx2", "avx512f", "avx512_vnni"])
    assert parse_cpuinfo(arm) == ("0xd40", ["asimddp", "i8mm"])
    assert parse_cpuinfo("") == ("", None)


def test_versions_name_the_tools() -> None:
    assert {"onnx", "onnx_ir", "onnxruntime", "numpy"} <= set(versions())


def test_runs_of_a_command_end_where_they_take_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_LIMITS", "seconds=1")
    onnx.save(counting_without_end(), tmp_path / "m.onnx")
    onnx.save(counting_without_end(trips=300_000), tmp_path / "slow.onnx")
    ones = {"x": np.zeros((1, 4), np.float32)}
    with limited_runs(), pytest.raises(LimitError, match=r"m\.onnx: a run does not end within 1 s; .*seconds=6"):
        Session(tmp_path / "m.onnx").run(ones)
    found = Session(tmp_path / "slow.onnx").run(ones)["y"]
    assert found.max() == 300_000, "a program says itself how long it waits"


def test_a_fault_of_the_inputs_stays_one_in_a_command(tmp_path: Path) -> None:
    onnx.save(counting_without_end(trips=3), tmp_path / "m.onnx")
    with limited_runs():
        session = Session(tmp_path / "m.onnx")
        assert session.run({"x": np.zeros((2, 4), np.float32)})["y"].max() == 3
        with pytest.raises(InputError, match="has shape") as found:
            session.run({"x": np.zeros((2, 5), np.float32)})
    assert not isinstance(found.value, LimitError)


@pytest.mark.parametrize("is_large", [False, True])
def test_memory_that_opening_a_large_file_left_is_given_back(
    is_large: bool,  # noqa: FBT001  # what is expected
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path)
    given: list[str] = []
    monkeypatch.setattr("onnxopt.run.session.release_memory", lambda: given.append("back"))
    monkeypatch.setattr(weight_files, "LARGE_BYTES", path.stat().st_size - is_large)
    open_session(path, target=Target())
    assert given == ["back"] * is_large
