"""What a start finds: leases of a daemon that is gone, times of another boot (Q-6, Q-15).

Owns the order of recovery and its report. Not in here: what each lost attempt becomes (``reclaim``
in store/queries.sql).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goclaw.core import log
from goclaw.core.errors import LeaseLost

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.store import Database

__all__ = ["recover"]

_log = log.logger("engine.recovery")


async def recover(
    database: Database, clock: Clock, queue: QueueConfig, *, boot: str
) -> list[dict[str, Any]]:
    """Reclaim every lease of goclaw's own lanes; answers what became of each task.

    Leases of external workers live on until they expire, unless the machine was booted since.
    Idempotent: a second call finds nothing.
    """
    known = await database.read("meta_get", key="boot")
    rebooted = not known or known[0][0] != boot
    if rebooted:
        await database.write(
            "rebase_boot", boot=boot, now=clock.wall_ms(), now_mono=clock.mono_ms()
        )
    touched = []
    for tid, token, owner, _until, pool in await database.read("live_tasks"):
        if pool != "" and not rebooted:
            continue
        try:
            committed = await database.write(
                "reclaim", live=True, tid=tid, token=token, spent=1,
                crash_budget=queue.crash_budget, reason="daemon_restarted", now=clock.wall_ms(),
            )  # fmt: skip
        except LeaseLost:
            continue
        state, event_id, unknown = committed.parts[0]
        event = committed.events[-1]
        touched.append(
            {
                "taskId": event[6],
                "runId": event[5],
                "state": state,
                "unknownEffects": unknown,
                "eventId": event_id,
                "owner": owner,
            }
        )
        _log.info("reclaimed", extra={"data": touched[-1]})
    return touched
