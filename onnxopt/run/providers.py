"""Plan where a model runs: execution providers, their options, and what to say when one is missing.

A device is what a user names (`cpu`, `cuda`, `tensorrt`, `openvino`, `tensorrt-rtx`). `plan` turns it into the
runtime's providers with options. OpenVINO and TensorRT-RTX come as plugins: packages of their own that the stock
runtime loads.

TensorRT builds an engine for a range of shapes and builds it again for a shape outside of it, which takes minutes. So
the ranges (`trt_profile_min/opt/max_shapes`) come from the request shapes that the artifact was made for, and engine
and timing caches lie beside the artifact. The precision is the graph's own: an fp16 graph says fp16, an int8 graph has
QuantizeLinear and DequantizeLinear, and no flag of the builder is set.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from onnxopt.errors import InputError
from onnxopt.host.machine import runtime_package
from onnxopt.spec import Provider, TensorSpec, Workload

if TYPE_CHECKING:
    import onnxruntime

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "tensorrt-rtx"]
DEVICES: tuple[Device, ...] = get_args(Device)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# in order of preference; the CPU takes what a device cannot
EXECUTION_PROVIDERS: Mapping[Provider, tuple[str, ...]] = {
    "cpu": (CPU,),
    "portable": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}
# device: package, the module it installs
PLUGINS: Mapping[Device, tuple[str, str]] = {
    "openvino": ("onnxruntime-ep-openvino", "onnxruntime_ep_openvino"),
    "tensorrt-rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime_ep_nv_tensorrt_rtx"),
}
EXACT_NORMS: Mapping[str, str] = {"enable_skip_layer_norm_strict_mode": "1"}
CACHE_SUFFIX = ".tensorrt"  # of the folder beside an artifact that holds its engines
_ALIASES = {"batch_size": "batch"}  # the name that files of decoders have for the axis of a workload
_TOTAL = ("past_sequence", "sequence")


@dataclass(frozen=True)
class Opening:
    """How a session is opened.

    Attributes:
        device: what it runs on, never `auto`.
        providers: names of onnxruntime's providers with their options, in order of preference; empty for a plugin.
        config: session configuration entries.
        plugin: package and module of a plugin; None for a provider inside onnxruntime.
        notes: sentences a user should read, such as a fallback.
    """

    device: Device
    providers: tuple[tuple[str, Mapping[str, str]], ...]
    config: Mapping[str, str] = field(default_factory=dict)
    plugin: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the providers."""
        return [name for name, _ in self.providers]


@dataclass(frozen=True)
class Wishes:
    """What decides a provider's options beside the device.

    Attributes:
        inputs: of the model; TensorRT's profiles name them.
        workload: request shapes; without it TensorRT gets no profiles.
        cache: folder for engines and timings; None keeps none.
        cuda_graph: capture each fixed shape once and replay it.
        exact: multiply float32 as float32, as a proof needs it, and not as TF32.
    """

    inputs: Sequence[TensorSpec] = ()
    workload: Workload | None = None
    cache: Path | None = None
    cuda_graph: bool = False
    exact: bool = False


def parse_device(text: str) -> Device:
    """Read the name of a device.

    Raises:
        InputError: when there is no such device.
    """
    for device in DEVICES:
        if text.strip().lower() == device:
            return device
    raise InputError(f"unknown device {text!r}", hint=f"use one of {', '.join(DEVICES)}")


def plan(device: Device, preferred: Provider, available: Sequence[str], wishes: Wishes | None = None) -> Opening:
    """Return how a model is opened on a device.

    Args:
        device: where to run. `auto` is the device the model was made for; when that is missing here, the CPU, with a
            note that says so.
        preferred: the provider that the model was made for.
        available: providers of the installed onnxruntime.
        wishes: shapes, caches and CUDA graphs.

    Raises:
        InputError: when the device's provider is not installed; the hint names the package.
    """
    wishes = wishes or Wishes()
    if device == "auto":
        wanted: Device = "cpu" if preferred == "portable" else preferred
        try:
            return plan(wanted, preferred, available, wishes)
        except InputError as error:
            note = f"runs on the CPU, not on {wanted} for which it was made: {error.what}; {error.hint}"
            return Opening("cpu", ((CPU, {}),), notes=(note,))
    if device in PLUGINS:
        return _plugin(device)
    provider: Provider = device  # type: ignore[assignment]  # the other devices are providers
    names = EXECUTION_PROVIDERS[provider]
    if names[0] not in available:
        package = runtime_package() or "onnxruntime"
        raise InputError(
            f"the installed package {package} has no {names[0]}",
            where=f"target {provider}",
            hint=f"replace it: pip uninstall {package}, then pip install onnxruntime-gpu; or use --target cpu",
        )
    options = {CUDA: cuda_options(wishes), TENSORRT: tensorrt_options(wishes)}
    chosen = tuple((name, options.get(name, {})) for name in names if name in available)
    # the fast kernel for 4- and 8-bit weights is behind a switch (docs/contrib_ops/cuda/matmul_nbits.md)
    config = {"ep.cuda.fpa_intb_gemm": "1"} if CUDA in available and device in {"cuda", "tensorrt"} else {}
    return Opening(device, chosen, config)


def cuda_options(wishes: Wishes) -> dict[str, str]:
    """Return the options of the CUDA provider.

    SkipLayerNormalization adds up in the type of its input unless it is told otherwise: in fp16 a residual whose mean
    square is above 65,504 would give a row of zeros (onnxruntime issues 17689 and 31626).
    """
    options = dict(EXACT_NORMS)
    if wishes.cuda_graph:
        options["enable_cuda_graph"] = "1"
    if wishes.exact:
        options["use_tf32"] = "0"
    return options


def tensorrt_options(wishes: Wishes) -> dict[str, str]:
    """Return the options of the TensorRT provider: profiles, caches, CUDA graph."""
    options: dict[str, str] = {}
    if wishes.workload is not None:
        options |= {
            f"trt_profile_{kind}_shapes": shapes for kind, shapes in profiles(wishes.inputs, wishes.workload).items()
        }
    if wishes.cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(wishes.cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(wishes.cache),
        }
    if wishes.cuda_graph:
        options["trt_cuda_graph_enable"] = "1"
    return options


def profiles(inputs: Sequence[TensorSpec], workload: Workload) -> dict[str, str]:
    """Return TensorRT's shape ranges for the inputs with open axes.

    The range of an axis goes from its smallest to its largest size in the workload; the optimum is the median over the
    request shapes, weighted by nothing else, so a histogram names a size as often as it occurs (`Workload.of_lengths`).

    Args:
        inputs: names and axes.
        workload: request shapes.

    Returns:
        `min`, `opt` and `max`, each `name:1x16,name:1x16`; empty when no axis is open or the workload leaves one open.
    """
    open_axes = {axis for spec in inputs for axis in spec.axes if isinstance(axis, str)}
    ranges: dict[str, dict[str, int]] = {"min": {}, "opt": {}, "max": {}}
    for axis in sorted(open_axes):
        sizes = sorted(size for shape in workload.shapes if (size := _size(axis, shape)) is not None)
        if not sizes:
            return {}
        ranges["min"][axis], ranges["opt"][axis], ranges["max"][axis] = (
            sizes[0],
            sizes[(len(sizes) - 1) // 2],
            sizes[-1],
        )
    dynamic = [spec for spec in inputs if any(isinstance(axis, str) for axis in spec.axes)]
    if not dynamic:
        return {}
    return {
        kind: ",".join(f"{spec.name}:{'x'.join(map(str, spec.shape(sizes)))}" for spec in dynamic)
        for kind, sizes in ranges.items()
    }


def _size(axis: str, shape: Mapping[str, int]) -> int | None:
    """Return the size of an axis in a request shape; None when it has none."""
    if axis == "total_sequence" and all(part in shape for part in _TOTAL):
        return sum(shape[part] for part in _TOTAL)
    return shape.get(axis, shape.get(_ALIASES.get(axis, axis)))


def smallest_bucket(sizes: Mapping[str, int], buckets: Sequence[Mapping[str, int]]) -> int | None:
    """Return the index of the smallest bucket that holds a request; None when none does.

    Args:
        sizes: of the request by axis.
        buckets: sizes of each bucket by axis; an axis that a bucket does not name must not be in the request.
    """
    fitting = [
        (math.prod(bucket.values()), index)
        for index, bucket in enumerate(buckets)
        if all(axis in bucket and size <= bucket[axis] for axis, size in sizes.items())
    ]
    return min(fitting)[1] if fitting else None


def engine_cache(model: Path) -> Path:
    """Return the folder for TensorRT's engines, beside the artifact, made private: an engine is trusted like a program.

    Raises:
        InputError: when it cannot be made.
    """
    beside = model.parent.with_name(model.parent.name + CACHE_SUFFIX)
    try:
        beside.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder for TensorRT's engines cannot be made ({error.strerror})",
            where=str(beside),
            hint="make it yourself, or move the artifact to a folder that you may write",
        ) from error
    return beside


def _plugin(device: Device) -> Opening:
    package, module = PLUGINS[device]
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"the package {package} is not installed", where=f"device {device}", hint=f"pip install {package}"
        )
    return Opening(device, (), plugin=(package, module))


def add_plugin(options: onnxruntime.SessionOptions, found: tuple[str, str], device: Device) -> str:
    """Load a plugin into onnxruntime and let a session use its first device; return the provider's name.

    Raises:
        InputError: when it cannot be loaded or finds no device.
    """
    import onnxruntime

    package, module = found
    plugin = importlib.import_module(module)
    name = str(plugin.get_ep_name())
    if not any(entry.ep_name == name for entry in onnxruntime.get_ep_devices()):
        try:
            onnxruntime.register_execution_provider_library(device, plugin.get_library_path())
        except Exception as error:
            if "already" not in str(error):  # loaded before, and no device found then either
                raise InputError(f"{package} cannot be loaded ({error})", where=f"device {device}") from error
    devices = [entry for entry in onnxruntime.get_ep_devices() if entry.ep_name == name]
    if not devices:
        raise InputError(
            f"{package} is installed but finds no device of its kind", where=f"device {device}", hint="use --target cpu"
        )
    options.add_provider_for_devices(devices[:1], {})
    return name


def preload_cuda() -> None:
    """Load CUDA and cuDNN out of their own wheels or torch's, where onnxruntime can."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the session's own error says it too
            onnxruntime.preload_dlls()
