"""Timers and lanes live as long as the daemon: a fault of the program ends none for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
import pytest
from engine_support import Home, World, passes, settled
from test_engine_subtasks import Family

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.metrics import SERVICE_FAULTS
from goclaw.core.records import Succeeded, Terms
from goclaw.engine.worker import LiveAttempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome

HOUR = 3_600_000
DECISION = Decision(
    "decision_1", 0, Subject(SubjectKind.WORKER, "w", Origin.UNIX), "worker.claim", "yard",
    Context(), Verdict.ALLOW, "workers-claim", "", "policy", (),
)  # fmt: skip


def failing(times: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """As ``real``, but for the first calls."""
    left = [times]

    def call(*args: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ValueError("a fault of the program")
        return real(*args, **named)

    return call


def faults(service: str) -> int:
    return SERVICE_FAULTS[service]


@pytest.mark.req("Q-12", "I-5")
def test_a_row_that_the_timer_cannot_move_holds_nobody_up(home: Path) -> None:
    """A time zone that the machine forgot with an update, and then knows again."""
    house, before = Home(home), faults("schedules")

    async def plan(world: World) -> Any:
        session = await world.session()
        terms = Terms(recurrence=("0 * * * *", "Europe/Berlin", "once"))
        return await world.tool(session, "recurs", terms=terms, parallel=True)

    async def go_on(world: World) -> None:
        session = await world.session()
        for number in (1, 2):
            at = world.clock.wall_ms() + 2 * number * HOUR
            delayed = await world.tool(session, "delayed", terms=Terms(not_before_ms=at))
            assert await world.ended(delayed) == "SUCCEEDED"
            assert world.clock.wall_ms() - at < 10_000
        assert await world.state(recurs) == "QUEUED"

    async def repaired(world: World) -> None:
        assert await world.ended(recurs) == "SUCCEEDED"

    def zone(name: str) -> None:
        with apsw.Connection(str(home / "goclaw.db")) as connection:
            connection.execute("UPDATE schedules SET zone = ?", (name,))

    recurs = house.live(plan)
    zone("Europe/Atlantis")
    house.live(go_on, limit_s=24 * 3600)
    assert faults("schedules") > before
    zone("Europe/Berlin")
    house.live(repaired)


@pytest.mark.req("Q-6", "I-1")
def test_a_fault_in_a_lane_costs_no_task_and_no_lane(home: Path) -> None:
    """Each lane meets one: before its claim, and with a lease in its hands."""
    house = Home(home, lanes=2)

    async def a_while(attempt: Attempt) -> Outcome:
        await passes(100)
        return Succeeded()

    house.plays["work"] = a_while

    async def main(world: World) -> None:
        scheduler = world.engine.scheduler
        before = faults("lane-0"), faults("lane-1")
        scheduler._policy_version = failing(1, scheduler._policy_version)
        scheduler._load_session = failing(1, scheduler._load_session)
        world.engine.open_lanes()
        tasks = [await world.tool(await world.session(), "work") for _ in range(6)]
        for task in tasks:
            assert await world.ended(task) == "SUCCEEDED"
            assert (await world.engine.task(task.task_id))["crashes"] == 0
        assert faults("lane-0") + faults("lane-1") == sum(before) + 2
        assert house.plays.most == 2  # both are back
        await settled()
        assert scheduler.busy == 0

    house.live(main, lanes=False)


@pytest.mark.req("Q-6", "Q-4")
@pytest.mark.parametrize("what", ["heartbeats", "reclaims"])
def test_leases_are_looked_after_again(
    home: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, before = Home(home, lease_ms=9_000), faults(what)

    async def long(attempt: Attempt) -> Outcome:
        await passes(60_000)
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        if what == "heartbeats":
            monkeypatch.setattr(LiveAttempt, "heartbeat", failing(1, LiveAttempt.heartbeat))
        else:
            scheduler = world.engine.scheduler
            monkeypatch.setattr(scheduler, "_reclaim", failing(1, scheduler._reclaim))
        task = await world.tool(await world.session(), "long")
        pooled = await world.intake.submit_work(
            await world.session(), "yard", 1, key=None, client=None, origin="unix"
        )
        (lost,) = await world.engine.pools.claim(
            "yard", most=1, wait_ms=0, owner="w", decision=DECISION
        )
        assert lost.task_id == pooled.task_id
        assert await world.ended(task) == "SUCCEEDED"
        assert (await world.engine.task(task.task_id))["attempt"] == 1
        assert await world.state(pooled) == "QUEUED"
        assert faults(what) == before + 1

    house.live(main)


@pytest.mark.req("Q-9")
def test_a_parent_is_woken_although_that_failed_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, before = Family(home), faults("sub-tasks")

    async def main(world: World) -> None:
        subtasks = world.engine.subtasks
        monkeypatch.setattr(subtasks, "_wake", failing(1, subtasks._wake))
        parent = await world.prompt(await world.session(), "parent")
        assert await world.ended(parent) == "SUCCEEDED"
        assert faults("sub-tasks") == before + 1

    family.house.live(main)


@pytest.mark.req("I-3")
def test_an_observer_that_fails_keeps_no_other_from_being_told(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        hub, told = world.engine.hub, []
        hub._observers = [
            lambda events: told.append("first"),
            failing(1, lambda events: told.append("second")),
            lambda events: told.append("third"),
        ]
        with pytest.raises(ValueError, match="fault"):
            hub.publish([])
        assert told == ["first", "third"]
        hub.publish([])
        assert told == ["first", "third", "first", "second", "third"]

    house.live(main)
