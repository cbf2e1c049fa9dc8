"""Pairs of model type and head: the generator, the comparison, the record and its tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import transformers
from onnx import numpy_helper
from transformers.models.auto import modeling_auto

from tests.census import pairs as census
from tests.census.checkpoint import FRAMES, NotMadeError, auto_class, make, small_config
from tests.census.heads import HEADS, KINDS, in_turns, named, pairs
from tests.census.judge import Judgement, NotComparedError, judge, relative_error
from tests.census.pairs import Record, in_child, outcome_of, read_records, run, write_records
from tests.census.pairs_table import kind_of, render
from tests.census.shrink import FIRST_PLACEHOLDER, HEAD, HIDDEN, VOCABULARY, small

MADE = {
    "xlm-roberta/token-classification": ["input_ids", "attention_mask", "token_type_ids"],
    "mixtral/causal-lm": ["input_ids", "attention_mask"],
    "pegasus/seq-to-seq-causal-lm": ["input_ids", "attention_mask", "decoder_input_ids"],
    "distilbert/multiple-choice": ["input_ids", "attention_mask"],
    "convnext/image-classification": ["pixel_values"],
    "swin/base": ["pixel_values"],
    "segformer/semantic-segmentation": ["pixel_values"],
    "hubert/ctc": ["input_values"],
    "audio-spectrogram-transformer/audio-classification": ["input_values"],
    "whisper/speech-seq-2-seq": ["input_features", "decoder_input_ids"],
    "siglip/zero-shot-image-classification": ["input_ids", "attention_mask", "pixel_values"],
    "layoutlm/document-question-answering": ["input_ids", "attention_mask", "token_type_ids"],
}


# What there is


def test_every_head_is_a_table_of_transformers_with_its_class() -> None:
    assert len(HEADS) >= 35
    assert {head.kind for head in HEADS.values()} == set(KINDS)
    for head in HEADS.values():
        auto = getattr(transformers, head.auto)
        table = getattr(modeling_auto, head.table)
        model_type, name = next(iter(table.items()))
        first = name if isinstance(name, str) else name[0]
        kind = auto._model_mapping[transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]]
        kinds = kind if isinstance(kind, (list, tuple)) else [kind]
        assert first in [one.__name__ for one in kinds], head.name


def test_pairs_are_named_by_patterns_and_take_turns() -> None:
    every = pairs()
    assert len(every) > 1500
    assert len({pair.name for pair in every}) == len(every)
    assert [pair.name for pair in named(["bert/masked-lm"])] == ["bert/masked-lm"]
    assert {pair.model_type for pair in named(["vit/*"])} == {"vit"}
    with pytest.raises(ValueError, match="no pair is called bart/masked-words"):
        named(["vit/*", "bart/masked-words"])
    turns = in_turns(named(["*/masked-lm", "*/ctc", "*/question-answering"]))
    assert [pair.head.name for pair in turns[:4]] == ["masked-lm", "question-answering"] * 2
    assert turns[-1].head.name == "ctc"


# Small configs


def test_words_widths_heads_and_marks_are_small_and_fit_each_other() -> None:
    whole = {
        "vocab_size": 50_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "layer_types": ["slide", "slide", "full"] * 10 + ["slide", "slide"],
        "image_token_id": 49_000,
        "video_token_index": 49_001,
        "eos_token_id": 128,
        "pad_token_id": None,
        "hidden_act": "gelu",
        "vision_config": {"hidden_size": 1024, "image_size": 336, "patch_size": 14, "num_attention_heads": 16},
    }
    made = small("none", whole, "named")
    assert made["hidden_size"] == HIDDEN
    assert made["vocab_size"] == VOCABULARY
    assert made["num_hidden_layers"] == 2
    assert made["num_attention_heads"] * HEAD == HIDDEN
    assert made["num_key_value_heads"] == 2
    assert made["layer_types"] == ["slide", "full"]
    assert made["image_token_id"] == FIRST_PLACEHOLDER
    assert made["video_token_index"] == FIRST_PLACEHOLDER - 1
    assert (made["pad_token_id"], made["eos_token_id"]) == (0, 3)
    assert made["hidden_act"] == "gelu"
    assert made["vision_config"]["image_size"] % 14 == 0
    assert made["vision_config"]["hidden_size"] == HIDDEN


def test_stages_keep_their_proportions() -> None:
    whole = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "image_size": 224, "patch_size": 4}
    made = small("none", whole, "named")
    assert made["depths"] == [2, 2, 2, 2]
    assert made["image_size"] // made["patch_size"] // 2**3 >= whole.get("window_size", 2)
    assert all(made["embed_dim"] * 2**stage % heads == 0 for stage, heads in enumerate(made["num_heads"]))
    wide = small("none", {"hidden_sizes": [64, 128, 320], "stem_channels": [32, 64]}, "named")
    assert wide["hidden_sizes"] == [16, 32, 80]


def test_grouped_heads_stay_grouped_and_single_ones_single() -> None:
    for before, after in ((16, 4), (8, 2), (1, 1)):
        made = small("none", {"num_attention_heads": 16, "num_key_value_heads": before}, "named")
        assert made["num_key_value_heads"] == after


# Checkpoints


@pytest.mark.parametrize("name", MADE)
def test_a_checkpoint_is_what_a_person_finds_on_disk(name: str, tmp_path: Path) -> None:
    (pair,) = named([name])
    made = make(pair, tmp_path)
    assert list(made.inputs) == MADE[name]
    assert 1_000 < made.parameters < 10_000_000
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    if "input_ids" in made.inputs or "decoder_input_ids" in made.inputs or pair.head.name == "ctc":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert max(tokenizer("the state of the class").input_ids) < VOCABULARY
    if "input_ids" not in made.inputs:
        content = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
        assert {"image_processor_type", "feature_extractor_type"} & set(content)
    network, report = auto_class(pair).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    flat = {key: value for key, value in network.state_dict().items() if value.is_floating_point() and value.ndim}
    drawn = [value for value in flat.values() if value.unique().numel() > 1 or value.numel() == 1]
    assert len(drawn) >= 0.9 * len(flat)  # tables of positions and the like may be alike


def test_the_same_pair_is_the_same_checkpoint(tmp_path: Path) -> None:
    (pair,) = named(["electra/question-answering"])
    for name in ("one", "two"):
        make(pair, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_pictures_and_spectrograms_have_the_size_of_the_config(tmp_path: Path) -> None:
    (pair,) = named(["dinov2/image-classification"])
    made = make(pair, tmp_path)
    size = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["image_size"]
    assert made.inputs["pixel_values"] == [2, 3, size, size]
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": size, "width": size}
    (pair,) = named(["whisper/speech-seq-2-seq"])
    config = small_config(pair, "named")
    assert make(pair, tmp_path / "sound").inputs["input_features"] == [2, config.num_mel_bins, FRAMES]


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    (pair,) = named(["perceiver/base"])
    with pytest.raises(NotMadeError, match="nothing to call it with"):
        make(pair, tmp_path)


# The comparison


def test_relative_error_sees_other_shapes_and_numbers_that_are_none() -> None:
    wanted = np.array([[1.0, -4.0]], np.float32)
    assert relative_error(wanted, wanted) == 0.0
    assert relative_error(wanted + 0.4, wanted) == pytest.approx(0.1)
    assert relative_error(wanted[0], wanted) == float("inf")
    assert relative_error(wanted * np.nan, wanted) == float("inf")
    endless = np.array([[1.0, -np.inf]], np.float32)
    assert relative_error(endless, endless) == 0.0
    assert relative_error(wanted, endless) == float("inf")


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, list[int]]]]:
    """Artifacts of an encoder, a decoder with a cache and a pair of both, each with its checkpoint."""
    from onnxopt.cli.main import main

    found = {}
    for name in ("roberta/sequence-classification", "qwen2/causal-lm", "bart/seq-to-seq-causal-lm"):
        (pair,) = named([name])
        room = tmp_path_factory.mktemp("pair")
        made = make(pair, room / "checkpoint")
        arguments = ["optimize", str(made.folder), "--task", made.task, "--no-measure", "--progress", "none"]
        assert main([*arguments, "--out", str(room / "artifact")]) == 0
        found[name] = made.folder, room / "artifact", made.inputs
    return found


def judged(name: str, optimized: dict[str, Any]) -> Judgement:
    (pair,) = named([name])
    checkpoint, artifact, shapes = optimized[name]
    return judge(pair, checkpoint, artifact, shapes)


def test_artifacts_are_equal_to_torch_and_their_attention_is_counted(optimized: dict[str, Any]) -> None:
    for name, attention in (
        ("roberta/sequence-classification", 2),
        ("qwen2/causal-lm", 2),
        ("bart/seq-to-seq-causal-lm", 6),
    ):
        found = judged(name, optimized)
        assert found.worst < 1e-5
        assert found.compared == ("logits",)
        assert found.attention == found.fused == found.total == attention


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("roberta/sequence-classification", "model.onnx"),
        ("qwen2/causal-lm", "model.onnx"),
        ("bart/seq-to-seq-causal-lm", "encoder_model.onnx"),
        ("bart/seq-to-seq-causal-lm", "decoder_model.onnx"),
    ],
)
def test_a_planted_error_is_found(name: str, file: str, optimized: dict[str, Any]) -> None:
    path = optimized[name][1] / file
    before = path.read_bytes()
    model = onnx.load(path)
    tensors = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2]
    chosen = max(tensors, key=lambda one: int(np.prod(one.dims)))
    array = numpy_helper.to_array(chosen)
    chosen.CopyFrom(numpy_helper.from_array((array * 1.01).astype(array.dtype), chosen.name))
    try:
        onnx.save(model, path)
        assert judged(name, optimized).worst > census.BUDGET
    finally:
        path.write_bytes(before)


def test_an_artifact_without_an_output_of_torch_is_not_called_right(optimized: dict[str, Any]) -> None:
    artifact = optimized["roberta/sequence-classification"][1]
    model_path, io_path = artifact / "model.onnx", artifact / "io.json"
    before = model_path.read_bytes(), io_path.read_text(encoding="utf-8")
    model = onnx.load(model_path)
    (output,) = [one for one in model.graph.output if one.name == "logits"]
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    output.name = "scores"
    try:
        onnx.save(model, model_path)
        io_path.write_text(before[1].replace('"logits"', '"scores"'), encoding="utf-8")
        with pytest.raises(NotComparedError, match="no output that transformers names alike"):
            judged("roberta/sequence-classification", optimized)
    finally:
        model_path.write_bytes(before[0])
        io_path.write_text(before[1], encoding="utf-8")


# Children and the record


@pytest.mark.parametrize(
    ("code", "said", "outcome", "reason"),
    [
        (0, "worst error 1e-7", "right", ""),
        (2, "warning: odd\nerror: /room/checkpoint: it has no head; name another\nmore", "refused", "no head"),
        (70, "error: internal error: KeyError", "crashed", "exit 70: error: internal error"),
        (1, "Traceback (most recent call last):\n  x\nKeyError: 3", "crashed", "exit 1: KeyError: 3"),
        (-signal.SIGSEGV, "", "crashed", "exit -11"),
        (-signal.SIGXCPU, "", "too slow", "more than"),
        (None, "still at it", "too slow", "more than"),
    ],
)
def test_outcomes_by_exit_code_and_words(code: int | None, said: str, outcome: str, reason: str) -> None:
    found = outcome_of(code, said, Path("/room"))
    assert found[0] == outcome
    assert reason in found[1]
    assert "/room" not in found[1]


def _sends(pipe: Connection, room: Path, what: str) -> None:
    census._bounded(room, 30)
    os.write(1, f"said {what}\n".encode())
    pipe.send(what)


def _dies(pipe: Connection, room: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _waits_with_a_child(pipe: Connection, room: Path) -> None:
    census._bounded(room, 30)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (room / "child").write_text(str(child.pid))
    time.sleep(600)


def _is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_child_answers_dies_or_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    done = in_child(_sends, tmp_path, 60, "this")
    assert (done.answer, done.code, done.said) == ("this", 0, "said this\n")
    died = in_child(_dies, tmp_path, 60)
    assert (died.answer, died.code) == (None, -signal.SIGSEGV)
    late = in_child(_waits_with_a_child, tmp_path, 8)
    assert (late.answer, late.code) == (None, None)
    assert not _is_alive(int((tmp_path / "child").read_text()))


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fake(pair: Any, room: Path) -> Record:
        assert not list(room.iterdir())
        tried.append(pair.name)
        return Record(pair.name, pair.head.task, "right", worst=0.0)

    monkeypatch.setattr(census, "try_pair", fake)
    path = tmp_path / "pairs.json"
    some = named(["bert/masked-lm", "vit/base"])
    run(some[:1], path, say=tried.append)
    run(some, path, say=lambda _: None)
    assert tried[0] == "vit/base" if some[0].name == "vit/base" else tried[0] == "bert/masked-lm"
    assert sorted(read_records(path)) == ["bert/masked-lm", "vit/base"]
    assert len([name for name in tried if "/" in name and " " not in name]) == 2
    run(some, path, again=True, say=lambda _: None)
    assert len([name for name in tried if "/" in name and " " not in name]) == 4


# Tables


def recorded(tmp_path: Path) -> dict[str, Any]:
    rows = [
        Record("bert/masked-lm", "fill-mask", "right", worst=1e-7, attention=2, fused=2, total=2),
        Record("bert/base", "feature-extraction", "wrong", "off by 3.0e-02: x", worst=0.03, fused=1, total=2),
        Record("gpt2/ctc", "automatic-speech-recognition", "refused", "GPT2ForCTC takes 3 | things"),
        Record("t5/ctc", "automatic-speech-recognition", "refused", "T5ForCTC takes 4 | things"),
        Record("x/base", "feature-extraction", "not made", "no config"),
    ]
    path = tmp_path / "pairs.json"
    write_records({row.name: row for row in rows}, path)
    assert {name: asdict(row) for name, row in read_records(path).items()} == {row.name: asdict(row) for row in rows}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_the_tables_are_what_the_record_says(tmp_path: Path) -> None:
    text = render(recorded(tmp_path))
    assert text.startswith("4 pairs of model type and head: 1 right, 1 wrong, 2 refused.")
    assert "Of 1 more no small checkpoint" in text
    assert "Attention that is one operator: 3 of 4." in text
    assert "| automatic-speech-recognition | 2 | – | – | 2 | – | – | – | 0 of 0 |" in text
    assert "| fill-mask | 1 | 1 | – | – | – | – | – | 2 of 2 |" in text
    assert "| bert | masked-lm | base (wrong) |" in text
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines == [
        "- wrong, 1: bert/base: off by 3.0e-02: x",
        "- refused, 2: gpt2/ctc, t5/ctc: GPT2ForCTC takes 3 \\| things",
    ]


def test_reasons_of_one_kind_are_one() -> None:
    assert kind_of("BertModel takes 'a' at 3") == kind_of("ViTModel takes 'b' at 4,000")
    assert kind_of("takes 'a'") != kind_of("gives 'a'")


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    recorded(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{census.MARKS[0]}\nold\n{census.MARKS[1]}\nafter\n", encoding="utf-8")
    assert census.main(["--table", str(page), "--out", str(tmp_path / "pairs.json")]) == 0
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| bert | masked-lm | base (wrong) |" in text
    assert text.endswith(f"{census.MARKS[1]}\nafter\n")
