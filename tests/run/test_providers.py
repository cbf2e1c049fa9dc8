"""Where a model runs: options of the providers, ranges for TensorRT, a word for what is missing.

Covers: artifact/placement.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxopt import Session, placement
from onnxopt.errors import InputError
from onnxopt.host.threads import cgroup_quota
from onnxopt.run.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Wishes,
    engine_cache,
    parse_device,
    plan,
    profiles,
    smallest_bucket,
    tensorrt_options,
)
from onnxopt.spec import TensorSpec, Workload

TEXT = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", 1, "sequence")),
)
DECODER = (
    TensorSpec("input_ids", "int64", ("batch_size", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch_size", "total_sequence")),
    TensorSpec("past", "float32", ("batch_size", 2, "past_sequence", 8)),
)
MODEL = """
<ir_version: 10, opset_import: ["" : 20]>
double (float[batch, 3] x) => (float[batch, 3] y) { z = Add(x, x) y = Relu(z) }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "double" / "model.onnx"
    path.parent.mkdir()
    onnx.save(onnx.parser.parse_model(MODEL), path)
    return path


def test_profiles_span_the_workload_with_its_median_as_optimum() -> None:
    found = profiles(TEXT, Workload.parse("1x16,1x128,8x64,32x256,1x32"))
    assert found == {
        "min": "input_ids:1x16,attention_mask:1x1x16",
        "opt": "input_ids:1x64,attention_mask:1x1x64",
        "max": "input_ids:32x256,attention_mask:32x1x256",
    }


def test_profiles_of_a_decoder_count_the_mask_over_past_and_new_tokens() -> None:
    found = profiles(DECODER, Workload.parse("1x1+256,4x1+512"))
    assert found["max"] == "input_ids:4x1,attention_mask:4x513,past:4x2x512x8"


def test_an_axis_without_a_size_gets_no_profile() -> None:
    assert profiles(TEXT, Workload(({"batch": 1},))) == {}
    assert profiles((TensorSpec("x", "float32", (2, 3)),), Workload()) == {}


def test_a_histogram_of_lengths_becomes_a_workload() -> None:
    lengths = {8: 10, 20: 60, 100: 20, 256: 10}
    shapes = Workload.of_lengths(lengths, (1, 8)).shapes
    assert [shape["sequence"] for shape in shapes if shape["batch"] == 8] == [8, 20, 20, 100, 256]
    assert profiles(TEXT[:1], Workload.of_lengths(lengths, (1, 8)))["opt"] == "input_ids:1x20"
    with pytest.raises(InputError, match="histogram of lengths is empty"):
        Workload.of_lengths({16: 0})


def test_tensorrt_keeps_engines_beside_the_artifact_and_sets_no_precision(model: Path) -> None:
    cache = engine_cache(model)
    assert cache == model.parent.with_name("double.tensorrt")
    assert cache.stat().st_mode & 0o777 == 0o700
    options = tensorrt_options(Wishes(TEXT, Workload(), cache, cuda_graph=True))
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(cache)
    assert options["trt_cuda_graph_enable"] == options["trt_engine_cache_enable"] == "1"
    assert {"trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"} <= set(options)
    assert not [name for name in options if "fp16" in name or "int8" in name or "bf16" in name]


def test_providers_come_in_order_with_their_options() -> None:
    found = plan("tensorrt", "cpu", [CPU, CUDA, TENSORRT], Wishes(cuda_graph=True))
    assert found.names == [TENSORRT, CUDA, CPU]
    exact = {"enable_skip_layer_norm_strict_mode": "1"}
    assert dict(found.providers)[CUDA] == {**exact, "enable_cuda_graph": "1"}
    precise = plan("cuda", "cuda", [CPU, CUDA], Wishes(exact=True))
    assert dict(precise.providers)[CUDA] == {**exact, "use_tf32": "0"}
    assert plan("cpu", "cuda", [CPU, CUDA]).providers == ((CPU, {}),)


def test_auto_takes_what_the_model_was_made_for_and_tells_of_a_fallback() -> None:
    assert plan("auto", "cuda", [CPU, CUDA]).device == "cuda"
    assert plan("auto", "portable", [CPU]).notes == ()
    fallen = plan("auto", "cuda", [CPU])
    assert fallen.device == "cpu"
    assert "runs on the CPU, not on cuda" in fallen.notes[0]
    assert "onnxruntime-gpu" in fallen.notes[0]


def test_a_fallback_is_logged(model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxopt.run.session._made_for", lambda path: (__import__("onnxopt").Target("cuda"), None, {}))
    session = Session(model.parent, device="auto")
    assert session.plan.device == "cpu"
    assert "runs on the CPU, not on cuda for which it was made" in caplog.text


def test_a_missing_plugin_names_its_package(model: Path) -> None:
    with pytest.raises(InputError, match=r"tensorrt-rtx: .* pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
        Session(model, device="tensorrt-rtx")
    with pytest.raises(InputError, match="unknown device 'tpu'; use one of auto, cpu"):
        parse_device("tpu")


def test_a_plugin_without_a_device_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = ModuleType("onnxruntime_ep_openvino")
    plugin.get_ep_name = lambda: "OpenVINOExecutionProvider"
    plugin.get_library_path = lambda: "nowhere.so"
    plugin.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("onnxruntime_ep_openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", plugin)
    with pytest.raises(InputError, match="onnxruntime-ep-openvino cannot be loaded"):
        Session(model, device="openvino")
    monkeypatch.setattr("onnxruntime.register_execution_provider_library", lambda name, path: None)
    with pytest.raises(InputError, match="is installed but finds no device of its kind"):
        Session(model, device="openvino")


def test_the_smallest_bucket_that_holds_a_request() -> None:
    buckets = [{"batch": 8, "sequence": 128}, {"batch": 1, "sequence": 16}, {"batch": 1, "sequence": 128}]
    assert smallest_bucket({"batch": 1, "sequence": 9}, buckets) == 1
    assert smallest_bucket({"batch": 1, "sequence": 17}, buckets) == 2
    assert smallest_bucket({"batch": 2, "sequence": 9}, buckets) == 0
    assert smallest_bucket({"batch": 9, "sequence": 9}, buckets) is None
    assert smallest_bucket({"height": 9}, buckets) is None


def test_the_placement_counts_nodes_kernels_and_copies(model: Path) -> None:
    found = placement(model, device="cpu", feeds={"x": np.ones((2, 3), np.float32)})
    assert found.nodes == {CPU: 2}
    assert found.whole
    assert found.copies == 0
    assert {kernel.operator: kernel.count for kernel in found.kernels} == {"Add": 1, "Relu": 1}
    assert found.lines()[0] == "CPUExecutionProvider: 2 nodes"
    assert placement(model).kernels == ()


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu.max": "max 100000", "pod/box/cpu.max": "150000 100000", "pod/cpu.max": "400000 100000"}, 1.5),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_quota_is_the_smallest_of_all_groups_above(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text("0::/pod/box\n")
    assert cgroup_quota(tmp_path / "fs", tmp_path / "self") == quota


def test_the_quota_of_the_older_groups(tmp_path: Path) -> None:
    folder = tmp_path / "cpu,cpuacct" / "box"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "self").write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    assert cgroup_quota(tmp_path, tmp_path / "self") == 2.0
