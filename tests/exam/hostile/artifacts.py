"""Hostile artifacts, their hashes as they should be: tokenizers, settings, templates, manifests and graphs."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.exam.hostile.cases import QUIET, Case, artifact, edited, resealed
from tests.support.hostile_graphs import counting_without_end, dividing_the_smallest, growing

WORDS = "the value of a name"


def run(folder: Path, *texts: str) -> list[str]:
    """The command that answers one text."""
    return ["run", str(folder), *(texts or (WORDS,)), "--json"]


def generate(folder: Path, *more: str) -> list[str]:
    """The command that writes on from a prompt."""
    return ["generate", str(folder), WORDS, "-n", "4", QUIET, *more]


def _tokenizer(change: Callable[[dict[str, Any]], object], text: str, folder: Path) -> list[str]:
    path = artifact(folder) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return run(resealed(path.parent), text)


def _doubling(times: int) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * times,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _long_template(content: dict[str, Any]) -> None:
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = single[:1] * 1_000_000 + single


EVIL = "a" * 60 + "!"
TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a normalizer that doubles ten times": (lambda one: one.update(normalizer=_doubling(10)), WORDS),
    "a normalizer that doubles forty times": (lambda one: one.update(normalizer=_doubling(40)), WORDS),
    "a pattern that backtracks": (lambda one: one.update(pre_tokenizer=_split("(a+)+$")), EVIL),
    "a pattern that backtracks in words": (lambda one: one.update(pre_tokenizer=_split(r"(\w+\s?)*\.$")), "ab " * 40),
    "a pattern of alternatives": (lambda one: one.update(pre_tokenizer=_split("(a|aa)+$")), EVIL),
    "a pattern that is none": (lambda one: one.update(pre_tokenizer=_split("(((")), WORDS),
    "a pattern of a million letters": (lambda one: one.update(pre_tokenizer=_split("a?" * 500_000)), WORDS),
    "a pattern of nested counts": (lambda one: one.update(pre_tokenizer=_split("((a{1,999}){1,999}){1,999}")), EVIL),
    "a normalizer that nobody knows": (lambda one: one.update(normalizer={"type": "Evil"}), WORDS),
    "no model": (lambda one: one.pop("model"), WORDS),
    "a model that is a list": (lambda one: one.update(model=[]), WORDS),
    "ids beyond 64 bits": (lambda one: one["model"]["vocab"].update(the=2**70), WORDS),
    "ids beyond the table": (lambda one: one["model"]["vocab"].update(the=10**6), WORDS),
    "negative ids": (lambda one: one["model"]["vocab"].update(the=-1), WORDS),
    "an unknown word that is missing": (lambda one: one["model"].update({"unk_token": "[NONE]"}), "zzz"),
    "no vocabulary": (lambda one: one["model"].update(vocab={}), WORDS),
    "added words of wrong types": (lambda one: one.update(added_tokens=[{"content": [], "id": {}}]), WORDS),
    "added words that are a number": (lambda one: one.update(added_tokens=5), WORDS),
    "an added word of nothing": (
        lambda one: one["added_tokens"].append({**one["added_tokens"][0], "id": 900, "content": ""}),
        WORDS,
    ),
    "padding to 2^40": (lambda one: one.update(padding={**_padding(), "strategy": {"Fixed": 2**40}}), WORDS),
    "padding with an id of 2^40": (lambda one: one.update(padding={**_padding(), "pad_id": 2**40}), WORDS),
    "a template of a million marks": (_long_template, WORDS),
    "a version that is a list": (lambda one: one.update(version=[1]), WORDS),
}


def _padding() -> dict[str, Any]:
    return {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }


SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "tokenizer_config.json": {
        "padding_side": (5, ["left"]),
        "pad_token": (5, ["[PAD]"], {"content": 7}),
        "mask_token": (True, {"content": []}),
        "model_max_length": ("x", [512], -5, 0, True),
    },
    "config.json": {
        "id2label": ([1], "x"),
        "max_position_embeddings": ("512", [1], -1),
        "model_type": (5, {}),
        "architectures": (5, "BertModel", {"a": 1}),
        "pad_token_id": ("x", 2**70, [{}]),
    },
    "sentence_bert_config.json": {"max_seq_length": ("x", 0, -1, 2**70, []), "do_lower_case": ("yes", [])},
}
GENERATION: dict[str, tuple[Any, ...]] = {
    "eos_token_id": ("x", 2**70, [[1]], {}),
    "temperature": ("hot", -1, 1e400, 0),
    "top_k": ("x", -5, 2**70, 1.5),
    "top_p": (5, -1, "x"),
    "repetition_penalty": (0, -1, "x", 1e308),
    "suppress_tokens": ("x", [2**70], {"a": 1}, list(range(300))),
    "forced_bos_token_id": (2**70, "x", 10**6),
    "no_repeat_ngram_size": (2**70, "x", 1),
    "min_length": (2**70, "x"),
}
TEMPLATES = {
    "counts without end": "{% for i in range(10 ** 12) %}x{% endfor %}",
    "loops in loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "makes gigabytes": "{{ 'a' * 10 ** 10 }}",
    "doubles": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    "{{ ns.x }}",
    "reaches for classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reaches for globals": "{{ raise_exception.__globals__ }}",
    "reaches for a file": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}{{ os }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "never closes": "{% for m in messages %}{{ m.content }}",
    "is of ten thousand levels": "{% if true %}" * 10_000 + "{% endif %}" * 10_000,
    "is of ten thousand brackets": "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
    "divides by zero": "{{ 1 / 0 }}",
    "knows no such filter": "{{ messages | evil }}",
    "refuses": "{{ raise_exception('no\nmore') }}",
    "raises a power": "{{ 9 ** 9 ** 9 }}",
    "formats wide": "{{ '%1000000000d' % 1 }}",
    "formats into attributes": "{{ '{0.__class__}'.format(messages) }}",
    "makes half a letter": "{{ '\ud800' }}",
    "gives nothing": "",
    "sorts what cannot be": "{{ [1, 'a', none] | sort }}",
}
MANIFEST: dict[str, tuple[Any, ...]] = {
    "producer": ("someone", None),
    "schema_version": (2, "1", 10**30),
    "task": (5, "no-such-task", "text-generation", "image-classification"),
    "target": ({}, {"provider": "evil"}, 5),
    "signature": ({}, [], {"inputs": [], "outputs": []}),
    "workload": (5, {"shapes": []}),
    "files": (5, {"../../etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}, {"model.onnx": {"sha256": "x"}}),
    "proved": ({"batch": {"least": -1, "most": 0, "step": 0}}, []),
    "random_weights": ("yes",),
    "decoding": ({"shared_buffers": True, "logits": "last"}, 5),
}


def _settings(name: str, key: str, value: Any, folder: Path) -> list[str]:
    edited(artifact(folder) / name, **{key: value})
    return run(resealed(folder / "artifact"))


def _generation(key: str, value: Any, folder: Path) -> list[str]:
    edited(artifact(folder, "gpt2") / "generation_config.json", **{key: value})
    return generate(resealed(folder / "artifact"), "--sample", "--seed", "1")


def _template(source: str, folder: Path) -> list[str]:
    path = artifact(folder, "gpt2") / "chat_template.jinja"
    path.write_text(source, encoding="utf-8", errors="surrogatepass")
    return generate(resealed(folder / "artifact"), "--chat")


def _manifest(key: str, value: Any, folder: Path) -> list[str]:
    edited(artifact(folder) / "manifest.json", **{key: value})
    return run(folder / "artifact")


def _graph(make: Callable[[], Any], command: Callable[[Path], list[str]], folder: Path) -> list[str]:
    (artifact(folder) / "model.onnx").write_bytes(make().SerializeToString())
    return command(resealed(folder / "artifact"))


def _without(name: str, folder: Path) -> list[str]:
    path = artifact(folder) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run(folder / "artifact")


def _damaged(name: str, command: Callable[[Path], list[str]], folder: Path) -> list[str]:
    path = artifact(folder) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return command(folder / "artifact")


def _as_pipe(name: str, command: Callable[[Path], list[str]], folder: Path) -> list[str]:
    path = artifact(folder) / name
    path.unlink()
    os.mkfifo(path)
    return command(folder / "artifact")


def _verify(folder: Path) -> list[str]:
    return ["verify", str(folder), str(folder), QUIET]


def _bench(folder: Path) -> list[str]:
    return ["bench", str(folder), "--rounds", "1", "--seconds", "0.2", QUIET, "-w", "1x4"]


def _package(folder: Path) -> list[str]:
    return ["package", str(folder), "--for", "node"]


def cases() -> list[Case]:
    """All of them."""
    commands = {"run": run, "verify": _verify, "bench": _bench, "package": _package}
    graphs = {"a loop without end": counting_without_end, "a division that kills": dividing_the_smallest}
    graphs["gibibytes"] = functools.partial(growing, 1 << 29)
    files = ("model.onnx", "manifest.json", "tokenizer.json", "io.json", "golden/golden.json", "config.json")
    return [
        *(Case("tokenizer", name, functools.partial(_tokenizer, *made)) for name, made in TOKENIZERS.items()),
        *(
            Case(
                "artifact", f"{file}: {key} is {json.dumps(value)[:40]}", functools.partial(_settings, file, key, value)
            )
            for file, keys in SETTINGS.items()
            for key, values in keys.items()
            for value in values
        ),
        *(
            Case(
                "artifact", f"generation: {key} is {json.dumps(value)[:40]}", functools.partial(_generation, key, value)
            )
            for key, values in GENERATION.items()
            for value in values
        ),
        *(Case("template", name, functools.partial(_template, source)) for name, source in TEMPLATES.items()),
        *(
            Case("artifact", f"manifest: {key} is {json.dumps(value)[:60]}", functools.partial(_manifest, key, value))
            for key, values in MANIFEST.items()
            for value in values
        ),
        *(
            Case("artifact", f"{what} given to {name}", functools.partial(_graph, make, command))
            for what, make in graphs.items()
            for name, command in commands.items()
            if name != "package"
        ),
        *(Case("artifact", f"without {name}", functools.partial(_without, name)) for name in (*files, "golden")),
        *(
            Case("artifact", f"damaged {file} given to {name}", functools.partial(_damaged, file, command))
            for file in files
            for name, command in commands.items()
            if name in ("run", "package")
        ),
        *(
            Case("artifact", f"{file} in a pipe", functools.partial(_as_pipe, file, run))
            for file in files
            if "/" not in file
        ),
    ]
