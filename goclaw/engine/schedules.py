"""What goes on by itself: backoffs, sleeps, delayed and recurring tasks, time-outs, deadlines,
gates that open, approvals that expire.

Owns the one timer. Not in here: who set the time (worker, intake, approvals), what a gate is
(gates).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from goclaw.core import limits, log
from goclaw.core.clock import traceparent
from goclaw.core.errors import AlreadyResolved, GoclawError, LeaseLost, QueueFull
from goclaw.core.metrics import SERVICE_FAULTS
from goclaw.core.records import Failed
from goclaw.core.services import keep_running
from goclaw.core.states import TERMINAL
from goclaw.engine.budgets import backoff_ms, failed
from goclaw.engine.recurrence import Recurrence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.engine.gates import Gates
    from goclaw.engine.intake import Intake
    from goclaw.store import Database, Event

__all__ = ["Schedules"]

_log = log.logger("engine.schedules")
_One: TypeAlias = "tuple[str, int | str]"
"""What is done to a task, or to an approval."""
_TIMED: Final = frozenset({"task.queued", "task.requeued"})
_SETTING: Final = frozenset({"task.retry_wait", "task.suspended", "approval.opened"})
_ENDS: Final = frozenset(f"task.{state.lower()}" for state in TERMINAL)
_CHECK_MS: Final = 60_000  # wall-clock jumps move approvals: look again at least this often
_TIMED_OUT: Final = Failed(
    "attempt_timeout", "The attempt took longer than its time-out.", retryable=True,
    fingerprint="attempt_timeout",
)  # fmt: skip


class Schedules:
    """One timer over the indexes of due times."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        gates: Gates,
        intake: Intake,
        expire: Callable[[str], Awaitable[object]],
    ) -> None:
        self._database, self._clock, self._queue = database, clock, queue
        self._gates, self._intake, self._expire = gates, intake, expire
        self._changed = asyncio.Event()
        self._aside: dict[_One, int] = {}
        """What could not be moved, and from when on it may be tried again."""
        self._full: set[_One] = set()
        """Of these, what waits for room."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at once, then whenever something is due."""
        self._task = keep_running("schedules", self._run)

    def observe(self, events: list[Event]) -> None:
        """A commit may have set an earlier time."""
        gated = not self._gates.open_for_all
        if self._full and any(event[3] in _ENDS for event in events):
            for one in self._full:
                self._aside.pop(one, None)
            self._full.clear()
            self._changed.set()
        for event in events:
            kind = event[3]
            if (
                kind in _SETTING
                or (kind in _TIMED and (b'"dueAt"' in event[9] or b'"deadlineAt"' in event[9]))
                or (kind == "task.running" and b'"timeoutMs"' in event[9])
                or (gated and kind.startswith("task."))
            ):
                self._changed.set()
                return

    def look_again(self) -> None:
        """Something is due earlier than this timer knows."""
        self._changed.set()

    async def stop(self) -> None:
        """End the timer; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                wait_ms = await self._turn()
            except GoclawError as error:
                _log.error("timer failed", extra={"data": {"error": str(error)}})
                wait_ms = limits.BUSY_MS_MAX
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _turn(self) -> int:
        """Do all that is due; milliseconds until the next."""
        now_mono, now = self._clock.mono_ms(), self._clock.wall_ms()
        self._database.fence.tend(now)
        moves = await self._due(now_mono, now)
        self._aside = {one: until for one, until in self._aside.items() if one in moves}
        self._full &= self._aside.keys()
        ready = {one: move for one, move in moves.items() if self._aside.get(one, 0) <= now_mono}
        if ready:
            ended = await asyncio.gather(
                *(move() for move in ready.values()), return_exceptions=True
            )
            for one, error in zip(ready, ended, strict=True):
                if isinstance(error, BaseException):
                    self._put_aside(one, error, now_mono)
                else:
                    self._aside.pop(one, None)
            return 0
        waits = [_CHECK_MS, *(until - now_mono for until in self._aside.values())]
        for query, since, clock in (
            ("next_due", now_mono, self._clock.mono_ms),
            ("next_timeout", now_mono, self._clock.mono_ms),
            ("next_held", now, self._clock.wall_ms),
            ("next_deadline", now, self._clock.wall_ms),
            ("next_expiry", now, self._clock.wall_ms),
        ):
            ((following,),) = await self._database.read(query, now=since)
            if following is not None:
                waits.append(max(0, following - clock()))
        gate_ms = await self._gates.look()
        return min(waits) if gate_ms is None else min(gate_ms, *waits)

    async def _due(self, now_mono: int, now: int) -> dict[_One, Callable[[], Awaitable[object]]]:
        """What is due, and how it is moved."""
        read, write = self._database.read, self._database.write
        most = limits.READ_ROWS_MAX + len(self._aside)  # those keep nobody else from being seen
        due = await read("due_tasks", now_mono=now_mono, limit=most)
        held = await read("held_due", now=now, limit=most)
        late = await read("timeouts_due", now_mono=now_mono, limit=most)
        over = await read("deadlines_due", now=now, limit=most)
        expired = await read("approvals_due", now=now, limit=most)
        wake = partial(write, "wake", live=True, now_mono=now_mono, reason="due", now=now)
        expire = partial(write, "expire", live=True, now=now)
        return {
            **{("wake", tid): partial(wake, tid=tid) for (tid,) in due},
            **{("release", row[0]): partial(self._release, row, now) for row in held},
            **{("time out", row[0]): partial(self._time_out, row) for row in late},
            **{("expire", tid): partial(expire, tid=tid) for (tid,) in over},
            **{("close", name): partial(self._close, name) for (name,) in expired},
        }

    def _put_aside(self, one: _One, error: BaseException, now_mono: int) -> None:
        """It could not be moved: all others are, and it is tried again."""
        known, full = one in self._aside, isinstance(error, QueueFull)
        self._aside[one] = now_mono + (_CHECK_MS if full else limits.BUSY_MS_MAX)
        if full:
            self._full.add(one)
        if known:
            return
        if not isinstance(error, GoclawError):
            SERVICE_FAULTS["schedules"] += 1
        what = {"what": one[0], "of": one[1], "error": f"{type(error).__name__}: {error}"}
        (_log.info if full else _log.error)(
            "not moved", exc_info=None if full else error, extra={"data": what}
        )

    async def _release(self, row: tuple[Any, ...], now: int) -> None:
        """A delayed task takes its place in line; a recurring one leaves its successor behind.
        QueueFull: it waits until there is room, or an earlier one has ended (Q-10)."""
        tid, due_at, cron, zone, misfire = row
        bind = self._database.bind
        if cron is None:
            await self._database.write("release", live=True, tid=tid, now=now)
            return
        recurrence = Recurrence(cron, zone, misfire)
        missed = now - due_at > limits.MISFIRE_GRACE_MS
        following = recurrence.after(due_at if misfire == "all" else now)
        if missed and misfire == "skip":
            await self._database.write("postpone", live=True, tid=tid, due_at=following, now=now)
            return
        suffix = self._clock.new_id("task").removeprefix("task_")
        recur = bind(
            "recur", last_tid=tid, task_id=f"task_{suffix}", run_id=f"run_{suffix}",
            trace=traceparent(self._clock), due_at=following, now=now,
            session_limit=0 if self._intake.is_full else self._queue.session_limit,
        )  # fmt: skip
        with self._intake.counted():
            await self._database.apply(bind("release", tid=tid, now=now), recur, live=True)

    async def _time_out(self, row: tuple[Any, ...]) -> None:
        tid, token, failures = row
        part = failed(
            self._database, self._clock, self._queue, _TIMED_OUT,
            tid=tid, token=token, wait_ms=backoff_ms(self._queue, self._clock, failures),
        )  # fmt: skip
        try:
            await self._database.apply(part, live=True)
        except LeaseLost:
            return  # it ended meanwhile

    async def _close(self, approval_id: str) -> None:
        try:
            await self._expire(approval_id)
        except AlreadyResolved:
            return  # somebody was quicker
