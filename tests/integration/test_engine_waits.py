"""Durable waits: sleeps, signals, approvals, backoffs, and the one timer behind them (E-9, A-7)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.errors import AlreadyResolved, InvalidParams, TooLarge, UnknownId
from goclaw.core.records import Call, Done, Succeeded
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, CallResult, Outcome

DAY_S = 86_400.0


@pytest.mark.req("E-9", "Q-6")
def test_a_sleep_lasts_as_long_as_it_says_over_restarts_and_wall_clock_jumps(home: Path) -> None:
    house = Home(home, lanes=1)
    woken: list[int] = []

    async def sleeper(attempt: Attempt) -> Outcome:
        await attempt.sleep(1_000_000)
        woken.append(house.clock.mono_ms())
        return Succeeded()

    house.plays["sleeper"] = sleeper

    async def first(world: World) -> tuple[Accepted, int]:
        task = await world.tool(await world.session(), "sleeper")
        began = world.clock.mono_ms()
        await settled()
        assert await world.state(task) == "SUSPENDED"
        other = await world.tool(await world.session(), "other")
        assert await world.ended(other) == "SUCCEEDED"  # the lane is free
        await passes(300_000)
        return task, began

    async def second(world: World) -> None:
        world.clock.wall_offset_ms += 7 * 86_400_000
        await passes(300_000)
        world.clock.wall_offset_ms -= 30 * 86_400_000
        await passes(100_000)
        assert woken == []
        assert await world.ended(task) == "SUCCEEDED"
        assert woken == [began + 1_000_000]
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["failures"], row["crashes"]) == (2, 0, 0)

    task, began = house.live(first)
    house.live(second)


@pytest.mark.req("E-9")
def test_what_is_due_goes_on_in_the_order_of_its_time(home: Path) -> None:
    house = Home(home, lanes=1)

    def sleeping(ms: int):  # type: ignore[no-untyped-def]
        async def play(attempt: Attempt) -> Outcome:
            await attempt.sleep(ms)
            return Succeeded()

        return play

    waits = {"c": 30_000, "a": 10_000, "d": 40_000, "b": 20_000, "a too": 10_000}
    for name, ms in waits.items():
        house.plays[name] = sleeping(ms)

    async def main(world: World) -> None:
        tasks = [await world.tool(await world.session(), name) for name in waits]
        began = world.clock.mono_ms()
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.order[5:] == ["a", "a too", "b", "c", "d"]
        assert world.clock.mono_ms() - began == 40_000

    house.live(main)


@pytest.mark.req("E-9")
def test_more_due_at_once_than_one_look_sees(home: Path) -> None:
    count = limits.READ_ROWS_MAX + 30
    house = Home(home, lanes=4)

    async def sleeper(attempt: Attempt) -> Outcome:
        await attempt.sleep(5_000)
        return Succeeded()

    house.plays["sleeper"] = sleeper

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(4)]
        tasks = [
            await world.tool(sessions[number % 4], "sleeper", parallel=True)
            for number in range(count)
        ]
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
        assert world.clock.mono_ms() - 1_000_000 <= 5_001

    house.live(main)


# -- signals --------------------------------------------------------------------------------------


async def hears(attempt: Attempt) -> Outcome:
    return Succeeded(result=await attempt.wait_signal("go"))


@pytest.mark.req("E-9")
@pytest.mark.parametrize("when", ["before", "queued", "running", "suspended", "restarted"])
def test_a_signal_is_heard_whenever_it_comes(home: Path, when: str) -> None:
    house = Home(home, lanes=1)
    opened = asyncio.Event()

    async def slow_to_ask(attempt: Attempt) -> Outcome:
        if when == "running" and attempt.task.attempt == 1:
            await opened.wait()
        return await hears(attempt)

    house.plays["hears"] = slow_to_ask

    async def signal(world: World, task: Accepted) -> None:
        assert not (await world.engine.signal(task.run_id, "go", b'"hello"'))[1]

    async def first(world: World) -> Accepted:
        task = await world.tool(await world.session(), "hears")
        if when == "before":
            await signal(world, task)
        world.engine.open_lanes()
        if when == "queued":
            await signal(world, task)
        await settled()
        if when == "running":
            await signal(world, task)
            opened.set()
        if when == "suspended":
            assert await world.state(task) == "SUSPENDED"
            await signal(world, task)
        if when != "restarted":
            assert await world.ended(task) == "SUCCEEDED"
        return task

    async def second(world: World) -> None:
        if when == "restarted":
            assert await world.state(task) == "SUSPENDED"
            await signal(world, task)
        end = await world.engine.run_ended(task.run_id)
        assert end.state == "SUCCEEDED"
        assert (await world.engine.task(task.task_id))["result"] == b'"hello"'

    task = house.live(first, lanes=False)
    house.live(second)


@pytest.mark.req("E-9")
def test_the_first_signal_of_a_name_wins(home: Path) -> None:
    house = Home(home)
    house.plays["hears"] = hears

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "hears")
        answers = await asyncio.gather(
            *(
                world.engine.signal(task.run_id, name, payload)
                for name, payload in [("other", b"0"), ("go", b"1"), ("go", b"2")]
            )
        )
        assert [duplicate for _, duplicate in answers] == [False, False, True]
        assert answers[2][0] == answers[1][0]
        assert await world.ended(task) == "SUCCEEDED"
        assert (await world.engine.task(task.task_id))["result"] == b"1"
        with pytest.raises(UnknownId):
            await world.engine.signal("run_of_nobody", "go", b"1")
        with pytest.raises(TooLarge):
            await world.engine.signal(task.run_id, "go", b"x" * (limits.PAYLOAD_BYTES_MAX + 1))

    house.live(main)


# -- approvals ------------------------------------------------------------------------------------


def asking(house: Home, results: list[CallResult], count: int = 1) -> None:
    async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b'"done"')

    async def asks(attempt: Attempt) -> Outcome:
        calls = [
            Call("tool", f"act{number}", b"{}", EffectClass.IRREVERSIBLE, dispatch, question=True)
            for number in range(count)
        ]
        results[:] = await attempt.perform(calls)
        return Succeeded()

    house.plays["asks"] = asks


@pytest.mark.req("A-7", "Q-9")
def test_the_first_answer_counts_and_frees_the_run(home: Path) -> None:
    house = Home(home, lanes=1)
    results: list[CallResult] = []
    asking(house, results)

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "asks")
        await world.until(task, "SUSPENDED")
        approvals = world.engine.approvals
        (approval,) = await approvals.listed(session.sid)
        assert await approvals.listed(session.sid + 1) == []
        with pytest.raises(InvalidParams):
            await approvals.resolve(approval.approval_id, "perhaps", "me")
        with pytest.raises(UnknownId):
            await approvals.resolve("approval_of_nobody", "allow", "me")
        answers = await asyncio.gather(
            approvals.resolve(approval.approval_id, "allow", "editor"),
            approvals.resolve(approval.approval_id, "reject", "phone"),
            return_exceptions=True,
        )
        assert answers[0] == "allow"
        assert isinstance(answers[1], AlreadyResolved)
        assert answers[1].data["outcome"] == "allow"
        assert await world.ended(task) == "SUCCEEDED"
        assert [result.status for result in results] == ["completed"]
        assert (await world.types(session)).count("approval.resolved") == 1
        assert await approvals.listed() == []

    house.live(main)


@pytest.mark.req("A-7")
def test_a_run_goes_on_when_the_last_of_its_questions_is_answered(home: Path) -> None:
    house = Home(home)
    results: list[CallResult] = []
    asking(house, results, count=3)

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "asks")
        await world.until(task, "SUSPENDED")
        listed = await world.engine.approvals.listed()
        assert [approval.ordinal for approval in listed] == [0, 1, 2]
        for approval, option in zip(listed, ["allow", "reject", "allow"], strict=True):
            await passes(1_000)
            assert await world.state(task) == "SUSPENDED"
            await world.engine.approvals.resolve(approval.approval_id, option, "me")
        assert await world.ended(task) == "SUCCEEDED"
        assert [result.status for result in results] == ["completed", "rejected", "completed"]

    house.live(main)


@pytest.mark.req("A-7", "Q-6")
@pytest.mark.parametrize("jumped", [False, True])
def test_a_question_expires_by_the_calendar(home: Path, jumped: bool) -> None:
    house = Home(home)
    results: list[CallResult] = []
    asking(house, results)

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "asks")
        await world.until(task, "SUSPENDED")
        (approval,) = await world.engine.approvals.listed()
        if jumped:
            await passes(3_600_000)
            assert await world.state(task) == "SUSPENDED"
            world.clock.wall_offset_ms += limits.APPROVAL_MS - 3_600_000
            began = world.clock.mono_ms()
            assert await world.ended(task) == "SUCCEEDED"
            assert world.clock.mono_ms() - began <= 61_000
        else:
            await passes(limits.APPROVAL_MS - 60_000)
            assert await world.state(task) == "SUSPENDED"
            assert await world.ended(task) == "SUCCEEDED"
            assert 0 <= world.clock.wall_ms() - approval.expires_at <= 1
        assert [result.status for result in results] == ["rejected"]
        assert b"expired" in results[0].output
        (resolved,) = [p for name, p in await world.events(session) if name == "approval.resolved"]
        assert (resolved["outcome"], resolved["by"]) == ("expired", "clock")
        with pytest.raises(AlreadyResolved) as refused:
            await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
        assert refused.value.data["outcome"] == "expired"

    house.live(main, limit_s=3 * DAY_S)


@pytest.mark.req("A-7")
def test_questions_outlive_a_restart_and_expire_while_nobody_is_there(home: Path) -> None:
    house = Home(home)
    results: list[CallResult] = []
    asking(house, results)

    async def first(world: World) -> Accepted:
        task = await world.prompt(await world.session(), "asks")
        await world.until(task, "SUSPENDED")
        return task

    async def second(world: World) -> None:
        assert await world.ended(task) == "SUCCEEDED"
        assert [result.status for result in results] == ["rejected"]

    task = house.live(first)
    house.clock.wall_offset_ms += limits.APPROVAL_MS
    house.live(second)


# -- the timer itself -----------------------------------------------------------------------------


@pytest.mark.req("S-7")
def test_the_timer_outlives_a_disk_that_refuses(home: Path) -> None:
    house = Home(home)
    results: list[CallResult] = []
    asking(house, results)

    async def sleeper(attempt: Attempt) -> Outcome:
        await attempt.sleep(10_000)
        return Succeeded()

    house.plays["sleeper"] = sleeper

    async def main(world: World) -> None:
        asks = await world.prompt(await world.session(), "asks")
        sleeps = await world.tool(await world.session(), "sleeper")
        await world.until(asks, "SUSPENDED")
        await world.until(sleeps, "SUSPENDED")
        world.database.fail_next_commit(after=False)
        began = world.clock.mono_ms()
        assert await world.ended(sleeps) == "SUCCEEDED"
        assert world.clock.mono_ms() - began <= 10_000 + limits.BUSY_MS_MAX + 1
        await passes(limits.APPROVAL_MS - 60_000)
        world.database.fail_next_commit(after=False)
        before = world.database.stats()[0]
        assert await world.ended(asks) == "SUCCEEDED"
        assert world.database.stats()[0] - before < 20  # it does not spin while the disk is full

    house.live(main, limit_s=3 * DAY_S)


@pytest.mark.req("R-5")
def test_a_quiet_timer_looks_once_a_minute(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        looks = 0
        fetch = world.database.fetch

        def counted(query: str, /, **arguments: object) -> list[tuple[object, ...]]:
            nonlocal looks
            looks += query == "due_tasks"
            return fetch(query, **arguments)

        world.database.fetch = counted  # type: ignore[method-assign]
        await passes(600_000)
        assert 9 <= looks <= 11

    house.live(main)
