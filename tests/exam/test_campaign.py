"""The record of a campaign: a graph is judged once, an interrupted campaign goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.exam import campaign


def test_an_interrupted_campaign_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Told:
        def ask(self, _: object, seed: int, most: int, *, seconds: float) -> campaign.Entry:
            asked.append(seed)
            return campaign.Entry(seed, "right", "right", pieces=("linear",), compared=most, nodes=(4, 2), seconds=0.5)

        def stop(self) -> None:
            pass

    monkeypatch.setattr(campaign, "Child", Told)
    options = ["--seed", "7", "--jobs", "1", "--faults", str(tmp_path / "f"), "--results", str(tmp_path / "r.json")]
    assert campaign.main(["--graphs", "3", *options]) == 0
    with (tmp_path / "f" / campaign.JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write('{"seed": 10, "outc')  # cut off by whatever ended the process
    assert campaign.main(["--graphs", "5", "--resume", *options]) == 0
    assert asked == [7, 8, 9, 10, 11]
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (record["graphs"], record["seeds"], record["outcomes"]) == (5, [7, 11], {"right": 5})
    assert campaign.main(["--graphs", "1", *options]) == 0
    assert asked[-1] == 7  # without --resume nothing of before counts
