"""A form of a kernel is chosen by what it was measured to take, here or in the table that ships.

Covers: rewrite/forms.py, timing/rounds.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import InputError
from onnxopt.pipeline import profit as profit_module
from onnxopt.pipeline.profit import Profit, _fill, decide
from onnxopt.probe.observe import Observation
from onnxopt.rewrite import AS_IS, Choice, Forms
from onnxopt.spec import Target, Workload
from onnxopt.timing import rounds as timing_rounds
from onnxopt.timing.requests import fit_workload, ragged_lengths, requests_of
from onnxopt.timing.rounds import Start, is_noisy
from tests.support.rules import parse

KEY = ("lower-gelu", "")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXOPT_CACHE", str(tmp_path))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """The shipped table, empty."""
    entries: list[dict[str, object]] = []
    monkeypatch.setattr(profit_module, "records", lambda: tuple(entries))
    yield entries


def rounds(*costs: float) -> list[list[float]]:
    """Times of one shape, a round each."""
    return [[cost] for cost in costs]


def test_a_form_wins_only_when_it_is_faster_by_more_than_the_noise() -> None:
    recorded = rounds(10.0, 10.2, 9.9, 10.1)
    assert decide(["a", "b"], {"a": recorded, "b": rounds(8.0, 8.1, 7.9, 8.2)}).form == "b"
    assert decide(["a", "b"], {"a": recorded, "b": rounds(9.95, 10.15, 9.85, 10.05)}).form == "a"
    assert decide(["a", "b"], {"a": recorded, "b": rounds(5.0, 10.4, 10.3, 10.2)}).form == "a"


def test_chance_does_not_choose() -> None:
    even = rounds(*[10.0] * 6)
    assert decide(["a", "b"], {"a": even, "b": rounds(9.0, 9.1, 9.2, 9.0, 9.1, 9.9)}).form == "b"
    assert decide(["a", "b"], {"a": even, "b": rounds(9.0, 9.1, 9.2, 9.0, 9.1, 10.1)}).form == "a", "5 of 6 are chance"
    assert decide(["a", "b"], {"a": even[:3], "b": rounds(9.7, 9.8, 9.9)}).form == "a", "too few to tell so little"
    assert decide(["a", "b"], {"a": even[:3], "b": rounds(9.7, 9.8, 9.7)}).form == "b"
    noise = np.random.default_rng(0).normal(1.0, 0.05, (300, 2, 6)) * 10
    wins = [decide(["a", "b"], {"a": rounds(*a), "b": rounds(*b)}).form == "b" for a, b in noise]
    assert sum(wins) < 0.05 * len(wins)


def test_a_busy_machine_is_measured_longer_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times_of(calm_after: int) -> tuple[dict[str, list[list[float]]], str]:
        counted = iter(range(1000))

        def start(job: object) -> Start:
            del job
            turn = next(counted)
            times = [10.0] if turn > calm_after else [10.0 * (1 + turn % 4)]
            return Start(1.0, 1, 1, [times])

        monkeypatch.setattr(profit_module, "start", start)
        one = racing()
        return one.race({"a": tmp_path / "a.onnx", "b": tmp_path / "b.onnx"}, 60.0), one.trouble

    calm, trouble = times_of(0)
    assert (len(calm["a"]), trouble) == (profit_module.ROUNDS, "")
    later, trouble = times_of(8)
    assert profit_module.ROUNDS < len(later["a"]) <= 2 * profit_module.ROUNDS
    assert trouble == ""
    never, trouble = times_of(1000)
    assert never == {}
    assert "too busy" in trouble


def test_the_fastest_of_several_clear_winners_is_taken() -> None:
    choice = decide(["a", "b", "c"], {"a": rounds(*[10.0] * 4), "b": rounds(*[9.0] * 4), "c": rounds(*[7.0] * 4)})
    assert choice.form == "c"
    assert choice.times_ms == {"a": (10.0,), "b": (9.0,), "c": (7.0,)}
    assert not choice.disagree


def test_a_form_that_was_dropped_early_does_not_win() -> None:
    assert decide(["a", "b"], {"a": rounds(*[10.0] * 4), "b": rounds(1.0, 1.0)}).form == "a"
    assert decide(["a", "b"], {"a": rounds(*[10.0] * 4)}).form == "a"


def test_shapes_weigh_what_the_workload_says_and_their_disagreement_is_said() -> None:
    times = {"a": [[1.0, 100.0]] * 4, "b": [[0.5, 120.0]] * 4}
    choice = decide(["a", "b"], times)
    assert choice.form == "b"
    assert choice.disagree
    assert "disagree" in str(choice)
    assert decide(["a", "b"], times, (1.0, 9.0)).form == "a"


def test_noise_is_told_from_a_quiet_machine() -> None:
    assert not is_noisy([[10.0, 100.0], [10.5, 99.0], [9.8, 101.0], [10.2, 100.0]])
    assert is_noisy([[10.0, 100.0], [30.0, 250.0], [12.0, 300.0], [40.0, 110.0]])


def made(*, measure: bool = False, threads: int = 2, fresh: bool = False, fill: float = 1.0) -> Profit:
    mask = (np.arange(8)[None].repeat(4, axis=0) < 8 * fill).astype(np.int64)
    request = Observation({"batch": 4, "sequence": 8}, {"attention_mask": mask})
    return Profit(Target("cpu", threads), [request], measure=measure, fresh=fresh)


def record(digest: str, form: str, **facts: object) -> dict[str, object]:
    choice = {"pass": "lower-gelu", "kind": "", "form": form, "disagree": False, "times_ms": {form: [1.0]}}
    usual = {"provider": "cpu", "cpu": "A CPU", "isa": ["avx2"], "threads": 2, "onnxruntime": "1.0", "fills": [1.0]}
    where = {"date": "2026-11-26", "shapes": [[["batch", 4], ["sequence", 8]]], "weights": []}
    return {"digest": digest, "model": "x", **usual, **where, **facts, "choices": [choice]}


def test_what_nobody_measured_is_the_form_named_first(table: list[dict[str, object]]) -> None:
    choice = Forms(made()).of(*KEY, ("kernel", AS_IS))
    assert (choice.form, str(choice)) == ("kernel", "kernel (not measured)")
    assert not table


def test_the_shipped_table_decides_where_nothing_was_measured_and_says_where_it_comes_from(
    table: list[dict[str, object]],
) -> None:
    table.append(record("other", AS_IS))
    choice = Forms(made()).of(*KEY, ("kernel", AS_IS))
    assert (choice.form, choice.source) == (AS_IS, "recorded")
    assert "recorded on A CPU, 2 threads, onnxruntime 1.0" in str(choice)
    assert Forms(made(fresh=True)).of(*KEY, ("kernel", AS_IS)).source == "first"
    assert Forms(made()).of(*KEY, ("kernel", "another")).form == "kernel", "the table names a form that is not there"


def recorded_form(profit: Profit) -> str:
    """The form that the shipped table names; there is one."""
    found = profit.recorded(KEY, ("kernel", AS_IS))
    assert found is not None
    return found.form


def test_the_most_alike_record_decides(table: list[dict[str, object]]) -> None:
    table.append(record("a", "kernel", threads=16))
    table.append(record("b", AS_IS, threads=3))
    table.append(record("c", "kernel", provider="cuda", threads=2))
    assert recorded_form(made()) == AS_IS
    table.append(record("d", "kernel", threads=2, fills=[0.25]))
    assert recorded_form(made(fill=0.25)) == "kernel"
    assert recorded_form(made()) == AS_IS


def test_what_was_found_is_kept_for_the_next_run(table: list[dict[str, object]], tmp_path: Path) -> None:
    one = made(measure=True)
    digest = one.digest(["a model"])
    assert one.known(digest) is None
    found = Choice(AS_IS, "measured", {"kernel": (2.0,), AS_IS: (1.0,)}, disagree=True)
    one.remember(digest, {KEY: found}, "a model")
    known = made().known(digest)
    assert known == {KEY: Choice(AS_IS, "cache", found.times_ms, disagree=True)}
    assert made(threads=1).known(made(threads=1).digest(["a model"])) is None
    (file,) = tmp_path.rglob("*.json")
    table.append(json.loads(file.read_text(encoding="utf-8")))  # what the cache holds is what the table is made of
    file.write_text(json.dumps({"choices": 3}), encoding="utf-8")
    assert made(fresh=True).known(digest) is None
    shipped = made().known(digest)
    assert shipped is not None
    assert shipped[KEY].source == "recorded"


def test_a_flipped_bit_anywhere_in_what_was_kept_is_as_good_as_nothing(
    table: list[dict[str, object]], tmp_path: Path
) -> None:
    assert table == []
    one = made(measure=True)
    digest = one.digest(["a model"])
    one.remember(digest, {KEY: Choice(AS_IS, "measured", {"kernel": (2.25,), AS_IS: (1.5,)})}, "a model")
    (file,) = tmp_path.rglob("*.json")
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert made().known(digest) is None, place
    file.write_bytes(content)
    assert made().known(digest) is not None


def models(folder: Path) -> dict[str, Path]:
    """A quick model, one that does the same work fifty times over, one that does not run."""
    multiply = "\n".join(f"a{n + 1} = MatMul (a{n}, w)" for n in range(50))
    texts = {
        "quick": "g (float[batch,256] x) => (float[batch,256] y) { y = Relu (x) }",
        "slow": f"g (float[batch,256] x) => (float[batch,256] y) {{ a0 = Relu (x) {multiply} y = Relu (a50) }}",
        "broken": "g (float[batch,256] x) => (float y) <float[3] c = {1, 2, 3}> { y = Add (x, c) }",
    }
    files = {}
    for name, text in texts.items():
        model = parse(text, {"w": np.eye(256, dtype=np.float32)} if "w)" in text else {})
        files[name] = folder / f"{name}.onnx"
        ir.save(model, files[name])
    return files


def racing(seconds: float = 60.0) -> Profit:
    feeds = {"x": np.ones((512, 256), np.float32)}
    return Profit(Target("cpu"), [Observation({"batch": 512}, feeds)], seconds=seconds)


def test_models_race_and_what_is_slower_or_does_not_run_drops_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_rounds, "MOST_SPREAD", 100.0)  # other tests may run beside this one
    said: list[str] = []
    one = racing()
    one.progress = said.append
    times = one.race(models(tmp_path), 60.0)
    assert set(times) == {"quick", "slow"}
    assert len(times["slow"]) == 2 < len(times["quick"]) + 1
    assert times["slow"][0][0] > 3 * times["quick"][0][0]
    assert "round 1 of 6, quick" in said


def test_nothing_is_measured_where_the_time_does_not_suffice(tmp_path: Path) -> None:
    assert racing().race(models(tmp_path), 0.1) == {}


def test_nothing_is_measured_where_the_first_does_not_run(tmp_path: Path) -> None:
    files = models(tmp_path)
    assert racing().race({"broken": files["broken"], "quick": files["quick"]}, 60.0) == {}


@pytest.mark.parametrize(("batch", "longest", "fill"), [(32, 256, 0.26), (8, 128, 0.5), (64, 512, 0.1), (4, 16, 1.0)])
def test_ragged_lengths_have_the_share_that_was_asked_for(batch: int, longest: int, fill: float) -> None:
    lengths = ragged_lengths(batch, longest, fill)
    assert lengths.shape == (batch,)
    assert lengths.min() >= 1
    assert lengths.max() == longest
    assert abs(lengths.mean() / longest - fill) < 0.05
    assert ragged_lengths(batch, longest, fill).tolist() == lengths.tolist()


def test_requests_follow_the_workload(tmp_path: Path) -> None:
    import onnx

    from onnxopt.load.onnx_file import load_onnx

    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask) => (int64[batch,sequence] y) {
      y = Mul (input_ids, attention_mask)
    }""")
    onnx.save(model, tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    workload = fit_workload(Workload.parse("2x8,32x256@0.26,2x8"), loaded)
    assert workload.shapes == ({"batch": 2, "sequence": 8}, {"batch": 32, "sequence": 256})
    assert workload.fills == (1.0, 0.26)
    assert workload.weights == ()
    full, ragged = requests_of(loaded, workload)
    assert full.feeds["attention_mask"].all()
    assert abs(ragged.feeds["attention_mask"].mean() - 0.26) < 0.05
    assert workload.label(1) == "batch 32 sequence 256, 26% real tokens"
    assert fit_workload(Workload.parse("2x8*3,32x256@0.26,2x8"), loaded).weights == (4.0, 1.0)


@pytest.mark.parametrize("weight", ["0", "-1", "x", "inf", ""])
def test_a_weight_that_counts_nothing_is_refused(weight: str) -> None:
    with pytest.raises(InputError, match="weight"):
        Workload.parse(f"1x16*{weight},8x128")


@pytest.mark.parametrize(("shapes", "fill"), [([(2, 4)], 0.5), ([(0, 4), (2, 4)], 0.5), ([(3, 0)], 1.0), ([], 1.0)])
def test_an_empty_mask_says_nothing_of_the_share_of_real_tokens(shapes: list[tuple[int, int]], fill: float) -> None:
    masks = {f"mask_{index}": np.tile([1, 0], (rows, length // 2)) for index, (rows, length) in enumerate(shapes)}
    assert _fill({**masks, "x": np.zeros((2, 2))}) == fill
