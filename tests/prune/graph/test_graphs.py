"""Fused graphs lose heads, channels and layers; what is left equals the original with those parts set to zero.

Covers: prune/graph/channels.py, prune/graph/layers.py, prune/graph/search.py, prune/graph/stage.py,
prune/graph/zeros.py, prune/judging.py, prune/run.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt as package
from onnxopt.errors import InputError, ProofError
from onnxopt.judge.metrics import MetricBudget
from onnxopt.load.onnx_file import load_onnx
from onnxopt.prune.run import prune
from onnxopt.prune.spec import PruneSpec
from onnxopt.run.session import Session
from onnxopt.texts.builtin import builtin_texts
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    return tiny_checkpoint("bert", folder, layers=4, hidden=64, heads=4, pooling=pooling)


def heads_of(path: Path) -> list[int]:
    found = [node for node in ir.load(path).graph if "Attention" in node.op_type]
    return [
        int(node.attributes[name].value)
        for node in found
        for name in ("num_heads", "q_num_heads")
        if name in node.attributes
    ]


def test_a_checkpoint_loses_what_its_config_can_say_and_its_graph_the_rest(encoder: Path, tmp_path: Path) -> None:
    artifact = package.optimize(encoder, out=tmp_path / "out", prune="layers=1,ffn=50%,heads=1", measure=False)
    manifest = artifact.manifest
    assert heads_of(tmp_path / "out" / "model.onnx") == [3, 3, 3]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    assert manifest.origin["pruned"].startswith("layers=1")
    assert str(encoder) == manifest.origin["source"]
    assert manifest.worst_relative_error is not None
    assert manifest.worst_relative_error < 1e-4, "equal to the pruned model before anything was cut out"
    assert next(one for one in manifest.ledger if one.name == "drop-dead-channels").applied > 0
    assert [note for note in manifest.notes if note.startswith("pruned heads: 9 of 12 stay")]


def test_a_budget_that_is_missed_leaves_nothing(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="the budget is cosine"):
        package.optimize(encoder, out=tmp_path / "out", prune="heads=3", prune_budget="cosine>=0.999999", measure=False)
    assert not (tmp_path / "out").exists()


def test_a_search_goes_as_far_as_the_budget_allows(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bytes for milliseconds, a wider budget gives a smaller model, and the one that ships is within it."""
    from onnxopt.graph import initializer_bytes
    from onnxopt.prune.graph import search

    def weigh(model: ir.Model, _: search.Bounds) -> float:
        search.cut(model)
        return float(initializer_bytes(model))

    monkeypatch.setattr(search, "_time", weigh)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(builtin_texts()[:60]))
    spec = PruneSpec.parse("ffn=auto,heads=auto", align=8)
    sizes = []
    for limit in (0.98, 0.8):
        out = tmp_path / str(limit)
        record = prune(str(encoder), spec, out, data=str(texts), budget=MetricBudget.parse(f"cosine>={limit}"))
        assert record.value is not None
        assert record.value >= limit
        assert {part["kind"] for part in record.parts} <= {"ffn", "heads"}
        assert [note for note in record.notes if "trials" in note]
        sizes.append(record.bytes_after)
    assert sizes[1] < sizes[0] < record.bytes_before
    with pytest.raises(ProofError, match="no ffn or heads can go"):
        prune(str(encoder), spec, tmp_path / "none", data=str(texts), budget=MetricBudget.parse("cosine>=1"))
    with pytest.raises(InputError, match="goes as far as a budget allows"):
        prune(str(encoder), spec, tmp_path / "none", data=str(texts))
    assert not (tmp_path / "none").exists()


def test_what_a_search_times_is_the_cut_model(encoder: Path, tmp_path: Path) -> None:
    from onnxopt.prune.graph.search import Bounds, _time
    from onnxopt.spec import Target

    artifact = package.optimize(encoder, out=tmp_path / "whole", target="portable", measure=False)
    loaded = load_onnx(artifact.path / "model.onnx")
    feeds = [loaded.feeder.make({"batch": 1, "sequence": 8}, "none", seed=1)]
    once, twice = (
        _time(
            ir.load(artifact.path / "model.onnx"),
            Bounds(MetricBudget("cosine", 0.9), feeds * times, (1.0,) * times, Target("cpu")),
        )
        for times in (1, 2)
    )
    assert 0 < once < twice


def test_layers_of_a_file_go(encoder: Path, tmp_path: Path) -> None:
    artifact = package.optimize(encoder, out=tmp_path / "whole", target="portable", measure=False)
    record = prune(str(artifact.path / "model.onnx"), PruneSpec.parse("layers=2:last"), tmp_path / "small")
    assert record.parts[0]["after"] == 2
    twice = package.optimize(tmp_path / "small" / "model.onnx", out=tmp_path / "out", measure=False)
    assert str(twice.manifest.blocks["attention"]) == "2 of 2"
    checkpoint = prune(str(encoder), PruneSpec.parse("layers=2:last"), tmp_path / "checkpoint")
    assert checkpoint.parts[0]["note"] == "gone: 2, 3"
    other = package.optimize(tmp_path / "checkpoint", out=tmp_path / "other", target="portable", measure=False)
    feeds = load_onnx(artifact.path / "model.onnx").feeder.make({"batch": 2, "sequence": 9}, "none", seed=3)
    ours = Session(tmp_path / "small" / "model.onnx").run(feeds)
    theirs = Session(other.path / "model.onnx").run(feeds)
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)


def test_heads_behind_a_cache_are_refused_with_a_way_out(tmp_path: Path) -> None:
    decoder = tiny_checkpoint("gpt2", tmp_path / "gpt2", task="text-generation")
    with pytest.raises(InputError, match="--no-cache"):
        package.optimize(decoder, out=tmp_path / "out", prune="heads=1", measure=False)
    artifact = package.optimize(decoder, out=tmp_path / "out", prune="heads=1", with_cache=False, measure=False)
    assert artifact.manifest.worst_relative_error is not None


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet of random weights, as torch exports it."""
    import torch
    import transformers

    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic", num_labels=7
    )
    torch.manual_seed(0)
    network = transformers.ResNetForImageClassification(config).eval()
    folder = tmp_path_factory.mktemp("resnet")
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}})
    )
    return folder


def test_channels_go_through_residuals(resnet: Path, tmp_path: Path) -> None:
    artifact = package.optimize(
        resnet, out=tmp_path / "out", prune="channels=25%", weights="pretrained", measure=False, target="portable"
    )
    report = [note for note in artifact.manifest.notes if note.startswith("pruned channels")]
    assert report
    weights = [one.const_value for one in ir.load(artifact.path / "model.onnx").graph.initializers.values()]
    shapes = [one.numpy().shape for one in weights if one is not None]
    widths = {shape[0] for shape in shapes if len(shape) == 4}
    assert widths == {12, 16, 48}, "a quarter of 16, 32 and 64, and multiples of 16 where there are more"
    whole = package.optimize(resnet, out=tmp_path / "whole", measure=False, target="portable")
    assert artifact.manifest.bytes_after < 0.8 * whole.manifest.bytes_after


def test_zeros_are_written_and_said_to_gain_nothing_here(encoder: Path, tmp_path: Path) -> None:
    artifact = package.optimize(encoder, out=tmp_path / "out", prune="zeros=2:4", measure=False)
    assert [note for note in artifact.manifest.notes if "make nothing faster" in note]
    assert [note for note in artifact.manifest.notes if note.startswith("pruned zeros")]
