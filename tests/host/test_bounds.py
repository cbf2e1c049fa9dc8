"""What an input may cost, and how a user allows more."""

from __future__ import annotations

import pytest

from onnxopt.errors import InputError
from onnxopt.host.bounds import VARIABLE, Bounds, allow, bounds, parse_bounds


def test_nothing_said_is_the_usual() -> None:
    assert parse_bounds("") == Bounds()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("nodes=7", "nodes", 7),
        (" Nodes = 2M ", "nodes", 2_000_000),
        ("seconds=0.5", "seconds", 0.5),
        ("growth=3,memory=2GiB", "memory", 2 << 30),
        ("verify=1.5k", "verify", 1536),
        ("verify=0", "verify", 0),
        ("growth=1.5k", "growth", 1500),
    ],
)
def test_a_limit_is_read_with_its_unit(text: str, name: str, value: float) -> None:
    assert getattr(parse_bounds(text), name) == value


@pytest.mark.parametrize(
    "text",
    ["nodes", "nodes=", "nodes=-1", "nodes=many", "nodes=1parsec", "knots=3", "nodes=1e9", "memory=", "memory=1e9"],
)
def test_what_cannot_be_read_is_named_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(InputError, match=r"ONNXOPT_LIMITS: cannot read .*write nodes, growth, seconds, memory"):
        parse_bounds(text)


def test_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "seconds=33")
    assert bounds().seconds == 33
    assert bounds().nodes == Bounds().nodes


def test_large_models_may_take_longer_and_more() -> None:
    limits = Bounds(seconds=2, memory=100)
    assert limits.seconds_for(0) == 2
    assert limits.seconds_for(10 << 26) == 12
    assert limits.seconds_for(0, elements=4096 * 5) == 10
    assert limits.seconds_for(0, elements=5) == 2
    assert limits.memory_for(10) == 260


def test_a_hint_can_be_read_again() -> None:
    assert parse_bounds(allow("memory", "3GiB").rpartition(f"{VARIABLE}=")[2]).memory == 3 << 30
