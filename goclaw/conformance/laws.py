"""What holds of every message of a connection, whatever was asked (PROTOCOL 1.1, 2.2, 2.5).

Owns the books of a reader that believes nothing: who is owed an answer, which event comes next. A
breach is written down, not raised: it belongs to whoever judges the server. Sans-I/O. Not in here:
connections (``client``), what a single method promises (``checks``).
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["Ledger", "Seen", "event_id_of"]

_ATTACHING: Final = ("session/new", "session/load", "session/resume", "_goclaw/session/subscribe")
_DETACHING: Final = ("session/close", "session/delete", "_goclaw/session/unsubscribe")


class Seen:
    """Every event that any connection of a run was shown: live and replayed, it is the same."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, int], str] = {}

    def same(self, session: str, event_id: int, message: dict[str, Any]) -> bool:
        """False when it was another event under that id before."""
        text = json.dumps(message, sort_keys=True)
        return self._texts.setdefault((session, event_id), text) == text


class _Asked:
    """A request of ours without an answer; ``wish`` is the cursor that it asks for."""

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        self.method = method
        session = params.get("sessionId")
        self.session = session if isinstance(session, str) else ""
        self.wish: object = params.get("fromEventId")
        if method == "session/resume":
            self.wish = _goclaw(params).get("fromEventId")
        self.latest = params.get("mode") == "latest"


class _Place:
    """Where this connection stands in one session; ``last`` None until its first event."""

    def __init__(self, last: int | None, *, dense: bool) -> None:
        self.last, self.dense = last, dense


class Ledger:
    """The books of one connection. ``breaches`` says in sentences what was wrong."""

    def __init__(self, seen: Seen) -> None:
        self.breaches: list[str] = []
        self._seen = seen
        self._asked: dict[Any, _Asked] = {}
        self._answered: set[Any] = set()
        self._opted_in = False
        self._places: dict[str, _Place] = {}
        self._owned: set[str] = set()  # sessions that this connection has made or attached to
        self._past: dict[str, int] = {}  # loads under way, by session

    def sent(self, message: Any) -> None:
        """We sent this."""
        if not isinstance(message, dict) or "method" not in message or "id" not in message:
            return
        params = message.get("params")
        asked = _Asked(message["method"], params if isinstance(params, dict) else {})
        self._asked[_key(message["id"])] = asked
        if asked.method == "session/load":
            self._past[asked.session] = self._past.get(asked.session, 0) + 1
        elif asked.method == "session/prompt":
            # It attaches the connection, with the first event that follows.
            self._places.setdefault(asked.session, _Place(None, dense=True))
            self._owned.add(asked.session)
        elif asked.method == "initialize":
            capabilities = (params or {}).get("clientCapabilities") or {}
            self._opted_in = bool(_goclaw(capabilities).get("notifications"))

    def received(self, message: Any) -> None:
        """The server sent this."""
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self._wrong(f"no JSON-RPC 2.0 message: {_short(message)}")
        elif "method" not in message:
            self._answer(message)
        else:
            method = message["method"]
            if method.startswith("_goclaw/") and not self._opted_in:
                self._wrong(f"{method} was sent to a client that did not opt in")
            if method in ("session/update", "_goclaw/session/event"):
                self._event(method, message)

    # -- answers -------------------------------------------------------------------------------

    def _answer(self, message: dict[str, Any]) -> None:
        if ("result" in message) == ("error" in message):
            self._wrong(f"an answer has a result or an error: {_short(message)}")
            return
        key = _key(message.get("id"))
        asked = self._asked.pop(key, None)
        if asked is None:
            if message.get("id") is not None:
                again = "a second time" if key in self._answered else "and was never asked"
                self._wrong(f"request {message['id']!r} was answered {again}")
            return
        self._answered.add(key)
        if asked.method == "session/load" and asked.session in self._past:
            self._past[asked.session] -= 1
        if "error" in message:
            self._refusal(message["error"])
            return
        result = message["result"]
        if asked.method in _ATTACHING:
            self._attached(asked, result)
        elif asked.method in _DETACHING:
            self._places.pop(asked.session, None)
        elif asked.method == "session/prompt":
            self._barrier(asked, result)

    def _refusal(self, error: Any) -> None:
        good = isinstance(error, dict) and type(error.get("code")) is int
        if not good or not isinstance(error.get("message"), str):
            self._wrong(f"an error has a code and a message: {_short(error)}")
        elif "not found" in error["message"].lower() and error["code"] not in (-32002, -32601):
            self._wrong(f"only -32002 may say 'not found': {_short(error)}")

    def _attached(self, asked: _Asked, result: Any) -> None:
        session = asked.session or str(result.get("sessionId"))
        block = result if asked.method.startswith("_") else _goclaw(result)
        self._owned.add(session)
        head = block.get("headEventId")
        wish = head if asked.wish is None else asked.wish
        if asked.wish == 0:
            wish = (block.get("oldestEventId") or 1) - 1
        self._places[session] = _Place(
            wish if type(wish) is int else None, dense=self._opted_in and not asked.latest
        )

    def _barrier(self, asked: _Asked, result: Any) -> None:
        barrier, place = _goclaw(result).get("eventId"), self._places.get(asked.session)
        if type(barrier) is not int or place is None or place.last is None or not self._opted_in:
            return
        if place.last < barrier:
            self._wrong(
                f"a prompt was answered with event {barrier} when {place.last} was the last sent"
            )

    # -- events --------------------------------------------------------------------------------

    def _event(self, method: str, message: dict[str, Any]) -> None:
        params = message.get("params") or {}
        session, event_id = str(params.get("sessionId")), event_id_of(params)
        if session not in self._owned:
            loading = self._past.get(session) or any(
                asked.session == session and asked.method in _ATTACHING
                for asked in self._asked.values()
            )
            if not loading:
                self._wrong(f"{method} of {session}, which this client has not been given")
        if event_id is None:
            if method != "session/update":
                self._wrong(f"{method} without an eventId")
            return
        if not self._seen.same(session, event_id, message):
            self._wrong(f"event {event_id} of {session} is not what it was before")
        place = self._places.get(session)
        if place is None:
            self._wrong(f"event {event_id} of {session} was sent without a subscription")
            return
        if place.last is not None and event_id <= place.last:
            self._wrong(f"event {event_id} of {session} came after event {place.last}")
        elif place.last is not None and place.dense and event_id != place.last + 1:
            self._wrong(f"event {event_id} of {session} came next after {place.last}: a hole")
        place.last = event_id

    def _wrong(self, what: str) -> None:
        self.breaches.append(what)


def event_id_of(params: dict[str, Any]) -> int | None:
    """The id of an event, from the params of its notification."""
    found = _goclaw(params).get("eventId")
    return found if type(found) is int else None


def _goclaw(holder: Any) -> dict[str, Any]:
    meta = holder.get("_meta") if isinstance(holder, dict) else None
    found = meta.get("goclaw") if isinstance(meta, dict) else None
    return found if isinstance(found, dict) else {}


def _key(request_id: Any) -> tuple[str, Any]:
    return type(request_id).__name__, request_id


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."
