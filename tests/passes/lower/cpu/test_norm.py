import numpy as np
import pytest

from tests.support.rules import run_passes

WEIGHTS = {"gamma": np.linspace(0.5, 2, 6, dtype=np.float32), "beta": np.linspace(-1, 1, 6, dtype=np.float32)}
INPUTS = "float[batch,sequence,6] a, float[batch,sequence,6] b, float[1,1,6] c"


def graph(nodes: str, outputs: str = "float y") -> str:
    return f"g ({INPUTS}) => ({outputs}) {{ {nodes} }}"


@pytest.mark.parametrize(
    ("nodes", "summands"),
    [
        ("s = Add(a, b) y = LayerNormalization<epsilon=0.25>(s, gamma, beta)", 2),
        ("s = Add(a, b) y = LayerNormalization<epsilon=0.25>(s, gamma)", 2),
        ("i = Add(a, b) s = Add(i, c) y = LayerNormalization<epsilon=0.25>(s, gamma, beta)", 3),
        ("i = Add(a, b) s = Add(c, i) y = LayerNormalization<epsilon=0.25>(s, gamma, beta)", 3),
    ],
)
def test_writes_the_sum_so_that_the_session_does_not_merge_it(nodes: str, summands: int) -> None:
    text = graph(nodes)
    used = {name: array for name, array in WEIGHTS.items() if name in text}
    outcome = run_passes(text, "lower-norm", "lower-norm", weights=used)
    assert outcome.ops == ["Sum", "LayerNormalization"]
    assert len(outcome.model.graph.node(0).inputs) == summands
    assert outcome.attributes("LayerNormalization") == {"axis": -1, "epsilon": 0.25, "stash_type": 1}
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_leaves_matrices_alone() -> None:
    text = (
        "g (float[batch,6] a, float[batch,6] b) => (float y) { s = Add(a, b) y = LayerNormalization(s, gamma, beta) }"
    )
    outcome = run_passes(text, "lower-norm", weights=WEIGHTS)
    assert outcome.reasons == ["not on three axes"]


def test_leaves_double_precision_alone() -> None:
    text = graph("s = Add(a, b) y = LayerNormalization(s, gamma, beta)").replace("float", "double")
    weights = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    assert run_passes(text, "lower-norm", weights=weights).reasons == ["the sum is DOUBLE"]


def test_a_sum_with_another_reader_stays_a_pair_of_nodes() -> None:
    outcome = run_passes(
        graph("s = Add(a, b) y = LayerNormalization(s, gamma, beta)", "float y, float s"), "lower-norm", weights=WEIGHTS
    )
    assert outcome.reasons == ["an inner value is also used elsewhere or is a graph output"]


def test_only_the_inner_sum_with_another_reader_stays() -> None:
    nodes = "i = Add(a, b) s = Add(i, c) y = LayerNormalization(s, gamma, beta)"
    outcome = run_passes(graph(nodes, "float y, float i"), "lower-norm", weights=WEIGHTS)
    assert outcome.ops == ["Add", "Sum", "LayerNormalization"]
    assert outcome.worst_error() == 0


def test_a_norm_whose_mean_is_read_holds_back() -> None:
    text = graph("s = Add(a, b) y, mean = LayerNormalization(s, gamma, beta)", "float y, float mean")
    outcome = run_passes(text, "lower-norm", weights=WEIGHTS)
    assert outcome.entry.applied == 0
    assert outcome.worst_error() == 0
