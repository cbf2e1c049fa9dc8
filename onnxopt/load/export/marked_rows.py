"""Classifiers that read a text at its end mark: the same answer, in a form whose shapes do not hang on the ids.

The classifiers of BART's and T5's kin give the whole text to the encoder and, moved by one, to the decoder, and read
the decoder's state at the last end mark of a row. They write that as `states[ids == end, :].view(rows, -1, width)`,
after a look whether all rows have the same number of marks: a shape that hangs on values, which no exporter follows.
Where all rows have as many marks, which transformers asks for, the last one of each row is all that is read of it. So
while a network is tried and traced, that indexing gives the state at the last mark of each row; the reference in torch
runs as transformers wrote it, and the proof compares both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from onnxopt.errors import said
from onnxopt.host.quiet import quiet

_ROWS, _TOKENS = 2, 3  # of a trial run


@functools.cache
def _mode() -> Any:
    """Return the class whose instances, entered, read marked rows in a form that can be traced."""
    import torch
    from torch.overrides import TorchFunctionMode

    class LastMarks(TorchFunctionMode):
        """What stands where a mask of a row is true for the last time."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.__getitem__ and _picks_tokens(*args):
                states, (mask, _) = args
                places = torch.arange(mask.shape[1], device=mask.device)
                last = (places * mask.to(places.dtype)).argmax(dim=1)
                return states.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
            if func is torch.unique_consecutive:  # of how many marks each row has: as many as the first
                return args[0][:1]
            return func(*args, **(kwargs or {}))

    return LastMarks


def _picks_tokens(states: Any, index: Any) -> bool:
    """Tell whether `states[index]` takes whole vectors of [rows, tokens, width] where a mask [rows, tokens] says."""
    import torch

    if not (isinstance(index, tuple) and len(index) == 2 and isinstance(index[0], torch.Tensor)):
        return False
    mask, rest = index
    return bool(mask.dtype == torch.bool and mask.ndim == 2 and states.ndim == 3 and rest == slice(None))


def read_at_marks(network: Any) -> None:
    """Let a network read marked rows in the form that can be traced, but where `as_written` says otherwise.

    Args:
        network: transformers' module; its `forward` keeps its signature.
    """
    plain = network.forward

    @functools.wraps(plain)
    def forward(*arguments: Any, **named: Any) -> Any:
        if getattr(network, _AS_WRITTEN, False):
            return plain(*arguments, **named)
        with _mode()():
            return plain(*arguments, **named)

    network.forward = forward


_AS_WRITTEN = "onnxopt_as_written"


@contextlib.contextmanager
def as_written(network: Any) -> Iterator[None]:
    """While it lasts, a network runs as transformers wrote it.

    Args:
        network: any module.
    """
    setattr(network, _AS_WRITTEN, True)
    try:
        yield
    finally:
        setattr(network, _AS_WRITTEN, False)


def runs_alone(network: Any) -> str:
    """Return why an encoder-decoder does not run on one text alone, in its own words; empty where it does.

    Args:
        network: transformers' module, after `read_at_marks`.
    """
    import torch

    ids = torch.ones(_ROWS, _TOKENS, dtype=torch.int64)
    try:
        with torch.inference_mode(), quiet():
            network(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    except Exception as error:  # noqa: BLE001  whatever a model raises, it says no
        return said(error)
    return ""


def end_of(network: Any, config: Any) -> int | None:
    """Return the id without which a network takes no row, found by trying; None where it takes rows of any ids.

    Args:
        network: transformers' module.
        config: its config; `eos_token_id` is the id that is tried.
    """
    import torch

    end = getattr(config, "eos_token_id", None)
    if not isinstance(end, int):
        return None
    other = next(one for one in range(3) if one not in (end, getattr(config, "pad_token_id", None)))
    ids = torch.full((_ROWS, _TOKENS), other, dtype=torch.int64)
    if _takes(network, ids):
        return None
    ids[:, -1] = end
    return end if _takes(network, ids) else None


def _takes(network: Any, ids: Any) -> bool:
    import torch

    try:
        with torch.inference_mode(), quiet(), as_written(network):
            network(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    except Exception:  # noqa: BLE001  whatever a model raises, it says no
        return False
    return True
