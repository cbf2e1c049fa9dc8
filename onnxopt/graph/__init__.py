"""Questions about a graph, without running it.

The words that nearly every pass needs can be had here; what answers one question alone has a module of its own.
"""

from onnxopt.graph.nodes import (
    CONTRIB,
    PASS_KEY,
    SMALL_CONSTANT_BYTES,
    STANDARD_DOMAINS,
    all_nodes,
    attribute,
    in_groups,
    initializer_bytes,
    is_op,
    op_counts,
    opset,
    opset_of,
    remove_dead,
    unknown_in,
)
from onnxopt.graph.regions import Detached, Region, ancestors, detach, has_few_ancestors, has_subgraph, region
from onnxopt.graph.values import (
    Dim,
    constant,
    constant_value,
    dims,
    integers,
    is_constant,
    known_dims,
    number,
    rank,
    tensor_shape,
)

__all__ = [
    "CONTRIB",
    "PASS_KEY",
    "SMALL_CONSTANT_BYTES",
    "STANDARD_DOMAINS",
    "Detached",
    "Dim",
    "Region",
    "all_nodes",
    "ancestors",
    "attribute",
    "constant",
    "constant_value",
    "detach",
    "dims",
    "has_few_ancestors",
    "has_subgraph",
    "in_groups",
    "initializer_bytes",
    "integers",
    "is_constant",
    "is_op",
    "known_dims",
    "number",
    "op_counts",
    "opset",
    "opset_of",
    "rank",
    "region",
    "remove_dead",
    "tensor_shape",
    "unknown_in",
]
