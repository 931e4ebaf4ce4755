"""A client's books over many connections: who is owed an answer, which event was the last (W-13).

Owns request ids, submission keys, cursors, open questions and what is sent again after the daemon
went away; sans-I/O, so that the bridge, the async and the blocking client are thin shells around
one set of rules. Not in here: sockets, what an editor or a person is shown.

    DOWN ── connected ──> GREETING ── answer ──> ATTACHING ── answers ──> OPEN
      ^                   initialize             subscribe each session   unanswered requests again,
      └─────────────────── lost, at any time     at its last event        the cancels among them too

Before the first initialize there is nothing to repeat: a connection is OPEN at once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.errors import RateLimited, SessionUnknown, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Answered",
    "Asked",
    "Happened",
    "Incoming",
    "Link",
    "Missed",
    "Refused",
    "Told",
    "Withdrawn",
    "encode",
    "goclaw_meta",
]

_KEYED: Final = ("session/new", "session/prompt")
_ATTACHING: Final = ("session/new", "session/load", "session/resume", "_goclaw/session/subscribe")
_DETACHING: Final = ("session/close", "session/delete", "_goclaw/session/unsubscribe")
_CANCEL: Final = "$/cancel_request"


class Answered:
    """The answer to ``request_id``: ``message`` is the whole response."""

    __slots__ = ("message", "method", "request_id")

    def __init__(self, request_id: int, method: str, message: dict[str, Any]) -> None:
        self.request_id, self.method, self.message = request_id, method, message


class Happened:
    """An event of a session, each once and in order; ``event_id`` 0 when it carries none.

    ``replay``: part of the history that ``session/load`` tells.
    """

    __slots__ = ("event_id", "line", "method", "params", "replay", "session")

    def __init__(
        self, session: str, event_id: int, method: str, params: dict[str, Any], line: bytes,
        *, replay: bool,
    ) -> None:  # fmt: skip
        self.session, self.event_id, self.method = session, event_id, method
        self.params, self.line, self.replay = params, line, replay


class Asked:
    """A question of the daemon, each once; answer it with ``Link.reply``."""

    __slots__ = ("ask_id", "method", "params")

    def __init__(self, ask_id: int, method: str, params: dict[str, Any]) -> None:
        self.ask_id, self.method, self.params = ask_id, method, params


class Withdrawn:
    """The question ``ask_id`` needs no answer any more."""

    __slots__ = ("ask_id",)

    def __init__(self, ask_id: int) -> None:
        self.ask_id = ask_id


class Told:
    """Any other notification."""

    __slots__ = ("line", "method", "params")

    def __init__(self, method: str, params: dict[str, Any], line: bytes) -> None:
        self.method, self.params, self.line = method, params, line


class Missed:
    """The session cannot go on at its cursor: events are lost to this client. ``error`` says why;
    live events follow when the session still exists."""

    __slots__ = ("error", "session")

    def __init__(self, session: str, error: dict[str, Any]) -> None:
        self.session, self.error = session, error


class Refused:
    """A daemon that came back does not take this client: there is no way on."""

    __slots__ = ("error",)

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error


Incoming = Answered | Happened | Asked | Withdrawn | Told | Missed | Refused


class _Entry:
    """A request without an answer. ``start``: the cursor that it sets, None for the head."""

    __slots__ = (
        "cancel",
        "key",
        "latest",
        "line",
        "method",
        "repeated",
        "role",
        "run_id",
        "session",
        "start",
    )

    def __init__(self, method: str, params: dict[str, Any], line: bytes) -> None:
        self.method, self.line = method, line
        session = params.get("sessionId")
        self.session = session if isinstance(session, str) else None
        where = goclaw_meta(params) if method == "session/resume" else params
        start = where.get("fromEventId")
        self.start = start if type(start) is int else None
        self.role = "observer" if params.get("role") == "observer" else "controller"
        self.latest = params.get("mode") == "latest"
        self.key = goclaw_meta(params).get("idempotencyKey")
        self.run_id = ""  # of a prompt, once its acceptance was seen
        self.repeated = False  # it is older than this connection
        self.cancel = ""  # "turn": session/cancel reached it; "request": $/cancel_request did


class _Question:
    """A question of the daemon; ``remote_id`` is its id on this connection, None on none yet."""

    __slots__ = ("approval", "remote_id", "reply")

    def __init__(self, approval: str, remote_id: Any) -> None:
        self.approval, self.remote_id = approval, remote_id
        self.reply: dict[str, Any] | None = None


_NOWHERE: Final = object()
_NO_SESSION: Final = "-"  # of our own requests: no session has this id


class Link:
    """The books. Not thread-safe.

    ``take()`` gives the lines to send; call it after every other method. ``new_key`` makes the
    submission keys of requests that come without one.
    """

    def __init__(self, new_key: Callable[[], str]) -> None:
        self._new_key = new_key
        self._state = "down"
        self._outgoing: list[bytes] = []
        self._last_id = 0
        self._hello: dict[str, Any] | None = None
        self._pending: dict[int, _Entry] = {}  # in the order in which they were made
        self._own: dict[int, str] = {}  # our own greeting (""), and subscriptions by session
        self._cursors: dict[str, int] = {}
        self._streams: dict[str, str] = {}
        self._observed: set[str] = set()
        self._latest: set[str] = set()  # sessions of which only the newest is wanted
        self._loading: set[str] = set()
        self._unplaced: set[str] = set()  # sessions whose prompts wait until their head is known
        self._held: dict[str, list[tuple[int, Answered, _Entry]]] = {}
        self._cancels: set[str] = set()  # sessions whose turn, not ours, was cancelled
        self._last_ask = 0
        self._questions: dict[int, _Question] = {}

    # -- state ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """True while requests go straight out."""
        return self._state == "open"

    @property
    def is_full(self) -> bool:
        """True when no further request is taken; its owner should stop reading."""
        return len(self._pending) >= limits.REQUESTS_MAX

    @property
    def is_waiting(self) -> bool:
        """True while a request has no answer."""
        return bool(self._pending)

    @property
    def is_owed_soon(self) -> bool:
        """True while a request waits for more than the end of a run that is on disk."""
        return any(not entry.run_id for entry in self._pending.values())

    def is_loading(self, session: str) -> bool:
        """True while a session/load of it has no answer."""
        return session in self._loading

    def is_prompting(self, session: str) -> bool:
        """True while a prompt to it has no answer, or one that waits for its last event."""
        prompts = (entry for entry in self._pending.values() if _is_prompt(entry))
        return session in self._held or any(entry.session == session for entry in prompts)

    @property
    def has_spoken(self) -> bool:
        """True once there was a request: before that nobody needs a connection."""
        return self._last_id > 0

    def cursor(self, session: str) -> int | None:
        """The last event of that session that was handed out; None when it is not followed."""
        return self._cursors.get(session)

    def take(self) -> list[bytes]:
        """Lines to send now, without their LF."""
        lines, self._outgoing = self._outgoing, []
        return lines

    # -- the connection -------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a new connection; nothing was sent on it."""
        self._outgoing.clear()
        self._own.clear()
        self._unplaced.clear()
        if self._hello is None:
            self._open()
            return
        self._state = "greeting"
        for entry in self._pending.values():
            if entry.method == "initialize":
                self._outgoing.append(entry.line)
                return
        self._send_own("initialize", self._hello, "")

    def lost(self) -> list[Incoming]:
        """The connection is gone. Questions that no later connection can repeat are withdrawn."""
        self._state = "down"
        self._outgoing.clear()
        self._own.clear()
        gone: list[Incoming] = []
        for ask_id, question in list(self._questions.items()):
            question.remote_id = _NOWHERE
            if not question.approval:
                del self._questions[ask_id]
                gone.append(Withdrawn(ask_id))
        return gone

    def _attach(self) -> None:
        self._state = "attaching"
        for session in self._cursors:
            if session not in self._loading:
                self._subscribe(session, {"fromEventId": self._cursors[session]})
        if not self._own:
            self._open()

    def _subscribe(self, session: str, where: dict[str, Any]) -> None:
        if where and session in self._streams:
            where = {**where, "streamId": self._streams[session]}
        role = "observer" if session in self._observed else "controller"
        params = {"sessionId": session, "role": role, **where}
        if session in self._latest:
            params["mode"] = "latest"
        self._send_own("_goclaw/session/subscribe", params, session)

    def _open(self) -> None:
        self._state = "open"
        for entry in self._pending.values():
            entry.repeated = True
        self._send_pending(self._pending)
        for session in sorted(self._cancels):
            self._send("session/cancel", {"sessionId": session})

    def _send_pending(self, pending: dict[int, _Entry]) -> None:
        """Requests in their order, then their cancels.

        A session/cancel also reaches prompts that were made after it and are on disk by now: it is
        repeated as it was only where there are none, else run by run. And $/cancel_request would
        withdraw a repeated prompt instead of cancelling the run that it once began.
        """
        sent = [entry for entry in pending.values() if not self._must_wait(entry)]
        later = {entry.session for entry in sent if not entry.cancel and _is_prompt(entry)}
        turns = set()
        for entry in sent:
            self._outgoing.append(entry.line)
            if entry.cancel == "turn" and entry.session and entry.session not in later:
                turns.add(entry.session)
        for session in sorted(turns):
            self._send("session/cancel", {"sessionId": session})
        for entry in sent:
            if entry.cancel and entry.session not in turns:
                self._cancel_run(entry)

    def _cancel_run(self, entry: _Entry) -> None:
        """Nothing yet while the run is not known: its acceptance will bring this up again."""
        if entry.run_id:
            self._send_own("_goclaw/run/cancel", {"runId": entry.run_id}, _NO_SESSION)

    def _must_wait(self, entry: _Entry) -> bool:
        """A prompt to a session that nobody follows yet: first ask where its events begin, so that
        a crash in between leaves no hole."""
        session = entry.session
        if not _is_prompt(entry) or session is None or session in self._cursors:
            return False
        if any(e.method in _ATTACHING and e.session == session for e in self._pending.values()):
            return False
        if session not in self._unplaced:
            self._unplaced.add(session)
            self._subscribe(session, {})
        return True

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._outgoing.append(encode({"jsonrpc": "2.0", "method": method, "params": params}))

    def _send_own(self, method: str, params: dict[str, Any], session: str) -> None:
        self._last_id += 1
        self._own[self._last_id] = session
        self._outgoing.append(_request_line(self._last_id, method, params))

    # -- towards the daemon ---------------------------------------------------------------------

    def request(self, method: str, params: dict[str, Any]) -> int:
        """Send a request, again after each lost connection, until it is answered; its id.

        Sessions and prompts get a submission key unless they have one. RateLimited when
        ``is_full``.
        """
        if self.is_full:
            raise RateLimited(
                f"{limits.REQUESTS_MAX} requests wait for an answer.",
                hint="Wait for one of them.",
                retryAfterMs=limits.BACKOFF_MS_MIN,
            )
        if method in _KEYED:
            params = _with_key(params, self._new_key)
        self._last_id += 1
        request_id = self._last_id  # asking for a place below takes a further one
        entry = _Entry(method, params, _request_line(request_id, method, params))
        if method == "initialize":
            self._hello = params
        if method == "session/load" and entry.session:
            self._loading.add(entry.session)
        if _is_prompt(entry) and entry.session:
            self._cancels.discard(entry.session)
        self._pending[request_id] = entry
        if self.is_open and not self._must_wait(entry):
            self._outgoing.append(entry.line)
        return request_id

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification; only cancels are remembered over a lost connection."""
        if method == _CANCEL:
            entry = self._pending.get(params.get("requestId", 0))
            if entry is not None:
                entry.cancel = entry.cancel or "request"
                if entry.repeated and _is_prompt(entry):
                    self._cancel_run(entry)
                    return
        elif method == "session/cancel" and isinstance(params.get("sessionId"), str):
            session = params["sessionId"]
            prompts = [e for e in self._pending.values() if _is_prompt(e) and e.session == session]
            for entry in prompts:
                entry.cancel = "turn"
            if not prompts:
                self._cancels.add(session)
            if session in self._unplaced:
                return  # it goes out behind its prompts
        if self.is_open:
            self._send(method, params)

    def reply(self, ask_id: int, outcome: dict[str, Any]) -> None:
        """Answer a question: ``outcome`` has the member result or error. A late answer is dropped.

        It is kept until the daemon has it on disk: a question that is asked again after a crash is
        answered from here.
        """
        question = self._questions.get(ask_id)
        if question is None or question.reply is not None:
            return
        if question.remote_id is not _NOWHERE:
            self._outgoing.append(encode({"jsonrpc": "2.0", "id": question.remote_id, **outcome}))
        question.reply = outcome
        if not question.approval:
            del self._questions[ask_id]

    # -- from the daemon ------------------------------------------------------------------------

    def receive(self, line: bytes) -> list[Incoming]:
        """What one line of the daemon means, in order. ValueError when it is no message."""
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        method = message.get("method")
        if not isinstance(method, str):
            return self._answer(message)
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if "id" in message:
            return self._question(message["id"], method, params)
        if method in ("session/update", "_goclaw/session/event"):
            return self._event(method, params, line)
        if method == _CANCEL:
            return self._withdraw(lambda question: question.remote_id == params.get("requestId"))
        told: list[Incoming] = [Told(method, params, line)]
        if method == "_goclaw/approval/resolved":
            told += self._resolved(params.get("approvalId"))
        return told

    def _answer(self, message: dict[str, Any]) -> list[Incoming]:
        request_id = message.get("id")
        if type(request_id) is not int:
            return []
        if request_id in self._own:
            return self._own_answer(self._own.pop(request_id), message)
        entry = self._pending.get(request_id)
        if entry is None:
            return []
        error = message.get("error")
        if isinstance(error, dict) and error.get("code") == ShuttingDown.rpc:
            return []  # the daemon goes; the next one gets it again
        answered = Answered(request_id, entry.method, message)
        del self._pending[request_id]
        session = entry.session
        if session is not None and self._cursors.get(session, 1 << 63) < _barrier(message):
            self._held.setdefault(session, []).append((_barrier(message), answered, entry))
            return []
        return self._settled(answered, entry)

    def _settled(self, answered: Answered, entry: _Entry) -> list[Incoming]:
        message, session = answered.message, entry.session
        result = message.get("result")
        if session is not None and entry.method == "session/load":
            self._loading.discard(session)
        error = message.get("error")
        if isinstance(error, dict) and error.get("code") == SessionUnknown.rpc and session:
            self._forget(session)
        if isinstance(result, dict):
            if entry.method in _ATTACHING:
                self._follow(entry, result)
            elif entry.method in _DETACHING and session is not None:
                self._forget(session)
        if entry.method == "initialize" and self._state == "greeting":
            self._attach()
        found: list[Incoming] = [answered]
        if session is not None:
            found += self._released(session)
        return found

    def _follow(self, entry: _Entry, result: dict[str, Any]) -> None:
        session = result.get("sessionId") if entry.method == "session/new" else entry.session
        if not isinstance(session, str):
            return
        meta = goclaw_meta(result) or result
        head = _integer(meta.get("headEventId"))
        self._cursors[session] = head if entry.start is None else entry.start
        (self._observed.add if entry.role == "observer" else self._observed.discard)(session)
        (self._latest.add if entry.latest else self._latest.discard)(session)
        if isinstance(meta.get("streamId"), str):
            self._streams[session] = meta["streamId"]

    def _forget(self, session: str) -> None:
        self._unplace(session)
        self._observed.discard(session)
        self._latest.discard(session)

    def _unplace(self, session: str) -> None:
        self._cursors.pop(session, None)
        self._streams.pop(session, None)
        self._cancels.discard(session)

    def _own_answer(self, session: str, message: dict[str, Any]) -> list[Incoming]:
        error = message.get("error")
        if session == _NO_SESSION:
            return []
        if session == "":
            if isinstance(error, dict):
                return [Refused(error)]
            self._attach()
            return []
        found: list[Incoming] = []
        if isinstance(error, dict):
            if self._state == "attaching":
                found = self._lost_place(session, error)
        elif session not in self._cursors:
            meta = goclaw_meta(message.get("result")) or message.get("result") or {}
            self._cursors[session] = _integer(meta.get("headEventId"))
        if self._state == "attaching" and not self._own:
            self._open()
        if session in self._unplaced:
            self._unplaced.discard(session)
            self._cursors.setdefault(session, 0)  # refused: the prompt itself will hear why
            waiting = {i: e for i, e in self._pending.items() if e.session == session}
            self._send_pending({i: e for i, e in waiting.items() if _is_prompt(e)})
        return found

    def _lost_place(self, session: str, error: dict[str, Any]) -> list[Incoming]:
        known = session in self._cursors
        is_gone = error.get("code") == SessionUnknown.rpc
        (self._forget if is_gone else self._unplace)(session)
        found: list[Incoming] = [Missed(session, error)] if known else []
        for _barrier_id, answered, entry in self._held.pop(session, []):
            found += self._settled(answered, entry)
        if known and not is_gone:
            self._subscribe(session, {})
        return found

    def _event(self, method: str, params: dict[str, Any], line: bytes) -> list[Incoming]:
        session = params.get("sessionId")
        if not isinstance(session, str):
            return []
        event_id = _integer(goclaw_meta(params).get("eventId"))
        replay = session in self._loading
        if event_id and not replay:
            if event_id <= self._cursors.get(session, 0):
                return []
            self._cursors[session] = event_id
        found: list[Incoming] = [Happened(session, event_id, method, params, line, replay=replay)]
        event = params.get("event")
        if isinstance(event, dict):
            if event.get("type") in ("run.accepted", "run.ended"):
                self._cancels.discard(session)
            if event.get("type") == "run.accepted":
                self._accepted(session, event)
            if event.get("type") == "approval.resolved":
                found += self._resolved(event.get("approvalId"))
        return found + self._released(session)

    def _accepted(self, session: str, event: dict[str, Any]) -> None:
        run_id, key = event.get("runId"), event.get("idempotencyKey")
        for entry in self._pending.values():
            if entry.session == session and entry.key == key and isinstance(run_id, str):
                entry.run_id = run_id
                if entry.cancel and entry.repeated:
                    self._cancel_run(entry)

    def _released(self, session: str) -> list[Incoming]:
        """Answers whose last event has been handed out."""
        held = self._held.get(session)
        if not held:
            return []
        found: list[Incoming] = []
        while held and held[0][0] <= self._cursors.get(session, 0):
            _barrier_id, answered, entry = held.pop(0)
            found += self._settled(answered, entry)
        if not held:
            del self._held[session]
        return found

    # -- questions ------------------------------------------------------------------------------

    def _question(self, remote_id: Any, method: str, params: dict[str, Any]) -> list[Incoming]:
        approval = goclaw_meta(params).get("approvalId")
        approval = approval if isinstance(approval, str) else ""
        if approval:
            for question in self._questions.values():
                if question.approval == approval:
                    question.remote_id = remote_id
                    if question.reply is not None:
                        self._outgoing.append(
                            encode({"jsonrpc": "2.0", "id": remote_id, **question.reply})
                        )
                    return []
        self._last_ask += 1
        self._questions[self._last_ask] = _Question(approval, remote_id)
        return [Asked(self._last_ask, method, params)]

    def _resolved(self, approval: object) -> list[Incoming]:
        return self._withdraw(lambda question: question.approval == approval)

    def _withdraw(self, is_it: Callable[[_Question], bool]) -> list[Incoming]:
        found: list[Incoming] = []
        for ask_id, question in list(self._questions.items()):
            if is_it(question):
                del self._questions[ask_id]
                if question.reply is None:
                    found.append(Withdrawn(ask_id))
        return found


def encode(message: dict[str, Any]) -> bytes:
    """Compact UTF-8 JSON on one line. ValueError for NaN, infinities and lone surrogates."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _request_line(request_id: int, method: str, params: dict[str, Any]) -> bytes:
    return encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def _is_prompt(entry: _Entry) -> bool:
    return entry.method == "session/prompt"


def goclaw_meta(value: object) -> dict[str, Any]:
    """``value._meta.goclaw`` where there is one, else an empty object."""
    meta = value.get("_meta") if isinstance(value, dict) else None
    inner = meta.get("goclaw") if isinstance(meta, dict) else None
    return inner if isinstance(inner, dict) else {}


def _integer(value: object) -> int:
    return value if type(value) is int else 0


def _barrier(message: dict[str, Any]) -> int:
    """The event that must come before this answer; 0 when there is none."""
    error = message.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    if isinstance(data, dict):
        return _integer(data.get("eventId"))
    return _integer(goclaw_meta(message.get("result")).get("eventId"))


def _with_key(params: dict[str, Any], new_key: Callable[[], str]) -> dict[str, Any]:
    inner = goclaw_meta(params)
    if isinstance(inner.get("idempotencyKey"), str):
        return params
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    return {**params, "_meta": {**meta, "goclaw": {**inner, "idempotencyKey": new_key()}}}
