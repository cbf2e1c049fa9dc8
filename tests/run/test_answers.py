"""Trying an artifact by hand: every task on a model whose answer is known beforehand.

Covers: run/inputs/image.py, run/inputs/text.py, run/labels.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxopt.errors import InputError
from onnxopt.run.answers import best_span, run_text
from onnxopt.run.inputs.image import prepare
from onnxopt.run.results import Answers, Classification, Continuations, Embeddings, MaskFills, TokenLabels
from onnxopt.spec import Array
from tests.support import loaded as support

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "paris", "in", "who", "lives"]
ID = {word: number for number, word in enumerate(WORDS)}
IDS = "int64[batch, sequence] input_ids"
MASK = "int64[batch, sequence] attention_mask"

TOKENS = """
<ir_version: 10, opset_import: ["" : 20]>
g (INPUTS) => (float[batch, sequence, n] logits) { logits = Gather(table, input_ids) }
"""
POOLED = """
<ir_version: 10, opset_import: ["" : 20]>
g (INPUTS) => (float[batch, n] NAME)
{
    rows = Gather(table, input_ids)
    weight = Cast<to = 1>(attention_mask)
    last = Constant<value = int64[1] {-1}>()
    column = Unsqueeze(weight, last)
    counted = Mul(rows, column)
    middle = Constant<value = int64[1] {1}>()
    NAME = ReduceSum<keepdims = 0>(counted, middle)
}
"""


def table(entries: dict[str, list[float]]) -> Array:
    """Return float32 [words, n]: the row of each word, zeros for the others."""
    width = len(next(iter(entries.values())))
    return np.array([entries.get(word, [0.0] * width) for word in WORDS], np.float32)


def points_to(entries: dict[str, str]) -> Array:
    """Return float32 [words, words]: a high number where a word points to another."""
    square = np.zeros((len(WORDS), len(WORDS)), np.float32)
    for word, other in entries.items():
        square[ID[word], ID[other]] = 20.0
    return square


def tokenizer(*, marks: bool = True) -> Tokenizer:
    made = Tokenizer(models.WordLevel(vocab=ID, unk_token=WORDS[1]))
    made.add_special_tokens(WORDS[:5])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    made.enable_padding(length=32)  # as some checkpoints store it; it must not reach the model
    made.enable_truncation(4)
    return made


def artifact(
    folder: Path,
    text: str,
    task: str,
    *,
    inputs: str = f"{IDS}, {MASK}",
    tables: dict[str, Array] | None = None,
    files: Mapping[str, Any] | None = None,
    random: bool = False,
) -> Path:
    model = onnx.parser.parse_model(text.replace("INPUTS", inputs))
    for name, values in (tables or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    source = folder / "source"
    source.mkdir(parents=True)
    contents = {"tokenizer.json": tokenizer().to_str(), "config.json": {}} | dict(files or {})
    for name, content in contents.items():
        if content is not None:
            (source / name).write_text(content if isinstance(content, str) else json.dumps(content))
    loaded = support.loaded(
        ir.from_proto(model),
        task=task,
        assets=tuple(source.iterdir()),
        origin={"folder": str(source)},
        random_weights=random,
    )
    return support.write(folder / "out", loaded).path


# Embeddings

MOOD = table({"good": [1.0, 0.0], "bad": [0.0, 1.0], "film": [1.0, 1.0]})


def pooled(folder: Path, **more: Any) -> Path:
    text = POOLED.replace("NAME", "sentence_embedding")
    return artifact(folder, text, "feature-extraction", tables={"table": MOOD}, **more)


def test_embeds_texts_of_different_lengths_and_compares_them(tmp_path: Path) -> None:
    result = run_text(pooled(tmp_path), ["good", "bad", "good good film"])
    assert isinstance(result, Embeddings)
    assert result.output == "sentence_embedding"
    assert result.vectors == ((1.0, 0.0), (0.0, 1.0), (3.0, 1.0))
    np.testing.assert_allclose(np.diag(result.cosine), 1.0, rtol=1e-6)
    assert result.cosine[0][1] == 0.0
    assert result.cosine[0][2] == pytest.approx(3 / math.sqrt(10))
    assert result.lines()[0] == "'good': sentence_embedding of 2 numbers [1.0000, 0.0000]"
    assert "cosine 'good' · 'bad': 0.0000" in result.lines()
    assert json.loads(result.to_json())["kind"] == "embeddings"


def test_a_single_text_has_no_similarities(tmp_path: Path) -> None:
    result = run_text(pooled(tmp_path), ["good"])
    assert isinstance(result, Embeddings)
    assert result.cosine == ()


def test_averages_the_tokens_of_a_model_without_sentence_embedding(tmp_path: Path) -> None:
    text = TOKENS.replace("logits", "last_hidden_state")
    result = run_text(
        artifact(tmp_path, text, "feature-extraction", tables={"table": MOOD}), ["good film", "good film bad good"]
    )
    assert isinstance(result, Embeddings)
    assert result.vectors[0] == (0.5, 0.25)  # CLS and SEP count, as a mean over the mask does
    assert "this is the mean of last_hidden_state" in result.notes[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_where_the_tokenizer_says(tmp_path: Path, side: str) -> None:
    text = TOKENS.replace("logits", "last_hidden_state")
    files = {"tokenizer_config.json": {"padding_side": side}}
    folder = artifact(tmp_path, text, "feature-extraction", tables={"table": MOOD}, files=files)
    together = run_text(folder, ["good", "bad film bad"])
    alone = run_text(folder, ["good"])
    assert isinstance(together, Embeddings)
    assert isinstance(alone, Embeddings)
    np.testing.assert_allclose(together.vectors[0], alone.vectors[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_without_mask_gets_each_text_alone(tmp_path: Path, side: str) -> None:
    text = TOKENS.replace("logits", "last_hidden_state")
    files = {"tokenizer_config.json": {"padding_side": side}}
    folder = artifact(tmp_path, text, "feature-extraction", inputs=IDS, tables={"table": MOOD}, files=files)
    result = run_text(folder, ["good", "good film bad good"])
    assert isinstance(result, Embeddings)
    np.testing.assert_allclose(result.vectors[0], (1 / 3, 0.0))


def test_fixed_sizes_are_filled(tmp_path: Path) -> None:
    inputs = f"{IDS}, {MASK}".replace("batch", "2").replace("sequence", "6")
    result = run_text(pooled(tmp_path, inputs=inputs), ["good", "bad", "film " * 50])
    assert isinstance(result, Embeddings)
    assert result.vectors == ((1.0, 0.0), (0.0, 1.0), (4.0, 4.0))
    assert result.notes == ("text 3 was cut to the 6 tokens that the model takes",)


def test_token_types_positions_and_an_empty_cache_are_made(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (INPUTS) => (int64[batch, sequence] last_hidden_state)
    {
        first = Constant<value = int64[1] {0}>()
        shape = Shape(past_key)
        cached = Gather(shape, first)
        places = Add(position_ids, token_type_ids)
        last_hidden_state = Add(places, cached)
    }
    """
    inputs = f"{IDS}, {MASK}, int64[batch, sequence] token_type_ids, int64[batch, sequence] position_ids"
    inputs += ", float[batch, 2, past, 4] past_key"
    folder = artifact(tmp_path, text, "feature-extraction", inputs=inputs)
    result = run_text(folder, ["good"])
    assert isinstance(result, Embeddings)
    assert result.vectors == ((1.0, 2.0, 3.0),)  # positions 0, 1, 2 and the cache's batch of one


# Labels


def test_classifies_with_the_labels_of_the_config(tmp_path: Path) -> None:
    config = {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}
    folder = artifact(
        tmp_path,
        POOLED.replace("NAME", "logits"),
        "text-classification",
        tables={"table": MOOD},
        files={"config.json": config},
    )
    result = run_text(folder, ["good", "bad bad"])
    assert isinstance(result, Classification)
    assert [labels[0].label for labels in result.labels] == ["POSITIVE", "NEGATIVE"]
    assert result.labels[0][0].score == pytest.approx(1 / (1 + math.exp(-1)))
    assert result.lines()[0] == "'good': POSITIVE 0.7311, NEGATIVE 0.2689"


@pytest.mark.parametrize(
    ("kind", "score"), [("multi_label_classification", 1 / (1 + math.exp(-1))), ("regression", 1.0)]
)
def test_follows_the_configs_kind_of_problem(tmp_path: Path, kind: str, score: float) -> None:
    folder = artifact(
        tmp_path,
        POOLED.replace("NAME", "logits"),
        "text-classification",
        tables={"table": MOOD},
        files={"config.json": {"problem_type": kind}},
    )
    result = run_text(folder, ["good"])
    assert isinstance(result, Classification)
    assert result.labels[0][0].label == "LABEL_0"
    assert result.labels[0][0].score == pytest.approx(score)


def test_labels_words_and_tells_where_they_are(tmp_path: Path) -> None:
    places = table({"paris": [0.0, 9.0]})
    folder = artifact(
        tmp_path,
        TOKENS,
        "token-classification",
        tables={"table": places},
        files={"config.json": {"id2label": {"0": "O", "1": "LOC"}}},
    )
    result = run_text(folder, ["film", "good film in  paris"])
    assert isinstance(result, TokenLabels)
    assert result.lines()[:2] == ["'film': no labels", "'good film in  paris': paris = LOC 0.9999"]
    last = result.words[1][-1]
    assert (last.word, last.start, last.end) == ("paris", 14, 19)


# Hidden words, answers, continuations


def test_fills_hidden_words_however_they_are_written(tmp_path: Path) -> None:
    files = {"tokenizer_config.json": {"mask_token": {"content": "[MASK]"}}}
    folder = artifact(tmp_path, TOKENS, "fill-mask", tables={"table": points_to({"[MASK]": "film"})}, files=files)
    result = run_text(folder, ["good [MASK]", "<mask> in <mask>"])
    assert isinstance(result, MaskFills)
    assert [len(places) for places in result.fills] == [1, 2]
    assert {place[0].token for places in result.fills for place in places} == {"film"}
    assert len(result.fills[0][0]) == 5
    assert result.lines()[0].startswith("'good [MASK]': film 1.0000, ")
    with pytest.raises(InputError, match=r"text 1 hides no word; write \[MASK\] in its place"):
        run_text(folder, ["good film"])


def test_continues_a_text_until_the_end_token(tmp_path: Path) -> None:
    chain = points_to({"good": "film", "film": "in", "in": "paris", "paris": "[SEP]"})
    files = {"tokenizer.json": tokenizer(marks=False).to_str(), "config.json": {"eos_token_id": [3]}}
    folder = artifact(tmp_path, TOKENS, "text-generation", tables={"table": chain}, files=files)
    result = run_text(folder, ["bad good", "in"])
    assert isinstance(result, Continuations)
    assert result.continuations == (" film in paris", " paris")
    assert result.lines() == ["bad good film in paris", "in paris"]
    few = run_text(folder, ["good"], max_new_tokens=1)
    assert isinstance(few, Continuations)
    assert few.continuations == (" film",)


def test_stops_where_the_model_is_full(tmp_path: Path) -> None:
    files = {"tokenizer.json": tokenizer(marks=False).to_str(), "config.json": {"n_positions": 4}}
    folder = artifact(tmp_path, TOKENS, "text-generation", tables={"table": points_to({"good": "good"})}, files=files)
    result = run_text(folder, ["good good"])
    assert isinstance(result, Continuations)
    assert result.continuations == (" good good",)
    assert result.notes == ("stopped at the 4 tokens that the model takes",)


def test_finds_the_answer_in_the_context(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (INPUTS) => (float[batch, sequence] start_logits, float[batch, sequence] end_logits)
    { start_logits = Gather(starts, input_ids) end_logits = Gather(ends, input_ids) }
    """
    tables = {
        "starts": table({"good": [9.0], "who": [99.0]})[:, 0],
        "ends": table({"film": [9.0], "[SEP]": [99.0]})[:, 0],
    }
    folder = artifact(tmp_path, text, "question-answering", tables=tables)
    context = "in paris  good  film lives"
    result = run_text(folder, ["who lives"], context=context)
    assert isinstance(result, Answers)
    answer = result.answers[0]
    assert (answer.answer, context[answer.start : answer.end]) == ("good  film", "good  film")
    assert answer.score > 0.99
    with pytest.raises(InputError, match="needs a text to look in; give it with --context"):
        run_text(folder, ["who lives"])


def test_an_answer_never_ends_before_it_starts() -> None:
    start, end = np.array([0.1, 0.2, 0.7]), np.array([0.8, 0.15, 0.05])
    first, last, score = best_span(start, end)
    assert (first, last) == (0, 0)
    assert score == pytest.approx(0.08)


# Lengths and kinds


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"config.json": {"max_position_embeddings": 6}}, 6),
        ({"config.json": {"max_position_embeddings": 8, "model_type": "roberta", "pad_token_id": 1}}, 6),
        ({"tokenizer_config.json": {"model_max_length": 5}, "config.json": {"max_position_embeddings": 9}}, 5),
        ({"tokenizer_config.json": {"model_max_length": 1e30}, "config.json": {"max_position_embeddings": 9}}, 9),
        ({"tokenizer_config.json": {"model_max_length": 9}, "sentence_bert_config.json": {"max_seq_length": 7}}, 7),
    ],
)
def test_long_texts_are_cut_to_what_the_model_takes(tmp_path: Path, files: dict[str, Any], limit: int) -> None:
    result = run_text(pooled(tmp_path, files=files), ["film " * 40])
    assert isinstance(result, Embeddings)
    assert result.vectors[0][0] == limit - 2  # CLS and SEP stay
    assert result.notes == (f"text 1 was cut to the {limit} tokens that the model takes",)


def test_lowers_text_when_the_checkpoint_says_so(tmp_path: Path) -> None:
    files = {"sentence_bert_config.json": {"do_lower_case": True}}
    result = run_text(pooled(tmp_path, files=files), ["GOOD"])
    assert isinstance(result, Embeddings)
    assert result.vectors == ((1.0, 0.0),)


@pytest.mark.parametrize(
    ("config", "task"), [({"architectures": ["XForTokenClassification"]}, "token-classification"), ({}, "")]
)
def test_the_task_of_an_imported_file_comes_from_its_config(tmp_path: Path, config: dict[str, Any], task: str) -> None:
    folder = artifact(tmp_path, TOKENS, "onnx", tables={"table": MOOD}, files={"config.json": config})
    if task:
        assert run_text(folder, ["good"]).task == task
        return
    with pytest.raises(InputError, match=r"nothing says what its logits mean; put the model's config\.json"):
        run_text(folder, ["good"])


def test_random_weights_are_said(tmp_path: Path) -> None:
    assert run_text(pooled(tmp_path, random=True), ["good"]).notes == (
        "the weights are random: the answer means nothing",
    )


# Refusals


def test_an_artifact_without_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json, so text cannot be turned into tokens; copy it from"):
        run_text(pooled(tmp_path, files={"tokenizer.json": None}), ["good"])


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: cannot be read"),
        ("config.json", "{", r"config\.json: cannot be read"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json: holds no JSON object"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        run_text(pooled(tmp_path, files={name: content}), ["good"])
    assert "\n" not in str(caught.value)


def test_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    folder = pooled(tmp_path)
    with pytest.raises(InputError, match="no text to run on"):
        run_text(folder, [])
    with pytest.raises(InputError, match="no such folder"):
        run_text(tmp_path / "none", ["good"])
    other = artifact(tmp_path / "b", TOKENS, "summarization", tables={"table": MOOD})
    with pytest.raises(
        InputError, match="task 'summarization' cannot be tried with text; it can be feature-extraction"
    ):
        run_text(other, ["good"])


def test_an_empty_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="text 1 gives no tokens; write at least one word"):
        run_text(pooled(tmp_path, files={"tokenizer.json": tokenizer(marks=False).to_str()}), [""])


def test_an_input_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = artifact(
        tmp_path, TOKENS, "fill-mask", inputs=f"{IDS}, float[batch] speaker", tables={"table": points_to({})}
    )
    with pytest.raises(InputError, match="input 'speaker' is not made from text"):
        run_text(folder, ["good [MASK]"])


# Images

PIXELS = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 3, 4, 6] pixel_values) => (float[batch, 3] NAME)
{
    axes = Constant<value = int64[2] {2, 3}>()
    NAME = ReduceMean<keepdims = 0>(pixel_values, axes)
}
"""
PROCESSOR = {"size": {"height": 4, "width": 6}, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}


def red_image(folder: Path) -> Path:
    from PIL import Image

    path = folder / "red.png"
    Image.new("RGBA", (20, 10), (255, 51, 0, 255)).save(path)
    return path


def seeing(folder: Path, task: str, name: str) -> Path:
    files = {"preprocessor_config.json": PROCESSOR, "config.json": {"id2label": {"0": "red"}}, "tokenizer.json": None}
    return artifact(folder, PIXELS.replace("NAME", name), task, files=files)


def test_classifies_and_embeds_images(tmp_path: Path) -> None:
    image = str(red_image(tmp_path))
    labels = run_text(seeing(tmp_path / "a", "image-classification", "logits"), [image])
    assert isinstance(labels, Classification)
    assert [label.label for label in labels.labels[0]] == ["red", "LABEL_1", "LABEL_2"]
    vectors = run_text(seeing(tmp_path / "b", "image-feature-extraction", "pooler_output"), [image, image])
    assert isinstance(vectors, Embeddings)
    np.testing.assert_allclose(vectors.vectors[0], (1.0, 0.2, 0.0), atol=1e-6)
    assert vectors.cosine[0][1] == pytest.approx(1.0)


def test_prepares_images_as_the_processor_says() -> None:
    from PIL import Image

    image = Image.new("RGB", (40, 20), (255, 255, 255))
    cropped = prepare(image, {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": 8})
    assert cropped.shape == (3, 8, 8)
    assert cropped.dtype == np.float32
    np.testing.assert_allclose(cropped, 1.0, rtol=1e-6)
    raw = prepare(image, {"do_resize": False, "do_rescale": False, "do_normalize": False})
    assert raw.shape == (3, 20, 40)
    assert raw.max() == 255
    assert prepare(image, {"size": 5}).shape == (3, 5, 5)
    with pytest.raises(InputError, match=r"the size .* is not understood"):
        prepare(image, {"size": {"longest_edge": 3}})


def test_image_refusals_are_one_line(tmp_path: Path) -> None:
    folder = seeing(tmp_path / "a", "image-classification", "logits")
    with pytest.raises(InputError, match="no such image file; this model's task is about images: name a file"):
        run_text(folder, ["a red cat"])
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InputError, match=r"text\.png: is no readable image"):
        run_text(folder, [str(tmp_path / "text.png")])
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        run_text(folder, ["a red cat"])
