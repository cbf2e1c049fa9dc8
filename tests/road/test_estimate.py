"""What a large model will take is said before anything begins, and what cannot fit is refused then."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import onnxopt
from onnxopt.errors import InputError
from onnxopt.graph import weight_files
from onnxopt.load.checkpoint.counted import Counted
from onnxopt.load.source.source import Source, resolve
from onnxopt.records.events import Event, Said
from onnxopt.road import estimate
from onnxopt.road.estimate import Estimate, estimate_of, is_served_in_fewer_bits, require_fits, say_ahead
from onnxopt.road.options import LoadOptions, Options, PackageOptions, PrecisionOptions, PruneOptions, TuneOptions
from onnxopt.spec import Target
from tests.support.served import tiny_decoder
from tests.support.tiny import tiny_checkpoint

GB = 10**9
INT4 = Options(quantize=PrecisionOptions(precision="int4-weights:64"))
UNMEASURED = Options(tune=TuneOptions(measure=False))
SEVEN = Counted(parameters=7 * GB, in_tables=GB // 4, largest=GB // 8, stored_bytes=14 * GB)


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(weight_files, "LARGE_BYTES", 1000)
    return resolve(str(tiny_decoder("llama", tmp_path / "tiny")))


def on_this_machine(monkeypatch: pytest.MonkeyPatch, *, memory: int = 1000 * GB, disk: int = 1000 * GB) -> None:
    monkeypatch.setattr(estimate, "memory_allowed", lambda: memory)
    monkeypatch.setattr(estimate, "free_bytes", lambda _: disk)


def test_nothing_is_said_of_small_models_and_of_what_is_not_known(tmp_path: Path) -> None:
    source = resolve(str(tiny_decoder("llama", tmp_path / "tiny")))
    assert estimate_of(source, Options()) is None
    assert estimate_of(replace(source, weights="random"), Options()) is None
    assert estimate_of(replace(source, kind="onnx"), Options()) is None


def test_a_model_that_is_pruned_first_is_not_told_before(decoder: Source) -> None:
    assert estimate_of(decoder, Options(prune=PruneOptions(what="ffn=25%"))) is None
    assert estimate_of(decoder, Options()) is not None


def test_weights_are_counted_and_options_read(decoder: Source) -> None:
    found = estimate_of(decoder, INT4)
    assert found is not None
    network = onnxopt.optimize(decoder.text, out=Path(decoder.text).parent / "out", measure=False)
    assert 0.9 < found.counted.float_bytes / network.manifest.bytes_after < 1.1
    assert (found.precision, found.measured, found.is_float) == ("int4-weights", True, False)
    assert estimate_of(decoder, UNMEASURED) == Estimate(found.counted, "fp32", measured=False)
    alone = estimate_of(decoder, Options(quantize=PrecisionOptions(precision="int4-weights", calibration="none")))
    assert alone == replace(found, on_samples=False)
    on_gpu = Options(quantize=PrecisionOptions(precision="auto"), package=PackageOptions(target="cuda"))
    assert estimate_of(decoder, on_gpu) == Estimate(found.counted, "fp16")


def test_a_result_in_fewer_bits_is_smaller_and_takes_longer() -> None:
    every = {name: Estimate(SEVEN, name, measured=False) for name in ("fp32", "fp16", "int8", "int4-weights")}
    sizes = [one.file_bytes for one in every.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[:2] == [28 * GB, 14 * GB]
    assert 4 * GB < every["int4-weights"].file_bytes < 5 * GB
    assert every["int4-weights"].seconds > 5 * every["fp32"].seconds
    assert every["int4-weights"].seconds > 2 * replace(every["int4-weights"], on_samples=False).seconds
    timed = Estimate(SEVEN, "int4-weights")
    assert timed.memory_bytes > 28 * GB > every["int4-weights"].memory_bytes  # a session of the original is opened
    assert (timed.scratch_bytes, every["int4-weights"].scratch_bytes) == (28 * GB, 14 * GB)
    assert all(one.least_memory_bytes < one.memory_bytes for one in (timed, *every.values()))


def test_the_line_says_how_long_and_how_much() -> None:
    line = Estimate(SEVEN, "int4-weights", measured=False).line()
    assert line.startswith("7.0 billion parameters; this takes about 2.9 h on two cores, 6.")
    assert line.endswith("of memory and 13.04 GiB of temporary files, for a model of 4.33 GiB in int4-weights")
    small = Estimate(replace(SEVEN, parameters=494_000_000), measured=False).line()
    assert small.startswith("494 million parameters; this takes about 1 min on two cores")


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_this_machine(monkeypatch, memory=16 * GB, disk=30 * GB)
    require_fits(Estimate(SEVEN, "int4-weights", measured=False), "a model", tmp_path)


@pytest.mark.parametrize(
    ("asked", "machine", "said"),
    [
        (Estimate(SEVEN), {"memory": 16 * GB}, ("26.82 GiB of memory, and 14.90 GiB are allowed", "--no-measure")),
        (Estimate(SEVEN), {"memory": 16 * GB, "disk": 30 * GB}, ("of memory", "--precision int4-weights --no-measure")),
        (Estimate(SEVEN, measured=False), {"disk": 25 * GB}, ("on the disk of", "--precision int4-weights")),
        (Estimate(SEVEN), {"memory": GB // 2}, ("of memory", "take a machine with 2.")),
    ],
)
def test_what_cannot_fit_is_refused_with_what_would(
    asked: Estimate, machine: dict[str, int], said: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_this_machine(monkeypatch, **machine)
    with pytest.raises(InputError) as caught:
        require_fits(asked, "a/model", tmp_path / "out")
    assert said[0] in caught.value.what
    assert said[1] in caught.value.hint
    assert caught.value.where == "a/model"
    assert "\n" not in str(caught.value)


def test_disks_that_are_two_are_asked_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = Estimate(SEVEN, measured=False)
    on_this_machine(monkeypatch, disk=30 * GB)
    with pytest.raises(InputError, match="on the disk"):
        require_fits(asked, "a/model", tmp_path)
    monkeypatch.setattr(estimate, "_disk_of", str)
    require_fits(asked, "a/model", tmp_path)


def test_a_large_decoder_in_float_for_a_cpu_is_told_what_people_serve(
    decoder: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_told(options: Options, source: Source = decoder) -> bool:
        found = estimate_of(source, options)
        assert found is not None
        return is_served_in_fewer_bits(source, options, found)

    assert not is_told(Options())  # it is large, and has no billion parameters
    monkeypatch.setattr(estimate, "SERVED_IN_FEWER_BITS", 1000)
    assert is_told(Options())
    assert is_told(Options(package=PackageOptions(target=Target("cpu"))))
    assert not is_told(INT4)
    assert not is_told(Options(package=PackageOptions(target="portable")))
    assert not is_told(Options(load=LoadOptions(task="feature-extraction")))
    encoder = resolve(str(tiny_checkpoint("bert", Path(decoder.text).parent / "bert")))
    assert not is_told(Options(), encoder)


def test_it_is_said_first_and_stays_in_the_ledger(decoder: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SERVED_IN_FEWER_BITS", 1000)
    told: list[Event] = []
    notes = say_ahead(decoder, Options(), Path("out"), told.append)
    assert [event.stage for event in told] == ["load", "load"]
    assert all(isinstance(event.step, Said) for event in told)
    assert "this takes about" in told[0].step
    assert notes == (told[1].step,)
    assert "in float32 this decoder will weigh" in notes[0]
    assert "--precision int8 or int4-weights" in notes[0]
    assert say_ahead(decoder, INT4, Path("out"), told.append) == ()
    told.clear()
    artifact = onnxopt.optimize(
        decoder.text, out=Path(decoder.text).parent / "out", measure=False, progress=told.append
    )
    assert notes[0] in artifact.manifest.notes
    first = next(event.step for event in told if isinstance(event.step, Said))
    assert "parameters; this takes about" in first
    hashing = next(place for place, event in enumerate(told) if "hashing" in event.step)
    assert hashing > next(place for place, event in enumerate(told) if event.step == first)


def test_a_refusal_is_one_line_before_anything_begins_and_without_torch(tmp_path: Path) -> None:
    folder = tiny_decoder("llama", tmp_path / "tiny")
    program = f"""
import sys
from onnxopt.graph import weight_files
from onnxopt.road import estimate
weight_files.LARGE_BYTES = 1000
estimate.memory_allowed = lambda: 10**6
from onnxopt.cli.main import main
code = main(["optimize", {str(folder)!r}, "-o", {str(tmp_path / "out")!r}])
print(code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "of memory, and 976.6 KiB are allowed here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
