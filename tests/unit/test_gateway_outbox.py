"""Proves the outbound order of a connection and the rule for slow readers, event by event.

Owns a transport of exact size. Not in here: real sockets (``test_wire_slow.py``).
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest

from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import StorageFailed
from goclaw.core.records import Session
from goclaw.engine.hub import Hub
from goclaw.gateway import outbox as module
from goclaw.gateway.outbox import Outbox
from goclaw.protocol.session import CloseReason, SubEvent, SubState
from goclaw.store import open_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from goclaw.store import Database


class Pipe:
    """A transport whose other end takes bytes only when told to."""

    lines = True

    def __init__(self) -> None:
        self.outbox: Outbox | None = None
        self.held: list[bytes] = []
        self.taken: list[bytes] = []
        self.paused = False
        self.writable = False
        self.closed: tuple[int, str] | None = None
        self.gone = asyncio.Event()

    def frame(self, message: bytes) -> bytes:
        return message + b"\n"

    def write(self, data: bytes) -> None:
        self.held.append(data)
        if not self.paused and self.buffered() > limits.WRITE_BYTES_MAX:
            self.paused = True
            assert self.outbox is not None
            self.outbox.full()

    def buffered(self) -> int:
        return sum(map(len, self.held))

    @property
    def is_open(self) -> bool:
        return self.closed is None

    def takes_bytes(self) -> bool:
        return self.writable

    def take(self, count: int | None = None) -> None:
        """The peer reads ``count`` bytes, or everything."""
        data = b"".join(self.held)
        count = len(data) if count is None else count
        self.taken.append(data[:count])
        self.held = [data[count:]] if data[count:] else []
        if self.paused and self.buffered() < limits.WRITE_BYTES_MAX // 4:
            self.paused = False
            assert self.outbox is not None
            self.outbox.drained()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed = code, reason
        self.gone.set()

    def abort(self) -> None: ...

    def messages(self) -> list[Any]:
        """What the peer has: event ids, and direct messages as they are."""
        found: list[Any] = []
        for line in b"".join(self.taken).split(b"\n"):
            if line:
                value = orjson.loads(line)
                meta = value.get("params", {}).get("_meta", {}).get("goclaw", {})
                found.append(meta.get("eventId") or value.get("say"))
        return found


class Bench:
    """A hub, a pipe and an outbox; events are published as the writer would."""

    def __init__(self, database: Database) -> None:
        self.hub = Hub(database, SystemClock(), ring_bytes=1 << 22, ring_bytes_total=1 << 26)
        self.heads = {1: 0, 2: 0}
        self.slow: list[CloseReason] = []
        self.stopped = asyncio.Event()
        self.pipe, self.outbox = self.client()

    def client(self) -> tuple[Pipe, Outbox]:
        pipe = Pipe()

        def too_slow(reason: CloseReason) -> None:
            self.slow.append(reason)
            self.stopped.set()
            box.stop(SubEvent.LIMIT)

        pipe.outbox = box = Outbox(self.hub, pipe, too_slow)
        box.opt_in()
        return pipe, box

    def session(self, sid: int = 1) -> Session:
        return Session(
            sid=sid, session_id=f"s{sid}", stream_id="t", cwd="/", roots=("/",), brain="direct",
            interactive=True, title=None, head=self.heads[sid], oldest=1, created_at=0,
            updated_at=0, closed=False, deleted=False,
        )  # fmt: skip

    def publish(self, count: int = 1, size: int = 0, sid: int = 1) -> None:
        events = []
        payload = orjson.dumps({"x": "x" * size})
        for _ in range(count):
            self.heads[sid] += 1
            events.append((sid, self.heads[sid], 0, "update", 0, None, None, 0, None, payload))
        self.hub.publish(events)  # type: ignore[arg-type]

    def subscribe(self, position: int, sid: int = 1) -> None:
        self.outbox.subscribe(self.session(sid), position, controller=True)

    def say(self, word: str, **more: Any) -> None:
        self.outbox.send(orjson.dumps({"say": word}), **more)

    def fill(self) -> None:
        """Write what makes the transport full."""
        if not self.pipe.paused:
            self.say("x" * limits.WRITE_BYTES_MAX)
            self.outbox.flush()

    def run(self) -> list[Any]:
        """Let everything out."""
        for _ in range(1000):
            before = self.pipe.taken[:]
            self.outbox.flush()
            self.pipe.take()
            if b"".join(before) == b"".join(self.pipe.taken):
                break
        return self.pipe.messages()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = open_database(tmp_path)
    yield found
    found.close()


def on_loop(test: Callable[[Bench], Awaitable[None] | None]) -> Callable[[Database], None]:
    def run(database: Database) -> None:
        async def whole() -> None:
            bench = Bench(database)
            found = test(bench)
            if found is not None:
                await found
            bench.outbox.stop(SubEvent.GONE)

        asyncio.run(whole())

    run.__name__ = test.__name__
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    return run


# -- the order -----------------------------------------------------------------------------------


@on_loop
@pytest.mark.req("W-3")
def test_direct_messages_keep_their_order_and_go_before_events(bench: Bench) -> None:
    bench.subscribe(0)
    bench.publish(3)
    for word in "abc":
        bench.say(word)
    assert bench.run() == ["a", "b", "c", 1, 2, 3]


@on_loop
@pytest.mark.req("W-3")
def test_an_answer_waits_for_its_event(bench: Bench) -> None:
    bench.subscribe(0)
    bench.say("end", after=(1, 3))
    bench.say("other")
    assert bench.run() == ["other"]
    bench.publish(2)
    assert bench.run() == ["other", 1, 2]
    bench.publish(2)
    assert bench.run() == ["other", 1, 2, 3, 4, "end"]
    bench.say("at once", after=(1, 4))
    assert bench.run()[-1] == "at once"


@on_loop
@pytest.mark.req("W-3")
def test_a_session_that_is_not_subscribed_is_no_barrier(bench: Bench) -> None:
    bench.say("a", after=(1, 3))
    bench.subscribe(0)
    bench.say("b", after=(1, 3))
    bench.say("c", after=(2, 3))
    bench.outbox.unsubscribe(1)
    assert bench.run() == ["a", "c", "b"]


@on_loop
@pytest.mark.req("W-3", "W-10")
def test_what_waits_survives_a_new_cursor(bench: Bench) -> None:
    bench.subscribe(0)
    bench.publish(2)
    bench.say("end", after=(1, 4))
    bench.say("history")
    bench.subscribe(2)
    bench.publish(2)
    assert bench.run() == ["history", 3, 4, "end"]


@on_loop
def test_what_is_called_with_an_answer_sees_it_in_its_place(bench: Bench) -> None:
    bench.subscribe(0)
    bench.say("bye", after=(1, 2), then=lambda: bench.outbox.unsubscribe(1))
    bench.say("also", after=(1, 3))
    bench.publish(2)
    assert bench.run() == [1, 2, "bye", "also"]
    bench.publish(2)
    assert bench.run() == [1, 2, "bye", "also"]


@on_loop
async def test_a_long_answer_keeps_its_place(bench: Bench) -> None:
    class Pages:
        def __init__(self) -> None:
            self.left = [b'{"say":"p1"}\n', b'{"say":"p2"}\n', b""]

        async def pull(self) -> bytes:
            await asyncio.sleep(0)
            return self.left.pop(0)

    bench.subscribe(0)
    bench.say("before")
    bench.outbox.send_source(Pages())
    bench.say("after")
    bench.publish(1)
    await bench.outbox.flushed()
    assert bench.run() == ["before", "p1", "p2", "after", 1]


@on_loop
def test_sessions_take_turns(bench: Bench) -> None:
    for sid in (1, 2):
        bench.subscribe(0, sid)
        bench.publish(200, 1000, sid)
    bench.outbox.flush()
    bench.pipe.take()
    seen = [orjson.loads(line)["params"]["sessionId"] for line in bench.pipe.taken[0].splitlines()]
    assert len(set(seen)) == 2


@on_loop
@pytest.mark.req("R-5")
def test_a_long_replay_leaves_the_loop_to_others(bench: Bench) -> None:
    class Wide(Pipe):
        def write(self, data: bytes) -> None:
            self.taken.append(data)

    bench.pipe = Wide()
    bench.pipe.outbox = bench.outbox = Outbox(bench.hub, bench.pipe, bench.slow.append)
    bench.subscribe(0)
    bench.publish(3000, 1000)
    bench.outbox.flush()
    assert len(bench.pipe.taken) == limits.PUMP_WRITES_MAX
    assert all(len(data) <= limits.WRITE_BYTES_MAX for data in bench.pipe.taken)


# -- slow readers --------------------------------------------------------------------------------


@on_loop
@pytest.mark.req("W-9")
def test_too_many_events_close_at_that_very_event(bench: Bench) -> None:
    bench.subscribe(0)
    bench.publish(5000)
    bench.fill()
    bench.publish(limits.LAG_EVENTS_MAX)
    assert bench.slow == []
    bench.publish()
    assert bench.slow == [CloseReason.LAG]


@on_loop
@pytest.mark.req("W-9")
def test_too_many_bytes_close_at_that_very_event(bench: Bench) -> None:
    bench.subscribe(0)
    bench.fill()
    size = 0
    while size <= limits.LAG_BYTES_MAX:
        assert bench.slow == []
        before = bench.hub.watch(1, "s1", 0, bench.outbox).ring.span(0)[1]
        bench.publish(1, 100_000)
        size += bench.hub.watch(1, "s1", 0, bench.outbox).ring.span(0)[1] - before
    assert bench.slow == [CloseReason.LAG]


@on_loop
@pytest.mark.req("W-9")
def test_a_reader_that_takes_something_is_not_counted(bench: Bench) -> None:
    bench.subscribe(0)
    bench.fill()
    for _ in range(5):
        bench.publish(limits.LAG_EVENTS_MAX)
        bench.pipe.take(1)  # one byte is progress
    assert bench.pipe.paused
    assert bench.slow == []


@on_loop
@pytest.mark.req("W-9")
def test_a_loop_that_is_late_blames_no_reader(bench: Bench) -> None:
    bench.subscribe(0)
    bench.fill()
    bench.pipe.writable = True
    bench.publish(2 * limits.LAG_EVENTS_MAX)
    assert bench.slow == []
    bench.pipe.writable = False
    bench.publish(limits.LAG_EVENTS_MAX)
    assert bench.slow == [CloseReason.LAG]


@on_loop
@pytest.mark.req("W-9")
def test_a_reader_that_caught_up_is_counted_no_more(bench: Bench) -> None:
    bench.subscribe(0)
    bench.fill()
    bench.pipe.take()
    bench.publish(2 * limits.LAG_EVENTS_MAX)
    assert bench.slow == []


@on_loop
@pytest.mark.req("W-9", "W-12")
async def test_retention_that_passes_a_cursor_closes(bench: Bench) -> None:
    database = bench.hub._database
    database.start(lambda events: None)
    await database.write(
        "session_new", session_id="s1", stream_id="t", salt=b"salt", cwd="/", roots="[]",
        brain="direct", interactive=0, now=1,
    )  # fmt: skip
    bench.heads[1] = 5  # before anybody watches: only the store could have them
    for _ in range(5):
        await database.write("session_event", sid=1, kind=0, type="update", payload=b"{}", now=1)
    with apsw.Connection(str(database.path)) as connection:
        connection.execute("DELETE FROM events WHERE event_id < 5")
    bench.subscribe(2)
    await bench.stopped.wait()
    assert bench.slow == [CloseReason.RETENTION]


@on_loop
@pytest.mark.req("S-7")
async def test_a_disk_that_cannot_be_read_ends_the_connection(bench: Bench) -> None:
    def broken(*_: object) -> Any:
        raise StorageFailed("The database cannot be read.")

    bench.publish(5)
    bench.hub._database.fetch_packed = broken  # type: ignore[assignment, method-assign]
    bench.subscribe(0)
    await bench.pipe.gone.wait()
    assert bench.pipe.closed == (1011, "goclaw:internal")


@on_loop
@pytest.mark.req("S-7")
async def test_a_history_that_cannot_be_read_ends_the_connection(bench: Bench) -> None:
    class Broken:
        async def pull(self) -> bytes:
            raise StorageFailed("The database cannot be read.")

    bench.outbox.send_source(Broken())
    await bench.pipe.gone.wait()
    assert bench.pipe.closed == (1011, "goclaw:internal")


@on_loop
@pytest.mark.req("W-9")
def test_only_ones_own_sessions_count(bench: Bench) -> None:
    bench.subscribe(0, 1)
    bench.fill()
    bench.publish(2 * limits.LAG_EVENTS_MAX, sid=2)
    assert bench.slow == []
    bench.subscribe(bench.heads[2], 2)
    bench.publish(limits.LAG_EVENTS_MAX, sid=2)
    bench.publish(1, sid=1)
    assert bench.slow == [CloseReason.LAG]


@on_loop
@pytest.mark.req("W-9", "I-5")
def test_answers_that_nobody_takes_close_too(bench: Bench) -> None:
    bench.fill()
    big = "x" * (limits.ANSWER_BYTES_MAX // 4)
    for _ in range(3):
        bench.say(big)
    assert bench.slow == []
    for _ in range(2):
        bench.say(big)
    assert bench.slow[:1] == [CloseReason.BYTES]


@on_loop
def test_one_answer_may_be_long(bench: Bench) -> None:
    bench.say("x" * (3 * limits.ANSWER_BYTES_MAX))
    bench.run()
    bench.say("y" * (3 * limits.ANSWER_BYTES_MAX))
    assert bench.slow == []
    assert len(bench.run()) == 2


@pytest.mark.req("W-9")
def test_a_quiet_socket_that_takes_nothing_is_closed_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHECK_S", 0.001)

    async def main() -> None:
        bench = Bench(database)
        bench.say("a")
        bench.outbox.flush()
        async with asyncio.timeout(10):
            await bench.stopped.wait()
        assert bench.slow == [CloseReason.STALL]

    asyncio.run(main())


@on_loop
@pytest.mark.req("W-9")
def test_a_socket_that_takes_a_little_lives(bench: Bench) -> None:
    bench.say("x" * 200)
    bench.outbox.flush()
    for _ in range(3):
        for _ in range(limits.STALL_CHECKS - 1):
            bench.outbox._check_stall()
        bench.pipe.take(1)
        bench.outbox._check_stall()
    assert bench.slow == []
    bench.pipe.writable = True
    for _ in range(2 * limits.STALL_CHECKS):
        bench.outbox._check_stall()
    assert bench.slow == []
    bench.pipe.writable = False
    bench.outbox._check_stall()
    assert bench.slow == [CloseReason.STALL]


@on_loop
@pytest.mark.req("W-9")
def test_nothing_is_watched_when_nothing_waits(bench: Bench) -> None:
    bench.say("a")
    bench.outbox.flush()
    assert bench.outbox._stall_timer is not None
    bench.pipe.take()
    bench.outbox._check_stall()
    assert bench.outbox._stall_timer is None


@on_loop
def test_after_the_end_nothing_happens(bench: Bench) -> None:
    bench.subscribe(0)
    bench.publish(3)
    bench.run()
    assert bench.outbox.stop(SubEvent.LIMIT) == {"s1": 3}
    assert bench.outbox.stop(SubEvent.GONE) == {}
    bench.say("a")
    bench.subscribe(0)
    bench.publish(3)
    bench.outbox.drained()
    bench.outbox.full()
    bench.outbox.lagging(1, 4, 10**9)
    assert bench.run() == [1, 2, 3]
    assert bench.slow == []


# -- every way through the table -------------------------------------------------------------------

MOVES: dict[str, Callable[[Bench], None]] = {
    "publish": lambda b: b.publish(2, 200),
    "from the start": lambda b: b.subscribe(0),
    "from here": lambda b: b.subscribe(b.heads[1]),
    "leave": lambda b: b.outbox.unsubscribe(1),
    "pump": lambda b: b.outbox.flush(),
    "stuff": lambda b: b.fill(),
    "read": lambda b: b.pipe.take(),
}


class Client:
    """One of several on a bench: its moves, and what it must have been sent."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.pipe, self.outbox = bench.client()
        self.position: int | None = None
        self.begun: set[int] = set()  # ids at which a cursor began

    def move(self, name: str) -> None:
        bench = self.bench
        bench.pipe, bench.outbox = self.pipe, self.outbox
        if name.startswith("from"):
            self.position = 0 if name == "from the start" else bench.heads[1]
            self.begun.add(self.position + 1)
        elif name == "leave":
            self.position = None
        MOVES[name](bench)

    def check(self, path: object) -> None:
        """After any move: the state is one that the table allows here."""
        cursor = self.outbox.cursors.get(1)
        assert (cursor is None) == (self.position is None), path
        if cursor is not None:
            assert (cursor.state is SubState.WAITING) == self.pipe.paused, path
            assert cursor.position <= self.bench.heads[1], path

    def finish(self, path: object) -> None:
        """At the end: dense from the last cursor to the head, and dense in between."""
        head = self.bench.heads[1]
        self.bench.pipe, self.bench.outbox = self.pipe, self.outbox
        ids = [message for message in self.bench.run() if isinstance(message, int)]
        for before, after in itertools.pairwise(ids):
            assert after == before + 1 or after in self.begun, (path, ids)
        if self.position is not None:
            tail = list(range(self.position + 1, head + 1))
            assert ids[len(ids) - len(tail) :] == tail, (path, ids)
            assert self.outbox.cursors[1].state is SubState.LIVE, path
        self.outbox.stop(SubEvent.GONE)


def explore(database: Database, clients: int, length: int) -> None:
    """All interleavings of that many clients' moves up to a length."""
    moves = [
        ("publish", 0),
        *itertools.product([m for m in MOVES if m != "publish"], range(clients)),
    ]
    for path in itertools.product(moves, repeat=length):
        bench = Bench(database)
        bench.hub.watch(1, "s1", 0, bench.outbox)  # the ring has it all
        everybody = [Client(bench) for _ in range(clients)]
        for name, who in path:
            everybody[who].move(name)
            for client in everybody:
                client.check(path)
        for client in everybody:
            client.finish(path)


@on_loop
@pytest.mark.req("W-4", "W-12")
def test_every_path_of_four_moves_sends_each_event_once(bench: Bench) -> None:
    explore(bench.hub._database, clients=1, length=4)


@on_loop
@pytest.mark.req("W-4", "W-12")
def test_two_clients_do_not_meet(bench: Bench) -> None:
    explore(bench.hub._database, clients=2, length=3)
