"""One outbound order per connection: direct answers, and a cursor per subscribed session.

Owns what is sent next, when a reader counts as too slow, and the state of each subscription. Not in
here: the bytes' way (``transports``), what is said (``handlers``).

Order: direct messages first in, first out; a session's events only while no direct message waits,
so that whatever was answered before an event was pulled goes before it. A message with a barrier
waits aside until the session's cursor has passed that event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from goclaw.core import limits, log
from goclaw.core.errors import ReplayGap
from goclaw.protocol.messages import KINDS_OPTED_IN, KINDS_VANILLA
from goclaw.protocol.session import CloseReason, SubEvent, SubState, step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from goclaw.core.records import Session
    from goclaw.engine.hub import Channel, Hub
    from goclaw.gateway.transports import Transport

__all__ = ["Cursor", "Outbox", "Source"]

_log = log.logger("gateway.outbox")
_CHECK_S: Final = limits.STALL_MS_MAX / 1000 / limits.STALL_CHECKS


class Source(Protocol):
    """A long answer in pieces: the history of a session."""

    async def pull(self) -> bytes:
        """The next finished frames, about ``limits.WRITE_BYTES_MAX``; b"" at the end."""


@dataclass(eq=False, slots=True)
class Cursor:
    """The place of this connection in one session."""

    session_id: str
    channel: Channel
    position: int
    controller: bool
    latest: bool = False
    """Conflated: while it catches up, the newest event of each kind is all it is sent."""
    state: SubState = SubState.NONE
    ahead: deque[tuple[bytes, int]] = field(default_factory=deque)
    """Pages of the store that follow ``position``, each with the position behind it."""
    reading: asyncio.Task[None] | None = None
    """More of them on their way."""

    def move(self, event: SubEvent) -> None:
        """Change state as the table says."""
        self.state = step(self.state, event).target


@dataclass(frozen=True, slots=True)
class _Held:
    """A message that waits for its barrier."""

    event_id: int
    data: bytes
    then: Callable[[], None] | None


class Outbox:
    """What one connection has to send. Belongs to the loop; implements ``engine.hub.Listener``."""

    def __init__(
        self, hub: Hub, transport: Transport, too_slow: Callable[[CloseReason], None]
    ) -> None:
        self._hub, self._transport, self._too_slow = hub, transport, too_slow
        self._mask = KINDS_VANILLA
        self._ready: deque[bytes | Source] = deque()
        self._held: dict[int, list[_Held]] = {}
        self._waiting_bytes = 0
        self._cursors: dict[int, Cursor] = {}
        self._behind: dict[int, None] = {}  # sids whose cursor is not at the head, in turn
        self._cold: asyncio.Task[None] | None = None
        self._scheduled = False
        self._open = True
        self._idle: asyncio.Future[None] | None = None
        # Progress of a socket that takes nothing:
        self._mark = 0
        self._lag_events = self._lag_bytes = 0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stall_mark = self._stall_checks = 0

    def opt_in(self) -> None:
        """Send every kind of event from now on."""
        self._mask = KINDS_OPTED_IN

    @property
    def cursors(self) -> Mapping[int, Cursor]:
        """Subscribed sessions by sid."""
        return self._cursors

    # -- direct messages -----------------------------------------------------------------------

    def send(
        self,
        message: bytes,
        *,
        after: tuple[int, int] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Queue one message; with ``after`` = (sid, event id) not before that event was sent.

        ``then`` is called when it has its place in the order. A session that is not subscribed has
        no barrier: its events are not sent here.
        """
        if not self._open:
            return
        data = self._transport.frame(message)
        if self._is_over(len(data)) and not self._transport.paused:
            self._pump()
        if self._is_over(len(data)):
            self._too_slow(CloseReason.BYTES)
            return
        self._waiting_bytes += len(data)
        if after is not None:
            sid, event_id = after
            cursor = self._cursors.get(sid)
            if cursor is not None and cursor.position < event_id:
                self._held.setdefault(sid, []).append(_Held(event_id, data, then))
                return
        self._ready.append(data)
        if then is not None:
            then()
        self._schedule()

    def _is_over(self, size: int) -> bool:
        # One answer may be longer than the bound; a second one behind it may not wait.
        return bool(self._waiting_bytes) and self._waiting_bytes + size > limits.ANSWER_BYTES_MAX

    def send_source(self, source: Source) -> None:
        """Queue a long answer: its pieces are pulled as the transport takes them."""
        if self._open:
            self._ready.append(source)
            self._schedule()

    # -- subscriptions -------------------------------------------------------------------------

    def subscribe(
        self, session: Session, position: int, *, controller: bool, latest: bool = False
    ) -> None:
        """Send what comes after ``position``; an earlier cursor of the session is replaced.

        ``session`` is as of one read, ``position`` within it (``protocol.session.place``).
        ``latest``: a reader that falls behind is sent the newest event of each kind instead of
        all, and is never counted as slow.
        """
        if not self._open:
            return
        sid = session.sid
        old = self._cursors.get(sid)
        channel = self._hub.watch(sid, session.session_id, session.head, self)
        state = SubState.NONE if old is None else old.state
        cursor = Cursor(session.session_id, channel, position, controller, latest, state)
        cursor.move(SubEvent.SUBSCRIBE)
        self._cursors[sid] = cursor
        channel.stalled.discard(self)
        if self._transport.paused:
            self._count(cursor)
            if cursor.state is SubState.REPLAYING:
                cursor.move(SubEvent.FULL)
        self._release(sid, position)
        self._behind[sid] = None
        self._schedule()

    def unsubscribe(self, sid: int, event: SubEvent = SubEvent.UNSUBSCRIBE) -> None:
        """Forget the cursor; what waited for its events goes now. Twice is fine."""
        cursor = self._cursors.pop(sid, None)
        if cursor is not None:
            cursor.move(event)
            self._behind.pop(sid, None)
            self._hub.unwatch(sid, self)
        self._release(sid, None)
        self._schedule()

    def _release(self, sid: int, position: int | None) -> None:
        """Give what waited for events up to ``position`` (None: any) its place in the order."""
        held = self._held.pop(sid, None)
        if not held:
            return
        keep = [item for item in held if position is not None and item.event_id > position]
        if keep:
            self._held[sid] = keep
        for item in held:
            if position is None or item.event_id <= position:
                self._ready.append(item.data)
                if item.then is not None:
                    item.then()

    @property
    def behind(self) -> int:
        """Events of its sessions that were not sent yet."""
        return sum(
            max(0, cursor.channel.head - cursor.position) for cursor in self._cursors.values()
        )

    # -- what the hub tells --------------------------------------------------------------------

    def committed(self, sid: int, head: int) -> None:
        """See Listener."""
        self._behind[sid] = None
        if not self._transport.paused:
            self._schedule()

    def lagging(self, sid: int, event_id: int, frame_bytes: int) -> None:
        """See Listener: called for each event while the transport is full."""
        if not self._open:
            return
        buffered = self._transport.buffered()
        if buffered < self._mark:
            self._lag_events = self._lag_bytes = 0
        self._mark = buffered
        self._lag_events += 1
        self._lag_bytes += frame_bytes
        if self._lag_events <= limits.LAG_EVENTS_MAX and self._lag_bytes <= limits.LAG_BYTES_MAX:
            return
        if self._transport.takes_bytes():
            # It is our loop that is late, not the reader.
            self._lag_events = self._lag_bytes = 0
            return
        self._too_slow(CloseReason.LAG)

    # -- what the transport tells --------------------------------------------------------------

    def full(self) -> None:
        """The transport holds too much: count what is committed from now on."""
        if not self._open:
            return
        self._mark = self._transport.buffered()
        self._lag_events = self._lag_bytes = 0
        for cursor in self._cursors.values():
            self._count(cursor)
            cursor.ahead.clear()  # the cursor keeps the place, memory is for readers that keep up
            cursor.move(SubEvent.FULL)

    def _count(self, cursor: Cursor) -> None:
        """Be told of each event that is committed for a full socket."""
        if not cursor.latest:  # nothing piles up for one that passes over what it missed
            cursor.channel.stalled.add(self)

    def drained(self) -> None:
        """It takes bytes again."""
        if not self._open:
            return
        for sid, cursor in self._cursors.items():
            cursor.channel.stalled.discard(self)
            cursor.move(SubEvent.DRAINED)
            self._behind[sid] = None
        self._schedule()

    # -- the pump ------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and self._open:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        writes = 0
        while self._open and not self._transport.paused:
            if writes == limits.PUMP_WRITES_MAX:
                self._schedule()
                return
            data = self._next()
            if data is None:
                break
            if data:
                self._write(data)
                writes += 1
        self._tell_idle()

    def _next(self) -> bytes | None:
        """What to write now; b"" to be asked again, None when there is nothing (yet)."""
        if self._ready:
            if isinstance(self._ready[0], bytes):
                return self._take_ready()
            if self._cold is None:
                self._cold = self._start(self._pull(self._ready[0]))
            return None
        if not self._behind:
            return None
        sid = next(iter(self._behind))
        cursor = self._cursors.get(sid)
        if cursor is None:
            del self._behind[sid]
            return b""
        if cursor.latest and cursor.state is SubState.REPLAYING:
            return self._next_latest(sid, cursor)
        warm = self._hub.read_warm(
            cursor.channel, cursor.position, limits.WRITE_BYTES_MAX, self._mask,
            lines=self._transport.lines,
        )  # fmt: skip
        if cursor.latest and (warm is None or warm[1] < cursor.channel.head):
            return self._next_latest(sid, cursor)
        if warm is not None:
            cursor.ahead.clear()
            return self._advance(sid, cursor, *warm)
        return self._next_page(sid, cursor)

    def _next_latest(self, sid: int, cursor: Cursor) -> bytes | None:
        """The newest of each kind, or None while it is on its way."""
        if cursor.ahead:
            return self._advance(sid, cursor, *cursor.ahead.popleft())
        if cursor.position >= cursor.channel.head:
            return self._advance(sid, cursor, b"", cursor.position)
        if cursor.reading is None:
            cursor.reading = self._start(self._read_latest(sid, cursor, cursor.position))
        return None

    def _next_page(self, sid: int, cursor: Cursor) -> bytes | None:
        """A page that was read ahead, or None while one is on its way."""
        if not cursor.ahead:
            if cursor.reading is None:
                self._read_on(sid, cursor, cursor.position, 1)
            return None
        page = cursor.ahead.popleft()
        last = cursor.ahead[-1][1] if cursor.ahead else page[1]
        keeps_up = len(cursor.ahead) <= 1 and not self._transport.buffered()
        data = self._advance(sid, cursor, *page)
        if keeps_up and cursor.reading is None and last < cursor.channel.head:
            self._read_on(sid, cursor, last, limits.READ_AHEAD_PAGES)
        return data

    def _take_ready(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._ready:
            item = self._ready[0]
            if not isinstance(item, bytes):
                break
            if parts and size + len(item) > limits.WRITE_BYTES_MAX:
                break
            parts.append(item)
            size += len(item)
            self._ready.popleft()
        self._waiting_bytes -= size
        return b"".join(parts)

    def _advance(self, sid: int, cursor: Cursor, data: bytes, position: int) -> bytes:
        """Move the cursor over what is about to be written; sessions take turns."""
        moved = position != cursor.position
        cursor.position = position
        del self._behind[sid]
        if moved and position < cursor.channel.head:
            self._behind[sid] = None
        elif cursor.state is SubState.REPLAYING:
            cursor.move(SubEvent.CAUGHT_UP)
        self._release(sid, position)
        return data

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        if self._stall_timer is None and self._transport.buffered():
            self._watch_stall()

    # -- reads that wait -----------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # The disk, or a fault of ours: the client comes back and goes on from its cursor.
            _log.error("a read failed", exc_info=task.exception())
            self._transport.close(1011, "goclaw:internal")

    def _read_on(self, sid: int, cursor: Cursor, position: int, pages_max: int) -> None:
        """Fetch pages of the store behind ``position``; several for a reader that keeps up."""
        cursor.reading = self._start(self._read(sid, cursor, position, pages_max))

    async def _read(self, sid: int, cursor: Cursor, position: int, pages_max: int) -> None:
        try:
            pages = await self._hub.read_pages(
                cursor.channel, position, limits.WRITE_BYTES_MAX, self._mask,
                lines=self._transport.lines, pages_max=pages_max,
            )  # fmt: skip
        except ReplayGap:
            if self._cursors.get(sid) is cursor:
                self._too_slow(CloseReason.RETENTION)
            return
        cursor.reading = None
        # Meanwhile the session may have been left, or subscribed anew from elsewhere; and what was
        # read ahead for a socket that takes nothing now is not kept.
        if self._cursors.get(sid) is cursor and (position == cursor.position or cursor.ahead):
            cursor.ahead.extend(pages)
        self._schedule()

    async def _read_latest(self, sid: int, cursor: Cursor, position: int) -> None:
        page = await self._hub.read_latest(
            cursor.channel, position, self._mask, lines=self._transport.lines
        )
        cursor.reading = None
        if self._cursors.get(sid) is cursor and not self._transport.paused:
            cursor.ahead.append(page)
        self._schedule()

    async def _pull(self, source: Source) -> None:
        data = await source.pull()
        self._cold = None
        if self._open:
            if data:
                self._write(data)
            else:
                self._ready.popleft()
            self._schedule()

    # -- too slow ------------------------------------------------------------------------------

    def _watch_stall(self) -> None:
        self._stall_mark, self._stall_checks = self._transport.buffered(), 0
        self._arm_stall()

    def _arm_stall(self) -> None:
        loop = asyncio.get_running_loop()
        self._stall_timer = loop.call_later(_CHECK_S, self._check_stall)

    def _check_stall(self) -> None:
        """Backstop for quiet sessions: bytes wait and the kernel takes none of them."""
        self._stall_timer = None
        buffered = self._transport.buffered()
        if not buffered or not self._open:
            return
        if buffered < self._stall_mark:
            self._stall_checks = 0
        else:
            self._stall_checks += 1
        self._stall_mark = buffered
        if self._stall_checks >= limits.STALL_CHECKS and not self._transport.takes_bytes():
            self._too_slow(CloseReason.STALL)
            return
        self._arm_stall()

    # -- the end -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what can be written at this moment."""
        self._pump()

    async def flushed(self) -> None:
        """Wait until everything that can be sent has been handed to the transport."""
        if self._is_idle():
            return
        self._idle = asyncio.get_running_loop().create_future()
        self._schedule()
        await self._idle

    def _is_idle(self) -> bool:
        return not (self._open and (self._ready or self._behind or self._cold is not None))

    @property
    def is_empty(self) -> bool:
        """True when the kernel has every direct message; never once the transport is closing."""
        transport = self._transport
        return transport.is_open and not (self._ready or self._held or transport.buffered())

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._idle.done() and self._is_idle():
            self._idle.set_result(None)

    def stop(self, event: SubEvent) -> dict[str, int]:
        """Pull nothing more; how far each session was sent. Idempotent."""
        sent = {cursor.session_id: cursor.position for cursor in self._cursors.values()}
        self._open = False
        for sid, cursor in self._cursors.items():
            cursor.move(event)
            self._hub.unwatch(sid, self)
        self._cursors.clear()
        self._behind.clear()
        self._ready.clear()
        self._held.clear()
        self._waiting_bytes = 0
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._tell_idle()
        return sent
