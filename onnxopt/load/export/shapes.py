"""Ask a network what it gives, where shapes and types are all that is looked at: of a large one no weight is read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from onnxopt.load.checkpoint.mapped import MappedWeights
from onnxopt.load.export.references import stand_ins

Given = TypeVar("Given")

logger = logging.getLogger(__name__)


def shapes_alone(network: Any, weights: MappedWeights | None, ask: Callable[[], Given]) -> Given:
    """Return what running a network gives; the numbers in it mean nothing where its weights lie in files.

    Such a network is run on tensors without elements. One whose way hangs on its numbers does not run so, and is run
    as it is.

    Args:
        network: torch module.
        weights: where its parameters lie; None where they are in memory, which is run as it is.
        ask: runs it.

    Raises:
        Exception: whatever the network raises where it is run as it is.
    """
    import torch
    from torch._subclasses import FakeTensorMode

    if weights is not None:
        try:
            plain, fake = stand_ins(network, weights, real=False), FakeTensorMode(allow_non_fake_inputs=True)
            with unchanged(network), plain, torch.no_grad(), fake:
                return ask()
        except Exception as error:  # noqa: BLE001  whatever torch raises, there is the other way
            logger.info("the network is run for its shapes, since it does not run without numbers: %s", error)
    with torch.inference_mode():
        return ask()


@contextlib.contextmanager
def unchanged(network: Any) -> Iterator[None]:
    """Put back in the end what modules of a network have kept of a run: tables of positions, buffers, counts."""
    before = [(module, dict(module.__dict__), dict(module._buffers)) for module in network.modules()]  # noqa: SLF001
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()  # noqa: SLF001  what is registered there has no other door
            module._buffers.update(buffers)  # noqa: SLF001  the same
