"""Proves the handshake and the subscription table, every state with every event.

Owns a second, independent reading of PROTOCOL 3. Not in here: the handler that is driven by the
table (``test_gateway_outbox.py``).
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from goclaw.core.errors import (
    CursorAhead,
    HandshakeRequired,
    IllegalTransition,
    InvalidParams,
    InvalidRequest,
    ReplayGap,
)
from goclaw.core.records import Session
from goclaw.protocol.session import TABLE, Client, Handshake, SubEvent, SubState, place, step

NONE, REPLAYING, LIVE, WAITING, CLOSING, CLOSED = SubState


def hello(**extension: Any) -> dict[str, Any]:
    return {
        "protocolVersion": 1,
        "clientInfo": {"name": "n", "version": "2"},
        "clientCapabilities": {"_meta": {"goclaw": extension}},
    }


# -- the handshake -----------------------------------------------------------------------------


@pytest.mark.req("W-1", "W-5")
def test_nothing_comes_before_initialize() -> None:
    handshake = Handshake()
    handshake.admit("initialize")
    with pytest.raises(InvalidRequest):
        handshake.admit("session/new")
    with pytest.raises(HandshakeRequired):
        handshake.admit("_goclaw/system/status")
    handshake.initialize({"protocolVersion": 1})
    handshake.admit("session/new")
    handshake.admit("_goclaw/system/status")


@pytest.mark.req("W-1")
def test_initialize_comes_once() -> None:
    handshake = Handshake()
    handshake.initialize({"protocolVersion": 99})
    with pytest.raises(InvalidRequest):
        handshake.admit("initialize")


@pytest.mark.parametrize("version", [None, "1", 1.0, True, -1])
def test_the_version_is_a_whole_number(version: object) -> None:
    handshake = Handshake()
    with pytest.raises(InvalidParams):
        handshake.initialize({"protocolVersion": version})
    handshake.admit("initialize")  # the handshake is still open


@pytest.mark.req("W-2")
def test_a_client_opts_in() -> None:
    client = Handshake().initialize(hello(version=1, notifications=True, clientId="c"))
    assert client == Client("n", "2", opted_in=True, client_id="c")


@pytest.mark.req("W-2")
@pytest.mark.parametrize(
    ("offered", "opted_in"),
    [
        (None, False),
        (False, False),
        (True, True),
        ({}, False),
        ({"version": 1}, False),
        ({"version": 2, "notifications": True}, False),
        ({"version": 1, "notifications": {}}, False),
        ({"version": 1, "notifications": True}, True),
    ],
)
def test_sloppy_capabilities(offered: object, opted_in: bool) -> None:
    params = {"protocolVersion": 1, "clientCapabilities": {"_meta": {"goclaw": offered}}}
    assert Handshake().initialize(params).opted_in is opted_in


@pytest.mark.parametrize("capabilities", [None, True, [], "x", {"_meta": None}, {"_meta": []}])
def test_odd_capabilities_are_no_capabilities(capabilities: object) -> None:
    params = {"protocolVersion": 1, "clientCapabilities": capabilities, "clientInfo": 7}
    assert Handshake().initialize(params) == Client()


@pytest.mark.parametrize("client_id", ["", 7, "x" * 129])
def test_a_client_id_is_a_short_string(client_id: object) -> None:
    with pytest.raises(InvalidParams, match="clientId"):
        Handshake().initialize(hello(clientId=client_id))


# -- the table ---------------------------------------------------------------------------------

OPEN = {REPLAYING, LIVE, WAITING}


def expected(state: SubState, event: SubEvent) -> SubState | None:
    """PROTOCOL 3 in other words; None: it cannot happen."""
    if event is SubEvent.SUBSCRIBE:
        return {NONE: REPLAYING, CLOSED: REPLAYING, WAITING: WAITING, CLOSING: None}.get(
            state, REPLAYING
        )
    if event in (SubEvent.SUBSCRIBE_GAP, SubEvent.SUBSCRIBE_AHEAD):
        return state if state in OPEN | {NONE} else None
    if event is SubEvent.CAUGHT_UP:
        return LIVE if state is REPLAYING else None
    if event is SubEvent.FULL:
        return WAITING if state in (REPLAYING, LIVE) else None
    if event is SubEvent.DRAINED:
        return REPLAYING if state is WAITING else None
    if event is SubEvent.GONE:
        return CLOSED if state in OPEN | {CLOSING} else None
    if state not in OPEN:
        return None
    return NONE if event in (SubEvent.UNSUBSCRIBE, SubEvent.DELETED) else CLOSING


@pytest.mark.req("W-12")
@pytest.mark.parametrize(("state", "event"), [*itertools.product(SubState, SubEvent)])
def test_every_state_meets_every_event(state: SubState, event: SubEvent) -> None:
    target = expected(state, event)
    if target is None:
        with pytest.raises(IllegalTransition) as refused:
            step(state, event)
        assert refused.value.data["from"] == str(state)
    else:
        found = step(state, event)
        assert found.target is target
        assert found.action


@pytest.mark.req("W-12")
def test_every_row_is_reached_and_every_state_left() -> None:
    seen, frontier = {NONE}, [NONE]
    while frontier:
        state = frontier.pop()
        for (source, _), row in TABLE.items():
            if source is state and row.target not in seen:
                seen.add(row.target)
                frontier.append(row.target)
    assert seen == set(SubState)
    assert {source for source, _ in TABLE} == set(SubState)


# -- cursors -----------------------------------------------------------------------------------


def log(oldest: int = 1, head: int = 10) -> Session:
    return Session(
        sid=1, session_id="s", stream_id="t", cwd="/", roots=("/",), brain="direct",
        interactive=True, title=None, head=head, oldest=oldest, created_at=0, updated_at=0,
        closed=False, deleted=False,
    )  # fmt: skip


@pytest.mark.req("W-4")
@pytest.mark.parametrize(
    ("oldest", "wish", "cursor"),
    [
        (1, None, 10),
        (1, 0, 0),
        (1, 1, 1),
        (1, 10, 10),
        (4, 0, 3),
        (4, 3, 3),
        (4, 4, 4),
        (4, None, 10),
    ],
)
def test_a_cursor_finds_its_place(oldest: int, wish: int | None, cursor: int) -> None:
    assert place(log(oldest), wish) == cursor
    assert place(log(oldest), wish, "t") == cursor


@pytest.mark.req("W-4", "W-5")
@pytest.mark.parametrize("wish", [1, 2])
def test_a_cursor_behind_the_oldest_is_a_gap(wish: int) -> None:
    with pytest.raises(ReplayGap) as gap:
        place(log(oldest=4), wish)
    assert gap.value.data == {
        "sessionId": "s",
        "requestedEventId": wish,
        "oldestEventId": 4,
        "headEventId": 10,
        "recover": "session/load",
    }


@pytest.mark.req("W-4", "W-5")
@pytest.mark.parametrize(("wish", "stream"), [(11, None), (11, "t"), (3, "other"), (None, "other")])
def test_a_cursor_of_another_log_is_ahead(wish: int | None, stream: str | None) -> None:
    with pytest.raises(CursorAhead) as ahead:
        place(log(), wish, stream)
    assert ahead.value.data["headEventId"] == 10
    assert ahead.value.data["streamId"] == "t"


def test_an_empty_log_has_one_place() -> None:
    assert place(log(head=0), None) == place(log(head=0), 0) == 0
    with pytest.raises(CursorAhead):
        place(log(head=0), 1)
