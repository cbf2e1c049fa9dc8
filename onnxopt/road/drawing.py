"""Put what a graph draws at random back into the finished one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxopt.errors import InputError, ProofError
from onnxopt.graph.files import save_graph
from onnxopt.load.loaded import Loaded
from onnxopt.probe.draws import put_back
from onnxopt.run.session import Session
from onnxopt.spec import Target


def drawing_again(loaded: Loaded, folder: Path, target: Target) -> Loaded:
    """Put the nodes that draw random numbers back into a finished graph, and see that it runs.

    Args:
        loaded: with what is drawn taken out; its graph is changed.
        folder: made here, for the graph that is run.
        target: where it is run.

    Returns:
        The same with the inputs and outputs that the file had.

    Raises:
        ProofError: it does not run, which would be a fault of this program.
    """
    draws = loaded.draws
    if draws is None:
        return loaded
    feeds = loaded.feeder.make({})
    put_back(loaded.model, draws)
    drawn = {spec.name for spec in draws.specs}
    kept = replace(
        loaded.signature,
        inputs=tuple(spec for spec in loaded.signature.inputs if spec.name not in drawn),
        outputs=tuple(spec for spec in loaded.signature.outputs if spec.name not in draws.added),
    )
    try:
        session = Session(save_graph(loaded.model, folder), target=target, label=loaded.name)
        session.run({name: value for name, value in feeds.items() if name not in drawn})
    except InputError as error:
        what = f"with its random numbers put back, the result does not run: {error.what}"
        raise ProofError(what, where=loaded.name, hint="nothing was written") from error
    return replace(loaded, signature=kept, draws=None)
