"""The sample with real weights: complete fusion from both exporters, equal to torch at every size and padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import onnxopt
from onnxopt.artifact.package import Artifact, check_golden
from onnxopt.graph.kept_rows import rows_that_matter
from onnxopt.load.export.export import export
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.qmath.compare import worst_error
from onnxopt.run.answers import run_text
from onnxopt.run.results import Embeddings
from onnxopt.spec import PADDINGS, Feeds, Padding
from tests.support.node import install_script, run

EXPORTERS = ("dynamo", "torchscript")
BATCHES = (1, 3, 32)
LENGTHS = (1, 7, 128, 512)
MOST_NODES = 70
LARGEST_ERROR = 1e-4


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return export(resolve("minilm"))


@pytest.fixture(scope="module", params=EXPORTERS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("minilm") / request.param
    return onnxopt.optimize("minilm", out=out, exporter=request.param, measure=False)


@pytest.fixture(scope="module")
def answers(loaded: Loaded) -> dict[tuple[int, int, Padding], tuple[Feeds, Feeds]]:
    """Inputs and torch's outputs; one row has no other row to be padded to."""
    made: dict[tuple[int, int, Padding], tuple[Feeds, Feeds]] = {}
    for batch, length, padding in _cases():
        feeds = loaded.feeder.make({"batch": batch, "sequence": length}, padding, seed=batch * 1000 + length)
        made[batch, length, padding] = (feeds, loaded.reference.run(feeds))
    return made


def _cases() -> Iterator[tuple[int, int, Padding]]:
    for batch in BATCHES:
        for length in LENGTHS:
            for padding in PADDINGS if batch > 1 and length > 1 else PADDINGS[:1]:
                yield batch, length, padding


def test_every_block_is_fused_into_at_most_70_nodes(artifact: Artifact) -> None:
    import onnx

    blocks = {name: (count.fused, count.total) for name, count in artifact.manifest.blocks.items()}
    assert blocks == {"attention": (6, 6), "layer_norm": (13, 13), "gelu": (6, 6), "linear": (24, 24)}
    nodes = onnx.load(artifact.model_path).graph.node
    assert len(nodes) == artifact.manifest.nodes_after
    assert len(nodes) <= MOST_NODES
    assert not [item for entry in artifact.manifest.ledger for item in entry.rolled_back]


def test_outputs_equal_torch_at_every_size_and_padding(
    artifact: Artifact, loaded: Loaded, answers: dict[tuple[int, int, Padding], tuple[Feeds, Feeds]]
) -> None:
    session = artifact.session()
    worst = 0.0
    for case, (feeds, expected) in answers.items():
        found = session.run(feeds)
        for name, reference in expected.items():
            rows = rows_that_matter(loaded.signature, feeds, name, reference)
            kept = found[name] if rows is None else found[name][rows]
            assert np.isfinite(kept).all(), (case, name)
            relative, _ = worst_error(found[name], reference, rows)
            assert relative <= LARGEST_ERROR, (case, name, relative)
            worst = max(worst, relative)
    assert 0.0 < worst <= LARGEST_ERROR


def test_the_golden_cases_hold_and_similar_sentences_are_close(artifact: Artifact) -> None:
    assert check_golden(artifact.path) == []
    assert not artifact.changed_files()
    result = run_text(
        artifact.path, ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Stock markets fell today."]
    )
    assert isinstance(result, Embeddings)
    vectors = np.array(result.vectors)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5
    assert far < 0.2


def test_a_default_session_of_the_runtime_opens_it(artifact: Artifact) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(artifact.model_path)
    names = {item.name for item in session.get_outputs()}
    assert names == {"last_hidden_state", "sentence_embedding"}


@pytest.mark.node
def test_node_reproduces_the_golden_outputs(artifact: Artifact) -> None:
    code, line = run(install_script(), artifact.path)
    assert code == 0, line
    assert line.startswith("equal")
