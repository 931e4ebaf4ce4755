"""The emergency stop: durable, read live before every effect, whatever policy is pinned (A-15).

Owns its two levels and who is told. Not in here: what an attempt does when it meets it (effects,
scheduler, pools).
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from goclaw.core import limits, log
from goclaw.core.clock import rfc3339
from goclaw.core.errors import PolicyDenied
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.store import Database

__all__ = ["REASON", "Halt", "Level", "Stopped"]

_log = log.logger("engine.halt")

REASON = "emergency_stop"
"""Why a task is SUSPENDED that met the stop."""


class Level(enum.StrEnum):
    """How much stands still."""

    EFFECTS = "effects"
    """Nothing is sent that is not pure; brains may think."""
    ALL = "all"
    """Nothing begins at all, and what was under way has been interrupted."""


class Stopped(NamedTuple):
    """Who stopped what, and since when."""

    level: Level
    at_ms: int
    by: str
    why: str
    decision_id: str
    """Of the decision that let it be stopped."""

    def to_json(self) -> dict[str, Any]:
        """As `status` shows it."""
        return {
            "level": str(self.level), "at": rfc3339(self.at_ms), "by": self.by, "why": self.why
        }  # fmt: skip


class Halt:
    """The emergency stop of a home. ``changed`` is called after each stop and resume."""

    def __init__(self, database: Database, clock: Clock, changed: Callable[[], None]) -> None:
        self._database, self._clock, self._changed = database, clock, changed
        self.now: Stopped | None = None
        """In force at this moment; None: nothing is stopped."""

    async def start(self) -> None:
        """Take up what an earlier life was told; wake what a cut resume left asleep."""
        found = await self._database.read("meta_get", key="stop")
        if found:
            told = orjson.loads(found[0][0])
            self.now = Stopped(Level(told.pop("level")), **told)
            _log.warning("the emergency stop is on", extra={"data": self.now.to_json()})
        else:
            await self.wake()

    # -- what others ask -----------------------------------------------------------------------

    @property
    def holds_all(self) -> bool:
        """Nothing may begin."""
        return self.now is not None and self.now.level is Level.ALL

    def holds(self, effect_class: EffectClass) -> bool:
        """May an effect of that class not be sent now?"""
        if self.now is None:
            return False
        return self.now.level is Level.ALL or effect_class is not EffectClass.PURE

    def check(self, effect_class: EffectClass) -> None:
        """PolicyDenied when an effect of that class may not be sent now."""
        if self.now is not None and self.holds(effect_class):
            raise PolicyDenied(
                f"The emergency stop is on ({self.now.level}) since {rfc3339(self.now.at_ms)}.",
                hint="`goclaw resume` ends it.",
                decisionId=self.now.decision_id,
                reason=REASON,
            )

    # -- the button ----------------------------------------------------------------------------

    async def stop(
        self, level: Level, *, by: str, why: str, sid: int, decision: Decision
    ) -> Stopped:
        """Stop now, and after every restart until ``resume``. A second one changes the level.

        It is in force before it is on disk: a disk that refuses must not keep anything going.
        """
        self.now = Stopped(level, self._clock.wall_ms(), by, why, decision.decision_id)
        _log.warning("emergency stop", extra={"data": self.now.to_json()})
        self._changed()
        now = self._clock.wall_ms()
        told = self.now._asdict()
        bind = self._database.bind
        await self._database.apply(
            bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            bind("stop_set", sid=sid, told=orjson.dumps(told).decode(), now=now),
            live=True,
        )  # fmt: skip
        return self.now

    async def resume(self, *, by: str, sid: int, decision: Decision) -> int:
        """End the stop, on disk first; how many tasks go on that had met it. Idempotent."""
        now = self._clock.wall_ms()
        bind = self._database.bind
        await self._database.apply(
            bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            bind("stop_clear", sid=sid, by=by, now=now),
            live=True,
        )  # fmt: skip
        self.now = None
        woken = await self.wake()
        self._changed()
        return woken

    async def wake(self) -> int:
        """Let tasks go on that met a stop which is over; how many."""
        count = 0
        while self.now is None:
            tids = await self._database.read(
                "tasks_stopped", reason=REASON, limit=limits.BATCH_OPERATIONS_MAX
            )
            if not tids:
                break
            await asyncio.gather(
                *(
                    self._database.write(
                        "wake", live=True, tid=tid, waits_for=REASON, reason="resumed",
                        now=self._clock.wall_ms(),
                    )
                    for (tid,) in tids
                )
            )  # fmt: skip
            count += len(tids)
        return count
