import numpy as np

from tests.support.rules import run_passes

TEXT = """
g (float[batch,4] x, int64[batch,sequence] ids) => (float[batch,4] y) {
  y = Relu(x)
  s = Shape(x)
  t = Cast<to=1>(s)
  u = Mul(t, left_over)
}"""


def test_removes_nodes_and_weights_that_no_output_needs_and_reports_both() -> None:
    weights = {"left_over": np.ones(2, np.float32), "never_read": np.ones(256, np.float32)}
    outcome = run_passes(TEXT, "remove-unused", "remove-unused", weights=weights)
    assert outcome.ops == ["Relu"]
    assert list(outcome.model.graph.initializers) == []
    assert [entry.applied for entry in outcome.entries] == [5, 0]
    assert outcome.entries[0].bytes_saved == 4 * 258
    assert outcome.worst_error() == 0


def test_inputs_stay_although_nothing_reads_them() -> None:
    outcome = run_passes(TEXT, "remove-unused", weights={"left_over": np.ones(2, np.float32)})
    assert [value.name for value in outcome.model.graph.inputs] == ["x", "ids"]
    assert outcome.worst_error_at(1, 1) == 0


def test_every_output_is_needed() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y, int64[2] s) { y = Relu(x) s = Shape(x) }"
    outcome = run_passes(text, "remove-unused")
    assert (outcome.entry.applied, outcome.ops) == (0, ["Relu", "Shape"])


def test_a_node_of_several_outputs_stays_when_one_of_them_is_read() -> None:
    text = "g (float[batch,4] x) => (float[batch,2] y) { a, y = Split<axis=1, num_outputs=2>(x) }"
    outcome = run_passes(text, "remove-unused")
    assert outcome.ops == ["Split"]
    assert outcome.worst_error() == 0
