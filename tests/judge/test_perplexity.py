"""Perplexity: the number that can be worked out by hand, the same on every road.

Covers: judge/language_models.py, texts/files.py, texts/windows.py
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.judge.perplexity import measure_perplexity
from onnxopt.load.checkpoint.folder import read_checkpoint, weights_digest
from onnxopt.load.source.source import resolve
from onnxopt.texts.files import read_text
from onnxopt.texts.windows import cut
from tests.support.decoder import (
    CONTEXT,
    VOCABULARY,
    TinyDecoder,
    bigram_model,
    byte_tokenizer,
    decoder_artifact,
    decoder_model,
    folder_of,
)
from tests.support.tiny import tiny_checkpoint

TEXT = "the cat sat on the mat and the dog sat on the log; " * 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def ids_of(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(byte_tokenizer(folder) / "tokenizer.json"))
    return list(tokenizer.encode(text).ids)


def bigram(folder: Path, table: np.ndarray, **options: Any) -> Path:
    logits = options.pop("logits", "all")
    cached = options.pop("cached", True)
    model = bigram_model(table.astype(np.float32), logits, cached=cached)
    options.setdefault("decoding", cached)
    return decoder_artifact(folder, model, shared=False, logits=logits, context=0, **options)


def test_a_model_that_knows_nothing_hesitates_between_all_tokens(text: Path, tmp_path: Path) -> None:
    for cached in (True, False):
        folder = bigram(tmp_path / f"cached-{cached}", np.zeros((VOCABULARY, VOCABULARY)), cached=cached)
        found = measure_perplexity(folder, text=text)
        assert found.scores[0].perplexity == pytest.approx(VOCABULARY, rel=1e-12)
        assert (found.windows, found.predicted) == (1, len(TEXT) - 1)


def test_known_probabilities_give_the_number_of_the_hand(tmp_path: Path) -> None:
    # after a: b with 3/4; after b: a with 1/8; windows of 4 tokens: a→b b→a a→b, three predictions each
    a, b = ids_of(tmp_path / "words", "ab")
    table = np.full((VOCABULARY, VOCABULARY), -np.inf)
    rest = [one for one in range(VOCABULARY) if one not in (a, b)]
    table[a, b], table[a, rest] = math.log(3 / 4), math.log(1 / 4 / len(rest))
    table[b, a], table[b, rest] = math.log(1 / 8), math.log(7 / 8 / len(rest))
    (tmp_path / "ab.txt").write_text("ab" * 6)
    for logits in ("all", "last"):
        folder = bigram(tmp_path / logits, table, logits=logits)
        found = measure_perplexity(folder, text=tmp_path / "ab.txt", window=4)
        assert (found.windows, found.predicted) == (3, 9)
        expected = math.exp(-(2 * math.log(3 / 4) + math.log(1 / 8)) / 3)
        assert found.scores[0].perplexity == pytest.approx(expected, rel=1e-6)
        assert found.scores[0].low == pytest.approx(expected, rel=1e-6)  # all windows are alike


def test_every_road_gives_the_number_of_numpy(text: Path, tmp_path: Path) -> None:
    tiny, ids = TinyDecoder(), ids_of(tmp_path / "words", TEXT)
    losses = np.concatenate([tiny.nll(ids[start : start + 40]) for start in range(0, len(ids), 40)])
    hashes = set()
    for form in ("shared", "packed", "growing"):
        for logits in ("last", "all"):
            found = measure_perplexity(folder_of(tmp_path, form, logits), text=text, window=40)
            assert found.predicted == len(losses)
            assert found.scores[0].loss == pytest.approx(losses.mean(), rel=1e-5)
            assert found.scores[0].low < found.scores[0].perplexity < found.scores[0].high
            hashes.add(found.tokens_sha256)
    assert len(hashes) == 1


def test_with_a_stride_each_token_counts_once_with_more_before_it(text: Path, tmp_path: Path) -> None:
    tiny, ids = TinyDecoder(), ids_of(tmp_path / "words", TEXT)
    losses = [tiny.nll(ids[:40])]
    end = 40
    while end < len(ids):
        start = end - 30
        end = min(start + 40, len(ids))
        losses.append(tiny.nll(ids[start:end])[29:])
    for logits in ("last", "all"):
        folder = folder_of(tmp_path, "shared", logits)
        found = measure_perplexity(folder, text=text, window=40, stride=10)
        assert found.predicted == len(TEXT) - 1
        assert found.scores[0].loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)


def test_the_batch_changes_nothing(text: Path, tmp_path: Path) -> None:
    for logits in ("last", "all"):
        folder = folder_of(tmp_path, "growing", logits)
        found = [measure_perplexity(folder, text=text, window=30, batch=size).scores[0].loss for size in (1, 3, 64)]
        assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_the_window_is_what_the_model_takes_when_that_is_less(text: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shared")
    assert measure_perplexity(folder, text=text).window == CONTEXT
    with pytest.raises(InputError, match=f"the window is {CONTEXT + 1}, the model takes {CONTEXT}"):
        measure_perplexity(folder, text=text, window=CONTEXT + 1)


def test_the_builtin_text_is_used_in_part_and_that_is_noted(tmp_path: Path) -> None:
    found = measure_perplexity(folder_of(tmp_path, "shared", "all"))
    assert found.windows == 64
    assert found.notes[0].startswith("the first 64 of ")
    assert measure_perplexity(folder_of(tmp_path, "shared", "all"), max_windows=3).windows == 3


def test_windows_lie_side_by_side_and_the_last_may_be_shorter() -> None:
    windows = cut(np.arange(10), 4, 4)
    assert [one.ids.tolist() for one in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [one.first for one in windows] == [1, 1, 1]
    assert len(cut(np.arange(9), 4, 4)) == 2  # a single token is nothing to predict


def test_windows_with_a_stride_count_what_is_new() -> None:
    windows = cut(np.arange(9), 4, 2)
    assert [one.ids.tolist() for one in windows] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8]]
    assert [one.first for one in windows] == [1, 2, 2, 2]


def test_a_prefix_starts_each_window_and_makes_the_first_token_count() -> None:
    windows = cut(np.arange(7), 4, 4, prefix=[99])
    assert [one.ids.tolist() for one in windows] == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6]]
    assert [one.first for one in windows] == [1, 1, 1]


def test_a_tokenizer_that_adds_a_beginning_gives_it_to_each_window(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, processors

    folder = folder_of(tmp_path, "shared", "all")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = [("<pad>", 257), ("<end>", 256)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<pad> $A <end>", special_tokens=specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("ONNXOPT_LIMITS", "verify=0")  # it is ours
    found = measure_perplexity(folder, text=text, window=41)
    ids, tiny = ids_of(tmp_path / "words", TEXT), TinyDecoder()
    losses = np.concatenate([tiny.nll([257, *ids[start : start + 40]]) for start in range(0, len(ids), 40)])
    assert found.predicted == len(ids)
    assert found.scores[0].loss == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"window": 1}, "the window is 1"),
        ({"window": 0}, "the window is 0"),
        ({"window": 8, "stride": 0}, "the stride is 0"),
        ({"window": 8, "stride": 9}, "the stride is 9"),
        ({"batch": 0}, "the batch is 0"),
        ({"max_windows": 0}, "the number of windows is 0"),
        ({"text": "missing.txt"}, "cannot be read"),
        ({"original": True}, "nothing says which checkpoint"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], reason: str, text: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shared", "all")
    with pytest.raises(InputError, match=reason):
        measure_perplexity(folder, **{"text": text, **options})


def test_bad_texts_are_refused(tmp_path: Path) -> None:
    for content, reason in ((b"\xff", "not UTF-8"), (b" \n", "holds no text")):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_text(tmp_path / "t")
    (tmp_path / "t").write_text("a")
    with pytest.raises(InputError, match="the text has 1 tokens"):
        measure_perplexity(folder_of(tmp_path, "shared"), text=tmp_path / "t")


def test_a_model_of_something_else_is_refused(tmp_path: Path) -> None:
    model = decoder_model(TinyDecoder(), "growing")
    del model.graph.output[0]
    folder = decoder_artifact(tmp_path / "a", model, shared=False)
    with pytest.raises(InputError, match="no output 'logits'"):
        measure_perplexity(folder)
    no_cache = bigram(tmp_path / "b", np.zeros((VOCABULARY, VOCABULARY)), logits="last", cached=False)
    with pytest.raises(InputError, match="gives the last position only and has no cache"):
        measure_perplexity(no_cache)


def tiny_gpt2(tmp_path: Path) -> tuple[Path, Path]:
    """Return a checkpoint folder, and an artifact that says it was made from it."""
    folder = tiny_checkpoint("gpt2", tmp_path / "gpt2")
    digest = weights_digest(read_checkpoint(resolve(str(folder))))
    origin = {
        "source": str(folder),
        "kind": "folder",
        "weights": "pretrained",
        "weights_sha256": hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest(),
    }
    table = np.zeros((200, 200))
    artifact = bigram(tmp_path / "made", table, origin=origin, tokenizer=False)
    (artifact / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    return folder, artifact


def test_the_original_is_asked_for_the_same_tokens(text: Path, tmp_path: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer

    folder, artifact = tiny_gpt2(tmp_path)
    found = measure_perplexity(artifact, text=text, window=20, original=True)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    sums = []
    for start in range(0, len(ids), 20):
        row = torch.tensor([ids[start : start + 20]])
        if row.shape[1] > 1:
            with torch.inference_mode():
                sums += [float(model(row, labels=row).loss)] * (row.shape[1] - 1)
    ours, original = found.scores
    assert original.name == "original"
    assert original.loss == pytest.approx(np.mean(sums), rel=1e-4)
    assert ours.perplexity == pytest.approx(200)
    assert found.ratio == pytest.approx(ours.perplexity / original.perplexity)
    assert found.ratio_low is not None
    assert found.ratio is not None
    assert found.ratio_high is not None
    assert found.ratio_low < found.ratio < found.ratio_high
    assert any(line.startswith("ratio") for line in found.lines())


def test_an_original_that_has_changed_is_refused(text: Path, tmp_path: Path) -> None:
    folder, artifact = tiny_gpt2(tmp_path)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(InputError, match="has changed since"):
        measure_perplexity(artifact, text=text, original=True)
