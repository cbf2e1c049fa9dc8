"""A recipe runs its steps in order, each judged on text that none has seen, and leaves one artifact and one report.

Covers: cli/compress.py, compress/recipe.py, compress/report.py, compress/run.py
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxopt.compress import run
from onnxopt.compress.recipe import CompressRecipe
from onnxopt.compress.report import Compression, record_of
from onnxopt.compress.run import _Work, compress
from onnxopt.errors import InputError, ProofError
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.source.source import Source
from onnxopt.prune.spec import PruneSpec
from onnxopt.records.manifest import Manifest
from onnxopt.road.options import Options, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.texts.files import read_labelled
from tests.exam.stopped_jobs import content
from tests.support.command import onnxopt
from tests.support.tiny import tiny_checkpoint

FLOW = """
source = "gpt2-mini"

[prune]
what = "ffn=25%"
importance = "magnitude"
compensate = false

[distill]
steps = 200
batch = 8
length = 48
learning_rate = 1e-3
evaluate_every = 100
most_rows = 1800
hold_out = 0.01
threads = 1

[quantize]
precision = "int8"
"""


@pytest.mark.slow
def test_gpt2_mini_loses_a_quarter_and_learns_it_again(tmp_path: Path) -> None:
    recipe = tmp_path / "flow.toml"
    recipe.write_text(FLOW)
    found = compress(CompressRecipe.read(recipe), tmp_path / "out", measure=False)
    names = [step.name for step in found.steps]
    assert names == ["original", "prune", "distill", "quantize"]
    original, pruned, taught, quantized = (step.value for step in found.steps)
    assert found.metric == "perplexity"
    assert pruned > original, "plain magnitude costs something"
    assert pruned - taught >= 0.5 * (pruned - original), "at least half of it comes back"
    assert quantized < 1.05 * taught
    sizes = [step.size_bytes for step in found.steps]
    assert sizes[1] == pytest.approx(sizes[2], rel=0.01)
    assert sizes[1] < 0.92 * sizes[0]
    quantization = Manifest.read(tmp_path / "out").quantization
    assert quantization is not None
    assert sizes[3] < 0.75 * sizes[2] or not quantization.shipped
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_inner"] == 576
    assert Compression.model_validate_json(record_of(tmp_path / "out").read_text()) == found
    page = (tmp_path / "out.compression.html").read_text()
    assert "<svg" in page
    assert Manifest.read(tmp_path / "out").decoding is not None


def test_an_embedder_is_judged_by_cosine_and_timed(tmp_path: Path) -> None:
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    folder = tiny_checkpoint("bert", tmp_path / "bert", layers=2, pooling=pooling)
    recipe = tmp_path / "small.toml"
    recipe.write_text(f'source = "{folder}"\n[prune]\nwhat = "heads=1"\n[package]\nworkload = "1x8"\n')
    done = onnxopt("compress", recipe, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    steps = json.loads(done.out)["compression"]["steps"]
    assert [step["name"] for step in steps] == ["original", "prune"]
    assert steps[0]["value"] == pytest.approx(1.0)
    assert 0.0 < steps[1]["value"] < 1.0
    assert all(step["latency_ms"]["batch 1 sequence 8"] > 0 for step in steps)


@pytest.mark.parametrize(
    "teaching",
    [
        pytest.param("", id="pruned", marks=pytest.mark.slow),
        pytest.param("[distill]\nsteps = 2\nlength = 16\n", id="taught"),
    ],
)
def test_what_it_leaves_is_the_same_each_time_and_names_the_source(tmp_path: Path, teaching: str) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny", layers=2)
    recipe = tmp_path / "small.toml"
    recipe.write_text(f'source = "{folder}"\n[prune]\nwhat = "ffn=50%"\n{teaching}[package]\nworkload = "1x8"\n')
    one, other = (tmp_path / name for name in ("one", "other"))
    for out in (one, other):
        done = onnxopt("compress", recipe, "--no-measure", "-o", out, ONNXOPT_CACHE=f"{out}.cache")
        assert done.code == 0, done.err
    assert (one / "manifest.json").read_text() == (other / "manifest.json").read_text()
    assert content(one) == content(other)
    manifest = Manifest.read(one)
    assert manifest.name == "tiny"
    assert manifest.origin["source"] == str(folder)
    assert manifest.origin["kind"] == ("distilled" if teaching else "pruned")
    for path in [*one.rglob("*.json"), *one.rglob("*.html"), *tmp_path.glob("one.compression.*")]:
        assert "onnxopt-" not in path.read_text(), path  # no folder that is gone


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source = ", "is not TOML"),
        ("[prune]\nwhat = 'ffn=25%'", "source"),
        ("source = 'gpt2-mini'\nsorce = 1", "sorce"),
        ("source = 'gpt2-mini'\n[prune]\nhow = 1", "what"),
        ("source = 'gpt2-mini'\n[prune]\nseed = 1", "names no what"),
        ("source = 'gpt2-mini'\n[prune]\nwhat = 'ffn=25%'\nalign = 0", "the alignment is 0"),
        ("source = 'gpt2-mini'\n[load]\nlogits = 'first'", "write 'last' or 'all'"),
        ("source = 'gpt2-mini'\n[load]\nrevision = 'main'", "has no option 'revision'"),
        ("source = 'gpt2-mini'\nevaluate = 'absent.txt'", "absent.txt: no such"),
    ],
)
def test_a_wrong_recipe_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        compress(CompressRecipe.read(recipe), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_prune_step_is_held_to_its_budget(tmp_path: Path) -> None:
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    folder = tiny_checkpoint("bert", tmp_path / "bert", layers=2, pooling=pooling)
    recipe = tmp_path / "small.toml"
    recipe.write_text(f'source = "{folder}"\n[prune]\nwhat = "ffn=50%"\nbudget = "cosine>=0.9999999"\n')
    with pytest.raises(ProofError, match="the budget is cosine"):
        compress(CompressRecipe.read(recipe), tmp_path / "out", measure=False)
    assert not (tmp_path / "out").exists()


def test_what_only_a_graph_can_lose_cannot_be_taught(tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.toml"
    folder = tiny_checkpoint("bert", tmp_path / "bert", pooling={"pooling_mode_mean_tokens": True})
    recipe.write_text(f'source = "{folder}"\n[prune]\nwhat = "heads=1"\n[distill]\nsteps = 2\n')
    with pytest.raises(InputError, match="cannot go before a model is taught"):
        compress(CompressRecipe.read(recipe), tmp_path / "out")


def test_entries_stay_entries_in_what_steps_see_and_what_judges(tmp_path: Path) -> None:
    data = tmp_path / "rows.ndjson"
    data.write_text("\n".join(json.dumps({"content": f"row\n{number}", "label": number}) for number in range(40)))
    work = _Work(CompressRecipe(source="gpt2-mini", data=str(data)), tmp_path / "out", tmp_path, print)
    work._texts()
    seen, held = read_labelled(work.data), read_labelled(work.held)
    assert [*seen, *held] == [(f"row\n{number}", number) for number in range(40)]
    assert 1 <= len(held) <= 5


def test_each_artifact_is_made_with_the_tables_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last one may be quantized and measured; what the graph loses goes with each from there on."""
    recipe = tmp_path / "flow.toml"
    text = tmp_path / "own.txt"
    text.write_text("some words of mine\n" * 9)
    recipe.write_text(
        f"""source = "gpt2-mini"
        [load]
        logits = "all"
        [prune]
        what = "heads=1"
        data = "{text}"
        budget = "perplexity<=+90%"
        [quantize]
        keep = "head"
        budget = ""
        [tune]
        retune = true
        [package]
        target = "portable"
        """
    )
    made: list[Options] = []

    def make(source: Source, options: Options, **_: object) -> object:
        made.append(options)
        return SimpleNamespace(path=Path(source.text), manifest=SimpleNamespace(bytes_after=1))

    monkeypatch.setattr(run, "make", make)
    monkeypatch.setattr(run._Work, "_judge", lambda *_: 1.0)
    found = compress(CompressRecipe.read(recipe), tmp_path / "out", measure=False)
    assert [step.name for step in found.steps] == ["original", "prune", "quantize"]
    assert {(one.load.logits, one.package.target) for one in made} == {("all", "portable")}
    original, pruned, quantized = made
    assert original.prune == PruneOptions()
    assert (
        pruned.prune
        == quantized.prune
        == PruneOptions(what=PruneSpec.parse("heads=1"), data=str(text), budget=MetricBudget("perplexity", 1.9))
    )
    assert original.tune == pruned.tune == TuneOptions(measure=False)
    assert quantized.tune == TuneOptions(retune=True)
    assert original.quantize == pruned.quantize == PrecisionOptions()
    assert quantized.quantize == PrecisionOptions(precision="int8", keep="head")
