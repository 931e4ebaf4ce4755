"""Leases, budgets and backoffs: who owns an attempt, and what its ends cost (Q-4, Q-5, Q-7).

Owns worker's tests but for cancels (test_engine_cancel.py) and shutdown (test_engine_stop.py).
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.errors import LeaseLost, PolicyDenied, QueueFull
from goclaw.core.records import Call, Done, Failed, Retryable, Succeeded
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.Event().wait()
    return Succeeded()


async def write(world: World, program: str, **arguments: Any) -> Any:
    return await world.database.write(program, **{"now": world.clock.wall_ms(), **arguments})


async def lease(world: World, task: Accepted) -> tuple[bytes, int]:
    """Token and expiry of the live lease."""
    for tid, token, _, until, _ in await world.database.read("live_tasks"):
        if tid == task.tid:
            return token, until
    raise AssertionError("the task is not RUNNING")


async def taken_away(world: World, task: Accepted) -> None:
    """The lease is over, as if it had run out."""
    token, _ = await lease(world, task)
    await write(
        world, "reclaim", tid=task.tid, token=token, spent=1, crash_budget=9, reason="lease_expired"
    )


@pytest.mark.req("Q-4")
def test_heartbeats_keep_a_long_attempt(home: Path) -> None:
    house = Home(home, lease_ms=3_000)

    async def long(attempt: Attempt) -> Outcome:
        await passes(60_000)
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "long")
        await passes(10_000)
        _, until = await lease(world, task)
        assert 1_000 <= until - world.clock.mono_ms() <= 3_000
        assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 1)]

    house.live(main)


@pytest.mark.req("Q-4", "G-2", "I-1")
def test_a_lost_lease_stops_the_attempt_at_once(home: Path) -> None:
    house = Home(home, lanes=2)
    stopped = []

    async def long(attempt: Attempt) -> Outcome:
        if attempt.task.attempt > 1:
            return Succeeded()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append((house.clock.ns, attempt.cancelled.is_set()))
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "long")
        await settled()
        await taken_away(world, task)
        committed = house.clock.ns
        assert await world.ended(task) == "SUCCEEDED"
        # Not at the next heartbeat: no time has passed.
        ((at, cancelled),) = stopped
        assert at - committed < 1e6
        assert cancelled
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["crashes"], row["failures"]) == (2, 1, 0)

    house.live(main)


@pytest.mark.req("Q-4", "G-1", "I-1")
def test_what_a_zombie_says_changes_nothing(home: Path) -> None:
    house = Home(home, lanes=2)
    refused: list[str] = []

    async def zombie(attempt: Attempt) -> Outcome:
        if attempt.task.attempt > 1:
            await passes(500)
            return Succeeded(result=b'"second"')
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await passes(100)  # it does not stop when told to
        try:
            await attempt.perform([call("late")])
        except LeaseLost:
            refused.append("perform")
        return Succeeded(result=b'"zombie"')

    async def late(key: str, cancelled: asyncio.Event) -> Done:
        raise AssertionError("a stale token dispatched")

    def call(name: str) -> Call:
        return Call("tool", name, b"{}", EffectClass.IRREVERSIBLE, late)

    house.plays["zombie"] = zombie

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "zombie")
        await settled()
        await taken_away(world, task)
        await passes(50)
        # Both attempts are under way; the new one keeps its lease past the zombie's end.
        assert sorted(key[1] for key in world.engine.scheduler.live) == [1, 2]
        await passes(200)
        assert [key[1] for key in world.engine.scheduler.live] == [2]
        assert await world.ended(task) == "SUCCEEDED"
        assert (await world.engine.task(task.task_id))["result"] == b'"second"'
        assert refused == ["perform"]
        types = await world.types(session)
        assert types.count("task.succeeded") == 1
        assert "effect.intent" not in types

    house.live(main)


@pytest.mark.req("Q-4")
def test_the_same_owner_claiming_again_is_another_lease(home: Path) -> None:
    house = Home(home, lanes=1)
    tokens = []

    async def work(attempt: Attempt) -> Outcome:
        tokens.append(attempt.token)  # type: ignore[attr-defined]
        if attempt.task.attempt == 1:
            await asyncio.Event().wait()
        return Succeeded()

    house.plays["work"] = work

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "work")
        await settled()
        await taken_away(world, task)
        await world.ended(task)
        assert len(set(tokens)) == 2
        stale = {"tid": task.tid, "token": tokens[0]}
        with pytest.raises(LeaseLost):
            await world.database.write("heartbeat", **stale, lease_until_mono=1 << 60)
        for program in ("complete", "append", "fail", "suspend", "reclaim"):
            with pytest.raises(LeaseLost):
                await write(world, program, **stale)

    house.live(main)


@pytest.mark.req("Q-4")
def test_a_claim_that_is_void_before_it_began_runs_nothing(home: Path) -> None:
    """Claim and reclaim reach the disk before the lane hears of either."""
    house = Home(home, lanes=1, lease_ms=1_000)

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "work")
        world.engine.open_lanes()
        await asyncio.sleep(0)  # the claim is submitted
        cancel = world.database.write(
            "cancel", live=True, tid=task.tid, reason="cancel", now=world.clock.wall_ms()
        )
        await cancel
        await settled()
        assert house.plays.begun == []
        types = await world.types(session)
        assert types[-3:] == ["task.claimed", "task.running", "task.canceled"]
        after = await world.tool(session, "after")
        assert await world.ended(after) == "SUCCEEDED"

    house.live(main, lanes=False)


@pytest.mark.req("Q-4")
def test_a_lease_that_ran_out_is_reclaimed(home: Path) -> None:
    """An external worker's, which no heartbeat of ours keeps."""
    house = Home(home, lanes=1, lease_ms=900)

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "work")
        claimed = await write(
            world, "claim", pool="", owner="worker:7", token=b"foreign", policy_version="p",
            lease_until_mono=world.clock.mono_ms() + 5_000, aging_factor=16,
        )  # fmt: skip
        assert claimed.parts[0][0] == task.tid
        world.engine.open_lanes()
        await passes(4_900)
        assert await world.state(task) == "RUNNING"
        assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 2)]
        events = [payload for name, payload in await world.events(session) if "requeue" in name]
        assert [event["reason"] for event in events] == ["lease_expired"]

    house.live(main, lanes=False)


@pytest.mark.req("Q-5", "Q-6", "G-3")
def test_a_task_that_kills_the_daemon_becomes_a_dead_letter(home: Path) -> None:
    house = Home(home, crash_budget=3)
    house.plays["killer"] = forever

    async def first(world: World) -> Accepted:
        task = await world.prompt(await world.session(), "killer")
        await settled()
        return task

    async def again(world: World) -> str:
        await settled()
        return await world.state(task)

    task = house.live(first)
    states = [house.live(again) for _ in range(4)]
    assert states == ["RUNNING", "RUNNING", "DEAD_LETTER", "DEAD_LETTER"]
    assert len(house.plays.begun) == 3

    async def last(world: World) -> None:
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["crashes"], row["failures"]) == (3, 3, 0)
        end = await world.engine.run_ended(task.run_id)
        assert (end.state, end.code) == ("DEAD_LETTER", "crashes_exhausted")

    house.live(last)


@pytest.mark.req("Q-5", "Q-7")
def test_failures_and_crashes_are_counted_apart(home: Path) -> None:
    house = Home(home, crash_budget=3, max_attempts=3, lanes=2)
    fails = iter(range(100))

    async def mixed(attempt: Attempt) -> Outcome:
        if attempt.task.attempt % 2:
            return Failed("flaky", "no", retryable=True, fingerprint=str(next(fails)))
        return await forever(attempt)

    house.plays["mixed"] = mixed

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "mixed")
        for crash in (1, 2):
            await world.until(task, "RUNNING")
            await passes(10)
            row = await world.engine.task(task.task_id)
            assert (row["failures"], row["crashes"]) == (crash, crash)
            await taken_away(world, task)
            await settled()
        assert await world.ended(task) == "DEAD_LETTER"
        row = await world.engine.task(task.task_id)
        assert (row["failures"], row["crashes"], row["reason"]) == (3, 2, "attempts_exhausted")

    house.live(main)


@pytest.mark.req("Q-7")
def test_backoff_is_exponential_jittered_and_capped(home: Path) -> None:
    house = Home(home, max_attempts=9, backoff_ms_min=1_000, backoff_ms_max=16_000, seed=3)
    waits: list[list[int]] = [[] for _ in range(8)]

    async def flaky(attempt: Attempt) -> Outcome:
        return Failed(
            "flaky", "no", retryable=True, fingerprint=f"{attempt.task.tid}.{attempt.task.attempt}"
        )

    house.plays["flaky"] = flaky

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(6)]
        tasks = [await world.tool(session, "flaky") for session in sessions]
        for task in tasks:
            assert await world.ended(task) == "DEAD_LETTER"
        for session in sessions:
            found = await world.database.read("events_after", sid=session.sid, cursor=0, limit=999)
            retries = [row for row in found if row[2] == "task.retry_wait"]
            claims = [row[3] for row in found if row[2] == "task.claimed"]
            for number, row in enumerate(retries):
                waits[number].append(orjson.loads(row[8])["dueAt"] - row[3])
                assert claims[number + 1] - row[3] == waits[number][-1]  # neither early nor late

    house.live(main)
    for number, found in enumerate(waits):
        ceiling = min(16_000, 1_000 << number)
        assert all(1 <= wait <= ceiling for wait in found), (number, found)
        assert len(set(found)) > 1  # jitter
    assert max(waits[6]) > 4_000


@pytest.mark.req("Q-5", "Q-7")
def test_waiting_for_people_makes_no_backoff_longer(home: Path) -> None:
    """The exponent counts failures, not claims."""
    house = Home(home, backoff_ms_min=100, backoff_ms_max=100_000)
    waits = []

    async def asks(attempt: Attempt) -> Outcome:
        for number in range(8):
            await attempt.wait_signal(str(number))
        return Failed("flaky", "no", retryable=True)

    house.plays["asks"] = asks

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "asks")
        for number in range(8):
            await world.engine.signal(task.run_id, str(number), b"")
        await world.until(task, "RETRY_WAIT")
        for name, payload in await world.events(session):
            if name == "task.retry_wait":
                waits.append(payload["dueAt"] - world.clock.wall_ms())
        row = await world.engine.task(task.task_id)
        assert (row["failures"], row["crashes"]) == (1, 0)

    house.live(main)
    assert waits[0] <= 100


@pytest.mark.req("Q-7")
def test_retry_after_is_honoured_within_the_cap(home: Path) -> None:
    house = Home(home, backoff_ms_min=1_000, backoff_ms_max=50_000)
    begun = []

    async def flaky(attempt: Attempt) -> Outcome:
        begun.append(house.clock.mono_ms())
        match attempt.task.attempt:
            case 1:
                raise Retryable("busy", "come again", retry_after_ms=20_000)
            case 2:
                raise Retryable("busy", "come again", retry_after_ms=999_999_999, fingerprint="x")
            case 3:
                raise Retryable("busy", "come again", retry_after_ms=-5, fingerprint="y")
        return Succeeded()

    house.plays["flaky"] = flaky

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "flaky")
        assert await world.ended(task) == "SUCCEEDED"
        steps = [later - earlier for earlier, later in itertools.pairwise(begun)]
        assert steps == [20_000, 24 * 3600_000, 0]

    house.live(main, limit_s=30 * 3600)


@pytest.mark.req("Q-7")
def test_equal_failures_in_a_row_are_poison(home: Path) -> None:
    house = Home(home, max_attempts=9, poison=3)
    prints = iter(["a", "a", "b", "b", "b"])

    async def flaky(attempt: Attempt) -> Outcome:
        return Failed("flaky", "no", retryable=True, fingerprint=next(prints))

    house.plays["flaky"] = flaky

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "flaky")
        assert await world.ended(task) == "DEAD_LETTER"
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["failures"], row["reason"]) == (5, 5, "poison")

    house.live(main)


@pytest.mark.req("Q-7")
@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (ValueError("boom"), "DEAD_LETTER", "brain_fault"),
        (QueueFull("busy"), "DEAD_LETTER", "queue_full"),
        (PolicyDenied("no"), "FAILED", "policy_denied"),
        (ValueError("na\udcffme"), "DEAD_LETTER", "brain_fault"),
        (RuntimeError("x" * 100_000), "DEAD_LETTER", "brain_fault"),
        (asyncio.CancelledError(), "DEAD_LETTER", "brain_fault"),
        (TimeoutError(), "DEAD_LETTER", "brain_fault"),
        (LeaseLost("stale"), None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_brain_raises_its_lane_lives(
    home: Path, error: BaseException, state: str | None, code: str | None
) -> None:
    house = Home(home, lanes=1, max_attempts=2, backoff_ms_min=10)

    async def bad(attempt: Attempt) -> Outcome:
        raise error

    house.plays["bad"] = bad

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "bad")
        other = await world.tool(await world.session(), "good")
        if state is not None:
            end = await world.engine.run_ended(task.run_id)
            assert (end.state, end.code) == (state, code)
            assert end.message is not None
            assert len(end.message) <= limits.MESSAGE_CHARS_MAX
            assert (await world.engine.run_state(task.run_id)) == end
            assert len(house.plays.begun) >= (2 if state == "DEAD_LETTER" else 1)
        assert await world.ended(other) == "SUCCEEDED"
        later = await world.tool(await world.session(), "good")
        assert await world.ended(later) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("I-5")
def test_a_result_beyond_its_bound_is_a_failure_with_a_name(home: Path) -> None:
    house = Home(home)

    async def huge(attempt: Attempt) -> Outcome:
        return Succeeded(result=b"x" * (limits.RESULT_BYTES_MAX + 1))

    house.plays["huge"] = huge

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "huge")
        end = await world.engine.run_ended(task.run_id)
        assert (end.state, end.code) == ("FAILED", "too_large")

    house.live(main)


@pytest.mark.req("Q-5", "A-7")
def test_five_approvals_spend_no_attempt(home: Path) -> None:
    house = Home(home, max_attempts=1, crash_budget=1)

    async def careful(attempt: Attempt) -> Outcome:
        for number in range(5):
            await attempt.perform([asked(number)])
        return Succeeded()

    async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    def asked(number: int) -> Call:
        return Call("tool", f"t{number}", b"{}", EffectClass.IRREVERSIBLE, dispatch, question=True)

    house.plays["careful"] = careful

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "careful")
        for number in range(5):
            await world.until(task, "SUSPENDED")
            (approval,) = await world.engine.approvals.listed()
            assert approval.ordinal == number
            await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
        assert await world.ended(task) == "SUCCEEDED"
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["failures"], row["crashes"]) == (6, 0, 0)

    house.live(main)


@pytest.mark.req("S-7")
def test_an_end_that_the_disk_refused_is_said_again(home: Path) -> None:
    house = Home(home, lanes=1)

    async def main(world: World) -> None:
        async def work(attempt: Attempt) -> Outcome:
            world.database.fail_next_commit(after=False)
            return Succeeded(result=b"1")

        house.plays["work"] = work
        task = await world.tool(await world.session(), "work")
        assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 1)]
        assert world.database.failures > 0
        after = await world.tool(await world.session(), "after")
        assert await world.ended(after) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("S-7", "Q-5")
def test_a_suspension_that_the_disk_refused_is_said_again(home: Path) -> None:
    house = Home(home, lanes=1, lease_ms=3_000, crash_budget=1)

    async def main(world: World) -> None:
        async def work(attempt: Attempt) -> Outcome:
            if attempt.task.attempt == 1:
                world.database.fail_next_commit(after=False)
            await attempt.sleep(1_000)
            return Succeeded()

        house.plays["work"] = work
        task = await world.tool(await world.session(), "work")
        assert await world.ended(task) == "SUCCEEDED"
        row = await world.engine.task(task.task_id)
        assert (row["attempt"], row["failures"], row["crashes"]) == (2, 0, 0)

    house.live(main)


@pytest.mark.req("S-7")
@pytest.mark.parametrize("after", [False, True])
def test_lanes_outlive_a_disk_that_refuses_claims(home: Path, after: bool) -> None:
    house = Home(home, lanes=2)

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.tool(session, "work")
        world.database.fail_next_commit(after=after)
        world.engine.open_lanes()
        began = world.clock.mono_ms()
        assert await world.ended(task) == "SUCCEEDED"
        assert world.clock.mono_ms() - began <= limits.BUSY_MS_MAX + 1
        await world.stop()

    house.live(main, lanes=False)


@pytest.mark.req("S-7")
def test_heartbeats_and_reclaims_outlive_a_disk_that_refuses(home: Path) -> None:
    house = Home(home, lanes=1, lease_ms=3_000)

    async def long(attempt: Attempt) -> Outcome:
        await passes(30_000)
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "long")
        for _ in range(5):
            await passes(2_000)
            world.database.fail_next_commit(after=False)
        assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 1)]

    house.live(main)


@pytest.mark.req("Q-4", "S-7")
def test_a_disk_that_stands_still_expires_nobody_who_is_alive(home: Path) -> None:
    """Heartbeats and claims wait in the writer for longer than a lease."""
    house = Home(home, lanes=2, lease_ms=3_000)

    async def long(attempt: Attempt) -> Outcome:
        await passes(20_000)
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        loop = asyncio.get_running_loop()
        session = await world.session()
        task = await world.tool(session, "long", parallel=True)
        await passes(1_500)
        waits = asyncio.ensure_future(world.tool(session, "long", parallel=True))
        await asyncio.sleep(0)
        outside, loop.outside = loop.outside, None  # type: ignore[attr-defined]
        await passes(10_000)
        loop.outside = outside  # type: ignore[attr-defined]
        assert await world.ended(task) == "SUCCEEDED"
        assert await world.ended(await waits) == "SUCCEEDED"
        assert "task.requeued" not in await world.types(session)
        assert len(house.plays.begun) == 2

    house.live(main)


@pytest.mark.req("Q-4", "S-7")
def test_an_attempt_whose_heartbeats_come_late_is_alive(home: Path) -> None:
    """A blocked loop, a full disk: who lives in this process is not reclaimed by it."""
    house = Home(home, lanes=1, lease_ms=3_000)

    async def long(attempt: Attempt) -> Outcome:
        await passes(30_000)
        return Succeeded()

    house.plays["long"] = long

    async def main(world: World) -> None:
        (heartbeats,) = [one for one in asyncio.all_tasks() if one.get_name() == "heartbeats"]
        heartbeats.cancel()
        task = await world.tool(await world.session(), "long")
        assert await world.ended(task) == "SUCCEEDED"
        assert house.plays.begun == [(task.task_id, 1)]

    house.live(main)
