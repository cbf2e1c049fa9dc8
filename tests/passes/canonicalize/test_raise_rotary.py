import numpy as np
import pytest

from tests.support.rules import Outcome, run_passes

GENERATOR = np.random.default_rng(9)


def run(
    shape: str = "batch,sequence,16",
    attributes: str = "",
    *,
    offset: bool = False,
    half: int = 2,
    opset: int = 23,
) -> Outcome:
    weights = {name: GENERATOR.standard_normal((140, half)).astype(np.float32) for name in ("cos", "sin")}
    places = "int64[1] places" if offset else "int64[batch,sequence] places"
    text = f"""
    g (float[{shape}] x, {places}) => (float[{shape}] y) {{
      y = com.microsoft.RotaryEmbedding{attributes}(x, places, cos, sin)
    }}"""
    feeds = {"places": [np.array([n], np.int64) for n in (0, 3, 1, 4)]} if offset else None
    return run_passes(
        text, "raise-rotary-embedding", "raise-rotary-embedding", weights=weights, opset=opset, feeds=feeds
    )


@pytest.mark.parametrize("offset", [False, True], ids=["position per token", "one offset"])
@pytest.mark.parametrize("shape", ["batch,sequence,16", "batch,4,sequence,4"], ids=["tokens", "heads"])
@pytest.mark.parametrize("attributes", ["", "<num_heads = 4>", "<interleaved = 1, num_heads = 4>"])
def test_reads_it_by_its_standard_name(shape: str, attributes: str, *, offset: bool) -> None:
    outcome = run(shape, attributes, offset=offset)
    assert [entry.applied for entry in outcome.entries] == [1, 0]
    assert outcome.rolled_back == []
    assert outcome.ops[-1] == "RotaryEmbedding"
    assert outcome.attributes("RotaryEmbedding").get("num_heads") == (4 if shape.endswith("16") else None)
    assert outcome.worst_error() < 1e-5


def test_turns_a_part_of_each_head() -> None:
    outcome = run(attributes="<num_heads = 2, rotary_embedding_dim = 4>")
    assert outcome.attributes("RotaryEmbedding")["rotary_embedding_dim"] == 4
    assert outcome.worst_error() < 1e-5


@pytest.mark.parametrize("offset", [False, True], ids=["position per token", "one offset"])
@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ("batch,sequence,16", ""),
        ("batch,4,sequence,4", ""),
        ("batch,sequence,16", "<num_heads = 2, rotary_embedding_dim = 4>"),
    ],
)
def test_spells_it_out_where_the_opset_has_none(shape: str, attributes: str, opset: int, *, offset: bool) -> None:
    outcome = run(shape, attributes, offset=offset, opset=opset)
    assert outcome.entries[0].applied == 1
    assert not [name for name in outcome.ops if ":" in name or name == "RotaryEmbedding"]
    assert outcome.worst_error() < 1e-5


def test_holds_back_with_a_reason() -> None:
    assert run(attributes="<interleaved = 1>", opset=17).reasons == ["opset 17 has no paired rotation"]
    assert run(attributes="<scale = 2.0>").reasons == ["it scales what it rotates"]
