"""What an artifact says to other programs, without those programs; `tests/clients` asks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.artifact.stacks import GENAI_NAME, MAX_LENGTH, Words, genai_config, served_model, stack_files
from onnxopt.graph.cache import CacheLayer, served
from onnxopt.records.manifest import DecodingRecord
from onnxopt.spec import Signature, TensorSpec

LAYERS = (CacheLayer(0, 2, 16, 16, "float32"), CacheLayer(1, 2, 16, 16, "float32"))
DECODING = DecodingRecord(shared_buffers=True, logits="last", context_length=512, vocabulary=100)
WORDS = Words(
    config={"hidden_size": 64, "num_attention_heads": 4, "eos_token_id": 7, "bos_token_id": 1},
    generation={"eos_token_id": [7, 9], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None},
)


def signature(*extra: str, layers: tuple[CacheLayer, ...] = LAYERS) -> Signature:
    plain = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
        *(TensorSpec(name, "int64", ("batch", "sequence")) for name in extra),
    )
    past = [layer.spec(part) for layer in layers for part in ("key", "value")]
    present = [layer.spec(part, present=True) for layer in layers for part in ("key", "value")]
    return Signature((*plain, *past), (TensorSpec("logits", "float32", ("batch", 1, 100)), *present))


def config(words: Words = WORDS, **changes: Any) -> dict[str, Any]:
    made = genai_config(signature(), DECODING.model_copy(update=changes), words)
    assert made is not None
    return made


def test_genai_is_told_the_graph() -> None:
    model = config()["model"]
    decoder = model.pop("decoder")
    assert model == {
        "type": "decoder",
        "vocab_size": 100,
        "context_length": 512,
        "bos_token_id": 1,
        "eos_token_id": [7, 9],
        "pad_token_id": 7,
    }
    assert decoder == {
        "filename": "model.onnx",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_size": 16,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def test_genai_is_told_how_the_checkpoint_chooses_tokens() -> None:
    assert config()["search"] == {
        "max_length": 512,
        "num_beams": 1,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "past_present_share_buffer": True,
    }
    assert config(Words(), shared_buffers=False)["search"] == {
        "max_length": 512,
        "num_beams": 1,
        "do_sample": False,
        "past_present_share_buffer": False,
    }


def test_a_long_context_is_not_allocated_unasked() -> None:
    made = config(context_length=131072)
    assert made["model"]["context_length"] == 131072
    assert made["search"]["max_length"] == MAX_LENGTH


@pytest.mark.parametrize(
    ("words", "length"),
    [({"n_positions": 300}, 300), ({"text_config": {"max_position_embeddings": 90}}, 90), ({}, 2048)],
)
def test_an_unknown_context_is_looked_up(words: dict[str, Any], length: int) -> None:
    assert config(Words(config=words), context_length=0)["model"]["context_length"] == length


def test_special_tokens_come_from_the_tokenizer_last() -> None:
    words = Words(tokenizer={"eos_token": "</s>", "pad_token": {"content": "<pad>"}}, tokens={"</s>": 2, "<pad>": 3})
    model = config(words)["model"]
    assert (model["eos_token_id"], model["pad_token_id"], "bos_token_id" in model) == ([2], 3, False)
    assert "eos_token_id" not in config(Words())["model"]


def test_positions_are_an_input_where_the_graph_has_them() -> None:
    made = genai_config(signature("position_ids"), DECODING, WORDS)
    assert made is not None
    assert made["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"


def test_layers_of_different_sizes_are_left_to_the_graph() -> None:
    layers = (LAYERS[0], CacheLayer(2, 4, 32, 32, "float32"))
    made = genai_config(signature(layers=layers), DECODING, Words())
    assert made is not None
    sizes = {name: size for name, size in made["model"]["decoder"].items() if isinstance(size, int)}
    assert sizes == {"num_hidden_layers": 3}


def test_a_device_is_named() -> None:
    made = genai_config(signature(), DECODING, WORDS, provider="cuda")
    assert made is not None
    assert made["model"]["decoder"]["session_options"]["provider_options"] == [
        {"cuda": {"enable_skip_layer_norm_strict_mode": "1"}}
    ]


def test_what_genai_cannot_feed_gets_no_file(tmp_path: Path) -> None:
    assert genai_config(signature("token_type_ids"), DECODING, WORDS) is None
    assert genai_config(Signature(signature().inputs[:2], signature().outputs), DECODING, WORDS) is None
    assert GENAI_NAME not in stack_files(tmp_path, signature("token_type_ids"), DECODING)
    assert stack_files(tmp_path, signature(), None) == {}


def test_the_files_of_the_checkpoint_are_read(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 8, "content": "<pad>"}, 3, {}]}')
    made = json.loads(stack_files(tmp_path, signature(), DECODING)[GENAI_NAME])
    assert (made["model"]["eos_token_id"], made["model"]["pad_token_id"]) == ([5, 6], 8)


def test_a_missing_generation_config_is_made(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "pad_token_id": 0}')
    made = stack_files(tmp_path, signature("token_type_ids"), DECODING)
    assert {name: json.loads(content) for name, content in made.items()} == {
        "generation_config.json": {"eos_token_id": [7], "pad_token_id": 0}
    }
    (tmp_path / "generation_config.json").write_bytes(made["generation_config.json"])
    assert list(stack_files(tmp_path, signature(), DECODING)) == [GENAI_NAME]


# transformers.js makes an empty past of the batch's size only where the axis has the name that it knows


def test_a_decoder_is_written_with_the_axis_that_transformers_js_knows() -> None:
    named = served(signature())
    assert {spec.axes[0] for spec in (*named.inputs, *named.outputs)} == {"batch_size"}
    assert served(named) == named


def test_other_models_keep_their_axes() -> None:
    plain = Signature(signature().inputs[:2], signature().outputs[:1])
    assert served(plain) == plain
    renamed = Signature((TensorSpec("input_ids", "int64", ("batch_size", "sequence")),), ())
    assert served(renamed) == renamed


GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
decoder (int64[batch, sequence] input_ids, float[batch, 2, past_sequence, 4] "past_key_values.0.key",
         float[batch, 2, past_sequence, 4] "past_key_values.0.value")
    => (float[batch, 2, past_sequence, 4] "present.0.key", float[batch, 2, past_sequence, 4] "present.0.value",
        int64[tokens] ids)
<int64[1] all = {-1}>
{
    "present.0.key" = Identity("past_key_values.0.key")
    "present.0.value" = Identity("past_key_values.0.value")
    flat = Reshape(input_ids, all)
    ids = Identity(flat)
}
"""


def test_the_graph_in_the_file_is_renamed_and_the_one_in_memory_is_not() -> None:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH))
    flat = model.graph.node(2).outputs[0]
    flat.shape, flat.dtype = ir.Shape(["batch*sequence"]), ir.DataType.INT64
    given = signature()
    copy = served_model(model, given)
    assert {str(value.shape) for value in copy.graph.inputs} == {
        "[batch_size,sequence]",
        "[batch_size,2,past_sequence,4]",
    }
    assert str(copy.graph.node(2).outputs[0].shape) == "[batch_size*sequence]"
    assert str(model.graph.inputs[0].shape) == "[batch,sequence]"
    assert served_model(copy, served(given)) is copy
