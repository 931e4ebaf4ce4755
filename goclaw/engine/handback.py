"""Leases that nobody holds, on their way back to the queue.

Owns that each of them gets there: left where it is, a lease runs out and costs its task a crash.
Not in here: which leases those are (``scheduler.py``, ``pools.py``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, LeaseLost

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.store import Committed, Database

__all__ = ["Handback"]

_log = log.logger("engine.handback")


class Handback:
    """Ends leases without spending a budget, and tries until it is on disk. On the loop."""

    def __init__(self, database: Database, clock: Clock, queue: QueueConfig) -> None:
        self._database, self._clock, self._queue = database, clock, queue
        self._giving: set[asyncio.Task[None]] = set()

    def give(self, token: bytes) -> None:
        """End that lease. The writer's order puts it behind the claim that made it; one that has
        ended by itself stays as it is."""
        giving = asyncio.ensure_future(self._given(token, self._written(token)))
        self._giving.add(giving)
        giving.add_done_callback(self._giving.discard)

    async def settled(self) -> None:
        """Wait until all are on disk, for at most ``limits.CLOSE_MS_MAX``; then stop trying."""
        if self._giving:
            _, left = await asyncio.wait(set(self._giving), timeout=limits.CLOSE_MS_MAX / 1000)
            for giving in left:
                giving.cancel()

    async def _given(self, token: bytes, written: asyncio.Future[Committed]) -> None:
        while True:
            try:
                await written
            except LeaseLost:
                return
            except GoclawError as error:
                _log.error("lease not given back", extra={"data": {"error": str(error)}})
            else:
                return
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await asyncio.wait([never], timeout=limits.STOP_RETRY_MS / 1000)
            written = self._written(token)

    def _written(self, token: bytes) -> asyncio.Future[Committed]:
        return self._database.write(
            "reclaim", live=True, token=token, spent=0, crash_budget=self._queue.crash_budget,
            reason="handed_back", now=self._clock.wall_ms(),
        )  # fmt: skip
