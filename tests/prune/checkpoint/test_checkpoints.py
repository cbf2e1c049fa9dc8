"""Checkpoints lose layers, channels and words, and are checkpoints again.

Covers: load/checkpoint/opened.py, prune/checkpoint/heads.py, prune/checkpoint/network.py,
prune/checkpoint/vocabulary.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.opened import open_checkpoint
from onnxopt.prune.ahead import RECORD_NAME
from onnxopt.prune.checkpoint.heads import shrink_heads
from onnxopt.prune.checkpoint.network import cut_vocabulary, ffn_field, keep_layers, layer_changes, shrink_ffn
from onnxopt.prune.checkpoint.vocabulary import choose_tokens, renumber_ids
from onnxopt.prune.run import prune
from onnxopt.prune.spec import PruneSpec
from onnxopt.texts.tokenizer import open_tokenizer
from tests.support.command import onnxopt
from tests.support.decoders import save_decoder
from tests.support.tiny import tiny_checkpoint

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 64}
KINDS = {
    "bert": (transformers.BertModel, transformers.BertConfig, SMALL, "intermediate_size"),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config,
             {"vocab_size": 64, "n_embd": 32, "n_head": 4, "n_layer": 3}, "n_inner"),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig,
              SMALL | {"num_key_value_heads": 2}, "intermediate_size"),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config,
             SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}, "intermediate_size"),
    "distilbert": (transformers.DistilBertModel, transformers.DistilBertConfig,
                   {"vocab_size": 64, "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 64}, "hidden_dim"),
    "opt": (transformers.OPTForCausalLM, transformers.OPTConfig,
            {"vocab_size": 64, "hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 4,
             "num_hidden_layers": 3, "ffn_dim": 64, "max_position_embeddings": 64}, "ffn_dim"),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config,
              SMALL | {"num_key_value_heads": 2, "head_dim": 8}, "intermediate_size"),
}  # fmt: skip


def network_of(kind: str) -> tuple[Any, transformers.PretrainedConfig, str]:
    """A network of transformers, its config, and the name of the field that holds the width of a feed-forward."""
    made, config, settings, field = KINDS[kind]
    torch.manual_seed(1)
    network = made(config(**settings)).eval()
    for one in network.parameters():
        torch.nn.init.normal_(one, std=0.3 if one.ndim > 1 else 1.0)
    return network, network.config, field


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 64, (8, 24), generator=generator) for _ in range(count)]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def first(network: torch.nn.Module, feeds: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = network(**feeds)[0]
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_dead_channels_change_nothing_and_the_config_says_how_wide_it_is(kind: str, tmp_path: Path) -> None:
    """With half of the channels read by zeros, a network of half the width answers the same."""
    network, config, field = network_of(kind)
    found, width = ffn_field(network, config)
    assert found == field
    for module in network.modules():  # zero what reads half of the channels
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2:
            axis = 1 if isinstance(module, torch.nn.Linear) else 0
            reads = weight.shape[axis] == width and weight.shape[1 - axis] == 32
            if reads and not isinstance(module, torch.nn.Embedding):
                with torch.no_grad():
                    weight.movedim(axis, 0)[::2] = 0
    expected = first(network, batches()[0])
    spec = PruneSpec.parse("ffn=50%", importance="activation")
    report = shrink_ffn(network, config, spec, batches(), lambda _: None)
    assert [(part.before, part.after) for part in report] == [(width, width // 2)] * 3
    assert getattr(network.config, field) == width // 2
    torch.testing.assert_close(first(network, batches()[0]), expected, rtol=1e-3, atol=1e-3)
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(first(again, batches()[0]), first(network, batches()[0]), rtol=1e-5, atol=1e-5)


def test_a_refit_leaves_less_error_than_none() -> None:
    errors = {}
    for importance in ("magnitude", "activation", "error"):
        for compensate in (False, True):
            network, config, _ = network_of("bert")
            expected = first(network, batches()[-1])
            spec = PruneSpec.parse("ffn=50%", importance=importance, compensate=compensate)
            shrink_ffn(network, config, spec, batches(12)[:-1], lambda _: None)
            errors[importance, compensate] = float((first(network, batches()[-1]) - expected).square().mean())
    for importance in ("magnitude", "activation", "error"):
        assert errors[importance, True] < errors[importance, False]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "qwen3"])
def test_layers_go_and_the_rest_closes_the_gap(kind: str, tmp_path: Path) -> None:
    network, config, _ = network_of(kind)
    assert len(layer_changes(network, config, batches(1))) == 3
    keep_layers(network, config, [0, 2])
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    assert again.config.num_hidden_layers == 2
    torch.testing.assert_close(first(again, batches()[0]), first(network, batches()[0]))
    if hasattr(network, "generate"):
        ids = batches()[0]["input_ids"][:1, :5]
        assert again.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= 9  # the cache counts its layers


@pytest.mark.parametrize(("kind", "importance"), [("llama", "error"), ("llama", "magnitude"), ("qwen3", "activation")])
def test_key_heads_go_with_their_queries_and_the_cache_follows(kind: str, importance: str, tmp_path: Path) -> None:
    network, config, _ = network_of(kind)
    for module in network.modules():  # what reads the second key head's two queries is zero: nothing may change
        if isinstance(module, torch.nn.Linear) and module.in_features == 32 and module.out_features == 32:
            owner = next(name for name, one in network.named_modules() if one is module)
            if owner.endswith("o_proj"):
                with torch.no_grad():
                    module.weight[:, 16:] = 0
                    if importance == "magnitude":
                        module.weight[:, :16] *= 10
    expected = first(network, batches()[0])
    spec = PruneSpec.parse("heads=1", importance=importance)
    report = shrink_heads(network, config, spec, batches(), lambda _: None)
    assert [(part.kind, part.before, part.after) for part in report] == [("heads", 2, 1)] * 3
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    torch.testing.assert_close(first(network, batches()[0]), expected, rtol=1e-3, atol=1e-3)
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(first(again, batches()[0]), first(network, batches()[0]), rtol=1e-5, atol=1e-5)
    kept = again(**batches()[0], use_cache=True).past_key_values
    assert kept.layers[0].keys.shape[1] == 1


@pytest.mark.parametrize(("kind", "words"), [("bert", "pruned on a graph"), ("phi3", "do not lie one after the other")])
def test_heads_that_a_config_cannot_lose_stay(kind: str, words: str) -> None:
    network, config, _ = network_of(kind)
    if kind == "phi3":
        config.head_dim = 8  # queries, keys and values are packed into one weight, one after the other
    with pytest.raises(InputError, match=words):
        shrink_heads(network, config, PruneSpec.parse("heads=1"), batches(), lambda _: None)


def test_a_decoder_with_fewer_heads_keeps_its_cache(tmp_path: Path) -> None:
    import onnxopt as package

    folder = save_decoder("llama", tmp_path / "llama")
    heads = json.loads((folder / "config.json").read_text())["num_key_value_heads"]
    artifact = package.optimize(folder, out=tmp_path / "out", prune="heads=1", measure=False)
    past = next(spec for spec in artifact.manifest.signature.inputs if spec.name == "past_key_values.0.key")
    assert past.axes[1] == heads - 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_key_value_heads"] == heads - 1
    assert artifact.manifest.worst_relative_error is not None


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "opt"])
def test_rows_of_the_vocabulary_go(kind: str) -> None:
    network, config, _ = network_of(kind)
    kept = np.arange(0, 64, 2)
    ids = torch.arange(3, 30)[None]
    feeds = {"attention_mask": torch.ones_like(ids)}
    expected = first(network, {"input_ids": ids * 2, **feeds})
    cut_vocabulary(network, config, kept)
    found = first(network, {"input_ids": ids, **feeds})
    if expected.shape[-1] == 64:
        expected = expected[..., kept]
    torch.testing.assert_close(found, expected)
    assert config.vocab_size == 32


TEXTS = ["The import statement is a name.", "A class with the words: import, name!"] * 3


def make_tokenizer(kind: str, folder: Path) -> Path:
    """Train a small tokenizer of one kind on more text than the kept texts have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    from onnxopt.texts.builtin import english_text

    corpus = english_text(60_000).split(". ")
    marks = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer: trainers.Trainer
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token=marks[0]))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=marks, show_progress=False)
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=marks, unk_token=marks[0], show_progress=False)
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator(corpus, trainer)
    ids = {mark: made.token_to_id(mark) for mark in marks}
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[(m, ids[m]) for m in marks[1:3]]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    settings = {"added_tokens_decoder": {str(place): {"content": mark} for mark, place in ids.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "BPE"])
def test_a_cut_tokenizer_gives_the_same_tokens_of_the_kept_texts(kind: str, tmp_path: Path) -> None:
    from onnxopt.prune.checkpoint.vocabulary import rewrite_tokenizer

    folder = make_tokenizer(kind, tmp_path / kind)
    before = open_tokenizer(folder)
    size = before.get_vocab_size()
    cut = choose_tokens(folder, TEXTS, size, align=8)
    assert len(cut.kept) < (0.6 if kind != "BPE" else 0.75) * size
    assert len(cut.kept) % 8 == 0
    rewrite_tokenizer(folder, cut)
    after = open_tokenizer(folder)
    assert after.get_vocab_size() == len(cut.kept)
    for text in TEXTS:
        old, new = before.encode(text), after.encode(text)
        assert old.tokens == new.tokens
        assert [cut.new(one) for one in old.ids] == new.ids
        assert before.decode(old.ids) == after.decode(new.ids)
    strange = "Zebras jump quixotically."  # other words: smaller pieces, never an error
    assert len(after.encode(strange).ids) >= len(before.encode(strange).ids)
    decoded = after.decode(after.encode(strange).ids)
    assert decoded.lower().replace(" ", "") == before.decode(before.encode(strange).ids).lower().replace(" ", "")
    settings = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(place): token["content"] for place, token in settings.items()} == {
        after.token_to_id(mark): mark for mark in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")
    }


def test_ids_in_settings_are_renumbered(tmp_path: Path) -> None:
    folder = make_tokenizer("BPE", tmp_path / "bpe")
    cut = choose_tokens(folder, TEXTS, 900)
    settings = {"pad_token_id": 3, "eos_token_id": [2, 899], "bos_token_id": None, "vocab_size": 900}
    found = renumber_ids(settings, cut)
    assert found["pad_token_id"] == cut.new(3)
    assert found["eos_token_id"][0] == cut.new(2)
    assert (found["bos_token_id"], found["vocab_size"]) == (None, 900)


def test_a_checkpoint_is_pruned_on_the_command_line(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "teacher", layers=3)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    done = onnxopt("prune", folder, f"layers=1,ffn=50%,vocab=keep:{texts}", "-o", tmp_path / "small", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)["pruning"]
    assert {part["kind"] for part in told["parts"]} == {"layers", "ffn", "vocab"}
    assert told["bytes_after"] < 0.7 * told["bytes_before"]
    assert told == json.loads((tmp_path / "small" / RECORD_NAME).read_text())
    small = open_checkpoint(str(tmp_path / "small"))
    assert small.config.num_hidden_layers == 2
    assert small.config.vocab_size == open_tokenizer(tmp_path / "small").get_vocab_size()
    refused = onnxopt("prune", folder, "ffn=50%", "-o", folder)
    assert (refused.code, len(refused.error_lines)) == (2, 1)


def test_what_goes_from_checkpoint_and_graph_is_one_record(tmp_path: Path) -> None:
    """Of the folder between the two nothing is said: it is gone afterwards."""
    folder = tiny_checkpoint("bert", tmp_path / "bert", layers=3)
    whole = open_checkpoint(str(folder)).parameters
    record = prune(str(folder), PruneSpec.parse("layers=1,zeros=2:4"), tmp_path / "out")
    assert (record.source, record.spec) == (str(folder), "layers=1,zeros=2:4")
    assert record.bytes_before == 4 * whole > record.bytes_after
    assert {part["kind"] for part in record.parts} == {"layers", "zeros"}
    assert "onnxopt-" not in (tmp_path / "out" / RECORD_NAME).read_text()


def test_weights_that_are_made_up_are_not_pruned(tmp_path: Path) -> None:
    """Their architecture's own weights may lie there: they are not what was asked for."""
    folder = tiny_checkpoint("bert", tmp_path / "bert", layers=2)
    done = onnxopt("optimize", folder, "--weights", "random", "--prune", "ffn=50%", "-o", tmp_path / "out")
    assert done.code == 2
    line = f"error: {folder}: weights that are made up are neither pruned nor taught; drop --weights random"
    assert done.err.splitlines()[-1] == line
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_has_no_tokenizer_to_cut(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    texts = tmp_path / "texts.txt"
    texts.write_text("a")
    with pytest.raises(InputError, match="together with its tokenizer"):
        prune(str(model), PruneSpec.parse(f"vocab=keep:{texts}"), tmp_path / "out")
