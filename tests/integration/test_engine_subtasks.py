"""Sub-tasks: a run asks another, waits without a lane, and hears its end once (Q-9, B-6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.records import Call, Child, Done, Failed, Succeeded
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Attempt, CallResult, Outcome


async def never_called(key: str, cancelled: asyncio.Event) -> Done:
    raise AssertionError("a sub-task is the journal's")


ALLOWED = Decision(
    "decision_1", 0, Subject(SubjectKind.RUN, "direct", Origin.UNIX), "tool.call",
    "builtin/delegate", Context(), Verdict.ALLOW, "rule", "runs may", "p1", (),
)  # fmt: skip


def asking(prompt: str) -> Call:
    return Call(
        "tool", "delegate", orjson.dumps({"prompt": prompt}), EffectClass.KEYED, never_called,
        child=Child(prompt), decisions=(ALLOWED,),
    )  # fmt: skip


class Family:
    """A parent that asks for children by name, and what it was told."""

    def __init__(self, home: Path, **queue: Any) -> None:
        self.house = Home(home, **queue)
        self.told: list[list[CallResult]] = []
        self.house.plays["parent"] = self.parent
        self.asks = ["child"]

    async def parent(self, attempt: Attempt) -> Outcome:
        self.told.append(await attempt.perform([asking(name) for name in self.asks]))
        return Succeeded()


@pytest.mark.req("Q-9", "Q-5")
def test_the_parent_holds_no_lane_and_hears_the_end_once(home: Path) -> None:
    family = Family(home, lanes=1)

    async def child(attempt: Attempt) -> Outcome:
        await passes(1_000)
        return Succeeded(result=b'{"text":"42"}')

    family.house.plays["child"] = child

    async def main(world: World) -> None:
        session = await world.session()
        parent = await world.prompt(session, "parent")
        assert await world.ended(parent) == "SUCCEEDED"
        ((told,),) = family.told
        output = orjson.loads(told.output)
        assert (told.status, output["state"], output["text"]) == ("completed", "SUCCEEDED", "42")
        row = await world.engine.task(parent.task_id)
        assert (row["attempt"], row["failures"], row["crashes"]) == (2, 0, 0)
        (done,) = [
            one for one in await world.engine.tasks(sid=None, before=None, state=None, limit=9)
            if one["parent_tid"] == row["tid"]
        ]  # fmt: skip
        own = await world.intake.session(done["session_id"])
        assert own.session_id != session.session_id
        assert own.parent_id == session.session_id
        assert done["trace"].split("-")[1] == row["trace"].split("-")[1]  # one trace
        assert family.house.plays.order.count("child") == 1

    family.house.live(main)


@pytest.mark.req("Q-9")
def test_several_children_at_once(home: Path) -> None:
    family = Family(home, lanes=4)
    family.asks = ["one", "two", "three"]

    async def slow(attempt: Attempt) -> Outcome:
        await passes(3_000)
        return Succeeded()

    async def bad(attempt: Attempt) -> Outcome:
        return Failed("no_way", "not today")

    family.house.plays["two"], family.house.plays["three"] = slow, bad

    async def main(world: World) -> None:
        parent = await world.prompt(await world.session(), "parent")
        assert await world.ended(parent) == "SUCCEEDED"
        (told,) = family.told
        assert [one.status for one in told] == ["completed", "completed", "failed"]
        assert orjson.loads(told[2].output)["code"] == "no_way"
        assert family.house.plays.order.count("two") == 1

    family.house.live(main)


@pytest.mark.req("Q-9", "E-6", "I-4")
@pytest.mark.parametrize("at_ms", [0, 500, 1_500])
def test_a_crash_at_any_time_makes_no_second_child(home: Path, at_ms: int) -> None:
    family = Family(home, lanes=2, crash_budget=9)

    async def child(attempt: Attempt) -> Outcome:
        await passes(1_000)
        return Succeeded()

    family.house.plays["child"] = child

    async def first(world: World) -> Any:
        parent = await world.prompt(await world.session(), "parent")
        await passes(at_ms)
        return parent

    async def second(world: World) -> None:
        assert await world.ended(parent) == "SUCCEEDED"
        tasks = await world.engine.tasks(sid=None, before=None, state=None, limit=9)
        assert len(tasks) == 2

    parent = family.house.live(first)
    family.house.live(second)


@pytest.mark.req("Q-9")
def test_a_kill_between_the_childs_end_and_the_wake_up(home: Path) -> None:
    family = Family(home, lanes=2)

    async def first(world: World) -> Any:
        world.engine.subtasks.observe = lambda events: None  # type: ignore[method-assign]
        world.engine.hub._observers[:] = [
            one for one in world.engine.hub._observers
            if getattr(one, "__self__", None) is not world.engine.subtasks
        ]  # fmt: skip
        parent = await world.prompt(await world.session(), "parent")
        await passes(5_000)
        assert await world.state(parent) == "SUSPENDED"
        return parent

    async def second(world: World) -> None:
        assert await world.ended(parent) == "SUCCEEDED"

    family.house.plays["child"] = _sleeping(1_000)
    parent = family.house.live(first)
    family.house.live(second)


def _sleeping(ms: float) -> Any:
    async def play(attempt: Attempt) -> Outcome:
        await passes(ms)
        return Succeeded()

    return play


@pytest.mark.req("Q-9", "Q-11")
def test_who_cancels_the_parent_cancels_its_children(home: Path) -> None:
    family = Family(home, lanes=2)
    family.house.plays["child"] = _sleeping(1e9)

    async def main(world: World) -> None:
        parent = await world.prompt(await world.session(), "parent")
        await world.until(parent, "SUSPENDED")
        await world.engine.cancel_task(parent.task_id)
        await passes(100)
        assert world.engine.open_tasks() == 0
        assert not world.engine.scheduler.live

    family.house.live(main)


@pytest.mark.req("B-6", "I-5")
def test_depth_is_bounded(home: Path) -> None:
    house = Home(home, lanes=8)
    told: list[CallResult] = []

    async def again(attempt: Attempt) -> Outcome:
        (result,) = await attempt.perform([asking("again")])
        told.append(result)
        return Succeeded()

    house.plays["again"] = again

    async def main(world: World) -> None:
        top = await world.prompt(await world.session(), "again")
        assert await world.ended(top) == "SUCCEEDED"
        tasks = await world.engine.tasks(sid=None, before=None, state=None, limit=99)
        assert len(tasks) == limits.DELEGATION_DEPTH_MAX + 1
        assert [one.status for one in told] == ["failed"] + ["completed"] * (len(tasks) - 1)

    house.live(main)


@pytest.mark.req("Q-9", "U-2")
def test_an_embedded_daemon_runs_the_children_of_its_own_sessions(home: Path) -> None:
    family = Family(home, lanes=2)
    sids: set[int] = set()

    async def main(world: World) -> None:
        session = await world.session()
        sids.add(session.sid)
        world.engine.look_again()
        parent = await world.prompt(session, "parent")
        assert await world.ended(parent) == "SUCCEEDED"
        await settled()

    family.house.live(main, only_sids=sids)


@pytest.mark.req("Q-9", "S-7")
def test_a_parent_is_woken_though_the_disk_refused_it_at_first(home: Path) -> None:
    family = Family(home, lanes=1)

    async def main(world: World) -> None:
        subtasks, wake = world.engine.subtasks, world.engine.subtasks._wake
        refused = 0

        async def refusing(tid: int) -> None:
            nonlocal refused
            refused += 1
            if refused == 1:
                world.database.fail_next_commit(after=False)
            await wake(tid)

        subtasks._wake = refusing  # type: ignore[method-assign]
        parent = await world.prompt(await world.session(), "parent")
        async with asyncio.timeout(60):
            assert await world.ended(parent) == "SUCCEEDED"
        assert refused == 2

    family.house.live(main)


@pytest.mark.req("Q-9", "Q-11")
def test_a_child_that_comes_behind_the_end_of_its_parent_is_ended(home: Path) -> None:
    family = Family(home, lanes=2)

    async def child(attempt: Attempt) -> Outcome:
        await passes(3_600_000)
        return Succeeded()

    family.house.plays["child"] = child

    async def main(world: World) -> None:
        submit = world.intake.submit_prompt
        parent = await world.prompt(await world.session(), "parent")

        async def late(*given: Any, **how: Any) -> Any:
            if how.get("parent_tid") is not None:
                await world.engine.cancel_task(parent.task_id)
            return await submit(*given, **how)

        world.intake.submit_prompt = late  # type: ignore[method-assign]
        assert await world.ended(parent) == "CANCELED"
        await passes(1_000)
        (found,) = [
            one for one in await world.engine.tasks(sid=None, before=None, state=None, limit=9)
            if one["parent_tid"] is not None
        ]  # fmt: skip
        assert (found["state"], found["reason"]) == ("CANCELED", "parent_ended")

    family.house.live(main)
