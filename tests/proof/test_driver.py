"""The proof of each rewrite: a wrong pass is caught, blamed and undone; a right one stays.

Covers: proof/prepare.py, proof/repro.py, rewrite/builder.py, rewrite/match.py, rewrite/rule.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import PassAuthorError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite import Builder, Match, Pass, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.vocabulary import constant, scalar
from onnxopt.spec import Exact, Reassociated
from tests.support.rules import observe, parse, run_passes

WEIGHTS = {
    "gamma": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
}

ENCODER = """
g (float[batch,sequence,8] x, float[batch,sequence,8] z, bool[batch,1,sequence,sequence] allowed)
  => (float[batch,sequence,8] y) <float half = {0.5}, float one = {1.0}, float root = {1.4142135}> {
  d = Sub(x, z)
  n = LayerNormalization <axis = -1, epsilon = 1e-5> (d, gamma)
  g1 = Gelu (n)
  m = MatMul(g1, w)
  y = Attention <q_num_heads = 2, kv_num_heads = 2> (m, m, m, allowed)
}"""


class WrongEpsilon(Rule):
    """LayerNormalization with another ε."""

    name = "test-wrong-epsilon"
    numerics = Reassociated()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.LayerNormalization(x, constant("gamma"), epsilon=1e-5)

    def rewrite(self, op: Builder, x: ir.Value, gamma: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, gamma, axis=-1, epsilon=1e-6)


class SwappedOperands(Rule):
    """Sub with its operands swapped."""

    name = "test-swapped-operands"
    numerics = Exact()

    def patterns(self, op: Ops, a: Pat, b: Pat) -> Iterator[Pat]:
        yield op.Sub(a, b)

    def rewrite(self, op: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
        return op.Sub(b, a)


class SwappedGelu(Rule):
    """The tanh form in place of the erf form."""

    name = "test-swapped-gelu"
    numerics = Reassociated()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Gelu(x, approximate="none")

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.Gelu(x, approximate="tanh")


class DroppedMask(Rule):
    """Attention without its mask."""

    name = "test-dropped-mask"
    numerics = Reassociated(rtol=1e-4)

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, mask: Pat) -> Iterator[Pat]:
        yield op.Attention(q, k, v, mask)

    def rewrite(self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        return op.Attention(q, k, v, **{name: attr.value for name, attr in match.root.attributes.items()})


class WrongShape(Rule):
    """A replacement that does not even run."""

    name = "test-wrong-shape"
    numerics = Exact()

    def patterns(self, op: Ops, a: Pat) -> Iterator[Pat]:
        yield op.MatMul(a, constant("weight"))

    def rewrite(self, op: Builder, match: Match, a: ir.Value) -> ir.Value:
        return op.MatMul(a, op.constant(match.array("weight")[:3], "short"))


WRONG = [WrongEpsilon, SwappedOperands, SwappedGelu, DroppedMask, WrongShape]


@pytest.mark.parametrize("wrong", WRONG, ids=[rule.name for rule in WRONG])
def test_a_wrong_rewrite_is_caught_blamed_and_undone(wrong: type[Rule], tmp_path: Path) -> None:
    model = parse(ENCODER, WEIGHTS)
    observations = observe(model)
    prepare(model)
    before = [node.op_type for node in model.graph]
    expected = GraphRunner(model).run(observations[0].feeds)[0]["y"]
    driver = Driver(model, observations, repro_folder=tmp_path)
    entry = driver.apply(wrong())
    assert entry.applied == 0
    assert len(entry.rolled_back) == 1
    blamed = entry.rolled_back[0]
    assert blamed.node
    assert blamed.reason
    assert blamed.error > 1e-6
    assert before == [node.op_type for node in model.graph]
    np.testing.assert_array_equal(expected, GraphRunner(model).run(observations[0].feeds)[0]["y"])


def test_the_inputs_of_a_refuted_rewrite_are_kept_and_reproduce_the_difference(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = parse(ENCODER, WEIGHTS)
    observations = observe(model)
    prepare(model)
    entry = Driver(model, observations, repro_folder=tmp_path).apply(SwappedOperands())
    folder = entry.rolled_back[0].repro
    assert folder is not None
    arrays = np.load(folder / "inputs.npz", allow_pickle=False)
    results = []
    for name in ("replaced", "replacement"):
        feeds = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")}
        session = ort.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        results.append(session.run(None, feeds)[0])
    np.testing.assert_array_equal(results[0], -results[1])


class RightForTwo(Rule):
    """x · c → x + x, which is right for c = 2 alone."""

    name = "test-half-wrong"
    numerics = Exact()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        yield op.Mul(x, scalar(name="factor"))

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        return op.Add(x, x)


TWO_AND_THREE = """
g (float[batch,4] x) => (float[batch,4] y) <float two = {2.0}, float three = {3.0}> {
  a = Mul(x, two)
  b = Mul(a, three)
  y = Relu(b)
}"""


def test_inputs_are_kept_of_what_reads_a_value_that_the_same_sweep_replaces(tmp_path: Path) -> None:
    model = parse(TWO_AND_THREE, {})
    observations = observe(model)
    prepare(model)
    entry = Driver(model, observations, repro_folder=tmp_path).apply(RightForTwo())
    assert (entry.applied, len(entry.rolled_back)) == (1, 1)
    folder = entry.rolled_back[0].repro
    assert folder is not None
    assert (folder / "replaced.onnx").is_file()


def test_good_matches_stay_when_one_of_the_same_pass_is_refuted() -> None:
    outcome = run_passes(TWO_AND_THREE, RightForTwo())
    assert outcome.ops == ["Add", "Mul", "Relu"]
    assert (outcome.entry.applied, len(outcome.entry.rolled_back)) == (1, 1)
    assert outcome.worst_error() == 0.0


def test_a_wrong_whole_graph_pass_is_undone_with_the_first_output_that_differs() -> None:
    class Negate(Pass):
        """y → −y."""

        name = "test-negate"
        numerics = Exact()

        def run(self, model: ir.Model) -> int:
            node = next(iter(model.graph))
            replacement = ir.node("Neg", [node.inputs[0]])
            model.graph.insert_before(node, [replacement])
            name = node.outputs[0].name
            node.outputs[0].replace_all_uses_with(replacement.outputs[0], replace_graph_outputs=True)
            model.graph.remove(node)
            replacement.outputs[0].name = name
            return 1

    outcome = run_passes("g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }", Negate())
    assert outcome.ops == ["Relu"]
    assert outcome.entry.applied == 0
    assert [item.node for item in outcome.entry.rolled_back] == ["y"]


def test_a_crashing_whole_graph_pass_leaves_the_graph_as_it_was() -> None:
    class Crash(Pass):
        """Removes a node, then fails."""

        name = "test-crash"
        numerics = Exact()

        def run(self, model: ir.Model) -> int:
            node = model.graph.node(1)
            read = node.inputs[0]
            assert read is not None
            node.outputs[0].replace_all_uses_with(read, replace_graph_outputs=True)
            model.graph.remove(node)
            raise RuntimeError("half done")

    outcome = run_passes("g (float[batch,4] x) => (float[batch,4] y) { a = Relu(x) y = Relu(a) }", Crash())
    assert outcome.ops == ["Relu", "Relu"]
    assert "half done" in outcome.entry.rolled_back[0].reason


def test_a_rule_that_feeds_on_itself_is_an_error_of_its_author() -> None:
    class Forever(Rule):
        """Relu → Relu, for ever."""

        name = "test-forever"
        numerics = Exact()

        def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
            yield op.Relu(x)

        def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
            return op.Relu(x)

    with pytest.raises(PassAuthorError, match="did not come to rest"):
        run_passes("g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }", Forever())


def test_a_saturated_softmax_is_judged_by_its_own_sensitivity() -> None:
    class Reordered(Rule):
        """(x · 300) @ w → (x @ w) · 300: equal in real arithmetic, far apart behind a saturated softmax."""

        name = "test-reordered"
        numerics = Reassociated(rtol=1e-7, atol=0.0)

        def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
            yield op.Softmax(op.MatMul(op.Mul(x, scalar(300.0)), constant("weight")))

        def rewrite(self, op: Builder, x: ir.Value, weight: ir.Value) -> ir.Value:
            return op.Softmax(op.Mul(op.MatMul(x, weight), op.constant(np.array(300.0, np.float32), "factor")))

    text = """
    g (float[batch,8] x) => (float[batch,8] y) <float big = {300.0}> {
      a = Mul(x, big) b = MatMul(a, w) y = Softmax(b)
    }"""
    outcome = run_passes(text, Reordered(), weights=WEIGHTS)
    assert outcome.entry.applied == 1


def test_new_nodes_say_which_pass_made_them_and_outputs_keep_their_names() -> None:
    text = """
    g (float[batch,8] x) => (float[batch,8] y) <float half = {0.5}, float one = {1.0}, float root = {1.4142135}> {
      e = Div(x, root) f = Erf(e) gate = Add(f, one) h = Mul(x, half) y = Mul(h, gate)
    }"""
    outcome = run_passes(text, "fuse-gelu")
    (node,) = outcome.model.graph
    assert node.metadata_props["onnxopt.pass"] == "fuse-gelu"
    assert [value.name for value in outcome.model.graph.outputs] == ["y"]


class Harmless(Pass):
    """Swaps the operands of an Add; the expression stays."""

    name = "test-harmless"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        (node,) = (node for node in model.graph if node.op_type == "Add")
        left, right = node.inputs
        node.replace_input_with(0, right)
        node.replace_input_with(1, left)
        return 1


class Doubling(Pass):
    """Adds an output to itself."""

    name = "test-doubling"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        (node,) = (node for node in model.graph if node.op_type == "Add")
        node.replace_input_with(1, node.inputs[0])
        return 1


def test_a_pass_that_leaves_the_expressions_as_they_are_is_proved_without_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = parse("g (float[batch,4] x, float[batch,4] z) => (float[batch,4] y) { y = Add(x, z) }")
    driver = Driver(model, observe(model))
    monkeypatch.setattr(driver, "_prove_whole", lambda *_: pytest.fail("the model was run"))
    assert driver.apply(Harmless()).applied == 1


def test_undoing_a_pass_keeps_what_was_proved_before_it() -> None:
    text = "g (float[batch,4] x, float[batch,4] z) => (float[batch,4] y) { y = Add(x, z) }"
    outcome = run_passes(text, Harmless(), Doubling())
    assert [len(entry.rolled_back) for entry in outcome.entries] == [0, 1]
    (node,) = outcome.model.graph
    assert [value.name for value in node.inputs if value is not None] == ["z", "x"]
    assert outcome.worst_error() == 0


def test_a_region_of_bfloat16_is_proved() -> None:
    class Drop(Rule):
        """Identity(x) → x, in a type that NumPy does not have."""

        name = "test-drop"
        numerics = Exact()

        def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
            yield op.Identity(op.Identity(x))

        def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
            return op.Identity(x)

    body = "{ a = Cast<to=16>(x) b = Identity(a) c = Identity(b) y = Cast<to=1>(c) }"
    text = f"g (float[batch,4] x) => (float[batch,4] y) {body}"
    outcome = run_passes(text, Drop())
    assert outcome.entry.applied == 1
    assert outcome.worst_error() == 0


class NegateBefore(Rule):
    """Neg(Reshape(x))  →  Reshape(Neg(x))."""

    name = "test-negate-before"
    numerics = Exact()

    def patterns(self, op: Ops, x: Pat, shape: Pat) -> Iterator[Pat]:
        yield op.Neg(op.Reshape(x, shape))

    def rewrite(self, op: Builder, x: ir.Value, shape: ir.Value) -> ir.Value:
        return op.Reshape(op.Neg(x), shape)


class NegateNothing(NegateBefore):
    """Neg(Reshape(x))  →  Reshape(x)."""

    name = "test-negate-nothing"

    def rewrite(self, op: Builder, x: ir.Value, shape: ir.Value) -> ir.Value:
        return op.Reshape(x, shape)


class NegateWrongly(NegateBefore):
    """Neg(Reshape(x))  →  something that runs nowhere."""

    name = "test-negate-wrongly"

    def rewrite(self, op: Builder, x: ir.Value, shape: ir.Value) -> ir.Value:
        return op.Reshape(op.Neg(x), op.ints([7, 7, 7], "other"))


IN_BLOCKS = """
g (float[batch,4] x) => (float[a,b] y) <int64[2] shape = {rows, -1}> {
  z = Reshape(x, shape)
  y = Neg(z)
}"""


@pytest.mark.parametrize("rows", [8, 12])
def test_a_size_at_which_the_replaced_region_does_not_run_refutes_nothing(rows: int) -> None:
    model = parse(IN_BLOCKS.replace("rows", str(rows)), {})
    runs = [one for one in observe(model) if one.sizes["batch"] * 4 % rows == 0]
    assert 0 < len(runs) < len(observe(model)), "else there is nothing to show"
    for rule, kept in ((NegateBefore(), 1), (NegateNothing(), 0), (NegateWrongly(), 0)):
        model = parse(IN_BLOCKS.replace("rows", str(rows)), {})
        prepare(model)
        assert Driver(model, observe(model)).apply(rule).applied == kept, rule.name


def test_a_region_that_runs_at_no_size_is_not_proved() -> None:
    model = parse(IN_BLOCKS.replace("rows", "1013"), {})
    prepare(model)
    entry = Driver(model, observe(model)).apply(NegateBefore())
    assert entry.applied == 0
    assert entry.rolled_back[0].reason == "what is replaced runs at no size that was tried"


NEEDS = {
    "an operator": (19, "Gelu", {}, "opset 19 has no Gelu"),
    "an attribute": (14, "Shape", {"start": 0}, "opset 14 has no Shape with start"),
    "another attribute": (13, "Reshape", {"allowzero": 1}, "opset 13 has no Reshape with allowzero"),
    "an input": (17, "ReduceMean", {}, "opset 17 has no ReduceMean of 2 inputs"),
}


@pytest.mark.parametrize(("opset", "name", "attributes", "reason"), NEEDS.values(), ids=NEEDS.keys())
def test_what_the_opset_of_the_file_does_not_have_is_not_built(
    opset: int, name: str, attributes: dict[str, int], reason: str
) -> None:
    class Newer(Rule):
        """Relu(x)  →  what a newer opset has."""

        numerics = Exact()

        def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
            yield op.Relu(x)

        def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
            inputs = [x, op.ints([-1], "second")] if name.startswith("Re") else [x]
            return op.node(name, inputs, attributes)[0]

    Newer.name = "test-newer"
    text = "g (float[batch,4] x) => (float y) { y = Relu(x) }"
    outcome = run_passes(text, Newer(), opset=opset)
    assert (outcome.entry.applied, outcome.reasons, outcome.rolled_back) == (0, [reason], [])
