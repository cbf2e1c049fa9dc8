"""What was finished is said where a command is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxopt.host import kept
from onnxopt.host.folders import staged
from onnxopt.host.scratch import scratch_folder


@pytest.fixture(autouse=True)
def _nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_kept", {})


def test_the_last_word_on_what_is_there_counts(tmp_path: Path) -> None:
    for name in ("state", "model"):
        (tmp_path / name).mkdir()
    kept.keep(tmp_path / "state", "the state of step 1")
    kept.keep(tmp_path / "model", "build/x")
    kept.keep(tmp_path / "gone", "a step's result")
    kept.keep(tmp_path / "state", "the state of step 2")
    assert kept.kept() == ("the state of step 2", "build/x")
    (tmp_path / "state").rmdir()
    assert kept.kept() == ("build/x",)


def test_a_result_in_a_scratch_folder_is_not_kept() -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        with staged(folder / "step"):
            pass
        raise KeyboardInterrupt
    assert kept.kept() == ()


def test_a_folder_is_kept_once_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "half"):
        raise KeyboardInterrupt
    with staged(tmp_path / "cached", cache=True):
        pass
    assert kept.kept() == ()
    with staged(tmp_path / "out"):
        pass
    assert kept.kept() == (str(tmp_path / "out"),)


def test_a_folder_is_kept_that_is_there_when_the_stop_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxopt.host.folders._sync_folder", stop)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out") as fresh:
        (fresh / "file").touch()
    assert (tmp_path / "out" / "file").is_file()
    assert kept.kept() == (str(tmp_path / "out"),)
