"""Clients that `onnxopt package` adds: those whose runtime can be had run; of the others, two are compiled.

Covers: artifact/clients.py, artifact/io_json.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxopt.artifact import clients
from onnxopt.artifact.clients import STACKS, add_client, triton_config
from onnxopt.artifact.package import Artifact
from onnxopt.records.manifest import Manifest
from onnxopt.run.answers import run_text
from onnxopt.run.results import Classification
from onnxopt.spec import Target
from tests.artifact.test_golden_texts import split_as_bert
from tests.artifact.test_io_json import classifier, made
from tests.support.artifacts import shared_artifact
from tests.support.browser import NAMES
from tests.support.command import onnxopt
from tests.support.node import install_script, link_modules

MOCKS = Path(__file__).parent / "mocks"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(shared_artifact("minilm"), tmp_path_factory.mktemp("packaged") / "minilm")
    done = onnxopt("package", folder, *(part for stack in STACKS if stack != "genai" for part in ("--for", stack)))
    assert done.code == 0, done.err
    commands = done.out.splitlines()
    assert [line.split(" && ")[0].rsplit("/", 1)[1] for line in commands if '"a cat sleeps"' not in line] == [
        stack for stack in STACKS if stack != "genai"
    ]
    assert sum('"a cat sleeps"' in line for line in commands) == len(("node", "cpp", "csharp", "java", "rust"))
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(shared_artifact("gpt2-mini"), tmp_path_factory.mktemp("packaged") / "gpt2-mini")


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=180, check=False, cwd=cwd)


def damage(folder: Path) -> Path:
    """Return a golden file of a float output with its first number changed."""
    entry = json.loads((folder / "golden" / "golden.json").read_text())["cases"][0]["outputs"][-1]
    path = folder / "golden" / str(entry["file"])
    content = bytearray(path.read_bytes())
    content[2:4] = b"\x20\x41"
    path.write_bytes(content)
    return path


def test_clients_are_part_of_the_artifact(minilm: Path) -> None:
    opened = Artifact.open(minilm)
    assert opened.changed_files() == []
    assert {"io.json", "clients/node/check_golden.mjs", "clients/web/app.js", "clients/cpp/golden.tsv"} <= set(
        opened.manifest.files
    )
    again = add_client(minilm, "cpp")
    assert Artifact.open(minilm).manifest == opened.manifest
    sources = (
        "CMakeLists.txt",
        "README.md",
        "check_golden.cpp",
        "golden.tsv",
        "text.hpp",
        "texts.tsv",
        "tokenizer.json",
    )
    assert again.files == tuple(f"clients/cpp/{name}" for name in sources)


def test_io_json_says_what_a_program_must_know(minilm: Path, decoder: Path) -> None:
    io = json.loads((minilm / "io.json").read_text())
    assert io["inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "axes": ["batch", "sequence"],
        "meaning": "ids",
        "pad": 0,
    }
    assert io["tokenizer"] == {
        "file": "tokenizer.json",
        "pad_id": 0,
        "padding_side": "right",
        "max_length": 256,
        "lowercase": False,
        "marks": {"single": [[101], [102]], "pair": [[101], [102], [102]], "second_type": 1},
    }
    assert io["pooling"] == "mean"
    assert io["postprocessing"][0].startswith("none")
    written = json.loads((decoder / "io.json").read_text())  # every artifact has one
    assert written["decoding"]["shared_buffers"] is True
    assert written["decoding"]["eos_token_id"] == [4095]
    assert {spec["meaning"] for spec in written["inputs"]} == {"ids", "mask", "past"}


def test_what_cannot_be_packaged_is_one_line(minilm: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((minilm, "--for", "genai"), "has no genai_config.json"),
        ((minilm, "--for", "cobol"), "unknown stack 'cobol'"),
        ((tmp_path / "none", "--for", "node"), "no such folder"),
    ):
        done = onnxopt("package", *arguments)
        assert done.code == 2
        assert said in done.error_lines[-1]
        assert len(done.error_lines) == 1


@pytest.mark.node
def test_the_node_client_checks_and_runs(minilm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(minilm, tmp_path / "minilm")
    client = link_modules(folder / "clients" / "node")
    done = run("npm", "test", "--silent", cwd=client)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("equal: ")
    done = run("node", "run.mjs", "a cat sleeps", "a kitten naps", "shares fell", cwd=client)
    assert done.returncode == 0, done.stderr
    cosines = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(cosines) == 3
    assert cosines[0] > max(cosines[1:])
    damage(folder)
    done = run("npm", "test", "--silent", cwd=client)
    assert (done.returncode, done.stdout[:8]) == (1, "differs:")


@pytest.mark.node
def test_the_node_client_of_a_decoder_writes(decoder: Path) -> None:
    add_client(decoder, "node")
    client = link_modules(decoder / "clients" / "node")
    assert run("npm", "test", "--silent", cwd=client).returncode == 0
    done = run("node", "run.mjs", "The value of a name is", cwd=client)
    assert done.stdout.startswith("The value of a name is"), done.stderr


@pytest.fixture
def page(minilm: Path) -> Iterator[str]:
    client = link_modules(minilm / "clients" / "web")
    server = subprocess.Popen(
        [shutil.which("node") or "node", "serve.mjs", "0"], cwd=client, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    yield server.stdout.readline().split()[-1]
    server.terminate()
    server.wait(10)
    server.stdout.close()


def click(page: str, folder: Path, room: Path, text: str) -> dict[str, Any]:
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    script = install_script("click.mjs")
    picture = Path(os.environ.get("ONNXOPT_PICTURES", room)) / f"web-{folder.name}.png"
    done = run("node", script, page, folder, browser, room / "profile", picture, text)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 10_000
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.node
@pytest.mark.browser
def test_the_web_client_is_clicked(minilm: Path, page: str, tmp_path: Path) -> None:
    artifact = shutil.copytree(minilm, tmp_path / "minilm", ignore=shutil.ignore_patterns("clients"))
    found = click(page, artifact, tmp_path, "a cat sleeps\na kitten naps\nshares fell")
    assert found["errors"] == []
    assert found["model"]["state"] == "done", found
    assert found["golden"]["state"] == "equal", found
    assert ", 5 texts, " in found["golden"]["text"]
    lines = [line for line in found["result"]["text"].splitlines() if line.startswith("cosine")]
    cosines = [float(line.split()[1]) for line in lines]
    assert len(cosines) == 3
    assert cosines[0] > max(cosines[1:])
    damage(artifact)
    found = click(page, artifact, tmp_path, "a cat sleeps")
    assert found["golden"]["state"] == "error"
    assert found["golden"]["text"].startswith("differs: case 0, output sentence_embedding at 0")


@pytest.mark.node
@pytest.mark.browser
def test_the_web_client_scores_pairs_and_repeats_their_golden_texts(page: str, tmp_path: Path) -> None:
    artifact = made(split_as_bert(classifier(tmp_path / "in", labels=1)), tmp_path / "reranker")
    add_client(artifact, "node")  # golden texts come with the first client
    found = click(page, artifact, tmp_path, "the cat sat\ta dog ran")
    assert (found["errors"], found["golden"]["state"]) == ([], "equal"), found
    assert ", 8 texts, " in found["golden"]["text"]
    answer = run_text(artifact, (), pairs=[("the cat sat", "a dog ran")])
    assert isinstance(answer, Classification)
    assert f"l0 {answer.labels[0][0].score:.4f}" in found["result"]["text"]
    texts = json.loads((artifact / "golden" / "texts.json").read_text())
    texts["cases"][6]["ids"][0] += 1
    (artifact / "golden" / "texts.json").write_text(json.dumps(texts))
    found = click(page, artifact, tmp_path, "the cat sat")
    assert found["golden"]["text"].startswith("differs: text 6: the tokenizer gives [")


def test_the_node_client_and_the_page_make_rows_alike() -> None:
    templates = Path(clients.__file__).parent / "templates" / "clients"
    assert (templates / "node" / "rows.mjs").read_bytes() == (templates / "web" / "rows.mjs").read_bytes()


def test_what_is_packed_fetches_no_more_than_it_needs(minilm: Path) -> None:
    """Every version is one, and the script that fetches CUDA's library for Node is told not to."""
    assert "ignore-scripts=true" in (minilm / "clients" / "node" / ".npmrc").read_text()
    for stack in ("node", "web"):
        wanted = json.loads((minilm / "clients" / stack / "package.json").read_text())["dependencies"].values()
        assert all(version[0].isdigit() for version in wanted)
    assert "clients/node/.npmrc" in Artifact.open(minilm).manifest.files


@pytest.mark.node
@pytest.mark.browser
@pytest.mark.slow
def test_the_web_client_writes_with_a_decoder(decoder: Path, page: str, tmp_path: Path) -> None:
    from onnxopt.run.generate.generator import Generator

    artifact = shutil.copytree(decoder, tmp_path / "gpt2-mini", ignore=shutil.ignore_patterns("clients"))
    expected = Generator(decoder).generate(["The value of a name is"], max_new_tokens=24).texts[0]
    found = click(page, artifact, tmp_path, "The value of a name is")
    assert found["golden"]["state"] == "equal", found
    assert found["result"]["text"].startswith(f"The value of a name is{expected}"), found


def test_the_genai_client_writes_what_is_expected(decoder: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is for Python 3.11 and later")
    client = add_client(decoder, "genai").folder
    done = run(sys.executable, client / "generate.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal: ") == 3
    path = decoder / "golden" / "texts.json"
    whole = path.read_text()
    for key, place, said in (("expected", 3, "differs: after"), ("ids", 0, "differs: the tokenizer makes")):
        content = json.loads(whole)
        content["cases"][1][key][place] += 1
        path.write_text(json.dumps(content))
        done = run(sys.executable, client / "generate.py")
        assert done.returncode == 1
        assert said in done.stdout
    path.write_text(whole)


def parsed(text: str) -> Any:
    """Read a config.pbtxt by Triton's own schema."""
    from google.protobuf import text_format  # type: ignore[import-untyped]  # it comes with onnx, without types

    # by its file: the package around it wants gRPC
    package = importlib.util.find_spec("tritonclient")
    assert package
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec
    assert spec.loader
    schema = sys.modules.get("model_config_pb2") or importlib.util.module_from_spec(spec)
    if "model_config_pb2" not in sys.modules:
        sys.modules["model_config_pb2"] = schema
        spec.loader.exec_module(schema)
    return text_format.Parse(text, schema.ModelConfig())


def test_the_triton_repository_is_valid(minilm: Path) -> None:
    folder = minilm / "clients" / "triton" / "minilm"
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("minilm", "onnxruntime", 32)
    assert [(entry.name, list(entry.dims)) for entry in config.output] == [
        ("last_hidden_state", [-1, 384]),
        ("sentence_embedding", [384]),
    ]
    assert config.HasField("dynamic_batching")
    assert (folder / "1" / "model.onnx").samefile(minilm / "model.onnx")


def test_a_triton_repository_for_tensorrt_has_profiles(minilm: Path, decoder: Path) -> None:
    manifest = Manifest.read(minilm)
    config = parsed(triton_config(manifest.model_copy(update={"target": Target("tensorrt")})))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["trt_profile_max_shapes"].startswith("input_ids:8x128,attention_mask:8x128")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    cached = parsed(triton_config(Manifest.read(decoder)))
    assert cached.max_batch_size == 0
    assert list(cached.input[0].dims) == [-1, -1]


def test_the_cpp_client_compiles(minilm: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = minilm / "clients" / "cpp" / "check_golden.cpp"
    done = run(compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", f"-I{MOCKS / 'cpp'}", source)
    assert done.returncode == 0, done.stderr


def test_the_java_client_compiles(minilm: Path, tmp_path: Path) -> None:
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("there is no Java compiler")
    sources = [*(MOCKS / "java").rglob("*.java"), *(minilm / "clients" / "java").rglob("*.java")]
    done = run(compiler, "-Xlint:all,-serial", "-Werror", "--release", "17", "-d", tmp_path, *sources)
    assert done.returncode == 0, done.stderr
