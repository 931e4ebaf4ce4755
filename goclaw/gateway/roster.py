"""Who is connected: what concerns more than one connection passes through here.

Owns the set of connections, the memory of closes for being slow, and the fan-out of committed
approvals, ends of runs and ends of leases. Not in here: what a single connection does with them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from goclaw.core import limits
from goclaw.core.states import LEAVING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from goclaw.core.records import Accepted
    from goclaw.gateway.scopes import AttemptPass
    from goclaw.store import Event

__all__ = ["Member", "Roster"]


class Member(Protocol):
    """A connection, as the others see it."""

    def approval_opened(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        """A question waits for an answer; ``approval`` is the event's payload."""

    def approval_resolved(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        """It has been answered, has expired or was cancelled."""

    def run_ended(self, sid: int, event_id: int, run_id: str, at_ms: int) -> None:
        """A turn is over."""

    def session_gone(self, sid: int) -> None:
        """The session was deleted."""

    def lease_over(self) -> None:
        """The attempt whose token opened the connection has ended, or lost its lease."""


class Roster:
    """Connections come and go; committed events find them."""

    def __init__(self) -> None:
        self.members: set[Member] = set()
        self._bound: dict[tuple[str, int], set[Member]] = {}
        self._last_closes: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._resolved: OrderedDict[str, None] = OrderedDict()
        self._background: set[asyncio.Task[None]] = set()
        self._submitting: dict[int, set[asyncio.Future[Accepted]]] = {}

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what must outlive its connection."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def settled(self) -> None:
        """Wait for all of that."""
        await asyncio.gather(*self._background, return_exceptions=True)

    def observe(self, events: list[Event]) -> None:
        """For ``Hub.observe``: after the events' frames are ready for readers."""
        for sid, event_id, _, kind, at_ms, run_id, task_id, attempt, _, payload in events:
            if kind == "approval.opened":
                approval = orjson.loads(payload)
                for member in tuple(self.members):
                    member.approval_opened(sid, event_id, approval)
            elif kind == "approval.resolved":
                approval = orjson.loads(payload)
                self._resolved[approval["approvalId"]] = None
                if len(self._resolved) > limits.CONNECTIONS_MAX:
                    self._resolved.popitem(last=False)
                for member in tuple(self.members):
                    member.approval_resolved(sid, event_id, approval)
            elif kind == "run.ended":
                for member in tuple(self.members):
                    member.run_ended(sid, event_id, run_id or "", at_ms)
            elif kind in LEAVING and self._bound:
                for member in tuple(self._bound.get((task_id or "", attempt), ())):
                    member.lease_over()

    def bind(self, attempt: AttemptPass, member: Member) -> None:
        """The connection lives no longer than the attempt's lease."""
        self._bound.setdefault((attempt.task_id, attempt.attempt), set()).add(member)

    def unbind(self, attempt: AttemptPass, member: Member) -> None:
        """The connection is gone."""
        key = attempt.task_id, attempt.attempt
        bound = self._bound.get(key, set())
        bound.discard(member)
        if not bound:
            self._bound.pop(key, None)

    def was_resolved(self, approval_id: str) -> bool:
        """True when the answer came while somebody was reading the list of open ones."""
        return approval_id in self._resolved

    def submitting(self, sid: int, submission: asyncio.Future[Accepted]) -> None:
        """A submission is on its way to the disk; it outlives its connection."""
        pending = self._submitting.setdefault(sid, set())
        pending.add(submission)

        def done(future: asyncio.Future[Accepted]) -> None:
            pending.discard(future)
            if not pending and self._submitting.get(sid) is pending:
                del self._submitting[sid]
            if not future.cancelled():
                future.exception()

        submission.add_done_callback(done)

    async def submitted(self, sid: int) -> None:
        """Wait until what is on its way is on disk or refused: a cancel must see it."""
        pending = self._submitting.get(sid)
        if pending:
            await asyncio.wait(tuple(pending))

    def session_gone(self, sid: int) -> None:
        """Tell every connection."""
        for member in tuple(self.members):
            member.session_gone(sid)

    def remember_close(self, keys: list[str], close: dict[str, Any]) -> None:
        """Keep why a slow connection was closed, for whoever comes back under one of the keys."""
        for key in keys:
            self._last_closes[key] = close
            self._last_closes.move_to_end(key)
        while len(self._last_closes) > limits.CONNECTIONS_MAX:
            self._last_closes.popitem(last=False)

    def take_close(self, key: str) -> dict[str, Any] | None:
        """What was kept under the key; told once."""
        return self._last_closes.pop(key, None)
