"""Pools in virtual time: who is woken, and that no lease is left with nobody (W-11, Q-3).

Owns pools' tests but for the wire (test_workers_wire.py).
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import ShuttingDown, StorageFailed

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Session
    from goclaw.engine.pools import Lease

DECISION = Decision(
    "decision_1", 0, Subject(SubjectKind.WORKER, "w", Origin.UNIX), "worker.claim", "p", Context(),
    Verdict.ALLOW, "workers-claim", "", "policy", (),
)  # fmt: skip


async def submit(world: World, session: Session, pool: str = "p") -> Accepted:
    return await world.intake.submit_work(
        session, pool, {"n": 1}, key=None, client="me", origin="unix"
    )


def claim(world: World, wait_ms: int = 10_000, **more: Any) -> asyncio.Task[list[Lease]]:
    arguments = {"most": 1, "owner": "w", "decision": DECISION, **more}
    return asyncio.ensure_future(
        world.engine.pools.claim(arguments.pop("pool", "p"), wait_ms=wait_ms, **arguments)
    )


@pytest.mark.req("W-11")
def test_a_wait_ends_when_its_time_is_up(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        begun = house.clock.mono_ms()
        assert await claim(world, 5_000) == []
        assert house.clock.mono_ms() - begun == 5_000
        assert await claim(world, 0) == []

    house.live(main)


@pytest.mark.req("W-11", "Q-3")
@pytest.mark.parametrize("seed", range(12))
def test_a_claim_that_is_given_up_at_any_moment_leaves_no_lease(home: Path, seed: int) -> None:
    """Also between its commit and the news of it, and while the journal is read."""
    house = Home(home, seed=seed, hurry=0.5)

    async def main(world: World) -> None:
        session = await world.session()
        task = await submit(world, session)
        for moment in range(8):
            claiming = claim(world, 0)
            for _ in range(moment):
                await asyncio.sleep(0)
            claiming.cancel()
            (ended,) = await asyncio.gather(claiming, return_exceptions=True)
            if isinstance(ended, list):  # it was quicker than we
                world.engine.pools.give_back(lease.token for lease in ended)
            await settled()
            row = await world.engine.task(task.task_id)
            assert (row["state"], row["crashes"], row["failures"]) == ("QUEUED", 0, 0), moment
        (lease,) = await claim(world, 0)
        assert lease.task_id == task.task_id

    house.live(main)


@pytest.mark.req("W-11")
def test_waiters_are_served_in_turn_and_each_change_wakes_one(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        served: list[int] = []
        waits = []

        def note(number: int, _wait: object) -> None:
            served.append(number)

        for number in range(3):
            waits.append(claim(world))
            waits[-1].add_done_callback(functools.partial(note, number))
            await settled()
        other = claim(world, pool="q")
        await settled()
        for _ in range(3):
            await submit(world, await world.session())
            await settled()
        assert served == [0, 1, 2]
        assert not other.done()
        await submit(world, await world.session(), "q")
        assert len(await other) == 1

    house.live(main)


@pytest.mark.req("W-11")
@pytest.mark.parametrize("seed", range(8))
def test_a_waiter_that_leaves_when_it_is_woken_passes_its_turn_on(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.5)

    async def main(world: World) -> None:
        for moment in range(12):
            first, second = claim(world), claim(world)
            await settled()
            begun = house.clock.mono_ms()
            task = await submit(world, await world.session())
            for _ in range(moment):
                await asyncio.sleep(0)
            first.cancel()
            (ended,) = await asyncio.gather(first, return_exceptions=True)
            if isinstance(ended, list):  # it was quicker than we
                world.engine.pools.give_back(lease.token for lease in ended)
            (lease,) = await second
            assert lease.task_id == task.task_id
            assert house.clock.mono_ms() - begun < 10, moment

    house.live(main)


@pytest.mark.req("W-11")
@pytest.mark.parametrize("seed", range(8))
def test_no_commit_is_missed_between_a_look_and_the_wait(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.5)

    async def main(world: World) -> None:
        for moment in range(12):
            session = await world.session()
            begun = house.clock.mono_ms()
            claiming = claim(world)
            for _ in range(moment):
                await asyncio.sleep(0)
            await submit(world, session)
            assert len(await claiming) == 1
            assert house.clock.mono_ms() - begun < 10, moment

    house.live(main)


@pytest.mark.req("W-11", "Q-9", "Q-12")
def test_every_way_to_become_claimable_wakes_a_claim(home: Path) -> None:
    house = Home(home, lease_ms=3_000)

    async def main(world: World) -> None:
        session = await world.session()
        first, second = await submit(world, session), await submit(world, session)
        (lease,) = await claim(world)
        external = world.engine.external
        waiting = claim(world, limits.CLAIM_WAIT_MS_MAX)
        held = await external.held(lease.task_id, lease.token)
        await external.fail(
            held, code="busy", message="", retryable=True, retry_after_ms=700, fingerprint=None
        )
        (lease,) = await waiting  # the backoff is over
        assert (lease.task_id, lease.attempt) == (first.task_id, 2)
        waiting = claim(world, limits.CLAIM_WAIT_MS_MAX)
        (lease,) = await waiting  # the lease ran out
        assert (lease.task_id, lease.attempt) == (first.task_id, 3)
        waiting = claim(world, limits.CLAIM_WAIT_MS_MAX)
        await settled()
        await world.engine.cancel_task(first.task_id)
        (lease,) = await waiting  # the session's turn is free
        assert lease.task_id == second.task_id

    house.live(main)


@pytest.mark.req("R-3")
def test_a_stop_ends_every_wait_and_gives_back_what_is_on_its_way(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        waits = [claim(world, pool=pool) for pool in ("p", "p", "q")]
        await settled()
        task = await submit(world, await world.session(), "r")
        leaving = claim(world, pool="r")
        await settled()
        assert len(await leaving) == 1
        world.engine.pools.give_back([(await leaving)[0].token])
        await world.stop()
        for wait in waits:
            with pytest.raises(ShuttingDown):
                await wait
        assert await world.state(task) == "QUEUED"

    house.live(main)


@pytest.mark.req("S-7", "Q-5")
@pytest.mark.parametrize("stops", [False, True])
def test_a_lease_goes_back_although_the_disk_refused_that_once(home: Path, stops: bool) -> None:
    """Left alone, it would run out and cost its task a crash."""
    house = Home(home, crash_budget=1)

    async def main(world: World) -> None:
        task = await submit(world, await world.session())
        (lease,) = await claim(world)
        world.database.fail_next_commit(after=False)
        world.engine.pools.give_back([lease.token])
        if stops:
            await world.stop()
        else:
            await passes(2 * limits.STOP_RETRY_MS)
        assert world.database.failures == 1
        row = await world.engine.task(task.task_id)
        assert [row["state"], row["attempt"], row["crashes"]] == ["QUEUED", 1, 0]

    house.live(main)


@pytest.mark.req("S-7", "R-3")
def test_a_lease_that_cannot_go_back_does_not_hold_up_a_stop(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        await submit(world, await world.session())
        (lease,) = await claim(world)

        def refusing() -> bool:
            world.database.fail_next_commit(after=False)
            return world.database.step()

        loop = asyncio.get_running_loop()
        loop.outside = refusing  # type: ignore[attr-defined]
        world.engine.pools.give_back([lease.token])
        began = world.clock.mono_ms()
        await world.stop(0)
        assert world.clock.mono_ms() - began <= limits.CLOSE_MS_MAX + limits.STOP_RETRY_MS

    house.live(main)


@pytest.mark.req("S-7", "W-11")
def test_a_disk_that_cannot_be_read_is_told_to_whoever_waits(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        waits = [claim(world), claim(world, pool="q")]
        await settled()

        async def unread(*_: Any, **__: Any) -> Any:
            raise StorageFailed("The database cannot be read.")

        monkeypatch.setattr(world.engine.pools, "_ready", unread)
        begun = house.clock.mono_ms()
        world.engine.pools.look_again()
        for wait in waits:
            with pytest.raises(StorageFailed):
                await wait
        assert house.clock.mono_ms() - begun < 10

    house.live(main)


@pytest.mark.req("Q-3", "A-8")
def test_of_two_claims_at_one_moment_one_wins_and_is_on_record(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        await submit(world, await world.session())
        found = await asyncio.gather(claim(world, 0), claim(world, 0))
        assert sorted(map(len, found)) == [0, 1]
        assert len(await world.database.read("audit_after", seq=0, limit=9)) == 1

    house.live(main)


@pytest.mark.req("Q-8")
def test_pools_do_not_wait_for_each_other(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        for _ in range(5):
            await submit(world, await world.session(), "crowded")
        await submit(world, await world.session(), "quiet")
        assert len(await claim(world, pool="quiet")) == 1
        assert len(await claim(world, pool="crowded", most=64)) == 5
        await passes(1)

    house.live(main)
