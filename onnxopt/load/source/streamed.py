"""Write the weights of a network to a safetensors file while transformers loads them: one at a time is in memory.

transformers reads and converts weights one by one, and keeps what comes of them. Here each that has become a parameter
goes to the file at once, in 16 bits where those hold every number of it, and the network keeps a parameter of one
number that has the same shape. What is loaded so cannot compute; it knows which parameters are one.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxopt.host.disk import needing

TYPES = {  # torch's, by the names that safetensors has for them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_HEADER_BYTES = 1 << 20  # set aside for the header, which is written last; enough for some thousand weights
_PREFIX_BYTES = 8  # in front of it, and hold its length
_ALIGNED = 8  # bytes of the largest number that a weight is made of
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"  # without it, threads read weights before they are asked for, and hold them


@dataclass(frozen=True)
class _Laid:
    """Where a weight lies in the file.

    Attributes:
        dtype: by the name that the format has for it, such as `F32`.
        shape: sizes of its axes.
        start: of its first byte behind the header.
        stop: behind its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class WeightStream:
    """A safetensors file that takes the parameters of a network as they are loaded.

    Args:
        path: of the file; what is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._laid: dict[int, tuple[Any, _Laid]] = {}  # the stand-in, which keeps its address from being used again

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """While it lasts, write each large parameter that this thread loads from a checkpoint, and keep a stand-in."""
        from torch.nn.modules.module import register_module_parameter_registration_hook

        thread, before = threading.get_ident(), os.environ.get(_ONE_BY_ONE)

        def take(_module: Any, _name: str, parameter: Any) -> Any:
            return self._take(parameter) if threading.get_ident() == thread else None

        handle = register_module_parameter_registration_hook(take)
        os.environ[_ONE_BY_ONE] = "1"
        try:
            yield
        finally:
            handle.remove()
            os.environ.pop(_ONE_BY_ONE)
            if before is not None:
                os.environ[_ONE_BY_ONE] = before

    def _take(self, parameter: Any) -> Any:
        """Write a parameter, and return its stand-in; None for one that stays as it is."""
        import torch

        from onnxopt.graph import weight_files  # which takes a while

        loaded = getattr(parameter, "_is_hf_initialized", False)  # transformers marks what comes out of a checkpoint
        if id(parameter) in self._laid or not loaded or parameter.device.type != "cpu":
            return None
        if parameter.dtype != torch.float32 or parameter.nbytes < weight_files.LEAST_BYTES:
            return None
        laid = self._append(parameter)
        one = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)  # which torch lets nobody write to
        made = torch.nn.Parameter(one, requires_grad=parameter.requires_grad)
        made.__dict__.update(parameter.__dict__)
        self._laid[id(made)] = (made, laid)
        return made

    def _append(self, tensor: Any) -> _Laid:
        """Write a tensor behind those that are there."""
        import torch

        kept = _narrow(tensor.detach().contiguous())
        with needing(kept.nbytes), self._path.open("r+b" if self._end else "wb") as file:
            file.seek(_PREFIX_BYTES + _HEADER_BYTES + self._end)
            kept.reshape(-1).view(torch.uint8).numpy().tofile(file)
        start, self._end = self._end, self._end + kept.nbytes
        name = next(name for name, kind in TYPES.items() if getattr(torch, kind) == kept.dtype)
        return _Laid(name, tuple(tensor.shape), start, self._end)

    def finish(self, network: Any) -> None:
        """Write what is small of a network that was loaded while it took, and the header.

        A parameter of several names has the first of them in the file; those of the others are in the metadata, where
        safetensors' own `save_model` puts them.

        Raises:
            ValueError: there are more weights than the header has room for.
            RuntimeError: the network lacks a weight that was taken: nothing may lie in the file that no name tells of.
        """
        names: dict[int, list[str]] = {}
        state: Mapping[str, Any] = network.state_dict(keep_vars=True)
        for name in sorted(state):
            names.setdefault(id(state[name]), []).append(name)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        # what is of larger numbers goes first, so that each begins at a multiple of the size of its own
        for first, *others in sorted(names.values(), key=lambda alike: -state[alike[0]].element_size()):
            found = self._laid.get(id(state[first]))
            laid = self._append(state[first]) if found is None else found[1]
            header[first] = {"dtype": laid.dtype, "shape": laid.shape, "data_offsets": [laid.start, laid.stop]}
            header["__metadata__"].update(dict.fromkeys(others, first))
        if self._laid.keys() - names.keys():
            raise RuntimeError("a weight that was loaded is none of the network's")
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > _HEADER_BYTES:
            raise ValueError(f"{len(names)} weights are more than a header of {_HEADER_BYTES} bytes has room for")
        with self._path.open("r+b" if self._end else "wb") as file:  # the format lets spaces stand behind a header
            file.write(struct.pack("<Q", _HEADER_BYTES) + text.ljust(_HEADER_BYTES))


def _narrow(tensor: Any) -> Any:
    """Return a float32 tensor in 16 bits where those hold every number of it; else the tensor itself.

    One of a few numbers stays too: those would be in the way of the larger numbers behind them, which begin at
    multiples of their size.
    """
    import torch

    from onnxopt.graph import weight_files  # which takes a while

    if tensor.dtype != torch.float32 or tensor.nbytes < weight_files.LEAST_BYTES or 2 * tensor.numel() % _ALIGNED:
        return tensor
    found = weight_files.narrowest(tensor.numpy())
    return tensor if found is None else tensor.to(getattr(torch, found.name.lower()))
