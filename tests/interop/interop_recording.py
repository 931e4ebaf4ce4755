"""What went over one connection, byte for byte: the tee between goclaw and a client, and its tape.

Owns the tape's form and the cutting of it into messages. Not in here: what a message must look like
(``interop_schema.py``). As a script it is the tee of a stdio agent: TAPE COMMAND ARGS...
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Side = Literal["client", "agent"]
CHUNK_BYTES = 1 << 16


class Tape:
    """A file of chunks as they passed, each written before it is handed on; any thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, side: Side, chunk: bytes) -> None:
        line = side.encode() + b" " + base64.b64encode(chunk) + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError("the tape is cut")


@dataclass(frozen=True)
class Sent:
    """One message as it was on the wire. ``number`` is its place among all messages."""

    number: int
    side: Side
    raw: bytes


class FramingError(Exception):
    """The bytes are no lines, or no WebSocket frames, that this protocol may carry."""


def read_tape(path: Path) -> Iterator[tuple[Side, bytes]]:
    """The chunks of a tape in the order in which they passed."""
    for line in path.read_bytes().splitlines():
        side, _, chunk = line.partition(b" ")
        yield ("client" if side == b"client" else "agent"), base64.b64decode(chunk)


def lines(chunks: Iterator[tuple[Side, bytes]]) -> list[Sent]:
    """Messages of a stdio connection. FramingError when the agent's last line has no end."""
    return _cut(chunks, {"client": _take_line, "agent": _take_line})


def frames(chunks: Iterator[tuple[Side, bytes]]) -> list[Sent]:
    """Text messages of a WebSocket connection: what follows the two heads of the upgrade.

    FramingError for compression, fragments and binary frames, which goclaw never sends.
    """
    head: dict[Side, bool] = {"client": True, "agent": True}

    def take(side: Side) -> Callable[[bytearray], bytes | None]:
        def step(buffer: bytearray) -> bytes | None:
            if head[side]:
                end = buffer.find(b"\r\n\r\n")
                if end < 0:
                    return None
                if side == "agent" and b"sec-websocket-extensions" in buffer[:end].lower():
                    raise FramingError("the server took a WebSocket extension")
                del buffer[: end + 4]
                head[side] = False
            while (found := _take_frame(buffer)) is not None:
                opcode, payload = found
                if opcode == 1:
                    return payload
                if opcode not in (8, 9, 10):
                    raise FramingError(f"{side} sent a frame of opcode {opcode}")
            return None

        return step

    return _cut(chunks, {"client": take("client"), "agent": take("agent")})


def _cut(
    chunks: Iterator[tuple[Side, bytes]],
    takers: dict[Side, Callable[[bytearray], bytes | None]],
) -> list[Sent]:
    buffers: dict[Side, bytearray] = {"client": bytearray(), "agent": bytearray()}
    out: list[Sent] = []
    for side, chunk in chunks:
        buffers[side] += chunk
        while (raw := takers[side](buffers[side])) is not None:
            out.append(Sent(len(out), side, raw))
    if buffers["agent"]:
        raise FramingError(f"the agent ended inside a message: {bytes(buffers['agent'][:80])!r}")
    return out


def _take_line(buffer: bytearray) -> bytes | None:
    end = buffer.find(b"\n")
    if end < 0:
        return None
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


def _take_frame(buffer: bytearray) -> tuple[int, bytes] | None:
    if len(buffer) < 2:
        return None
    masked, length, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
    if length > 125:
        wide = 2 if length == 126 else 8
        length, at = int.from_bytes(buffer[2 : 2 + wide], "big"), 2 + wide
    start = at + (4 if masked else 0)
    if len(buffer) < start + length:
        return None
    first, mask = buffer[0], bytes(buffer[at:start])
    payload = bytes(buffer[start : start + length])
    del buffer[: start + length]
    if first & 0x70:
        raise FramingError("a frame with reserved bits")
    if not first & 0x80 and first & 0x0F < 8:
        raise FramingError("a fragmented message")
    if masked:
        key = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(
            length, "big"
        )
    return first & 0x0F, payload


class TcpTee:
    """Listens on a loopback port and joins each connection to ``target``, taping both ways."""

    def __init__(self, target: tuple[str, int], tape: Path) -> None:
        self._target, self._tape = target, Tape(tape)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            agent = socket.create_connection(self._target)
            self._open += [client, agent]
            for side, source, sink in (("client", client, agent), ("agent", agent, client)):
                threading.Thread(
                    target=_pump_socket, args=(self._tape, side, source, sink), daemon=True
                ).start()

    def close(self) -> None:
        # shutdown wakes the thread in accept, which close alone does not
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _pump_socket(tape: Tape, side: Side, source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(CHUNK_BYTES):
            tape.add(side, chunk)
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _pump_pipe(tape: Tape, side: Side, source: int, sink: int) -> None:
    try:
        while chunk := os.read(source, CHUNK_BYTES):
            tape.add(side, chunk)
            while chunk:
                chunk = chunk[os.write(sink, chunk) :]
    except BrokenPipeError:
        return
    finally:
        os.close(sink)


def main(argv: list[str]) -> int:
    """Run the agent COMMAND with its stdin and stdout taped; answers its exit code."""
    tape = Tape(Path(argv[0]))
    agent = subprocess.Popen(argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    signal.signal(signal.SIGTERM, lambda *_: agent.terminate())
    assert agent.stdin is not None
    assert agent.stdout is not None
    threading.Thread(
        target=_pump_pipe, args=(tape, "client", 0, os.dup(agent.stdin.fileno())), daemon=True
    ).start()
    agent.stdin.close()
    _pump_pipe(tape, "agent", agent.stdout.fileno(), os.dup(1))
    code = agent.wait()
    os.close(1)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
