"""The parts of the benchmark that need no peer: its batches, its tables, its measures of right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import decode, peers, run, table
from bench.inputs import moved_left, padded, ragged_lengths, with_holes

STREAM = list(range(1000, 1500))


def make_peer(name: str, ms: float, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "title": name,
        "runtime": "onnxruntime",
        "precision": "fp32",
        "error": "",
        "note": "",
        "make_seconds": 1.25,
        "errors": {"right": 1e-6, "left": 2e-6, "holes": 0.36},
        "cosine": 1.0,
        "size_bytes": 2**20,
        "peak_bytes": 2**21,
        "latency": {"1x16": {"p50_ms": ms, "speedup": 8 / ms}, "ragged 32x256": {"p50_ms": 100 * ms, "speedup": 2.0}},
    }
    return facts | changes


def make_result(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "MiniLM",
        "created": "2026-11-02T03:04:05+00:00",
        "machine": {"cpu": "some processor", "isa": ["avx2"]},
        "versions": {"onnxopt": "0.1", "onnxruntime": "1.32", "torch": "2.13"},
        "threads": 2,
        "rounds": 5,
        "shapes": ["1x16", "ragged 32x256"],
        "fill": {"1x16": 1.0, "ragged 32x256": 0.258},
        "peers": list(entries),
    }


def test_ragged_lengths_have_the_mean_and_the_ends_that_were_asked_for() -> None:
    lengths = ragged_lengths()
    assert len(lengths) == 32
    assert abs(66 - float(np.mean(lengths))) < 1
    assert min(lengths) >= 8
    assert max(lengths) == 256
    assert lengths != sorted(lengths)
    assert lengths == ragged_lengths()


def test_a_mean_outside_the_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="not possible"):
        ragged_lengths(mean=300)


def test_texts_are_padded_on_the_right() -> None:
    feeds = padded(STREAM, [4, 2, 1], 5, marks=(101, 102), pad=0)
    assert feeds["input_ids"].tolist() == [[101, 1000, 1001, 102, 0], [101, 102, 0, 0, 0], [101, 0, 0, 0, 0]]
    assert feeds["attention_mask"].sum(axis=1).tolist() == [4, 2, 1]
    assert {array.dtype for array in feeds.values()} == {np.dtype("int64")}


def test_moving_left_keeps_the_texts() -> None:
    feeds = padded(STREAM, [4, 1], 5, marks=(101, 102), pad=0)
    moved = moved_left(feeds)
    assert moved["input_ids"].tolist() == [[0, 101, 1000, 1001, 102], [0, 0, 0, 0, 101]]
    assert moved["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_holes_leave_every_row_a_token() -> None:
    feeds = padded(STREAM, [40, 20, 1], 40, marks=(101, 102), pad=0)
    mask = with_holes(feeds)["attention_mask"]
    assert mask.sum() < feeds["attention_mask"].sum()
    assert (mask <= feeds["attention_mask"]).all()
    assert (mask.sum(axis=1) > 0).all()


def test_errors_count_real_tokens_only() -> None:
    feeds = padded(STREAM, [2], 3, marks=(101, 102), pad=0)
    expected = np.ones((1, 3, 2), np.float32)
    found = expected.copy()
    found[0, 2] = 50
    assert run.worst_error(found, expected, feeds) == 0
    assert run.lowest_cosine(found, expected, feeds) == pytest.approx(1)
    found[0, 1] = 1.5
    assert run.worst_error(found, expected, feeds) == 0.5
    found[0, 1] = np.nan
    assert run.worst_error(found, expected, feeds) == np.inf
    assert run.round_figures(np.inf) == "infinite"


def test_the_fastest_of_each_precision_is_bold() -> None:
    text = table.render(make_result(make_peer("a", 8.0), make_peer("b", 4.0), make_peer("c", 2.0, precision="int8")))
    assert "| a | fp32 | 8.00 (1.00×) | 800 (2.00×) |" in text
    assert "| b | fp32 | **4.00** (2.00×) | **400** (2.00×) |" in text
    assert "| c | int8 | **2.00** (4.00×) | **200** (2.00×) |" in text
    assert "ragged 32 × 256, 26% filled" in text
    assert "2 threads of some processor (avx2), onnxopt 0.1" in text


def test_useless_answers_are_bold() -> None:
    text = table.render(make_result(make_peer("a", 8.0, cosine=0.33)))
    assert "| a | fp32 | 1.0e-06 | 2.0e-06 | **0.36** | **0.330000** | 1 MiB | 2 MiB | 1.2 s |" in text


def test_a_peer_that_failed_stands_in_the_table_with_its_error() -> None:
    failed = make_peer("b", 1.0, error=f"no | such\n<!-- thing {'x' * 200}")
    for key in ("latency", "errors", "cosine"):
        failed.pop(key)
    text = table.render(make_result(make_peer("a", 8.0), failed))
    (row,) = (line for line in text.splitlines() if line.startswith("| b |"))
    assert "no \\| such &lt;!-- thing" in row
    assert row.endswith("… |")


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.START}\nstale\n{table.END}\nafter\n", encoding="utf-8")
    table.put(page, (table.START, table.END), table.render(make_result(make_peer("a", 8.0))))
    once = page.read_text(encoding="utf-8")
    assert "stale" not in once
    assert once.startswith("before\n")
    assert once.endswith(f"{table.END}\nafter\n")
    table.put(page, (table.START, table.END), table.render(make_result(make_peer("a", 8.0))))
    assert once == page.read_text(encoding="utf-8")


def test_a_file_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{table.END} {table.START}", encoding="utf-8")
    with pytest.raises(ValueError, match="expected one"):
        table.put(page, (table.START, table.END), table.render(make_result()))


def test_the_last_error_of_a_log_is_told_without_our_folders() -> None:
    text = f"Traceback\n  File x\nValueError: {peers.ROOT}/model is odd\nwarning: bye\n"
    assert peers.error_line(text) == "ValueError: ./model is odd"
    assert peers.error_line("") == ""


def test_every_peer_has_what_it_needs() -> None:
    names = [peer.name for peer in peers.PEERS]
    assert len(names) == len(set(names))
    for index, peer in enumerate(peers.PEERS):
        assert peer.maker == "onnxopt" or (peers.MAKERS / peer.maker).is_file()
        assert not peer.environment or (peers.REQUIREMENTS / f"{peer.environment}.txt").is_file()
        assert not peer.source or peer.source in names[:index]


def test_a_choice_of_peers_brings_those_it_starts_from() -> None:
    assert {"default", "ort-int8", "ort-torchscript", "torchscript"} == run.wanted_peers({"ort-int8"})


def test_a_maker_that_fails_or_hangs_gives_words() -> None:
    python = str(peers.python_of(peers.OURS))
    assert peers._run([python, "-c", "raise ValueError('odd')"], 60).error == "ValueError: odd"
    assert peers._run([python, "-c", "import time; time.sleep(60)"], 1).error == "it took more than 1 s"
    assert peers._run([python, "-c", 'print(\'{"note": "6 fused"}\')'], 60).note == "6 fused"
    assert peers._run(["/no/such/program"], 60).error.startswith("it could not be started")


def test_two_models_are_compared_within_rounds_since_the_machine_changes_between_them() -> None:
    seconds = {"ours": {"alone": [1.0, 2.0, 4.0]}, "theirs": {"alone": [1.5, 3.0, 5.0]}}
    result = {"seconds": seconds}
    assert decode.faster(result, "ours", "theirs", "alone") == 1.5
    assert decode.cell(result, "ours", "alone", "theirs").endswith(" (1.50×)")
    assert "×" not in decode.cell(result, "theirs", "alone", "theirs")


def test_tables_need_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run the benchmark without --table first"):
        table.put_last(tmp_path / "README.md", decode.MARKS, tmp_path / "absent.json")
