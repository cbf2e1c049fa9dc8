"""Chat templates: rendered as transformers renders them, in a sandbox, refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.errors import InputError
from onnxopt.run.inputs.chat import ChatTemplate
from tests.support.decoder import CHAT
from tests.support.in_child import IN_CHILD

MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": 'Say "é"'}]
TEMPLATES = {
    "plain": CHAT,
    "chatml": (
        "{%- for message in messages -%}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
        "{%- endfor -%}\n"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "specials": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}"
    ),
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "lines": "{% if true %}\n  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\n{% endif %}\n",
}


def folder_with(folder: Path, template: object, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_template_is_rendered_as_transformers_renders_it(name: str, tmp_path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    own = ChatTemplate.of(folder_with(tmp_path, TEMPLATES[name]))
    assert own is not None
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=True, **specials
    )
    assert own.render(MESSAGES) == expected[0]


def test_the_template_file_comes_before_the_settings(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "old")
    (folder / "chat_template.jinja").write_text("new", encoding="utf-8")
    found = ChatTemplate.of(folder)
    assert found is not None
    assert found.render(MESSAGES) == "new"


def test_the_default_of_several_named_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "mine"}]
    found = ChatTemplate.of(folder_with(tmp_path, named))
    assert found is not None
    assert found.render(MESSAGES) == "mine"


@pytest.mark.parametrize("nothing", [None, "", [], [{"name": "tool_use", "template": "x"}], 3])
def test_no_template_is_no_error(nothing: object, tmp_path: Path) -> None:
    assert ChatTemplate.of(folder_with(tmp_path, nothing)) is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "broken"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{{ messages[0].content.nothing.at.all }}", "fails"),
        ("{% for a in range(999999) %}{% endfor %}", "fails"),
        ("{% include '/etc/passwd' %}", "fails"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        found = ChatTemplate.of(folder_with(tmp_path, template))
        assert found is not None
        found.render(MESSAGES)
    assert "\n" not in str(caught.value)
    assert "--no-chat" in str(caught.value)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"chat_template\.jinja: cannot be read"):
        ChatTemplate.of(tmp_path)


def test_the_messages_of_the_caller_stay_as_they_are(tmp_path: Path) -> None:
    found = ChatTemplate.of(folder_with(tmp_path, "{{ strftime_now('%Y') | length }}"))
    assert found is not None
    assert found.render(MESSAGES) == "4"
    assert MESSAGES[0] == {"role": "system", "content": "Be <brief>."}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a child is watched on Linux alone")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
            "the process was ended by SIGALRM (it took too long) while rendering the chat template; use --no-chat",
        ),
        (
            "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "the chat template fails (MemoryError)",
        ),
    ],
    ids=["time", "memory"],
)
def test_a_template_without_end_ends_the_command_with_a_word(source: str, said: str) -> None:
    renders = """
from onnxopt.errors import InputError
from onnxopt.run.inputs.chat import ChatTemplate
try:
    ChatTemplate(sys.argv[1], {}, "").render([{"role": "user", "content": "hello"}])
except InputError as error:
    print(error); sys.exit(2)
"""
    limits = {**os.environ, "ONNXOPT_LIMITS": "seconds=2,memory=128MiB"}
    command = [sys.executable, "-c", IN_CHILD + renders, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=limits)
    assert done.returncode == 2
    assert done.stdout.startswith(said), done.stdout + done.stderr
