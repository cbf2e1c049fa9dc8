"""Encoder-decoders that classify, in one graph: read at the end mark of each row, as transformers reads them.

Covers: load/export/marked_rows.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from onnxopt.errors import InputError
from onnxopt.load.export.export import export
from onnxopt.load.export.marked_rows import as_written, end_of, read_at_marks, runs_alone
from onnxopt.load.feeds import TextFeeder, Tokens
from onnxopt.load.source.source import resolve
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Padding, TensorSpec
from tests.support.tiny import spread_weights, tiny_tokenizer

END, PAD, VOCABULARY = 3, 0, 200  # of the tokenizer of the tests
_MARKS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
_BART = _MARKS | {"d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 40}
_BART |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 3, "decoder_attention_heads": 2}
_BART |= {"max_position_embeddings": 60}
_T5 = {**_MARKS, "d_model": 28, "d_ff": 36, "d_kv": 6, "num_layers": 2, "num_heads": 3}


def network_of(kind: str, settings: dict[str, Any], **more: Any) -> Any:
    """Return an encoder-decoder with a head, by the name of its class."""
    made = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        network = made(made.config_class(**settings, **more)).eval()
        spread_weights(network)
    return network


def saved(folder: Path, kind: str, settings: dict[str, Any], **more: Any) -> str:
    """Write a checkpoint and return its folder."""
    network_of(kind, settings, **more).save_pretrained(folder)
    return str(tiny_tokenizer(folder))


@pytest.mark.parametrize(
    ("kind", "settings", "outputs"),
    [
        ("BartForSequenceClassification", _BART, {"logits": ("batch", 5)}),
        ("MT5ForSequenceClassification", _T5, {"logits": ("batch", 5)}),
        ("MBartForQuestionAnswering", _BART, dict.fromkeys(("start_logits", "end_logits"), ("batch", "sequence"))),
        ("T5ForTokenClassification", _T5, {"logits": ("batch", "sequence", 5)}),
    ],
)
def test_heads_of_encoder_decoders_are_exported_whole(
    kind: str, settings: dict[str, Any], outputs: dict[str, Any], tmp_path: Path
) -> None:
    labels = 2 if "Question" in kind else 5
    folder = saved(tmp_path, kind, settings, num_labels=labels)
    loaded = export(resolve(folder))
    assert outputs == {spec.name: spec.axes for spec in loaded.signature.outputs}
    assert [spec.name for spec in loaded.signature.inputs] == ["input_ids", "attention_mask"]
    plain = getattr(transformers, kind).from_pretrained(folder).eval()  # nothing of it is changed
    runner = GraphRunner(loaded.model)
    paddings: tuple[Padding, ...] = ("right", "left", "none", "holes")
    for seed, padding in enumerate(paddings):
        feeds = loaded.feeder.make({"batch": 4, "sequence": 19}, padding, seed=seed)
        with torch.inference_mode():
            expected = plain(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        found = runner.run(feeds)[0]
        for name in outputs:
            np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-3, atol=1e-4)


def test_rows_of_other_lengths_get_what_they_get_alone(tmp_path: Path) -> None:
    runner = GraphRunner(export(resolve(saved(tmp_path, "BartForSequenceClassification", _BART, num_labels=3))).model)
    rows = [[2, 9, 8, END], [2, 5, END], [2, 11, END, END, 12, 13, END]]  # the last as a pair of texts is written
    ids = np.full((3, 9), PAD)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    together = runner.run({"input_ids": ids, "attention_mask": (ids != PAD).astype(np.int64)})[0]["logits"]
    for logits, own in zip(together, rows, strict=True):
        one = np.array([own])
        alone = runner.run({"input_ids": one, "attention_mask": np.ones_like(one)})[0]["logits"][0]
        np.testing.assert_allclose(logits, alone, atol=1e-4)


def test_only_masks_of_rows_are_read_so_and_only_while_it_is_traced() -> None:
    class Reads(torch.nn.Module):
        """Indexes its input in the way of the classifiers, and in another."""

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            counts = torch.unique_consecutive(mask.sum(1))
            return states[mask, :], states[mask], states[:, 1:, :], counts

    module = Reads()
    read_at_marks(module)
    states = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    marked, others, middle, counts = module(states, mask)
    assert torch.equal(marked, torch.stack([states[0, 1], states[1, 2]]))
    assert torch.equal(others, states[mask]) and torch.equal(middle, states[:, 1:])
    assert counts.tolist() == [2]
    with as_written(module):
        assert torch.equal(module(states, mask)[0], states[mask])
    assert torch.equal(module(states, mask)[0], marked)


def test_the_mark_is_found_by_trying() -> None:
    classifier, answers = (network_of(f"T5For{head}", _T5) for head in ("SequenceClassification", "QuestionAnswering"))
    for network in (classifier, answers):
        read_at_marks(network)
        assert runs_alone(network) == ""
    assert end_of(classifier, classifier.config) == END
    assert end_of(answers, answers.config) is None


@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
def test_every_row_has_its_mark_where_a_model_looks_for_it(padding: Padding) -> None:
    inputs = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    made = TextFeeder(inputs, Tokens(VOCABULARY, PAD, special=(PAD, END), end=END))
    for length in (1, 2, 13):
        feeds = made.make({"batch": 6, "sequence": length}, padding, seed=length)
        marks = feeds["input_ids"] == END
        assert marks.sum(axis=1).tolist() == [1] * 6
        assert (feeds["attention_mask"][marks] == 1).all()


def test_a_decoder_with_a_text_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="T5Model is an encoder-decoder that does not run on one text alone"):
        export(resolve(saved(tmp_path, "T5Model", _T5)))
