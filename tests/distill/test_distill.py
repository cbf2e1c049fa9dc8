"""A student learns what its teacher does, the same on one process and on two, and comes out as a checkpoint.

Covers: distill/batches.py, distill/data.py, distill/look.py, distill/losses.py, distill/memory.py, distill/models.py,
distill/run.py, distill/settings.py, distill/train.py, distill/worker.py, prune/checkpoint/student.py, texts/rows.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.distill.run import distill
from onnxopt.distill.settings import RECORD_NAME, Distillation, Settings
from onnxopt.errors import InputError
from tests.support.command import onnxopt
from tests.support.tiny import tiny_checkpoint

COMMON: dict[str, Any] = {
    "steps": 6,
    "batch": 8,
    "length": 32,
    "most_rows": 60,
    "evaluate_every": 2,
    "learning_rate": 2e-3,
}


def losses(record: Distillation) -> list[float]:
    return [point.loss for point in record.curve if point.loss is not None]


def metrics(record: Distillation) -> list[float | None]:
    return [point.metric for point in record.curve]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("gpt2", tmp_path_factory.mktemp("teacher") / "gpt2", layers=3, task="text-generation")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    return tiny_checkpoint("bert", tmp_path_factory.mktemp("teacher") / "bert", layers=3, pooling=pooling)


def test_two_processes_give_the_curve_of_one(decoder: Path, tmp_path: Path) -> None:
    options = {**COMMON, "losses": {"logits": 1.0, "hidden": 0.5, "task": 0.5}, "threads": 1}
    one = distill(str(decoder), tmp_path / "one", student="layers=2", **options)
    two = distill(str(decoder), tmp_path / "two", student="layers=2", processes=2, **options)
    assert (one.processes, two.processes) == (1, 2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert metrics(two) == pytest.approx(metrics(one), rel=1e-4)
    assert losses(one)[-1] < losses(one)[0]


def test_pieces_of_an_update_add_up_to_it(embedder: Path, tmp_path: Path) -> None:
    whole = distill(str(embedder), tmp_path / "whole", student="layers=2", **COMMON)
    pieces = distill(str(embedder), tmp_path / "pieces", student="layers=2", accumulate=4, **COMMON)
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-4)


def test_a_resumed_run_goes_on_where_it_stopped(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.distill import train

    whole = distill(str(decoder), tmp_path / "whole", student="layers=2", **COMMON)
    save = train._Run._save

    def save_and_stop(run: train._Run, step: int, *rest: object) -> None:
        save(run, step, *rest)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(train._Run, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        distill(str(decoder), tmp_path / "parts", student="layers=2", save_every=2, **COMMON)
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(train._Run, "_save", save)
    parts = distill(str(decoder), tmp_path / "parts", student="layers=2", save_every=2, resume=True, **COMMON)
    assert parts.resumed_at == 4
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".student")) == ["parts", "whole"]
    with pytest.raises(InputError, match="no saved state"):
        distill(str(decoder), tmp_path / "parts", student="layers=2", resume=True, **COMMON)


def test_the_student_goes_through_optimize(embedder: Path, tmp_path: Path) -> None:
    import onnxopt as package

    record = distill(str(embedder), tmp_path / "student", student="layers=2,ffn=50%", **COMMON)
    assert record.metric == "mean cosine with the teacher"
    assert record.after > record.before
    assert record.teacher_metric == pytest.approx(1.0, abs=1e-5)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (2, 32)
    artifact = package.optimize(tmp_path / "student", out=tmp_path / "out", measure=False)
    assert str(artifact.manifest.blocks["attention"]) == "2 of 2"
    assert "sentence_embedding" in [spec.name for spec in artifact.manifest.signature.outputs]


def test_the_weights_are_those_of_the_best_look(decoder: Path, tmp_path: Path) -> None:
    record = distill(
        str(decoder), tmp_path / "wild", student="layers=2", patience=2, **{**COMMON, "steps": 30, "learning_rate": 5.0}
    )
    assert record.stopped_early
    assert record.steps < 30
    assert record.after == min(point.metric for point in record.curve if point.metric is not None)
    again = distill(str(decoder), tmp_path / "again", student=str(tmp_path / "wild"), **{**COMMON, "steps": 1})
    assert record.after == pytest.approx(again.before, rel=1e-5)


def test_labels_are_learnt_with_the_task_loss(tmp_path: Path) -> None:
    teacher = tiny_checkpoint("bert", tmp_path / "teacher", task="text-classification")
    rows = [{"text": f"the word {word}", "label": index % 6} for index, word in enumerate("import name class for" * 20)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {**COMMON, "data": (str(data),), "losses": {"task": 1.0}}
    record = distill(str(teacher), tmp_path / "student", student="layers=1", **options)
    assert record.curve[-1].parts.keys() == {"task"}
    assert losses(record)[-1] < losses(record)[0]


def test_masks_are_filled_by_the_student(tmp_path: Path) -> None:
    teacher = tiny_checkpoint("bert", tmp_path / "teacher", task="fill-mask")
    record = distill(str(teacher), tmp_path / "student", student="layers=1", **COMMON)
    assert record.metric == "agreement with the teacher"
    assert record.teacher_metric == 1.0
    assert losses(record)[-1] < losses(record)[0]


def test_a_narrower_student_learns_through_projections(embedder: Path, tmp_path: Path) -> None:
    narrow = tiny_checkpoint(
        "bert",
        tmp_path / "narrow",
        hidden=16,
        pooling={"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
    )
    options = {**COMMON, "losses": {"hidden": 1.0}}
    record = distill(str(embedder), tmp_path / "student", student=str(narrow), **options)
    assert losses(record)[-1] < losses(record)[0]
    import safetensors.numpy

    names = safetensors.numpy.load_file(tmp_path / "student" / "model.safetensors")
    assert not [name for name in names if "projection" in name]


@pytest.mark.parametrize("top_k", [0, 5, 40])
def test_soft_targets_are_the_divergence(top_k: int) -> None:
    import torch

    from onnxopt.distill.losses import distribution, likeliest

    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 40)) * 3
    p, q = (np.exp(one / 2) / np.exp(one / 2).sum(-1, keepdims=True) for one in (teacher, student))
    given = {"logits": torch.from_numpy(teacher)}
    if top_k:
        given = dict(zip(("best", "index"), likeliest(given["logits"], temperature=2.0, top_k=top_k), strict=True))
        best = np.argsort(-p, axis=-1)[:, :top_k]
        p, q = (np.take_along_axis(one, best, -1) for one in (p, q))
    if top_k == 5:
        p, q = (np.concatenate([one, 1 - one.sum(-1, keepdims=True)], -1) for one in (p, q))
    expected = 4 * float((p * np.log(p / q)).sum())
    found = distribution(torch.from_numpy(student), **given, temperature=2.0)
    assert expected == pytest.approx(float(found), rel=1e-4)


def test_what_the_teacher_said_is_remembered(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers kept, a second epoch learns the same and asks the teacher nothing."""
    from onnxopt.distill import train
    from onnxopt.load.checkpoint.opened import answers

    options = {**COMMON, "most_rows": 18, "top_k": 8, "hold_out": 0.1}  # 16 rows, two updates each epoch
    plain = distill(str(decoder), tmp_path / "plain", student="layers=2", **options)
    asked: list[int] = []

    def counted(network: Any, *rest: Any, **names: Any) -> Any:
        asked.append(sum(one.numel() for one in network.parameters()))
        return answers(network, *rest, **names)

    monkeypatch.setattr(train, "answers", counted)
    kept = distill(str(decoder), tmp_path / "kept", student="layers=2", cache_teacher=True, **options)
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-5)
    assert asked.count(kept.teacher_parameters) == 1 + 2, "what is unused was looked for, and two updates"


def test_a_long_text_is_read_in_pieces_without_loss(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxopt.texts import rows

    text = tmp_path / "long.txt"
    text.write_text("".join(f"word {number} and the next one.\n\n" for number in range(400)))
    options: dict[str, Any] = {"length": 16, "running": True, "pad": 0}
    whole = rows.read_rows([str(text)], decoder, **options)
    monkeypatch.setattr(rows, "_PIECE", 100)
    assert len(list(rows._pieces(text.read_text()))) > 50
    assert "".join(rows._pieces(text.read_text())) == text.read_text()
    assert np.array_equal(rows.read_rows([str(text)], decoder, **options).ids, whole.ids)
    assert len(rows.read_rows([str(text)], decoder, **options, most=7)) == 7


def test_the_text_to_look_at_may_be_another(decoder: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("The rain in Spain stays mainly in the plain, they say.\n" * 40)
    record = distill(str(decoder), tmp_path / "out", student="layers=2", evaluate=str(text), **COMMON)
    assert record.rows == COMMON["most_rows"]
    again = distill(str(decoder), tmp_path / "own", student="layers=2", **COMMON)
    assert record.teacher_metric != pytest.approx(again.teacher_metric, rel=0.01)


def test_a_student_learns_where_its_teacher_looks(embedder: Path, tmp_path: Path) -> None:
    options = {**COMMON, "steps": 20, "learning_rate": 5e-3, "losses": {"attention": 1.0}}
    record = distill(str(embedder), tmp_path / "student", student="layers=2", **options)
    assert losses(record)[-1] < losses(record)[0]
    import torch

    from onnxopt.distill.losses import attentions

    rows = torch.softmax(torch.randn(2, 5, 3, 7), dim=-1)
    same = torch.distributions.kl_divergence(*map(torch.distributions.Categorical, rows))
    assert float(attentions(rows[1], rows[0])) == pytest.approx(float(same.mean(dim=-1).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student": "layers=9"}, "layers=9 of 3"),
        ({"student": "nowhere"}, "neither a checkpoint folder nor a way to make one"),
        ({"student": "heads=2"}, "pruned on a graph"),
        ({"batch": 7, "accumulate": 2}, "does not divide"),
        ({"length": 4000}, "longer than the teacher's"),
        ({"losses": {"embedding": 1.0}}, "no sentence embedding"),
        ({"losses": {"warmth": 1.0}}, "unknown loss"),
        ({"cache_teacher": True}, "too many to keep"),
        ({"cache_teacher": True, "top_k": 8, "losses": {"hidden": 1.0}}, "only what a language model says"),
        ({"data": ("absent.txt",)}, "no such"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(
    decoder: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        distill(str(decoder), tmp_path / "out", **{**COMMON, "student": "layers=2", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_student_with_another_vocabulary_is_refused(decoder: Path, tmp_path: Path) -> None:
    import transformers

    other = tmp_path / "other"
    network = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    network.resize_token_embeddings(100, mean_resizing=False)
    network.save_pretrained(other)
    with pytest.raises(InputError, match="vocabulary of 100"):
        distill(str(decoder), tmp_path / "out", student=str(other), **COMMON)


def test_the_command_writes_a_checkpoint_and_says_how_it_went(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    arguments = [
        "distill",
        decoder,
        "--student",
        "layers=1",
        "--steps",
        "2",
        "--batch",
        "4",
        "--length",
        "32",
        "--json",
    ]
    refused = onnxopt(*arguments, "-o", tmp_path / "taken")
    assert (refused.code, len(refused.error_lines)) == (2, 1)
    done = onnxopt(*arguments, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    told = json.loads(done.out)["distillation"]
    assert told == json.loads((tmp_path / "out" / RECORD_NAME).read_text())
    assert told["samples_per_second"] > 0


def test_a_job_for_the_launcher_holds_the_settings(decoder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    done = onnxopt(
        "distill", decoder, "--student", "./mine", "-o", tmp_path / "out", "--write-job", job, "--loss", "hidden=0.5"
    )
    assert done.code == 0, done.err
    content = json.loads(job.read_text())
    assert Settings.made(**content["settings"]).losses == {"hidden": 0.5}
