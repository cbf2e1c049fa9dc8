"""Run the file as it came, with no optimization: what a result must be equal to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxopt.errors import InputError
from onnxopt.graph.exchange import FOLDER_KEY, Exchange, carried_file
from onnxopt.graph.weight_files import MAPPED
from onnxopt.host.bounds import bounds
from onnxopt.host.runtime_errors import runtime_line
from onnxopt.host.threads import available_threads
from onnxopt.host.watch import watched
from onnxopt.probe.apart.session import ApartError, ApartSession, BoundError, too_slow
from onnxopt.probe.rounding import rounds_otherwise
from onnxopt.spec import Array, Feeds, shape_text


class OrtReference:
    """An .onnx file run by ONNX Runtime with every optimization off.

    Args:
        path: the file, already checked.
        label: how reports call it; the file's name when empty.
        graph: run in place of the file's own, with external data beside the file.
        threads: of one operator; the default is what this process may use.
        apart: run it in a worker, which it may kill: what nobody has run yet.
        weight_bytes: of the model, external data included; a large one may take longer.
        mapped: leave the weights where they are mapped, without a copy of each in a kernel's own order, and keep
            nothing of what a run computes.
    """

    def __init__(
        self,
        path: Path,
        label: str = "",
        graph: bytes = b"",
        threads: int | None = None,
        *,
        apart: bool = False,
        weight_bytes: int = 0,
        mapped: bool = False,
    ) -> None:
        self._path = path
        self._apart = apart
        self._weight_bytes = weight_bytes
        self._mapped = mapped
        self._graph = graph
        self._label = label or path.name
        self._threads = threads or available_threads()
        self._sessions: dict[bool, Any] = {}
        self._exchange = Exchange({}, {})
        self._names: list[str] = []

    @property
    def name(self) -> str:
        """What it is, for reports."""
        import onnxruntime as ort

        return f"{self._label} in onnxruntime {ort.__version__}, optimizations off"

    def run(self, feeds: Mapping[str, Array], *, optimized: bool = False) -> Feeds:
        """Return every output by name.

        Args:
            feeds: one array per input, by name.
            optimized: with the optimizations that ONNX Runtime makes unless it is told otherwise.

        Raises:
            InputError: ONNX Runtime cannot open the file or cannot run these inputs.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        options.log_severity_level = 4  # the line comes back in the exception; nothing on stderr
        session = self._open(optimized=optimized)
        elements = sum(value.size for value in feeds.values() if hasattr(value, "size"))
        seconds = None if self._apart else bounds().seconds_for(self._weight_bytes, elements)
        with watched(options, seconds) as run:
            try:
                values = session.run(self._exchange.names(self._names), self._exchange.give(feeds), options)
            except Exception as error:  # the binding raises a class of its own per status code
                raise self._not_run(error, feeds, seconds if run.ended else None) from error
        return dict(zip(self._names, self._exchange.take(self._names, values), strict=True))

    def _not_run(self, error: Exception, feeds: Mapping[str, Array], seconds: float | None) -> InputError:
        """Return why the model did not run; `seconds` are those after which it was ended."""
        sizes = ", ".join(f"{name} {shape_text(value)}" for name, value in feeds.items()) or "no input"
        if seconds is not None:
            error = too_slow(seconds)
        if isinstance(error, BoundError):
            return error.told(self._label, f"cannot be run with {sizes}")
        return InputError(f"cannot be run with {sizes}: {runtime_line(error)}", where=self._label)

    def open(self) -> None:
        """Open the file as it is now, whatever becomes of it later.

        Raises:
            InputError: ONNX Runtime cannot open it.
        """
        self._open(optimized=False)

    def close(self) -> None:
        """Let go of what is open; a run opens it again."""
        for session in self._sessions.values():
            if isinstance(session, ApartSession):
                session.close()
        self._sessions = {}

    def with_threads(self, threads: int) -> OrtReference:
        """Return the same model with another number of threads.

        Some kernels give other numbers then: DynamicQuantizeLSTM deals the rows of a batch out to threads, and finds
        the range of each part on its own (onnxruntime 1.32.0).
        """
        return self if threads == self._threads else self._alike(self._graph, threads)

    def rounded_otherwise(self) -> OrtReference | None:
        """Return the same graph with its results moved by a unit in their last place; None where none can be.

        Raises:
            InputError: the file cannot be read.
        """
        import onnx

        try:
            proto = onnx.ModelProto.FromString(self._graph or self._path.read_bytes())
            if not rounds_otherwise(proto):
                return None
            return self._alike(proto.SerializeToString(), self._threads)
        except Exception as error:  # protobuf and ONNX raise several kinds, for what is too large as well
            raise InputError("cannot be read", where=self._label) from error

    def _alike(self, graph: bytes, threads: int) -> OrtReference:
        return OrtReference(
            self._path, self._label, graph, threads, weight_bytes=self._weight_bytes, mapped=self._mapped
        )

    def _open(self, *, optimized: bool) -> Any:
        if optimized not in self._sessions:
            folder = {FOLDER_KEY: str(self._path.absolute().parent)} if self._graph else {}
            session = self._session_of(self._graph or str(self._path), folder, optimized=optimized)
            self._names = [output.name for output in session.get_outputs()]
            self._exchange = Exchange.of(session)
            if self._exchange.needed:
                carried = carried_file(self._path, self._exchange, self._graph)
                session = self._session_of(*carried, optimized=optimized)
            self._sessions[optimized] = session
        return self._sessions[optimized]

    def _session_of(self, graph: str | bytes, entries: Mapping[str, str], *, optimized: bool) -> Any:
        import onnxruntime as ort

        if self._mapped:
            entries = {**entries, **MAPPED}
        if self._apart:
            return self._apart_session(graph, entries, optimized=optimized)
        levels = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4
        if self._mapped:  # weights that are transposed in each run would stay in the arena, all of them
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # a few runs of each size: threads that wait for the next one by turning in circles are in everyone's way
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        try:
            return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise self._not_opened(error) from error

    def _apart_session(self, graph: str | bytes, entries: Mapping[str, str], *, optimized: bool) -> ApartSession:
        try:
            return ApartSession(
                graph, config=entries, optimized=optimized, threads=self._threads, weight_bytes=self._weight_bytes
            )
        except BoundError as error:
            raise error.told(self._label, "cannot be opened") from error
        except ApartError as error:
            raise self._not_opened(error) from error

    def _not_opened(self, error: Exception) -> InputError:
        import onnxruntime as ort

        said = runtime_line(error).replace(str(self._path), "the file")
        what = f"ONNX Runtime {ort.__version__} cannot open it: {said}"
        return InputError(what, where=self._label, hint="check that the file runs where it was made")
