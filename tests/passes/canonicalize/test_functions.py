import time

from tests.support.rules import parse, pass_of, run_passes

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


def test_many_calls_of_one_function_get_names_of_their_own_in_time_that_grows_with_them() -> None:
    body = " ".join(f"v{i} = com.microsoft.Twice({'x' if i == 0 else f'v{i - 1}'})" for i in range(3000))
    text = CALLS.replace("a = com.microsoft.Twice(x)\n  y = com.microsoft.Block(a)", f"{body} y = Relu(v2999)")
    model = parse(text)
    del model.functions[("com.microsoft", "Block", "")]
    began = time.perf_counter()
    assert pass_of("inline-functions").run(model) == 1
    assert time.perf_counter() - began < 10  # 20 s where each name is looked for from the first on
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names)) == 3001
    nodes = [node.name for node in model.graph if node.op_type == "Add"]
    assert len(set(nodes)) == 3000
