"""Whole lives of the engine drawn from a seed: work of every kind, cancels, crashes, stops.

Owns the simulator's first campaign. Not in here: the virtual loop and the world
(engine_support.py), the laws of the store that every life must leave behind (store_support.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import store_support
from engine_support import Home, World, passes, settled

from goclaw.core.errors import AlreadyResolved, GoclawError, QueueFull, ShuttingDown
from goclaw.core.records import Call, Done, Failed, Succeeded
from goclaw.core.states import TERMINAL, EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome

LANES = 3
LIVES = 5
KINDS = ("quick", "slow", "flaky", "bad", "sleeps", "hears", "asks", "acts", "keyed", "rude")


class Campaign:
    """What the outside world remembers, whatever dies inside."""

    def __init__(self, home: Path, seed: int) -> None:
        self.house = Home(
            home, seed=seed, hurry=0.3, lanes=LANES, backoff_ms_min=20, backoff_ms_max=500,
            crash_budget=LIVES + 2, max_attempts=4, session_limit=30,
        )  # fmt: skip
        self.chance = self.house.clock.chance
        self.sessions: list[str] = []
        self.accepted: dict[str, Accepted] = {}  # by submission key
        self.cancelled: set[str] = set()
        self.ends: dict[str, str] = {}
        self.dispatched: Counter[str] = Counter()
        self.classes: dict[str, EffectClass] = {}
        for kind in KINDS:
            self.house.plays[kind] = getattr(self, kind)

    # -- what tasks do -----------------------------------------------------------------------------

    async def quick(self, attempt: Attempt) -> Outcome:
        return Succeeded()

    async def slow(self, attempt: Attempt) -> Outcome:
        await passes(self.chance.randrange(300))
        return Succeeded()

    async def flaky(self, attempt: Attempt) -> Outcome:
        if self.chance.random() < 0.5:
            return Failed("flaky", "no", retryable=True, fingerprint=str(self.chance.random()))
        return Succeeded()

    async def bad(self, attempt: Attempt) -> Outcome:
        # a fingerprint of its own: no breaker opens, which would keep all of its kind waiting
        return Failed("always", "no", retryable=True, fingerprint=attempt.task.task_id)

    async def sleeps(self, attempt: Attempt) -> Outcome:
        for _ in range(2):
            await attempt.sleep(100)
        return Succeeded()

    async def hears(self, attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        return Succeeded()

    async def asks(self, attempt: Attempt) -> Outcome:
        await attempt.perform([self.call(EffectClass.IRREVERSIBLE, question=True)])
        return Succeeded()

    async def acts(self, attempt: Attempt) -> Outcome:
        for _ in range(2):
            await attempt.perform([self.call(EffectClass.IRREVERSIBLE)])
        return Succeeded()

    async def keyed(self, attempt: Attempt) -> Outcome:
        calls = [self.call(EffectClass.KEYED), self.call(EffectClass.PURE)]
        await attempt.perform(calls)
        return Succeeded()

    async def rude(self, attempt: Attempt) -> Outcome:
        try:
            await passes(200)
        except asyncio.CancelledError:
            await passes(50)
        return Succeeded()

    def call(self, kind: EffectClass, *, question: bool = False) -> Call:
        async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
            self.dispatched[key] += 1
            self.classes[key] = kind
            await passes(self.chance.randrange(80))
            return Done(b"1")

        return Call("tool", f"{kind}", b"{}", kind, dispatch, question=question)

    # -- what people do ----------------------------------------------------------------------------

    async def client(self, world: World, number: int) -> None:
        for step in range(10):
            await passes(self.chance.randrange(60))
            try:
                await self.submit(world, f"{self.house.lives}.{number}.{step}")
                await self.meddle(world)
            except (ShuttingDown, QueueFull):
                continue

    async def submit(self, world: World, key: str) -> None:
        session = await world.intake.session(self.chance.choice(self.sessions))
        kind = self.chance.choice(KINDS)
        if self.chance.random() < 0.6:
            accepted = await world.prompt(session, kind, key=key)
        else:
            parallel = self.chance.random() < 0.5
            accepted = await world.tool(session, kind, key=key, parallel=parallel)
        assert not accepted.duplicate
        self.accepted[key] = accepted

    async def meddle(self, world: World) -> None:
        engine, some = world.engine, self.chance.choice(list(self.accepted.values()))
        match self.chance.randrange(6):
            case 0:
                receipt = await engine.cancel_task(some.task_id)
                if receipt.outcome != "already_finished":
                    self.cancelled.add(some.task_id)
            case 1:
                await engine.signal(some.run_id, "go", b"")
            case 2:
                await self.answer(world)
            case 3:
                await self.settle(world)

    async def answer(self, world: World) -> None:
        for approval in await world.engine.approvals.listed():
            option = self.chance.choice(["allow", "reject"])
            try:
                await world.engine.approvals.resolve(approval.approval_id, option, "me")
            except AlreadyResolved:
                continue

    async def suspended(self, world: World) -> list[dict[str, Any]]:
        return await world.engine.tasks(sid=None, before=None, state="SUSPENDED", limit=1_000)

    async def settle(self, world: World) -> None:
        """An operator's word on whatever nobody knows."""
        for row in await self.suspended(world):
            if row["reason"] != "effect_unknown":
                continue
            for effect in await world.rows("effects_of_task", tid=row["tid"]):
                if effect["state"] != "unknown":
                    continue
                try:
                    await world.engine.settlement.settle(
                        row["task_id"], effect["ordinal"], "done", result=b"1", by="me"
                    )
                except GoclawError:
                    continue  # a cancel was quicker

    # -- lives -------------------------------------------------------------------------------------

    async def life(self, world: World) -> None:
        while len(self.sessions) < 4:
            self.sessions.append((await world.session()).session_id)
        # Every submission so far is known, and is the same.
        for key, accepted in self.accepted.items():
            found = await world.database.read(
                "submission", sid=await self.sid(world, accepted), key=key
            )
            assert found[0][0] == accepted.task_id
        clients = [asyncio.ensure_future(self.client(world, number)) for number in range(3)]
        await passes(self.chance.randrange(50, 800))
        assert self.house.plays.most <= LANES
        if self.chance.random() < 0.4:
            await world.stop(self.chance.choice([0, 100, 10_000]))
            assert world.engine.scheduler.busy == 0
            assert await world.database.read("live_tasks") == []
        else:
            for client in clients:
                client.cancel()

    async def sid(self, world: World, accepted: Accepted) -> int:
        return (await world.intake.session(accepted.session_id)).sid

    async def last(self, world: World) -> None:
        """Everybody gets an answer; then all work ends."""
        began = world.clock.mono_ms()
        while world.engine.open_tasks():
            await passes(50)
            await self.answer(world)
            await self.settle(world)
            for row in await self.suspended(world):
                if row["reason"] == "signal:go":
                    await world.engine.signal(row["run_id"], "go", b"")
            assert world.clock.mono_ms() - began < 120_000, world.engine.task_counts()
        await settled()
        for task in self.accepted.values():
            end = await world.engine.run_ended(task.run_id)
            assert end.state in TERMINAL
            assert (end.state == "CANCELED") == (task.task_id in self.cancelled)
        for name in self.sessions:
            session = await world.intake.session(name)
            types = Counter(await world.types(session))
            assert types["run.ended"] == types["run.accepted"]
        # No effect twice for one key (I-4); a pure or keyed one may be sent again.
        for key, times in self.dispatched.items():
            assert times == 1 or self.classes[key] is not EffectClass.IRREVERSIBLE


@pytest.mark.req("I-1", "I-2", "I-3", "I-4", "Q-1", "Q-3", "Q-9", "Q-11", "R-2", "R-3")
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_books_are_right(home: Path, seed: int) -> None:
    campaign = Campaign(home, seed)
    for _ in range(LIVES):
        campaign.house.live(campaign.life)
        campaign.house.plays.running.clear()
    campaign.house.live(campaign.last)
    assert len(campaign.accepted) > 20


@pytest.mark.req("R-6", "I-8")
def test_a_seed_tells_the_same_story_twice(home: Path) -> None:
    """Else a failure that a seed found could not be looked at."""
    stories = []
    for telling in ("first", "second"):
        folder = home / telling
        folder.mkdir()
        campaign = Campaign(folder, seed=77)
        for _ in range(2):
            campaign.house.live(campaign.life)
        stories.append((store_support.dump(folder / "goclaw.db"), campaign.house.clock.ns))
    first, second = stories
    assert store_support.changed(first[0], second[0]) == set()
    assert first[1] == second[1]
