"""Who waits for a run hears of its end, once and right; states are counted as committed (I-2)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core.errors import LeaseLost, StorageFailed, UnknownId
from goclaw.core.records import Failed, Succeeded
from goclaw.core.states import State

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome, RunEnd


def plays(house: Home) -> None:
    async def succeeds(attempt: Attempt) -> Outcome:
        await passes(100)
        return Succeeded("max_tokens", b'{"a":1}')

    async def fails(attempt: Attempt) -> Outcome:
        await passes(100)
        return Failed("no_good", "it is no good")

    async def dies(attempt: Attempt) -> Outcome:
        await passes(100)
        return Failed("flaky", "not now", retryable=True)

    async def recovers(attempt: Attempt) -> Outcome:
        if attempt.task.attempt == 1:
            return Failed("flaky", "not now", retryable=True)
        return Succeeded()

    house.plays["succeeds"], house.plays["fails"] = succeeds, fails
    house.plays["dies"], house.plays["recovers"] = dies, recovers


EXPECTED = {
    "succeeds": ("SUCCEEDED", "max_tokens", "finished", None),
    "fails": ("FAILED", None, "no_good", "it is no good"),
    "dies": ("DEAD_LETTER", None, "flaky", "not now"),
    "recovers": ("SUCCEEDED", "end_turn", "finished", None),
}


def summary(end: RunEnd) -> tuple[str, str | None, str | None, str | None]:
    code = end.code if end.state != "SUCCEEDED" else "finished"
    return end.state, end.stop_reason, code, end.message


@pytest.mark.req("G-6", "Q-3", "Q-1")
def test_a_prompt_that_streams_is_claimed_first_and_nobody_else_can_have_it(home: Path) -> None:
    """Whoever else asks for work all the while gets none, and no end is taken from them."""
    house = Home(home, lanes=2)

    async def streams(attempt: Attempt) -> Outcome:
        async def answer(stream: Any) -> dict[str, Any]:
            for n in range(5):
                await stream.send([{"sessionUpdate": "agent_message_chunk", "n": n}])
                await passes(10)
            return {}

        await attempt.think("brain", {}, answer)
        return Succeeded()

    house.plays["streams"] = streams

    async def main(world: World) -> None:
        session = await world.session()
        prompt = await world.prompt(session, "streams")
        ending = asyncio.ensure_future(world.engine.run_ended(prompt.run_id))
        while not ending.done():
            now: dict[str, Any] = {"now": world.clock.wall_ms(), "token": b"another"}
            (claimed,) = (
                await world.database.write(
                    "claim", pool="", owner="another", now_mono=0, aging_factor=16,
                    lease_until_mono=1 << 60, policy_version="p", **now,
                )
            ).parts  # fmt: skip
            assert claimed[0] is None
            with pytest.raises(LeaseLost):
                await world.database.write("complete", tid=prompt.tid, hash=b"", result=b"", **now)
            await passes(5)
        assert house.plays.begun == [(prompt.task_id, 1)]
        types = await world.types(session)
        assert types.count("task.claimed") == types.count("task.succeeded") == 1
        shown = [n for n, (kind, fields) in enumerate(await world.events(session)) if "n" in fields]
        assert len(shown) == 5
        assert types.index("task.running") < shown[0] < shown[-1] < types.index("task.succeeded")

    house.live(main)


@pytest.mark.req("I-3", "W-7")
@pytest.mark.parametrize("kind", ["prompt", "tool"])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_everybody_who_waits_hears_the_same_end(home: Path, name: str, kind: str) -> None:
    house = Home(home, max_attempts=2, backoff_ms_min=10)
    plays(house)

    async def main(world: World) -> str:
        session = await world.session()
        submit = world.prompt if kind == "prompt" else world.tool
        task = await submit(session, name)
        early = [asyncio.ensure_future(world.engine.run_ended(task.run_id)) for _ in range(5)]
        await passes(50)
        early.append(asyncio.ensure_future(world.engine.run_ended(task.run_id)))
        early[0].cancel()
        ends = await asyncio.gather(*early[1:])
        late = await world.engine.run_ended(task.run_id)
        assert {summary(end) for end in [*ends, late]} == {EXPECTED[name]}
        assert {end.event_id for end in [*ends, late]} == {late.event_id}
        head = (await world.intake.session(session.session_id)).head
        assert late.event_id == head  # the barrier is the turn's last event
        assert world.engine._waiting == {}
        assert world.engine._looks == set()
        return task.run_id

    async def after(world: World) -> None:
        assert summary(await world.engine.run_ended(run_id)) == EXPECTED[name]

    run_id = house.live(main)
    house.live(after)


@pytest.mark.req("I-3", "Q-11")
def test_a_run_that_failed_before_ends_with_its_last_word_only(home: Path) -> None:
    """A cancel and a crash after a retryable failure: not the failure's code."""
    house = Home(home, crash_budget=1, lanes=2)

    async def flaky(attempt: Attempt) -> Outcome:
        if attempt.task.attempt == 1:
            return Failed("flaky", "not now", retryable=True, retry_after_ms=10)
        await asyncio.Event().wait()
        return Succeeded()

    house.plays["flaky"] = flaky

    async def first(world: World) -> str:
        cancelled = await world.prompt(await world.session(), "flaky")
        crashes = await world.prompt(await world.session(), "flaky")
        await passes(100)
        waiting = asyncio.ensure_future(world.engine.run_ended(cancelled.run_id))
        await settled()
        await world.engine.cancel_run(cancelled.run_id, "tired of it")
        end = await waiting
        assert (end.code, end.message) == ("tired of it", None)
        assert await world.engine.run_state(cancelled.run_id) == end
        return crashes.run_id

    async def second(world: World) -> None:
        end = await world.engine.run_ended(run_id)
        assert (end.state, end.code) == ("DEAD_LETTER", "crashes_exhausted")
        assert "flaky" not in str(end)
        session = await world.intake.session_by_sid((await world.engine.run_task(run_id))["sid"])
        name, payload = (await world.events(session))[-1]
        assert (name, payload["reason"]) == ("run.ended", "crashes_exhausted")
        assert payload["message"] == end.message

    run_id = house.live(first)
    house.live(second)


@pytest.mark.req("I-3")
@pytest.mark.parametrize("seed", range(6))
def test_an_end_that_races_with_the_wait_is_heard(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.5, lanes=3)

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(5)]

        async def one(number: int) -> None:
            submit = world.prompt if number % 2 else world.tool
            task = await submit(sessions[number % 5], "work")
            for _ in range(house.clock.chance.randrange(12)):
                await asyncio.sleep(0)
            assert await world.ended(task) == "SUCCEEDED"

        began = world.clock.ns
        await asyncio.gather(*(one(number) for number in range(40)))
        assert world.clock.ns - began < 1e9
        assert world.engine._waiting == {}

    house.live(main)


@pytest.mark.req("S-7")
def test_a_wait_that_cannot_be_answered_says_so(home: Path) -> None:
    house = Home(home)
    plays(house)

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "succeeds")
        waiting = asyncio.ensure_future(world.engine.run_ended(task.run_id))
        await settled()
        fetch = world.database.fetch

        def broken(query: str, /, **arguments: object) -> list[tuple[object, ...]]:
            if query == "task_by_id":
                raise StorageFailed("The database cannot be read.")
            return fetch(query, **arguments)

        world.database.fetch = broken  # type: ignore[method-assign]
        with pytest.raises(StorageFailed):
            await waiting
        world.database.fetch = fetch  # type: ignore[method-assign]
        assert await world.ended(task) == "SUCCEEDED"
        with pytest.raises(UnknownId):
            await world.engine.run_ended("run_of_nobody")
        assert world.engine._waiting == {}

    house.live(main)


@pytest.mark.req("I-2", "Q-2")
@pytest.mark.parametrize("seed", range(4))
def test_counters_are_the_fold_of_what_was_committed(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.3, lanes=3, max_attempts=2, backoff_ms_min=10)
    plays(house)

    async def parks(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("never")
        return Succeeded()

    house.plays["parks"] = parks

    async def check(world: World) -> None:
        while True:
            told = world.engine.task_counts()
            on_disk = {
                state: count for state, count in await world.database.read("task_counts") if count
            }
            if told == world.engine.task_counts():
                break
        assert {state: count for state, count in told.items() if count} == on_disk
        assert set(told) == {str(state) for state in State}

    async def main(world: World) -> None:
        await check(world)
        chance = house.clock.chance
        sessions = [await world.session() for _ in range(4)]
        tasks = []
        for _ in range(40):
            name = chance.choice(["succeeds", "fails", "dies", "recovers", "parks"])
            tasks.append(await world.prompt(chance.choice(sessions), name))
            if chance.random() < 0.2:
                await world.engine.cancel_task(chance.choice(tasks).task_id)
            await passes(chance.randrange(100))
            await settled()
            await check(world)
        await passes(5_000)
        await check(world)
        states = Counter([await world.state(task) for task in tasks])
        counts = world.engine.task_counts()
        assert {state: count for state, count in counts.items() if count} == dict(states)
        terminal = sum(counts[s] for s in ("SUCCEEDED", "FAILED", "CANCELED", "DEAD_LETTER"))
        assert world.engine.open_tasks() == 40 - terminal

    house.live(main)
    house.live(check)


@pytest.mark.req("W-7")
def test_the_active_turn_is_told(home: Path) -> None:
    house = Home(home, lanes=1)

    async def parks(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        await asyncio.Event().wait()
        return Succeeded()

    house.plays["parks"] = parks

    async def main(world: World) -> None:
        session = await world.session()
        assert await world.engine.active_turn(session) == (None, 0)
        await world.engine.intake.session_event(session, 1, "session.closed", {})
        first = await world.prompt(session, "parks")
        second = await world.prompt(session, "second")
        turn, queued = await world.engine.active_turn(session)
        assert turn is not None
        assert (turn["runId"], turn["state"], queued) == (first.run_id, "queued", 1)
        since = turn["sinceEventId"]
        assert (await world.types(session))[since - 1] == "run.accepted"
        world.engine.open_lanes()
        await settled()
        turn, queued = await world.engine.active_turn(session)
        assert turn is not None
        assert (turn["state"], queued) == ("requires_action", 1)
        assert turn["sinceEventId"] == since
        await world.engine.signal(first.run_id, "go", b"")
        await settled()
        turn, _ = await world.engine.active_turn(session)
        assert turn is not None
        assert turn["state"] == "running"
        await world.engine.cancel_run(first.run_id)
        await world.ended(second)
        assert await world.engine.active_turn(session) == (None, 0)

    house.live(main, lanes=False)


@pytest.mark.req("W-7", "W-3")
def test_a_turn_that_is_redriven_begins_anew(home: Path) -> None:
    house = Home(home, lanes=1)

    async def second_time_parks(attempt: Attempt) -> Outcome:
        if attempt.task.attempt > 1:
            await attempt.wait_signal("never")
        return Failed("broken", "It is broken.")

    house.plays["work"] = second_time_parks

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "work")
        await world.ended(task)
        head = (await world.engine.intake.session(session.session_id)).head
        row = await world.engine.task(task.task_id)
        await world.database.write("redrive", tid=row["tid"], session_limit=9, now=1)
        await world.until(task, "SUSPENDED")
        turn, _ = await world.engine.active_turn(session)
        assert turn == {
            "runId": task.run_id, "state": "requires_action", "sinceEventId": head + 1
        }  # fmt: skip
        assert (await world.types(session))[head] == "task.requeued"

    house.live(main)


@pytest.mark.req("U-1")
def test_tasks_are_listed_in_pages(home: Path) -> None:
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(2)]
        tasks = [await world.tool(sessions[number % 2], "x") for number in range(7)]
        await world.engine.cancel_task(tasks[3].task_id)
        list_ = world.engine.tasks
        page = await list_(sid=None, before=None, state=None, limit=3)
        assert [row["tid"] for row in page] == [task.tid for task in tasks[:-4:-1]]
        rest = await list_(sid=None, before=page[-1]["tid"], state=None, limit=99)
        assert [row["tid"] for row in rest] == [task.tid for task in tasks[3::-1]]
        own = await list_(sid=sessions[0].sid, before=None, state="QUEUED", limit=99)
        assert len(own) == 4
        (cancelled,) = await list_(sid=None, before=None, state="CANCELED", limit=99)
        assert cancelled["task_id"] == tasks[3].task_id
        with pytest.raises(UnknownId):
            await world.engine.task("task_of_nobody")

    house.live(main, lanes=False)
