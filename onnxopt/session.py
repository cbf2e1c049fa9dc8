"""Open a model in ONNX Runtime and run it, with one clear line for everything that can be wrong."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError
from onnxopt.machine import runtime_package
from onnxopt.spec import Provider, Target, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

    from onnxopt.model import Array, Feeds
from onnxopt.runtime import runtime_errors, runtime_line

MODEL_NAME = "model.onnx"
_NAME_A_MODEL = "name an artifact or an .onnx file"

# in order of preference; the CPU takes what a device cannot
EXECUTION_PROVIDERS: Mapping[Provider, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "portable": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_FATAL = 4  # onnxruntime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal; errors reach us as exceptions

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def open_session(
    path: Path, *, target: Target, optimize: bool = True, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open a model file.

    Args:
        path: the .onnx file; its external data lies beside it.
        target: decides the execution provider and, without `threads`, the thread count.
        optimize: false switches off the runtime's own graph optimisations, as a reference must be run.
        threads: threads of one operator.

    Returns:
        The runtime's session; it logs nothing and never falls back to another provider in silence.

    Raises:
        InputError: when the file is missing or refused by the runtime, or the target's provider is not installed.
    """
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise InputError("no such model file", where=str(path))
    providers = _installed(target.provider, onnxruntime.get_available_providers())
    if target.provider in {"cuda", "tensorrt"} and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the session's own error says it too
            onnxruntime.preload_dlls()  # CUDA and cuDNN out of their own wheels or torch's
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = target.threads if threads is None else threads
    options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except runtime_errors() as error:
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} cannot open it: {runtime_line(error)}", where=str(path)
        ) from error
    if providers[0] not in session.get_providers():
        raise InputError(
            f"{providers[0]} is installed but does not start on this machine",
            where=f"target {target.provider}",
            hint="check the driver and the CUDA and cuDNN libraries, or use --target cpu",
        )
    return session


def _installed(provider: Provider, available: Sequence[str]) -> list[str]:
    wanted = EXECUTION_PROVIDERS[provider]
    if wanted[0] in available:
        return [name for name in wanted if name in available]
    package = runtime_package() or "onnxruntime"
    raise InputError(
        f"the installed package {package} has no {wanted[0]}",
        where=f"target {provider}",
        hint=f"replace it: pip uninstall {package}, then pip install onnxruntime-gpu; or use --target cpu",
    )


class Session:
    """A model ready to run.

    Attributes:
        path: the model file.
        inputs: what it takes, in graph order.
        outputs: what it gives, in graph order.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, path: str | Path, *, target: Target | None = None, threads: int | None = None) -> None:
        """Open a model.

        Args:
            path: an .onnx file, or an artifact folder (any folder that holds `model.onnx`).
            target: where to run; the default is the artifact's own target, and the CPU for a plain file.
            threads: threads of one operator; the default is what this process may use.

        Raises:
            InputError: when there is no such model or it cannot be opened here.
        """
        path = Path(path)
        self.path = model_file(path)
        chosen = target or _target_of(path)
        self._session = open_session(self.path, target=chosen, threads=threads)
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Feeds:
        """Run the model once.

        Args:
            feeds: one array per input, by name.
            outputs: names of the wanted outputs; all without it.

        Returns:
            The wanted outputs by name.

        Raises:
            InputError: when a name, dtype or shape does not fit, or the runtime fails.
        """
        self._check(feeds)
        known = [spec.name for spec in self.outputs]
        names = known if outputs is None else list(outputs)
        for name in names:
            if name not in known:
                raise InputError(f"no output {name!r}, there is {', '.join(known)}", where=str(self.path))
        contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in feeds.items()}
        try:
            values = self._session.run(names, contiguous)
        except runtime_errors() as error:
            raise InputError(f"onnxruntime failed: {runtime_line(error)}", where=str(self.path)) from error
        return dict(zip(names, values, strict=True))

    def binding(self) -> onnxruntime.IOBinding:
        """Return a fresh set of bound inputs and outputs, for `run_bound`."""
        return self._session.io_binding()

    def run_bound(self, binding: onnxruntime.IOBinding) -> None:
        """Run the model once on bound inputs, into bound outputs.

        Raises:
            InputError: when the runtime fails.
        """
        try:
            self._session.run_with_iobinding(binding)
        except runtime_errors() as error:
            raise InputError(f"onnxruntime failed: {runtime_line(error)}", where=str(self.path)) from error

    @property
    def device(self) -> str:
        """Where the provider keeps its tensors, as onnxruntime names it: `cpu` or `cuda`."""
        return "cpu" if self._session.get_providers()[0] == "CPUExecutionProvider" else "cuda"

    def _check(self, feeds: Mapping[str, Array]) -> None:
        names = [spec.name for spec in self.inputs]
        unknown = [name for name in feeds if name not in names]
        missing = [name for name in names if name not in feeds]
        if missing or unknown:
            wrong = f"input {missing[0]!r} is missing" if missing else f"no input {unknown[0]!r}"
            raise InputError(wrong, where=str(self.path), hint=f"the model takes {', '.join(names) or 'no input'}")
        for spec in self.inputs:
            array = feeds[spec.name]
            if array.dtype.name != spec.dtype:
                raise InputError(
                    f"input {spec.name!r} is {array.dtype.name}, the model takes {spec.dtype}", where=str(self.path)
                )
            if not _fits(array.shape, spec.axes):
                axes = ", ".join(str(axis) for axis in spec.axes)
                raise InputError(
                    f"input {spec.name!r} has shape {list(array.shape)}, the model takes [{axes}]", where=str(self.path)
                )


def model_file(path: Path) -> Path:
    """Return the .onnx file that a path names.

    Args:
        path: the file itself, or a folder that holds `model.onnx`.

    Raises:
        InputError: when there is none.
    """
    path = Path(path)
    if path.is_dir():
        file = path / MODEL_NAME
        if not file.is_file():
            raise InputError(
                f"no {MODEL_NAME} in this folder", where=str(path), hint="name an artifact or an .onnx file"
            )
        return file
    if not path.is_file():
        raise InputError("no such file or folder", where=str(path), hint="name an artifact or an .onnx file")
    return path


def _target_of(path: Path) -> Target:
    from onnxopt.manifest import MANIFEST_NAME, Manifest

    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        return Target(Manifest.read(path).target.provider)
    return Target()


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    """Read one input or output; an axis without a name gets `?`, and so does every axis of an unknown rank's tensor."""
    axes = tuple(axis if isinstance(axis, int | str) else "?" for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), axes)


def _fits(shape: Sequence[int], axes: Sequence[int | str]) -> bool:
    if len(shape) != len(axes):
        return not axes  # the runtime gives no axes for an unknown rank
    return all(isinstance(axis, str) or axis == size for size, axis in zip(shape, axes, strict=True))
