"""Open a model in ONNX Runtime and run it, with one clear line for everything that can be wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxopt.errors import InputError, LimitError
from onnxopt.graph import weight_files
from onnxopt.graph.exchange import Exchange, carried_file, spec_of
from onnxopt.graph.sides import Crossings
from onnxopt.host.bounds import allow, bounds
from onnxopt.host.files import bytes_beside
from onnxopt.host.watch import are_limited, watched
from onnxopt.probe.memory import release_memory
from onnxopt.run.providers import Device, Opening, Wishes, add_plugin, engine_cache, parse_device, plan, preload_cuda
from onnxopt.run.there import model_file
from onnxopt.spec import CONTAINERS, SOUND_AXES, Provider, Target, TensorSpec, Workload

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

    from onnxopt.records.record import ProvedRange
    from onnxopt.spec import Feeds, Value
from onnxopt.host.runtime_errors import runtime_errors, runtime_line

logger = logging.getLogger(__name__)

BOUND_ELEMENTS = 1 << 17  # what is bound is not counted: a prompt of thousands of tokens and their cache
_FATAL = 4  # onnxruntime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal; errors reach us as exceptions


def open_session(
    path: Path,
    *,
    target: Target,
    optimize: bool = True,
    threads: int | None = None,
    chosen: Opening | None = None,
    config: Mapping[str, str] | None = None,
    profile: Path | None = None,
    graph: bytes = b"",
    label: str = "",
) -> onnxruntime.InferenceSession:
    """Open a model file.

    Args:
        path: the .onnx file; its external data lies beside it.
        target: decides the execution provider and, without `threads`, the thread count.
        optimize: false switches off the runtime's own graph optimisations, as a reference must be run.
        threads: threads of one operator.
        chosen: providers with options, when they are known already.
        config: more session configuration entries.
        profile: beginning of the name of a file for the times of all kernels.
        graph: opened in place of the file's own.
        label: how errors call the model; the path when empty.

    Returns:
        The runtime's session; it logs nothing and never falls back to another provider in silence.

    Raises:
        InputError: when the file is missing or refused by the runtime, or the target's provider is not installed.
    """
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise InputError("no such model file", where=str(path))
    chosen = chosen or plan(_device(target.provider), target.provider, onnxruntime.get_available_providers())
    if chosen.device in {"cuda", "tensorrt"}:
        preload_cuda()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = target.threads if threads is None else threads
    options.inter_op_num_threads = 1
    for key, value in {**chosen.config, **(config or {})}.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    first = add_plugin(options, chosen.plugin, chosen.device) if chosen.plugin else chosen.names[0]
    given = {} if chosen.plugin else {"providers": [(name, dict(values)) for name, values in chosen.providers]}
    try:
        session = onnxruntime.InferenceSession(graph or str(path), options, enable_fallback=0, **given)
    except runtime_errors() as error:
        said = runtime_line(error).replace(str(path), "the file")
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} cannot open it: {said}", where=label or str(path)
        ) from error
    if first not in session.get_providers():
        raise InputError(
            f"{first} is installed but does not start on this machine",
            where=f"target {chosen.device}",
            hint="check the driver and the CUDA and cuDNN libraries, or use --target cpu",
        )
    if _is_large(path):  # the C library keeps what the file was parsed into, and what weights were packed from
        release_memory()
    return session


def _is_large(path: Path) -> bool:
    """Tell whether a file, with what lies beside it, is one whose memory is worth a thought."""
    try:
        return bytes_beside(path) > weight_files.LARGE_BYTES
    except OSError:  # a folder that may not be listed
        return False


def _device(provider: Provider) -> Device:
    return "cpu" if provider == "portable" else provider


class Session:
    """A model ready to run.

    Attributes:
        path: the model file.
        inputs: what it takes, in graph order.
        outputs: what it gives, in graph order.
        plan: the providers it runs on, with their options, and what to know about them.
        cuda_graph: whether runs are captured and replayed.
    """

    path: Path
    plan: Opening
    cuda_graph: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(
        self,
        path: str | Path,
        *,
        target: Target | None = None,
        threads: int | None = None,
        device: Device | str | None = None,
        workload: Workload | None = None,
        cuda_graph: bool = False,
        exact: bool = False,
        config: Mapping[str, str] | None = None,
        profile: Path | None = None,
        label: str = "",
    ) -> None:
        """Open a model.

        Args:
            path: an .onnx file, or an artifact folder (any folder that holds `model.onnx`).
            target: where to run; the default is the artifact's own target, and the CPU for a plain file.
            threads: threads of one operator; the default is what this process may use.
            device: where to run, instead of `target`: `auto` (the artifact's own target, else the CPU with a note),
                `cpu`, `cuda`, `tensorrt`, or a plugin: `openvino`, `tensorrt-rtx`.
            workload: request shapes that TensorRT builds for; the default is the artifact's own.
            cuda_graph: capture each fixed shape once and replay it; for `FixedShapes`.
            exact: on CUDA multiply float32 as float32, not as TF32; slower.
            config: session configuration entries of onnxruntime.
            profile: beginning of the name of a file that gets the times of all kernels, written by `end_profile`.
            label: how errors call the model; the path of its file when empty.

        Raises:
            InputError: when there is no such model or it cannot be opened here.
        """
        import onnxruntime

        path = Path(path)
        self.path = model_file(path)
        self._label = label or str(self.path)
        made_for, known, self._proved = _made_for(path)
        chosen = target or made_for
        wanted = _device(chosen.provider) if device is None else parse_device(device)
        available = onnxruntime.get_available_providers()
        wishes = Wishes(workload=workload or known, cuda_graph=cuda_graph, exact=exact)
        if "tensorrt" in {wanted, chosen.provider} and "TensorrtExecutionProvider" in available:
            wishes = replace(wishes, inputs=_inputs_of(self.path), cache=engine_cache(self.path))
        self.plan = plan(wanted, chosen.provider, available, wishes)
        try:
            self._session = self._open(chosen, threads, config, profile)
        except InputError as error:
            if wanted != "auto" or self.plan.device == "cpu":
                raise
            note = f"runs on the CPU, not on {self.plan.device} for which it was made: {error.what}"
            self.plan = replace(plan("cpu", "cpu", available), notes=(note,))
            self._session = self._open(chosen, threads, config, profile)
        self.cuda_graph = cuda_graph and self.device == "cuda"
        for note in self.plan.notes:
            logger.warning("%s: %s", self.path, note)

    def _open(
        self, target: Target, threads: int | None, config: Mapping[str, str] | None, profile: Path | None
    ) -> onnxruntime.InferenceSession:
        """Open the file and read off what it takes; once more with Casts for types that NumPy does not know."""

        def open_it(graph: bytes, entries: Mapping[str, str]) -> onnxruntime.InferenceSession:
            return open_session(
                self.path,
                target=target,
                threads=threads,
                chosen=self.plan,
                config={**entries, **(config or {})},
                profile=profile,
                graph=graph,
                label=self._label,
            )

        session = open_it(b"", {})
        preset = (replace(spec_of(node), form="default") for node in session.get_overridable_initializers())
        self.inputs = (*map(spec_of, session.get_inputs()), *preset)
        self.outputs = tuple(map(spec_of, session.get_outputs()))
        self._exchange = Exchange.of(session)
        return open_it(*carried_file(self.path, self._exchange)) if self._exchange.needed else session

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None, *, shrink: bool = False) -> Feeds:
        """Run the model once.

        Args:
            feeds: one array per input, by name.
            outputs: names of the wanted outputs; all without it.
            shrink: give the memory of the run back behind it, which the runtime else keeps for the next one.

        Returns:
            The wanted outputs by name.

        Raises:
            InputError: when a name, dtype or shape does not fit, or the runtime fails.
        """
        self.check(feeds)
        self._check_sizes(feeds)
        known = [spec.name for spec in self.outputs]
        names = known if outputs is None else list(outputs)
        for name in names:
            if name not in known:
                raise InputError(f"no output {name!r}, there is {', '.join(known)}", where=self._label)
        given = self._exchange.give({name: _contiguous(value) for name, value in feeds.items()})
        with self._in_time(given, shrink=shrink) as options:
            try:
                values = self._session.run(self._exchange.names(names), given, options)
            except runtime_errors() as error:
                self._check_equal(feeds)
                raise InputError(f"onnxruntime failed: {runtime_line(error)}", where=self._label) from error
        return dict(zip(names, self._exchange.take(names, values), strict=True))

    @contextmanager
    def _in_time(
        self, given: Mapping[str, Value] | None = None, *, shrink: bool = False
    ) -> Iterator[onnxruntime.RunOptions | None]:
        """Give the options of one run, which is ended where it takes too long and runs are limited.

        Args:
            given: what goes in, counted where runs are limited; None for what is bound.
            shrink: give the memory of the run back behind it.

        Raises:
            LimitError: it was ended.
        """
        if not are_limited() or self.plan.device != "cpu":  # engines of other devices are built in the first run
            yield _run_options() if shrink else None
            return
        options, elements = _run_options(shrink=shrink), BOUND_ELEMENTS
        if given is not None:
            elements = sum(value.size for value in given.values() if isinstance(value, np.ndarray))
        seconds = bounds().seconds_for(self._weight_bytes, elements)
        with watched(options, seconds) as run:
            try:
                yield options
            except InputError as error:
                if not run.ended:
                    raise
                hint = allow("seconds", f"{6 * seconds:.0f}")
                raise LimitError(f"a run does not end within {seconds:.0f} s", where=self._label, hint=hint) from error

    @cached_property
    def _weight_bytes(self) -> int:
        return bytes_beside(self.path)

    def _check_sizes(self, feeds: Mapping[str, Value]) -> None:
        """Refuse sizes of which an artifact promises nothing, at which it may run all the same; a file has no promises.

        Those are an axis without entries, a sound shorter than what its network looks at together, and what is no
        multiple where the graph was made for multiples.
        """
        for spec in self.inputs if self._proved else ():
            given = feeds.get(spec.name)
            shape = given.shape if isinstance(given, np.ndarray) else ()
            for axis, size in zip(spec.axes, shape, strict=False):
                known = self._proved.get(str(axis))
                if known is None or size == known.least:
                    continue
                if size == 0:
                    what = f"input {spec.name!r} has no entries along its axis '{axis}'; the artifact answers from 1 on"
                    raise InputError(what, where=self._label, hint="leave a request without rows out")
                if str(axis) in SOUND_AXES and size < known.least:
                    what = f"input {spec.name!r} has {size} entries along its axis '{axis}'"
                    what += f"; the artifact answers from {known.least} on"
                    raise InputError(what, where=self._label, hint="give a longer sound")
                if size % known.step:
                    what = f"input {spec.name!r} has {size} entries along its axis '{axis}'"
                    what += f"; the artifact answers multiples of {known.step}"
                    raise InputError(what, where=self._label, hint="resize it, or pad it as the model was trained")

    def _check_equal(self, feeds: Mapping[str, Value]) -> None:
        """Say of inputs that the runtime has refused which axis has two sizes; some graphs broadcast one of them."""
        seen: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            given = feeds.get(spec.name)
            shape = given.shape if isinstance(given, np.ndarray) else ()
            for axis, size in zip(spec.axes, shape, strict=False):
                known, first = seen.setdefault(str(axis), (size, spec.name))
                if known != size:
                    what = f"axis '{axis}' is {known} in input {first!r} and {size} in input {spec.name!r}"
                    raise InputError(what, where=self._label, hint="give it one size")

    @property
    def crossings(self) -> Crossings:
        """Where the tables of positions change with the length, as the file says."""
        return Crossings.from_metadata(self._session.get_modelmeta().custom_metadata_map)

    def binding(self) -> onnxruntime.IOBinding:
        """Return a fresh set of bound inputs and outputs, for `run_bound`."""
        return self._session.io_binding()

    @property
    def providers(self) -> list[str]:
        """Names of onnxruntime's providers that the session runs on, in order of preference."""
        return list(self._session.get_providers())

    def run_bound(self, binding: onnxruntime.IOBinding, *, graph: int | None = None) -> None:
        """Run the model once on bound inputs, into bound outputs.

        Args:
            binding: inputs and outputs.
            graph: number of the CUDA graph to capture or replay, from 1, in a session with `cuda_graph`.

        Raises:
            InputError: when the runtime fails.
        """
        with self._in_time() as options:
            try:
                self._session.run_with_iobinding(binding, _graph_options(graph) or options)
            except runtime_errors() as error:
                raise InputError(f"onnxruntime failed: {runtime_line(error)}", where=self._label) from error

    @property
    def device(self) -> str:
        """Where the provider keeps its tensors, as onnxruntime names it: `cpu` or `cuda`."""
        return "cuda" if self.plan.device in {"cuda", "tensorrt"} else "cpu"

    def end_profile(self) -> Path:
        """Stop profiling and return the file that was written; for a session with `profile`."""
        return Path(self._session.end_profiling())

    def assignment(self) -> list[onnxruntime.OrtEpAssignedSubgraph]:
        """Return what each provider took, for a session whose `config` asked onnxruntime to record it."""
        return list(self._session.get_provider_graph_assignment_info())

    def check(self, feeds: Mapping[str, Value]) -> None:
        """Make sure that inputs have the names, dtypes and shapes that the model takes.

        Raises:
            InputError: when one has not.
        """
        names = [spec.name for spec in self.inputs]
        unknown = [name for name in feeds if name not in names]
        missing = [spec.name for spec in self.inputs if spec.name not in feeds and spec.form != "default"]
        if missing or unknown:
            wrong = f"input {missing[0]!r} is missing" if missing else f"no input {unknown[0]!r}"
            raise InputError(wrong, where=self._label, hint=f"the model takes {', '.join(names) or 'no input'}")
        for spec in self.inputs:
            if spec.name not in feeds or spec.form in CONTAINERS:  # what a sequence holds, the runtime checks itself
                continue
            array = feeds[spec.name]
            if array.dtype.name != spec.dtype:
                raise InputError(
                    f"input {spec.name!r} is {array.dtype.name}, the model takes {spec.dtype}", where=self._label
                )
            if not _fits(array.shape, spec.axes):
                axes = ", ".join(str(axis) for axis in spec.axes)
                raise InputError(
                    f"input {spec.name!r} has shape {list(array.shape)}, the model takes [{axes}]", where=self._label
                )


def _made_for(path: Path) -> tuple[Target, Workload | None, dict[str, ProvedRange]]:
    """Return where an artifact is meant to run, for which shapes, and at which sizes of its axes it was proved."""
    from onnxopt.records.manifest import MANIFEST_NAME, Manifest
    from onnxopt.run.intact import check_intact

    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        manifest = Manifest.read(path)
        check_intact(path, manifest)
        return Target(manifest.target.provider), manifest.workload, dict(manifest.proved)
    return Target(), None, {}


def _inputs_of(model: Path) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model file, whose names are wanted before a session can be opened."""
    import onnx_ir as ir

    try:
        values = ir.load(model).graph.inputs  # weights beside the file stay there
    except Exception as error:
        raise InputError(f"cannot be read ({error})", where=str(model)) from error
    return tuple(_input(value) for value in values)


def _input(value: ir.Value) -> TensorSpec:
    axes = () if value.shape is None else tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)
    dtype = "" if value.dtype is None else value.dtype.numpy().name
    return TensorSpec(value.name or "", dtype, tuple("?" if axis is None else axis for axis in axes))


def _run_options(*, shrink: bool = True) -> onnxruntime.RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _graph_options(number: int | None) -> onnxruntime.RunOptions | None:
    if number is None:
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _contiguous(value: Value) -> Value:
    """Return a tensor in row-major order; what a sequence holds, the runtime copies itself."""
    return np.ascontiguousarray(value).reshape(value.shape) if isinstance(value, np.ndarray) else value


def _fits(shape: Sequence[int], axes: Sequence[int | str]) -> bool:
    if len(shape) != len(axes):
        return not axes  # the runtime gives no axes for an unknown rank
    return all(isinstance(axis, str) or axis == size for size, axis in zip(shape, axes, strict=True))
