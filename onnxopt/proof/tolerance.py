"""Find out how far a model's own answer moves, so that a rewrite is held to no less than the model holds itself to.

A grid of 8 bits turns a rounding error into a step of the grid, and 16 bits round each result. What moves the original
by as much, ONNX Runtime's own optimizations or rounding errors in its inputs, is no fault of a rewrite. Nothing is
widened where the original stands still, and never beyond a cap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OnnxoptError
from onnxopt.graph.kept_rows import rows_that_matter
from onnxopt.load.loaded import Loaded
from onnxopt.load.reference import OrtReference
from onnxopt.qmath.compare import worst_error
from onnxopt.spec import Feeds

logger = logging.getLogger(__name__)

FACTOR = 2.0  # a rewrite moves the answer no further than twice as far as what moved it otherwise
WIDEST = 1e-2  # of the largest value of an output; beyond, an answer is another one
ROUNDING = 2.0**-22  # two units in the last place of float32, as regions are shaken
DRAWS = 4  # of rounding errors inside a graph: of one that adds up few, each moves the answer by another amount
HALF_ERRORS: Mapping[str, float] = {"FLOAT16": 4 * 2.0**-10, "BFLOAT16": 4 * 2.0**-7}  # four roundings of a result
_COMPUTES = frozenset({"MatMul", "Gemm", "Conv", "Add", "Mul", "Softmax", "LayerNormalization", "Attention"})


@dataclass(frozen=True)
class Moved:
    """How far an output of the original moved at one case.

    Attributes:
        absolute: max|moved - original|.
        why: what moved it.
    """

    absolute: float
    why: str


def moved_by_itself(
    loaded: Loaded, feeds: Feeds, expected: Feeds, enough: Mapping[str, float] | None = None
) -> dict[str, Moved]:
    """Return how far each output moves when nothing but rounding changes.

    Args:
        loaded: its reference is run otherwise: with the runtime's own optimizations and with operators that round
            otherwise where it is a file, and on inputs whose floats are moved by two roundings.
        feeds: the inputs.
        expected: what the reference gave, of those outputs that are compared.
        enough: the movement, max|moved - original|, of each output that is asked about, from which on nobody asks for
            more; then no other way is tried. None tries all.
    """
    found: dict[str, Moved] = {}
    try:
        for why, outputs in _other_ways(loaded, feeds):
            for name, array in ((one, outputs[one]) for one in outputs if one in expected):
                rows = rows_that_matter(loaded.signature, feeds, name, expected[name])
                absolute = worst_error(array, expected[name], rows)[1]
                if np.isfinite(absolute) and absolute > found.get(name, Moved(0.0, "")).absolute:
                    found[name] = Moved(absolute, why)
            if enough and all(name in found and found[name].absolute >= least for name, least in enough.items()):
                break
    except OnnxoptError as error:  # what does not run so moves nothing
        logger.debug("not all of its own movement is known: %s", error)
    return found


def _other_ways(loaded: Loaded, feeds: Feeds) -> Iterator[tuple[str, Feeds]]:
    """Yield what the reference gives where nothing but rounding is otherwise, and why it is: the cheapest first.

    Raises:
        OnnxoptError: it does not run so.
    """
    reference, shaken = loaded.reference, _shaken(feeds)
    if isinstance(reference, OrtReference):
        yield "ONNX Runtime's own optimizations", reference.run(feeds, optimized=True)
        other = reference.rounded_otherwise()
        if other is not None:
            for _ in range(DRAWS):
                yield "rounding errors of its own operators", other.run(feeds)
    if shaken is not None:
        yield "rounding errors in its inputs", reference.run(shaken)


def _shaken(feeds: Feeds) -> Feeds | None:
    """Return the inputs with every float moved by up to two roundings, None without floats."""
    if not any(array.dtype.kind == "f" for array in feeds.values()):
        return None
    generator = np.random.default_rng(0)
    return {
        name: (array * (1 + generator.uniform(-1, 1, array.shape) * ROUNDING)).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def precision_error(model: ir.Model) -> float:
    """Return the error that 16 bits themselves make in a graph that computes in them; 0 for every other graph."""
    kinds = {
        value.dtype.name
        for node in model.graph
        if node.op_type in _COMPUTES
        for value in node.outputs
        if value.dtype is not None
    }
    return max((error for kind, error in HALF_ERRORS.items() if kind in kinds), default=0.0)
