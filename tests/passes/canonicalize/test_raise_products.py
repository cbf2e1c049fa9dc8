"""Products in the runtime's own kernels become ONNX's operators again.

Covers: passes/words/contrib.py
"""

import numpy as np
import pytest

from tests.support.refusals import refusal
from tests.support.rules import run_passes

GENERATOR = np.random.default_rng(7)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("flips", ["", "transA = 1", "transB = 1", "transA = 1, transB = 1"])
def test_reads_a_scaled_product_of_transposed_operands(flips: str, alpha: float) -> None:
    left = "batch,3,4,sequence" if "transA" in flips else "batch,3,sequence,4"
    right = "batch,3,sequence,4" if "transB" in flips else "batch,3,4,sequence"
    attributes = ", ".join([f"alpha = {alpha}", *([flips] if flips else [])])
    text = f"""
    g (float[{left}] a, float[{right}] b) => (float[batch,3,sequence,sequence] y) {{
      y = com.microsoft.FusedMatMul<{attributes}>(a, b)
    }}"""
    outcome = run_passes(text, "raise-fused-matmul", "raise-fused-matmul")
    expected = [*["Transpose"] * flips.count("trans"), "MatMul", *(["Mul"] if alpha != 1.0 else [])]
    assert outcome.ops == expected
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error_at(2, 5) < 1e-5


BATCHES = {
    "transBatchA = 1": ("sequence,batch,3,4", "batch,3,4,sequence"),
    "transBatchB = 1": ("batch,3,sequence,4", "4,batch,3,sequence"),
    "transBatchA = 1, transBatchB = 1": ("sequence,batch,3,4", "4,batch,3,sequence"),
    "transA = 1, transBatchA = 1": ("4,batch,3,sequence", "batch,3,4,sequence"),
    "transA = 1, transBatchA = 1, transB = 1, transBatchB = 1": ("4,batch,3,sequence", "sequence,batch,3,4"),
}


@pytest.mark.parametrize(("attributes", "shapes"), BATCHES.items(), ids=BATCHES.keys())
def test_moves_the_batch_axes_first(attributes: str, shapes: tuple[str, str]) -> None:
    text = f"""
    g (float[{shapes[0]}] a, float[{shapes[1]}] b) => (float[batch,3,sequence,sequence] y) {{
      y = com.microsoft.FusedMatMul<{attributes}>(a, b)
    }}"""
    outcome = run_passes(text, "raise-fused-matmul")
    assert outcome.rolled_back == []
    assert not [name for name in outcome.ops if ":" in name]
    assert outcome.worst_error() < 1e-5


def test_knows_the_older_name() -> None:
    text = """
    g (float[batch,4,sequence] a, float[batch,4,3] b) => (float[batch,sequence,3] y) {
      y = com.microsoft.TransposeMatMul<transA = 1>(a, b)
    }"""
    outcome = run_passes(text, "raise-fused-matmul")
    assert outcome.ops == ["Transpose", "MatMul"]
    assert outcome.worst_error() < 1e-5


ACTIVATIONS = {
    "relu": ('activation = "Relu"', ["Relu"]),
    "tanh": ('activation = "Tanh"', ["Tanh"]),
    "sigmoid": ('activation = "Sigmoid"', ["Sigmoid"]),
    "leaky": ('activation = "LeakyRelu", activation_alpha = 0.2', ["LeakyRelu"]),
    "hard": ('activation = "HardSigmoid", activation_alpha = 0.3, activation_beta = 0.4', ["HardSigmoid"]),
}


@pytest.mark.parametrize(("activation", "expected"), ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_reads_a_gemm_with_its_activation(activation: str, expected: list[str]) -> None:
    attributes = ", ".join(part for part in ("alpha = 0.5, transB = 1", activation) if part)
    text = f"""
    g (float[rows,4] x) => (float[rows,3] y) {{ y = com.microsoft.FusedGemm<{attributes}>(x, w, b) }}"""
    weights = {
        name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in (("w", (3, 4)), ("b", (3,)))
    }
    outcome = run_passes(text, "raise-fused-gemm", "raise-fused-gemm", weights=weights)
    assert outcome.ops == ["Gemm", *expected]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 1e-5


CONVOLUTIONS = {
    "relu": ('activation = "Relu"', ["Relu"]),
    "leaky": ('activation = "LeakyRelu", activation_params = [0.2]', ["LeakyRelu"]),
    "clip": ('activation = "Clip", activation_params = [-0.5, 0.5]', ["Clip"]),
    "hard": ('activation = "HardSigmoid", activation_params = [0.3, 0.4]', ["HardSigmoid"]),
}


@pytest.mark.parametrize(("activation", "expected"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("inputs", ["x, w", "x, w, b", "x, w, b, x"])
@pytest.mark.parametrize("opset", [10, 22])
def test_reads_a_convolution_with_its_sum_and_activation(
    inputs: str, activation: str, expected: list[str], opset: int
) -> None:
    attributes = f"kernel_shape = [3, 3], pads = [1, 1, 1, 1], {activation}"
    text = f"""
    g (float[batch,4,6,6] x) => (float[batch,4,6,6] y) {{ y = com.microsoft.FusedConv<{attributes}>({inputs}) }}"""
    shapes = {"w": (4, 4, 3, 3), "b": (4,)}
    weights = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outcome = run_passes(text, "raise-fused-conv", "raise-fused-conv", weights=weights, opset=opset)
    assert outcome.ops == ["Conv", *(["Add"] if inputs.endswith("x") else []), *expected]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.worst_error() < 1e-5


def test_holds_back_on_an_activation_that_onnx_does_not_have() -> None:
    gemm = """
    g (float[rows,4] x) => (float[rows,3] y) { y = com.microsoft.FusedGemm<activation = "Affine">(x, w) }"""
    conv = """
    g (float[batch,4,6,6] x) => (float[batch,3,6,6] y) { y = com.microsoft.FusedConv<activation = "Affine">(x, w) }"""
    for text, name, shape in ((gemm, "raise-fused-gemm", (4, 3)), (conv, "raise-fused-conv", (3, 4, 1, 1))):
        found = refusal(text, name, {"w": np.ones(shape, np.float32)})
        assert found == "the activation Affine has no standard operator"


def test_holds_back_when_a_transposed_operand_is_a_vector() -> None:
    text = "g (float[4] a, float[4,4] b) => (float[4] y) { y = com.microsoft.FusedMatMul<transA = 1>(a, b) }"
    assert refusal(text, "raise-fused-matmul") == "A is transposed, its rank is not known"
