"""All layers of a graph that may get fewer bits, found once for everything that plans with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxopt.graph.convs import Convolution, find_convs
from onnxopt.graph.linears import Linear, Table, find_linears, find_tables


@dataclass(frozen=True)
class Layers:
    """The layers of the main graph of one model, in order.

    Attributes:
        model: the graph; it must not change while its layers are in use.
        convs: its convolutions.
        linears: its products with a constant matrix.
        tables: its lookups in a constant matrix.
    """

    model: ir.Model
    convs: tuple[Convolution, ...]
    linears: tuple[Linear, ...]
    tables: tuple[Table, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Layers:
        """Find the layers of a graph."""
        return cls(model, tuple(find_convs(model)), tuple(find_linears(model)), tuple(find_tables(model)))

    @property
    def labels(self) -> list[str]:
        """The labels of what computes: convolutions, then linear layers."""
        return [*(conv.label for conv in self.convs), *(linear.label for linear in self.linears)]

    @property
    def is_convolutional(self) -> bool:
        """Whether the model is a network of convolutions, and not a transformer with a stem of one."""
        return len(self.convs) > len(self.linears)

    def without(self, labels: Collection[str]) -> Layers:
        """Return the same without the convolutions and linear layers that have these labels."""
        return replace(
            self,
            convs=tuple(one for one in self.convs if one.label not in labels),
            linears=tuple(one for one in self.linears if one.label not in labels),
        )

    def label_by_node(self) -> dict[str, str]:
        """Return the label of each layer by the name under which a ledger has it."""
        roots = [(one.root, one.label) for one in self.linears] + [(one.root, one.label) for one in self.convs]
        roots += [(one.node, one.label) for one in self.tables]
        return {node.name or node.op_type: label for node, label in roots}
