import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.spec import Array
from tests.support.rules import Outcome, names_read, run_passes

START = (
    "s = Shape<start=0, end=2>(x) shape = Concat<axis=0>(s, four)"
    " flat = Reshape(x, rows) g0 = Gemm(flat, w, b) t = Reshape(g0, shape)"
)
END = "f2 = Reshape(z, rows) g2 = Gemm(f2, w, b) y = Reshape(g2, shape)"


def weights() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        "w": generator.standard_normal((4, 4)).astype(np.float32),
        "b": generator.standard_normal(4).astype(np.float32),
        "gamma": generator.standard_normal(4).astype(np.float32),
        "beta": generator.standard_normal(4).astype(np.float32),
        "scalar": np.array(1.5, np.float32),
        "table": generator.standard_normal((1, 7, 4)).astype(np.float32),
        "rows": np.array([-1, 4]),
        "narrow": np.array([-1, 2]),
        "four": np.array([4]),
    }


def run(
    nodes: str, *steps: str, start: str = START, end: str = END, more: str = "", outputs: str = "float y"
) -> Outcome:
    text = f"g (float[batch,sequence,4] x{more}) => ({outputs}) {{ {start} {nodes} {end} }}"
    used = {n: array for n, array in weights().items() if f" {n})" in text or f" {n}," in text or f"({n}," in text}
    return run_passes(text, *(steps or ("flatten-tokens",)), weights=used)


ON_ROWS = {
    "Relu": "z = Relu(t)",
    "Gelu": "z = Gelu(t)",
    "FastGelu": "z = com.microsoft.FastGelu(t)",
    "FastGelu with a bias": "z = com.microsoft.FastGelu(t, beta)",
    "LeakyRelu": "z = LeakyRelu<alpha=0.3>(t)",
    "LayerNormalization": "z = LayerNormalization(t, gamma, beta)",
    "LayerNormalization on axis 2": "z = LayerNormalization<axis=2, epsilon=0.25>(t, gamma, beta)",
    "RMSNormalization": "z = RMSNormalization<axis=2>(t, gamma)",
    "Softmax": "z = Softmax(t)",
    "Softmax on axis 2": "z = Softmax<axis=2>(t)",
    "a constant vector": "z = Add(t, beta)",
    "a constant vector in front": "z = Sub(beta, t)",
    "a constant number": "z = Mul(t, scalar)",
    "itself": "z = Mul(t, t)",
    "a chain": "i = Relu(t) j = Add(i, t) k = LayerNormalization(j, gamma, beta) z = Tanh(k)",
}


@pytest.mark.parametrize("nodes", ON_ROWS.values(), ids=ON_ROWS.keys())
def test_works_on_rows_between_two_products(nodes: str) -> None:
    outcome = run(nodes, "flatten-tokens", "flatten-tokens", "remove-unused")
    assert outcome.rolled_back == []
    assert outcome.ops.count("Reshape") == 2
    assert outcome.ops[-1] == "Reshape"
    assert outcome.entries[0].applied > 0
    assert outcome.entries[1].applied == 0
    assert outcome.worst_error() == 0
    for batch, sequence in ((1, 1), (1, 9), (4, 2)):
        assert outcome.worst_error_at(batch, sequence) == 0


def test_a_residual_of_tokens_becomes_rows() -> None:
    outcome = run("z = Add(t, x)", "flatten-tokens", "flatten-tokens", "remove-unused")
    assert outcome.rolled_back == []
    assert outcome.ops.count("Reshape") == 2
    assert [entry.applied for entry in outcome.entries[:2]] == [2, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_another_input_is_flattened_once_for_all_its_readers() -> None:
    outcome = run("i = Add(t, o) z = Mul(i, o)", "flatten-tokens", "remove-unused", more=", float[batch,sequence,4] o")
    flattened = [n for n in outcome.model.graph if n.op_type == "Reshape" and names_read(n)[0] == "o"]
    assert len(flattened) == 1
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(3, 1) == 0


def test_rows_that_are_made_later_are_not_read_earlier() -> None:
    """The Reshape of o that stands behind the sum must not become an input of the sum."""
    nodes = "z = Add(t, o) later = Reshape(o, rows) q = Relu(later)"
    outcome = run(nodes, more=", float[batch,sequence,4] o", outputs="float y, float q")
    seen: set[ir.Value] = {*outcome.model.graph.inputs, *outcome.model.graph.initializers.values()}
    for node in outcome.model.graph:
        assert all(value in seen for value in node.inputs if value is not None), node.name
        seen.update(node.outputs)
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_a_result_of_tokens_keeps_its_name_and_shape() -> None:
    outcome = run("y = Relu(t)", end="")
    assert outcome.ops[-2:] == ["Relu", "Reshape"]
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_softmax_over_the_tokens_stays() -> None:
    outcome = run("z = Softmax<axis=1>(t)")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.ops.count("Reshape") == 4
    assert outcome.worst_error() == 0


def test_a_column_stays() -> None:
    outcome = run("z = Sub(t, c)", more=", float[batch,sequence,1] c")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.worst_error() == 0


def test_one_vector_per_position_stays() -> None:
    outcome = run("z = Add(t, p)", more=", float[1,sequence,4] p")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])


def test_a_norm_over_two_axes_stays() -> None:
    start = START.replace("s = Shape<start=0, end=2>(x) shape = Concat<axis=0>(s, four)", "shape = Identity(fixed)")
    text = f"g (float[batch,2,4] x) => (float y) {{ {start} z = LayerNormalization<axis=1>(t, plane) {END} }}"
    used = {n: weights()[n] for n in ("w", "b", "rows")}
    plane = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    outcome = run_passes(text, "flatten-tokens", weights={**used, "plane": plane, "fixed": np.array([-1, 2, 4])})
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.worst_error() == 0


def test_a_norm_with_a_computed_gamma_stays() -> None:
    outcome = run("z = LayerNormalization(t, given)", more=", float[4] given")
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])


def test_a_reshape_into_rows_of_another_width_stays() -> None:
    nodes = "i = Relu(t) z = Reshape(i, narrow)"
    outcome = run(nodes, end="y = Neg(z)")
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(2, 3) == 0


def test_a_reshape_that_restores_nothing_stays() -> None:
    """[rows, 8] into [rows, 2, 4] cuts the features; a norm over 4 of them is not one over 8."""
    text = "g (float[rows,8] x) => (float y) { t = Reshape(x, cut) z = LayerNormalization(t, gamma) y = Neg(z) }"
    outcome = run_passes(text, "flatten-tokens", weights={"cut": np.array([-1, 2, 4]), "gamma": weights()["gamma"]})
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])
    assert outcome.worst_error() == 0


def test_rows_that_are_an_output_keep_their_reshape() -> None:
    outcome = run("", end="y = Reshape(t, rows)")
    assert outcome.rolled_back == []
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert outcome.worst_error() == 0


def of_rank(rank: int) -> Array:
    return np.arange(1.0, 5.0, dtype=np.float32).reshape((1,) * (rank - 1) + (4,))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "nodes", ["z = LayerNormalization(t, wide)", "z = RMSNormalization(t, wide)", "z = Add(t, wide)"]
)
def test_a_constant_of_the_last_axis_may_have_a_leading_one(nodes: str, rank: int) -> None:
    """Three axes have no place beside a matrix."""
    text = f"g (float[batch,sequence,4] x) => (float y) {{ {START} {nodes} {END} }}"
    used = {n: array for n, array in weights().items() if f" {n})" in text or f" {n}," in text}
    outcome = run_passes(text, "flatten-tokens", weights={**used, "wide": of_rank(rank)})
    assert outcome.rolled_back == []
    assert (outcome.entry.applied > 0) == (rank < 3)
    assert outcome.worst_error_at(3, 5) < 1e-5


def test_a_constant_with_numbers_of_its_own_for_rows_stays_where_it_is() -> None:
    text = "g (float[batch,2,4] x) => (float y) { f = Reshape(x, rows) g = Gemm(f, w, b) t = Reshape(g, three)"
    text += " y = LayerNormalization(t, wide) }"
    used = {name: weights()[name] for name in ("rows", "w", "b")}
    used |= {"three": np.array([-1, 2, 4]), "wide": np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)}
    outcome = run_passes(text, "flatten-tokens", weights=used)
    assert (outcome.entry.applied, outcome.rolled_back) == (0, [])


def test_axes_that_are_0_long_stay_so() -> None:
    """A Reshape would take the 0 of a shape that is read from an input for "as it was"."""
    text = "g (float[batch,sequence,4] x) => (float y) { p = MatMul(x, w) t = Add(p, b) y = Relu(t) }"
    outcome = run_passes(text, "lower-linear", "flatten-tokens", weights={n: weights()[n] for n in ("w", "b")})
    assert [entry.applied > 0 for entry in outcome.entries] == [True, True]
    for batch, sequence in ((3, 0), (0, 5), (0, 0), (3, 5)):
        assert outcome.worst_error_at(batch, sequence) < 1e-5
