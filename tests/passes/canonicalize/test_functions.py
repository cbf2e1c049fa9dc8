from tests.support.rules import run_passes

CALLS = """
g (float[batch,4] x) => (float[batch,4] y) {
  a = com.microsoft.Twice(x)
  y = com.microsoft.Block(a)
}
<domain: "com.microsoft", opset_import: ["" : 23, "com.microsoft" : 1]>
Block (u) => (v) { w = com.microsoft.Twice(u) v = Relu(w) }
<domain: "com.microsoft", opset_import: ["" : 23]>
Twice (u) => (v) { v = Add(u, u) }"""


def test_inlines_calls_and_calls_inside_of_calls() -> None:
    outcome = run_passes(CALLS, "inline-functions", "inline-functions")
    assert outcome.ops == ["Add", "Add", "Relu"]
    assert list(outcome.model.functions) == []
    assert [entry.applied for entry in outcome.entries] == [2, 0]
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_a_model_without_functions_is_left_alone() -> None:
    outcome = run_passes("g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }", "inline-functions")
    assert (outcome.entry.applied, outcome.ops) == (0, ["Relu"])
