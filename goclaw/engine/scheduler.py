"""Lanes: each claims the next task by the fair pick, runs it, and claims again.

Owns how many attempts run, who is live, their heartbeats and the reclaim of expired leases. Not in
here: the pick itself (``claim`` in store/queries.sql).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, LeaseLost
from goclaw.core.faults import faultpoint
from goclaw.core.metrics import CLAIM_S
from goclaw.core.records import Task
from goclaw.core.services import keep_running
from goclaw.core.states import LEAVING
from goclaw.engine.handback import Handback
from goclaw.engine.worker import LiveAttempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Set

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.records import Runner, Session
    from goclaw.engine.fairness import Fairness
    from goclaw.engine.gates import Gates
    from goclaw.engine.subtasks import Subtasks
    from goclaw.engine.taints import Taints
    from goclaw.store import Database, Event

__all__ = ["Scheduler"]

_log = log.logger("engine.scheduler")

_ARRIVING = frozenset({"task.queued", "schedule.due"})
# What else may make a task claimable that was not before.
_FREEING = LEAVING - {"task.suspended", "task.retry_wait"}


@dataclass(slots=True)
class _Claim:
    """One look for work."""

    token: bytes
    reserved: bool
    """It takes prompts only (Q-16)."""
    seen: int
    """Changes known when it was made: one that finds nothing waits for the next."""
    policy_version: str
    part: tuple[int, tuple[Any, ...]]
    failed: bool = False


class Scheduler:
    """``queue.lanes`` bounded slots (R-2)."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        runner: Runner,
        owner: str,
        gates: Gates,
        subtasks: Subtasks,
        taints: Taints,
        *,
        load_session: Callable[[int], Awaitable[Session]],
        policy_version: Callable[[], str],
        fairness: Fairness,
        only_sids: Set[int] | None = None,
    ) -> None:
        self._database, self._clock, self._queue, self._runner = database, clock, queue, runner
        self._owner, self._load_session, self._policy_version = owner, load_session, policy_version
        self._only_sids, self._gates, self._subtasks = only_sids, gates, subtasks
        self._taints = taints
        self._fairness = fairness
        self._changes = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._lanes: list[asyncio.Task[None]] = []
        self._chores: list[asyncio.Task[None]] = []
        self._stopping = False
        # Tokens of claims that no lane has taken up yet; True: of prompts only.
        self._claiming: dict[bytes, bool] = {}
        self._handback = Handback(database, clock, queue)
        self._started: set[tuple[str | None, int]] = set()  # on disk RUNNING, not in live yet
        self.live: dict[tuple[str | None, int], LiveAttempt] = {}
        """Live attempts of goclaw's own lanes, by task id and attempt."""
        self.claims = 0

    @property
    def busy(self) -> int:
        """Lanes in use."""
        return len(self.live)

    def is_live(self, tid: int) -> bool:
        """True while an attempt of the task holds a lane."""
        return any(attempt.task.tid == tid for attempt in self.live.values())

    @property
    def lanes(self) -> int:
        """How many there are."""
        return self._queue.lanes

    @property
    def aging_factor(self) -> int:
        """Claims per level until a head that they passed is due (Q-8)."""
        return self._queue.aging_factor

    def hindrance(self, sid: int, *, prompt: bool) -> str | None:
        """Why no lane takes a head of that session now: no_daemon (this one runs the sessions of
        its own clients only), shutting_down, emergency_stop, lanes_busy, lanes_reserved; None when
        one will."""
        if self._only_sids is not None and sid not in self._only_sids:
            return "no_daemon"
        if self._stopping:
            return "shutting_down"
        if self._gates.halt.holds_all:
            return "emergency_stop"
        if len(self.live) >= self._queue.lanes:
            return "lanes_busy"
        if self._only_sids is None and not prompt and not self._has_room():
            return "lanes_reserved"
        return None

    def start(self) -> None:
        """Open the lanes."""
        self._lanes = [
            keep_running(f"lane-{number}", self._lane) for number in range(self._queue.lanes)
        ]
        self._chores = [
            keep_running("heartbeats", self._heartbeats),
            keep_running("reclaims", self._reclaims),
        ]

    # -- what commits tell ---------------------------------------------------------------------

    def observe(self, events: list[Event]) -> None:
        """A commit that may have made a task claimable wakes a lane; one that ended a live attempt
        from outside stops it."""
        for event in events:
            kind = event[3]
            if kind in _ARRIVING:
                self._one_more()
            elif kind == "task.running":
                self._started.add((event[6], event[7]))
            elif kind in LEAVING:
                key = (event[6], event[7])
                attempt = self.live.get(key)
                if attempt is None:
                    self._started.discard(key)
                elif attempt.ending:
                    continue  # its own word, after which its lane looks for work by itself
                else:
                    attempt.stop("canceled" if kind == "task.canceled" else "lease_lost")
                if kind in _FREEING:
                    self._one_more()

    def look_again(self) -> None:
        """Sessions joined ``only_sids``, whose tasks may have been waiting: all idle lanes look."""
        for _ in range(max(1, len(self._idle))):
            self._one_more()

    def interrupt(self) -> None:
        """The emergency stop of everything: what runs goes back to the queue, and waits there."""
        for attempt in tuple(self.live.values()):
            attempt.stop("emergency_stop")

    def _one_more(self) -> None:
        """One more task may be claimable: an idle lane looks, or the next that ends its look."""
        self._changes += 1
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def _ready(self, claim: _Claim) -> None:
        """Wait until something changed since the claim was made; after a failure not for ever."""
        if self._changes != claim.seen or self._stopping:
            return
        await self._news(limits.BUSY_MS_MAX / 1000 if claim.failed else None)

    async def _news(self, wait_s: float | None = None) -> None:
        """Wait until somebody says that there may be something to do."""
        future = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        try:
            async with asyncio.timeout(wait_s):
                await future
        except TimeoutError:
            return

    # -- lanes ---------------------------------------------------------------------------------

    async def _lane(self) -> None:
        while not self._stopping:
            if self._gates.halt.holds_all:
                await self._news()
                continue
            look = self._claim()
            claim: _Claim | None = look
            attempt = await self._take(look)
            while attempt is not None:
                claim, attempt = await self._run(attempt)
            if claim is not None:
                await self._ready(claim)

    def _claim(self) -> _Claim:
        token, version = self._clock.random_bytes(16), self._policy_version()
        now_mono = self._clock.mono_ms()
        arguments: dict[str, Any] = {
            "pool": "",
            "owner": self._owner,
            "token": token,
            "lease_until_mono": now_mono + self._queue.lease_ms,
            "now_mono": now_mono,
            "policy_version": version,
            "now": self._clock.wall_ms(),
        }
        reserved = self._only_sids is None and not self._has_room()
        if reserved:
            part = self._database.bind("claim_interactive", **arguments)
        elif self._only_sids is None:
            part = self._database.bind("claim", aging_factor=self._queue.aging_factor, **arguments)
        else:
            sids = orjson.dumps(list(self._only_sids)).decode()
            part = self._database.bind("claim_sessions", sids=sids, **arguments)
        self._claiming[token] = reserved
        return _Claim(token, reserved, self._changes, version, part)

    def _room_grew(self) -> None:
        """A lane that found nothing for a reserved one may take any task now."""
        if self._queue.reserved_lanes:
            self._one_more()

    def _has_room(self) -> bool:
        """True while one more task that is no prompt leaves the reserved lanes alone (Q-16)."""
        if not self._queue.reserved_lanes:
            return True
        others = sum(
            attempt.task.kind != "prompt" and not attempt.ending for attempt in self.live.values()
        )
        others += sum(not reserved for reserved in self._claiming.values())
        return others < self._queue.lanes - self._queue.reserved_lanes

    async def _take(self, claim: _Claim) -> LiveAttempt | None:
        """Claim; None when there is nothing to do, or no way to learn it."""
        asked = asyncio.get_running_loop().time()
        try:
            committed = await self._database.apply(claim.part, live=True)
        except GoclawError as error:
            self._claiming.pop(claim.token, None)
            claim.failed = True
            _log.error("claim failed", extra={"data": {"error": str(error)}})
            return None
        if committed.parts[0][0] is not None:
            CLAIM_S.add(asyncio.get_running_loop().time() - asked)
        return await self._taken(claim, committed.parts[0])

    async def _taken(self, claim: _Claim, found: tuple[Any, ...]) -> LiveAttempt | None:
        """The attempt that a committed claim stands for."""
        if found[0] is None:
            self._claiming.pop(claim.token, None)
            return None
        try:
            return await self._begun(claim, found)
        except Exception:  # a fault of ours: nobody else would ever take it for expired
            self._give_back(claim.token)
            raise

    async def _begun(self, claim: _Claim, found: tuple[Any, ...]) -> LiveAttempt | None:
        (
            tid, sid, session_id, task_id, run_id, kind, attempt, max_attempts, on_unknown, trace,
            _, payload, key, client, origin, failures, *served,
        ) = found  # fmt: skip
        self._fairness.note("", sid, served, in_order=not claim.reserved)
        try:
            session = await self._load_session(sid)
        except GoclawError as error:
            _log.error("claim given back", extra={"data": {"task": task_id, "error": str(error)}})
            claim.failed = True
            self._give_back(claim.token)
            return None
        if self._stopping or self._gates.halt.holds_all:
            self._give_back(claim.token)
            return None
        self._claiming.pop(claim.token, None)
        if (task_id, attempt) not in self._started:
            return None  # canceled or reclaimed before it began
        self._started.discard((task_id, attempt))
        self.claims += 1
        self._room_grew()  # a claim under way counted as no prompt
        task = Task(
            tid, sid, session_id, task_id, run_id, kind, attempt, max_attempts, on_unknown,
            trace or "", payload, key, client, origin, claim.policy_version, failures,
        )  # fmt: skip
        return LiveAttempt(
            self._database,
            self._clock,
            self._queue,
            task,
            session,
            claim.token,
            self._gates,
            self._subtasks,
            self._taints,
        )

    async def _run(self, attempt: LiveAttempt) -> tuple[_Claim | None, LiveAttempt | None]:
        """Run to the end; the claim that went with its last word, and what that found."""
        claim: _Claim | None = None

        def following() -> tuple[int, tuple[Any, ...]] | None:
            nonlocal claim
            if claim is not None:
                self._claiming.pop(claim.token, None)
            held = self._stopping or self._gates.halt.holds_all
            claim = None if held else self._claim()
            return None if claim is None else claim.part

        key = (attempt.task.task_id, attempt.task.attempt)
        self.live[key] = attempt
        try:
            found = await attempt.run(self._runner, following)
        except Exception:
            if claim is not None:
                self._give_back(claim.token)
            raise
        finally:
            del self.live[key]
            self._room_grew()
        if claim is None:
            return None, None
        if found is None:
            self._claiming.pop(claim.token, None)
            return None, None
        return claim, await self._taken(claim, found)

    def _give_back(self, token: bytes) -> None:
        """End a lease that nobody holds."""
        self._claiming.pop(token, None)
        self._handback.give(token)

    # -- leases --------------------------------------------------------------------------------

    async def _third_of_a_lease(self) -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.wait([never], timeout=self._queue.lease_ms / 3000)

    async def _heartbeats(self) -> None:
        while True:
            await self._third_of_a_lease()
            await asyncio.gather(*(attempt.heartbeat() for attempt in tuple(self.live.values())))

    async def _reclaims(self) -> None:
        """Leases that ran out: of external workers, and of lanes that lost their way."""
        while True:
            await self._third_of_a_lease()
            now_mono = self._clock.mono_ms()
            try:
                expired = await self._database.read(
                    "expired_leases", now_mono=now_mono, limit=limits.READ_ROWS_MAX
                )
                # A lane whose heartbeats come late (blocked loop, full disk) is alive.
                own = {attempt.token for attempt in self.live.values()} | self._claiming.keys()
                await asyncio.gather(
                    *(
                        self._reclaim(tid, token, now_mono)
                        for tid, token in expired
                        if token not in own
                    )
                )
            except GoclawError as error:
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

    # -- the end -------------------------------------------------------------------------------

    async def stop(self, drain_ms: int, hurry: asyncio.Event) -> None:
        """No new claims; wait for live attempts up to ``drain_ms``; hand back the rest (R-3)."""
        self._stopping = True
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        lanes = [lane for lane in self._lanes if not lane.done()]
        if self.live and drain_ms > 0:
            faultpoint("during_drain")
            await _settled(lanes, drain_ms, hurry)
        for attempt in tuple(self.live.values()):
            attempt.stop("shutdown")
        await _settled(lanes, limits.CLOSE_MS_MAX, asyncio.Event())
        for task in (*self._chores, *lanes):
            task.cancel()
        # What does not end now never will: its lease goes back over its head.
        stuck = {*self._claiming, *(attempt.token for attempt in self.live.values())}
        for token in stuck:
            _log.error("a lane did not end")
            self._give_back(token)
        await asyncio.gather(*self._chores, return_exceptions=True)
        if not stuck:  # on disk before the stop is over
            await self._handback.settled()


async def _settled(lanes: list[asyncio.Task[None]], wait_ms: int, hurry: asyncio.Event) -> None:
    """Wait until all lanes have ended, the time is up or somebody hurries."""
    if not lanes:
        return
    hurried = asyncio.ensure_future(hurry.wait())
    everyone = asyncio.ensure_future(asyncio.wait(lanes))
    try:
        await asyncio.wait(
            {hurried, everyone}, timeout=wait_ms / 1000, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        hurried.cancel()
        everyone.cancel()
