"""What a connected client that does nothing costs: at most 64 KiB beyond what the WebSocket library
takes for it, measured beside a bare server of that library.

GOCLAW_IDLE_CLIENTS sets how many clients. Not in here: what busy ones cost (``test_wire_slow.py``).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import DEADLINE_MS, World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = int(os.environ.get("GOCLAW_IDLE_CLIENTS", "100"))
WARM_UP = 20  # what is made once, or kept for reuse, is not theirs
BYTES_MAX = 64 << 10
BARE = """
import asyncio, contextlib, uvloop
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
async def handler(connection):
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(b'{"jsonrpc":"2.0","id":0,"result":{}}', text=True)
async def main():
    server = await serve(handler, "127.0.0.1", 0, compression=None)
    print(next(iter(server.sockets)).getsockname()[1], flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


@pytest.mark.req("P-2", "W-9", "I-5")
@pytest.mark.timeout(60 + CLIENTS)
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_an_idle_client_is_cheap(place: World) -> None:
    daemon = place.serve()
    record = place.home.read_daemon_json()
    assert record is not None
    assert record.ws is not None
    port = int(record.ws.rpartition(":")[2].partition("/")[0])
    bare = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True)
    place.children.append(bare)
    assert bare.stdout is not None
    bare_port = int(bare.stdout.readline())
    ours = cost(daemon.pid, port, place.home.token())
    theirs = cost(bare.pid, bare_port, "")
    print(f"\n{CLIENTS} clients: {ours / 1024:.1f} KiB each beside {theirs / 1024:.1f}")
    assert ours - theirs <= BYTES_MAX


def cost(pid: int, port: int, token: str) -> float:
    """Resident bytes of the server for each client that has shaken hands and watches a session."""
    clients: list[socket.socket] = []
    session = None
    before = 0
    try:
        for number in range(WARM_UP + CLIENTS):
            if number == WARM_UP:
                before = resident_bytes(pid)
            client = connected(port, token)
            clients.append(client)
            call(client, "initialize", {"protocolVersion": 1})
            if session is None:
                answer = call(client, "session/new", {"cwd": "/", "mcpServers": []})
                session = answer["result"].get("sessionId", "")
            subscribe = {"sessionId": session, "fromEventId": 0, "role": "observer"}
            assert "result" in call(client, "_goclaw/session/subscribe", subscribe)
        return (resident_bytes(pid) - before) / CLIENTS
    finally:
        for client in clients:
            client.close()


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def connected(port: int, token: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), DEADLINE_MS / 1000)
    client.sendall(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    return client


def call(client: socket.socket, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The answer, which comes before or between notifications."""
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": method, "params": params}).encode()
    client.sendall(b"\x81\xfe" + struct.pack(">H", len(body)) + bytes(4) + body)
    while True:
        size = received(client, 2)[1]
        if size > 125:
            size = int.from_bytes(received(client, 2 if size == 126 else 8), "big")
        message: dict[str, Any] = json.loads(received(client, size))
        if "id" in message and "method" not in message:
            return message


def received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = client.recv(size - len(data))
        assert chunk, "the server closed the connection"
        data += chunk
    return data
