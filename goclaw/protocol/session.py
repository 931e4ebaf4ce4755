"""What may be sent when: the handshake of a connection and the life of a subscription, as data.

Owns the rules of PROTOCOL 1.1 (initialize first) and the table of PROTOCOL 3. Sans-I/O. Not in
here: sockets and queues (``gateway``), what a method does (``gateway/handlers.py``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from goclaw.core import limits
from goclaw.core.errors import (
    CursorAhead,
    HandshakeRequired,
    IllegalTransition,
    InvalidParams,
    InvalidRequest,
    ReplayGap,
)

if TYPE_CHECKING:
    from goclaw.core.records import Session

__all__ = [
    "EXTENSION_VERSION",
    "PROTOCOL_VERSION",
    "TABLE",
    "Client",
    "CloseReason",
    "Handshake",
    "Step",
    "SubEvent",
    "SubState",
    "place",
    "step",
]

PROTOCOL_VERSION: Final = 1
EXTENSION_VERSION: Final = 1
_ANEW: Final = "Load the session anew: session/load, or events from 0."

# -- the handshake -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """What a client said of itself. ``opted_in``: it understands ``_goclaw/*`` notifications."""

    name: str = ""
    version: str = ""
    opted_in: bool = False
    notices: bool = False
    """It shows ``notice`` updates to its user."""
    client_id: str | None = None
    attempt_token: str | None = None
    """It asks for no more than what the token of one attempt opens."""


class Handshake:
    """``initialize`` first, and once."""

    __slots__ = ("client",)

    def __init__(self) -> None:
        self.client: Client | None = None
        """None until ``initialize`` was understood."""

    def admit(self, method: str) -> None:
        """Raise unless a request for ``method`` may come now."""
        if method == "initialize":
            if self.client is not None:
                raise InvalidRequest("This connection is initialized already.")
        elif self.client is None:
            if method.startswith("_goclaw/"):
                raise HandshakeRequired(f"Send initialize before {method[:80]}.")
            raise InvalidRequest("The first request must be initialize.")

    def initialize(self, params: dict[str, Any]) -> Client:
        """Take the params of ``initialize``; InvalidParams leaves the handshake open."""
        version = params.get("protocolVersion")
        if type(version) is not int or version < 0:
            raise InvalidParams("protocolVersion must be a whole number.", param="protocolVersion")
        info = _object(params.get("clientInfo"))
        capabilities = _object(params.get("clientCapabilities"))
        offered = _object(capabilities.get("_meta")).get("goclaw")
        extension = _object(offered)
        client_id, attempt = (
            _text_or_none(extension, name) for name in ("clientId", "attemptToken")
        )
        speaks = extension.get("version") == EXTENSION_VERSION
        self.client = Client(
            name=_text(info.get("name")),
            version=_text(info.get("version")),
            # A bare true is a sloppy way to say {}: everything by default (PROTOCOL 4).
            opted_in=offered is True or (speaks and bool(extension.get("notifications"))),
            notices=_object(capabilities.get("session")).get("notices") not in (None, False),
            client_id=client_id,
            attempt_token=attempt,
        )
        return self.client

    def refuse(self) -> None:
        """What it asked for cannot be had: the handshake is open again."""
        self.client = None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text_or_none(extension: dict[str, Any], name: str) -> str | None:
    value = extension.get(name)
    if value is None or (isinstance(value, str) and 1 <= len(value) <= limits.KEY_CHARS_MAX):
        return value
    raise InvalidParams(
        f"{name} must be a string of 1 to {limits.KEY_CHARS_MAX} characters.", param=name
    )


def _text(value: object) -> str:
    return value[: limits.ID_CHARS_MAX] if isinstance(value, str) else ""


# -- a subscription ----------------------------------------------------------------------------


class SubState(enum.StrEnum):
    """Where one connection stands with one session."""

    NONE = "NONE"
    """Not subscribed: nothing of the session is sent."""
    REPLAYING = "REPLAYING"
    """Behind the head: pages from ring or store."""
    LIVE = "LIVE"
    """Caught up: events go out as they are committed."""
    WAITING = "WAITING"
    """The socket is full: the cursor keeps the place, nothing is pulled."""
    CLOSING = "CLOSING"
    """The farewell is on its way."""
    CLOSED = "CLOSED"
    """The connection is gone."""


class SubEvent(enum.StrEnum):
    """What happens to a subscription."""

    SUBSCRIBE = "subscribe"
    """With a cursor that the log holds; a second one replaces the cursor."""
    SUBSCRIBE_GAP = "subscribe, cursor < oldest - 1"
    SUBSCRIBE_AHEAD = "subscribe, cursor > head or other streamId"
    CAUGHT_UP = "caught up with head"
    FULL = "socket full"
    DRAINED = "socket drained"
    LIMIT = "lag, bytes or stall limit"
    RETENTION = "retention passes the cursor"
    UNSUBSCRIBE = "unsubscribe"
    DELETED = "session deleted"
    SHUTDOWN = "shutdown"
    REVOKED = "token revoked"
    GONE = "peer closed or time is up"


class CloseReason(enum.StrEnum):
    """Why a connection that does not keep up is closed (PROTOCOL 2.6)."""

    LAG = "lag"
    BYTES = "bytes"
    STALL = "stall"
    RETENTION = "retention"


class Step(NamedTuple):
    """One row of the table."""

    target: SubState
    action: str


_OPEN: Final = (SubState.REPLAYING, SubState.LIVE, SubState.WAITING)
_HEALTHY: Final = (SubState.REPLAYING, SubState.LIVE)

TABLE: Final[dict[tuple[SubState, SubEvent], Step]] = {
    (SubState.NONE, SubEvent.SUBSCRIBE): Step(SubState.REPLAYING, "answer, then pages"),
    (SubState.NONE, SubEvent.SUBSCRIBE_GAP): Step(SubState.NONE, "error replay_gap, nothing sent"),
    (SubState.NONE, SubEvent.SUBSCRIBE_AHEAD): Step(SubState.NONE, "error cursor_ahead"),
    **{
        (state, event): Step(state, action)
        for state in _OPEN
        for event, action in (
            (SubEvent.SUBSCRIBE_GAP, "error replay_gap, the old cursor stays"),
            (SubEvent.SUBSCRIBE_AHEAD, "error cursor_ahead, the old cursor stays"),
        )
    },
    **{
        (state, SubEvent.SUBSCRIBE): Step(SubState.REPLAYING, "answer, the new cursor replaces")
        for state in _HEALTHY
    },
    (SubState.WAITING, SubEvent.SUBSCRIBE): Step(SubState.WAITING, "the new cursor replaces"),
    (SubState.REPLAYING, SubEvent.CAUGHT_UP): Step(SubState.LIVE, "no gap, no duplicate"),
    **{
        (state, SubEvent.FULL): Step(SubState.WAITING, "keep the cursor, pull nothing")
        for state in _HEALTHY
    },
    (SubState.WAITING, SubEvent.DRAINED): Step(SubState.REPLAYING, "go on from the cursor"),
    (SubState.WAITING, SubEvent.LIMIT): Step(SubState.CLOSING, "_goclaw/backpressure, close 1013"),
    **{
        (state, SubEvent.LIMIT): Step(SubState.CLOSING, "_goclaw/backpressure, close 1013")
        for state in _HEALTHY  # bytes and stall may strike below the high-water mark
    },
    **{
        (state, SubEvent.RETENTION): Step(SubState.CLOSING, "_goclaw/backpressure, close 1013")
        for state in _OPEN
    },
    **{(state, SubEvent.UNSUBSCRIBE): Step(SubState.NONE, "forget the cursor") for state in _OPEN},
    **{(state, SubEvent.DELETED): Step(SubState.NONE, "forget the cursor") for state in _OPEN},
    **{(state, SubEvent.SHUTDOWN): Step(SubState.CLOSING, "close 1001") for state in _OPEN},
    **{(state, SubEvent.REVOKED): Step(SubState.CLOSING, "close 4401") for state in _OPEN},
    **{
        (state, SubEvent.GONE): Step(SubState.CLOSED, "abort, forget the cursor")
        for state in (*_OPEN, SubState.CLOSING)
    },
    (SubState.CLOSED, SubEvent.SUBSCRIBE): Step(SubState.REPLAYING, "on a new connection"),
}
"""Every move there is. What is not here is refused and changes nothing."""


def step(state: SubState, event: SubEvent) -> Step:
    """The row for that state and event; IllegalTransition when there is none."""
    row = TABLE.get((state, event))
    if row is None:
        raise IllegalTransition(
            f"A subscription in {state} knows no {event}.",
            **{"from": str(state)},
            to=None,
            event=str(event),
        )
    return row


def place(session: Session, from_event_id: int | None, stream_id: str | None = None) -> int:
    """The cursor for a wish: the last id applied, 0 for the oldest kept, None for live only.

    ReplayGap when events behind it are no longer kept, CursorAhead when the log does not reach it
    or is another one. ``session`` is as of one read.
    """
    if from_event_id is None:
        from_event_id = session.head
    if from_event_id > session.head or stream_id not in (None, session.stream_id):
        is_other = stream_id not in (None, session.stream_id)
        raise CursorAhead(
            "The cursor is of another log of this session: it was restored or cut."
            if is_other
            else f"The cursor {from_event_id} is beyond the last event, {session.head}.",
            hint=_ANEW,
            sessionId=session.session_id,
            headEventId=session.head,
            streamId=session.stream_id,
            recover="session/load",
        )
    if from_event_id == 0:
        return session.oldest - 1
    if from_event_id < session.oldest - 1:
        raise ReplayGap(
            f"Events {from_event_id + 1} to {session.oldest - 1} are no longer kept.",
            hint=_ANEW,
            sessionId=session.session_id,
            requestedEventId=from_event_id,
            oldestEventId=session.oldest,
            headEventId=session.head,
            recover="session/load",
        )
    return from_event_id
