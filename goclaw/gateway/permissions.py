"""Asks a person through this connection: each open approval once, the first answer counts.

Owns which approvals this client was asked and has not answered. Not in here: the durable rows
(``engine.approvals``), who else was asked (``roster`` tells all).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from goclaw.core import log
from goclaw.core.errors import AlreadyResolved, GoclawError, MethodUnknown, RateLimited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.records import Session
    from goclaw.engine.approvals import Approvals
    from goclaw.gateway.outbox import Outbox
    from goclaw.gateway.roster import Roster
    from goclaw.protocol.jsonrpc import Peer
    from goclaw.protocol.messages import Response

__all__ = ["Permissions"]

_log = log.logger("gateway.permissions")


class Permissions:
    """The approvals of one connection. ``resolve`` answers one: approval id, option id."""

    def __init__(
        self,
        approvals: Approvals,
        roster: Roster,
        peer: Peer,
        outbox: Outbox,
        resolve: Callable[[str, str], Awaitable[str]],
    ) -> None:
        self._approvals, self._roster = approvals, roster
        self._peer, self._outbox, self._resolve = peer, outbox, resolve
        self._asked: dict[str, int] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.able = True
        """False once the client said that it cannot be asked."""

    def ask(self, sid: int, event_id: int, approval_id: str, params: object) -> None:
        """Ask, behind the event; nothing when it was asked already or the client cannot answer."""
        if not self.able or approval_id in self._asked:
            return
        try:
            request_id, data = self._peer.request("session/request_permission", params)
        except RateLimited:
            # A client that answers nothing is asked no more; the command line still can.
            _log.warning("too many unanswered questions", extra={"data": {"approval": approval_id}})
            return
        self._asked[approval_id] = request_id
        self._outbox.send(data, after=(sid, event_id))

    async def ask_open(self, session: Session, event_id: int) -> None:
        """Ask everything that is undecided in a session, behind the replay up to ``event_id``."""
        if not self.able:
            return
        for approval in await self._approvals.listed(session.sid):
            if not self._roster.was_resolved(approval.approval_id):
                request = orjson.Fragment(approval.request)
                self.ask(session.sid, event_id, approval.approval_id, request)

    def answered(self, request_id: int, response: Response) -> None:
        """The client's answer to one of these questions."""
        approval_id = next((key for key, value in self._asked.items() if value == request_id), None)
        if approval_id is None:
            return
        del self._asked[approval_id]
        if response.error is not None:
            if response.error.code == MethodUnknown.rpc:
                self.able = False
            return
        option_id = _selected(response.result)
        if option_id is None:
            # ``cancelled`` belongs to a cancelled turn, which closes the approval by itself.
            return
        task = asyncio.ensure_future(self._answer(approval_id, option_id))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, approval_id: str, option_id: str) -> None:
        try:
            await self._resolve(approval_id, option_id)
        except AlreadyResolved:
            pass  # somebody was quicker
        except GoclawError as error:
            _log.warning(
                "answer refused", extra={"data": {"approval": approval_id, "code": error.code}}
            )

    def resolved(self, sid: int, event_id: int, approval_id: str) -> None:
        """Take the question back if this client has not answered it."""
        request_id = self._asked.pop(approval_id, None)
        if request_id is not None:
            self._outbox.send(self._peer.cancel(request_id), after=(sid, event_id))
            self._peer.forget(request_id)  # a late answer is nobody's business


def _selected(result: object) -> str | None:
    outcome = result.get("outcome") if isinstance(result, dict) else None
    if not isinstance(outcome, dict) or outcome.get("outcome") != "selected":
        return None
    option_id = outcome.get("optionId")
    return option_id if isinstance(option_id, str) else None
