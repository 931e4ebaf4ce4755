"""One client: its messages in order, its answers, its turns and its questions.

Owns the books of a connection and the order in which its requests begin. Not in here: what a method
does (``handlers``, ``work``), bytes (``transports``, ``outbox``), protocol rules (``protocol``).

Requests begin one after the other, in the order they came; a handler that waits for something long
(a turn) gives back a ``Later``, whose answer comes when it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits, log
from goclaw.core.clock import rfc3339
from goclaw.core.decisions import Context, Origin, Subject, SubjectKind
from goclaw.core.errors import (
    GoclawError,
    InternalError,
    LeaseLost,
    RequestCancelled,
    ScopeMissing,
    TooLarge,
)
from goclaw.core.metrics import BACKPRESSURE_CLOSES
from goclaw.gateway.outbox import Outbox
from goclaw.gateway.params import Params
from goclaw.gateway.permissions import Permissions
from goclaw.gateway.scopes import OWN_SCOPES, check_scope, task_of
from goclaw.gateway.watch import Watch
from goclaw.protocol.jsonrpc import (
    Answer,
    Call,
    Cancel,
    Peer,
    Send,
    canonical,
    encode_notification,
    method_unknown,
)
from goclaw.protocol.session import CloseReason, Handshake, SubEvent

if TYPE_CHECKING:
    from goclaw.core.decisions import Decision
    from goclaw.core.records import Accepted, Session
    from goclaw.gateway.permits import Permits
    from goclaw.gateway.roster import Roster
    from goclaw.gateway.scopes import AttemptPass, Scope
    from goclaw.gateway.services import Services
    from goclaw.gateway.transports import Transport
    from goclaw.gateway.watch import Board
    from goclaw.protocol.messages import Notification

__all__ = ["Connection", "Handler", "Later", "Reply", "Turn", "Wait"]

_log = log.logger("gateway.connection")
_INBOX_MAX: Final = limits.REQUESTS_MAX


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or an error, with its place in the order.

    ``after``: (sid, event id) that must have been sent before. ``then`` is called when the answer
    has its place, before anything that is sent later. ``unwritten`` is called instead of nothing
    when the connection goes before the kernel has taken the answer.
    """

    result: dict[str, Any] | GoclawError
    after: tuple[int, int] | None = None
    then: Callable[[], None] | None = None
    unwritten: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that takes long; requests behind it need not wait."""

    answer: Awaitable[Reply]


@dataclass(eq=False, slots=True)
class Turn:
    """A prompt of this connection that has no answer yet."""

    sid: int
    submission: asyncio.Future[Accepted]

    @property
    def run_id(self) -> str | None:
        """None while the prompt is not on disk."""
        future = self.submission
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result().run_id


@dataclass(eq=False, slots=True)
class Wait:
    """A request of this connection that waits for work of its own, and can be cancelled."""

    work: asyncio.Future[Any]
    unheard: Callable[[Any], None]
    """Called with what came of the work when nobody will be told."""

    async def result(self) -> Any:
        """What came of it; RequestCancelled."""
        await asyncio.wait([self.work])
        if self.work.cancelled():
            raise RequestCancelled("The request was cancelled; nothing came of it.")
        return self.work.result()

    def abandon(self) -> None:
        """The connection is gone."""
        self.work.cancel()
        self.work.add_done_callback(self._undo)

    def _undo(self, work: asyncio.Future[Any]) -> None:
        if not work.cancelled() and work.exception() is None:
            self.unheard(work.result())


Handler = Callable[["Connection", Params], Awaitable["Reply | Later"]]


class Connection:
    """Implements ``transports.Owner`` and ``roster.Member``. Belongs to the loop."""

    def __init__(
        self,
        services: Services,
        roster: Roster,
        permits: Permits,
        board: Board,
        transport: Transport,
        origin: Origin,
        methods: dict[str, Handler],
        notifications: dict[str, Handler],
        *,
        on_gone: Callable[[Connection], None],
        connection_id: str | None = None,
        attempt: AttemptPass | None = None,
        scopes: frozenset[Scope] = OWN_SCOPES,
        by_token: bool = False,
    ) -> None:
        self.services, self.roster, self.permits = services, roster, permits
        self._board = board
        self.engine = services.engine
        self.connection_id = connection_id or self.engine.clock.new_id("connection")
        self.origin = origin
        self.attempt: AttemptPass | None = None
        """Not None: nothing but the worker's methods of this one attempt is open."""
        self._scopes = scopes
        self.by_token = by_token
        """True when a token opened it, whose end is the end of the connection."""
        self.handshake = Handshake()
        self._transport = transport
        self._methods, self._notifications = methods, notifications
        self._peer = Peer()
        self.outbox = Outbox(self.engine.hub, transport, self._too_slow)
        self.permissions = Permissions(
            self.engine.approvals, roster, self._peer, self.outbox, self.resolve_approval
        )
        self._inbox: deque[Call | Notification] = deque()
        self._wake = asyncio.Event()
        self._reading = True
        self._withdrawn: set[Call] = set()
        self._turns: dict[Call, Turn] = {}
        self._current: Call | None = None
        self._waits: dict[Call, Wait] = {}
        self._unwritten: list[Callable[[], None]] = []
        self._watch: Watch | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._quiet: asyncio.Event | None = None
        self._on_gone = on_gone
        self.gone = asyncio.Event()
        """Set when the transport is gone."""
        loop = asyncio.get_running_loop()
        self._handshake_timer = loop.call_later(
            limits.HANDSHAKE_MS_MAX / 1000, self._handshake_late
        )
        self.spawn(self._serve())
        roster.members.add(self)
        if attempt is not None:
            self._bind(attempt)

    # -- who this is ---------------------------------------------------------------------------

    @property
    def client_id(self) -> str:
        """Who owns the prompts sent here: the client's own id, else the connection's."""
        client = self.handshake.client
        return (client and client.client_id) or self.connection_id

    @property
    def opted_in(self) -> bool:
        """True when the client understands ``_goclaw/*`` notifications."""
        client = self.handshake.client
        return client is not None and client.opted_in

    def require(
        self,
        action: str,
        resource: str,
        session: Session | None = None,
        *,
        worker: str | None = None,
    ) -> Decision:
        """Ask the policy about this client, or the worker it speaks for; PolicyDenied unless it
        allows."""
        subject = self._subject(None if session is None else session.session_id, worker)
        context = Context()
        if session is not None:
            context = Context(interactive=session.interactive, roots=session.roots)
        return self.permits.require(subject, action, resource, context)

    def _subject(self, session_id: str | None = None, worker: str | None = None) -> Subject:
        own = self.attempt
        return Subject(
            SubjectKind.CLIENT if worker is None and own is None else SubjectKind.WORKER,
            worker or self.client_id,
            self.origin,
            session_id=session_id,
            task_id=None if own is None else own.task_id,
            attempt=None if own is None else own.attempt,
        )

    async def narrow(self, shown: str) -> None:
        """Open nothing but what the token of an attempt opens; LeaseLost when it is of none."""
        attempt = await self.permits.attempt(shown)
        if attempt is None:
            raise LeaseLost(
                "The token is of no attempt that runs.",
                hint="It is dead as soon as its lease ends; claim a task for another.",
                taskId=task_of(shown),
            )
        self._bind(attempt)

    def _bind(self, attempt: AttemptPass) -> None:
        self.attempt = attempt
        self.roster.bind(attempt, self)
        self.spawn(self._look_alive(attempt))

    async def _look_alive(self, attempt: AttemptPass) -> None:
        """Its end may have been committed before we were told of such things."""
        try:
            live = await self.engine.external.live(attempt.task_id)
        except GoclawError:
            return  # the disk: each word says so by itself
        if live != (attempt.attempt, attempt.lease_token):
            self.lease_over()

    # -- what the transport tells --------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """See Owner."""
        if not self._open:
            return
        self._look_written()
        for incoming in self._peer.receive(data):
            if isinstance(incoming, Send):
                self.outbox.send(incoming.data)
            elif isinstance(incoming, Cancel):
                self._cancel(incoming.call)
            elif isinstance(incoming, Answer):
                if incoming.method == "session/request_permission":
                    self.permissions.answered(incoming.request_id, incoming.response)
            else:
                self._inbox.append(incoming)
                self._wake.set()
        if self._reading and len(self._inbox) > _INBOX_MAX:
            self._reading = False
            self._transport.pause_reading()

    def full(self) -> None:
        """See Owner."""
        self.outbox.full()

    def drained(self) -> None:
        """See Owner."""
        self.outbox.drained()
        self._look_written()

    def lost(self) -> None:
        """See Owner."""
        self._open = False
        self._handshake_timer.cancel()
        self.outbox.stop(SubEvent.GONE)
        self.roster.members.discard(self)
        if self.attempt is not None:
            self.roster.unbind(self.attempt, self)
        self._on_gone(self)
        for task in tuple(self._tasks):
            task.cancel()
        for wait in self._waits.values():
            wait.abandon()
        for unwritten in self._unwritten:
            unwritten()
        self._unwritten.clear()
        if self._quiet is not None:
            self._quiet.set()
        if self.services.config.acp.on_disconnect == "cancel":
            for turn in self._turns.values():
                self.roster.background(self._cancel_turn(turn))
        self.watch((), limits.WATCH_MS)
        self.gone.set()

    # -- requests ------------------------------------------------------------------------------

    def spawn(self, work: Any) -> None:
        """Run a coroutine for as long as the connection lives."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._look_quiet()
        if not task.cancelled() and task.exception() is not None:
            # A fault of ours: a client that waits for nothing is better off without us.
            _log.error("a connection failed", exc_info=task.exception())
            self.close(1011, "goclaw:internal")

    async def _serve(self) -> None:
        while True:
            while not self._inbox:
                self._wake.clear()
                await self._wake.wait()
            incoming = self._inbox.popleft()
            if not self._reading and len(self._inbox) <= _INBOX_MAX // 2:
                self._reading = True
                self._transport.resume_reading()
            if isinstance(incoming, Call):
                await self._begin(incoming)
            else:
                await self._notified(incoming)

    async def _begin(self, call: Call) -> None:
        self._current = call
        await self._answer(call, self._handled(call))
        self._current = None
        self._look_quiet()
        if self.handshake.client is None and not self._transport.lines:
            self.close(1002, "goclaw:initialize first")

    async def _handled(self, call: Call) -> Reply | Later:
        request = call.request
        try:
            self.handshake.admit(request.method)
        except GoclawError as error:
            self._refused(request.method, "(handshake)", error)
            raise
        if call in self._withdrawn and request.method != "session/prompt":
            raise RequestCancelled("The request was cancelled before it began.")
        handler = self._methods.get(request.method)
        if handler is None:
            raise method_unknown(request.method)
        self._check_scope(request.method)
        self.require("protocol.call", request.method)
        return await handler(self, Params(request.params))

    def _check_scope(self, method: str) -> None:
        """ScopeMissing."""
        try:
            if self.attempt is not None:
                self.attempt.check(method)
            else:
                check_scope(self._scopes, method)
        except ScopeMissing as error:
            self._refused(method, "(scope)", error)
            raise

    def _refused(self, method: str, rule_id: str, error: GoclawError) -> None:
        """Turned away before the policy was asked: that is on record all the same (A-8)."""
        self.permits.refused(self._subject(), method, rule_id, error.message)

    async def _answer(self, call: Call, work: Awaitable[Reply | Later]) -> None:
        """The edge of a request: whatever happens, it gets exactly one answer."""
        try:
            reply = await work
        except GoclawError as error:
            reply = Reply(error)
        except Exception:
            _log.exception("a handler failed", extra={"data": {"method": call.request.method}})
            hint = "The log of the daemon says why."
            reply = Reply(InternalError("The daemon failed to carry that out.", hint=hint))
        if isinstance(reply, Later):
            self.spawn(self._finish(call, reply))
            return
        self._withdrawn.discard(call)
        if isinstance(reply.result, GoclawError):
            data = self._peer.error(call, self._unspoken(reply.result))
        else:
            data = self._peer.result(call, reply.result)
        if reply.unwritten is not None:
            self._unwritten.append(reply.unwritten)
        if data is not None:
            self.outbox.send(data, after=reply.after, then=reply.then)
        if reply.unwritten is not None:
            # Behind the pump, which the message has just scheduled.
            asyncio.get_running_loop().call_soon(self._look_written)

    def _unspoken(self, error: GoclawError) -> GoclawError:
        """What a request said is said back in many an error, and clients log those (A-6)."""
        cleaner = self.engine.database.cleaner
        if cleaner is not None:
            error.message, error.hint = cleaner.text(error.message), cleaner.text(error.hint)
            data = orjson.dumps(error.data, default=str)
            cleaned = cleaner.data(data)
            error.data = error.data if cleaned is data else orjson.loads(cleaned)
        return error

    def _look_written(self) -> None:
        """Forget about answers that the kernel has."""
        if self._unwritten and self.outbox.is_empty:
            self._unwritten.clear()

    async def _finish(self, call: Call, later: Later) -> None:
        try:
            await self._answer(call, later.answer)
        finally:
            self._turns.pop(call, None)
            self._waits.pop(call, None)

    async def _notified(self, notification: Notification) -> None:
        if self.handshake.client is None:
            if not self._transport.lines:
                self.close(1002, "goclaw:initialize first")
            return
        handler = self._notifications.get(notification.method)
        if handler is None:
            return
        try:
            self._check_scope(notification.method)
            self.require("protocol.call", notification.method)
            await handler(self, Params(notification.params))
        except GoclawError as error:
            # Nobody waits for an answer to a notification.
            data = {"method": notification.method, "code": error.code}
            _log.info("notification refused", extra={"data": data})

    def initialized(self) -> None:
        """The handshake is done: the clock stops, events follow the client's wish."""
        self._handshake_timer.cancel()
        if self.opted_in:
            self.outbox.opt_in()

    def frame(self, message: bytes) -> bytes:
        """A finished message as this connection's transport sends it."""
        return self._transport.frame(message)

    def notify(self, method: str, params: object) -> None:
        """Queue a notification."""
        self.outbox.send(encode_notification(method, params))

    def tell_storage(self) -> None:
        """Tell an opted-in client how the disk does."""
        if self.opted_in:
            why = self.engine.database.trouble
            self.notify("_goclaw/storage", {"ok": not why, "message": why})

    def watch(self, fields: tuple[str, ...], interval_ms: int) -> None:
        """Tell the daemon's state from now on, in place of what was watched; no fields: nothing."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None
        if fields and self.opted_in:
            self._watch = Watch(self._board, fields, interval_ms, self._tell_state)

    def _tell_state(self, state: dict[str, Any]) -> bool:
        if self._transport.paused:
            return False
        self.notify("_goclaw/system/state", state)
        return True

    # -- turns ---------------------------------------------------------------------------------

    @property
    def withdrawn(self) -> bool:
        """True when the peer gave up on the request that is being begun."""
        return self._current in self._withdrawn

    @property
    def request_key(self) -> str:
        """The submission key of the request that is being begun, where the client gave none: the
        same for the same id on this connection, and for none on another (PROTOCOL 2.5)."""
        assert self._current is not None
        request_id = self._current.request.id
        if request_id is None:  # every request without an id is another
            return self.engine.clock.new_id("request")
        parts = canonical([self.connection_id, request_id])
        return f"request_{hashlib.sha256(parts).hexdigest()}"

    def open_turn(self, sid: int, submission: asyncio.Future[Accepted]) -> Turn:
        """Remember the prompt that is being begun, until its answer."""
        assert self._current is not None
        turn = self._turns[self._current] = Turn(sid, submission)
        return turn

    def open_wait(self, wait: Wait) -> None:
        """Remember the long wait that is being begun, until its answer."""
        assert self._current is not None
        self._waits[self._current] = wait

    @property
    def waits(self) -> int:
        """How many long waits have no answer."""
        return len(self._waits)

    def _cancel(self, call: Call) -> None:
        """``$/cancel_request``: prompts are cancelled, what has not begun never begins."""
        turn, wait = self._turns.get(call), self._waits.get(call)
        if turn is not None:
            self.spawn(self._cancel_turn(turn))
        elif wait is not None:
            wait.work.cancel()
        else:
            self._withdrawn.add(call)

    async def _cancel_turn(self, turn: Turn) -> None:
        try:
            accepted = await asyncio.shield(turn.submission)
            await self.engine.cancel_run(accepted.run_id, "$/cancel_request")
        except GoclawError as error:
            _log.info("nothing to cancel", extra={"data": {"code": error.code}})

    # -- sessions ------------------------------------------------------------------------------

    def check_room(self, session: Session | None = None) -> None:
        """TooLarge when one more session would be too many for one connection."""
        cursors = self.outbox.cursors
        if session is not None and session.sid in cursors:
            return
        if len(cursors) >= limits.SUBSCRIPTIONS_MAX:
            raise TooLarge(
                f"A connection may attach to {limits.SUBSCRIPTIONS_MAX} sessions.",
                hint="Close or unsubscribe from one, or open another connection.",
                limit=limits.SUBSCRIPTIONS_MAX,
                unit="sessions",
            )

    def attach(
        self,
        session: Session,
        position: int,
        *,
        controller: bool = True,
        latest: bool = False,
    ) -> None:
        """Send the session's events from ``position`` on, and tell the daemon that it is in use."""
        self.services.on_session(session.sid)
        self.outbox.subscribe(session, position, controller=controller, latest=latest)

    def attach_live(self, session: Session) -> None:
        """Attach unless it is attached already."""
        if session.sid not in self.outbox.cursors:
            self.attach(session, session.head)
            self.ask_undecided(session, session.head)

    def ask_undecided(self, session: Session, event_id: int) -> None:
        """Put the session's open approvals to this client, behind the replay."""
        self.spawn(self._ask_undecided(session, event_id))

    async def _ask_undecided(self, session: Session, event_id: int) -> None:
        try:
            await self.permissions.ask_open(session, event_id)
        except GoclawError as error:
            _log.error("approvals unread", extra={"data": {"error": str(error)}})

    async def resolve_approval(self, approval_id: str, option_id: str) -> str:
        """Answer an approval in this client's name; the outcome."""
        self._check_scope("_goclaw/approvals/resolve")  # also of an answer to our own question
        decision = self.require("approval.answer", approval_id)
        return await self.engine.approvals.resolve(
            approval_id, option_id, self.client_id, decision=decision
        )

    # -- what the roster tells -----------------------------------------------------------------

    def approval_opened(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        """See Member."""
        cursor = self.outbox.cursors.get(sid)
        if cursor is not None and cursor.controller:
            self.permissions.ask(sid, event_id, approval["approvalId"], approval["request"])

    def approval_resolved(self, sid: int, event_id: int, approval: dict[str, Any]) -> None:
        """See Member."""
        self.permissions.resolved(sid, event_id, approval["approvalId"])
        cursor = self.outbox.cursors.get(sid)
        if cursor is not None and self.opted_in:
            notice = {"sessionId": cursor.session_id}
            notice |= {name: approval[name] for name in ("approvalId", "outcome", "by")}
            message = encode_notification("_goclaw/approval/resolved", notice)
            self.outbox.send(message, after=(sid, event_id))

    def run_ended(self, sid: int, event_id: int, run_id: str, at_ms: int) -> None:
        """See Member. A vanilla client that came back has no open prompt that would be answered."""
        cursor = self.outbox.cursors.get(sid)
        if cursor is None or self.opted_in:
            return
        if any(turn.run_id == run_id for turn in self._turns.values()):
            return
        update = {"sessionUpdate": "session_info_update", "updatedAt": rfc3339(at_ms)}
        params = {"sessionId": cursor.session_id, "update": update}
        self.outbox.send(encode_notification("session/update", params), after=(sid, event_id))

    def session_gone(self, sid: int) -> None:
        """See Member."""
        self.outbox.unsubscribe(sid, SubEvent.DELETED)

    # -- the end -------------------------------------------------------------------------------

    def _handshake_late(self) -> None:
        self.close(1002, "goclaw:initialize first")

    def _too_slow(self, reason: CloseReason) -> None:
        """PROTOCOL 2.6: one farewell, a close with the reason, and the reason is kept."""
        event = SubEvent.RETENTION if reason is CloseReason.RETENTION else SubEvent.LIMIT
        sent = self.outbox.stop(event)
        BACKPRESSURE_CLOSES[str(reason)] += 1
        code, text = 1013, f"goclaw:backpressure {reason}"
        _log.warning(
            "closed a slow client",
            extra={"data": {"connection": self.connection_id, "reason": str(reason), "sent": sent}},
        )
        client = self.handshake.client
        keys = [f"session:{session_id}" for session_id in sent]
        if client is not None and client.client_id is not None:
            keys = [f"client:{client.client_id}"]
        self.roster.remember_close(keys, {"code": code, "reason": text, "sent": sent})
        if self.opted_in:
            notice = {"reason": str(reason), "sent": sent}
            message = encode_notification("_goclaw/backpressure", notice)
            self._transport.write(self._transport.frame(message))
        self.close(code, text)

    def last_close(self, session: Session) -> dict[str, Any] | None:
        """Why this client's last connection was closed, told once."""
        client = self.handshake.client
        if client is not None and client.client_id is not None:
            return self.roster.take_close(f"client:{client.client_id}")
        return self.roster.take_close(f"session:{session.session_id}")

    def close(self, code: int, reason: str) -> None:
        """Say goodbye at once: what can be written is, the rest is dropped. Idempotent."""
        if self._open:
            self._open = False
            self.outbox.flush()
        self._transport.close(code, reason)

    def revoke(self) -> None:
        """The token that opened this connection is dead: nothing of it is taken any more, and what
        is being answered in this turn of the loop is the last word."""
        if self._open:
            self._open = False
            self._inbox.clear()
            asyncio.get_running_loop().call_soon(self._cut)

    def _cut(self) -> None:
        self.outbox.flush()
        self.outbox.stop(SubEvent.REVOKED)
        self._transport.close(4401, "goclaw:token rotated")

    def lease_over(self) -> None:
        """See Member: the token that opened this connection is dead."""
        if self._open:
            self._open = False
            self.roster.background(self._retire())

    async def _retire(self) -> None:
        """What was asked before is answered: among it may be the very word that ended the lease."""
        self._quiet = asyncio.Event()
        self._look_quiet()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CLOSE_MS_MAX / 1000):
                await self._quiet.wait()
        if not self.gone.is_set():
            await self.finish(4401, "goclaw:lease over", SubEvent.REVOKED)

    def _look_quiet(self) -> None:
        """Tell ``_retire`` when nothing is left but the task that serves."""
        idle = self._current is None and not self._inbox and len(self._tasks) <= 1
        if idle and self._quiet is not None:
            self._quiet.set()

    async def finish(self, code: int, reason: str, event: SubEvent = SubEvent.SHUTDOWN) -> None:
        """Take no more messages, send what there is to send, close."""
        self._open = False
        try:
            async with asyncio.timeout(limits.CLOSE_MS_MAX / 1000):
                await self.outbox.flushed()
        except TimeoutError:
            self._transport.abort()
        self.outbox.stop(event)
        self._transport.close(code, reason)
        await self.gone.wait()
