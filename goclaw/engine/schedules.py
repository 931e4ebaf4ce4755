"""What goes on by itself: backoffs and sleeps that are due, approvals that expire.

Owns the one timer. Not in here: who set the time (worker, approvals).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from goclaw.core import limits, log
from goclaw.core.errors import AlreadyResolved, GoclawError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.clock import Clock
    from goclaw.store import Database, Event

__all__ = ["Schedules"]

_log = log.logger("engine.schedules")
_SETTING = frozenset({"task.retry_wait", "task.suspended", "approval.opened"})
_CHECK_MS = 60_000  # wall-clock jumps move approvals: look again at least this often


class Schedules:
    """One timer over the two indexes of due times."""

    def __init__(
        self, database: Database, clock: Clock, expire: Callable[[str], Awaitable[object]]
    ) -> None:
        self._database, self._clock, self._expire = database, clock, expire
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at once, then whenever something is due."""
        self._task = asyncio.create_task(self._run(), name="schedules")

    def observe(self, events: list[Event]) -> None:
        """A commit may have set an earlier time."""
        if any(event[3] in _SETTING for event in events):
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
        """Wake all that is due; milliseconds until the next."""
        now_mono, now = self._clock.mono_ms(), self._clock.wall_ms()
        due = await self._database.read("due_tasks", now_mono=now_mono, limit=limits.READ_ROWS_MAX)
        expired = await self._database.read("approvals_due", now=now, limit=limits.READ_ROWS_MAX)
        if due or expired:
            await asyncio.gather(
                *(
                    self._database.write(
                        "wake", live=True, tid=tid, now_mono=now_mono, reason="due", now=now
                    )
                    for (tid,) in due
                ),
                *(self._close(approval_id) for (approval_id,) in expired),
            )
            return 0
        ((next_due,),) = await self._database.read("next_due")
        ((next_expiry,),) = await self._database.read("next_expiry")
        waits = [_CHECK_MS]
        if next_due is not None:
            waits.append(max(0, next_due - self._clock.mono_ms()))
        if next_expiry is not None:
            waits.append(max(0, next_expiry - self._clock.wall_ms()))
        return min(waits)

    async def _close(self, approval_id: str) -> None:
        try:
            await self._expire(approval_id)
        except AlreadyResolved:
            return  # somebody was quicker
