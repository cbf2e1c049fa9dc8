"""Continuous batching: every text is what it would be alone, whenever it came and whoever left."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.run.batcher import BusyError, ClosedError, TooLargeError
from onnxopt.run.generate.cache_buffers import ROOM
from onnxopt.run.generate.continuous import ContinuousBatcher
from onnxopt.run.generate.generator import Generator
from onnxopt.run.generate.sampling import Sampling
from tests.support.artifacts import shared_artifact

PROMPTS = (
    "The value of a name is",
    "If an object is a class",
    "a",
    "Python calls the method with the instance as its first argument, and the class is found by its name. What",
    "The import statement",
    "Exceptions are raised when something is wrong, for example",
)


@pytest.fixture(scope="module", params=["cpu", "portable"])
def generator(request: pytest.FixtureRequest) -> Generator:
    """Open a decoder that shares buffers and packs its cache, and one that does neither."""
    return Generator(shared_artifact("gpt2-mini", request.param))


@pytest.fixture(scope="module")
def alone(generator: Generator) -> dict[tuple[str, int], str]:
    sizes = (3, 9, 24)
    return {
        (prompt, size): generator.generate([prompt], max_new_tokens=size).texts[0]
        for prompt in PROMPTS
        for size in sizes
    }


def test_texts_that_come_at_different_times_are_what_they_are_alone(
    generator: Generator, alone: dict[tuple[str, int], str]
) -> None:
    with ContinuousBatcher(generator, max_rows=4) as batcher:
        writing = []
        for number, (prompt, size) in enumerate(alone):
            writing.append(batcher.submit(prompt, max_new_tokens=size))
            time.sleep(0.004 * (number % 3))
        found = [one.future.result(60) for one in writing]
    assert [result.text for result in found] == list(alone.values())
    assert batcher.stats.steps < sum(size for _, size in alone)  # they did run together
    assert batcher.active == batcher.waiting == 0


def test_a_newcomer_does_not_wait_for_those_who_write(generator: Generator) -> None:
    order: list[str] = []
    with ContinuousBatcher(generator, max_rows=2) as batcher:
        started = threading.Event()
        long = batcher.submit(PROMPTS[0], max_new_tokens=60, on_text=lambda piece: started.set())
        long.future.add_done_callback(lambda _: order.append("long"))
        assert started.wait(30)
        short = batcher.submit(PROMPTS[2], max_new_tokens=2)
        short.future.add_done_callback(lambda _: order.append("short"))
        long.future.result(60)
        short.future.result(60)
    assert order == ["short", "long"]


def test_pieces_join_to_the_text_and_sampling_depends_on_nobody(generator: Generator) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=5)
    expected = generator.generate([PROMPTS[1]], max_new_tokens=16, sampling=sampling).texts[0]
    with ContinuousBatcher(generator) as batcher:
        others = [batcher.submit(prompt, max_new_tokens=20) for prompt in PROMPTS[2:]]
        pieces = list(batcher.stream(PROMPTS[1], max_new_tokens=16, sampling=sampling))
        for one in others:
            one.future.result(60)
    assert "".join(pieces) == expected
    assert len(pieces) > 1


def test_what_is_given_up_leaves_and_the_others_go_on(generator: Generator, alone: dict[tuple[str, int], str]) -> None:
    with ContinuousBatcher(generator, max_rows=2) as batcher:
        endless = batcher.stream(PROMPTS[0], max_new_tokens=100)
        next(endless)
        other = batcher.submit(PROMPTS[4], max_new_tokens=24)
        waiting = batcher.submit(PROMPTS[3], max_new_tokens=24)
        waiting.cancel()
        endless.close()  # type: ignore[attr-defined]  # a generator
        assert other.future.result(60).text == alone[PROMPTS[4], 24]
    assert waiting.future.cancelled()
    assert batcher.stats.cancelled == 2


def test_asyncio_callers_get_pieces(generator: Generator, alone: dict[tuple[str, int], str]) -> None:
    async def one(batcher: ContinuousBatcher, prompt: str) -> str:
        _, pieces = batcher.arrive(prompt, max_new_tokens=9)
        return "".join([piece async for piece in pieces])

    async def run() -> list[str]:
        with ContinuousBatcher(generator) as batcher:
            return await asyncio.gather(*(one(batcher, prompt) for prompt in PROMPTS))

    assert asyncio.run(run()) == [alone[prompt, 9] for prompt in PROMPTS]


def test_a_bad_prompt_is_said_at_once(generator: Generator) -> None:
    with ContinuousBatcher(generator) as batcher:
        with pytest.raises(InputError, match="the prompt is empty"):
            batcher.submit(" ")
        with pytest.raises(InputError, match="tokens, the model takes"):
            batcher.submit(list(range(1, 5000)))
        with pytest.raises(InputError, match="it must be 1 or more"):
            batcher.submit("a", max_new_tokens=0)
    with pytest.raises(ClosedError):
        batcher.submit("a")
    with pytest.raises(InputError, match="below 1"):
        ContinuousBatcher(generator, max_rows=0)


def test_a_full_queue_refuses_and_closing_finishes_what_was_taken(
    generator: Generator, alone: dict[tuple[str, int], str]
) -> None:
    batcher = ContinuousBatcher(generator, max_rows=1, max_queue=1)
    started = threading.Event()
    first = batcher.submit(PROMPTS[0], max_new_tokens=24, on_text=lambda piece: started.set())
    assert started.wait(30)
    second = batcher.submit(PROMPTS[1], max_new_tokens=9)
    with pytest.raises(BusyError, match="1 prompts wait already"):
        batcher.submit(PROMPTS[2])
    batcher.close()
    assert first.future.result(0).text == alone[PROMPTS[0], 24]
    assert second.future.result(0).text == alone[PROMPTS[1], 9]


def test_closing_without_finishing_gives_everybody_up(generator: Generator) -> None:
    batcher = ContinuousBatcher(generator, max_rows=1)
    started = threading.Event()
    writing = batcher.submit(PROMPTS[0], max_new_tokens=400, on_text=lambda piece: started.set())
    waiting = batcher.submit(PROMPTS[1])
    assert started.wait(30)
    batcher.close(drain=False, timeout=30)
    for one in (writing, waiting):
        with pytest.raises(CancelledError):
            one.future.result(10)


def test_a_failing_model_is_told_to_those_it_concerns(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = type(generator.decoder).prefill

    def failing(decoder: Any, prompts: Any, **options: Any) -> Any:
        if any(len(prompt) == 1 for prompt in prompts):
            raise InputError("cannot read this one")
        return prefill(decoder, prompts, **options)

    monkeypatch.setattr(type(generator.decoder), "prefill", failing)
    with ContinuousBatcher(generator) as batcher:
        good, bad = batcher.submit(PROMPTS[0], max_new_tokens=3), batcher.submit([5], max_new_tokens=3)
        assert good.future.result(60).tokens
        with pytest.raises(InputError, match="cannot read this one"):
            bad.future.result(60)
    assert batcher.stats.failed == 1


def test_texts_end_where_the_context_is_full(generator: Generator, tmp_path: Path) -> None:
    context = generator.decoder.context_length
    assert context
    prompt = [5] * (context - 3)
    expected = generator.generate([prompt], max_new_tokens=20).results[0]
    with ContinuousBatcher(generator) as batcher:
        short = batcher.submit(PROMPTS[0], max_new_tokens=40)
        full = batcher.submit(prompt, max_new_tokens=20)
        assert full.future.result(60).tokens == expected.tokens
        assert full.future.result().finish == "context"
        assert short.future.result(60).text == generator.generate([PROMPTS[0]], max_new_tokens=40).texts[0]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_texts_wait_until_the_cache_has_room_for_all_that_they_may_become(
    generator: Generator, alone: dict[tuple[str, int], str], rows: int
) -> None:
    longest = max(len(generator.encode(prompt, chat=False)) for prompt in PROMPTS)
    most = longest + 2 * 24 + ROOM  # one that comes late lies behind the columns of those that came before
    seen: list[int] = []
    with ContinuousBatcher(generator, max_rows=8, cache_tokens=rows * most) as batcher:

        def note(_: str) -> None:
            seen.append(batcher.active)

        writing = [batcher.submit(prompt, max_new_tokens=size, on_text=note) for prompt, size in alone]
        found = [one.future.result(60) for one in writing]
    assert [result.text for result in found] == list(alone.values())
    assert max(seen) <= rows
    assert max(seen) > 1 or rows == 1


def test_a_text_that_the_whole_cache_has_no_room_for_is_refused(generator: Generator) -> None:
    with ContinuousBatcher(generator, cache_tokens=ROOM + 40) as batcher:
        with pytest.raises(TooLargeError, match="tokens, the cache has room for 296; ask for fewer"):
            batcher.submit(PROMPTS[0], max_new_tokens=60)
        prompt = generator.encode(PROMPTS[0], chat=False)
        room = batcher.room_after(len(prompt))
        assert room is not None
        assert room == 40 - len(prompt)
        assert batcher.submit(prompt, max_new_tokens=room).future.result(60).tokens
    assert batcher.stats.requests == 1
    with ContinuousBatcher(generator) as batcher:
        assert batcher.room_after(9) is None


def test_a_prompt_that_is_read_in_pieces_is_the_same_prompt(
    generator: Generator, alone: dict[tuple[str, int], str]
) -> None:
    with ContinuousBatcher(generator, max_rows=4, chunk_tokens=5) as batcher:
        writing = [batcher.submit(prompt, max_new_tokens=size) for prompt, size in alone]
        found = [one.future.result(60) for one in writing]
    assert [result.text for result in found] == list(alone.values())
