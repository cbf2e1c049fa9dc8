"""Run passes on small graphs written as ONNX text, and look at what they did."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.graph import constant, known_dims
from onnxopt.probe.annotate import annotate
from onnxopt.probe.observe import Observation
from onnxopt.probe.runners import GraphRunner
from onnxopt.probe.sidegraph import FREE_KEY
from onnxopt.proof.driver import Driver
from onnxopt.proof.prepare import prepare
from onnxopt.records.ledger import PassEntry
from onnxopt.rewrite import Pass, Rewrite, Rule
from onnxopt.rewrite.registry import get
from onnxopt.spec import Array, Feeds

SIZES = ((2, 7), (3, 11), (5, 13), (1, 131))
Constant = Array | np.generic  # what an initializer is made of: an array, or one number of a NumPy type


@dataclass
class Outcome:
    """What passes did to a graph.

    Attributes:
        model: the graph afterwards.
        entries: one ledger entry per pass.
        before: outputs of the original on the largest observation.
        after: outputs of the result on the same inputs.
        original: the graph as it was.
    """

    model: ir.Model
    entries: list[PassEntry]
    before: Feeds
    after: Feeds
    original: ir.Model

    @property
    def entry(self) -> PassEntry:
        """The entry of the last pass."""
        return self.entries[-1]

    @property
    def ops(self) -> list[str]:
        """Operators in order, contrib ones with their domain."""
        return [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.model.graph]

    @property
    def reasons(self) -> list[str]:
        """Why guards of the last pass held back."""
        return [item.reason for item in self.entry.refused]

    @property
    def rolled_back(self) -> list[str]:
        """What the proof of any pass turned down; guards should have."""
        return [item.reason for entry in self.entries for item in entry.rolled_back]

    def worst_error(self) -> float:
        """Worst absolute difference between the outputs before and after; shapes and dtypes must be equal."""
        return _worst(self.before, self.after)

    def worst_error_at(self, batch: int, sequence: int, **given: Array) -> float:
        """The same at sizes that no proof has seen; the result must also be a valid model."""
        onnx.checker.check_model(ir.to_proto(self.model))
        feeds = self.feeds_at(batch, sequence, **given)
        return _worst(GraphRunner(self.original).run(feeds)[0], GraphRunner(self.model).run(feeds)[0])

    def feeds_at(self, batch: int, sequence: int, **given: Array) -> Feeds:
        """Inputs of some size; those that are given, and others made up."""
        return {**_feeds(self.original, _sizes(0, batch, sequence), seed=batch * sequence), **given}

    def constant(self, op_type: str, index: int) -> Array:
        """The array of an input of the only operator of a type."""
        node = next(node for node in self.model.graph if node.op_type == op_type)
        found = constant(node.inputs[index])
        assert found is not None, f"input {index} of {op_type} is computed"
        return found

    def attributes(self, op_type: str) -> dict[str, Any]:
        """The attributes of the first operator of a type: numbers, lists of them, strings."""
        node = next(node for node in self.model.graph if node.op_type == op_type)
        return {name: attr.value for name, attr in node.attributes.items()}


def _worst(before: Feeds, after: Feeds) -> float:
    worst = 0.0
    for name, expected in before.items():
        found = after[name]
        assert expected.shape == found.shape, name
        assert expected.dtype == found.dtype, name
        if expected.size:
            wide, other = expected.astype(np.float64), found.astype(np.float64)
            same = (wide == other) | (np.isnan(wide) & np.isnan(other))
            error = np.abs(np.where(same, 0.0, wide) - np.where(same, 0.0, other))
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
    return worst


def rule_of(name: str, *options: Any) -> Rule:
    """A registered pass that replaces patterns."""
    found = get(name, *options)
    assert isinstance(found, Rule), f"{name} changes the graph as a whole"
    return found


def pass_of(name: str, *options: Any) -> Pass:
    """A registered pass that changes the graph as a whole."""
    found = get(name, *options)
    assert isinstance(found, Pass), f"{name} replaces patterns"
    return found


def names_read(node: ir.Node) -> list[str]:
    """The names of what a node reads; as in a file, an input that is left out has the empty one."""
    return ["" if value is None else value.name or "" for value in node.inputs]


def parse(text: str, weights: Mapping[str, Constant] | None = None, *, opset: int = 23) -> ir.Model:
    """Parse `g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }` and add weights as initializers."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
    return ir.from_proto(proto)


def observe(model: ir.Model, feeds: Mapping[str, Sequence[Array]] | None = None) -> list[Observation]:
    """Make inputs of three sizes: normal floats; 0 and 1 for integers, booleans and masks; or the given arrays."""
    observations = []
    count = min((len(arrays) for arrays in (feeds or {}).values()), default=len(SIZES))
    for index, (batch, sequence) in enumerate(SIZES[:count]):
        given = {name: arrays[index] for name, arrays in (feeds or {}).items()}
        sizes = _sizes(index, batch, sequence)
        observations.append(Observation(sizes, {**_feeds(model, sizes, seed=index), **given}))
    return observations


def _sizes(index: int, batch: int, sequence: int) -> dict[str, int]:
    others = {"rows": batch * 5 + 9, "height": 17 + 2 * index, "past_sequence": 3 * index}
    return {"batch": batch, "sequence": sequence, **others}


def _feeds(model: ir.Model, sizes: Mapping[str, int], seed: int) -> Feeds:
    generator = np.random.default_rng(seed)
    made: Feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in known_dims(value) or ()]
        kind = (value.dtype or ir.DataType.FLOAT).numpy()
        if kind.kind == "f" and "mask" not in (value.name or ""):
            made[value.name or ""] = generator.standard_normal(shape).astype(kind)
        else:
            mask = generator.integers(0, 2, shape)
            if mask.ndim:
                mask[..., 0] = 1
            made[value.name or ""] = mask.astype(kind)
    return made


def run_passes(
    model: ir.Model | str,
    *steps: str | Rewrite,
    weights: Mapping[str, Constant] | None = None,
    feeds: Mapping[str, Sequence[Array]] | None = None,
    opset: int = 23,
    prove: bool = True,
    free: Collection[str] = (),
) -> Outcome:
    """Run passes in order on a model (or ONNX text) with their proof, and compare the outputs before and after.

    Inputs that are `free` may hold anything, as those of a file that is not our export: masks need not be of 0 and 1.
    """
    if isinstance(model, str):
        model = parse(model, weights, opset=opset)
    model.graph.meta[FREE_KEY] = frozenset(free)
    observations, original = observe(model, feeds), model.clone()
    before = GraphRunner(model).run(observations[-1].feeds)[0]
    prepare(model)
    driver = Driver(model, observations, prove=prove)
    entries = [driver.apply(get(step) if isinstance(step, str) else step) for step in steps]
    annotate(model, driver.derivation, incomplete=True)
    after = GraphRunner(model).run(observations[-1].feeds)[0]
    return Outcome(model, entries, before, after, original)
