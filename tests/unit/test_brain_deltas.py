"""The pace and the merging of what a brain says while it speaks."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from goclaw.brains.deltas import Deltas
from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.core.records import Cleaner


class Stream:
    """Keeps what was sent and when; a flush takes as long as it is told."""

    message_id = "m"
    cleaner: Cleaner | None = None
    paced = True

    def __init__(self, flush_s: float = 0.0) -> None:
        self.sent: list[tuple[float, str]] = []
        self.flush_s = flush_s
        self.error: Exception | None = None
        self.at_once = 0

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        self.at_once += 1
        assert self.at_once == 1, "two flushes at once would change the order"
        if self.error is not None:
            raise self.error
        loop = asyncio.get_running_loop()
        self.sent.append((loop.time(), "".join(one["content"]["text"] for one in updates)))
        if self.flush_s:
            done = loop.create_future()
            loop.call_later(self.flush_s, done.set_result, None)
            await done
        self.at_once -= 1


class Ticking(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer as soon as nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(body: Any) -> None:
    with asyncio.Runner(loop_factory=Ticking) as runner:
        runner.run(body)


async def wait(seconds: float) -> None:
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, done.set_result, None)
    await done


@pytest.mark.req("B-3")
def test_the_first_delta_goes_at_once_and_the_next_are_coalesced() -> None:
    async def body() -> None:
        stream = Stream()
        deltas = Deltas(stream)
        for letter in "abcdefghij":
            deltas.say(letter)
            await deltas.push()
            await wait(0.01)
        rest = await deltas.rest()
        times = [at for at, _ in stream.sent]
        assert stream.sent[0] == (0.0, "a")
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(gap >= limits.DELTA_MS_MIN / 1000 - 1e-9 for gap in gaps)
        said = "".join(text for _, text in stream.sent)
        assert said + "".join(one["content"]["text"] for one in rest) == "abcdefghij"
        assert len(stream.sent) == 4

    run(body())


@pytest.mark.req("B-3")
def test_a_last_delta_goes_out_by_itself() -> None:
    async def body() -> None:
        stream = Stream()
        deltas = Deltas(stream)
        for text in ("a", "b"):
            deltas.say(text)
            await deltas.push()
        await wait(1)
        assert [text for _, text in stream.sent] == ["a", "b"]
        assert stream.sent[1][0] == pytest.approx(limits.DELTA_MS_MIN / 1000)

    run(body())


@pytest.mark.req("B-3")
def test_a_slow_disk_gets_larger_deltas() -> None:
    async def body() -> None:
        stream = Stream(flush_s=0.1)
        deltas = Deltas(stream)
        for letter in "abcdefghijklmnopqrstuvwxyz" * 4:
            deltas.say(letter)
            await deltas.push()
            await wait(0.01)
        times = [at for at, _ in stream.sent]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert min(gaps) >= (1 + limits.DELTA_FLUSHES) * 0.1 - 1e-9

    run(body())


@pytest.mark.req("B-3", "I-5")
def test_four_kibibytes_go_whatever_the_time() -> None:
    async def body() -> None:
        stream = Stream()
        deltas = Deltas(stream)
        for _ in range(4):
            deltas.say("é" * (limits.DELTA_BYTES_MAX // 2))
            await deltas.push()
        assert [at for at, _ in stream.sent] == [0.0] * 4

    run(body())


@pytest.mark.req("B-3")
def test_without_a_push_all_of_it_is_for_the_record() -> None:
    async def body() -> None:
        deltas = Deltas(Stream())
        deltas.say("a")
        deltas.say("b")
        deltas.think("c")
        deltas.plan([])
        deltas.say("d")
        await wait(1)
        rest = await deltas.rest()
        kinds = [update["sessionUpdate"].removeprefix("agent_") for update in rest]
        assert kinds == ["message_chunk", "thought_chunk", "plan", "message_chunk"]
        assert rest[0]["content"] == {"type": "text", "text": "ab"}
        assert deltas.text == "abd"
        assert await deltas.rest() == []

    run(body())


@pytest.mark.req("I-5")
def test_a_long_text_becomes_events_within_their_bound() -> None:
    async def body() -> None:
        deltas = Deltas(Stream())
        text = "\u0001" * (limits.EVENT_BYTES_MAX // 2)
        deltas.say(text)
        rest = await deltas.rest()
        assert len(rest) == 4
        assert "".join(one["content"]["text"] for one in rest) == text

    run(body())


@pytest.mark.req("Q-4")
def test_the_error_of_a_flush_reaches_the_brain() -> None:
    async def body() -> None:
        stream = Stream()
        deltas = Deltas(stream)
        deltas.say("a")
        await deltas.push()
        deltas.say("b")
        await deltas.push()
        stream.error = RuntimeError("the lease is gone")
        await wait(1)
        deltas.say("c")
        with pytest.raises(RuntimeError, match="the lease is gone"):
            await deltas.push()

    run(body())


def test_an_abandoned_answer_sends_nothing_more() -> None:
    async def body() -> None:
        stream = Stream()
        deltas = Deltas(stream)
        for text in ("a", "b"):
            deltas.say(text)
            await deltas.push()
        deltas.abandon()
        deltas.abandon()
        await wait(1)
        assert [text for _, text in stream.sent] == ["a"]

    run(body())
