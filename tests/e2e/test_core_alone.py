"""The core does without torch and transformers whatever starts with an .onnx file, and says what the rest needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxopt.host.extras import EXTRAS
from tests.support.command import Result, onnxopt
from tests.support.decoder import folder_of
from tests.support.own_text import sentences, text_encoder
from tests.support.tiny import tiny_checkpoint
from tests.support.without import HEAVY, without

SERVING = {*EXTRAS["serve"].packages.values()}


@dataclass(frozen=True)
class Core:
    """The core, as if nothing else were installed.

    Attributes:
        room: a folder for files.
        environment: of its processes.
        model: an encoder of text, with a tokenizer beside it.
        texts: a file of calibration texts.
    """

    room: Path
    environment: dict[str, str]
    model: Path
    texts: Path

    def run(self, *arguments: object) -> Result:
        """Run a command that has to succeed."""
        done = onnxopt(*arguments, cwd=None, **self.environment)
        assert done.code == 0, done.err
        return done


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    room = tmp_path_factory.mktemp("core")
    texts = room / "texts.txt"
    texts.write_text("\n".join(sentences(64)) + "\n", encoding="utf-8")
    return Core(room, without(HEAVY, room / "hook"), text_encoder(room / "model"), texts)


@pytest.fixture(scope="module")
def artifact(core: Core) -> Path:
    out = core.room / "out"
    core.run("optimize", core.model, "-o", out, "--no-measure", "--quiet")
    return out


def test_the_packages_are_out_of_reach_in_children_too(core: Core) -> None:
    asked = onnxopt("doctor", "--json", cwd=None, **core.environment)
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["extras"]["hf"]["missing"] == [*EXTRAS["hf"].packages]


def test_a_file_becomes_int8_with_calibration_texts(core: Core) -> None:
    out = core.room / "int8"
    options = ("--precision", "int8", "--calibration", core.texts, "--no-measure")
    core.run("optimize", core.model, "-o", out, *options, "--budget", "cosine>=0.9", "--json")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["quantization"]["calibration"]["source"] == core.texts.name
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")


def test_artifacts_are_looked_at_run_compared_and_timed(core: Core, artifact: Path) -> None:
    assert "attention" in core.run("inspect", artifact).out
    assert "fuse-gelu" in core.run("explain", core.model, "fuse-gelu").out
    assert core.run("passes").out
    assert "'of the one'" in core.run("run", artifact, "of the one", "it was").out
    assert json.loads(core.run("verify", core.model, artifact, "--json").out)["equal"]
    timed = core.run("bench", core.model, artifact, "--rounds", 1, "--seconds", 0.5, "-w", "1x8", "--json").out
    assert len(json.loads(timed)["candidates"]) == 2
    assert core.run("placement", artifact).out
    assert "node" in core.run("package", artifact, "--for", "node", "--json").out


@pytest.mark.parametrize("what", ["heads=1", "ffn=25%"])
def test_a_file_is_pruned(what: str, core: Core, tmp_path: Path) -> None:
    done = core.run("prune", core.model, what, "-o", tmp_path / "pruned", "--data", core.texts, "--json")
    record = json.loads(done.out)["pruning"]
    assert record["bytes_after"] < record["bytes_before"]


def test_a_file_goes_through_a_recipe(core: Core, tmp_path: Path) -> None:
    lines = (f'source = "{core.model}"', f'data = "{core.texts}"', "[prune]", 'what = "heads=1"')
    (tmp_path / "small.toml").write_text("\n".join([*lines, "[quantize]", 'precision = "int8"']), encoding="utf-8")
    done = core.run("compress", tmp_path / "small.toml", "-o", tmp_path / "out", "--no-measure", "--json")
    steps = json.loads(done.out)["compression"]["steps"]
    assert [step["name"] for step in steps] == ["original", "prune", "quantize"]


def test_a_decoder_writes_and_is_judged(core: Core, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "shared")
    assert core.run("generate", folder, "hello", "-n", 3, "--json").out
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 9, encoding="utf-8")
    assert core.run("perplexity", folder, "--text", tmp_path / "text.txt", "--window", 24).out


def test_a_server_starts_without_them(core: Core, monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    from tests.support.server import serving

    for name, value in core.environment.items():
        monkeypatch.setenv(name, value)
    with serving(artifact) as server:
        assert server.port
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("optimize", "{checkpoint}"), "hf"),
        (("optimize", "gpt2-mini"), "hf"),
        (("optimize", "some-owner/some-model"), "hf"),
        (("optimize", "minilm", "--weights", "random"), "hf"),
        (("prune", "{checkpoint}", "ffn=25%", "-o", "{room}/pruned"), "hf"),
        (("distill", "{checkpoint}", "--student", "layers=1", "-o", "{room}/taught"), "hf"),
        (("compress", "{recipe}", "-o", "{room}/small"), "hf"),
        (("optimize", "{room}/m.gguf"), "gguf"),
        (("serve", "{model}"), "serve"),
    ],
)
def test_what_needs_more_says_in_a_line_what_to_install(
    arguments: tuple[str, ...], extra: str, core: Core, tmp_path: Path
) -> None:
    places = {"checkpoint": tmp_path / "bert", "room": tmp_path, "model": core.model, "recipe": tmp_path / "r.toml"}
    tiny_checkpoint("bert", places["checkpoint"])
    places["recipe"].write_text(f'source = "{places["checkpoint"]}"\n[prune]\nwhat = "layers=1"\n', encoding="utf-8")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    before = sorted(tmp_path.iterdir())
    hidden = without({*HEAVY, "gguf", *SERVING}, core.room / "no-extras")
    done = onnxopt(*(one.format_map(places) for one in arguments), cwd=None, **hidden)
    assert done.code == 2
    assert len(done.error_lines) == 1, done.err
    assert "which is not installed" in done.err
    assert f"pip install 'onnxopt[{extra}]'" in done.err
    assert sorted(tmp_path.iterdir()) == before, "nothing was begun"


def test_a_name_that_is_wrong_is_said_before_what_is_missing(core: Core, tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.onnx", "no/such/folder/at/all"):
        done = onnxopt("optimize", wrong, cwd=None, **core.environment)
        assert done.code == 2
        assert "no such file" in done.err
        assert "pip install" not in done.err
