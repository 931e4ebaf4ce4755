"""Proves the table of a subscription: a model of it, explored whole, and the handler on every way.

Owns a transport of exact size under a real connection, on a real engine, with a disk that answers
when it is told to. Not in here: the model (``subscription_model.py``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest
import subscription_model as model
from subscription_model import NEXT, View
from wire_support import OPTED_IN, House, opened

from goclaw.conformance.laws import Ledger, Seen
from goclaw.core import limits
from goclaw.core.decisions import Origin
from goclaw.core.errors import IllegalTransition
from goclaw.protocol import session as table
from goclaw.protocol.session import TABLE, Step, SubEvent, SubState

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.gateway.connection import Connection

WORDS = orjson.dumps({"sessionUpdate": "plan", "entries": []})


class Disk:
    """Readers wait here until ``answer``."""

    def __init__(self, house: House) -> None:
        hub = house.engine.hub
        self._gate = asyncio.Event()
        self.waiting = self.reading = 0
        read_pages, read_warm = hub.read_pages, hub.read_warm

        async def gated(*args: Any, **options: Any) -> Any:
            self.waiting += 1
            await self._gate.wait()
            self.waiting -= 1
            self.reading += 1
            try:
                return await read_pages(*args, **options)
            finally:
                self.reading -= 1

        def cold(channel: Any, cursor: int, *args: Any, **options: Any) -> Any:
            if cursor < channel.head:
                return None
            return read_warm(channel, cursor, *args, **options)

        hub.read_pages, hub.read_warm = gated, cold  # type: ignore[method-assign]

    def answer(self, now: bool) -> None:
        if now:
            self._gate.set()
        else:
            self._gate.clear()


class Pipe:
    """A transport whose other end takes everything, or nothing."""

    lines = True

    def __init__(self, seen: Seen) -> None:
        self.owner: Connection | None = None
        self.ledger = Ledger(seen)
        self.codes: list[int] = []
        self.stuck = self.paused = False
        self.closed = 0
        self._held: list[bytes] = []

    is_open = property(lambda self: not self.closed)

    def frame(self, message: bytes) -> bytes:
        return message + b"\n"

    def write(self, data: bytes) -> None:
        if self.closed:
            return
        self._held.append(data)
        if not self.stuck:
            self.take()
        elif not self.paused:
            self.paused = True
            assert self.owner is not None
            self.owner.full()

    def take(self) -> None:
        data, self._held = b"".join(self._held), []
        for line in data.splitlines():
            message = orjson.loads(line)
            self.ledger.received(message)
            if "method" not in message and message["id"] != 0:
                self.codes.append(message.get("error", {}).get("code", 0))

    def buffered(self) -> int:
        return sum(map(len, self._held))

    def takes_bytes(self) -> bool:
        return not self.stuck

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or code

    def abort(self) -> None: ...


class Rig:
    """One client on the real handler."""

    def __init__(self, house: House, disk: Disk) -> None:
        self.house, self.disk = house, disk
        self.pipe = Pipe(Seen())
        self.connection = house.gateway._connect(self.pipe, Origin.UNIX)
        self.pipe.owner = self.connection
        self.session = ""
        self.sid = 0
        self.number = 0
        self.expected: list[int] = []
        self._ending: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        hello = {"protocolVersion": 1, "clientCapabilities": OPTED_IN}
        self.ask("initialize", hello, number=0)
        await self.new_session()

    async def new_session(self) -> None:
        made = await self.house.engine.intake.create_session(
            cwd="/tmp", roots=["/tmp"], brain="direct", interactive=True
        )
        self.session, self.sid = made.session_id, made.sid
        for _ in range(2):
            await self.publish()
        self.trim(keep_from=3)

    async def publish(self) -> None:
        bind, now = self.house.engine.database.bind, self.house.engine.clock.wall_ms()
        part = bind(
            "session_event", sid=self.sid, task_id=None, kind=0, type="update", payload=WORDS,
            now=now,
        )  # fmt: skip
        await self.house.engine.database.apply(part, part)

    def trim(self, keep_from: int | None = None) -> None:
        with apsw.Connection(str(self.house.engine.database.path)) as connection:
            connection.setbusytimeout(limits.BUSY_MS_MAX)
            connection.execute(
                "UPDATE sessions SET oldest = coalesce(?1, head) WHERE sid = ?2",
                (keep_from, self.sid),
            )
            connection.execute(
                "DELETE FROM events WHERE sid = ?1 AND event_id <"
                " (SELECT oldest FROM sessions WHERE sid = ?1)",
                (self.sid,),
            )

    def ask(self, method: str, params: dict[str, Any], number: int | None = None) -> None:
        if number is None:
            self.number += 1
            number = self.number
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.pipe.ledger.sent(message)
        self.connection.receive(orjson.dumps(message))

    async def move(self, move: str, view: View) -> None:
        """Do it, and wait until nothing moves any more."""
        params: dict[str, Any] = {"sessionId": self.session}
        if move in ("from the start", "from here", "from the gap", "ahead"):
            wish = {"from the start": 0, "from the gap": 1, "ahead": 1 << 40}.get(move)
            if wish is not None:
                params["fromEventId"] = wish
            self.ask("_goclaw/session/subscribe", params)
        elif move == "leave":
            self.ask("_goclaw/session/unsubscribe", params)
        elif move in ("publish", "trim"):
            await self.publish()
            if move == "trim":
                self.trim()
        elif move == "fill":
            self.pipe.stuck = True
            self.connection.notify("_x/fill", {})
        elif move == "drain":
            self.pipe.stuck = self.pipe.paused = False
            self.pipe.take()
            self.connection.drained()
        elif move == "read" and not view.full:
            self.disk.answer(True)
        elif move == "delete":
            await self.house.clients[0].call("session/delete", params)
            await self.settled()
            await self.new_session()
        elif move == "stop":
            self._ending = asyncio.ensure_future(self.connection.finish(1001, "stop"))
        elif move == "revoke":
            self.connection.revoke()
        elif move == "go":
            self.connection.lost()
        await self.settled(closing=move in ("stop", "revoke"))
        self.disk.answer(False)

    async def settled(self, *, closing: bool = False) -> None:
        connection, outbox = self.connection, self.connection.outbox
        async with asyncio.timeout(10):
            while True:
                await self.house.engine.database.read("session_bounds", sid=self.sid)
                busy = connection._inbox or connection._current or outbox._scheduled
                if closing and not self.pipe.closed:
                    continue
                if connection.gone.is_set() or self.pipe.closed:
                    return
                gate_open = self.disk._gate.is_set()
                if not busy and not self.disk.reading and not (gate_open and self.disk.waiting):
                    return

    @property
    def state(self) -> SubState:
        if self.connection.gone.is_set():
            return SubState.CLOSED
        if self.pipe.closed:
            return SubState.CLOSING
        cursor = self.connection.outbox.cursors.get(self.sid)
        return SubState.NONE if cursor is None else cursor.state

    @property
    def is_behind(self) -> bool:
        cursor = self.connection.outbox.cursors.get(self.sid)
        return cursor is not None and cursor.position < cursor.channel.head

    def judge(self, view: View, code: int, move: str) -> None:
        """AssertionError where handler and model do not agree."""
        assert self.state is view.state, (self.state, view.state)
        if code > 0:
            assert self.pipe.closed == code
        elif move in ("from the start", "from here", "from the gap", "ahead", "leave"):
            self.expected.append(code)
        if view.state in (SubState.CLOSING, SubState.CLOSED):
            return
        if not view.full:
            assert self.pipe.codes == self.expected
        assert self.is_behind is view.behind
        assert self.pipe.ledger.breaches == []

    async def end(self) -> None:
        self.disk.answer(True)
        if not self.connection.gone.is_set():
            self.connection.lost()
        if self._ending is not None:
            await self._ending
        self.disk.answer(False)


async def drive(home: Path, ways: list[list[str]]) -> None:
    """The handler along each way, judged at every step."""
    async with opened(home) as house:
        await house.unix()
        disk = Disk(house)
        for way in ways:
            rig, view = Rig(house, disk), View()
            await rig.begin()
            try:
                for number, move in enumerate(way):
                    found = model.after(view, move)
                    assert found is not None
                    await rig.move(move, view)
                    try:
                        rig.judge(*found, move)
                    except AssertionError as error:
                        error.add_note(f"at {way[number]!r} of {way}")
                        raise
                    view = found[0]
            finally:
                await rig.end()


def longest(ways: list[list[str]]) -> list[list[str]]:
    """Those that no other begins with: their steps are walked anyway."""
    whole = {tuple(way) for way in ways}
    starts = {way[:n] for way in whole for n in range(len(way))}
    return [list(way) for way in whole - starts]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAG_EVENTS_MAX", model.LAG_MAX)
    monkeypatch.setattr(limits, "CLOSE_MS_MAX", 10)


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.req("W-12")
def test_the_model_is_the_table() -> None:
    """Names are all they share."""
    assert {key: row.target for key, row in TABLE.items()} == NEXT


@pytest.mark.req("W-12")
def test_every_state_is_reached_and_left_and_every_row_is_taken() -> None:
    ways = model.paths()
    assert {view.state for view, _ in ways} | {SubState.CLOSED} == set(SubState)
    for view in {view for view, _ in ways}:
        end = model.after(view, "go")
        assert end is not None
        assert end[0].state is SubState.CLOSED
    taken: set[tuple[SubState, SubEvent]] = set()
    real = model._next

    def noted(state: SubState, event: SubEvent) -> SubState:
        taken.add((state, event))
        return real(state, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_next", noted)
        model.paths()
    # limits of bytes and stall strike in healthy states, too (test_gateway_outbox.py); what
    # retention took is noticed by the read behind the wait; GONE and a new connection are plain.
    rare = {
        key for key in NEXT
        if key[1] in (SubEvent.GONE, SubEvent.RETENTION)
        or key[0] is SubState.CLOSED or key[1] is SubEvent.LIMIT
    }  # fmt: skip
    assert set(NEXT) - rare <= taken


@pytest.mark.req("W-12")
def test_two_clients_do_not_meet() -> None:
    """All interleavings of two: neither's state says anything of the other's moves but those that
    happen to both."""
    edges = 0
    for views, who, move in model.reachable(clients=2, depth=6):
        following = model.together(views, who, move)
        assert following is not None
        other = 1 - who
        if move not in ("publish", "delete", "trim"):
            assert following[other] == views[other]
        elif (alone := model.after(views[other], move)) is not None:
            assert following[other] == alone[0]
        edges += 1
    assert edges > 3_000


# -- the handler -------------------------------------------------------------------------------


@pytest.mark.req("W-12", "W-4", "W-9")
def test_the_handler_goes_every_way_of_the_model(home: Path) -> None:
    ways = longest(list(model.paths().values()))
    asyncio.run(drive(home, ways))


def through(state: SubState) -> list[list[str]]:
    """Ways of the model that pass through a state."""
    return longest([way for (view, _), way in model.paths().items() if view.state is state])


PLANTED = [
    (SubState.WAITING, SubEvent.DRAINED, SubState.LIVE),
    (SubState.WAITING, SubEvent.SUBSCRIBE, SubState.LIVE),
    (SubState.REPLAYING, SubEvent.CAUGHT_UP, SubState.REPLAYING),
    (SubState.LIVE, SubEvent.FULL, SubState.LIVE),
    (SubState.LIVE, SubEvent.SUBSCRIBE, SubState.LIVE),
]


@pytest.mark.req("W-12")
@pytest.mark.parametrize(("state", "event", "target"), PLANTED)
def test_a_wrong_row_of_the_table_is_noticed(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: SubState,
    event: SubEvent,
    target: SubState,
) -> None:
    row = table.TABLE[state, event]
    ways = through(state)
    monkeypatch.setitem(table.TABLE, (state, event), Step(target, row.action))
    with pytest.raises((AssertionError, IllegalTransition)):  # or the handler trips over it
        asyncio.run(drive(home, ways))


@pytest.mark.req("W-12")
@pytest.mark.parametrize(("state", "event", "target"), PLANTED[:3])
def test_a_wrong_row_of_the_model_is_noticed(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: SubState,
    event: SubEvent,
    target: SubState,
) -> None:
    monkeypatch.setitem(NEXT, (state, event), target)
    with pytest.raises((AssertionError, KeyError)):  # or the model itself comes to no end
        asyncio.run(drive(home, through(state)))
