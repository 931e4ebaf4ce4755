"""Tasks that were given up: listed, put back into the queue, dropped (Q-7).

Owns what stands in the way of each, and the pages of those with one fingerprint. Not in here: what
a redrive resets (``redrive`` in store/queries.sql), who may say so (gateway).
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.errors import GoclawError, IllegalTransition, QueueFull, UnknownId
from goclaw.core.records import Moved
from goclaw.core.states import State
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.decisions import Decision
    from goclaw.engine.intake import Intake
    from goclaw.store import Database

__all__ = ["DeadLetters", "Verb"]


class Verb(enum.StrEnum):
    """What becomes of a task that was given up."""

    REDRIVE = "redrive"
    """It is QUEUED at the tail of its line, with whole budgets; its attempts count on."""
    DROP = "drop"
    """It stays what it is, with its history, and is listed no more."""


_FROM: Final = {
    Verb.REDRIVE: frozenset({State.FAILED, State.DEAD_LETTER}),
    Verb.DROP: frozenset({State.DEAD_LETTER}),
}


class DeadLetters:
    """The dead letters of this home."""

    def __init__(
        self, database: Database, clock: Clock, queue: QueueConfig, intake: Intake
    ) -> None:
        self._database, self._clock, self._queue = database, clock, queue
        self._intake = intake

    async def listed(
        self, *, fingerprint: str | None, before: int | None, limit: int
    ) -> list[dict[str, Any]]:
        """Newest first, with all columns; ``before`` is the tid of the last one of a page."""
        found = await self._database.read(
            "dead_letters", before=before or (1 << 62), fingerprint=fingerprint, limit=limit
        )
        return rows("dead_letters", found)

    async def move(
        self,
        verb: Verb,
        task_id: str,
        *,
        decide: Callable[[str], Decision],
        dry_run: bool = False,
    ) -> Moved:
        """Redrive or drop one task; FAILED ones may be redriven, too.

        UnknownId; IllegalTransition from any other state; QueueFull. ``decide`` raises PolicyDenied
        or answers with the decision, whose record commits with the change.
        """
        row = await self._row(task_id)
        decision = decide(task_id)
        error = self._hindrance(verb, row, Counter(), set())
        if error is not None:
            raise error
        if dry_run:
            return Moved((task_id,), ())
        return Moved((task_id,), (), event_id=await self._moved(verb, row, decision))

    async def move_all(
        self,
        verb: Verb,
        fingerprint: str,
        *,
        decide: Callable[[str], Decision],
        after: int = 0,
        limit: int = limits.EVENTS_PAGE_MAX,
        dry_run: bool = False,
    ) -> Moved:
        """Redrive or drop the dead letters with one fingerprint, oldest first: a page of them.

        Each is an operation of its own: what stands in the way of one is told in ``skipped`` and
        loses no other. ``after``: where the page before ended; a call without it finds what is
        left, so what was interrupted is simply called again. A dry run judges a page by itself.
        """
        found = await self._database.read(
            "given_up_by_fingerprint", fingerprint=fingerprint, after=after, limit=limit + 1
        )
        page = rows("given_up_by_fingerprint", found)[:limit]
        planned: Counter[int] = Counter()
        keys: set[tuple[str | int, str]] = set()
        accepted: list[tuple[dict[str, Any], Decision]] = []
        errors: dict[str, GoclawError] = {}
        for row in page:
            try:
                decision = decide(row["task_id"])
            except GoclawError as error:
                errors[row["task_id"]] = error
                continue
            hindrance = self._hindrance(verb, row, planned, keys)
            if hindrance is None:
                accepted.append((row, decision))
            else:
                errors[row["task_id"]] = hindrance
        if not dry_run:
            for start in range(0, len(accepted), limits.BATCH_OPERATIONS_MAX):
                part = accepted[start : start + limits.BATCH_OPERATIONS_MAX]
                ended = await asyncio.gather(
                    *(self._moved(verb, row, decision) for row, decision in part),
                    return_exceptions=True,
                )
                for (row, _), answer in zip(part, ended, strict=True):
                    if isinstance(answer, GoclawError):
                        errors[row["task_id"]] = answer
                    elif isinstance(answer, BaseException):
                        raise answer
        names = [row["task_id"] for row in page]
        return Moved(
            tuple(name for name in names if name not in errors),
            tuple((name, errors[name]) for name in names if name in errors),
            following=page[-1]["tid"] if len(found) > limit else None,
        )

    async def _row(self, task_id: str) -> dict[str, Any]:
        found = await self._database.read("given_up_by_id", task_id=task_id)
        if not found:
            raise UnknownId(
                f"There is no task {task_id[:80]}.", hint="`goclaw dlq list` names dead letters.",
                what="task", id=task_id[:80],
            )  # fmt: skip
        return rows("given_up_by_id", found)[0]

    def _hindrance(
        self,
        verb: Verb,
        row: dict[str, Any],
        planned: Counter[int],
        keys: set[tuple[str | int, str]],
    ) -> GoclawError | None:
        """Why the task cannot be moved; ``planned`` and ``keys`` are what goes before it."""
        task_id, state = row["task_id"], row["state"]
        if state not in _FROM[verb] or row["dropped_at"] is not None:
            what = "dropped" if row["dropped_at"] is not None else state
            return _illegal(
                f"Task {task_id} is {what}: it cannot be {_PAST[verb]}.",
                "`goclaw dlq list` names those that can.", verb, state,
            )  # fmt: skip
        if verb is Verb.DROP:
            return None
        if row["deleted_at"] is not None:
            return _illegal(
                f"The session of task {task_id} was deleted.",
                "Submit the work anew in another session.", verb, state,
            )  # fmt: skip
        taken, key = row["taken"], (row["pool"] or row["sid"], row["unique_key"])
        if taken is not None or (row["unique_key"] is not None and key in keys):
            other = "another dead letter, which goes first" if taken is None else f"task {taken}"
            return _illegal(
                f"The unique key of task {task_id} belongs to {other}.",
                "Redrive it when that one has ended, or drop it.", verb, state,
            )  # fmt: skip
        for count, bound, where in (
            (row["open"] + planned[row["sid"]], self._queue.session_limit, "Its session"),
            (self._intake.taken + planned.total(), self._queue.total_limit, "The queue"),
        ):
            if count >= bound:
                return QueueFull(
                    f"{where} has {bound} open tasks, as many as it may.",
                    hint="Redrive the rest when some have ended.",
                    queued=count, limit=bound, retryAfterMs=limits.FULL_RETRY_MS,
                )  # fmt: skip
        planned[row["sid"]] += 1
        if row["unique_key"] is not None:
            keys.add(key)
        return None

    async def _moved(self, verb: Verb, row: dict[str, Any], decision: Decision) -> int:
        now, bind = self._clock.wall_ms(), self._database.bind
        if verb is Verb.REDRIVE:
            limit = self._queue.session_limit
            part = bind("redrive", tid=row["tid"], session_limit=limit, now=now)
        else:
            part = bind("drop", tid=row["tid"], now=now)
        audit = bind("audit", record=orjson.dumps(decision.to_record()), now=now)
        try:
            if verb is Verb.REDRIVE:
                with self._intake.arriving():
                    committed = await self._database.apply(part, audit)
            else:
                committed = await self._database.apply(part, audit)
        except (IllegalTransition, QueueFull) as error:
            # Something came between the look and the change: it has a name, too.
            again = await self._row(row["task_id"])
            raise self._hindrance(verb, again, Counter(), set()) or error from error
        event_id: int = committed.events[0][1]
        return event_id


_PAST: Final = {Verb.REDRIVE: "redriven", Verb.DROP: "dropped"}


def _illegal(message: str, hint: str, verb: Verb, state: str) -> IllegalTransition:
    target = State.QUEUED if verb is Verb.REDRIVE else State.DEAD_LETTER
    return IllegalTransition(message, hint=hint, **{"from": state, "to": str(target)})
