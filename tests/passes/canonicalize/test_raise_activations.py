import numpy as np
import pytest

from tests.support.rules import run_passes

KERNELS = {
    "com.microsoft.Gelu(x)": ("none", False),
    "com.microsoft.BiasGelu(x, bias)": ("none", True),
    "com.microsoft.FastGelu(x)": ("tanh", False),
    "com.microsoft.FastGelu(x, bias)": ("tanh", True),
}
BIAS = {"bias": np.array([0.5, -1.0, 2.0, 0.1], np.float32)}


def graph(kernel: str, kind: str = "float") -> str:
    return f"g ({kind}[batch,sequence,4] x) => ({kind}[batch,sequence,4] y) {{ y = {kernel} }}"


@pytest.mark.parametrize(("kernel", "meaning"), KERNELS.items(), ids=KERNELS.keys())
def test_reads_every_gelu_kernel_as_gelu_of_the_same_approximation(kernel: str, meaning: tuple[str, bool]) -> None:
    outcome = run_passes(graph(kernel), "raise-gelu", "raise-gelu", weights=BIAS)
    approximate, has_bias = meaning
    assert outcome.ops == (["Add", "Gelu"] if has_bias else ["Gelu"])
    assert outcome.attributes("Gelu") == {"approximate": approximate}
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    values = np.linspace(-9, 9, 36, dtype=np.float32).reshape(1, 9, 4)
    assert outcome.worst_error_at(1, 9, x=values) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("opset", [11, 17])
def test_spells_gelu_out_where_the_opset_has_none(kernel: str, opset: int) -> None:
    outcome = run_passes(graph(kernel), "raise-gelu", weights=BIAS, opset=opset)
    assert {"Erf", "Tanh"} & set(outcome.ops)
    assert not [name for name in outcome.ops if ":" in name or name == "Gelu"]
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_spelled_out_is_fused_again(kernel: str) -> None:
    weights, text = BIAS, graph(kernel)
    spelled = run_passes(text, "raise-gelu", weights=weights, opset=19).model
    spelled.graph.opset_imports[""] = 20
    outcome = run_passes(spelled, "fuse-gelu", "fuse-gelu-tanh")
    assert outcome.ops[-1] == "Gelu"


@pytest.mark.parametrize(("alpha", "products"), [("", 2), ("<alpha = 1.702>", 2), ("<alpha = 1.0>", 1)])
def test_reads_quick_gelu_as_a_gate(alpha: str, products: int) -> None:
    outcome = run_passes(graph(f"com.microsoft.QuickGelu{alpha}(x)"), "raise-quick-gelu", "raise-quick-gelu")
    assert sorted(outcome.ops) == [*["Mul"] * products, "Sigmoid"]
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error_at(2, 5) < 1e-5


def test_leaves_the_standard_gelu_alone() -> None:
    assert run_passes(graph("Gelu(x)"), "raise-gelu").entry.applied == 0
