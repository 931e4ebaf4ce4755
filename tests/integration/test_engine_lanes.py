"""Lanes: how many run at once, in which order, and that nobody who could run is left waiting.

Owns scheduler's tests but for leases (test_engine_leases.py) and its end (test_engine_stop.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import apsw
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core.records import Succeeded

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome


async def a_while(attempt: Attempt) -> Outcome:
    await passes(100)
    return Succeeded()


@pytest.mark.req("R-2")
@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_are_filled_and_never_exceeded(home: Path, lanes: int) -> None:
    house = Home(home, lanes=lanes)
    house.plays["work"] = a_while

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(5)]
        tasks = [await world.tool(s, "work", parallel=True) for s in sessions for _ in range(4)]
        began = world.clock.mono_ms()
        assert {await world.ended(task) for task in tasks} == {"SUCCEEDED"}
        assert house.plays.most == lanes
        assert world.clock.mono_ms() - began <= 100 * (-(-20 // lanes)) + 1
        assert world.engine.scheduler.busy == 0

    house.live(main)


@pytest.mark.req("Q-9", "G-18")
def test_a_session_runs_its_tasks_one_at_a_time_and_in_order(home: Path) -> None:
    house = Home(home, lanes=4)
    names = [f"n{number}" for number in range(8)]
    for name in names:
        house.plays[name] = a_while

    async def main(world: World) -> None:
        session = await world.session()
        # Priority orders sessions by their heads, never the tasks of one session.
        tasks = [
            await world.tool(session, name, priority=number) for number, name in enumerate(names)
        ]
        for task in tasks:
            await world.ended(task)
        assert house.plays.order == names
        assert house.plays.most == 1

    house.live(main)


@pytest.mark.req("Q-9")
def test_parallel_tasks_pass_a_turn_that_is_held(home: Path) -> None:
    house = Home(home, lanes=2)

    async def asks(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        return Succeeded()

    house.plays["asks"] = asks

    async def main(world: World) -> None:
        session = await world.session()
        first = await world.prompt(session, "asks")
        second = await world.prompt(session, "second")
        beside = await world.tool(session, "beside", parallel=True)
        assert await world.ended(beside) == "SUCCEEDED"
        await settled()
        assert house.plays.order == ["asks", "beside"]
        assert await world.state(second) == "QUEUED"
        await world.engine.signal(first.run_id, "go", b"1")
        assert await world.ended(second) == "SUCCEEDED"
        assert house.plays.order == ["asks", "beside", "asks", "second"]

    house.live(main)


@pytest.mark.req("Q-8")
def test_backlogged_sessions_share_the_lanes(home: Path) -> None:
    house = Home(home, lanes=2)

    async def main(world: World) -> None:
        loud, *quiet = [await world.session() for _ in range(4)]
        tasks = [await world.tool(loud, "loud", parallel=True) for _ in range(40)]
        for session in quiet:
            name = f"quiet{session.sid}"
            tasks += [await world.tool(session, name, parallel=True) for _ in range(5)]
        world.engine.open_lanes()
        for task in tasks:
            await world.ended(task)
        # All of the quiet ones end while the loud one has had its share, and no more.
        for until in range(1, len(house.plays.order)):
            begun = house.plays.order[:until]
            for session in quiet:
                theirs = begun.count(f"quiet{session.sid}")
                assert theirs == 5 or abs(begun.count("loud") - theirs) <= 2

    house.live(main, lanes=False)


@pytest.mark.req("Q-8")
def test_a_newcomer_does_not_wait_for_the_backlog(home: Path) -> None:
    house = Home(home, lanes=2)
    house.plays["work"] = a_while

    async def main(world: World) -> None:
        busy = [await world.session() for _ in range(3)]
        tasks = [await world.tool(s, "work", parallel=True) for s in busy for _ in range(30)]
        await passes(520)
        before = len(house.plays.order)
        newcomer = await world.session()
        tasks.append(await world.tool(newcomer, "new"))
        await world.ended(tasks[-1])
        assert house.plays.order.index("new") - before <= 2 + 2
        await world.stop(0)

    house.live(main)


@pytest.mark.req("Q-3", "R-2")
@pytest.mark.parametrize("seed", range(25))
def test_no_wake_up_is_lost(home: Path, seed: int) -> None:
    """Submissions race with claims at every interleaving that the seed draws; a lost wake-up is
    a loop that stands still (``Stuck``), or a lane that lets a task wait."""
    house = Home(home, seed=seed, hurry=0.5, lanes=3)

    async def brief(attempt: Attempt) -> Outcome:
        for _ in range(house.clock.chance.randrange(4)):
            await asyncio.sleep(0)
        return Succeeded()

    house.plays["work"] = brief

    async def main(world: World) -> None:
        # No timer helps: whoever waits, waits for a commit.
        sessions = [await world.session() for _ in range(4)]
        began = world.clock.ns

        async def client(number: int) -> None:
            chance = house.clock.chance
            for _ in range(12):
                session = sessions[chance.randrange(4)]
                parallel = chance.random() < 0.5
                task = await world.tool(session, "work", parallel=parallel)
                if chance.random() < 0.2:
                    await world.engine.cancel_task(task.task_id)
                if chance.random() < 0.5:
                    await world.ended(task)

        await asyncio.gather(*(client(number) for number in range(4)))
        while world.engine.open_tasks():
            await settled()
            assert world.clock.ns - began < 1e9, "a task waits while lanes are idle"
        assert house.plays.most <= 3
        await settled()
        assert not world.engine.scheduler.live

    house.live(main)


@pytest.mark.req("Q-3")
@pytest.mark.parametrize("last_word", [False, True])
def test_work_that_comes_behind_a_claim_in_its_batch_is_seen(home: Path, last_word: bool) -> None:
    """The claim finds nothing, the submission behind it commits with it, the lane hears of both."""
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        session = await world.session()
        if last_word:
            await world.tool(session, "first")
        world.engine.open_lanes()
        loop = asyncio.get_running_loop()
        outside, loop.outside = loop.outside, None  # type: ignore[attr-defined]
        if last_word:
            outside()  # the claim is on disk, its task ends at once: the end is on its way
            for _ in range(9):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0)
        task = asyncio.ensure_future(world.tool(session, "work"))
        await asyncio.sleep(0)
        loop.outside = outside  # type: ignore[attr-defined]
        began = world.clock.ns
        assert await world.ended(await task) == "SUCCEEDED"
        assert world.clock.ns - began < 1e6

    house.live(main, lanes=False)


@pytest.mark.req("Q-3")
def test_an_idle_engine_does_nothing(home: Path) -> None:
    """One look per lane at the start, one per task, none in between: idle lanes wait."""
    house = Home(home, lanes=8)

    async def main(world: World) -> None:
        await settled()
        before = world.database.stats()[1]
        session = await world.session()
        task = await world.tool(session, "work")
        assert await world.ended(task) == "SUCCEEDED"
        await settled()
        # The session, the task, its claim, its end together with the next claim.
        assert world.database.stats()[1] - before == 4
        await passes(60_000)
        assert world.database.stats()[1] - before == 4

    house.live(main)


@pytest.mark.req("U-2")
def test_an_embedded_engine_runs_its_own_sessions_only(home: Path) -> None:
    house = Home(home, lanes=2)
    house.plays["later"] = a_while
    mine: set[int] = set()

    async def main(world: World) -> None:
        foreign, own, later = [await world.session() for _ in range(3)]
        mine.add(own.sid)
        left = await world.tool(foreign, "foreign")
        waits = [await world.tool(later, "later", parallel=True) for _ in range(2)]
        assert await world.ended(await world.tool(own, "own")) == "SUCCEEDED"
        mine.add(later.sid)
        world.engine.look_again()  # a client came for a session that has work already
        assert {await world.ended(task) for task in waits} == {"SUCCEEDED"}
        assert await world.state(left) == "QUEUED"
        assert house.plays.order == ["own", "later", "later"]
        assert house.plays.most == 2

    house.live(main, only_sids=mine)


@pytest.mark.req("Q-3", "A-3")
def test_the_policy_is_pinned_at_the_claim(home: Path) -> None:
    house = Home(home)
    seen = []

    async def work(attempt: Attempt) -> Outcome:
        seen.append(attempt.task.policy_version)
        return Succeeded()

    house.plays["work"] = work

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "work")
        # The claim is on its way when the policy changes.
        world.database.step()
        world.policy = "newer"
        await world.ended(task)
        row = await world.engine.task(task.task_id)
        assert seen == [row["policy_version"]]

    house.live(main)


@pytest.mark.req("I-1")
def test_a_ready_index_that_is_wrong_costs_no_result(home: Path) -> None:
    """The next claim goes with a task's last word; its refusal must not take the word back."""
    house = Home(home, lanes=1)

    async def damage(attempt: Attempt) -> Outcome:
        with apsw.Connection(str(home / "goclaw.db")) as connection:
            connection.execute(
                "INSERT INTO heads (sid, line, tid, pool, rank, start, tie, ready_at, passed_at, "
                "interactive) SELECT sid, 0, tid, pool, rank, 0, 0, 0, 0, 0 FROM tasks"
            )
        return Succeeded()

    house.plays["damage"] = damage

    async def main(world: World) -> str:
        session = await world.session()
        task = await world.tool(session, "damage")
        state = await world.ended(task)
        with apsw.Connection(str(home / "goclaw.db")) as connection:
            connection.execute("DELETE FROM heads")
        return state

    assert house.live(main) == "SUCCEEDED"
