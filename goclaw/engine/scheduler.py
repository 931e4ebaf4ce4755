"""Lanes: each claims the next task by the fair pick, runs it, and claims again.

Owns how many attempts run, who is live, their heartbeats and the reclaim of expired leases. Not in
here: the pick itself (``claim`` in store/queries.sql).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, IllegalTransition, LeaseLost, StorageFailed
from goclaw.core.faults import faultpoint
from goclaw.core.records import Task
from goclaw.engine.worker import LiveAttempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Set

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.records import Runner, Session
    from goclaw.store import Committed, Database, Event

__all__ = ["Scheduler"]

_log = log.logger("engine.scheduler")

# After these a task may have become claimable that was not before.
_FREEING = frozenset(
    {
        "task.queued", "task.requeued", "task.running", "task.succeeded", "task.failed",
        "task.canceled", "task.dead_letter",
    }
)  # fmt: skip


class Scheduler:
    """``queue.lanes`` bounded slots (R-2)."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        runner: Runner,
        owner: str,
        *,
        load_session: Callable[[int], Awaitable[Session]],
        policy_version: Callable[[], str],
        only_sids: Set[int] | None = None,
    ) -> None:
        self._database, self._clock, self._queue, self._runner = database, clock, queue, runner
        self._owner, self._load_session, self._policy_version = owner, load_session, policy_version
        self._only_sids = only_sids
        self._changes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lanes: list[asyncio.Task[None]] = []
        self._chores: list[asyncio.Task[None]] = []
        self._stopping = False
        self.live: dict[int, LiveAttempt] = {}
        """Live attempts of goclaw's own lanes, by tid."""
        self.claims = 0

    @property
    def busy(self) -> int:
        """Lanes in use."""
        return len(self.live)

    def start(self) -> None:
        """Open the lanes."""
        self._lanes = [
            asyncio.create_task(self._lane(), name=f"lane-{number}")
            for number in range(self._queue.lanes)
        ]
        self._chores = [
            asyncio.create_task(self._heartbeats(), name="heartbeats"),
            asyncio.create_task(self._reclaims(), name="reclaims"),
        ]

    def observe(self, events: list[Event]) -> None:
        """Commits that may have made a task claimable wake as many lanes; a cancel stops one."""
        for event in events:
            kind = event[3]
            if kind in _FREEING:
                self._changes += 1
                while self._waiting:
                    future = self._waiting.popleft()
                    if not future.done():
                        future.set_result(None)
                        break

    async def _ready(self, seen: int) -> None:
        """Wait until something changed after ``seen`` (a count of changes)."""
        if self._changes != seen:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def _lane(self) -> None:
        while not self._stopping:
            seen = self._changes
            try:
                attempt = await self._claim()
            except StorageFailed as error:
                _log.error("claim failed", extra={"data": {"error": str(error)}})
                await asyncio.sleep(limits.BUSY_MS_MAX / 1000)
                continue
            except (IllegalTransition, LeaseLost) as error:
                _log.error("claim refused", extra={"data": {"error": str(error)}})
                await self._ready(seen)
                continue
            if attempt is None:
                await self._ready(seen)
                continue
            if self._stopping:
                await attempt.hand_back()
                return
            self.live[attempt.task.tid] = attempt
            try:
                await attempt.run(self._runner)
            except GoclawError as error:
                # The end did not reach the disk: the lease runs out and the task is reclaimed.
                _log.error("attempt not ended", extra={"data": {"error": str(error)}})
            finally:
                del self.live[attempt.task.tid]

    async def _claim(self) -> LiveAttempt | None:
        token = self._clock.random_bytes(16)
        arguments = {
            "pool": "",
            "owner": self._owner,
            "token": token,
            "lease_until_mono": self._clock.mono_ms() + self._queue.lease_ms,
            "policy_version": self._policy_version(),
            "now": self._clock.wall_ms(),
        }
        if self._only_sids is None:
            return await self._claimed("claim", aging_factor=self._queue.aging_factor, **arguments)
        for sid in tuple(self._only_sids):
            attempt = await self._claimed("claim_session", only_sid=sid, **arguments)
            if attempt is not None:
                return attempt
        return None

    async def _claimed(self, program: str, /, **arguments: Any) -> LiveAttempt | None:
        token: bytes = arguments["token"]
        future = self._database.write(program, **arguments)
        try:
            committed = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The claim may commit all the same: a lease that nobody holds must be given back.
            future.add_done_callback(lambda done: self._release_unheld(done, token))
            raise
        return await self._attempt(committed.parts[0], token)

    async def _attempt(self, found: tuple[object, ...], token: bytes) -> LiveAttempt | None:
        if found[0] is None:
            return None
        self.claims += 1
        (
            tid, sid, session_id, task_id, run_id, kind, attempt, max_attempts, on_unknown, trace,
            _, payload, key, client, origin,
        ) = found  # fmt: skip
        task = Task(
            tid, sid, session_id, task_id, run_id, kind, attempt, max_attempts, on_unknown,  # type: ignore[arg-type]
            trace or "", payload, key, client, origin, self._policy_version(),  # type: ignore[arg-type]
        )  # fmt: skip
        session = await self._load_session(task.sid)
        return LiveAttempt(self._database, self._clock, self._queue, task, session, token)

    def _release_unheld(self, done: asyncio.Future[Committed], token: bytes) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        tid = done.result().parts[0][0]
        if tid is not None:
            released = self._database.write(
                "reclaim", live=True, tid=tid, token=token, spent=0,
                crash_budget=self._queue.crash_budget, reason="handed_back",
                now=self._clock.wall_ms(),
            )  # fmt: skip
            released.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._queue.lease_ms / 3000)
            await asyncio.gather(*(attempt.heartbeat() for attempt in tuple(self.live.values())))

    async def _reclaims(self) -> None:
        """Leases that ran out: of external workers, and of lanes that lost their way."""
        while True:
            await asyncio.sleep(self._queue.lease_ms / 3000)
            now_mono = self._clock.mono_ms()
            try:
                expired = await self._database.read(
                    "expired_leases", now_mono=now_mono, limit=limits.READ_ROWS_MAX
                )
                for tid, token in expired:
                    await self._reclaim(tid, token, now_mono)
            except StorageFailed as error:
                _log.error("reclaim failed", extra={"data": {"error": str(error)}})

    async def _reclaim(self, tid: int, token: bytes, now_mono: int) -> None:
        try:
            await self._database.write(
                "reclaim", live=True, tid=tid, token=token, expired_mono=now_mono, spent=1,
                crash_budget=self._queue.crash_budget, reason="lease_expired",
                now=self._clock.wall_ms(),
            )  # fmt: skip
        except LeaseLost:
            return
        if tid in self.live:
            self.live[tid].stop("lease_lost")

    async def stop(self, drain_ms: int, hurry: asyncio.Event) -> None:
        """No new claims; wait for live attempts up to ``drain_ms``; hand back the rest (R-3)."""
        self._stopping = True
        for future in self._waiting:
            future.cancel()
        lanes = [lane for lane in self._lanes if not lane.done()]
        if self.live and drain_ms > 0 and lanes:
            faultpoint("during_drain")
            await _settled(lanes, drain_ms, hurry)
        for attempt in tuple(self.live.values()):
            attempt.stop("shutdown")
        if lanes:
            await _settled(lanes, limits.CLOSE_MS_MAX, asyncio.Event())
        for task in (*self._chores, *self._lanes):
            task.cancel()
        await asyncio.gather(*self._chores, *self._lanes, return_exceptions=True)


async def _settled(lanes: list[asyncio.Task[None]], wait_ms: int, hurry: asyncio.Event) -> None:
    """Wait until all lanes have ended, the time is up or somebody hurries."""
    hurried = asyncio.ensure_future(hurry.wait())
    everyone = asyncio.ensure_future(asyncio.wait(lanes))
    try:
        await asyncio.wait(
            {hurried, everyone}, timeout=wait_ms / 1000, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        hurried.cancel()
        everyone.cancel()
