"""One attempt from claim to end: the lease, the runner, the word that ends it.

Owns the attempt's token and the mapping of outcomes to transitions. Not in here: which task is
next (scheduler), what an effect's crash means (effects).
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, LeaseLost, Nondeterminism, StorageFailed
from goclaw.core.faults import faultpoint
from goclaw.core.records import Failed, Outcome, Retryable, Succeeded, Suspended
from goclaw.engine.effects import Journal, Park
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Call, CallResult, Runner, Session, Task
    from goclaw.store import Database

__all__ = ["LiveAttempt"]

_log = log.logger("engine.worker")


class LiveAttempt:
    """A RUNNING task and its token. Implements ``core.records.Attempt`` for the runner."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        task: Task,
        session: Session,
        token: bytes,
    ) -> None:
        self.task, self.session, self.token = task, session, token
        self.cancelled = asyncio.Event()
        self.ended_by: str | None = None
        """Why the attempt was stopped from outside: canceled, lease_lost, shutdown."""
        self._database, self._clock, self._queue = database, clock, queue
        self._journal: Journal | None = None
        self._running: asyncio.Task[Outcome] | None = None

    # -- for the runner ------------------------------------------------------------------------

    async def emit(self, update: dict[str, Any]) -> int:
        """See Attempt."""
        committed = await self._database.write(
            "append", live=True, tid=self.task.tid, token=self.token, kind=0, type="update",
            payload=orjson.dumps(update), now=self._clock.wall_ms(),
        )  # fmt: skip
        event_id: int = committed.parts[0][0]
        return event_id

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[dict[str, Any]]],
        *,
        decision: Decision | None = None,
    ) -> dict[str, Any]:
        """See Attempt."""

        async def stream(update: dict[str, Any]) -> None:
            await self.emit(update)

        journal = await self._opened()
        return await journal.think(name, request, lambda: answer(stream), decision=decision)

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """See Attempt."""
        return await (await self._opened()).perform(calls)

    async def sleep(self, wait_ms: int) -> None:
        """See Attempt."""
        await (await self._opened()).sleep(wait_ms)

    async def wait_signal(self, name: str) -> bytes:
        """See Attempt."""
        return await (await self._opened()).wait_signal(name)

    async def _opened(self) -> Journal:
        """The journal; a first attempt has nothing to read."""
        if self._journal is None:
            effects, approvals, signals = [], [], []
            if self.task.attempt > 1:
                tid = self.task.tid
                effects = rows(
                    "effects_of_task", await self._database.read("effects_of_task", tid=tid)
                )
                approvals = rows(
                    "approvals_of_task", await self._database.read("approvals_of_task", tid=tid)
                )
                signals = await self._database.read("signals_of_task", tid=tid)
            self._journal = Journal(
                self._database, self._clock, self.task, self.token, self.cancelled,
                effects=effects, approvals=approvals, signals=dict(signals),
            )  # fmt: skip
        return self._journal

    # -- for the scheduler ---------------------------------------------------------------------

    async def run(self, runner: Runner) -> None:
        """Run to the end, which is on disk when this returns (or the lease is lost)."""
        with log.bound(
            trace=self.task.trace, session=self.task.session_id, run=self.task.run_id,
            task=self.task.task_id, attempt=self.task.attempt,
        ):  # fmt: skip
            faultpoint("after_claim")
            self._running = asyncio.ensure_future(self._outcome(runner))
            try:
                outcome = await self._running
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if self.ended_by is None and current is not None and current.cancelling():
                    raise
                await self.hand_back()
                return
            try:
                await self._end(outcome)
            except LeaseLost:
                _log.info("lease lost", extra={"data": {"ended_by": self.ended_by}})

    def stop(self, why: str) -> None:
        """End the attempt from outside: its dispatches are interrupted, its words count no more."""
        if self.ended_by is None:
            self.ended_by = why
            self.cancelled.set()
            if self._running is not None:
                self._running.cancel()

    async def heartbeat(self) -> None:
        """Prolong the lease, counted from now."""
        until = self._clock.mono_ms() + self._queue.lease_ms
        try:
            await self._database.write(
                "heartbeat", live=True, tid=self.task.tid, token=self.token, lease_until_mono=until
            )
        except LeaseLost:
            self.stop("lease_lost")
        except StorageFailed as error:
            _log.error("heartbeat failed", extra={"data": {"error": str(error)}})

    async def _outcome(self, runner: Runner) -> Outcome:
        try:
            return await runner.run_attempt(self)
        except Park as park:
            return await self._park(park)
        except Retryable as error:
            return Failed(
                error.code, error.message, retryable=True, retry_after_ms=error.retry_after_ms,
                fingerprint=error.fingerprint or error.code,
            )  # fmt: skip
        except LeaseLost:
            raise
        except Nondeterminism as error:
            _log.error(error.message, extra={"data": error.data})
            return await self._park(Park("nondeterminism"))
        except StorageFailed as error:
            return Failed(error.code, error.message, retryable=True, fingerprint=error.code)
        except GoclawError as error:
            return Failed(error.code, error.message)
        except Exception as error:  # the edge of a brain's code: a fault there fails its attempt
            _log.exception("the brain raised")
            name = type(error).__name__
            return Failed("brain_fault", f"{name}: {error}", retryable=True, fingerprint=name)

    async def _park(self, park: Park) -> Suspended:
        now, mono = self._clock.wall_ms(), self._clock.mono_ms()
        due = park.due_ms
        suspend = self._database.bind(
            "suspend", tid=self.task.tid, token=self.token, now=now, reason=park.reason,
            hash=_digest("suspend", park.reason),
            due_mono=None if due is None else mono + due, due_at=None if due is None else now + due,
        )  # fmt: skip
        await self._database.apply(*park.parts, suspend, live=True)
        return Suspended(park.reason)

    async def _end(self, outcome: Outcome) -> None:
        common = {"tid": self.task.tid, "token": self.token, "now": self._clock.wall_ms()}
        faultpoint("before_complete")
        match outcome:
            case Succeeded(stop_reason, result):
                await self._database.write(
                    "complete", live=True, **common, stop_reason=stop_reason, result=result,
                    hash=_digest("complete", stop_reason, result),
                )  # fmt: skip
            case Failed():
                await self._fail(outcome, common)
            case Suspended():
                return
        faultpoint("after_complete")

    async def _fail(self, outcome: Failed, common: dict[str, Any]) -> None:
        wait_ms = self._backoff_ms(outcome.retry_after_ms)
        await self._database.write(
            "fail", live=True, **common, code=outcome.code, message=outcome.message,
            retryable=int(outcome.retryable), fingerprint=outcome.fingerprint,
            poison=self._queue.poison, due_mono=self._clock.mono_ms() + wait_ms,
            due_at=common["now"] + wait_ms,
            hash=_digest("fail", outcome.code, outcome.message, str(outcome.retryable)),
        )  # fmt: skip

    def _backoff_ms(self, retry_after_ms: int | None) -> int:
        """Exponential with full jitter; the far side's own word counts, within the cap (Q-7)."""
        queue = self._queue
        if retry_after_ms is not None:
            return min(retry_after_ms, queue.backoff_ms_max)
        ceiling = min(queue.backoff_ms_max, queue.backoff_ms_min << min(self.task.attempt - 1, 32))
        return max(1, int(ceiling * self._clock.random()))

    async def hand_back(self) -> None:
        """A stop from outside: a shutdown gives the task back, all else has ended it already."""
        if self.ended_by not in (None, "shutdown"):
            return
        try:
            await self._database.write(
                "reclaim", live=True, tid=self.task.tid, token=self.token, spent=0,
                crash_budget=limits.CRASH_BUDGET, reason="handed_back", now=self._clock.wall_ms(),
            )  # fmt: skip
        except LeaseLost:
            _log.info("handed back too late")


def _digest(*parts: str | bytes) -> bytes:
    return hashlib.sha256(
        b"\0".join(part.encode() if isinstance(part, str) else part for part in parts)
    ).digest()
