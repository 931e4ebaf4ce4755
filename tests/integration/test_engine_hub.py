"""Commits on their way to readers: every event once, in order, the same bytes live and replayed.

Owns the seam of ring and store (I-3, W-3, W-4). Not in here: the ring itself (native), connections.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import pytest
from engine_support import Home, World, passes, settled
from row_support import pack

from goclaw.core import limits
from goclaw.core.errors import ReplayGap
from goclaw.protocol.jsonrpc import packed_frames
from goclaw.protocol.messages import KINDS_OPTED_IN, KINDS_VANILLA

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Session
    from goclaw.engine.hub import Channel, Hub

RING = limits.RING_BYTES_MIN


class Reader:
    """A listener that takes down what it is told."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, int]] = []
        self.lags: list[tuple[int, int, int]] = []

    def committed(self, sid: int, head: int) -> None:
        self.heads.append((sid, head))

    def lagging(self, sid: int, event_id: int, frame_bytes: int) -> None:
        self.lags.append((sid, event_id, frame_bytes))


def say(world: World, session: Session, size: int, kind: int = 0) -> asyncio.Future[Any]:
    """An event whose payload has about that size; the write is not waited for."""
    return world.database.write(
        "session_event", sid=session.sid, kind=kind, type="update" if kind != 1 else "policy.note",
        payload=orjson.dumps({"x": "y" * size}), now=world.clock.wall_ms(),
    )  # fmt: skip


def watch(hub: Hub, session: Session, reader: Reader, head: int = 0) -> Channel:
    return hub.watch(session.sid, session.session_id, head, reader)


async def truth(world: World, session: Session, mask: int, *, lines: bool) -> bytes:
    """All events as the store has them."""
    found = await world.database.read("events_after", sid=session.sid, cursor=0, limit=1 << 30)
    return packed_frames(session.session_id, pack(found), mask=mask, lines=lines)


def ids(data: bytes) -> list[int]:
    return [
        orjson.loads(line)["params"]["_meta"]["goclaw"]["eventId"] for line in data.splitlines()
    ]


@pytest.mark.req("I-3", "W-3", "W-4")
@pytest.mark.parametrize("seed", range(12))
def test_readers_at_any_place_get_every_event_once(home: Path, seed: int) -> None:
    """Commits race with reads of ring and store, rings are evicted, readers come and go."""
    house = Home(
        home, seed=seed, hurry=0.4, ring={"ring_bytes": RING, "ring_bytes_total": 3 * RING}
    )

    async def main(world: World) -> None:
        hub, chance = world.engine.hub, house.clock.chance
        sessions = [await world.session() for _ in range(3)]
        over = asyncio.Event()

        async def client(session: Session, mask: int, lines: bool) -> None:
            reader, got, cursor = Reader(), b"", 0
            channel: Channel | None = None
            while True:
                if channel is None:
                    head = (await world.intake.session_by_sid(session.sid)).head
                    channel = watch(hub, session, reader, head)
                ended = over.is_set()
                size = chance.choice([1, 3_000, limits.WRITE_BYTES_MAX])
                data, after = await hub.read(channel, cursor, size, mask, lines=lines)
                assert after >= cursor
                got += data
                if after == cursor:
                    if ended and cursor == (await world.intake.session_by_sid(session.sid)).head:
                        break
                    await asyncio.sleep(0)
                cursor = after
                if chance.random() < 0.05:
                    hub.unwatch(session.sid, reader)
                    channel = None
                    if chance.random() < 0.5:
                        house.clock.ns += (limits.RING_LINGER_MS + 1) * 1_000_000
                        hub.sweep()
            assert got == await truth(world, session, mask, lines=lines)

        async def writer() -> None:
            for _ in range(60):
                session = chance.choice(sessions)
                size = chance.choice([10, 10, 500, 5_000, RING // 4 - 400, RING // 4, RING])
                _ = say(world, session, size, chance.randrange(3))
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
                if chance.random() < 0.1:
                    await passes(1)
            await settled()
            over.set()

        clients = [
            client(session, mask, lines)
            for session in sessions
            for mask, lines in [(KINDS_OPTED_IN, True), (KINDS_VANILLA, False)]
        ]
        await asyncio.gather(writer(), *clients)
        assert hub.replayed_cold > 0
        assert hub.replayed_warm > 0

    house.live(main)


@pytest.mark.req("I-3", "W-4")
def test_a_watch_between_commit_and_delivery_misses_nothing(home: Path) -> None:
    house = Home(home, ring={"ring_bytes": RING})

    async def main(world: World) -> None:
        hub, reader = world.engine.hub, Reader()
        session = await world.session()
        asyncio.get_running_loop().outside = None  # type: ignore[attr-defined]
        for size in (1, 2):
            _ = say(world, session, size)
        world.database._writer.step()
        _ = say(world, session, 3)
        world.database._writer.step()
        head = (await world.intake.session_by_sid(session.sid)).head
        assert head == 3
        channel = watch(hub, session, reader, head)
        data, cursor = await hub.read(channel, 0, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert (ids(data), cursor) == ([1, 2, 3], 3)
        assert hub.head(session.sid) == 3
        batches = [made for _, _, _, _, made in world.database._writer.drain()]
        hub.publish(batches[0] + batches[1])
        assert hub.head(session.sid) == 3  # it never goes back
        assert await hub.read(channel, 3, 1 << 20, KINDS_OPTED_IN, lines=True) == (b"", 3)
        hub.publish(batches[2])
        assert await hub.read(channel, 3, 1 << 20, KINDS_OPTED_IN, lines=True) == (b"", 3)
        watch(hub, session, Reader(), 4)
        assert hub.head(session.sid) == 4  # a later reader has seen more of the disk
        _ = say(world, session, 4)
        world.database.step()
        assert reader.heads[-1] == (session.sid, 4)
        data, cursor = await hub.read(channel, 3, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert (ids(data), cursor) == ([4], 4)
        asyncio.get_running_loop().outside = world.database.step  # type: ignore[attr-defined]

    house.live(main)


@pytest.mark.req("I-3", "I-5")
def test_a_frame_too_large_for_the_ring_comes_from_the_store(home: Path) -> None:
    house = Home(home, ring={"ring_bytes": RING})

    async def main(world: World) -> None:
        hub, reader = world.engine.hub, Reader()
        session = await world.session()
        channel = watch(hub, session, reader)
        for size in (10, RING // 2, 10):
            await say(world, session, size)
        assert channel.ring.held_bytes < RING // 4
        got, cursor = b"", 0
        ways = []
        while cursor < 3:
            warm, cold = hub.replayed_warm, hub.replayed_cold
            data, cursor = await hub.read(channel, cursor, 1 << 20, KINDS_OPTED_IN, lines=False)
            ways.append((hub.replayed_warm - warm, hub.replayed_cold - cold))
            got += data
        assert got == await truth(world, session, KINDS_OPTED_IN, lines=False)
        assert ways[0] == (1, 0)
        assert ways[1] == (0, 1)

    house.live(main)


@pytest.mark.req("I-5")
def test_rings_linger_and_are_swept(home: Path) -> None:
    house = Home(home, ring={"ring_bytes": RING})

    async def main(world: World) -> None:
        hub, reader, other = world.engine.hub, Reader(), Reader()
        session = await world.session()
        channel = watch(hub, session, reader)
        await say(world, session, 10)
        hub.unwatch(session.sid, reader)
        hub.unwatch(session.sid, reader)
        await say(world, session, 10)
        assert reader.heads == [(session.sid, 1)]
        await passes(limits.RING_LINGER_MS - 1_000)
        assert watch(hub, session, other) is channel  # still warm
        warm = hub.read_warm(channel, 0, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert warm is not None
        assert ids(warm[0]) == [1, 2]
        await passes(3 * limits.RING_LINGER_MS)
        assert hub.head(session.sid) == 2  # watched: never swept
        hub.unwatch(session.sid, other)
        await passes(3 * limits.RING_LINGER_MS)
        assert hub.head(session.sid) is None
        assert hub._held_bytes == 0
        again = watch(hub, session, reader, 2)
        assert again is not channel
        assert hub.read_warm(again, 0, 1 << 20, KINDS_OPTED_IN, lines=True) is None
        data, _ = await hub.read(again, 0, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert ids(data) == [1, 2]

    house.live(main)


@pytest.mark.req("I-5")
def test_all_rings_together_stay_within_their_bound(home: Path) -> None:
    house = Home(home, ring={"ring_bytes": RING, "ring_bytes_total": 2 * RING})

    async def main(world: World) -> None:
        hub = world.engine.hub
        sessions = [await world.session() for _ in range(6)]
        channels = [watch(hub, session, Reader()) for session in sessions]
        for _ in range(30):
            for session in sessions:
                _ = say(world, session, 8_000)
            await settled()
            # The first one is read all the time: it is the last to lose its ring.
            hub.read_warm(channels[0], channels[0].head - 1, 1 << 20, KINDS_OPTED_IN, lines=True)
            held = [channel.ring.held_bytes for channel in channels]
            assert sum(held) == hub._held_bytes
            assert sum(held) <= 2 * RING
        assert channels[0].ring.held_bytes > RING // 2
        for session, channel in zip(sessions, channels, strict=True):
            got, cursor = b"", 0
            while cursor < channel.head:
                data, cursor = await hub.read(channel, cursor, 1 << 16, KINDS_OPTED_IN, lines=True)
                got += data
            assert got == await truth(world, session, KINDS_OPTED_IN, lines=True)

    house.live(main)


@pytest.mark.req("W-9")
def test_a_stalled_reader_is_told_of_each_event(home: Path) -> None:
    house = Home(home, ring={"ring_bytes": RING})

    async def main(world: World) -> None:
        hub, slow, quick = world.engine.hub, Reader(), Reader()
        session, other = await world.session(), await world.session()
        channel = watch(hub, session, slow)
        watch(hub, session, quick)
        watch(hub, other, slow)
        channel.stalled.add(slow)
        for number in range(5):
            _ = say(world, session, 100 * number)
            _ = say(world, other, 1)
        _ = say(world, session, RING)
        await settled()
        assert [lag[:2] for lag in slow.lags] == [(session.sid, number) for number in range(1, 7)]
        frames = await truth(world, session, KINDS_OPTED_IN, lines=False)
        assert sum(size for _, _, size in slow.lags) == len(frames)
        assert quick.lags == []
        # A hint a batch, not one an event.
        assert quick.heads == [(session.sid, 6)]
        channel.stalled.discard(slow)
        await say(world, session, 1)
        assert len(slow.lags) == 6
        channel.stalled.add(slow)
        hub.unwatch(session.sid, slow)
        await say(world, session, 1)
        assert len(slow.lags) == 6

    house.live(main)


@pytest.mark.req("I-3")
def test_commits_are_published_in_their_order_before_anybody_is_answered(home: Path) -> None:
    house = Home(home, hurry=0.3, seed=5)

    async def main(world: World) -> None:
        seen: list[tuple[int, int]] = []
        world.engine.hub.observe(lambda events: seen.extend(event[:2] for event in events))
        sessions = [await world.session() for _ in range(3)]
        start = len(seen)

        async def one() -> None:
            session = house.clock.chance.choice(sessions)
            committed = await say(world, session, 1)
            assert committed.events[0][:2] in seen

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(8)))
        for session in sessions:
            own = [event_id for sid, event_id in seen[start:] if sid == session.sid]
            assert own == list(range(1, len(own) + 1))
        assert len(seen) - start == 80

    house.live(main)


@pytest.mark.req("W-4", "S-5")
def test_a_cursor_that_retention_has_passed_is_a_gap(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        hub = world.engine.hub
        session = await world.session()
        channel = watch(hub, session, Reader())
        for _ in range(5):
            await say(world, session, 1)
        channel.ring.clear()
        with apsw.Connection(str(home / "goclaw.db")) as connection:
            connection.execute("DELETE FROM events WHERE event_id <= 3")
        with pytest.raises(ReplayGap) as gap:
            await hub.read(channel, 1, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert (gap.value.data["oldestEventId"], gap.value.data["headEventId"]) == (4, 5)
        data, _ = await hub.read(channel, 3, 1 << 20, KINDS_OPTED_IN, lines=True)
        assert ids(data) == [4, 5]
        with apsw.Connection(str(home / "goclaw.db")) as connection:
            connection.execute("DELETE FROM events")
            connection.execute("UPDATE sessions SET head = 0, link = zeroblob(32)")

    house.live(main)
