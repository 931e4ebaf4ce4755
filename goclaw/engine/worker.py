"""One attempt from claim to end: the lease, the runner, the word that ends it.

Owns the attempt's token and the mapping of outcomes to transitions. Not in here: which task is
next (scheduler), what an effect's crash means (effects).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import (
    GoclawError,
    IllegalTransition,
    LeaseLost,
    Nondeterminism,
    QueueFull,
    StorageFailed,
)
from goclaw.core.faults import faultpoint
from goclaw.core.records import Failed, Outcome, Retryable, Succeeded, Suspended
from goclaw.engine.budgets import backoff_ms, failed
from goclaw.engine.effects import Journal, Park
from goclaw.engine.halt import REASON
from goclaw.engine.late import Late
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Call, CallResult, Cleaner, Runner, Session, Stream, Task
    from goclaw.engine.gates import Gates
    from goclaw.engine.subtasks import Subtasks
    from goclaw.engine.taints import Taints
    from goclaw.store import Database

    _Part = tuple[int, tuple[Any, ...]]

__all__ = ["LiveAttempt"]

_log = log.logger("engine.worker")

_GIVEN_BACK: Final = {"shutdown": "handed_back", "emergency_stop": "emergency_stop"}
"""What stops an attempt without ending its task, and the reason in the task's event."""


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
        gates: Gates,
        subtasks: Subtasks,
        taints: Taints,
    ) -> None:
        self.task, self.session, self.token = task, session, token
        self._gates, self._subtasks, self._taints = gates, subtasks, taints
        self.cancelled = asyncio.Event()
        self.ended_by: str | None = None
        """Why the attempt was stopped from outside: canceled, lease_lost, shutdown,
        emergency_stop."""
        self.ending = False
        """Its last word is on its way: what commits from here on may be that."""
        self._database, self._clock, self._queue = database, clock, queue
        self._journal: Journal | None = None
        self._running: asyncio.Task[Outcome] | None = None

    # -- for the runner ------------------------------------------------------------------------

    @property
    def cleaner(self) -> Cleaner | None:
        """See Attempt."""
        return self._database.cleaner

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[Stream], Awaitable[dict[str, Any]]],
        *,
        decisions: Sequence[Decision] = (),
    ) -> dict[str, Any]:
        """See Attempt."""
        found = await (await self._opened()).think(name, request, answer, decisions=decisions)
        await self.look_at_taint()
        return found

    async def look_at_taint(self) -> None:
        """See Attempt."""
        taint = await self._taints.of(self.task.sid)
        if taint != self.session.taint:
            self.session = replace(self.session, taint=taint)

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """See Attempt."""
        return await (await self._opened()).perform(calls)

    async def emit(
        self, updates: Sequence[dict[str, Any]], decisions: Sequence[Decision] = ()
    ) -> None:
        """See Attempt."""
        await (await self._opened()).emit(updates, decisions)

    async def ask(
        self, digest: bytes, request: dict[str, Any], decisions: Sequence[Decision] = ()
    ) -> str | None:
        """See Attempt."""
        return (await self._opened()).asked(digest, request, decisions)

    async def sleep(self, wait_ms: int) -> None:
        """See Attempt."""
        await (await self._opened()).sleep(wait_ms)

    async def wait_signal(self, name: str) -> bytes:
        """See Attempt."""
        return await (await self._opened()).wait_signal(name)

    async def _opened(self) -> Journal:
        """The journal; a first attempt has nothing to read."""
        if self._journal is None:
            effects, approvals = [], []
            if self.task.attempt > 1:
                tid = self.task.tid
                effects = rows(
                    "effects_of_task", await self._database.read("effects_of_task", tid=tid)
                )
                approvals = rows(
                    "approvals_of_task", await self._database.read("approvals_of_task", tid=tid)
                )
            self._journal = Journal(
                self._database, self._clock, self.task, self.token, self.cancelled,
                gates=self._gates, subtasks=self._subtasks, taints=self._taints, effects=effects,
                approvals=approvals,
            )  # fmt: skip
        return self._journal

    # -- for the scheduler ---------------------------------------------------------------------

    async def run(
        self, runner: Runner, following: Callable[[], _Part | None]
    ) -> tuple[Any, ...] | None:
        """Run to the end, which is on disk when this returns (or the lease is lost, or runs out).

        ``following`` may name a part that commits with the last word: the lane's next claim. It is
        asked again for each try. Answers what that part returned, None when it did not commit.
        """
        with log.bound(
            trace=self.task.trace, session=self.task.session_id, run=self.task.run_id,
            task=self.task.task_id, attempt=self.task.attempt,
        ):  # fmt: skip
            try:
                faultpoint("after_claim")
                outcome = await self._ran(runner)
                if outcome is None or isinstance(outcome, Suspended):
                    return None
                return await self._end(outcome, following)
            except LeaseLost:
                _log.info("lease lost", extra={"data": {"ended_by": self.ended_by}})
            except (GoclawError, OSError) as error:
                # The lease runs out and the task is reclaimed.
                _log.error("attempt not ended", extra={"data": {"error": str(error)}})
            return None

    async def _ran(self, runner: Runner) -> Outcome | None:
        """What the runner came to; None when it was stopped and has nothing more to say."""
        self._running = asyncio.ensure_future(self._outcome(runner))
        current = asyncio.current_task()
        try:
            outcome: Outcome | None = await self._running
        except asyncio.CancelledError:
            outcome = None
        if current is not None and current.cancelling():
            # The lane itself, whatever the brain made of it: who cancels it sees to its lease.
            raise asyncio.CancelledError
        if outcome is None and self.ended_by is None:
            return _fault(asyncio.CancelledError("nobody had cancelled it"))
        if outcome is None or (self.ended_by in _GIVEN_BACK and isinstance(outcome, Failed)):
            await self._hand_back()  # what a stop broke is no failure
            return None
        return outcome

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
        except GoclawError as error:
            _log.error("heartbeat failed", extra={"data": {"error": str(error)}})

    async def _outcome(self, runner: Runner) -> Outcome:
        try:
            return await runner.run_attempt(self)
        except Park as park:
            return await self._park(park)
        except Retryable as error:
            return Failed(
                error.code, error.message, retryable=True, retry_after_ms=error.retry_after_ms,
                fingerprint=error.fingerprint or error.code, work=error.work,
            )  # fmt: skip
        except LeaseLost:
            raise
        except Nondeterminism as error:
            _log.error(error.message, extra={"data": error.data})
            return await self._park(Park("nondeterminism", detail=error.data))
        except (StorageFailed, QueueFull, IllegalTransition) as error:
            # The last: an operator settled the effect meanwhile. The next attempt reads it anew.
            return Failed(error.code, str(error), retryable=True, fingerprint=error.code)
        except GoclawError as error:
            return Failed(error.code, str(error))
        except Exception as error:  # the edge of a brain's code: a fault there fails its attempt
            _log.exception("the brain raised")
            return _fault(error)

    async def _park(self, park: Park) -> Suspended:
        self.ending = True
        now, mono = self._clock.wall_ms(), self._clock.mono_ms()
        due = park.due_ms
        suspend = self._database.bind(
            "suspend", tid=self.task.tid, token=self.token, now=now, reason=park.reason,
            hash=_digest(f"suspend\0{park.reason}"),
            detail=None if park.detail is None else orjson.dumps(park.detail).decode(),
            due_mono=None if due is None else mono + due, due_at=None if due is None else now + due,
        )  # fmt: skip
        while True:
            try:
                await self._database.apply(*park.parts, suspend, live=True)
            except (StorageFailed, QueueFull) as error:
                if not await self._may_try_again(error):
                    raise
            else:
                if park.reason == REASON and self._gates.halt.now is None:
                    await self._gates.halt.wake()  # it ended while this was on its way
                return Suspended(park.reason)

    async def _end(
        self, outcome: Succeeded | Failed, following: Callable[[], _Part | None]
    ) -> tuple[Any, ...] | None:
        """Put the end on disk; while the disk refuses, again, as long as the lease is ours."""
        self.ending = True
        faultpoint("before_complete")
        word = self._completed(outcome) if isinstance(outcome, Succeeded) else self._failed(outcome)
        while True:
            claim = following()
            parts = (word,) if claim is None else (word, claim)
            try:
                committed = await self._database.apply(*parts, live=True)
            except LeaseLost:
                if isinstance(outcome, Succeeded):
                    late = Late(self._database, self._clock, self.task.tid, self.token)
                    late.end(outcome.stop_reason, outcome.result)
                raise
            except IllegalTransition as error:
                if claim is None:
                    raise
                _log.error("claim refused", extra={"data": {"error": str(error)}})
                following = _nothing
            except (StorageFailed, QueueFull) as error:
                if not await self._may_try_again(error):
                    return None
            else:
                faultpoint("after_complete")
                return None if claim is None else committed.parts[1]

    async def _may_try_again(self, error: GoclawError) -> bool:
        """The attempt's last word was refused: wait, and say whether it is still worth saying.

        Left unsaid, it would count as a crash; so a stop waits for it, as long as it waits at all.
        """
        _log.error("end not on disk", extra={"data": {"error": str(error)}})
        if self.ended_by is None and not await self._stopped_within(limits.BUSY_MS_MAX):
            return True
        if self.ended_by not in _GIVEN_BACK:
            return False
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.wait([never], timeout=limits.STOP_RETRY_MS / 1000)
        return True

    async def _stopped_within(self, wait_ms: int) -> bool:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self.cancelled.wait()
        except TimeoutError:
            return False
        return True

    def _completed(self, outcome: Succeeded) -> _Part:
        if len(outcome.result) > limits.RESULT_BYTES_MAX:
            return self._failed(
                Failed("too_large", f"The result has over {limits.RESULT_BYTES_MAX} bytes.")
            )
        return self._database.bind(
            "complete", tid=self.task.tid, token=self.token, now=self._clock.wall_ms(),
            stop_reason=outcome.stop_reason, result=outcome.result,
            hash=_digest(f"complete\0{outcome.stop_reason}", outcome.result),
        )  # fmt: skip

    def _failed(self, outcome: Failed) -> _Part:
        wait_ms = backoff_ms(self._queue, self._clock, self.task.failures, outcome.retry_after_ms)
        return failed(
            self._database, self._clock, self._queue, outcome,
            tid=self.task.tid, token=self.token, wait_ms=wait_ms,
        )  # fmt: skip

    async def _hand_back(self) -> None:
        """A shutdown and an emergency stop give the task back; all else that stops an attempt has
        ended it already."""
        if self.ended_by not in _GIVEN_BACK:
            return
        self.ending = True
        back = self._database.bind(
            "reclaim", tid=self.task.tid, token=self.token, spent=0,
            crash_budget=self._queue.crash_budget, reason=_GIVEN_BACK[self.ended_by],
            now=self._clock.wall_ms(),
        )  # fmt: skip
        while True:
            try:
                await self._database.apply(back, live=True)
            except LeaseLost:
                _log.info("handed back too late")
            except (StorageFailed, QueueFull) as error:
                if await self._may_try_again(error):
                    continue
            return


def _nothing() -> None:
    """No claim goes with the last word."""


def _fault(error: BaseException) -> Failed:
    """A fault in a brain's code, or in ours: worth another attempt."""
    name = type(error).__name__
    return Failed("brain_fault", f"{name}: {error}", retryable=True, fingerprint=name)


def _digest(text: str, data: bytes = b"") -> bytes:
    return hashlib.sha256(text.encode() + b"\0" + data).digest()
