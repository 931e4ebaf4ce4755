"""Holds the websockets library to what ``gateway.transports`` relies on.

Owns the raw listener. Not in here: what goclaw says over it.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from wire_support import LOOPS

from goclaw.core import limits
from goclaw.gateway.transports import FrameConnection, FrameTransport, listen_frames
from goclaw.protocol.jsonrpc import text_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from websockets.asyncio.client import ClientConnection


class Echo:
    """Owner of one transport: sends everything back as finished frames, and remembers."""

    def __init__(self, transport: FrameTransport) -> None:
        self.transport = transport
        self.events: list[str] = []
        self.gone = asyncio.Event()

    def receive(self, data: bytes) -> None:
        if data == b"flood":
            # One write of many frames, as the pump does it.
            self.transport.write(text_frame(b"x" * 1000) * 20_000)
            return
        if data == b"bye":
            self.transport.close(4000, "as you wish")
            self.transport.close(4001, "twice")
            return
        self.transport.write(self.transport.frame(data))

    def full(self) -> None:
        assert self.transport.paused
        self.events.append("full")

    def drained(self) -> None:
        assert not self.transport.paused
        self.events.append("drained")

    def lost(self) -> None:
        self.gone.set()


def with_client(
    test: Callable[[ClientConnection, list[Echo]], Awaitable[None]],
) -> Callable[[str], None]:
    @pytest.mark.parametrize("loop", LOOPS)
    def run(loop: str) -> None:
        async def whole() -> None:
            owners: list[Echo] = []

            async def handler(connection: FrameConnection) -> None:
                transport = FrameTransport(connection)
                owners.append(Echo(transport))
                await transport.serve(owners[-1])

            server = await listen_frames(handler, "127.0.0.1", 0)
            port = next(iter(server.sockets)).getsockname()[1]
            async with server, connect(f"ws://127.0.0.1:{port}", max_size=None) as client:
                async with asyncio.timeout(20):
                    await test(client, owners)

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(whole())

    run.__name__ = test.__name__
    return run


@with_client
async def test_finished_frames_arrive_as_messages(
    client: ClientConnection, owners: list[Echo]
) -> None:
    for size in (0, 1, 125, 126, 65_535, 65_536, 3_000_000):
        await client.send("x" * size)
        assert await client.recv() == "x" * size
    await client.send(b"bytes come as text")
    assert await client.recv() == "bytes come as text"


@with_client
async def test_pings_pass_between_finished_frames(
    client: ClientConnection, owners: list[Echo]
) -> None:
    for n in range(50):
        waiter = await client.ping()
        await client.send(str(n))
        assert await client.recv() == str(n)
        await waiter


@pytest.mark.req("W-9")
@with_client
async def test_a_full_transport_says_so(client: ClientConnection, owners: list[Echo]) -> None:
    await client.send("flood")
    for _ in range(20_000):
        assert len(await client.recv()) == 1000
    await client.send("after")
    assert await client.recv() == "after"
    assert owners[0].events[:2] == ["full", "drained"]
    assert not owners[0].transport.paused
    assert owners[0].transport.buffered() == 0
    assert owners[0].transport.takes_bytes()


@pytest.mark.req("W-9")
@with_client
async def test_a_close_comes_after_what_was_written(
    client: ClientConnection, owners: list[Echo]
) -> None:
    await client.send("one")
    await client.send("bye")
    assert await client.recv() == "one"
    with pytest.raises(ConnectionClosed):
        await client.recv()
    assert (client.close_code, client.close_reason) == (4000, "as you wish")
    await client.wait_closed()
    await owners[0].gone.wait()
    owners[0].transport.write(b"nobody is there")  # nothing happens


@pytest.mark.req("I-5")
@with_client
async def test_reading_can_be_paused(client: ClientConnection, owners: list[Echo]) -> None:
    await client.send("a")
    assert await client.recv() == "a"
    owners[0].transport.pause_reading()
    await client.send("b")  # this one was asked for already
    await client.send("c")
    assert await client.recv() == "b"
    await (await client.ping())
    owners[0].transport.resume_reading()
    assert await client.recv() == "c"


def test_the_library_has_what_the_trick_needs() -> None:
    for name in ("pause_writing", "resume_writing", "connection_lost"):
        assert callable(getattr(ServerConnection, name)), name
    wanted = {
        "compression", "create_connection", "write_limit", "max_size", "ping_interval",
        "ping_timeout", "close_timeout", "open_timeout", "server_header", "logger",
        "process_request", "process_response",
    }  # fmt: skip
    assert wanted <= set(inspect.signature(serve).parameters)
    assert limits.WRITE_BYTES_MAX >= 1 << 16


@pytest.mark.parametrize("loop", LOOPS)
def test_no_extension_is_agreed_on(loop: str) -> None:
    """A client that offers compression gets none."""
    seen: list[Any] = []

    async def handler(connection: FrameConnection) -> None:
        seen.append(connection.protocol.extensions)
        await connection.wait_closed()

    async def whole() -> None:
        async with await listen_frames(handler, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}", compression="deflate") as client:
                assert client.protocol.extensions == []

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(whole())
    assert seen == [[]]
