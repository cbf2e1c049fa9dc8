"""Clients are added to an artifact that is whole at any moment, whatever ends the process that adds them.

Covers: artifact/clients.py, host/claims.py, host/exchange.py
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxopt.artifact.clients import add_client
from onnxopt.artifact.package import Artifact
from onnxopt.errors import InputError
from onnxopt.host import folders
from tests.artifact.test_package import tree, write

Wrapped = Callable[..., Any]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write(tmp_path / "out").path


def whole(folder: Path) -> list[str]:
    """What is wrong with an artifact that opens; a file too many, too."""
    opened = Artifact.open(folder)
    listed = {*opened.manifest.files, *opened.manifest.extras, "manifest.json"}
    return [*opened.changed_files(), *sorted(listed ^ set(tree(folder)))]


def watched(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    """Have a function called before and after whatever changes a file system here."""

    def around(call: Wrapped) -> Wrapped:
        def changed(*given: Any, **more: Any) -> Any:
            step()
            done = call(*given, **more)
            step()
            return done

        return changed

    for owner, name in [
        *((Path, name) for name in ("write_bytes", "write_text", "mkdir", "rename", "replace", "unlink", "chmod")),
        (os, "link"),
        (shutil, "rmtree"),
        (folders, "exchanged"),
    ]:
        monkeypatch.setattr(owner, name, around(getattr(owner, name)))


@pytest.mark.parametrize("stack", ["node", "rust", "triton"])
@pytest.mark.parametrize("again", [False, True])
def test_the_artifact_is_whole_at_every_step(
    artifact: Path, stack: str, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    if again:
        add_client(artifact, stack)
    seen = []

    def step() -> None:
        seen.append(whole(artifact))

    watched(monkeypatch, step)
    add_client(artifact, stack)
    assert len(seen) > 20
    assert not [wrong for wrong in seen if wrong]
    assert [path.name for path in artifact.parent.iterdir()] == ["out"]
    assert any(name.startswith(f"clients/{stack}/") for name in Artifact.open(artifact).manifest.files)


@pytest.mark.parametrize("last", range(1, 60, 6))
def test_an_interruption_at_any_step_leaves_the_old_or_the_new(
    artifact: Path, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_client(artifact, "node")
    before, left = tree(artifact), [last]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        watched(patched, step)
        with pytest.raises(KeyboardInterrupt):
            add_client(artifact, "node")
    assert whole(artifact) == []
    assert tree(artifact) == before, "the same client gives the same bytes"
    add_client(artifact, "node")
    assert tree(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["out"]


def test_without_a_step_that_exchanges_folders_the_older_one_comes_back(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "exchanged", lambda *_: False)
    add_client(artifact, "node")
    add_client(artifact, "node")
    assert whole(artifact) == []
    before = tree(artifact)
    aside = artifact.parent / ".onnxopt-k1lled_0.old"  # what a process leaves that is killed between the two steps
    aside.mkdir()
    artifact.rename(aside / artifact.name)
    with folders.staged(artifact.parent / "other"):
        pass
    assert tree(artifact) == before
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["other", "out"]


def test_a_client_that_an_older_version_left_half_done_is_mended_by_the_next_one(artifact: Path) -> None:
    add_client(artifact, "node")
    add_client(artifact, "web")
    before = tree(artifact)
    shutil.rmtree(artifact / "clients" / "node")
    with pytest.raises(InputError, match=r"is missing; package it again with --for node$"):
        add_client(artifact, "web")
    add_client(artifact, "node")
    assert tree(artifact) == before


def test_a_file_of_the_user_and_the_permissions_stay(artifact: Path) -> None:
    (artifact / "notes.txt").write_text("mine")
    (artifact / "latest").symlink_to("model.onnx")
    artifact.chmod(0o750)
    add_client(artifact, "node")
    (artifact / "clients" / "node" / "stale.js").touch()
    add_client(artifact, "node")
    assert (artifact / "notes.txt").read_text() == "mine"
    assert (artifact / "latest").readlink() == Path("model.onnx")
    assert artifact.stat().st_mode & 0o777 == 0o750
    assert not (artifact / "clients" / "node" / "stale.js").exists()


def test_two_at_once_lose_nothing(artifact: Path) -> None:
    stacks = ("node", "web", "rust", "java")
    threads = [threading.Thread(target=add_client, args=(artifact, stack)) for stack in stacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(artifact) == []
    assert sorted(path.name for path in (artifact / "clients").iterdir()) == sorted(stacks)


def test_what_is_proved_stays_in_the_description(artifact: Path) -> None:
    before = (artifact / "io.json").read_bytes()
    add_client(artifact, "node")
    assert (artifact / "io.json").read_bytes() == before


def test_a_mount_point_is_refused_in_words(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda _: True)
    with pytest.raises(InputError, match="is a mount point"):
        add_client(artifact, "node")
