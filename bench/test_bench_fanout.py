"""Live events to many clients over loopback, beside picows: all at once, and at a steady rate.

Owns P-2's fan-out. goclaw commits every event (FULL) before anybody sees it; picows keeps nothing.
One cheap raw-socket client for both, servers as processes of their own, events of the same size.
Not in here: replay (``test_bench_replay.py``).
"""

from __future__ import annotations

import json
import os
import re
import selectors
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_bench_replay import connect, frames, send

if TYPE_CHECKING:
    import socket

SERVER = Path(__file__).with_name("fanout_server.py")
ROUNDS = 5
BURST_EVENTS, BURST_CLIENTS = 1_000, 100
LIVE_RATE, LIVE_EVENTS, LIVE_CLIENTS = 5_000, 10_000, 50
SAMPLED = 5  # clients whose every byte is kept and judged; of the others the bytes are counted
DEADLINE_S = 60
DUE = re.compile(rb"due=(\d{19})")
HELLO = {
    "protocolVersion": 1,
    "clientCapabilities": {"_meta": {"goclaw": {"version": 1, "notifications": True}}},
}


class Server:
    """A server process that takes orders."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())
        self.made = 0

    def order(self, events: int, rate: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"events": events, "rate": rate}) + "\n")
        self.process.stdin.flush()
        self.made += events

    def cpu_s(self) -> float:
        """Processor time of the whole process, native threads included."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def client(self) -> socket.socket:
        """A client that gets what happens from now on."""
        sock = connect(self.ready)
        if self.ready["session"]:
            session = {"sessionId": self.ready["session"]}
            send(sock, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO})
            assert b'"protocolVersion"' in sock.recv(65536)
            subscribe = "_goclaw/session/subscribe"
            send(sock, {"jsonrpc": "2.0", "id": 2, "method": subscribe, "params": session})
            assert b'"streamId"' in sock.recv(65536)
        return sock

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Reader:
    """One client: a sampled one keeps its bytes and when they came."""

    def __init__(self, sock: socket.socket, *, keeps: bool) -> None:
        self.sock, self.keeps = sock, keeps
        self.data = bytearray()
        self.times: list[tuple[int, int]] = []
        self.tail = b""

    def read(self, last: bytes) -> bool:
        """Take what there is; True when the last event was in it."""
        chunk = self.sock.recv(1 << 18)
        assert chunk, "the server closed the connection"
        if self.keeps:
            self.data += chunk
            self.times.append((len(self.data), time.monotonic_ns()))
        joined = self.tail + chunk
        self.tail = joined[-1024:]
        return last in joined and joined.endswith((b"}", b"\n"))  # goclaw ends each with LF


def run(server: Server, clients: int, events: int, rate: int) -> tuple[float, float, list[float]]:
    """Seconds until every client has every event; the server's processor seconds; latencies in
    milliseconds of what the sampled clients got, each event from when it was due."""
    readers = [Reader(server.client(), keeps=n < SAMPLED) for n in range(clients)]
    first = server.made
    last = b'"eventId":%d,' % (first + events)
    selector = selectors.DefaultSelector()
    for reader in readers:
        reader.sock.setblocking(False)
        selector.register(reader.sock, selectors.EVENT_READ, reader)
    cpu, began = server.cpu_s(), time.monotonic_ns()
    server.order(events, rate)
    left = set(readers)
    while left:
        found = selector.select(DEADLINE_S)
        assert found, f"{len(left)} clients wait for event {first + events}"
        for key, _ in found:
            if key.data.read(last):
                selector.unregister(key.fileobj)
                left.discard(key.data)
    elapsed = (time.monotonic_ns() - began) / 1e9
    cpu = server.cpu_s() - cpu
    for reader in readers:
        reader.sock.close()
    latencies = [ms for reader in readers[:SAMPLED] for ms in judged(reader, first, events)]
    return elapsed, cpu, latencies


def judged(reader: Reader, first: int, events: int) -> list[float]:
    """Latencies of one client, which got every event once and in order."""
    found, at, came = [], 0, iter(reader.times)
    upto, when = next(came)
    ids = []
    for payload in frames(reader.data):
        at += len(payload) + (2 if len(payload) < 126 else 4)
        while upto < at:
            upto, when = next(came)
        due = DUE.search(payload)
        if due is None:
            continue
        ids.append(json.loads(payload)["params"]["_meta"]["goclaw"]["eventId"])
        found.append((when - int(due[1])) / 1e6)
    assert ids == list(range(first + 1, first + events + 1))
    return found


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


@pytest.fixture
def servers(tmp_path: Path) -> Any:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    both = {"goclaw": Server("goclaw", str(home)), "picows": Server("picows")}
    yield both
    for server in both.values():
        server.close()


@pytest.mark.req("P-2")
@pytest.mark.timeout(300)
def test_a_burst_to_a_hundred_clients(benchmark: Any, servers: dict[str, Server]) -> None:
    """1,000 events to 100 clients: deliveries a second >= 10 times picows'."""
    measured: dict[str, list[float]] = {name: [] for name in servers}

    def one_round() -> None:
        for name, server in servers.items():
            elapsed, _, _ = run(server, BURST_CLIENTS, BURST_EVENTS, 0)
            measured[name].append(BURST_EVENTS * BURST_CLIENTS / elapsed)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1, iterations=1)
    medians = {name: statistics.median(values[1:]) for name, values in measured.items()}
    benchmark.extra_info["deliveries_per_s"] = {k: round(v) for k, v in medians.items()}
    benchmark.extra_info["ratio"] = round(medians["goclaw"] / medians["picows"], 1)
    print(benchmark.extra_info)
    assert medians["goclaw"] >= 10 * medians["picows"]


@pytest.mark.req("P-2", "W-9")
@pytest.mark.timeout(300)
def test_a_steady_stream_to_fifty_clients(benchmark: Any, servers: dict[str, Server]) -> None:
    """5,000 events a second to 50 clients: p99 <= picows', at under half its processor time."""
    cpu: dict[str, list[float]] = {name: [] for name in servers}
    late: dict[str, list[float]] = {name: [] for name in servers}

    def one_round() -> None:
        for name, server in servers.items():
            _, used, latencies = run(server, LIVE_CLIENTS, LIVE_EVENTS, LIVE_RATE)
            cpu[name].append(used)
            late[name].append(p99(latencies))

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    used = {name: statistics.median(values) for name, values in cpu.items()}
    p99s = {name: statistics.median(values) for name, values in late.items()}
    benchmark.extra_info["cpu_s"] = {name: round(value, 2) for name, value in used.items()}
    benchmark.extra_info["p99_ms"] = {name: round(value, 2) for name, value in p99s.items()}
    print(benchmark.extra_info)
    assert p99s["goclaw"] <= p99s["picows"]
    assert used["goclaw"] < used["picows"] / 2
