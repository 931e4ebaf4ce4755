"""What a start finds: leases of a daemon that is gone, times of another boot, a database that is
older than what was done (Q-6, Q-15, E-8).

Owns the order of recovery and its report. Not in here: what each lost attempt becomes (``reclaim``
in store/queries.sql).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits, log

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.store import Committed, Database

    _Part = tuple[int, tuple[Any, ...]]

__all__ = ["recover"]

_log = log.logger("engine.recovery")


async def _take_up_fence(database: Database, clock: Clock) -> tuple[dict[str, Any], list[_Part]]:
    """Open effects.log, and when it knows more than the database, fence what it knows (E-8).

    Answers what the recovery report says of it, {} when nothing is to be said, and the parts that
    commit with it: only then do numbers go on behind those that were found.
    """
    ((epoch, number),) = await database.read("fence_read")
    fence = database.fence
    found = await database.in_reader(lambda: fence.open(number))
    report: dict[str, Any] = {}
    begin: list[_Part] = []
    if found.missing:
        report["missing"] = True
    elif found.begins > number + 1:
        report["notNoted"] = {"from": number + 1, "to": found.begins - 1}
    if found.number > number:
        epoch = max(epoch, found.epoch) + 1
        count = 0
        pages = fence.beyond(number)
        while page := await database.in_reader(lambda: next(pages, None)):
            parts = [database.bind("fence_add", key=note.key, hash=note.hash) for note in page]
            await database.apply(*parts)
            count += len(page)
        begin.append(database.bind("fence_begin", epoch=epoch, number=found.number))
        report |= {"epoch": epoch, "fenced": count}
    await database.in_reader(lambda: fence.trim(clock.wall_ms()))
    if report:
        _log.warning("the restore fence and the database differ", extra={"data": report})
    return report, begin


async def recover(
    database: Database, clock: Clock, queue: QueueConfig, *, boot: str, system_sid: int
) -> list[dict[str, Any]]:
    """Reclaim every lease of goclaw's own lanes; answers what became of each task.

    Leases of external workers live on until they expire, unless the machine was booted since.
    Idempotent: a second call finds nothing.
    """
    fence, begin = await _take_up_fence(database, clock)
    known = await database.read("meta_get", key="boot")
    rebooted = not known or known[0][0] != boot
    if rebooted:
        await database.write(
            "rebase_boot", boot=boot, now=clock.wall_ms(), now_mono=clock.mono_ms()
        )
    lost = [
        (tid, token, owner)
        for tid, token, owner, _until, pool in await database.read("live_tasks")
        if pool == "" or rebooted
    ]
    touched = []
    for start in range(0, len(lost), limits.BATCH_OPERATIONS_MAX):
        page = lost[start : start + limits.BATCH_OPERATIONS_MAX]
        now = clock.wall_ms()
        answers = await asyncio.gather(
            *(
                database.write(
                    "reclaim", live=True, tid=tid, token=token, spent=1,
                    crash_budget=queue.crash_budget, reason="daemon_restarted", report=1, now=now,
                )
                for tid, token, _ in page
            )
        )  # fmt: skip
        for (_, _, owner), committed in zip(page, answers, strict=True):
            touched.append(_entry(owner, committed))
            _log.info("reclaimed", extra={"data": touched[-1]})
    # Also what an earlier start reclaimed and did not live to report.
    report = database.bind(
        "recovery_report", sid=system_sid, most=limits.EVENTS_PAGE_MAX, now=clock.wall_ms(),
        fence=orjson.dumps(fence).decode() if fence else None,
    )  # fmt: skip
    await database.apply(*begin, report)
    return touched


def _entry(owner: str, committed: Committed) -> dict[str, Any]:
    """What became of one task: kept and repeated are counts of its effects."""
    state, event_id, unknown, kept, again = committed.parts[0]
    _, _, _, _, _, run_id, task_id, attempt, _, _ = committed.events[-1]
    return {
        "taskId": task_id,
        "runId": run_id,
        "attempt": attempt,
        "state": state,
        "kept": kept,
        "repeated": again,
        "unknown": unknown,
        "eventId": event_id,
        "owner": owner,
    }
