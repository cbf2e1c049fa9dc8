"""What of a model's forward becomes an input is found by trying, and what would vanish is said or refused.

Covers: load/entry.py
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import InputError
from onnxopt.load.export.export import export
from onnxopt.load.export.forward_inputs import (
    LEFT_OUT,
    ExtraInput,
    FoundInputs,
    choose_inputs,
    find_inputs,
    inputs_of_pair,
    left_out_notes,
    optional_tensors,
)
from onnxopt.load.export.processors import made_by_processors
from onnxopt.load.source.source import resolve
from onnxopt.spec import TensorSpec
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer

if TYPE_CHECKING:
    import torch

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
TYPES = TensorSpec("token_type_ids", "int64", ("batch", "sequence"))
WIDTH = 16
TEXT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 90,
    "pad_token_id": 0,
}


def network(name: str, **settings: Any) -> Any:
    """Return a tiny model of transformers with weights drawn wide enough to be felt."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        made = kind(kind.config_class(**settings)).eval()
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3)
    return made


def tried(model: Any, *base: TensorSpec, made: frozenset[str] | None = None, **options: Any) -> FoundInputs:
    known = made_by_processors(model.config.model_type) if made is None else made
    return find_inputs(model, model.config, base or (IDS, MASK), made=known, outputs=("last_hidden_state",), **options)


def shapes(found: FoundInputs) -> dict[str, tuple[Any, ...]]:
    return {one.spec.name: (*one.spec.axes, *one.counts) for one in found.taken}


def own_model(forward: Callable[..., Any], **tables: int) -> Any:
    """Return a module with tables of the given sizes and a forward of our own, which is handed the module."""
    import torch
    from transformers import PretrainedConfig
    from transformers.modeling_outputs import BaseModelOutput

    class Own(torch.nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.config = PretrainedConfig()
            self.words = torch.nn.Embedding(50, 8)
            self.tables = torch.nn.ModuleDict({name: torch.nn.Embedding(size, 8) for name, size in tables.items()})

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.words

    def run(self: Own, *args: Any, return_dict: bool = True, **given: Any) -> Any:
        return BaseModelOutput(last_hidden_state=forward(self, *args, **given))

    run.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # where `inspect` looks first
    Own.forward = run
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Own().eval()


def test_boxes_of_words_are_an_input_with_their_range() -> None:
    found = tried(network("LayoutLMModel", **TEXT, max_2d_position_embeddings=77), IDS, MASK, TYPES)
    assert shapes(found) == {"bbox": ("batch", "sequence", 4, 77, 77, 77, 77)}
    assert found.taken[0].corners
    assert (found.dependent, found.unknown) == ((), ())


def test_boxes_and_the_picture_of_a_page_are_inputs() -> None:
    sizes = {"input_size": 32, "patch_size": 16, "coordinate_size": 3, "shape_size": 2}
    found = tried(network("LayoutLMv3Model", **TEXT, **sizes, max_2d_position_embeddings=40), IDS, MASK, TYPES)
    assert shapes(found) == {
        "bbox": ("batch", "sequence", 4, 40, 40, 40, 40),
        "pixel_values": ("batch", 3, 32, 32),
    }


def test_each_column_of_a_table_cell_has_its_own_range() -> None:
    types = [3, 19, 23, 2, 29, 31, 10]
    found = tried(network("TapasModel", **TEXT, type_vocab_sizes=types))
    assert shapes(found) == {"token_type_ids": ("batch", "sequence", 7, *types)}


@pytest.mark.parametrize(("languages", "wanted"), [(5, {"langs": ("batch", "sequence", 5)}), (1, {})])
def test_languages_are_an_input_where_there_are_several(languages: int, wanted: dict[str, Any]) -> None:
    found = tried(network("XLMModel", vocab_size=120, emb_dim=WIDTH, n_layers=1, n_heads=2, n_langs=languages))
    assert shapes(found) == wanted
    assert (found.dependent, found.unknown) == ((), ())


def test_entities_have_a_number_of_their_own_and_are_no_input_yet() -> None:
    found = tried(network("LukeModel", **TEXT, entity_vocab_size=20, entity_emb_size=8), IDS, MASK, TYPES)
    assert found.taken == ()
    assert found.dependent == ("entity_ids",)


@pytest.mark.parametrize(
    ("name", "settings", "base"),
    [
        ("BertModel", TEXT, (IDS, MASK, TYPES)),
        ("RobertaModel", {**TEXT, "pad_token_id": 1, "type_vocab_size": 1}, (IDS, MASK)),
        ("GPT2Model", {"vocab_size": 120, "n_embd": WIDTH, "n_layer": 1, "n_head": 2}, (IDS, MASK)),
        ("DistilBertModel", {"vocab_size": 120, "dim": WIDTH, "n_layers": 1, "n_heads": 2}, (IDS, MASK)),
        ("LlamaForCausalLM", TEXT, (IDS, MASK)),
    ],
)
def test_plain_models_get_no_more_inputs(name: str, settings: dict[str, Any], base: tuple[TensorSpec, ...]) -> None:
    assert tried(network(name, **settings), *base) == FoundInputs()


def test_hidden_patches_of_training_are_no_input_of_an_image_model() -> None:
    sizes = {**TEXT, "image_size": 32, "patch_size": 16}
    del sizes["vocab_size"], sizes["pad_token_id"], sizes["max_position_embeddings"]
    pixels = TensorSpec("pixel_values", "float32", ("batch", 3, 32, 32))
    model = network("ViTModel", **sizes)
    assert "bool_masked_pos" in optional_tensors(model)
    assert tried(model, pixels) == FoundInputs()


def test_labels_caches_and_counted_places_are_never_tried() -> None:
    names = {*optional_tensors(network("BertForSequenceClassification", **TEXT))}
    assert names == {"input_ids", "attention_mask", "token_type_ids"}


def test_arguments_are_found_whatever_they_are_called() -> None:
    def forward(
        self: Any,
        input_ids: torch.Tensor,
        *,
        strokes: torch.Tensor | None = None,  # three columns of two tables
        tone: torch.Tensor | None = None,  # one for each text
        echo: torch.Tensor | None = None,  # read and forgotten
        words_too: torch.Tensor | None = None,  # other text
        regions: torch.Tensor | None = None,  # any number of them
        odd: torch.Tensor | None = None,  # nothing that is made up runs
        loud: bool | None = None,
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.words(input_ids)
        if strokes is not None:
            high, low = self.tables["high"], self.tables["low"]
            hidden = hidden + high(strokes[..., 0]) + low(strokes[..., 1]) + high(strokes[..., 2])
        if tone is not None:
            hidden = hidden + self.tables["low"](tone.view(-1, 1).expand(input_ids.shape[0], 1))
        if echo is not None:
            hidden = hidden + 0 * echo.sum()
        if words_too is not None:
            hidden = hidden + self.words(words_too)
        if regions is not None:
            hidden = hidden + self.tables["high"](regions).mean(dim=1, keepdim=True)
        if odd is not None:
            raise ValueError("not like this")
        return hidden

    model = own_model(forward, high=13, low=4)
    found = tried(model, IDS, made=frozenset())
    assert shapes(found) == {"strokes": ("batch", "sequence", 3, 13, 4, 13), "tone": ("batch", 4)}
    assert found.dependent == ("regions",)
    assert found.unknown == ("odd",)
    assert tried(model, IDS, made=frozenset(), without=["strokes", "regions", "odd"]) == FoundInputs(found.taken[1:])
    words = tried(model, IDS, made=frozenset({"words_too"}))  # a tokenizer makes it: then it belongs to the model
    assert shapes(words)["words_too"] == ("batch", "sequence", 50)


def test_what_would_vanish_is_refused_with_the_option_that_drops_it() -> None:
    model = network("LukeModel", **TEXT, entity_vocab_size=20, entity_emb_size=8)
    options: dict[str, Any] = {"outputs": ("last_hidden_state",), "writes": False, "where": "here"}
    with pytest.raises(
        InputError, match=r"depends on entity_ids, .*; leave it out knowingly with --without entity_ids"
    ):
        choose_inputs(model, (IDS, MASK, TYPES), (), without=(), **options)
    extras, notes = choose_inputs(model, (IDS, MASK, TYPES), (), without=("entity_ids",), **options)
    assert extras == ()
    assert notes[0].startswith(f"{LEFT_OUT}entity_ids, as asked with --without")


def test_what_writes_token_by_token_takes_text_alone() -> None:
    model = network("XLMWithLMHeadModel", vocab_size=120, emb_dim=WIDTH, n_layers=1, n_heads=2, n_langs=3)
    with pytest.raises(InputError, match="depends on langs"):
        choose_inputs(model, (IDS, MASK), (), outputs=("logits",), writes=True, without=(), where="here")


def test_what_nothing_runs_for_is_said() -> None:
    assert left_out_notes(FoundInputs(unknown=("odd",)), ()) == [
        f"{LEFT_OUT}odd: optional in the model, and no values are known for it"
    ]
    assert left_out_notes(FoundInputs(), ()) == []


class Pair:
    """An encoder-decoder of a type whose processor makes pictures, too."""

    class config:  # noqa: N801  as transformers' modules have it
        model_type = "t5gemma2"

    main_input_name = "input_ids"

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        hints: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> None:
        """Never called."""


def test_an_encoder_decoder_does_not_lose_its_pictures() -> None:
    with pytest.raises(InputError, match=r"may depend, on pixel_values, .* --without pixel_values"):
        inputs_of_pair(Pair(), (IDS, MASK), (), where="here")
    notes = inputs_of_pair(Pair(), (IDS, MASK), ("pixel_values",), where="here")
    assert [note.split(",")[0].split(": ")[1] for note in notes] == ["pixel_values", "hints"]
    with pytest.raises(InputError, match=r"no input 'decoder_input_ids' .* --without takes pixel_values, hints"):
        inputs_of_pair(Pair(), (IDS, MASK), ("decoder_input_ids",), where="here")


def test_plain_encoder_decoders_have_nothing_to_lose() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = network("BartForConditionalGeneration", vocab_size=120, d_model=WIDTH, **sizes)
    assert inputs_of_pair(model, (IDS, MASK), (), where="here") == ()


def test_drawn_values_keep_to_their_ranges() -> None:
    spec = TensorSpec("bbox", "int64", ("batch", "sequence", 4))
    made = ExtraInput(spec, (9, 5, 9, 5), corners=True).draw((40, 30, 4), np.random.default_rng(0))
    assert made.dtype == np.int64
    assert made.min(axis=(0, 1)).tolist() == [0, 0, 0, 0]
    assert made.max(axis=(0, 1)).tolist() == [8, 4, 8, 4]
    assert (made[..., 2:] >= made[..., :2]).all()
    assert (made[..., 2:] > made[..., :2]).any()
    one = ExtraInput(spec, (9, 5, 9, 5), corners=True)
    assert ExtraInput.from_json(one.to_json()) == one


GEMMA: dict[str, Any] = {
    "text_config": {
        **TEXT,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 220,
    },
    "vision_config": {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 24,
        "patch_size": 6,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 219,
    "boi_token_index": 218,
    "eoi_token_index": 217,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def saved(folder: Path, name: str, **settings: Any) -> Path:
    """Write a checkpoint with a tokenizer and return its folder."""
    place = folder / name
    network(name, **settings).save_pretrained(place)
    return tiny_tokenizer(place)


def test_exported_file_takes_boxes_and_follows_them(folder: Path) -> None:
    import onnxruntime

    path = saved(folder, "LayoutLMModel", **{**TEXT, "vocab_size": 200}, max_2d_position_embeddings=60)
    loaded = export(resolve(str(path)), exporter="torchscript")
    assert [spec.name for spec in loaded.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids", "bbox"]
    assert loaded.signature.inputs[3].axes == ("batch", "sequence", 4)
    again = export(resolve(str(path)), exporter="torchscript")  # from the cache
    feeds = loaded.feeder.make({"batch": 3, "sequence": 21}, "right", seed=4)
    assert all(
        np.array_equal(feeds[name], again.feeder.make({"batch": 3, "sequence": 21}, "right", seed=4)[name])
        for name in feeds
    )
    assert feeds["bbox"].max() > 40
    assert not feeds["bbox"][feeds["attention_mask"] == 0].any()
    graph = path.parent / "graph.onnx"
    ir.save(loaded.model, graph)
    session = onnxruntime.InferenceSession(graph)
    real = feeds["attention_mask"] == 1
    found = session.run(["last_hidden_state"], feeds)[0][real]
    np.testing.assert_allclose(found, again.reference.run(feeds)["last_hidden_state"][real], rtol=1e-4, atol=1e-5)
    without = session.run(["last_hidden_state"], {**feeds, "bbox": 0 * feeds["bbox"]})[0][real]
    assert np.abs(without - found).max() > 0.1


def test_a_model_of_pictures_and_text_does_not_become_its_text_half(folder: Path) -> None:
    path = saved(folder, "Gemma3ForConditionalGeneration", **GEMMA)
    with pytest.raises(InputError, match="--without token_type_ids,pixel_values") as caught:
        export(resolve(str(path)), exporter="torchscript")
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=r"no input 'pictures' .*--without takes pixel_values, token_type_ids"):
        export(resolve(str(path)), exporter="torchscript", without=("pictures",))
    loaded = export(resolve(str(path)), exporter="torchscript", without=("pixel_values", "token_type_ids"))
    assert loaded.notes[0].startswith(f"{LEFT_OUT}pixel_values, token_type_ids, as asked")
    assert loaded.signature.inputs[0].name == "input_ids"


def test_token_types_can_be_left_out_knowingly(folder: Path) -> None:
    path = tiny_checkpoint("bert", folder / "bert")
    loaded = export(resolve(str(path)), exporter="torchscript", without=("token_type_ids",))
    assert [spec.name for spec in loaded.signature.inputs] == ["input_ids", "attention_mask"]
    assert loaded.notes == [
        f"{LEFT_OUT}token_type_ids, as asked with --without: answers are those of the model without it"
    ]
    with pytest.raises(InputError, match="no input 'attention_mask' that could be left out"):
        export(resolve(str(path)), exporter="torchscript", without=("attention_mask",))


def test_what_is_left_out_is_printed_before_the_result(tmp_path: Path, folder: Path) -> None:
    from rich.console import Console

    from onnxopt.cli.live import print_summary
    from onnxopt.road.optimize import optimize

    path = tiny_checkpoint("bert", folder / "again", layers=1)
    made = optimize(path, out=tmp_path / "out", without="token_type_ids", exporter="torchscript", measure=False)
    stream = io.StringIO()
    print_summary(Console(file=stream, width=200), made)
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0].startswith(f"note          {LEFT_OUT}token_type_ids")
    assert sum(LEFT_OUT in line for line in lines) == 1


def test_an_import_keeps_its_inputs(tmp_path: Path) -> None:
    from onnxopt.load.entry import load

    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"an \.onnx file keeps its inputs; drop --without"):
        load(resolve(str(tmp_path / "a.onnx")), without="bbox")
