"""The passes of each stage, in their order."""

from __future__ import annotations

from onnxopt.qmath.precision import Plan
from onnxopt.rewrite import Rewrite
from onnxopt.rewrite.registry import get
from onnxopt.spec import Provider, Target

TIDY = ("merge-initializers", "merge-equal-nodes", "remove-unused")
CANONICALIZE = (
    "inline-functions",
    "lift-constants",
    "raise-gelu",
    "raise-quick-gelu",
    "raise-skip-layer-norm",
    "raise-skip-rms-norm",
    "raise-rms-norm",
    "raise-layer-norm",
    "raise-embed-layer-norm",
    "raise-fused-matmul",
    "raise-fused-gemm",
    "raise-fused-conv",
    "raise-attention",
    "raise-multi-head-attention",
    "raise-group-query-attention",
    "raise-rotary-embedding",
    "raise-global-average-pool",
    "raise-mean",
    "fold-constants",
    "remove-no-ops",
    "split-sequence",
    "split-packed-heads",
    "remove-expand",
    "order-operands",
    "drop-leading-axes",
    "flatten-weight",
    "merge-initializers",
    "merge-equal-nodes",
    "make-reshape-static",
    "read-dimension",
    "read-known-dimension",
    "read-dimension-from-input",
    "unfold-batch",
    "unfold-transpose",
    "merge-transposes",
    "merge-squeezes",
    "merge-reshapes",
    "slice-position-table",
    "fold-constants",
    *TIDY,
)
FUSE = (
    "compute-before-squeeze",
    "fold-conv-mul",
    "fold-conv-add",
    "fold-batch-norm",
    "fold-conv-mul",
    "fold-conv-add",
    "fuse-one-hot",
    "fuse-softmax",
    "fuse-gelu",
    "fuse-gelu-tanh",
    "fuse-silu",
    "fuse-hard-swish",
    "fold-shift-before-conv",
    "fold-scale-before-conv",
    "fold-shift-before-conv",
    "fuse-layer-norm",
    "fuse-layer-norm-bias",
    "fuse-rms-norm",
    "fuse-group-norm",
    "fuse-linear",
    "store-weight-untransposed",
    "fuse-attention",
    "read-dimension-from-input",
    "fuse-grouped-heads",
    "fuse-rotary",
    "fuse-cache",
    "fuse-padding-mask",
    "fuse-attention-heads",
    "trim-rows",
    "pack-qkv",
    "fuse-mean-pooling",
    *TIDY,
)
# What takes out of the weights what `onnxopt.prune` has set to zero on the fused graph.
PRUNE = ("drop-dead-channels",)
# What carries out a plan of int8 with a scale per column; `onnxopt.quantize` decides it on the fused graph.
COLUMNS = ("quantize-conv", "quantize-between", "quantize-static", "quantize-dynamic", "sum-tokens-in-order")
ON_GRIDS = ("drop-requantize", *TIDY)  # behind them
# What stores and computes a lowered graph in 16 bits; `onnxopt.quantize.narrowing` decides what of it.
HALF = ("half-precision",)
# Behind the passes that lower: with these the answer depends on the last bit of an activation.
WEIGHTS_ONLY: dict[Provider, tuple[str, ...]] = {
    "cpu": ("quantize-weights-4", "quantize-weights-8", "quantize-embedding"),
    "portable": ("quantize-weights-4-portable", "quantize-weights-8-portable"),
    "cuda": (),
    "tensorrt": (),
}
# The attention of a decoder with its cache, the choice of the last token where rows are not packed by that, and what is
# left over around them.
CACHED_ATTENTION = (
    "lower-cached-attention",
    "lower-last-token",
    "merge-transposes",
    "remove-no-ops",
    "merge-reshapes",
    "remove-no-ops",
    "remove-unused",
)
# CUDA gets the runtime's own operators where they save passes over memory, which the CPU would rather keep apart.
# TensorRT takes standard operators only: every other one would cut its engine in two.
LOWER: dict[Provider, tuple[str, ...]] = {
    "cpu": (
        "lower-quantized-conv",
        "lower-quantized-between",
        "lower-quantized-linear",
        "lower-dynamic-linear",
        *CACHED_ATTENTION,
        "pack-cached-qkv",
        "lower-attention",
        "lower-token-attention",
        "lower-group-norm",
        "lower-conv-1d",
        "compute-before-squeeze",
        "merge-squeezes",
        "lower-gelu",
        "lower-silu",
        "lower-linear",
        "merge-initializers",
        "merge-equal-nodes",
        "flatten-tokens",
        "lower-norm",
        "fold-residual",
        "lower-normalize",
        "drop-scale-before-normalize",
        "read-dimension-from-input",
        *TIDY,
    ),
    "portable": ("lower-last-token", "lower-group-norm", *TIDY),
    "cuda": (
        *CACHED_ATTENTION,
        "pack-cached-qkv",
        "lower-attention",
        "lower-group-norm",
        "lower-silu",
        "spread-linear",
        "lower-bias-gelu",
        "lower-skip-norm",
        "lower-embed-norm",
        "pack-rows",
        "lower-rms-norm",
        "read-dimension-from-input",
        *TIDY,
    ),
    "tensorrt": ("lower-last-token", "lower-group-norm", *TIDY),
}
# For the prompts of a decoder in int8: its attention first, each projection apart, as the plan has them, then grids.
BEFORE_GRIDS = (
    *CACHED_ATTENTION,
    "lower-silu",
    *TIDY,
)
# What tidies up again behind a change of the opset, in bodies before anything is fused there.
AGAIN = ("lift-constants", "fold-constants", *TIDY)
# The other lowering for the CPU: on real tokens only. It pays when a batch has enough padding.
WITHOUT_PADDING = (
    "lower-quantized-linear",
    "lower-dynamic-linear",
    "remove-padding",
    "fuse-linear",
    "lower-gelu",
    "lower-silu",
    "merge-initializers",
    "merge-equal-nodes",
    "lower-norm",
    "fold-residual",
    "lower-normalize",
    "drop-scale-before-normalize",
    "read-dimension-from-input",
    "merge-initializers",
    "merge-equal-nodes",
    "remove-unused",
)


def passes_of(target: Target) -> dict[str, tuple[str, ...]]:
    """Return the pass names of a target by stage, in order."""
    return {"canonicalize": CANONICALIZE, "fuse": FUSE, "lower": LOWER[target.provider]}


def carrying_out(plan: Plan, target: Target) -> list[Rewrite]:
    """Return the passes that carry out a plan."""
    return [get(name, plan) for name in (*COLUMNS, *WEIGHTS_ONLY[target.provider])]
