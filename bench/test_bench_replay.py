"""Replay of a long session to one client over loopback, cold and warm, beside picows.

Owns P-2's replay: one cheap raw-socket client, servers as processes of their own, the same number
of events of about the same size from each. Not in here: live fan-out.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

EVENTS = 100_000
ROUNDS = 5
SERVER = Path(__file__).with_name("replay_server.py")


class Server:
    """A server process and what it said when it was ready."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def connect(ready: dict[str, Any]) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", ready["port"]))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{ready['port']}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Authorization: Bearer {ready['token']}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert b" 101 " in head.split(b"\r\n", 1)[0], head
    return sock


def send(sock: socket.socket, message: object) -> None:
    """One masked text frame (the mask is zero)."""
    body = json.dumps(message).encode()
    length = (
        struct.pack("!B", 0x80 | len(body))
        if len(body) < 126
        else b"\xfe" + struct.pack("!H", len(body))
    )
    sock.sendall(b"\x81" + length + b"\0\0\0\0" + body)


def frames(data: bytes | bytearray) -> list[bytes]:
    """The payloads of whole unmasked frames."""
    found, at = [], 0
    while at < len(data):
        length, header = data[at + 1], 2
        if length == 126:
            length, header = struct.unpack_from("!H", data, at + 2)[0], 4
        elif length == 127:
            length, header = struct.unpack_from("!Q", data, at + 2)[0], 10
        found.append(bytes(data[at + header : at + header + length]))
        at += header + length
    return found


def replay(ready: dict[str, Any]) -> tuple[float, bytearray]:
    """Seconds from the request to the last event, and every byte received."""
    sock = connect(ready)
    if ready["session"]:
        goclaw = {"_meta": {"goclaw": {"version": 1, "notifications": True}}}
        params: dict[str, Any] = {"protocolVersion": 1, "clientCapabilities": goclaw}
        send(sock, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        assert b'"protocolVersion"' in sock.recv(65536)
    data = bytearray(EVENTS * 600)
    view, got = memoryview(data), 0
    last = b'"eventId":%d' % EVENTS
    began = time.perf_counter()
    params = {"sessionId": ready["session"], "fromEventId": 0}
    send(sock, {"jsonrpc": "2.0", "id": 2, "method": "_goclaw/session/subscribe", "params": params})
    while True:
        count = sock.recv_into(view[got:], 1 << 20)
        assert count, "the server closed the connection"
        got += count
        if last in data[max(0, got - 600) : got] and data[got - 1] in b"\n}":
            break
    elapsed = time.perf_counter() - began
    sock.close()
    return elapsed, data[:got]


def ids(data: bytearray) -> list[int]:
    found = [json.loads(frame) for frame in frames(data)]
    return [
        message["params"]["_meta"]["goclaw"]["eventId"]
        for message in found
        if message.get("method") == "session/update"
    ]


@pytest.mark.req("P-2")
@pytest.mark.timeout(300)
def test_replay_cold_and_warm_beside_picows(benchmark: Any, tmp_path: Path) -> None:
    """100,000 events: warm >= 10 times, cold >= 3 times picows; every id, in order."""
    servers: dict[str, Server] = {}
    try:
        for mode in ("cold", "warm"):
            home = tmp_path / mode
            home.mkdir(mode=0o700)
            servers[mode] = Server("goclaw", str(home), str(EVENTS), mode)
        servers["picows"] = Server("picows", str(EVENTS))
        for server in servers.values():
            _, data = replay(server.ready)
            assert ids(data) == list(range(1, EVENTS + 1))
        measured: dict[str, list[float]] = {name: [] for name in servers}

        def one_round() -> None:
            for name, server in servers.items():
                measured[name].append(EVENTS / replay(server.ready)[0])

        benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
        medians = {name: statistics.median(values) for name, values in measured.items()}
        benchmark.extra_info["events_per_s"] = {k: round(v) for k, v in medians.items()}
        benchmark.extra_info["min_max"] = {
            name: [round(min(v)), round(max(v))] for name, v in measured.items()
        }
        print(benchmark.extra_info)
        assert medians["warm"] >= 10 * medians["picows"]
        assert medians["cold"] >= 3 * medians["picows"]
    finally:
        for server in servers.values():
            server.close()
