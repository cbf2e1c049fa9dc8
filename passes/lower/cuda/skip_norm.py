"""Let the normalization add the residual and the bias in front of it.

Before::

    x ─ Add(b) ─ Add(h) ─ LayerNormalization(γ, β) ─ y
                    └─ z

After::

    x, h ─ com.microsoft.SkipLayerNormalization(γ, β, b) ─ y, z

Meets: residuals of post-norm and pre-norm blocks, with LayerNormalization and RMSNormalization, on CUDA. The sum may
    have other readers, as in every pre-norm block: the kernel gives it too.
Numerics: reassociated.
Source: ONNX Runtime contrib operators SkipLayerNormalization and SkipSimplifiedLayerNormalization. On CUDA they replace
    three passes over memory by one; on the CPU the same kernel is several times slower than its parts. In fp16 it
    accumulates in half precision unless `enable_skip_layer_norm_strict_mode` is set (onnxruntime issue 17689).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import CONTRIB, PASS_KEY, attribute, is_constant, is_op, rank, remove_dead
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.sizes.derive import same_shape
from onnxopt.spec import Reassociated

KERNELS = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}
_SUM = 3  # which output of the kernel is the sum
_EPSILON = 1e-5  # of the standard operators, when they do not say


@register
class LowerSkipNorm(Pass):
    """Norm(x + b + h)  →  com.microsoft.SkipLayerNormalization(x, h, b)."""

    name = "lower-skip-norm"
    numerics = Reassociated(rtol=1e-4, atol=1e-5)  # of the whole: tens of them in a deep model

    def run(self, model: ir.Model) -> int:
        """Merge every residual into the normalization behind it; returns how many."""
        return sum(_merge(node) for node in list(model.graph) if node.graph is not None and node.op_type in KERNELS)


def _merge(norm: ir.Node) -> int:
    total = norm.inputs[0]
    add = total.producer() if total is not None else None
    if norm.domain or total is None or add is None or not is_op(add, "Add") or add.graph is not norm.graph:
        return 0
    first, second = add.inputs
    if first is None or second is None or not _fits(norm, total, first, second):
        return 0
    branch, residual, bias = _split(first, second)
    inputs = [branch, residual, norm.inputs[1]]
    if norm.op_type == "LayerNormalization":
        inputs.append(norm.inputs[2] if len(norm.inputs) > 2 else None)
    inputs.append(bias)
    while inputs[-1] is None:
        inputs.pop()
    epsilon = attribute(norm, "epsilon")
    shared = total.is_graph_output() or len(total.uses()) > 1
    kernel = ir.node(
        KERNELS[norm.op_type],
        inputs,
        {"epsilon": _EPSILON if epsilon is None else epsilon},
        domain=CONTRIB,
        num_outputs=_SUM + 1 if shared else 1,
        name=f"{norm.name}/{LowerSkipNorm.name}",
    )
    kernel.metadata_props[PASS_KEY] = LowerSkipNorm.name
    # where the sum was made: others may read it before the normalization's place
    add.graph.insert_before(add, [kernel])  # type: ignore[union-attr]  # looked at above
    _take_over(norm.outputs[0], kernel.outputs[0])
    if shared:
        for value in kernel.outputs[1:_SUM]:
            value.name = ""
        _take_over(total, kernel.outputs[_SUM])
    remove_dead([norm, add])
    return 1


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Put a value in another's place, under its name."""
    name, kind, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    new.name, new.type, new.shape = name, kind, shape


def _fits(norm: ir.Node, total: ir.Value, first: ir.Value, second: ir.Value) -> bool:
    """Tell whether the kernel knows this: float32, the last of two or three axes, summands of one shape."""
    axis, axes = attribute(norm, "axis"), rank(total)
    if total.dtype != ir.DataType.FLOAT or axes not in (2, 3):
        return False
    if (-1 if axis is None else axis) not in (-1, axes - 1):
        return False
    scales = [value for value in norm.inputs[1:] if value is not None]
    if not all(is_constant(value) and rank(value) == 1 for value in scales):
        return False
    return same_shape(first, total) and same_shape(second, total)


def _split(first: ir.Value, second: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Return branch, residual and the bias of one of them, where it has a constant one that nobody else adds."""
    for value, other in ((first, second), (second, first)):
        add = value.producer()
        if add is None or not is_op(add, "Add") or len(value.uses()) != 1 or value.is_graph_output():
            continue
        for index in (0, 1):
            bias, branch = add.inputs[index], add.inputs[1 - index]
            if bias is None or branch is None or not is_constant(bias) or rank(bias) != 1:
                continue
            if same_shape(branch, value):
                return branch, other, bias
    return first, second, None
