"""Name the branches of a graph that no case of a proof runs: what is in there is not proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt.errors import InputError
from onnxopt.load.loaded import Loaded
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner
from onnxopt.proof.cases import SEED, Case
from onnxopt.records.notes import NOT_TAKEN

SHOWN = 3  # nodes that a note names


def branches_not_run(loaded: Loaded, cases: Sequence[Case]) -> list[str]:
    """Run what decides about branches at the cases of a proof, and return a sentence about those that none takes.

    Args:
        loaded: with the graph as it was loaded; of branches inside of branches nothing is said.
        cases: sizes and paddings, in the order in which they are proved.
    """
    deciding = [
        (node, node.inputs[0])
        for node in loaded.model.graph
        if node.op_type == "If" and node.inputs and node.inputs[0] is not None
    ]
    made = [value for _, value in deciding if value.producer() is not None]
    if not deciding:
        return []
    seen: Mapping[str, set[bool]] = {value.name or "": set() for _, value in deciding}
    try:
        runner = GraphRunner(loaded.model, made, with_outputs=False)
        for index, (sizes, padding) in enumerate(cases):
            try:
                feeds = loaded.feeder.make(sizes, padding, seed=SEED + index)
            except InputError:  # a size that the model does not take is not proved either
                continue
            found = {value.name or "": array for value, array in runner.run(feeds)[1].items()} | feeds
            for name, taken in seen.items():
                if name in found:
                    taken.add(bool(np.asarray(found[name]).reshape(-1)[0]))
    except ProbeError:
        return []
    missed = [
        f"{'else' if side is False else 'then'} of {node.name or node.outputs[0].name}"
        for node, value in deciding
        for side in (True, False)
        if seen[value.name or ""] and side not in seen[value.name or ""]
    ]
    if not missed:
        return []
    shown = ", ".join(missed[:SHOWN]) + (", …" if len(missed) > SHOWN else "")
    return [f"{NOT_TAKEN} of the proof takes them: {len(missed)} branches ({shown}); give --value or --feeds"]
