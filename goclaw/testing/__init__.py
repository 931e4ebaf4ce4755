"""Servers to test with: the daemon's own codec with a stub method table, an echo, and a model.

Owns the stub methods (those of the JSON-RPC specification's examples) and this command line. Not
in here: anything the daemon runs, the model's server (``models.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from websockets.exceptions import ConnectionClosed

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused, GoclawError, InvalidParams, ListenerFailed
from goclaw.gateway.transports import FrameConnection, FrameTransport, listen_frames
from goclaw.protocol.jsonrpc import Call, LineSplitter, Peer, Send, method_unknown
from goclaw.testing.models import load_scenario, serve_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["answers", "main"]

HOST: Final = "127.0.0.1"
ECHO_BYTES_MAX: Final = 2 * limits.FRAME_BYTES_MAX  # the largest message of the Autobahn suite

# -- the stub's methods ------------------------------------------------------------------------


def _subtract(params: dict[str, Any] | list[Any] | None) -> object:
    if isinstance(params, dict) and params.keys() == {"minuend", "subtrahend"}:
        params = [params["minuend"], params["subtrahend"]]
    minuend, subtrahend = _numbers(params, count=2)
    return minuend - subtrahend


def _sum(params: dict[str, Any] | list[Any] | None) -> object:
    return sum(_numbers(params))


def _get_data(params: dict[str, Any] | list[Any] | None) -> object:
    if params:
        raise InvalidParams("get_data takes no parameters.")
    return ["hello", 5]


def _numbers(params: dict[str, Any] | list[Any] | None, count: int | None = None) -> list[float]:
    fits = isinstance(params, list) and (count is None or len(params) == count)
    if not fits or not all(type(item) in (int, float) for item in params or ()):
        raise InvalidParams("The parameters must be a list of numbers.")
    return list(params or ())


_METHODS: Final[dict[str, Callable[[dict[str, Any] | list[Any] | None], object]]] = {
    "subtract": _subtract,
    "sum": _sum,
    "get_data": _get_data,
}


def answers(peer: Peer, data: bytes) -> list[bytes]:
    """What the stub sends back for one message, in order. Notifications are taken and ignored."""
    out = []
    for incoming in peer.receive(data):
        if isinstance(incoming, Send):
            out.append(incoming.data)
        elif isinstance(incoming, Call):
            answer = _answer(peer, incoming)
            if answer is not None:
                out.append(answer)
    return out


def _answer(peer: Peer, call: Call) -> bytes | None:
    method = _METHODS.get(call.request.method)
    try:
        if method is None:
            raise method_unknown(call.request.method)
        return peer.result(call, method(call.request.params))
    except GoclawError as error:
        return peer.error(call, error)


# -- transports --------------------------------------------------------------------------------


def _serve_stdio() -> None:
    peer, lines = Peer(batches=True), LineSplitter()
    while chunk := os.read(sys.stdin.fileno(), limits.WRITE_BYTES_MAX):
        for line in lines.feed(chunk):
            for answer in answers(peer, line):
                sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


class _Stub:
    """The stub on a WebSocket: an owner of the daemon's own transport."""

    def __init__(self, transport: FrameTransport) -> None:
        self._transport = transport
        self._peer = Peer(batches=True)

    def receive(self, data: bytes) -> None:
        for answer in answers(self._peer, data):
            self._transport.write(self._transport.frame(answer))

    def full(self) -> None:
        self._transport.pause_reading()

    def drained(self) -> None:
        self._transport.resume_reading()

    def lost(self) -> None:
        pass


async def _serve_rpc(connection: FrameConnection) -> None:
    transport = FrameTransport(connection)
    await transport.serve(_Stub(transport))


async def _serve_echo(connection: FrameConnection) -> None:
    with contextlib.suppress(ConnectionClosed):  # however the peer ends it
        async for message in connection:
            await connection.send(message)


async def _listen(
    handler: Callable[[FrameConnection], Awaitable[None]], port: int, bytes_max: int
) -> None:
    async with await listen_frames(handler, HOST, port, bytes_max=bytes_max) as server:
        address = server.sockets[0].getsockname()
        print(f"ready ws://{address[0]}:{address[1]}", flush=True)
        await server.serve_forever()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError("a port is a number from 0 (any) to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the servers until end of input or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m goclaw.testing", description=__doc__)
    servers = parser.add_subparsers(dest="server", required=True)
    stub = servers.add_parser("rpc-stub", help="the codec with a stub method table")
    where = stub.add_mutually_exclusive_group(required=True)
    where.add_argument("--stdio", action="store_true", help="one message a line")
    where.add_argument("--port", type=_port, help="WebSocket on loopback; 0 = any")
    echo = servers.add_parser("ws-echo", help="send every message back")
    echo.add_argument("--port", type=_port, required=True, help="WebSocket on loopback; 0 = any")
    model = servers.add_parser(
        "openai-server", help="a model that follows a file, in OpenAI's and Anthropic's protocols"
    )
    model.add_argument("--port", type=_port, required=True, help="on loopback; 0 = any")
    model.add_argument("--scenario", type=Path, help="a JSON file, as docs/brains.md describes it")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.server == "openai-server":
            asyncio.run(serve_model(HOST, chosen.port, load_scenario(chosen.scenario)))
        elif chosen.server == "ws-echo":
            asyncio.run(_listen(_serve_echo, chosen.port, ECHO_BYTES_MAX))
        elif chosen.stdio:
            _serve_stdio()
        else:
            asyncio.run(_listen(_serve_rpc, chosen.port, limits.FRAME_BYTES_MAX))
    except KeyboardInterrupt:
        pass  # the way to end it
    except (ConfigRefused, ListenerFailed) as error:
        print(f"goclaw: {error}", file=sys.stderr)
        return error.exit
    return 0
