"""Clients of compiled languages, compiled and run: they repeat golden cases and golden texts, and say what differs.

ONNX Runtime's own interfaces for C++, Rust and Java, and their tokenizers, cannot be had here. C++ and Rust are
compiled against stand-ins of the same names and signatures over ONNX Runtime's own library, Java against stand-ins
whose graph runs in Python's ONNX Runtime; the ids of each text come from Python's `tokenizers`.

Covers: artifact/clients.py, artifact/client_lines.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from onnxopt.artifact.client_lines import tokenizer_kind
from onnxopt.artifact.clients import add_client
from onnxopt.artifact.golden_texts import GoldenTexts
from tests.artifact.test_golden_texts import split_as_bert
from tests.artifact.test_io_json import classifier, embedder, made
from tests.support.node import BUILD, check_texts, install_script
from tests.support.tiny import tiny_checkpoint

HERE = Path(__file__).parent
MOCKS = HERE / "mocks"
TEMPLATES = HERE.parents[1] / "onnxopt" / "artifact" / "templates" / "clients"
KINDS = ("embedding", "scores", "token_scores", "tokens", "ids")
LANGUAGES = ("cpp", "rust", "java")
ASKED = ("the dog sat", "a dog ran")

pytestmark = pytest.mark.node  # the library of ONNX Runtime comes with onnxruntime-node


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **environment}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=180, check=False, env=given)


def built(*command: object) -> None:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"there is no {command[0]}")
    done = run(*command)
    assert done.returncode == 0, done.stderr


def library() -> Path:
    install_script()
    (found,) = (BUILD / "node_modules" / "onnxruntime-node" / "bin").glob("napi-*/linux/x64/libonnxruntime.so.1")
    return found


def build_cpp(room: Path) -> list[object]:
    flags = ("-std=c++17", "-O0", "-Wall", "-Werror", "-DWITH_TEXT", f"-I{MOCKS / 'cpp'}")
    linked = (library(), f"-Wl,-rpath,{library().parent}")
    built("g++", *flags, TEMPLATES / "cpp" / "check_golden.cpp", *linked, "-o", room / "cpp")
    return [room / "cpp"]


def build_rust(room: Path) -> list[object]:
    (room / "libonnxruntime.so").symlink_to(library())
    known: tuple[str, ...] = ("--extern", f"half={room / 'libhalf.rlib'}")
    for crate in ("half", "tokenizers", "ort"):
        kind = ("--edition", "2024", "--crate-type", "rlib", "--crate-name", crate)
        outside = known if crate == "ort" else ()
        built("rustc", *kind, MOCKS / "rust" / f"{crate}.rs", *outside, "-o", room / f"lib{crate}.rlib")
    for crate in ("ort", "tokenizers"):
        known += ("--extern", f"{crate}={room / f'lib{crate}.rlib'}")
    linked = ("-L", room, "-l", "onnxruntime", "-C", f"link-arg=-Wl,-rpath,{library().parent}")
    main = TEMPLATES / "rust" / "src" / "main.rs"
    built("rustc", "--edition", "2021", "-D", "warnings", main, *known, *linked, "-o", room / "rust")
    return [room / "rust"]


def build_java(room: Path) -> list[object]:
    sources = [*(MOCKS / "java").rglob("*.java"), *(TEMPLATES / "java").rglob("*.java")]
    built("javac", "-Xlint:all,-serial", "-Werror", "--release", "17", "-d", room / "java", *sources)
    return ["java", "-cp", room / "java", "CheckGolden"]


BUILDERS: dict[str, Callable[[Path], list[object]]] = {"cpp": build_cpp, "rust": build_rust, "java": build_java}


@pytest.fixture(scope="module", params=LANGUAGES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[object]]:
    return request.param, BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    room = tmp_path_factory.mktemp("compiled")
    checkpoints = {
        "embedding": embedder(room / "embedder"),
        "scores": classifier(room / "classifier", labels=3, problem_type="multi_label_classification"),
        "token_scores": tiny_checkpoint("bert", room / "tagger", task="token-classification", labels=4),
        "tokens": tiny_checkpoint("gpt2", room / "writer"),
        "ids": tiny_checkpoint("roberta", room / "masked", task="fill-mask"),
    }
    found = {kind: made(folder, room / kind) for kind, folder in checkpoints.items()}
    for artifact in found.values():
        for language in LANGUAGES:
            add_client(artifact, language)
    return found


def texts_of(artifact: Path) -> GoldenTexts:
    return GoldenTexts.read(artifact / "golden" / "texts.json")


def ask(command: Sequence[object], artifact: Path, *texts: str) -> subprocess.CompletedProcess[str]:
    """Run a client on an artifact; what its tokenizer gives to a text lies in a file."""
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    given = [part for case in texts_of(artifact).cases for part in (case.written or case.text, case.pair) if part]
    given += [part for text in texts for part in text.split("\t")]
    listed = artifact.parent / "ids.tsv"
    lines = (",".join(map(str, tokenizer.encode(text, add_special_tokens=False).ids)) + "\t" + text for text in given)
    listed.write_text("".join(line.replace("\n", "\\n") + "\n" for line in lines), encoding="utf-8")
    beside = {"GRAPH_PYTHON": sys.executable, "GRAPH_IN_PIPE": str(HERE / "graph_in_pipe.py")}
    return run(*command, artifact, *texts, TOKENIZED=str(listed), LC_ALL="C.UTF-8", **beside)


@pytest.mark.parametrize("kind", KINDS)
def test_cases_and_texts_are_repeated(program: tuple[str, list[object]], artifacts: dict[str, Path], kind: str) -> None:
    done = ask(program[1], artifacts[kind])
    assert done.returncode == 0, done.stdout + done.stderr
    tensors, texts = done.stdout.splitlines()
    assert tensors.startswith("equal: 2 cases, ")
    said = "next_token" if kind == "tokens" else kind
    assert texts == f"equal: {len(texts_of(artifacts[kind]).cases)} texts, {said}"


@pytest.mark.parametrize("kind", ["embedding", "scores", "tokens"])
@pytest.mark.parametrize("field", [3, 4], ids=["ids", "expected"])
def test_a_wrong_tokenizer_is_told_apart_from_a_wrong_graph(
    program: tuple[str, list[object]], artifacts: dict[str, Path], kind: str, field: int, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts[kind], tmp_path / "copy")
    path = copy / "clients" / program[0] / "texts.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    place = [index for index, line in enumerate(lines) if line.startswith("text\t")][1]
    fields = lines[place].split("\t")
    first, *others = fields[field].split(",")
    fields[field] = ",".join([str(float(first) + 1).removesuffix(".0"), *others])
    lines[place] = "\t".join(fields)
    path.write_text("\n".join(lines), encoding="utf-8")
    done = ask(program[1], copy)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("differs: text 1")
    assert ("the tokenizer gives" in done.stdout) == (field == 3)


def test_an_output_that_differs_is_said(
    program: tuple[str, list[object]], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts["scores"], tmp_path / "copy")
    entry = json.loads((copy / "golden" / "golden.json").read_text())["cases"][1]["outputs"][0]
    path = copy / "golden" / str(entry["file"])
    content = bytearray(path.read_bytes())
    content[2:4] = b"\x20\x41"
    path.write_bytes(content)
    done = ask(program[1], copy)
    assert (done.returncode, done.stdout.startswith("differs: case 1, output logits at 0 is ")) == (1, True), (
        done.stdout
    )


def test_texts_and_pairs_are_answered(program: tuple[str, list[object]], artifacts: dict[str, Path]) -> None:
    from onnxopt.run.answers import run_text
    from onnxopt.run.results import Classification

    folder = artifacts["scores"]
    done = ask(program[1], folder, ASKED[0], "\t".join(ASKED))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    alone, together = run_text(folder, ASKED[:1]), run_text(folder, (), pairs=[ASKED])
    assert isinstance(alone, Classification)
    assert isinstance(together, Classification)
    expected = [label for answer in (alone, together) for label in sorted(answer.labels[0], key=lambda one: one.label)]
    assert [row[0] for row in rows] == [label.label for label in expected]
    assert [float(row[1]) for row in rows] == pytest.approx([label.score for label in expected], abs=1e-5)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger of five labels, of which the checkpoint names two, with a gap between."""
    room = tmp_path_factory.mktemp("tagger")
    checkpoint = tiny_checkpoint("bert", room / "in", task="token-classification", labels=5)
    artifact = made(checkpoint, room / "out")
    for language in LANGUAGES:
        add_client(artifact, language)
    return artifact


@pytest.mark.parametrize("named", [{}, {1: "B-X", 3: "I-X"}], ids=["none", "two"])
def test_labels_that_have_no_name_are_called_by_their_place(
    program: tuple[str, list[object]], tagger: Path, named: dict[int, str], tmp_path: Path
) -> None:
    copy = shutil.copytree(tagger, tmp_path / "copy")
    path = copy / "clients" / program[0] / "texts.tsv"
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("label\t")]
    lines[:0] = [f"label\t{place}\t{name}" for place, name in named.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    done = ask(program[1], copy, ASKED[0])
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    ids = tokenizer.encode(ASKED[0]).ids
    assert [int(row[0]) for row in rows] == [token for token in ids for _ in range(5)]
    assert [row[1] for row in rows] == [named.get(place, f"LABEL_{place}") for place in range(5)] * len(ids)
    assert [sum(float(row[2]) for row in rows[at : at + 5]) for at in range(0, len(rows), 5)] == pytest.approx(
        [1.0] * len(ids), abs=1e-4
    )


def test_a_limit_that_the_marks_fill_keeps_nothing_of_a_pair(
    program: tuple[str, list[object]], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """By the ids that the client says it has, where others are expected."""
    copy = shutil.copytree(artifacts["scores"], tmp_path / "copy")
    path = copy / "clients" / program[0] / "texts.tsv"
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    pair = next(line.split("\t") for line in lines if line.startswith("marks\tpair"))
    marks = [int(one) for part in pair[2:5] for one in part.split(",") if one]
    kept = [line for line in lines if not line.startswith(("set\tlimit", "text\t"))]
    text = next(line.split("\t") for line in lines if line.startswith("text\t") and line.split("\t")[2])
    text[3] = "99"
    path.write_text("\n".join([*kept, f"set\tlimit\t{len(marks)}", "\t".join(text)]), encoding="utf-8")
    done = ask(program[1], copy)
    assert done.returncode == 1, done.stderr
    said = done.stdout.split("the tokenizer gives [")[1].split("]")[0]
    assert [int(one) for one in said.split(",")] == marks


def test_a_tolerance_as_small_as_a_double_can_be_is_read(
    program: tuple[str, list[object]], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts["scores"], tmp_path / "copy")
    path = copy / "clients" / program[0] / "texts.tsv"
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    fields = lines[-1].split("\t")
    assert fields[0] == "text"
    fields[4] = ",".join(["5e-324"] * len(fields[4].split(",")))
    fields[5] = "1"
    path.write_text("\n".join([*lines[:-1], "\t".join(fields)]) + "\n", encoding="utf-8")
    done = ask(program[1], copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_golden_file_of_another_size_is_refused(
    program: tuple[str, list[object]], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(artifacts["scores"], tmp_path / "copy")
    entry = json.loads((copy / "golden" / "golden.json").read_text())["cases"][0]["outputs"][0]
    path = copy / "golden" / str(entry["file"])
    path.write_bytes(path.read_bytes()[:-4])
    done = ask(program[1], copy)
    assert (done.returncode, "has another size than its tensor" in done.stderr) == (2, True), done.stderr


@pytest.fixture(scope="module")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose tokenizer has tokens of segment 1 in a single text, as that of XLNet has others."""
    room = tmp_path_factory.mktemp("unmarked")
    checkpoint = split_as_bert(classifier(room / "in", labels=2))
    path = checkpoint / "tokenizer.json"
    parts = [{"Sequence": {"id": "A", "type_id": 1}}]
    processor = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    (checkpoint / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    artifact = made(checkpoint, room / "out")
    for stack in (*LANGUAGES, "csharp", "web", "node"):
        add_client(artifact, stack)
    return artifact


def test_a_tokenizer_without_plain_marks_is_left_to_those_who_read_it(unmarked: Path) -> None:
    io, texts = json.loads((unmarked / "io.json").read_text()), texts_of(unmarked)
    assert "marks" not in io["tokenizer"]
    assert io["tokenizer"]["lowercase"]
    assert all(len(case.ids) < io["tokenizer"]["max_length"] for case in texts.cases)
    for stack in (*LANGUAGES, "csharp", "web"):
        folder = unmarked / "clients" / stack
        assert not (folder / "texts.tsv").exists()
        assert not (folder / "tokenizer.json").exists()
        said = (folder / "README.md").read_text()
        assert "It reads no text: the tokenizer does more than put special tokens around one" in said
        assert "golden texts" not in said
    assert check_texts(unmarked) == (0, f"equal: {len(texts.cases)} texts, scores")


def test_a_client_that_reads_no_text_repeats_the_tensors_and_refuses_text(
    program: tuple[str, list[object]], unmarked: Path
) -> None:
    done = ask(program[1], unmarked)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("equal: 2 cases, ")
    done = ask(program[1], unmarked, ASKED[0])
    assert (done.returncode, "reads no text of the artifact" in done.stderr) == (2, True), done.stderr


def test_what_cannot_be_run_is_said(program: tuple[str, list[object]], tmp_path: Path) -> None:
    done = run(
        *program[1], tmp_path / "none", GRAPH_PYTHON=sys.executable, GRAPH_IN_PIPE=str(HERE / "graph_in_pipe.py")
    )
    assert done.returncode == 2
    assert "unusable: " in done.stderr


def test_the_tokenizers_of_two_stacks_hold_no_cut_and_no_padding(tmp_path: Path) -> None:
    checkpoint = classifier(tmp_path / "in", labels=2)
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=24)
    tokenizer.enable_truncation(12)
    tokenizer.save(str(path))
    artifact = made(checkpoint, tmp_path / "out")
    for stack in ("cpp", "java"):
        add_client(artifact, stack)
        own = json.loads((artifact / "clients" / stack / "tokenizer.json").read_text())
        assert (own["padding"], own["truncation"]) == (None, None)
        assert own["model"] == json.loads((artifact / "tokenizer.json").read_text())["model"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, ("bert", True, True, True)),
        (
            {"normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}},
            ("bert", False, False, False),
        ),
        ({"normalizer": {"type": "NFC"}}, ("WordPiece", False, False, False)),
        ({"pre_tokenizer": None}, ("WordPiece", False, False, False)),
        ({"model": {"type": "BPE", "vocab": {}}}, ("BPE", False, False, False)),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}}}, ("WordPiece", False, False, False)),
    ],
)
def test_only_what_microsofts_tokenizer_can_be_is_offered_to_it(
    tmp_path: Path, change: dict[str, object], kind: tuple[str, bool, bool, bool]
) -> None:
    vocabulary = {mark: place for place, mark in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    normal = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
    content = {
        "model": {"type": "WordPiece", "vocab": vocabulary, "continuing_subword_prefix": "##"},
        "normalizer": normal,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    } | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_kind(tmp_path) == kind
