"""A run branched off at an event: what it had done stands, what it does then is asked (E-7).

Owns at which events a run may be forked. Not in here: the copy (``fork`` in store/queries.sql), the
asking (``effects``: of every call of a fork that could act on the world).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.clock import traceparent
from goclaw.core.errors import IdempotencyConflict, IllegalTransition, InvalidParams, TooLarge
from goclaw.core.records import Forked
from goclaw.core.states import State

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.store import Database

__all__ = ["fork"]

# A redrive goes on from these; of the other ends there is nothing left to do.
_OVER: Final = (State.SUCCEEDED, State.CANCELED)


async def fork(
    database: Database,
    clock: Clock,
    task: dict[str, Any],
    at: int,
    *,
    key: str | None,
    client: str | None,
    decision: Decision | None,
) -> Forked:
    """Branch a run off at event ``at`` of its session; ``task`` is its stored row.

    The new session is on disk whole or not at all, and its run QUEUED. The same key again returns
    the same fork, IdempotencyConflict for another run or event under it. InvalidParams when the run
    had not begun by then or its beginning is no longer kept, IllegalTransition when it had ended
    well or was canceled, TooLarge for a past that no single transaction should copy.
    """
    was, attempts = await _point(database, task, at)
    suffix = clock.new_id("task").removeprefix("task_")
    session_id, task_id, run_id = clock.new_id("session"), f"task_{suffix}", f"run_{suffix}"
    parts = [
        database.bind(
            "fork", sid_key=key, hash=_hash(task, at), of_tid=task["tid"], at=at, was=was,
            attempts=attempts, session_id=session_id,
            stream_id=clock.new_id("stream"), task_id=task_id, run_id=run_id,
            trace=traceparent(clock), client=client, now=clock.wall_ms(),
        )
    ]  # fmt: skip
    if decision is not None:
        record = orjson.dumps(decision.to_record())
        parts.append(database.bind("audit", record=record, now=clock.wall_ms()))
    try:
        committed = await database.apply(*parts)
    except IdempotencyConflict as error:
        raise IdempotencyConflict(
            "The key was used before for another fork; none was made.",
            hint="Use a new key for a new fork.",
            idempotencyKey=key,
            runId=task["run_id"],
        ) from error
    sid, session_id, task_id, run_id, event_id, stubbed, duplicate = committed.parts[0]
    return Forked(
        sid=sid, session_id=session_id, run_id=run_id, task_id=task_id, event_id=event_id,
        stubbed=stubbed, duplicate=bool(duplicate), parent_session_id=task["session_id"],
        parent_run_id=task["run_id"], parent_event_id=at,
    )  # fmt: skip


def _hash(task: dict[str, Any], at: int) -> bytes:
    return hashlib.sha256(f"fork\0{task['run_id']}\0{at}".encode()).digest()


async def _point(database: Database, task: dict[str, Any], at: int) -> tuple[str, int]:
    """The task's state at that event, and its claims so far."""
    run_id = task["run_id"]
    if task["kind"] == "pool":
        raise InvalidParams(
            f"{run_id} belongs to workers of the pool {task['pool']}.",
            hint="What they do is not asked about here, so it cannot be forked.",
        )
    ((head, _oldest),) = await database.read("session_bounds", sid=task["sid"])
    if at > head:
        raise InvalidParams(
            f"There is no event {at} in the session of {run_id}.",
            hint=f"The last one is {head}.",
            param="at",
        )
    found = await database.read("fork_point", sid=task["sid"], tid=task["tid"], at=at)
    if not found:
        raise InvalidParams(
            f"{run_id} had not begun by event {at} of its session.",
            hint=f"`goclaw events {task['session_id']}` shows where it did.",
            param="at",
        )
    state, attempts, whole, events, size = found[0]
    if not whole:
        raise InvalidParams(
            f"The first events of {run_id} are no longer kept.", hint="Only a whole run is forked."
        )
    if state in _OVER:
        raise IllegalTransition(
            f"By event {at} the run was {state}.",
            hint=f"Fork it at an earlier event: `goclaw events {task['session_id']}`.",
            **{"from": state, "to": str(State.QUEUED)},
        )
    if events > limits.FORK_EVENTS_MAX or size > limits.FORK_BYTES_MAX:
        raise TooLarge(
            f"A fork copies at most {limits.FORK_EVENTS_MAX} events of {limits.FORK_BYTES_MAX} "
            f"bytes, not {events} of {size}.",
            hint="Fork a run of a shorter session.",
            limit=limits.FORK_EVENTS_MAX,
            unit="events",
        )
    return state, attempts
