"""Proves what becomes of clients that do not keep up: the rule, the farewell, the way back.

Owns sockets that nobody reads. Not in here: the counting itself (``test_gateway_outbox.py``).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import orjson
import pytest
from wire_support import LOOPS, OPTED_IN, TOKEN, Client, House, Lines, opened, wire

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = 4096
ME = {"_meta": {"goclaw": {"version": 1, "notifications": True, "clientId": "me"}}}


async def small_unix(house: House) -> Client:
    """A line client whose kernel takes little."""
    raw = socket.socket(socket.AF_UNIX)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, str(house.socket))
    reader, writer = await asyncio.open_unix_connection(sock=raw, limit=limits.FRAME_BYTES_MAX)
    client = Client(Lines(reader, writer))
    house.clients.append(client)
    await client.initialize(**ME)
    return client


@wire()
@pytest.mark.req("W-9", "I-5")
async def test_a_reader_that_stopped_is_closed_with_the_reason(house: House) -> None:
    busy, stuck = await house.unix(**OPTED_IN), await small_unix(house)
    session = await busy.new_session()
    await stuck.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await stuck.stop_reading()
    # the other client is served all the time, the turn waits for nobody
    last = (await busy.turn(session, "bulk:1200x10000"))["_meta"]["goclaw"]["eventId"]
    assert busy.event_ids(session) == list(range(1, last + 1))
    async with asyncio.timeout(20):
        while house.gateway.connections > 1:
            await busy.call("_goclaw/system/status")
    # what reached the kernel is a dense beginning
    stuck.link.writer.transport.resume_reading()
    stuck.read()
    await stuck.until_closed()
    got = stuck.event_ids(session)
    assert got == list(range(1, len(got) + 1))
    assert len(got) < last
    # back again: told why, and nothing is lost
    back = await house.unix(**ME)
    block = await back.call(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": len(got)}
    )
    close = block["lastClose"]
    assert (close["code"], close["reason"]) == (1013, "goclaw:backpressure lag")
    assert close["sent"][session] >= len(got)
    await back.event("run.ended")
    assert got + back.event_ids(session) == list(range(1, last + 1))
    block = await back.call("_goclaw/session/subscribe", {"sessionId": session})
    assert "lastClose" not in block  # told once


async def raw_ws(house: House, session: str) -> tuple[socket.socket, bytes]:
    """A subscribed WebSocket peer that reads no further than the answer: libraries read ahead."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", house.port))
    upgrade = (
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    )
    await loop.sock_sendall(raw, upgrade.encode())
    hello = {"protocolVersion": 1, "clientCapabilities": OPTED_IN}
    subscribe = {"sessionId": session, "fromEventId": 0}
    for number, (method, params) in enumerate(
        (("initialize", hello), ("_goclaw/session/subscribe", subscribe))
    ):
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        await loop.sock_sendall(raw, masked(orjson.dumps(message)))
    received = b""
    async with asyncio.timeout(20):
        while b'"streamId"' not in received:
            received += await loop.sock_recv(raw, 1 << 12)
    return raw, received


@wire()
@pytest.mark.req("W-9")
async def test_the_farewell_of_a_websocket(house: House) -> None:
    busy = await house.unix(**OPTED_IN)
    session = await busy.new_session()
    raw, received = await raw_ws(house, session)
    await busy.turn(session, "bulk:1200x10000")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        while not received.endswith(b"goclaw:backpressure lag"):
            received += await loop.sock_recv(raw, 1 << 20)
    raw.close()
    code, reason = closed_with(received)
    assert (code, reason) == (1013, "goclaw:backpressure lag")
    frames = list(unframed(received.partition(b"\r\n\r\n")[2]))
    notice = orjson.loads(frames[-2][1])
    assert notice["method"] == "_goclaw/backpressure"
    assert notice["params"]["reason"] == "lag"
    sent = notice["params"]["sent"][session]
    ids = [
        orjson.loads(data)["params"]["_meta"]["goclaw"]["eventId"]
        for opcode, data in frames[:-2]
        if opcode == 1 and b'"eventId"' in data and b'"id":' not in data[:30]
    ]
    assert ids == list(range(1, sent + 1))


@wire(loops=["uvloop"])
@pytest.mark.req("W-9", "I-5")
async def test_a_websocket_that_never_reads_again_is_cut_off(house: House) -> None:
    busy = await house.unix(**OPTED_IN)
    session = await busy.new_session()
    raw, _ = await raw_ws(house, session)
    await busy.turn(session, "bulk:1200x10000")
    async with asyncio.timeout(limits.CLOSE_MS_MAX / 1000 + 10):
        while house.gateway.connections > 1:
            await busy.call("_goclaw/system/status")
    raw.close()


@pytest.mark.req("W-9", "I-5")
def test_a_peer_that_answers_no_ping_is_let_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of the other end is gone, and TCP has not noticed."""
    monkeypatch.setattr(limits, "PING_MS", 500)

    async def main() -> None:
        async with opened(home) as house:
            session = await (await house.unix()).new_session()
            raw, received = await raw_ws(house, session)
            loop = asyncio.get_running_loop()
            opcodes: list[int] = []
            async with asyncio.timeout(20):
                while 8 not in opcodes:
                    received += await loop.sock_recv(raw, 1 << 12)
                    frames = unframed(received.partition(b"\r\n\r\n")[2])
                    opcodes = [opcode for opcode, _ in frames]
            assert 9 in opcodes  # it was asked
            assert closed_with(received)[0] == 1011
            raw.close()

    asyncio.run(main())


@wire()
@pytest.mark.req("W-3", "W-9")
async def test_a_late_reader_gets_the_answer_last(house: House) -> None:
    """Less than the lag: the socket fills up, the turn ends, then the reader goes on."""
    client = await small_unix(house)
    session = await client.new_session()
    request = await client.prompt(session, "wait:g bulk:300x10000")
    await client.event("task.running")
    await client.stop_reading()
    house.open_gate("g")
    busy = await house.unix()
    async with asyncio.timeout(20):
        while (await house.engine.active_turn(await house.engine.intake.session(session)))[0]:
            await busy.call("_goclaw/system/status")
    client.link.writer.transport.resume_reading()
    client.read()
    last = (await client.answer(request))["result"]["_meta"]["goclaw"]["eventId"]
    assert client.event_ids(session) == list(range(1, last + 1))


def masked(payload: bytes) -> bytes:
    """A client's text frame with a zero mask."""
    length = len(payload)
    head = bytes((0x81, 0x80 | length)) if length < 126 else b"\x81\xfe" + struct.pack(">H", length)
    return head + bytes(4) + payload


def unframed(data: bytes):  # type: ignore[no-untyped-def]
    """(opcode, payload) of every whole frame."""
    at = 0
    while at + 2 <= len(data):
        opcode, length, header = data[at] & 15, data[at + 1], 2
        if length == 126:
            length, header = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif length == 127:
            length, header = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        yield opcode, data[at + header : at + header + length]
        at += header + length


def closed_with(received: bytes) -> tuple[int, str]:
    """The close frame's code and reason."""
    *_, (opcode, payload) = unframed(received.partition(b"\r\n\r\n")[2])
    assert opcode == 8
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


@wire()
@pytest.mark.req("W-9", "W-4")
async def test_a_healthy_reader_from_far_back_is_never_counted(house: House) -> None:
    writer = await house.unix(**OPTED_IN)
    session = await writer.new_session()
    for _ in range(4):
        await writer.turn(session, "bulk:1000x6000")
    readers = [await house.unix(**OPTED_IN), await house.ws(**OPTED_IN)]
    for reader in readers:
        await reader.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    last = (await writer.turn(session, "bulk:3000x2000"))["_meta"]["goclaw"]["eventId"]
    for reader in readers:
        await reader.wait_for(
            lambda m: m.get("params", {}).get("_meta", {}).get("goclaw", {}).get("eventId") == last
        )
        assert reader.event_ids(session) == list(range(1, last + 1))


@wire(loops=["uvloop"])
@pytest.mark.req("W-9", "I-5")
async def test_answers_that_nobody_takes(house: House) -> None:
    writer, stuck = await house.unix(), await small_unix(house)
    session = await writer.new_session()
    await writer.turn(session, "bulk:300x1000")
    await stuck.stop_reading()
    for _ in range(30):
        await stuck.request("_goclaw/session/events", {"sessionId": session, "limit": 1000})
    async with asyncio.timeout(20):
        while house.gateway.connections > 1:
            await writer.call("_goclaw/system/status")
    back = await house.unix(**ME)
    block = await back.call("_goclaw/session/subscribe", {"sessionId": session})
    assert block["lastClose"]["reason"] == "goclaw:backpressure bytes"


@wire(loops=["asyncio"])
@pytest.mark.req("W-9")
async def test_shutdown_does_not_wait_for_a_stuck_client(house: House) -> None:
    busy, stuck = await house.unix(), await small_unix(house)
    session = await busy.new_session()
    await stuck.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await stuck.stop_reading()
    await busy.turn(session, "bulk:300x5000")
    async with asyncio.timeout(limits.CLOSE_MS_MAX / 1000 + 10):
        await house.gateway.close()
    assert house.gateway.connections == 0


@pytest.mark.req("W-9", "I-5", "W-4")
def test_both_loops_close_at_the_same_event_and_hold_little(home: Path) -> None:
    """What a reader that stopped costs beyond the kernel: two writes of the pump. It is closed at
    one and the same event whichever loop runs, and goes on from what it has."""
    found = {}
    for loop, factory in LOOPS.items():
        folder = home / loop
        folder.mkdir()
        with asyncio.Runner(loop_factory=factory) as runner:
            found[loop] = runner.run(starved(folder))
    (first, held), (second, also) = found.values()
    assert first == second
    assert max(held, also) <= 2 * limits.WRITE_BYTES_MAX


async def starved(folder: Path) -> tuple[tuple[int, int], int]:
    """The last event that was sent and the one at which it was closed; the most bytes it held."""
    async with opened(folder) as house:
        busy, stuck = await house.unix(**OPTED_IN), await small_unix(house)
        session = await busy.new_session()
        await stuck.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
        await busy.prompt(session, "bulk:100x10000 wait:g bulk:900x10000")
        outbox = next(c.outbox for c in house.gateway._connections if c.client_id == "me")
        await stuck.stop_reading()
        # It fills up, and only then the rest is committed.
        await until(house, lambda: outbox._transport.paused)
        held, now_at, closed_at = 0, 0, 0
        lagging, too_slow = outbox.lagging, outbox._too_slow

        def watched(sid: int, event_id: int, frame_bytes: int) -> None:
            nonlocal held, now_at
            now_at = event_id
            ahead = sum(len(p) for c in outbox.cursors.values() for p, _ in c.ahead)
            held = max(held, outbox._transport.buffered() + outbox._waiting_bytes + ahead)
            lagging(sid, event_id, frame_bytes)

        def closed(reason: object) -> None:
            nonlocal closed_at
            closed_at = now_at
            too_slow(reason)  # type: ignore[arg-type]

        outbox.lagging, outbox._too_slow = watched, closed  # type: ignore[method-assign]
        house.open_gate("g")
        await until(house, lambda: outbox not in {c.outbox for c in house.gateway._connections})
        stuck.link.writer.transport.resume_reading()
        stuck.read()
        await stuck.until_closed()
        got = stuck.event_ids(session)
        assert got == list(range(1, len(got) + 1))
        back = await house.unix(**ME)
        subscribe = {"sessionId": session, "fromEventId": len(got)}
        block = await back.call("_goclaw/session/subscribe", subscribe)
        assert block["lastClose"]["reason"] == "goclaw:backpressure lag"
        await back.event("run.ended")
        ids = back.event_ids(session)
        assert ids == list(range(len(got) + 1, ids[-1] + 1))
        assert ids[-1] == (await house.engine.intake.session(session)).head
        return (block["lastClose"]["sent"][session], closed_at), held


async def until(house: House, is_so: Callable[[], bool]) -> None:
    """Let the house work until it is so."""
    busy = await house.unix()
    async with asyncio.timeout(20):
        while not is_so():
            await busy.call("_goclaw/system/status")
    await busy.close()
