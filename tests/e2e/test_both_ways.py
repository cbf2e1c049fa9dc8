"""A decoder in int8: prompts through integers on both sides, single tokens through weights in blocks, in one file.

Covers: quantize/prompts.py, quantize/two_ways.py
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxopt.artifact.package import Artifact
from onnxopt.quantize.two_ways import LONGEST_STEP
from onnxopt.road.optimize import optimize
from onnxopt.run.generate.decoder import Decoder
from onnxopt.run.generate.generator import Generator
from onnxopt.run.session import Session

TOKENS = np.random.default_rng(2).integers(5, 2000, (2, 3 * LONGEST_STEP))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return optimize("gpt2-mini", out=tmp_path_factory.mktemp("both") / "out", precision="int8", measure=False)


def test_both_ways_are_in_one_file_and_the_table_is_stored_once(both: Artifact) -> None:
    graph = onnx.load(both.model_path).graph
    choice = next(node for node in graph.node if node.op_type == "If")
    ways = {one.name: [node.op_type for node in one.g.node] for one in choice.attribute}
    assert ways["then_branch"].count("MatMulIntegerToFloat") >= 12
    assert "MatMulNBits" in ways["else_branch"]
    assert all(operators.count("GroupQueryAttention") == 6 for operators in ways.values())
    assert both.manifest.decoding is not None
    assert both.manifest.decoding.shared_buffers
    assert "MatMulIntegerToFloat" not in ways["else_branch"]
    tables = [tensor for tensor in graph.initializer if tensor.dims and max(tensor.dims) > 4096]
    assert len({tuple(tensor.dims) for tensor in tables}) == len(tables)
    assert both.manifest.blocks["attention"].total == 6


def test_the_manifest_says_what_layers_are_in_prompts_and_how_both_were_judged(both: Artifact) -> None:
    record = both.manifest.quantization
    assert record is not None
    assert record.shipped
    assert record.gate is not None
    assert record.gate.holds
    assert sum("int8" in one.reason and "in prompts" in one.reason for one in record.layers.values()) >= 12
    assert any("one If" in note for note in both.manifest.notes)


def test_a_prompt_and_the_same_tokens_in_small_pieces_say_nearly_the_same(both: Artifact) -> None:
    decoder = Decoder.of(Session(both.model_path), both.manifest.decoding)
    prompts = TOKENS[:1].tolist()  # behind a past the kernel takes several tokens of one row
    whole, pieces = (decoder.prefill(prompts, chunk=chunk).logits for chunk in (0, LONGEST_STEP // 2))
    assert not np.array_equal(whole, pieces)  # the two ways round differently
    for one, other in zip(whole, pieces, strict=True):
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one - one.mean())


def test_text_goes_on_from_long_and_short_prompts_together(both: Artifact) -> None:
    prompts = ["The import statement combines two operations; it searches for the named module, then it binds", "If"]
    found = Generator(both.path).generate(prompts, max_new_tokens=12)
    assert all(len(text.split()) >= 3 for text in found.texts)
