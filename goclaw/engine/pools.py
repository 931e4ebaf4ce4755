"""Who waits for work of which pool, and the claims that give it to them.

Owns the long wait, woken by commits, and the rule that a lease nobody hears of goes back. Not in
here: the pick itself (``claim`` in store/queries.sql), what a worker says then (external).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, ShuttingDown
from goclaw.core.faults import faultpoint
from goclaw.core.states import EffectState
from goclaw.engine.effects import task_key
from goclaw.engine.external import Held, Intended, recorded
from goclaw.engine.handback import Handback
from goclaw.engine.intake import effect_class_of, unpacked_work
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.decisions import Decision
    from goclaw.engine.fairness import Fairness
    from goclaw.engine.halt import Halt
    from goclaw.store import Committed, Database, Event

__all__ = ["Lease", "Pools"]

_log = log.logger("engine.pools")


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed task, as its worker is told of it."""

    tid: int
    task_id: str
    run_id: str
    session_id: str
    attempt: int
    event_id: int
    max_attempts: int
    token: bytes
    payload: bytes
    """JSON, as it was submitted."""
    key: str
    """The base of the keys of its effects: the same in every attempt."""
    trace: str
    effects: tuple[Intended, ...] = ()
    """Finished ones of earlier attempts, from the first on, within a bound."""


class Pools:
    """The pools of one home. Everything runs on the loop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        *,
        policy_version: Callable[[], str],
        fairness: Fairness,
        remember: Callable[[Held], None],
        halt: Halt,
    ) -> None:
        self._halt = halt
        self._database, self._clock, self._queue = database, clock, queue
        self._policy_version, self._remember = policy_version, remember
        self._fairness = fairness
        self._changes = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._handback = Handback(database, clock, queue)
        self._closed = False
        self._asked: dict[str, int] = {}  # by pool: when a worker last did, the latest last

    # -- what commits tell ---------------------------------------------------------------------

    def observe(self, events: list[Event]) -> None:
        """A commit that may have made a task of a pool claimable: look, if anybody waits."""
        if any(event[3].startswith(("task.", "schedule.due")) for event in events):
            self.look_again()

    def look_again(self) -> None:
        """Something may be claimable that was not: look, if anybody waits."""
        self._changes += 1
        if self._waiting and self._looking is None:
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        """Wake the first waiter of each pool that has something, until nothing changes any more."""
        try:
            seen = -1
            while self._waiting and seen != self._changes:
                seen = self._changes
                for pool in await self._ready(self._waiting):
                    self._wake(pool)
        except GoclawError:
            for pool in tuple(self._waiting):  # they look for themselves, and say why not
                self._wake(pool, everybody=True)
        finally:
            self._looking = None

    async def _ready(self, pools: Iterable[str]) -> list[str]:
        listed = orjson.dumps(list(pools)).decode()
        return [pool for (pool,) in await self._database.read("ready_pools", pools=listed)]

    def _wake(self, pool: str, *, everybody: bool = False) -> None:
        waiting = self._waiting.get(pool)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
                if not everybody:
                    break
        if not waiting:
            self._waiting.pop(pool, None)

    # -- claims --------------------------------------------------------------------------------

    async def claim(
        self, pool: str, *, most: int, wait_ms: int, owner: str, decision: Decision
    ) -> list[Lease]:
        """Up to ``most`` tasks by the fair pick, in one transaction; empty after ``wait_ms``.

        ShuttingDown when the daemon stops meanwhile. Cancelled, it leaves no lease behind.
        """
        try:
            return await self._claimed(pool, most, wait_ms, owner, decision)
        except BaseException:
            self._wake(pool)  # it may have been our turn: the next one's, then
            raise

    async def _claimed(
        self, pool: str, most: int, wait_ms: int, owner: str, decision: Decision
    ) -> list[Lease]:
        until_ms = self._clock.mono_ms() + wait_ms
        while True:
            self._check_open()
            self._note(pool)
            seen = self._changes
            if not self._halt.holds_all and await self._ready([pool]):
                leases = await self._take(pool, most, owner, decision)
                if leases:
                    return leases
            left_ms = until_ms - self._clock.mono_ms()
            if left_ms <= 0:
                return []
            await self._news(pool, seen, left_ms)

    def asked(self, pool: str) -> tuple[bool, int | None]:
        """Is a worker waiting for work of the pool, and when (monotonic) has one last asked? None
        when none has since the start, or long before many of other pools."""
        return bool(self._waiting.get(pool)), self._asked.get(pool)

    def _note(self, pool: str) -> None:
        self._asked.pop(pool, None)
        self._asked[pool] = self._clock.mono_ms()
        if len(self._asked) > limits.POOLS_MAX:
            del self._asked[next(iter(self._asked))]

    async def _news(self, pool: str, seen: int, wait_ms: int) -> None:
        """Wait for a change since ``seen`` that concerns the pool, or for the time to be up."""
        if seen != self._changes:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(pool, deque())
        waiting.append(future)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await future
        except TimeoutError:
            pass
        finally:
            if future in waiting:
                waiting.remove(future)
                if not waiting and self._waiting.get(pool) is waiting:
                    del self._waiting[pool]

    async def _take(self, pool: str, most: int, owner: str, decision: Decision) -> list[Lease]:
        tokens = [self._clock.random_bytes(16) for _ in range(most)]
        now, version = self._clock.wall_ms(), self._policy_version()
        now_mono = self._clock.mono_ms()
        bind = self._database.bind
        parts = [
            bind("claim_any", pool=pool),
            bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            *(
                bind(
                    "claim", pool=pool, owner=owner, token=token, now_mono=now_mono,
                    lease_until_mono=now_mono + self._queue.lease_ms, policy_version=version,
                    aging_factor=self._queue.aging_factor, now=now,
                )
                for token in tokens
            ),
        ]  # fmt: skip
        claiming = self._database.apply(*parts, live=True)
        try:
            committed = await asyncio.shield(claiming)
            faultpoint("after_claim")
            found = [
                (token, row) for token, row in zip(tokens, committed.parts[2:], strict=True)
                if row[0] is not None
            ]  # fmt: skip
            for _, row in found:
                self._fairness.note(pool, row[1], row[-6:])
            return await self._leases(found)
        except BaseException:
            claiming.add_done_callback(lambda future: self._forget_claim(tokens, future))
            raise

    async def _leases(self, found: Sequence[tuple[bytes, tuple[Any, ...]]]) -> list[Lease]:
        leases: list[Lease] = []
        over: list[bytes] = []
        payload_bytes, effect_bytes = 0, limits.CLAIM_EFFECTS_BYTES_MAX
        for token, row in found:
            (
                tid, _, session_id, task_id, run_id, _, attempt, max_attempts, _, trace, event_id,
                stored, key, *_,
            ) = row  # fmt: skip
            payload_bytes += len(stored)
            if payload_bytes > limits.CLAIM_BYTES_MAX and leases:
                over.append(token)
                continue
            held = Held(tid, task_id, session_id, key, effect_class_of(stored), b"")
            self._remember(held)
            effects: tuple[Intended, ...] = ()
            if attempt > 1:
                effects, effect_bytes = await self._finished(tid, effect_bytes)
            lease = Lease(
                tid, task_id, run_id, session_id, attempt, event_id, max_attempts, token,
                unpacked_work(stored), task_id if key is None else task_key(held).hex(),
                trace or "", effects,
            )  # fmt: skip
            leases.append(lease)
        self.give_back(over)
        return leases

    async def _finished(self, tid: int, room: int) -> tuple[tuple[Intended, ...], int]:
        """The finished effects that fit, in order, and the room that is left."""
        found: list[Intended] = []
        for row in rows("effects_of_task", await self._database.read("effects_of_task", tid=tid)):
            if row["state"] != EffectState.RESULT:
                continue
            room -= len(row["result"] or b"") + len(row["name"]) + limits.FRAME_OVERHEAD_BYTES
            if room < 0:
                return tuple(found), 0
            found.append(recorded(row))
        return tuple(found), room

    def _forget_claim(self, tokens: list[bytes], claiming: asyncio.Future[Committed]) -> None:
        """Nobody will hear of that claim: what it took goes back."""
        if claiming.cancelled() or claiming.exception() is not None:
            return
        parts = claiming.result().parts[2:]
        self.give_back(
            token for token, row in zip(tokens, parts, strict=True) if row[0] is not None
        )

    def give_back(self, tokens: Iterable[bytes]) -> None:
        """End leases that nobody knows of; no budget is spent."""
        for token in tokens:
            self._handback.give(token)

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown(
                "The daemon is stopping and gives out no more work.",
                hint="Claim again when the daemon is back; leases live on.",
                retryAfterMs=limits.DRAIN_MS_MAX,
            )

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Give out no more work and tell those who wait; leases outlive the daemon."""
        self._closed = True
        self._changes += 1
        for pool in tuple(self._waiting):
            self._wake(pool, everybody=True)

    async def settled(self) -> None:
        """Wait until what goes back is on disk, within a bound."""
        await self._handback.settled()
