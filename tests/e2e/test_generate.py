"""`onnxopt generate` and `onnxopt perplexity` as a user types them.

Covers: cli/text.py, run/generate/beside.py
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from onnxopt.cli.live import TextView, harmless
from onnxopt.cli.main import main
from onnxopt.run.generate.generator import Generator
from tests.support.command import onnxopt
from tests.support.decoder import CHAT, CONTEXT, folder_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("cli"), "shared")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("chat"), "growing", chat=CHAT)


def test_a_prompt_is_continued_on_standard_output_and_the_speed_told_on_the_other(folder: Path) -> None:
    expected = Generator(folder).generate(["hello"], max_new_tokens=8).texts[0]
    done = onnxopt("generate", folder, "hello", "--max-new-tokens", 8)
    assert (done.code, done.out) == (0, f"{expected}\n")
    assert done.err.startswith("prefill 5 tokens at ")
    assert "decode 7 tokens at " in done.err


def test_quiet_tells_nothing_but_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "hello", "-n", "3", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_json_has_texts_tokens_and_speed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--temperature", "0.8", "--top-k", "9", "--top-p", "0.9", "--repetition-penalty", "1.1", "--seed", "3"]
    assert main(["generate", str(folder), "hello", "you", "-n", "4", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in found["results"]] == ["hello", "you"]
    assert found["seed"] == 3
    assert found["speed"]["prefill_tokens"] == 8
    assert main(["generate", str(folder), "hello", "you", "-n", "4", "--json", "--batch", "1", *options]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == found["results"]


def test_prompts_come_from_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "you"}\n')
    assert main(["generate", str(folder), "--prompts", str(tmp_path / "p.jsonl"), "-n", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("> hello\n")
    assert "\n> you\n" in out


def test_the_checkpoints_sampling_is_used_when_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "hello", "--sample", "--seed", "4", "-n", "5"]) == 0
    assert "; seed 4" in capsys.readouterr().err


def test_the_chat_template_can_be_left_out(talks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for options in ([], ["--no-chat"], ["--chat", "--system", "be kind"]):
        assert main(["generate", str(talks), "hi", "-n", "1", "--json", *options]) == 0
        counts.append(json.loads(capsys.readouterr().out)["results"][0]["prompt_tokens"])
    assert counts == [20, 2, 36]


def test_perplexity_is_printed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on the mat. " * 9)
    asked = ["perplexity", str(folder), "--text", str(tmp_path / "t.txt"), "--window", "24"]
    assert main(asked) == 0
    assert "207 tokens in 9 windows of 24" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*asked, "--quiet"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(found["scores"][0]["perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate", "FOLDER", ""], "the prompt is empty"),
        (["generate", "FOLDER"], "there is no prompt"),
        (["generate", "FOLDER", "x" * (CONTEXT + 1)], f"has {CONTEXT + 1} tokens"),
        (["generate", "FOLDER", "a", "--temperature", "-1"], "the temperature is -1"),
        (["generate", "FOLDER", "a", "--temperature", "nan"], "the temperature is nan"),
        (["generate", "FOLDER", "a", "--temperature", "1", "--top-p", "0"], "the top-p is 0"),
        (["generate", "FOLDER", "a", "--top-k", "3"], "--top-k means nothing"),
        (["generate", "FOLDER", "a", "--repetition-penalty", "0"], "the repetition penalty is 0"),
        (["generate", "FOLDER", "a", "--temperature", "1", "--seed", "-1"], "the seed is -1"),
        (["generate", "FOLDER", "a", "--batch", "0"], "the batch is 0"),
        (["generate", "FOLDER", "a", "--max-new-tokens", "0"], "new tokens is 0"),
        (["generate", "FOLDER", "a", "--max-new-tokens", "many"], "valid integer"),
        (["generate", "FOLDER", "--prompts", "missing.txt"], "missing.txt: cannot be read"),
        (["generate", "FOLDER", "a", "--prompts", "missing.txt"], "give one of them"),
        (["generate", "FOLDER", "a", "--chat"], "no chat template"),
        (["generate", "FOLDER", "a", "--system", "b"], "needs a chat template"),
        (["generate", "FOLDER", "a", "--tokenizer", "missing"], "no tokenizer.json"),
        (["generate", "missing", "a"], "no such file or folder"),
        (["generate", "EMPTY", "a"], "no model.onnx"),
        (["perplexity", "FOLDER", "--text", "missing.txt"], "missing.txt: cannot be read"),
        (["perplexity", "FOLDER", "--window", "0"], "the window is 0"),
        (["perplexity", "FOLDER", "--original", "--max-windows", "1"], "nothing says which checkpoint"),
        (["perplexity", "missing"], "no such file or folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], reason: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path)}
    assert main([places.get(one, one) for one in arguments]) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("error: ")
    assert caught.err.count("\n") == 1
    assert reason in caught.err


def test_a_text_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[31mb\x07\n\té\u200d\u00a0🎉\x9b") == "a [31mb \n\té\u200d\u00a0🎉 "

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), " [31m"), (io.StringIO(), "\x1b[31m")):
        TextView(stream).show(0, "\x1b[31m")
        assert stream.getvalue() == expected
