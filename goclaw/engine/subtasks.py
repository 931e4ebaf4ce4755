"""Sub-tasks: a run asks another run, waits SUSPENDED for its end and holds no lane (Q-9).

Owns the child's session and submission, the wake-up of its parent and the end of children whose
parent has ended. Not in here: the effect that asks for it (effects), the tool's schema (tools).

The child is made under the effect's key, so a second attempt finds the one that is there. What a
crash leaves: a parent that nobody woke, children of a parent that ended; ``start`` sees to both.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from goclaw.core import limits, log
from goclaw.core.errors import GoclawError, QueueFull, StorageFailed
from goclaw.core.records import Done
from goclaw.core.services import keep_running
from goclaw.core.states import TERMINAL, State
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from goclaw.core.capability import Capability
    from goclaw.core.clock import Clock
    from goclaw.core.records import Accepted, Child, Session, Task
    from goclaw.engine.intake import Intake
    from goclaw.store import Database, Event

__all__ = ["Subtasks"]

_T = TypeVar("_T")
_log = log.logger("engine.subtasks")
_ENDS = {f"task.{state.lower()}" for state in TERMINAL}


class Subtasks:
    """Children that have not ended. ``on_session`` learns of each session that is made for one."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        intake: Intake,
        *,
        cancel: Callable[[str, str], Awaitable[object]],
        on_session: Callable[[int], None],
    ) -> None:
        self._database, self._clock, self._intake = database, clock, intake
        self._cancel, self._on_session = cancel, on_session
        self._parents: dict[str, tuple[int, str]] = {}  # child's task id: parent's tid and task id
        self._chores: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Take up what an earlier life left."""
        for child, parent_tid, parent, state in await self._database.read("open_children"):
            self._parents[child] = (parent_tid, parent)
            if state in TERMINAL:
                self._later(self._end_child, child)
        for (tid,) in await self._database.read("parents_to_wake"):
            self._later(self._wake, tid)

    async def stop(self) -> None:
        """Leave what is not done to the next start; idempotent."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)

    def observe(self, events: list[Event]) -> None:
        """An end of a child wakes its parent, an end of a parent cancels its children."""
        if not self._parents:
            return
        for event in events:
            if event[3] not in _ENDS:
                continue
            task_id = event[6] or ""
            mine = self._parents.pop(task_id, None)
            if mine is not None:
                self._later(self._wake, mine[0])
            for child, (_, parent) in self._parents.items():
                if parent == task_id:
                    self._later(self._end_child, child)

    async def delegate(self, task: Task, child: Child, key: str, right: Capability) -> Done | None:
        """What the child came to; None while it has not ended. Idempotent by ``key``."""
        right.use("tool.call")
        (above,) = await self._database.read("ancestors", tid=task.tid)
        depth = sum(tid is not None for tid in above)
        if depth >= limits.DELEGATION_DEPTH_MAX:
            text = f"Runs may be {limits.DELEGATION_DEPTH_MAX} deep; this one is."
            return Done(orjson.dumps({"error": text, "code": "budget_exhausted"}), failed=True)
        parent = await self._intake.session_by_sid(task.sid)
        session = await self._intake.create_session(
            cwd=parent.cwd, roots=parent.roots, brain=child.brain or parent.brain,
            interactive=parent.interactive, key=f"subtask:{key}"[: limits.KEY_CHARS_MAX],
            parent_sid=parent.sid,
        )  # fmt: skip
        self._on_session(session.sid)
        # An attempt that is stopped here leaves a child behind: it has to be known all the same.
        submitting = asyncio.ensure_future(self._submitted(task, session, child.prompt))
        submitting.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._keep(submitting)
        accepted = await asyncio.shield(submitting)
        row = rows("task_by_tid", await self._database.read("task_by_tid", tid=accepted.tid))[0]
        if row["state"] not in TERMINAL:
            return None
        self._parents.pop(accepted.task_id, None)
        return Done(_told(row), failed=row["state"] != State.SUCCEEDED)

    async def _submitted(self, task: Task, session: Session, prompt: str) -> Accepted:
        accepted = await self._intake.submit_prompt(
            session, [{"type": "text", "text": prompt}], key="subtask", client=task.client,
            origin=task.origin, trace=task.trace or None, parent_tid=task.tid,
        )  # fmt: skip
        self._parents[accepted.task_id] = (task.tid, task.task_id)
        parent = rows("task_by_tid", await self._database.read("task_by_tid", tid=task.tid))[0]
        if parent["state"] in TERMINAL:  # its end was told before anybody knew of this child
            self._later(self._end_child, accepted.task_id)
        return accepted

    async def _wake(self, tid: int) -> None:
        if await self._database.read("children_of", tid=tid):
            return  # the last of them wakes it
        await self._database.write(
            "wake", live=True, tid=tid, now_mono=None, waits_for="subtask", reason="subtask",
            now=self._clock.wall_ms(),
        )  # fmt: skip

    async def _end_child(self, task_id: str) -> None:
        await self._cancel(task_id, "parent_ended")

    def _later(self, chore: Callable[[_T], Coroutine[Any, Any, None]], about: _T) -> None:
        self._keep(keep_running("sub-tasks", partial(_insisted, chore, about)))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _told(row: dict[str, Any]) -> bytes:
    """What the parent's brain gets to know."""
    result = orjson.loads(row["result"]) if row["result"] else None
    error = orjson.loads(row["error"]) if row["error"] else None
    text = str(result.get("text", "")) if isinstance(result, dict) else ""
    text = text[: limits.TOOL_OUTPUT_BYTES_MAX // 8]  # a character takes up to six bytes of JSON
    return orjson.dumps(
        {
            "state": row["state"],
            "stopReason": row["stop_reason"],
            "text": text,
            "sessionId": row["session_id"],
            "runId": row["run_id"],
            **({"error": error.get("message"), "code": error.get("code")} if error else {}),
        }
    )


async def _insisted(chore: Callable[[_T], Coroutine[Any, Any, None]], about: _T) -> None:
    """While the disk refuses, again: nobody else would wake the parent before the next start."""
    while True:
        try:
            await chore(about)
        except (StorageFailed, QueueFull) as error:
            _log.error("a sub-task has to wait", extra={"data": {"error": str(error)}})
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await asyncio.wait([never], timeout=limits.BUSY_MS_MAX / 1000)
        except GoclawError as error:
            _log.error("a sub-task was not seen to", extra={"data": {"error": str(error)}})
            return
        else:
            return
