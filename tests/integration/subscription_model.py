"""A model of a subscription, written from PROTOCOL 3: which state follows, what a client is told.

Owns the moves of one client and the rows they are judged by. It shares nothing with the handler but
the names of states and events. Not in here: the handler and the comparison
(``test_wire_model.py``).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING, Final

from goclaw.protocol.session import SubEvent, SubState

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LAG_MAX", "MOVES", "NEXT", "View", "after", "paths", "reachable"]

NONE, REPLAYING, LIVE = SubState.NONE, SubState.REPLAYING, SubState.LIVE
WAITING, CLOSING, CLOSED = SubState.WAITING, SubState.CLOSING, SubState.CLOSED

NEXT: Final[dict[tuple[SubState, SubEvent], SubState]] = {
    (NONE, SubEvent.SUBSCRIBE): REPLAYING,
    (NONE, SubEvent.SUBSCRIBE_GAP): NONE,
    (NONE, SubEvent.SUBSCRIBE_AHEAD): NONE,
    (REPLAYING, SubEvent.SUBSCRIBE): REPLAYING,
    (REPLAYING, SubEvent.SUBSCRIBE_GAP): REPLAYING,
    (REPLAYING, SubEvent.SUBSCRIBE_AHEAD): REPLAYING,
    (REPLAYING, SubEvent.CAUGHT_UP): LIVE,
    (REPLAYING, SubEvent.FULL): WAITING,
    (REPLAYING, SubEvent.LIMIT): CLOSING,
    (REPLAYING, SubEvent.RETENTION): CLOSING,
    (REPLAYING, SubEvent.UNSUBSCRIBE): NONE,
    (REPLAYING, SubEvent.DELETED): NONE,
    (REPLAYING, SubEvent.SHUTDOWN): CLOSING,
    (REPLAYING, SubEvent.REVOKED): CLOSING,
    (REPLAYING, SubEvent.GONE): CLOSED,
    (LIVE, SubEvent.SUBSCRIBE): REPLAYING,
    (LIVE, SubEvent.SUBSCRIBE_GAP): LIVE,
    (LIVE, SubEvent.SUBSCRIBE_AHEAD): LIVE,
    (LIVE, SubEvent.FULL): WAITING,
    (LIVE, SubEvent.LIMIT): CLOSING,
    (LIVE, SubEvent.RETENTION): CLOSING,
    (LIVE, SubEvent.UNSUBSCRIBE): NONE,
    (LIVE, SubEvent.DELETED): NONE,
    (LIVE, SubEvent.SHUTDOWN): CLOSING,
    (LIVE, SubEvent.REVOKED): CLOSING,
    (LIVE, SubEvent.GONE): CLOSED,
    (WAITING, SubEvent.SUBSCRIBE): WAITING,
    (WAITING, SubEvent.SUBSCRIBE_GAP): WAITING,
    (WAITING, SubEvent.SUBSCRIBE_AHEAD): WAITING,
    (WAITING, SubEvent.DRAINED): REPLAYING,
    (WAITING, SubEvent.LIMIT): CLOSING,
    (WAITING, SubEvent.RETENTION): CLOSING,
    (WAITING, SubEvent.UNSUBSCRIBE): NONE,
    (WAITING, SubEvent.DELETED): NONE,
    (WAITING, SubEvent.SHUTDOWN): CLOSING,
    (WAITING, SubEvent.REVOKED): CLOSING,
    (WAITING, SubEvent.GONE): CLOSED,
    (CLOSING, SubEvent.GONE): CLOSED,
    (CLOSED, SubEvent.SUBSCRIBE): REPLAYING,
}
"""What follows; what is not here cannot happen."""

LAG_MAX: Final = 5
"""Events that may be committed for a full socket; a move ``publish`` is two."""

MOVES: Final = (
    "from the start", "from here", "from the gap", "ahead", "publish", "read", "fill", "drain",
    "trim", "leave", "delete", "stop", "revoke", "go",
)  # fmt: skip
"""What may happen to one client; ``read`` lets the disk answer, ``trim`` publishes and then keeps
nothing but the newest event."""

_WISHES: Final = {
    "from the start": SubEvent.SUBSCRIBE,
    "from here": SubEvent.SUBSCRIBE,
    "from the gap": SubEvent.SUBSCRIBE_GAP,
    "ahead": SubEvent.SUBSCRIBE_AHEAD,
}
_CODES: Final = {SubEvent.SUBSCRIBE_GAP: -31001, SubEvent.SUBSCRIBE_AHEAD: -31002}


@dataclasses.dataclass(frozen=True)
class View:
    """One client. ``behind``: events wait for it; ``passed``: retention has taken some of them;
    ``counted``: committed while its socket was full."""

    state: SubState = NONE
    full: bool = False
    behind: bool = False
    passed: bool = False
    counted: int = 0


def after(view: View, move: str) -> tuple[View, int] | None:
    """The view after a move, and the code that the client is answered or closed with (0: none).
    None when the move cannot happen here."""
    if view.state is CLOSED:
        return None  # it comes back as another connection
    if view.state is CLOSING:
        return (View(_next(CLOSING, SubEvent.GONE)), 0) if move == "go" else None
    if move in _WISHES:
        return _subscribed(view, move)
    if move == "publish":
        return _published(view)
    if move in ("fill", "drain"):
        return None if view.full is (move == "fill") else _flowed(view, move)
    if move == "read":
        return _caught_up(view) if view.behind and not view.full else (view, 0)
    if move == "trim":
        view, code = _published(view)
        return dataclasses.replace(view, passed=view.behind), code
    if move in ("stop", "revoke"):
        event = SubEvent.SHUTDOWN if move == "stop" else SubEvent.REVOKED
        state = CLOSING if view.state is NONE else _next(view.state, event)
        return View(state), 1001 if move == "stop" else 4401
    if move == "go":
        return View(CLOSED), 0
    event = SubEvent.UNSUBSCRIBE if move == "leave" else SubEvent.DELETED
    state = NONE if view.state is NONE else _next(view.state, event)
    return View(state, full=view.full, counted=view.counted), 0


def _next(state: SubState, event: SubEvent) -> SubState:
    return NEXT[state, event]


def _subscribed(view: View, move: str) -> tuple[View, int]:
    event = _WISHES[move]
    state = _next(view.state, event)
    if event is not SubEvent.SUBSCRIBE:
        return dataclasses.replace(view, state=state), _CODES[event]
    behind = move == "from the start"
    if view.full and state is REPLAYING:
        state = _next(state, SubEvent.FULL)
    elif not behind and state is REPLAYING:
        state = _next(state, SubEvent.CAUGHT_UP)
    return View(state, view.full, behind, counted=view.counted), 0


def _published(view: View) -> tuple[View, int]:
    if view.state is NONE:
        return view, 0
    if view.state is WAITING:
        counted = view.counted + 2
        if counted > LAG_MAX:
            return View(_next(WAITING, SubEvent.LIMIT)), 1013
        return dataclasses.replace(view, behind=True, counted=counted), 0
    return dataclasses.replace(view, behind=True), 0


def _flowed(view: View, move: str) -> tuple[View, int]:
    if move == "fill":
        state = view.state if view.state is NONE else _next(view.state, SubEvent.FULL)
        return dataclasses.replace(view, state=state, full=True, counted=0), 0
    state = view.state
    if state is WAITING:
        state = _next(WAITING, SubEvent.DRAINED)
        if not view.behind:
            state = _next(state, SubEvent.CAUGHT_UP)
    return dataclasses.replace(view, state=state, full=False, counted=0), 0


def _caught_up(view: View) -> tuple[View, int]:
    if view.passed:
        return View(_next(view.state, SubEvent.RETENTION)), 1013
    state = view.state if view.state is LIVE else _next(view.state, SubEvent.CAUGHT_UP)
    return dataclasses.replace(view, state=state, behind=False), 0


def reachable(clients: int = 1, depth: int = 99) -> Iterator[tuple[tuple[View, ...], int, str]]:
    """Every (views, who, move) that can happen within that many moves, breadth first.

    A publication and a deletion happen to all at once.
    """
    start = tuple(View() for _ in range(clients))
    seen, frontier = {start}, deque([(start, 0)])
    while frontier:
        views, steps = frontier.popleft()
        for who in range(clients):
            for move in MOVES:
                following = together(views, who, move)
                if following is None:
                    continue
                yield views, who, move
                if following not in seen and steps + 1 < depth:
                    seen.add(following)
                    frontier.append((following, steps + 1))


def together(views: tuple[View, ...], who: int, move: str) -> tuple[View, ...] | None:
    """All views after a move of one of them; None when it cannot happen."""
    if after(views[who], move) is None:
        return None
    shared = move in ("publish", "delete", "trim")
    out = []
    for number, view in enumerate(views):
        found = after(view, move) if shared or number == who else None
        out.append(view if found is None else found[0])
    return tuple(out)


def paths() -> dict[tuple[View, str], list[str]]:
    """For every edge of one client the shortest way there, the edge itself last."""
    ways: dict[View, list[str]] = {View(): []}
    found: dict[tuple[View, str], list[str]] = {}
    frontier = deque([View()])
    while frontier:
        view = frontier.popleft()
        for move in MOVES:
            following = after(view, move)
            if following is None:
                continue
            found[view, move] = [*ways[view], move]
            if following[0] not in ways:
                ways[following[0]] = found[view, move]
                frontier.append(following[0])
    return found
