"""Checkpoints become proved graphs, or one line that says why not.

Covers: load/checkpoint/network.py, load/export/torch_model.py, load/export/trace.py, load/loaded.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import ExportError, InputError
from onnxopt.graph.cache import Cache
from onnxopt.load.checkpoint.folder import relative_assets
from onnxopt.load.export import references
from onnxopt.load.export import trace as trace_module
from onnxopt.load.export.axes import PROOF_SIZES
from onnxopt.load.export.export import Exporter, export
from onnxopt.load.export.torch_model import TorchModel
from onnxopt.load.export.trace import FEW_IMAGES
from onnxopt.load.loaded import Loaded
from onnxopt.load.source.source import resolve
from onnxopt.spec import PADDINGS, Feeds
from tests.support.damage import flip_bit
from tests.support.tiny import KINDS, tiny_checkpoint, tiny_tokenizer

AXES = ("batch", "sequence")
MEAN = {"pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(cache))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a maker of checkpoint folders; each test gets its own copy."""

    def make(kind: str, **options: Any) -> Path:
        return tiny_checkpoint(kind, tmp_path_factory.mktemp("checkpoint") / f"tiny-{kind}", **options)

    return make


def run_graph(model: ir.Model, feeds: Feeds) -> Feeds:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def worst(loaded: Loaded, feeds: Feeds) -> float:
    """Return the worst relative error against torch, over positions that are not padded."""
    expected, found = loaded.reference.run(feeds), run_graph(loaded.model, feeds)
    assert list(expected) == [spec.name for spec in loaded.signature.outputs] == list(found)
    mask = feeds.get("attention_mask")
    errors = []
    for spec in loaded.signature.outputs:
        left, right = found[spec.name], expected[spec.name]
        assert left.shape == right.shape
        if mask is not None and spec.axes[:2] == AXES:
            left, right = left[mask == 1], right[mask == 1]
        errors.append(float(np.abs(left - right).max() / np.abs(right).max()))
    return max(errors)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_exported_and_proved(kind: str, exporter: Exporter, tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny(kind))), exporter=exporter, with_cache=False)
    image = kind == "vit"
    assert loaded.origin["exporter"] == exporter
    assert loaded.origin["opset"] == loaded.model.opset_imports[""] == (23 if exporter == "dynamo" else 17)
    assert loaded.notes == []
    assert loaded.signature.axes == (("batch",) if image else AXES)
    assert len(loaded.proved_sizes) == (3 if image else 12)
    inputs = {
        "bert": ["input_ids", "attention_mask", "token_type_ids"],
        "vit": ["pixel_values"],
    }.get(kind, ["input_ids", "attention_mask"])
    assert inputs == [spec.name for spec in loaded.signature.inputs]
    assert inputs == [value.name for value in loaded.model.graph.inputs]
    for index, padding in enumerate(PADDINGS):
        feeds = loaded.feeder.make({"batch": 3} if image else {"batch": 3, "sequence": 17}, padding, seed=index)
        assert worst(loaded, feeds) < 1e-5
    for value, spec in zip(loaded.model.graph.outputs, loaded.signature.outputs, strict=True):
        assert tuple(str(axis) for axis in value.shape or ()) == tuple(str(axis) for axis in spec.axes)


@pytest.mark.parametrize(
    ("kind", "task", "outputs"),
    [
        ("bert", "fill-mask", {"logits": ("batch", "sequence", 200)}),
        ("bert", "text-classification", {"logits": ("batch", 6)}),
        ("bert", "token-classification", {"logits": ("batch", "sequence", 6)}),
        ("bert", "question-answering", {"start_logits": AXES, "end_logits": AXES}),
        ("vit", "image-classification", {"logits": ("batch", 6)}),
    ],
)
def test_task_comes_from_the_config(
    kind: str, task: str, outputs: dict[str, tuple[Any, ...]], tiny: Callable[..., Path]
) -> None:
    loaded = export(resolve(str(tiny(kind, task=task))), exporter="torchscript")
    assert loaded.task == task
    assert outputs == {spec.name: spec.axes for spec in loaded.signature.outputs}


def test_left_padded_text_gets_the_answer_of_the_text_alone(tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny("gpt2"))), exporter="torchscript", with_cache=False)
    ids = np.array([[9, 8, 7, 6, 5], [0, 0, 11, 12, 13]])
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    together = run_graph(loaded.model, {"input_ids": ids, "attention_mask": mask})["logits"][1, 2:]
    alone = run_graph(loaded.model, {"input_ids": ids[1:, 2:], "attention_mask": mask[1:, 2:]})["logits"][0]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_decoder_keeps_what_it_has_seen(exporter: Exporter, tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny("gpt2"))), exporter=exporter)
    assert loaded.notes == []
    cache = Cache.of(loaded.signature)
    assert cache is not None
    assert [spec.name for spec in loaded.signature.inputs] == [
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")),
    ]
    assert {spec.name: spec.axes for spec in loaded.signature.outputs} == {
        "logits": ("batch", 1, 200),
        **{spec.name: spec.axes for spec in cache.outputs},
    }
    ids = np.array([[9, 8, 7, 6, 5], [0, 0, 11, 12, 13]])
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    nothing = {spec.name: np.zeros(spec.shape({"batch": 2, "past_sequence": 0}), np.float32) for spec in cache.inputs}
    at_once = run_graph(loaded.model, {"input_ids": ids, "attention_mask": mask, **nothing})
    first = run_graph(loaded.model, {"input_ids": ids[:, :3], "attention_mask": mask[:, :3], **nothing})
    seen = {past.name: first[now.name] for past, now in zip(cache.inputs, cache.outputs, strict=True)}
    then = run_graph(loaded.model, {"input_ids": ids[:, 3:], "attention_mask": mask, **seen})
    np.testing.assert_allclose(then["logits"], at_once["logits"], rtol=1e-4, atol=1e-5)
    for spec in cache.outputs:
        np.testing.assert_allclose(then[spec.name][0], at_once[spec.name][0], rtol=1e-4, atol=1e-5)


def test_logits_of_every_position_are_a_choice(tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny("gpt2"))), exporter="torchscript", logits="all")
    assert loaded.signature.outputs[0].axes == ("batch", "sequence", 200)


def test_sentence_embedding_is_pooled_and_has_length_one(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", pooling=MEAN)
    loaded = export(resolve(str(folder)), exporter="torchscript")
    assert loaded.origin["pooling"] == "mean pooling, L2 normalisation"
    feeds = loaded.feeder.make({"batch": 4, "sequence": 9}, "holes")
    found = run_graph(loaded.model, feeds)
    mask = feeds["attention_mask"][..., None]
    mean = (found["last_hidden_state"] * mask).sum(1) / mask.sum(1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found["sentence_embedding"], expected, rtol=1e-4, atol=1e-6)
    without = export(resolve(str(folder)), exporter="torchscript", with_pooling=False)
    assert [spec.name for spec in without.signature.outputs] == ["last_hidden_state"]
    assert {"1_Pooling/config.json", "modules.json", "config.json", "tokenizer.json"} <= set(
        relative_assets(loaded.assets)
    )


def test_embedding_that_is_not_supported_is_left_out_with_a_note(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", pooling={"pooling_mode": "magic"})
    loaded = export(resolve(str(folder)), exporter="torchscript")
    assert [spec.name for spec in loaded.signature.outputs] == ["last_hidden_state"]
    assert loaded.notes == ["no sentence_embedding output: pooling mode magic is not supported"]


def test_second_export_comes_from_the_cache_without_torch(tiny: Callable[..., Path]) -> None:
    source = resolve(str(tiny("bert")))
    first = export(source, exporter="torchscript")
    said: list[str] = []
    second = export(source, exporter="torchscript", progress=said.append)
    assert "export found in the cache" in said
    assert not any("torch" in line for line in said)
    assert first.signature == second.signature
    assert first.proved_sizes == second.proved_sizes
    assert ir.to_proto(first.model).SerializeToString() == ir.to_proto(second.model).SerializeToString()
    assert worst(second, second.feeder.make({"batch": 2, "sequence": 5})) < 1e-5


def test_damaged_cache_is_made_again(tiny: Callable[..., Path]) -> None:
    source = resolve(str(tiny("bert")))
    first = export(source, exporter="torchscript")
    entry = first.assets[0].parent.parent
    damages: tuple[Callable[[Path], object], ...] = (
        flip_bit,
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        lambda file: file.unlink(),
    )
    for damage in damages:
        damage(entry / "model.onnx")
        said: list[str] = []
        again = export(source, exporter="torchscript", progress=said.append)
        assert "exporting with torchscript" in said
        assert len(first.model.graph) == len(again.model.graph)


def test_changed_weights_are_another_export(tiny: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny("bert")
    first = export(resolve(str(folder)), exporter="torchscript")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value * 2 for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    second = export(resolve(str(folder)), exporter="torchscript")
    assert first.origin["weights_sha256"] != second.origin["weights_sha256"]
    assert first.assets[0].parent != second.assets[0].parent


def test_torchscript_is_the_second_road(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> ir.Model:
        raise RuntimeError("dynamo has no word for this\nand says so in two lines")

    monkeypatch.setattr(trace_module, "_dynamo", refuse)
    loaded = export(resolve(str(tiny("bert"))), use_cache=False)
    assert loaded.origin["exporter"] == "torchscript"
    assert loaded.notes[0].startswith("dynamo failed: torch cannot export the model: dynamo has no word for this and")
    assert loaded.notes[0].endswith("exported with torchscript instead")
    with pytest.raises(ExportError, match="dynamo has no word"):
        export(resolve(str(tiny("bert"))), exporter="dynamo", use_cache=False)


def test_random_weights_are_the_same_every_time_and_say_so(tiny: Callable[..., Path]) -> None:
    folder = tiny("gpt2", tokenizer=False)
    (folder / "model.safetensors").unlink()
    loaded = export(resolve(str(folder), weights="random"), exporter="torchscript")
    assert loaded.random_weights
    assert loaded.name == "tiny-gpt2-random"
    assert len(loaded.notes) == 2
    assert "made up" in loaded.notes[0]
    assert "no tokenizer" in loaded.notes[1]
    again = export(resolve(str(folder), weights="random"), exporter="torchscript", use_cache=False)
    feeds = loaded.feeder.make({"batch": 2, "sequence": 6})
    assert np.array_equal(run_graph(loaded.model, feeds)["logits"], run_graph(again.model, feeds)["logits"])


def test_large_weights_lie_beside_the_graph(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "EMBEDDED_LIMIT_BYTES", 1000)
    loaded = export(resolve(str(tiny("bert", layers=1))), exporter="dynamo")
    entry = loaded.assets[0].parent.parent
    assert (entry / "model.onnx.data").stat().st_size > 10_000
    assert len(loaded.proved_sizes) == 12


def test_graph_tells_nothing_about_this_machine(tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny("roberta"))), exporter="dynamo")
    content = ir.to_proto(loaded.model).SerializeToString()
    for secret in (b"site-packages", b".py", str(Path.home()).encode() + b"/"):
        assert secret not in content


def test_image_of_any_size_keeps_its_axes(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    config.image_size = 32
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    loaded = export(resolve(str(tmp_path / "resnet")), exporter="torchscript")
    assert loaded.signature.axes == ("batch", "height", "width")
    assert worst(loaded, loaded.feeder.make({"batch": 2, "height": 40, "width": 72})) < 1e-5


def test_few_images_are_run_while_a_network_is_exported(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are traced, two more to tell what follows the batch, and each size of a batch that is proved."""
    images: list[int] = []
    plain = TorchModel.tried

    def run(self: TorchModel, feeds: Mapping[str, Any]) -> dict[str, Any]:
        images.append(len(feeds["pixel_values"]))
        return plain(self, feeds)

    monkeypatch.setattr(TorchModel, "tried", run)
    loaded = export(resolve(str(tiny("vit"))), exporter="torchscript", use_cache=False)
    _, *others = images
    assert sorted(others) == sorted([FEW_IMAGES, *PROOF_SIZES["batch"]])
    assert {spec.name: spec.axes[0] for spec in loaded.signature.outputs} == {"last_hidden_state": "batch"}


def edit_config(folder: Path, **values: Any) -> Path:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, **values}), encoding="utf-8")
    return folder


def without_tokenizer(tiny: Callable[..., Path]) -> Path:
    return tiny("bert", tokenizer=False)


def with_truncated_weights(tiny: Callable[..., Path]) -> Path:
    folder = tiny("bert")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return folder


REFUSED: dict[str, tuple[Callable[[Callable[..., Path]], Path], str | None, str]] = {
    "no tokenizer": (without_tokenizer, None, "the checkpoint has no tokenizer; put tokenizer.json"),
    "unknown task": (lambda tiny: tiny("bert"), "juggling", "task 'juggling' is not supported; use one of"),
    "task of another kind": (
        lambda tiny: tiny("vit"),
        "text-generation",
        "transformers has no vit model for text-generation; name another with --task: .*image-classification",
    ),
    "unsupported saved task": (
        lambda tiny: edit_config(tiny("bert"), architectures=["BertForMultipleChoice"]),
        None,
        "BertForMultipleChoice does a task that is not supported; name one with --task: feature-extraction",
    ),
    "missing head": (
        lambda tiny: tiny("bert"),
        "text-classification",
        "no weights for .*classifier.weight, which logits needs; name the task that it was trained for",
    ),
    "truncated weights": (with_truncated_weights, None, "the weights cannot be loaded"),
    "other sizes": (lambda tiny: edit_config(tiny("bert"), intermediate_size=99), None, "the weights cannot be loaded"),
    "unknown model type": (
        lambda tiny: edit_config(tiny("bert"), model_type="mine"),
        None,
        "know the model type 'mine'",
    ),
    "own code": (
        lambda tiny: edit_config(tiny("bert"), model_type="mine", auto_map={"AutoModel": "mine.Mine"}),
        None,
        r"its own code \(auto_map\); allow its code with trust_remote_code",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_unusable_checkpoints_are_one_line_each(case: str, tiny: Callable[..., Path], cache: Path) -> None:
    prepare, task, words = REFUSED[case]
    before = sorted(path.name for path in (cache / "exports").glob("*"))
    with pytest.raises(InputError, match=words) as caught:
        export(resolve(str(prepare(tiny))), task=task)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert before == sorted(path.name for path in (cache / "exports").glob("*"))


def test_an_encoder_decoder_without_its_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t5").mkdir()
    config = {"model_type": "t5", "d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8, "vocab_size": 99}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="T5Model is an encoder-decoder that does not run on one text alone"):
        export(resolve(str(tmp_path / "t5"), weights="random"))


def test_missing_weights_that_no_output_needs_are_no_obstacle(tiny: Callable[..., Path]) -> None:
    loaded = export(resolve(str(tiny("bert", task="fill-mask"))), task="feature-extraction", exporter="torchscript")
    assert [spec.name for spec in loaded.signature.outputs] == ["last_hidden_state"]
    assert not any("pooler" in name for name in loaded.model.graph.initializers)


def test_config_keys_that_were_left_out_are_noted(tiny: Callable[..., Path]) -> None:
    folder = edit_config(tiny("bert"), auto_map={"AutoModel": "evil.Evil"})
    loaded = export(resolve(str(folder)), exporter="torchscript")
    assert loaded.notes == ["config keys that can run code were left out: auto_map"]
    assert "auto_map" not in relative_assets(loaded.assets)["config.json"].read_text(encoding="utf-8")


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"
    vocab_size = 50


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(50, 8)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return BaseModelOutput(last_hidden_state=self.table(input_ids) * attention_mask[..., None])
"""


def test_code_of_the_checkpoint_runs_only_when_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(OWN_CODE, encoding="utf-8")
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": own, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"its own code \(auto_map\)"):
        export(resolve(str(folder), weights="random"))
    assert not (tmp_path / "modules").exists()
    trusted = resolve(str(folder), weights="random", trust_remote_code=True)
    loaded = export(trusted, exporter="torchscript")
    assert loaded.notes[0] == "the checkpoint's own code was allowed to run (trust_remote_code)"
    assert loaded.task == "feature-extraction"
    assert "auto_map" not in relative_assets(loaded.assets)["config.json"].read_text(encoding="utf-8")


def test_onnx_file_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="which is imported, not exported"):
        export(resolve(str(tmp_path / "a.onnx")))


def test_missing_pooling_settings_are_one_line(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert", pooling=MEAN)
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(InputError, match=r"1_Pooling/config\.json: cannot be read"):
        export(resolve(str(folder)), exporter="torchscript")


@pytest.mark.parametrize("beside", ["a tokenizer", "nothing"])
def test_series_are_refused_for_what_they_are_whatever_lies_beside_them(beside: str, tmp_path: Path) -> None:
    from transformers import PatchTSTConfig, PatchTSTModel

    small = {"d_model": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    PatchTSTModel(PatchTSTConfig(**small)).save_pretrained(tmp_path)
    if beside == "a tokenizer":
        tiny_tokenizer(tmp_path)
    with pytest.raises(InputError, match="PatchTSTModel takes past_values; only text, images and sound are supported"):
        export(resolve(str(tmp_path)))
