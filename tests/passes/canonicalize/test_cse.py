import onnx
import onnx.parser
import onnx_ir as ir

from tests.support.rules import names_read, pass_of, run_passes


def test_merges_what_is_computed_twice_and_what_that_makes_equal() -> None:
    text = """
    g (int64[batch,sequence] mask, float[batch,sequence] x) => (float[batch,sequence] y) {
      a = Cast<to=1>(mask)
      b = Cast<to=1>(mask)
      c = Mul(x, a)
      d = Mul(x, b)
      y = Add(c, d)
    }"""
    outcome = run_passes(text, "merge-equal-nodes", "merge-equal-nodes")
    assert outcome.ops == ["Cast", "Mul", "Add"]
    assert [entry.applied for entry in outcome.entries] == [2, 0]
    assert outcome.worst_error() == 0
    assert outcome.worst_error_at(1, 1) == 0


def test_keeps_nodes_that_differ_in_an_attribute_or_an_input() -> None:
    text = """
    g (float[batch,4] x, float[batch,4] z) => (float[batch,4] y) {
      a = LeakyRelu<alpha=0.1>(x)
      b = LeakyRelu<alpha=0.2>(x)
      c = LeakyRelu<alpha=0.1>(z)
      y = Sum(a, b, c)
    }"""
    outcome = run_passes(text, "merge-equal-nodes")
    assert outcome.entry.applied == 0
    assert outcome.ops.count("LeakyRelu") == 3


def test_keeps_both_names_when_two_equal_nodes_are_outputs() -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y, float[batch,4] z) { y = Relu(x) z = Relu(x) }"
    outcome = run_passes(text, "merge-equal-nodes")
    assert [value.name for value in outcome.model.graph.outputs] == ["y", "z"]
    assert outcome.rolled_back == []
    assert outcome.worst_error() == 0


def test_two_draws_of_random_numbers_stay_two() -> None:
    text = """
    g (float[batch,4] x) => (float[batch,4] y) {
      a = RandomNormalLike(x)
      b = RandomNormalLike(x)
      d = Sub(a, b)
      y = Add(d, x)
    }"""
    outcome = run_passes(text, "merge-equal-nodes", opset=21)
    assert outcome.entry.applied == 0
    assert outcome.ops.count("RandomNormalLike") == 2


def test_a_graph_with_the_type_of_an_optional_is_left_as_it_is() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch,4] x) => (float[batch,4] y, float[batch,4] z) { y = Relu(x) z = Relu(x) }"""
    )
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2])
    model.graph.node.append(onnx.helper.make_node("Optional", [], ["nothing"], type=kind))
    assert pass_of("merge-equal-nodes").run(ir.from_proto(model)) == 0


def test_many_equal_outputs_are_made_once_and_copied() -> None:
    names = [f"y{index}" for index in range(40)]
    outputs = ", ".join(f"float[batch,4] {name}" for name in names)
    nodes = " ".join(f"{name} = Relu(x)" for name in names)
    outcome = run_passes(f"g (float[batch,4] x) => ({outputs}) {{ {nodes} }}", "merge-equal-nodes")
    assert [value.name for value in outcome.model.graph.outputs] == names
    assert outcome.ops.count("Relu") == 1
    copied = {name for node in outcome.model.graph if node.op_type == "Identity" for name in names_read(node)}
    assert copied == {"y0"}, "no chain of copies"
    assert outcome.worst_error() == 0
