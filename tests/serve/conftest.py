"""Small models that are served in this process: an encoder and a decoder with a chat template, named by nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxopt
from onnxopt.serve.app import create_app
from onnxopt.serve.limits import Limits
from tests.support.asgi import Caller
from tests.support.served import tiny_decoder
from tests.support.tiny import tiny_checkpoint

PROMPTS = {"query": "a name of ", "passage": ""}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
LIMITS = Limits(max_body_bytes=1 << 20, max_items=6, max_new_tokens=16, timeout_s=30)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    checkpoint = tiny_checkpoint("bert", folder / "checkpoint", pooling=pooling)
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}), encoding="utf-8")
    return onnxopt.optimize(checkpoint, out=folder / "vectors", measure=False).path


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = tiny_decoder("llama", folder / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return onnxopt.optimize(checkpoint, out=folder / "stories", measure=False).path


@pytest.fixture(scope="session")
def caller(encoder_folder: Path, decoder_folder: Path) -> Iterator[Caller]:
    caller = Caller(create_app({"vectors": encoder_folder, "stories": decoder_folder}, limits=LIMITS))
    yield caller
    caller.close()
