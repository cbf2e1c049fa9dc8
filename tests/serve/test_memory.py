"""A server stays within the memory that it may use, whatever it is sent."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.run.batcher import BusyError
from onnxopt.serve.memory import LEAST_RUN_BYTES, Holding, MemoryPlan
from tests.serve.test_parsing import asked
from tests.support.server import Server, serving

MIB = 1 << 20
ALLOWED = 640  # MiB
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def test_what_is_left_is_shared_alike() -> None:
    plan = MemoryPlan.of(1000 * MIB, 400 * MIB, 3)
    assert plan.at_rest + plan.bodies + plan.answers + 3 * plan.model < 1000 * MIB
    assert plan.model >= 90 * MIB
    assert plan.line() == (
        "memory: 1000.0 MiB allowed; 400.0 MiB at rest, 90.0 MiB for bodies, 90.0 MiB for answers, "
        "100.0 MiB for each model"
    )


def test_too_little_memory_is_said_with_how_much_is_needed() -> None:
    with pytest.raises(InputError, match=r"take 400.0 MiB at rest and 410.0 MiB are allowed") as told:
        MemoryPlan.of(410 * MIB, 400 * MIB, 2)
    needed = int(told.value.hint.split("--memory ")[1].split("MB")[0])
    assert MemoryPlan.of(needed * MIB, 400 * MIB, 2).model >= LEAST_RUN_BYTES


def test_bytes_are_held_until_their_context_ends() -> None:
    holding = Holding(10, "bodies")
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(holding.hold(4))
        held.grow(5)
        with pytest.raises(BusyError, match="bodies of other requests hold 9 B of 10 B"):
            holding.hold(2)
        with pytest.raises(BusyError):
            held.grow(2)
        stack.enter_context(holding.hold(1))
    assert holding.held == 0


@pytest.fixture(scope="module")
def server(encoder_folder: Path, decoder_folder: Path) -> Iterator[Server]:
    models = f"vectors={encoder_folder}", f"stories={decoder_folder}"
    with serving(*models, "--memory", f"{ALLOWED}MB", "--timeout", 50) as found:
        yield found


def inference(rows: int, length: int, *outputs: dict[str, Any]) -> bytes:
    data = {name: [int(name != "token_type_ids")] * (rows * length) for name in NAMES}
    inputs = [{"name": name, "shape": [rows, length], "datatype": "INT64", "data": data[name]} for name in NAMES]
    return json.dumps({"inputs": inputs, **({"outputs": outputs} if outputs else {})}).encode()


def said(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def peak(server: Server) -> float:
    """The most memory that the server has held so far, MiB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_worst_that_can_be_sent_stays_within_the_memory(server: Server) -> None:
    embedding = {"name": "sentence_embedding", "parameters": {"binary_data": True}}
    attacks = {
        "many rows": ("/v2/models/vectors/infer", inference(2400, 140, embedding)),
        "a large answer": ("/v2/models/vectors/infer", inference(2400, 140)),
        "a large body": ("/v1/embeddings", said(model="vectors", input="name " * 1_500_000, truncate=True)),
        "many texts": ("/v1/embeddings", said(model="vectors", input=["the name of a class " * 30] * 256)),
        "many prompts": ("/v1/completions", said(model="stories", prompt=["a name"] * 250, max_tokens=20)),
        "many lists": ("/v1/embeddings", b'{"model": "vectors", "input": [' + b"[]," * 2_000_000 + b"[]]}"),
    }
    found: list[tuple[str, int]] = []

    def send(name: str) -> None:
        found.append((name, asked(server.port, *attacks[name])[0]))

    threads = [threading.Thread(target=send, args=(name,)) for name in attacks for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for _, status in found} <= {200, 400, 413, 422, 429, 503}
    # all at once, one may be told to come again; then it is answered, or refused for good
    assert asked(server.port, *attacks["many rows"])[0] == 200
    assert asked(server.port, *attacks["a large answer"])[0] == 413
    assert peak(server) < ALLOWED
    assert asked(server.port, "/v1/embeddings", said(model="vectors", input="a"))[0] == 200
    assert server.process.poll() is None


def test_the_memory_is_told(server: Server) -> None:
    assert any(line.startswith("memory: 640.0 MiB allowed; ") for line in server.lines)
    numbers = asked(server.port, "/metrics")[1].decode()
    assert 'onnxopt_memory_plan_bytes{part="total"} 6.7108864e+08' in numbers
    assert "onnxopt_memory_resident_bytes" in numbers


def test_a_limit_that_no_server_fits_into_is_said(encoder_folder: Path) -> None:
    from tests.support.command import onnxopt

    done = onnxopt("serve", encoder_folder, "--memory", "90MB")
    assert done.code == 2
    assert "the models take" in done.error_lines[-1]
    assert "--memory" in done.error_lines[-1]
    assert onnxopt("serve", encoder_folder, "--memory", "lots").error_lines[-1].count("'lots' is no size") == 1


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit limits the address space")
def test_a_server_keeps_to_a_limit_of_its_address_space(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.server.PREFIX", ["prlimit", f"--as={2 << 30}"])
    with serving(f"vectors={encoder_folder}", "--timeout", 20) as server:
        assert any("memory: 1.50 GiB allowed" in line for line in server.lines)  # three quarters of the limit
        embedding = {"name": "sentence_embedding", "parameters": {"binary_data": True}}
        assert asked(server.port, "/v2/models/vectors/infer", inference(2400, 140, embedding))[0] == 200
        assert asked(server.port, "/v2/models/vectors/infer", inference(2400, 140))[0] in {200, 413}
        assert server.stop() == 0
