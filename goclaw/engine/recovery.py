"""What a start finds: leases of a daemon that is gone, times of another boot, a database that is
older than what was done (Q-6, Q-15, E-8).

Owns the order of recovery and its report. Not in here: what each lost attempt becomes (``reclaim``
in store/queries.sql).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits, log

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.store import Database

    _Part = tuple[int, tuple[Any, ...]]

__all__ = ["Recovered", "recover"]

_log = log.logger("engine.recovery")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found, as in the event ``recovery.report``."""

    count: int = 0
    """Tasks whose attempt was lost."""
    states: dict[str, int] = field(default_factory=dict)
    """How many of them are in which state since."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Each by name, the first ``limits.EVENTS_PAGE_MAX``: ``taskId runId sessionId attempt state
    kept repeated unknown eventId owner``; kept, repeated and unknown count its effects."""
    event_id: int | None = None
    """Of the report; None when there was nothing to report."""


async def _take_up_fence(database: Database) -> tuple[dict[str, Any], list[_Part]]:
    """Open effects.log, and when it knows more than the database, fence what it knows (E-8).

    Answers what the recovery report says of it, {} when nothing is to be said, and the parts that
    commit with it: only then do numbers go on behind those that were found.
    """
    ((epoch, number),) = await database.read("fence_read")
    fence = database.fence
    found = await database.in_reader(lambda: fence.open(number))
    report: dict[str, Any] = {}
    begin: list[_Part] = []
    known = await database.read("meta_get", key="fence_lost")
    if found.begins > number + 1:
        report["notNoted"] = {"from": number + 1, "to": found.begins - 1}
    elif found.missing and known != [(str(found.begins),)]:
        report["missing"] = True
        begin.append(database.bind("meta_put", key="fence_lost", value=str(found.begins)))
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
    if report:
        _log.warning("the restore fence and the database differ", extra={"data": report})
    return report, begin


async def recover(
    database: Database, clock: Clock, queue: QueueConfig, *, boot: str, system_sid: int
) -> Recovered:
    """Reclaim every lease of goclaw's own lanes; answers what became of each task.

    Leases of external workers live on until they expire, unless the machine was booted since.
    Idempotent: a second call finds nothing.
    """
    fence, begin = await _take_up_fence(database)
    known = await database.read("meta_get", key="boot")
    rebooted = not known or known[0][0] != boot
    if rebooted:
        await database.write(
            "rebase_boot", boot=boot, now=clock.wall_ms(), now_mono=clock.mono_ms()
        )
    lost = [
        (tid, token)
        for tid, token, _owner, _until, pool in await database.read("live_tasks")
        if pool == "" or rebooted
    ]
    for start in range(0, len(lost), limits.BATCH_OPERATIONS_MAX):
        page = lost[start : start + limits.BATCH_OPERATIONS_MAX]
        now = clock.wall_ms()
        await asyncio.gather(
            *(
                database.write(
                    "reclaim", live=True, tid=tid, token=token, spent=1,
                    crash_budget=queue.crash_budget, reason="daemon_restarted", report=1, now=now,
                )
                for tid, token in page
            )
        )  # fmt: skip
    # Also what an earlier start reclaimed and did not live to report.
    report = database.bind(
        "recovery_report", sid=system_sid, most=limits.EVENTS_PAGE_MAX, now=clock.wall_ms(),
        fence=orjson.dumps(fence).decode() if fence else None,
    )  # fmt: skip
    committed = await database.apply(*begin, report)
    # Not before: a cut takes away what says that the log was missing.
    await database.in_reader(lambda: database.fence.trim(clock.wall_ms()))
    if not committed.events:
        return Recovered()
    event = committed.events[-1]
    fields = orjson.loads(event[9])
    for entry in fields["tasks"]:
        _log.info("reclaimed", extra={"data": entry})
    return Recovered(fields["count"], fields["states"], fields["tasks"], event[1])
