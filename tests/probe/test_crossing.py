"""Lengths at which rotary tables change are found by running them, whatever the spelling, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.artifact.package import decoding_of
from onnxopt.graph import known_dims
from onnxopt.graph.sides import Crossings
from onnxopt.load.export.torch_decoder import grows_beyond
from onnxopt.probe.crossing import _distinct, crossings_of
from onnxopt.proof.prepare import prepare
from tests.support.cached import CAUSAL, LEARNED, LONGEST, WINDOW, Decoder, lower
from tests.support.crossing import COUNTED, ENDLESS, SPELLINGS, TURNED, TWICE, crossing_decoder


def prepared(decoder: Decoder) -> ir.Model:
    model = decoder.model()
    prepare(model)
    return model


@pytest.mark.parametrize("start", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("limit", [3, 8, 21, 64, 150])
def test_one_crossing_is_found_in_every_spelling(start: str, limit: int) -> None:
    assert crossings_of(prepared(crossing_decoder(start, limit)), longest=LONGEST) == Crossings((limit,))


def test_a_crossing_that_no_number_of_the_graph_tells_is_found() -> None:
    """The limit is 37, the numbers in the graph are 36.5 and a half."""
    hidden = (
        f"{COUNTED} place = Cast<to=1>(top) longer = Greater(place, sum) chosen = Where(longer, slower, frequencies)"
    )
    decoder = crossing_decoder(f"sum = Mul(double, half) {hidden} {TURNED}", 0)
    more = {"double": np.array(73.0, np.float32), "half": np.array(0.5, np.float32)}
    model = prepared(replace(decoder, weights={**decoder.weights, **more}))
    assert crossings_of(model, longest=LONGEST) == Crossings((37,))


def test_several_crossings_are_found() -> None:
    decoder = crossing_decoder(f"{COUNTED} {TWICE} {TURNED}", 19, further=90)
    assert crossings_of(prepared(decoder), longest=LONGEST) == Crossings((19, 90))


@pytest.mark.parametrize("limit", [5, 48])
def test_tables_that_change_with_every_token_are_told_apart(limit: int) -> None:
    decoder = crossing_decoder(f"{COUNTED} {ENDLESS} {TURNED}", limit)
    assert crossings_of(prepared(decoder), longest=LONGEST) == Crossings((), limit)


def renamed(model: ir.Model, names: dict[str, str]) -> ir.Model:
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = [names.get(str(dim), dim) if isinstance(dim, str) else dim for dim in known_dims(value) or ()]
        value.shape = ir.Shape(shape)
    return model


def test_axes_may_have_any_names() -> None:
    model = prepared(crossing_decoder(SPELLINGS["the length of the mask"], 21))
    names = {"batch": "N", "sequence": "s6", "total_sequence": "whole", "past_sequence": "before"}
    assert crossings_of(renamed(model, names), longest=LONGEST) == Crossings((21,))


def test_crossings_are_read_as_they_are_written() -> None:
    for one in (Crossings(), Crossings((40,)), Crossings((40, 90)), Crossings((), 64), Crossings((8, 9), 64)):
        assert Crossings.from_metadata(one.to_metadata()) == one
    assert Crossings.from_metadata({"onnxopt.crossings": "40 x"}) == Crossings()


def test_a_side_is_shared_by_texts_of_the_same_tables() -> None:
    once, endless = Crossings((40,)), Crossings((8,), 64)
    assert [once.side(length) for length in (1, 40, 41, 90)] == [0, 0, 1, 1]
    assert endless.side(8) != endless.side(9) == endless.side(64)
    assert len({endless.side(length) for length in (8, 9, 65, 66, 67)}) == 5


def test_what_lies_beyond_the_model_is_no_crossing() -> None:
    decoder = crossing_decoder(SPELLINGS["the largest position"], 64)
    assert crossings_of(prepared(decoder), longest=64) == Crossings()
    assert crossings_of(prepared(decoder), longest=66) == Crossings((64,))
    assert crossings_of(prepared(decoder)) == Crossings((64,))  # where nothing says how much it takes


PLAIN = {
    "rotary": Decoder(),
    "rotary and a window": Decoder(mask=WINDOW),
    "learned positions": Decoder(start=LEARNED, turn=None),
    "no positions": Decoder(positions="", start="x0 = Identity(words)", turn=None),
    "positions given": Decoder(
        positions="",
        more=", int64[batch,sequence] position_ids",
        edits=(("Cast<to=1>(positions)", "Cast<to=1>(position_ids)"),),
    ),
    "distances by column": Decoder(
        mask=f"{CAUSAL.replace('mask = And', 'allowed = And')} away = Sub(keys, to) apart = Cast<to=1>(away)"
        " spread = Mul(apart, slopes) mask = Where(allowed, spread, lowest)",
        weights={"slopes": np.array([0.5, 0.25, 0.1, 0.7], np.float32).reshape(4, 1, 1)},
    ),
}


@pytest.mark.parametrize("decoder", PLAIN.values(), ids=PLAIN.keys())
def test_tables_of_the_position_alone_cross_nothing(decoder: Decoder) -> None:
    assert crossings_of(prepared(decoder), longest=LONGEST) == Crossings()


def test_rows_trimmed_to_the_last_token_are_no_tables_of_the_length() -> None:
    model = lower(Decoder(joined=True, heads=(4, 4)).model(), "trim-rows", "lower-last-token").model
    assert crossings_of(model, longest=LONGEST) == Crossings()


@pytest.mark.parametrize("limit", [6, 12, 40])
def test_tables_of_the_length_stay_outside_of_the_kernel(limit: int) -> None:
    """They would be written down for one side of the crossing there."""
    found = lower(crossing_decoder(SPELLINGS["the largest position"], limit).model(), "lower-cached-attention")
    assert [node.attributes["do_rotary"].as_int() for node in found.nodes("GroupQueryAttention")] == [0, 0]
    assert crossings_of(found.model, longest=LONGEST) == Crossings((limit,))
    found.prove()


def test_what_is_known_of_a_decoder_says_its_crossings() -> None:
    found = lower(crossing_decoder(SPELLINGS["a branch"], 33).model())
    record = decoding_of(found.model, replace(found.loaded, origin={"context_length": LONGEST, "crossing": "continue"}))
    assert record is not None
    assert (record.crossings, record.crossing, record.context_length) == ((33,), "continue", LONGEST)
    endless = lower(crossing_decoder(f"{COUNTED} {ENDLESS} {TURNED}", 48).model())
    record = decoding_of(endless.model, replace(endless.loaded, origin={"context_length": LONGEST}))
    assert record is not None
    assert (record.crossings, record.context_length) == ((), 48)


ROPES: dict[str, tuple[dict[str, Any], bool]] = {
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, True),
    "default": ({"rope_type": "default"}, False),
    "linear": ({"rope_type": "linear", "factor": 4.0}, False),
    "yarn": ({"rope_type": "yarn", "factor": 4.0}, False),
    # one crossing, where the model ends
    "longrope": ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, False),
}


@pytest.mark.parametrize("longest", [19, 64])
@pytest.mark.parametrize("rope", ROPES)
def test_growth_beyond_the_end_is_found_in_transformers_own_modules(rope: str, longest: int) -> None:
    import transformers

    settings, grows = ROPES[rope]
    settings = {**settings, "rope_theta": 10000.0, "original_max_position_embeddings": longest}
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        vocab_size=20,
        max_position_embeddings=longest,
        rope_parameters=settings,
    )
    network = transformers.LlamaForCausalLM(config).eval()
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert grows_beyond(network, longest) == grows
    assert all((value == before[name]).all() for name, value in network.named_buffers()), "only copies were asked"


def test_the_note_says_what_happens_at_a_crossing() -> None:
    assert Crossings().note() == ""
    assert "beyond 40 tokens: a text that grows across is read anew" in Crossings((40,)).note()
    assert "goes on from its keys" in Crossings((40, 80)).note(rereads=False)
    assert "every token beyond 64: longer texts are refused" in Crossings((), 64).note()


def test_tables_that_each_layer_makes_anew_are_run_once() -> None:
    """Of equal ones one is looked at; what differs in a number, a setting or an input is another."""
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        agraph (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (float[batch, sequence] out)
        <int64[1] axis = {1}, int64[1] same = {1}, int64[1] other = {0}>
        {
            first = Constant<value = int64 {1}>()
            counted = CumSum(attention_mask, first)
            place = Cast<to = 1>(counted)
            a = Cos(place) b = Cos(place) c = Sin(place)
            one = Unsqueeze(a, axis) two = Unsqueeze(b, same) three = Unsqueeze(a, other)
            four = Softmax<axis = 0>(place) five = Softmax<axis = 1>(place) six = Softmax<axis = 1>(place)
            out = Identity(place)
        }
        """
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    names = ["one", "two", "three", "c", "four", "five", "six"]
    found = _distinct(model, [values[name] for name in names])
    assert [value.name for value in found] == ["one", "three", "c", "four", "five"]
