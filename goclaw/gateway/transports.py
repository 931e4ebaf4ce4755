"""Two ways to carry finished bytes: lines on a Unix socket, frames of a WebSocket.

Owns flow control towards the kernel and the one trick with the websockets library (below). Not in
here: what is sent when (``outbox``), who may connect (``access``).

The trick: a server's frames are unmasked and its connection has no compression, so a frame that
``protocol.jsonrpc`` finished once for everybody is written straight to the library's transport. It
is right while the state is OPEN, no extension is active and the library itself sends no fragmented
message; ``test_wire_frames`` holds the library to that, and ``listen_frames`` is
the one way to open such a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from goclaw.core import limits
from goclaw.core.errors import ListenerFailed
from goclaw.protocol.jsonrpc import LineSplitter, text_frame

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from goclaw.gateway.scopes import AttemptPass

__all__ = [
    "Doors",
    "FrameConnection",
    "FrameTransport",
    "LineTransport",
    "Owner",
    "Transport",
    "listen_frames",
]

_CLOSE_S: Final = limits.CLOSE_MS_MAX / 1000

# The library logs requests, whose headers hold the token: nothing of it goes anywhere.
_mute = logging.Logger("goclaw-websockets", level=logging.CRITICAL + 1)


class Owner(Protocol):
    """Whom a transport tells: a connection."""

    def receive(self, data: bytes) -> None:
        """One message of the peer."""

    def full(self) -> None:
        """More than ``limits.WRITE_BYTES_MAX`` wait in the transport."""

    def drained(self) -> None:
        """The transport takes bytes again."""

    def lost(self) -> None:
        """The connection is gone; called once."""


class Transport(Protocol):
    """Where a connection's bytes go. Belongs to the loop."""

    lines: bool
    """True: messages end with LF and have no WebSocket header."""

    @property
    def paused(self) -> bool:
        """True between ``Owner.full`` and ``Owner.drained``."""

    @property
    def is_open(self) -> bool:
        """True while what is written may still arrive."""

    def frame(self, message: bytes) -> bytes:
        """A finished message as this transport sends it."""

    def write(self, data: bytes) -> None:
        """Queue finished frames; nothing when the connection is no longer open."""

    def buffered(self) -> int:
        """Bytes that the kernel has not taken."""

    def takes_bytes(self) -> bool:
        """True when the kernel would take bytes at this very moment."""

    def pause_reading(self) -> None:
        """Take no more messages for now."""

    def resume_reading(self) -> None:
        """Go on."""

    def close(self, code: int, reason: str) -> None:
        """Say goodbye after what was written; abort after ``limits.CLOSE_MS_MAX``. Idempotent."""

    def abort(self) -> None:
        """Close now, whatever waits."""


def _takes_bytes(transport: asyncio.WriteTransport) -> bool:
    socket = transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0:
        return False
    poller = select.poll()
    poller.register(socket.fileno(), select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poller.poll(0))


class LineTransport(asyncio.Protocol):
    """One message a line; ``accept`` names the owner, or None to turn the peer away."""

    lines = True

    def __init__(self, accept: Callable[[LineTransport], Owner | None]) -> None:
        self._accept = accept
        self._splitter = LineSplitter()
        self._owner: Owner | None = None
        self._closing: asyncio.TimerHandle | None = None
        self.paused = False

    # -- the event loop's side -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        # uvloop's transports are none of asyncio's classes.
        self.stream = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=limits.WRITE_BYTES_MAX)
        self._owner = self._accept(self)
        if self._owner is None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._owner is not None:
            for line in self._splitter.feed(data):
                self._owner.receive(line)

    def pause_writing(self) -> None:
        """See asyncio."""
        self.paused = True
        if self._owner is not None:
            self._owner.full()

    def resume_writing(self) -> None:
        """See asyncio."""
        self.paused = False
        if self._owner is not None:
            self._owner.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._closing is not None:
            self._closing.cancel()
        if self._owner is not None:
            self._owner.lost()

    # -- the owner's side ----------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """See Transport."""
        return not self.stream.is_closing()

    def frame(self, message: bytes) -> bytes:
        """See Transport."""
        return message + b"\n"

    def write(self, data: bytes) -> None:
        """See Transport."""
        if self.is_open:
            self.stream.write(data)

    def buffered(self) -> int:
        """See Transport."""
        return self.stream.get_write_buffer_size()

    def takes_bytes(self) -> bool:
        """See Transport."""
        return _takes_bytes(self.stream)

    def pause_reading(self) -> None:
        """See Transport."""
        if not self.stream.is_closing():
            self.stream.pause_reading()

    def resume_reading(self) -> None:
        """See Transport."""
        if not self.stream.is_closing():
            self.stream.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """See Transport; a line knows no close code."""
        if self._closing is None:
            self.stream.close()
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_CLOSE_S, self.stream.abort)

    def abort(self) -> None:
        """See Transport."""
        self.stream.abort()


class Doors(Protocol):
    """Who counts the connections that are not upgraded yet."""

    def arrived(self, connection: FrameConnection) -> bool:
        """Called for each that was accepted; False turns it away."""

    def left(self, connection: FrameConnection) -> None:
        """It is gone, whatever it had become."""


class FrameConnection(ServerConnection):
    """The library's connection, which also tells an owner when its transport is full."""

    owner: Owner | None = None
    attempt: AttemptPass | None = None
    """What the token of the upgrade opened, when it was that of an attempt."""
    generation = 0
    """Of the token of the home when the upgrade was judged."""
    doors: Doors | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        if self.doors is not None and not self.doors.arrived(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        if self.doors is not None:
            self.doors.left(self)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        if self.owner is not None:
            self.owner.full()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self.owner is not None:
            self.owner.drained()


async def listen_frames(
    handler: Callable[[FrameConnection], Awaitable[None]],
    host: str,
    port: int,
    *,
    bytes_max: int = limits.FRAME_BYTES_MAX,
    doors: Doors | None = None,
    tls: ssl.SSLContext | None = None,
    **checks: Any,
) -> Server:
    """Listen for upgrades as the trick needs it; ``checks``: the library's process_* functions.

    A larger message is refused with 1009, a peer that misses its pings with 1011. ListenerFailed.
    """

    def create(*arguments: Any, **options: Any) -> FrameConnection:
        connection = FrameConnection(*arguments, **options)
        connection.doors = doors
        return connection

    encrypted: dict[str, Any] = {}
    if tls is not None:
        encrypted = {"ssl": tls, "ssl_handshake_timeout": limits.HANDSHAKE_MS_MAX / 1000}
    try:
        return await serve(
            cast("Callable[[ServerConnection], Awaitable[None]]", handler),
            host,
            port,
            compression=None,
            server_header=None,
            open_timeout=limits.HANDSHAKE_MS_MAX / 1000,
            ping_interval=limits.PING_MS / 1000,
            ping_timeout=limits.PINGS_MISSED_MAX * limits.PING_MS / 1000,
            close_timeout=_CLOSE_S,
            max_size=bytes_max,
            write_limit=limits.WRITE_BYTES_MAX,
            logger=_mute,
            create_connection=cast("type[ServerConnection]", create),
            **encrypted,
            **checks,
        )
    except OSError as error:
        raise ListenerFailed(
            f"{host}:{port} cannot be opened: {error.strerror}.",
            hint="Is another program on that port? Choose another one.",
        ) from None


class FrameTransport:
    """Finished WebSocket frames; reads until the connection ends."""

    lines = False

    def __init__(self, connection: FrameConnection) -> None:
        self._connection = connection
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing: asyncio.Task[None] | None = None

    @property
    def paused(self) -> bool:
        """See Transport."""
        return self._connection.paused

    @property
    def is_open(self) -> bool:
        """See Transport."""
        connection = self._connection
        return connection.protocol.state is State.OPEN and not connection.transport.is_closing()

    async def serve(self, owner: Owner) -> None:
        """Hand the peer's messages to ``owner`` until the connection ends."""
        self._connection.owner = owner
        try:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self._reading.wait()
                    owner.receive(await self._connection.recv(decode=False))
        finally:
            self._connection.owner = None
            owner.lost()
            if self._closing is not None:
                await self._closing

    def frame(self, message: bytes) -> bytes:
        """See Transport."""
        return text_frame(message)

    def write(self, data: bytes) -> None:
        """See Transport."""
        if self.is_open:
            self._connection.transport.write(data)

    def buffered(self) -> int:
        """See Transport."""
        return self._connection.transport.get_write_buffer_size()

    def takes_bytes(self) -> bool:
        """See Transport."""
        return _takes_bytes(self._connection.transport)

    def pause_reading(self) -> None:
        """See Transport."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """See Transport."""
        self._reading.set()

    def close(self, code: int, reason: str) -> None:
        """See Transport."""
        if self._closing is None:
            self._reading.set()
            self._closing = asyncio.create_task(self._close(code, reason))

    def abort(self) -> None:
        """See Transport."""
        self._connection.transport.abort()

    async def _close(self, code: int, reason: str) -> None:
        # The library's own close waits for ever on a full socket.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._connection.close(code, reason)
        self._connection.transport.abort()
