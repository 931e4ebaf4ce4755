"""Committed events on their way to readers: rings for watched sessions, the store for the rest.

Owns the rings, who watches what, and the rule that live and replay are the same bytes. Not in
here: cursors, which belong to connections. Everything runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from goclaw._fast import ring as rings
from goclaw.core import limits
from goclaw.core.errors import ReplayGap
from goclaw.core.faults import faultpoint
from goclaw.protocol.jsonrpc import event_frame, packed_frames
from goclaw.protocol.messages import EventKind
from goclaw.protocol.updates import sort_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from goclaw.core.clock import Clock
    from goclaw.protocol.messages import EventRow
    from goclaw.store import Database, Event

__all__ = ["Channel", "Hub", "Listener"]


class Listener(Protocol):
    """A reader of one session: an outbox of a connection."""

    def committed(self, sid: int, head: int) -> None:
        """Events up to ``head`` are on disk: a hint, called once a batch."""

    def lagging(self, sid: int, event_id: int, frame_bytes: int) -> None:
        """Called for each event while the listener is in ``Channel.stalled``."""


@dataclass(slots=True)
class Channel:
    """One watched session."""

    sid: int
    session_id: str
    head: int
    ring: rings.Ring
    listeners: set[Listener] = field(default_factory=set)
    stalled: set[Listener] = field(default_factory=set)
    idle_since_ms: int = 0


class Hub:
    """Publishes commits; serves any cursor from ring or store."""

    def __init__(
        self, database: Database, clock: Clock, *, ring_bytes: int, ring_bytes_total: int
    ) -> None:
        self._database = database
        self._clock = clock
        self._ring_bytes = ring_bytes
        self._ring_bytes_total = ring_bytes_total
        self._channels: OrderedDict[int, Channel] = OrderedDict()  # least recently read first
        self._held_bytes = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._observers: list[Callable[[list[Event]], None]] = []
        self.replayed_cold = 0
        self.replayed_warm = 0

    @property
    def rings(self) -> tuple[int, int]:
        """Sessions with a ring, and the bytes of all rings."""
        return len(self._channels), self._held_bytes

    def observe(self, observer: Callable[[list[Event]], None]) -> None:
        """Call ``observer`` with every batch of committed events, in commit order."""
        self._observers.append(observer)

    def publish(self, events: list[Event]) -> None:
        """Take a batch of commits: tell the observers, frame once, ring, wake readers."""
        faultpoint("before_publish")
        failed: Exception | None = None
        for observer in self._observers:
            try:
                observer(events)
            except Exception as error:  # the others live by what they are told
                failed = error
        if self._channels:
            self._to_readers(events)
        if failed is not None:
            raise failed

    def _to_readers(self, events: list[Event]) -> None:
        touched: dict[int, Channel] = {}
        for event in events:
            channel = self._channels.get(event[0])
            if channel is None:
                continue
            sid, event_id, kind, type_, at_ms, run_id, task_id, attempt, trace, payload = event
            slot = event_frame(
                session=channel.session_id, kind=EventKind(kind), event_id=event_id,
                event_type=type_, at_ms=at_ms, run_id=run_id or "", task_id=task_id or "",
                attempt=attempt, trace=trace or "", payload=payload,
            )  # fmt: skip
            held_bytes = channel.ring.held_bytes
            channel.ring.append(event_id, kind, slot)
            self._held_bytes += channel.ring.held_bytes - held_bytes
            channel.head = max(channel.head, event_id)
            touched[sid] = channel
            for listener in tuple(channel.stalled):
                listener.lagging(sid, event_id, len(slot))
        self._evict()
        for sid, channel in touched.items():
            for listener in tuple(channel.listeners):
                listener.committed(sid, channel.head)

    def watch(self, sid: int, session_id: str, head: int, listener: Listener) -> Channel:
        """Register a reader; ``head`` is the session's head as read before the call."""
        channel = self._channels.get(sid)
        if channel is None:
            channel = Channel(sid, session_id, head, rings.Ring(self._ring_bytes))
            self._channels[sid] = channel
        channel.head = max(channel.head, head)
        channel.listeners.add(listener)
        return channel

    def unwatch(self, sid: int, listener: Listener) -> None:
        """Forget a reader; its session's ring lingers for a reconnect."""
        channel = self._channels.get(sid)
        if channel is None:
            return
        channel.listeners.discard(listener)
        channel.stalled.discard(listener)
        if not channel.listeners:
            channel.idle_since_ms = self._clock.mono_ms()

    def open(self) -> None:
        """Sweep from now on, until ``close``."""
        self._sweep = asyncio.get_running_loop().call_later(
            limits.RING_LINGER_MS / 1000, self._sweep_again
        )

    def close(self) -> None:
        """Sweep no more; idempotent."""
        if self._sweep is not None:
            self._sweep.cancel()

    def _sweep_again(self) -> None:
        self.sweep()
        self.open()

    def sweep(self) -> None:
        """Drop rings that nobody watched for a while."""
        now = self._clock.mono_ms()
        for sid, channel in list(self._channels.items()):
            if not channel.listeners and now - channel.idle_since_ms > limits.RING_LINGER_MS:
                self._held_bytes -= channel.ring.held_bytes
                del self._channels[sid]

    def _evict(self) -> None:
        for channel in self._channels.values():
            if self._held_bytes <= self._ring_bytes_total:
                return
            self._held_bytes -= channel.ring.held_bytes
            channel.ring.clear()

    def head(self, sid: int) -> int | None:
        """The head of a watched session as published; None when it is not watched."""
        channel = self._channels.get(sid)
        return None if channel is None else channel.head

    async def read(
        self, channel: Channel, cursor: int, bytes_max: int, mask: int, *, lines: bool
    ) -> tuple[bytes, int]:
        """Frames after ``cursor`` and the cursor behind them; (b"", cursor) at the head.

        From the ring where it covers the cursor, else one page of the store. No head is remembered
        between calls: ring covers cursor + 1, ring; else store; repeat. ReplayGap when retention
        has passed the cursor.
        """
        warm = self.read_warm(channel, cursor, bytes_max, mask, lines=lines)
        if warm is not None:
            return warm
        return (await self.read_pages(channel, cursor, bytes_max, mask, lines=lines))[0]

    async def read_pages(
        self,
        channel: Channel,
        cursor: int,
        bytes_max: int,
        mask: int,
        *,
        lines: bool,
        pages_max: int = 1,
    ) -> list[tuple[bytes, int]]:
        """Up to ``pages_max`` pages of the store in one visit to a reader thread, a read
        transaction each; at least one, (b"", cursor) at the head. ReplayGap as ``read``."""

        def pages() -> list[tuple[bytes, int]]:
            found: list[tuple[bytes, int]] = []
            position = cursor
            while len(found) < pages_max:
                data, last = self._fetch(
                    channel.session_id, channel.sid, position, bytes_max, mask, lines=lines
                )
                if last == position:
                    break
                position = last
                found.append((data, position))
            return found or [(b"", cursor)]

        self.replayed_cold += 1
        read: list[tuple[bytes, int]] = await self._database.in_reader(pages)
        return read

    def _fetch(
        self,
        session_id: str,
        sid: int,
        cursor: int,
        bytes_max: int,
        mask: int,
        *,
        lines: bool,
        rows_max: int = limits.READ_ROWS_MAX,
    ) -> tuple[bytes, int]:
        """One page of the store and the cursor behind it; for a reader thread."""
        rows, first, last = self._database.fetch_packed(sid, cursor, bytes_max, rows_max)
        if rows and first != cursor + 1:
            raise ReplayGap(
                "Retention has passed the cursor.",
                hint="Load the session anew: session/load, or events from 0.",
                sessionId=session_id, requestedEventId=cursor, oldestEventId=first,
                headEventId=self._database.fetch("session_bounds", sid=sid)[0][0],
                recover="session/load",
            )  # fmt: skip
        return packed_frames(session_id, rows, mask=mask, lines=lines), last

    async def lines(
        self, session_id: str, sid: int, cursor: int, *, rows_max: int, mask: int
    ) -> tuple[bytes, int]:
        """At most ``rows_max`` stored events after ``cursor`` as lines, within a page, and the
        cursor behind them; (b"", cursor) at the head. ReplayGap as ``read``."""
        read: tuple[bytes, int] = await self._database.in_reader(
            lambda: self._fetch(
                session_id, sid, cursor, limits.READ_BYTES_MAX, mask, lines=True, rows_max=rows_max
            )
        )
        return read

    async def read_latest(
        self, channel: Channel, cursor: int, mask: int, *, lines: bool
    ) -> tuple[bytes, int]:
        """The newest event of each kind after ``cursor``, in order, and the cursor behind them.

        Of updates each sort is a kind. What is older than the last ``limits.LATEST_EVENTS_MAX``
        events is passed over, kept or not, so this is never a gap.
        """

        def conflated() -> tuple[bytes, int]:
            newest: dict[tuple[str, str], int] = {}
            last = max(cursor, channel.head - limits.LATEST_EVENTS_MAX)
            while rows := self._database.fetch_page(channel.sid, last, limits.READ_BYTES_MAX):
                for row in rows:
                    if mask >> row[1] & 1:
                        newest[sort_of(row[2], row[8])] = row[0]
                last = rows[-1][0]
            frames = [
                self._fetch(
                    channel.session_id, channel.sid, event_id - 1, 1, mask, lines=lines, rows_max=1
                )[0]
                for event_id in sorted(newest.values())
            ]
            return b"".join(frames), last

        self.replayed_cold += 1
        read: tuple[bytes, int] = await self._database.in_reader(conflated)
        return read

    def read_warm(
        self, channel: Channel, cursor: int, bytes_max: int, mask: int, *, lines: bool
    ) -> tuple[bytes, int] | None:
        """``read`` without waiting: None when only the store can answer."""
        ring = channel.ring
        if ring.head == 0 or not ring.covers(cursor):
            return (b"", cursor) if cursor >= channel.head else None
        if channel.sid in self._channels:
            self._channels.move_to_end(channel.sid)
        found = ring.read(cursor, bytes_max, mask, lines)
        self.replayed_warm += found is not None
        return found

    async def rows(self, sid: int, cursor: int) -> list[EventRow]:
        """One page of stored events after ``cursor``; empty at the head."""
        database = self._database
        found: list[EventRow] = await database.in_reader(
            lambda: database.fetch_page(sid, cursor, limits.READ_BYTES_MAX)
        )
        return found
