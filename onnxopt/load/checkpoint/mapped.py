"""Give a torch network weights that lie in the checkpoint's files: mapped where float32, widened at each use elsewhere.

A float32 weight is a tensor on the mapping of its file: its pages are the system's to drop. One of 16 bits is a tensor
that calls itself float32, and becomes that for the one operator that asks: the network computes what it would compute
with its weights in memory, to the bit, and holds one of them at a time. Both go through transformers' own loading, as
its state dict, so names, ties, conversions and missing weights are its affair. Hooks that load a module's weights
before it runs, as accelerate has them, would miss weights that are read past their module's `forward`, and copy those
that need no copy.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onnxopt.host.disk import needing
from onnxopt.host.scratch import lasting_folder
from onnxopt.load.checkpoint.stored import Place, places_in
from onnxopt.load.source.streamed import TYPES

_WRAPPED = ("F32", "F16", "BF16")  # what becomes float32 in the network without a loss


class MappedWeights:
    """The weights of a checkpoint as tensors on its files.

    Args:
        files: safetensors files, whose tensors have names of their own.

    Raises:
        InputError: a file is none of that format, or cut off.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._regions: list[tuple[int, int, Path]] = []  # first address, size in bytes, file
        self._kept: list[Any] = []  # tensors that hold the mappings open
        self._room: Path | None = None
        self._count = itertools.count()
        self.state: dict[str, Any] = {}
        for path in files:
            self.state |= self._opened(path, places_in(path))

    def _opened(self, path: Path, places: dict[str, Place]) -> dict[str, Any]:
        """Return the tensors of a file by name."""
        import torch

        whole = self._map(path)
        found: dict[str, Any] = {}
        for name, place in places.items():
            kind = getattr(torch, TYPES[place.dtype])
            piece = whole[place.offset : place.offset + place.nbytes]
            if place.offset % kind.itemsize:  # a reader of mapped numbers expects them at multiples of their size
                piece = piece.clone()
            tensor = piece.view(kind).view(place.shape)
            found[name] = stored_type()(tensor) if place.dtype in _WRAPPED else tensor
        return found

    def _map(self, path: Path) -> Any:
        """Return a file as a tensor of bytes; what is written there stays in memory."""
        import torch

        with path.open("rb") as file:
            if sys.platform == "win32":
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            else:  # without room set aside for pages that nobody writes
                flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
                mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        whole = torch.frombuffer(mapped, dtype=torch.uint8)
        self._regions.append((whole.data_ptr(), whole.numel(), path))
        self._kept.append(whole)
        return whole

    def lay(self, tensor: Any) -> Any:
        """Write a tensor to a scratch file and return it as one that lies there; a small one stays as it is."""
        import torch

        from onnxopt.graph import weight_files  # which takes a while, and is of no use to what is refused by its name

        if tensor.nbytes < weight_files.LEAST_BYTES or tensor.numel() == 0:
            return tensor
        if self._room is None:
            self._room = lasting_folder()
        path = self._room / f"weight_{next(self._count)}"
        with needing(tensor.nbytes), path.open("wb") as file:
            tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
        return self._map(path).view(tensor.dtype).view(tensor.shape)

    def place_of(self, tensor: Any) -> Place | None:
        """Return where the elements of a plain tensor lie; None where that is in memory, or not in their order."""
        names = {value: name for name, value in TYPES.items()}
        dtype = names.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or not tensor.is_contiguous():
            return None
        for start, size, path in self._regions:
            offset = tensor.data_ptr() - start
            if offset >= 0 and offset + tensor.nbytes <= size:
                return Place(path, offset, tensor.nbytes, dtype, tuple(tensor.shape))
        return None

    def settle(self, network: Any) -> None:
        """Make what a network was loaded with its parameters: small ones in memory, the others where they lie.

        Args:
            network: loaded with `state`; parameters that the checkpoint lacks are left alone.
        """
        import torch

        settled: dict[int, Any] = {}  # what is shared stays shared
        for module in network.modules():
            for name, parameter in module._parameters.items():  # noqa: SLF001  setting an attribute would register it
                if parameter is None:
                    continue
                if id(parameter) not in settled:
                    settled[id(parameter)] = (parameter, self._settled(parameter))
                module._parameters[name] = settled[id(parameter)][1]  # noqa: SLF001  the same
            for name, buffer in module._buffers.items():  # noqa: SLF001  the same
                if isinstance(buffer, stored_type()):
                    module._buffers[name] = buffer.stored.to(torch.float32, copy=True)  # noqa: SLF001  the same
        self.state.clear()

    def _settled(self, parameter: Any) -> Any:
        import torch

        from onnxopt.graph import weight_files

        if not isinstance(parameter, stored_type()):
            return parameter
        stored = parameter.stored
        small = stored.numel() * 4 < weight_files.LEAST_BYTES
        if small or stored.dtype == torch.float32:
            plain = stored.to(torch.float32, copy=small)
            return torch.nn.Parameter(plain, requires_grad=parameter.requires_grad)
        return parameter


_laying: ContextVar[MappedWeights | None] = ContextVar("laying", default=None)


@contextlib.contextmanager
def laying(weights: MappedWeights) -> Iterator[None]:
    """While it lasts, let what is made of stored weights by moving their elements lie in scratch files."""
    token = _laying.set(weights)
    try:
        yield
    finally:
        _laying.reset(token)


@functools.cache
def stored_type() -> Any:
    """Return the class of tensors that are float32 to whoever uses them, and lie in another type; torch is needed."""
    import torch
    from torch.overrides import enable_reentrant_dispatch
    from torch.utils._pytree import tree_map_only

    aten = torch.ops.aten
    views = {
        *(aten.detach.default, aten.alias.default, aten.view.default, aten.t.default, aten.transpose.int),
        *(aten.permute.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.unsqueeze.default),
        *(aten.split_with_sizes.default, aten.squeeze.dim, aten._unsafe_view.default),  # noqa: SLF001  its name
    }
    copies = {aten.cat.default, aten.stack.default, aten.clone.default}
    lookups = {aten.embedding.default, aten.index.Tensor, aten.index_select.default}  # of rows of the first argument

    class Stored(torch.Tensor):
        """A weight that calls itself float32.

        Attributes:
            stored: its elements, in the type in which they lie.
        """

        stored: torch.Tensor

        @staticmethod
        def __new__(cls, stored: torch.Tensor) -> Any:
            made = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001  torch's documented way to do this
                cls, stored.shape, strides=stored.stride(), dtype=torch.float32, device=stored.device
            )
            made.stored = stored
            return made

        def __repr__(self) -> str:  # type: ignore[override]  # torch's takes options that nobody gives
            return f"Stored({self.stored.dtype}, {tuple(self.shape)})"

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]  # torch's stub is that of a function without a class
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            """Run an operator: one that moves elements on what is stored, any other on float32."""
            given = (args, kwargs or {})
            if func._schema.is_mutable:  # noqa: SLF001  what an operator says of itself
                raise TypeError(f"{func} writes to a weight that lies in a file")
            if func in views or (func in copies and _alike(args, cls)):
                arguments, options = tree_map_only(cls, lambda one: one.stored, given)
                with torch.inference_mode(mode=False):  # a view of a weight is what the weight is
                    return tree_map_only(torch.Tensor, functools.partial(_kept, cls), func(*arguments, **options))
            if func in lookups and isinstance(args[0], cls):
                return func(args[0].stored, *args[1:], **given[1]).to(torch.float32)
            arguments, options = tree_map_only(cls, _widened, given)
            with enable_reentrant_dispatch():  # as if the operator had been asked with these in the first place
                result = func(*arguments, **options)
            return tree_map_only(torch.Tensor, _fresh, result)

    return Stored


def _widened(weight: Any) -> Any:
    """Return a stored weight in float32, as a parameter would be.

    Whether it asks for a gradient, also when it is transposed, decides how torch multiplies a few rows with it.
    """
    import torch

    with torch.inference_mode(mode=False):
        return weight.stored.to(torch.float32).requires_grad_(weight.requires_grad)


def _fresh(tensor: Any) -> Any:
    """Return a tensor of which autograd knows nothing yet; a view of what was widened has a history of its own."""
    import torch

    if tensor.is_inference():
        return tensor
    with torch.inference_mode(mode=False):
        return tensor.detach()


def _alike(args: Any, kind: Any) -> bool:
    """Tell whether all tensors of an operator that copies are stored, and in one type."""
    tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
    return all(isinstance(one, kind) for one in tensors) and len({one.stored.dtype for one in tensors}) == 1


def _kept(kind: Any, tensor: Any) -> Any:
    """Return what an operator made of stored elements as a stored tensor; what it copied is laid down when wanted."""
    weights = _laying.get()
    if weights is not None and weights.place_of(tensor) is None and tensor.is_contiguous():
        tensor = weights.lay(tensor)
    return kind(tensor)
