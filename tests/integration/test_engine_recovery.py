"""What a start finds: leases of a daemon that is gone, another boot, its own report (Q-6, Q-15)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.clock import boot_id
from goclaw.core.records import Call, Done, Failed, Succeeded
from goclaw.core.states import EffectClass
from goclaw.engine.recovery import Recovered, recover

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.Event().wait()
    return Succeeded()


async def claim_foreign(world: World, token: bytes, lease_ms: int) -> None:
    """As an external worker claims; there is no pool but our own yet."""
    claimed = await world.database.write(
        "claim", pool="builders", owner="worker:1", token=token, policy_version="p",
        lease_until_mono=world.clock.mono_ms() + lease_ms, aging_factor=16,
        now=world.clock.wall_ms(),
    )  # fmt: skip
    assert claimed.parts[0][0] is not None


async def enqueue_foreign(world: World) -> str:
    session = await world.session()
    task_id = world.clock.new_id("task")
    await world.database.write(
        "enqueue", sid=session.sid, task_id=task_id, run_id=task_id.replace("task", "run"),
        pool="builders", work="pool:builders", kind="pool", parallel=0, rank=4, max_attempts=3,
        on_unknown="suspend", policy_version="p", trace="", payload=b"{}", origin="unix",
        session_limit=10,
        now=world.clock.wall_ms(),
    )  # fmt: skip
    return task_id


@pytest.mark.req("Q-6", "Q-15", "G-3")
def test_own_leases_are_reclaimed_at_once_and_told(home: Path) -> None:
    house = Home(home, lanes=3)
    house.plays["long"] = forever

    async def first(world: World) -> list[Accepted]:
        tasks = [await world.prompt(await world.session(), "long") for _ in range(4)]
        await settled()
        return tasks

    async def second(world: World) -> None:
        found = {entry["taskId"]: entry for entry in world.engine.recovered.tasks}
        assert set(found) == {task.task_id for task in tasks[:3]}
        for entry in found.values():
            assert entry["state"] == "QUEUED"
            assert entry["owner"] == "lane:boot1"
            assert entry["attempt"] == 1
            assert entry["sessionId"] == sessions[entry["taskId"]]
        system = await world.intake.system_session()
        (name, report) = (await world.events(system))[-1]
        assert name == "recovery.report"
        recovered = world.engine.recovered
        assert report == {"count": 3, "states": {"QUEUED": 3}, "tasks": recovered.tasks}
        assert (recovered.count, recovered.states) == (3, {"QUEUED": 3})
        for entry in report["tasks"]:
            task = await world.engine.task(entry["taskId"])
            events = await world.database.read(
                "events_after", sid=task["sid"], cursor=entry["eventId"] - 1, limit=1
            )
            assert events[0][2] == "task.requeued"
            assert orjson.loads(events[0][8])["reason"] == "daemon_restarted"
        # No lease was waited for: no time has passed.
        house.plays["long"] = done
        world.engine.open_lanes()
        began = world.clock.mono_ms()
        assert {await world.ended(task) for task in tasks} == {"SUCCEEDED"}
        assert world.clock.mono_ms() - began <= 1

    async def done(attempt: Attempt) -> Outcome:
        return Succeeded()

    async def third(world: World) -> None:
        assert world.engine.recovered == Recovered()
        system = await world.intake.system_session()
        assert (await world.types(system)).count("recovery.report") == 1

    tasks = house.live(first)
    sessions = {task.task_id: task.session_id for task in tasks}
    house.live(second, lanes=False)
    house.live(third)


@pytest.mark.req("Q-15", "E-3")
def test_the_report_says_what_was_kept_repeated_unknown_or_given_up(home: Path) -> None:
    house = Home(home, lanes=4, crash_budget=1)

    async def hangs(key: str, cancelled: asyncio.Event) -> Done:
        await asyncio.Event().wait()
        return Done(b"1")

    async def answers(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    def call(number: int, kind: EffectClass) -> Call:
        return Call("tool", f"t{number}", b"{}", kind, answers if number < 2 else hangs)

    async def mixed(attempt: Attempt) -> Outcome:
        await attempt.perform([call(0, EffectClass.IRREVERSIBLE), call(1, EffectClass.KEYED)])
        await attempt.perform([call(2, EffectClass.IRREVERSIBLE), call(3, EffectClass.KEYED)])
        return Succeeded()

    house.plays["mixed"] = mixed

    async def first(world: World) -> None:
        await world.tool(await world.session(), "mixed")
        await settled()

    async def second(world: World) -> None:
        (entry,) = world.engine.recovered.tasks
        assert (entry["kept"], entry["repeated"], entry["unknown"]) == (2, 1, 1)
        assert entry["state"] == "DEAD_LETTER"

    house.live(first)
    house.live(second)


@pytest.mark.req("Q-6")
def test_leases_of_external_workers_live_on(home: Path) -> None:
    house = Home(home, lease_ms=3_000)

    async def first(world: World) -> str:
        task_id = await enqueue_foreign(world)
        await claim_foreign(world, b"foreign", 20_000)
        return task_id

    async def second(world: World) -> None:
        assert world.engine.recovered == Recovered()
        task = await world.engine.task(task_id)
        assert (task["state"], task["lease_owner"]) == ("RUNNING", "worker:1")
        await world.database.write(
            "heartbeat", tid=task["tid"], token=b"foreign",
            lease_until_mono=world.clock.mono_ms() + 30_000,
        )  # fmt: skip
        await passes(29_000)
        assert (await world.engine.task(task_id))["state"] == "RUNNING"
        await passes(3_000)
        task = await world.engine.task(task_id)
        assert (task["state"], task["reason"], task["crashes"]) == ("QUEUED", "lease_expired", 1)

    task_id = house.live(first)
    house.live(second)


@pytest.mark.req("Q-6")
def test_another_boot_ends_every_lease_and_keeps_what_was_left_to_wait(home: Path) -> None:
    house = Home(home, lanes=2)

    async def flaky(attempt: Attempt) -> Outcome:
        if attempt.task.attempt == 1:
            return Failed("flaky", "no", retryable=True, retry_after_ms=100_000)
        return Succeeded()

    house.plays["flaky"] = flaky

    async def first(world: World) -> tuple[str, Accepted]:
        waits = await world.tool(await world.session(), "flaky")
        foreign = await enqueue_foreign(world)
        await claim_foreign(world, b"foreign", 10_000_000)
        await world.until(waits, "RETRY_WAIT")
        await world.database.write("meta_put", key="boot", value="an older boot")
        return foreign, waits

    async def second(world: World) -> None:
        assert [entry["taskId"] for entry in world.engine.recovered.tasks] == [foreign]
        assert (await world.engine.task(foreign))["state"] == "QUEUED"
        # 100 s by the wall clock, of which 40 have passed while the machine was off.
        await passes(59_000)
        assert await world.state(waits) == "RETRY_WAIT"
        await passes(1_200)
        assert await world.ended(waits) == "SUCCEEDED"
        assert (await world.database.read("meta_get", key="boot")) == [(boot_id(),)]

    foreign, waits = house.live(first)
    # Monotonic time begins anew with every boot; the wall goes on.
    house.clock.wall_offset_ms += house.clock.mono_ms() - 5_000 + 40_000
    house.clock.ns = 5_000_000_000
    house.live(second)


@pytest.mark.req("Q-6")
def test_recovery_is_idempotent(home: Path) -> None:
    house = Home(home, lanes=2)
    house.plays["long"] = forever

    async def first(world: World) -> None:
        await world.tool(await world.session(), "long")
        await settled()

    async def second(world: World) -> None:
        queue = world.engine.config.queue
        assert len(world.engine.recovered.tasks) == 1
        for _ in range(2):
            again = await recover(world.database, world.clock, queue, boot=boot_id(), system_sid=1)
            assert again == Recovered()

    house.live(first)
    house.live(second, lanes=False)


@pytest.mark.req("Q-6")
def test_more_leases_than_one_batch(home: Path) -> None:
    lanes = limits.BATCH_OPERATIONS_MAX + 20
    house = Home(home, lanes=lanes)
    house.plays["long"] = forever

    async def first(world: World) -> None:
        sessions = [await world.session() for _ in range(10)]
        for number in range(lanes):
            await world.tool(sessions[number % 10], "long", parallel=True)
        await settled()
        assert world.engine.scheduler.busy == lanes

    async def second(world: World) -> None:
        assert len(world.engine.recovered.tasks) == lanes
        system = await world.intake.system_session()
        assert len((await world.events(system))[-1][1]["tasks"]) == lanes

    house.live(first)
    house.live(second, lanes=False)
