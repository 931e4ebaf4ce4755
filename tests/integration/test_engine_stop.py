"""The end of a daemon, asked for: nothing new, drain, hand back (R-3).

Owns the stop's tests with the writer in step; the same over signals and processes stands in faults.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.errors import ShuttingDown
from goclaw.core.records import Call, Done, Failed, Succeeded, Terms
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome


def lasting(ms: float):  # type: ignore[no-untyped-def]
    async def play(attempt: Attempt) -> Outcome:
        await passes(ms)
        return Succeeded()

    return play


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.Event().wait()
    return Succeeded()


@pytest.mark.req("R-3", "Q-5")
def test_a_stop_drains_what_runs_and_begins_nothing(home: Path) -> None:
    house = Home(home, lanes=2)
    house.plays["work"] = lasting(2_000)

    async def main(world: World) -> None:
        tasks = [await world.tool(await world.session(), "work") for _ in range(5)]
        await passes(100)
        began = world.clock.mono_ms()
        await world.stop(30_000)
        assert 1_800 <= world.clock.mono_ms() - began <= 2_000  # no longer than it must
        states = [await world.state(task) for task in tasks]
        assert states == ["SUCCEEDED"] * 2 + ["QUEUED"] * 3
        with pytest.raises(ShuttingDown):
            await world.session()
        with pytest.raises(ShuttingDown):
            await world.tool(await world.intake.system_session(), "work")

    house.live(main)


@pytest.mark.req("R-3", "G-4", "Q-5")
@pytest.mark.parametrize("drain_ms", [0, 5_000])
def test_what_is_not_done_in_time_is_handed_back(home: Path, drain_ms: int) -> None:
    house = Home(home, lanes=2, max_attempts=1, crash_budget=1)
    house.plays["long"] = forever

    async def first(world: World) -> list[str]:
        session = await world.session()
        running = await world.prompt(session, "long")
        waiting = await world.prompt(session, "next")
        await passes(100)
        began = world.clock.mono_ms()
        await world.stop(drain_ms)
        assert world.clock.mono_ms() - began <= drain_ms + 1
        row = await world.engine.task(running.task_id)
        assert (row["state"], row["reason"]) == ("QUEUED", "handed_back")
        assert (row["attempt"], row["failures"], row["crashes"]) == (1, 0, 0)
        assert world.engine.scheduler.busy == 0
        assert "run.ended" not in await world.types(session)
        return [running.run_id, waiting.run_id]

    async def second(world: World) -> None:
        house.plays["long"] = lasting(1)
        states = [(await world.engine.run_ended(run)).state for run in runs]
        assert states == ["SUCCEEDED", "SUCCEEDED"]
        assert world.engine.recovered.tasks == []  # a clean stop leaves nothing to recover
        assert house.plays.order == ["long", "long", "next"]

    runs = house.live(first)
    house.live(second)


@pytest.mark.req("R-3")
def test_a_second_signal_hurries(home: Path) -> None:
    house = Home(home)
    house.plays["long"] = forever

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "long")
        await settled()
        hurry = asyncio.Event()
        stopping = asyncio.ensure_future(world.stop(30_000, hurry))
        await passes(3_000)
        assert not stopping.done()
        assert await world.state(task) == "RUNNING"
        began = world.clock.mono_ms()
        hurry.set()
        await stopping
        assert world.clock.mono_ms() - began <= 1
        assert await world.state(task) == "QUEUED"

    house.live(main)


@pytest.mark.req("R-3", "Q-5")
@pytest.mark.parametrize(
    "what", [RuntimeError("broken by the stop"), None], ids=["raises", "says so"]
)
def test_what_a_stop_breaks_is_no_failure(home: Path, what: Exception | None) -> None:
    house = Home(home, max_attempts=1)

    async def fragile(attempt: Attempt) -> Outcome:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if what is not None:
                raise what from None
        return Failed("broken", "by the stop", retryable=True)

    house.plays["fragile"] = fragile

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "fragile")
        await settled()
        await world.stop(0)
        row = await world.engine.task(task.task_id)
        assert (row["state"], row["failures"], row["crashes"]) == ("QUEUED", 0, 0)

    house.live(main)


@pytest.mark.req("R-3")
def test_what_ends_while_it_is_stopped_has_ended(home: Path) -> None:
    house = Home(home)

    async def quick(attempt: Attempt) -> Outcome:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Succeeded(result=b'"after all"')

    house.plays["quick"] = quick

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "quick")
        await settled()
        await world.stop(0)
        assert await world.state(task) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("R-3")
def test_a_brain_that_will_not_stop_holds_up_nobody(home: Path) -> None:
    house = Home(home, lanes=1)

    async def deaf(attempt: Attempt) -> Outcome:
        if attempt.task.attempt > 1:
            return Succeeded()
        for _ in range(100):
            try:
                await passes(1_000)
            except asyncio.CancelledError:
                continue
        return Succeeded(result=b'"too late"')

    house.plays["deaf"] = deaf

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "deaf")
        await settled()
        began = world.clock.mono_ms()
        await world.stop(0)
        assert world.clock.mono_ms() - began <= limits.CLOSE_MS_MAX + 1
        await settled()
        assert await world.state(task) == "QUEUED"
        await passes(200_000)
        assert await world.state(task) == "QUEUED"

    house.live(main)


@pytest.mark.req("R-3", "Q-3")
@pytest.mark.parametrize("turns", range(6))
def test_a_stop_during_a_claim_leaves_no_lease(
    home: Path, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the claim is: not submitted, submitted, on disk, or back and not begun."""
    house = Home(home, lanes=3, crash_budget=1)
    house.plays["long"] = forever

    async def main(world: World) -> None:
        tasks = [await world.tool(await world.session(), "long") for _ in range(2)]
        world.engine.open_lanes()
        for turn in range(turns):
            await asyncio.sleep(0)
            if turn == 2:
                world.database.step()
        began = world.clock.mono_ms()
        await world.stop(0)
        assert world.clock.mono_ms() - began <= 1
        await settled()
        assert [await world.state(task) for task in tasks] == ["QUEUED"] * 2
        assert await world.database.read("live_tasks") == []

    house.live(main, lanes=False)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.req("Q-3")
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_claim_whose_lane_is_cancelled_is_given_back(home: Path, on_disk: bool) -> None:
    """A stuck disk: the lanes are given up while their claims are under way."""
    house = Home(home, lanes=2)

    async def main(world: World) -> None:
        loop = asyncio.get_running_loop()
        task = await world.tool(await world.session(), "work")
        world.engine.open_lanes()
        await asyncio.sleep(0)
        loop.outside = None  # type: ignore[attr-defined]
        await world.stop(0)
        await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("lane")]
        assert house.plays.begun == []
        if on_disk:
            loop.outside = world.database.step  # type: ignore[attr-defined]
            await settled()
            assert await world.state(task) == "QUEUED"
            assert (await world.engine.task(task.task_id))["attempt"] == 1

    house.live(main, lanes=False)

    async def after(world: World) -> None:
        assert world.engine.recovered.tasks == []
        ((row),) = (await world.engine.tasks(sid=None, before=None, state=None, limit=9),)
        await world.engine.run_ended(row[0]["run_id"])
        assert house.plays.order == ["work"]

    house.live(after)


@pytest.mark.req("R-3", "Q-5")
def test_suspended_queued_and_backed_off_tasks_stay_as_they_are(home: Path) -> None:
    house = Home(home, lanes=4, backoff_ms_min=60_000)

    async def asks(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        return Succeeded()

    async def flaky(attempt: Attempt) -> Outcome:
        if attempt.task.attempt == 1:
            return Failed("flaky", "no", retryable=True, retry_after_ms=50_000)
        return Succeeded()

    house.plays["asks"], house.plays["flaky"] = asks, flaky

    async def first(world: World) -> list[str]:
        session = await world.session()
        tasks = [
            await world.prompt(session, "asks"),
            await world.prompt(session, "behind"),
            await world.tool(await world.session(), "flaky"),
        ]
        await passes(100)
        began = world.clock.mono_ms()
        await world.stop()
        assert world.clock.mono_ms() - began <= 1
        assert [await world.state(t) for t in tasks] == ["SUSPENDED", "QUEUED", "RETRY_WAIT"]
        return [task.run_id for task in tasks]

    async def second(world: World) -> None:
        assert world.engine.recovered.tasks == []
        await world.engine.signal(runs[0], "go", b"")
        assert {(await world.engine.run_ended(run)).state for run in runs} == {"SUCCEEDED"}

    runs = house.live(first)
    house.live(second)


@pytest.mark.req("R-3", "E-3", "Q-5")
def test_a_stop_in_an_irreversible_effect_says_that_nobody_knows(home: Path) -> None:
    house = Home(home)

    async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
        await asyncio.Event().wait()
        return Done(b"1")

    async def acts(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "act", b"{}", EffectClass.IRREVERSIBLE, dispatch)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "acts")
        await settled()
        await world.stop(0)
        row = await world.engine.task(task.task_id)
        assert (row["state"], row["reason"]) == ("SUSPENDED", "effect_unknown")
        assert (row["failures"], row["crashes"]) == (0, 0)
        assert "effect.unknown" in await world.types(session)

    house.live(main)


@pytest.mark.req("R-3")
def test_a_stop_is_possible_at_any_time_and_twice(home: Path) -> None:
    house = Home(home)

    async def never_opened(world: World) -> None:
        await world.stop()
        await world.stop()

    async def opened(world: World) -> None:
        await world.stop()
        await world.stop()

    house.live(never_opened, lanes=False)
    house.live(opened)


@pytest.mark.req("R-3", "Q-5", "S-7")
@pytest.mark.parametrize("refused", ["complete", "fail", "suspend", "hand back"])
def test_a_last_word_that_the_disk_refused_costs_no_crash(home: Path, refused: str) -> None:
    """Whatever came of the attempt is on disk when the stop is over."""
    house = Home(home, lanes=1, crash_budget=1)

    async def main(world: World) -> list[Any]:
        async def work(attempt: Attempt) -> Outcome:
            if refused == "hand back":
                await asyncio.Event().wait()
            world.database.fail_next_commit(after=False)
            if refused == "suspend":
                await attempt.sleep(60_000)
            if refused == "fail":
                return Failed("broken", "for good")
            return Succeeded()

        house.plays["work"] = work
        task = await world.tool(await world.session(), "work")
        await settled()
        if refused == "hand back":
            world.database.fail_next_commit(after=False)
        began = world.clock.mono_ms()
        await world.stop(0)
        assert world.clock.mono_ms() - began <= 2 * limits.STOP_RETRY_MS
        row = await world.engine.task(task.task_id)
        return [row["state"], row["crashes"], row["failures"]]

    ends = {"complete": "SUCCEEDED", "fail": "FAILED"}
    assert house.live(main) == [ends.get(refused, "QUEUED"), 0, 0]


@pytest.mark.req("R-3", "Q-5", "S-7")
def test_a_claim_is_given_back_although_the_disk_refused_that_once(home: Path) -> None:
    house = Home(home, lanes=1, crash_budget=1)

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "work")
        world.engine.open_lanes()
        await asyncio.sleep(0)
        stop = asyncio.ensure_future(world.stop(0))
        await asyncio.sleep(0)
        world.database.step()
        world.database.fail_next_commit(after=False)
        await stop
        assert world.database.failures == 1
        row = await world.engine.task(task.task_id)
        assert [row["state"], row["attempt"], row["crashes"]] == ["QUEUED", 1, 0]

    house.live(main, lanes=False)


@pytest.mark.req("R-3", "S-7")
def test_a_disk_that_refuses_for_good_does_not_hold_up_a_stop(home: Path) -> None:
    house = Home(home, lanes=1)
    house.plays["long"] = forever

    async def main(world: World) -> None:
        await world.tool(await world.session(), "long")
        await settled()

        def refusing() -> bool:
            world.database.fail_next_commit(after=False)
            return world.database.step()

        loop = asyncio.get_running_loop()
        loop.outside = refusing  # type: ignore[attr-defined]
        began = world.clock.mono_ms()
        await world.stop(0)
        assert world.clock.mono_ms() - began <= limits.CLOSE_MS_MAX + limits.STOP_RETRY_MS

    house.live(main)


@pytest.mark.req("R-3", "Q-13")
@pytest.mark.parametrize("terms", ["time-out", "deadline"])
def test_what_drains_keeps_to_its_time(home: Path, terms: str) -> None:
    """A stop is no leave to go on: the time-out ends an attempt, the deadline a task."""
    house = Home(home)
    house.plays["forever"] = forever

    async def main(world: World) -> None:
        if terms == "time-out":
            within = Terms(timeout_ms=1_000)
        else:
            within = Terms(deadline_ms=world.clock.wall_ms() + 1_000)
        task = await world.tool(await world.session(), "forever", terms=within)
        await passes(100)
        began = world.clock.mono_ms()
        await world.stop(30_000)
        assert world.clock.mono_ms() - began < 2_000
        row = await world.engine.task(task.task_id)
        if terms == "time-out":
            assert (row["state"], row["failures"], row["crashes"]) == ("RETRY_WAIT", 1, 0)
            assert row["reason"] == "attempt_timeout"
        else:
            assert (row["state"], row["reason"]) == ("FAILED", "deadline_exceeded")

    house.live(main)


@pytest.mark.req("R-3", "Q-4")
def test_heartbeats_go_on_while_lanes_drain(home: Path) -> None:
    house = Home(home, lease_ms=1_000)
    house.plays["work"] = lasting(10_000)

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "work")
        await settled()
        await world.stop(30_000)
        assert await world.state(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 1)]

    house.live(main)


@pytest.mark.req("R-3", "S-7")
def test_a_stop_does_not_wait_for_a_disk_that_stands_still(home: Path) -> None:
    house = Home(home, lanes=2, lease_ms=3_000)
    house.plays["long"] = forever

    async def main(world: World) -> None:
        loop = asyncio.get_running_loop()
        await world.tool(await world.session(), "long")
        await settled()
        loop.outside = None  # type: ignore[attr-defined]
        await passes(5_000)  # a heartbeat waits
        began = world.clock.mono_ms()
        await world.stop(1_000)
        assert world.clock.mono_ms() - began <= 1_000 + limits.CLOSE_MS_MAX + 1

    house.live(main)
