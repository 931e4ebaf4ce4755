"""The tiny reference client: all that it takes to speak the wire and to come back without a loss.

Owns three ways in (WebSocket, Unix socket, a program's stdin and stdout) and one connection's
messages in order. Not in here: judging them (``laws``, ``checks``).

What a client of its own needs beside this: keep the last ``eventId`` that was applied, and after a
lost connection call ``_goclaw/session/subscribe`` with it as ``fromEventId``; on ``replay_gap`` or
``cursor_ahead`` load the session anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import socket
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from goclaw.conformance.laws import Ledger, Seen, event_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Broken", "Client", "Dial", "Link", "Refused", "dial"]

_MESSAGE_BYTES_MAX: Final = 64 << 20
"""Longer than anything a server may send: what is beyond its own bounds is its fault."""

_SMALL_BYTES: Final = 4096
"""Of a socket that nobody reads from: the kernel makes it as small as it can."""


class Broken(Exception):
    """The server did not do what it should: the sentence says what."""


class Refused(Broken):
    """A request was answered with an error."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        super().__init__(f"{method} was refused: {error}")
        self.code: int = error.get("code", 0)
        self.data: dict[str, Any] = error.get("data") or {}


class Link(Protocol):
    """A connection that carries whole messages."""

    close_code: int | None
    """Of a WebSocket, once it is closed; others have none."""
    close_reason: str
    """Of a WebSocket that was closed with one."""

    @property
    def exit_code(self) -> int | None:
        """Of a program, once it has ended; others have none."""

    def pause(self) -> None:
        """Take nothing from the kernel any more."""

    def resume(self) -> None:
        """Take again what comes."""

    async def send(self, data: bytes) -> None:
        """Send one message; nothing when the connection is gone."""

    async def receive(self) -> bytes | None:
        """The next message, None at the end."""

    async def close(self) -> None:
        """Close it; idempotent."""


class _Frames:
    """A WebSocket."""

    exit_code: int | None = None

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.close_code: int | None = None
        self.close_reason = ""

    def pause(self) -> None:
        self._socket.transport.pause_reading()

    def resume(self) -> None:
        self._socket.transport.resume_reading()

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(data, text=True)

    async def receive(self) -> bytes | None:
        try:
            data: bytes = await self._socket.recv(decode=False)
        except ConnectionClosed:
            self.close_code = self._socket.close_code
            self.close_reason = self._socket.close_reason or ""
            return None
        return data

    async def close(self) -> None:
        if self.close_code is None:  # the library trips over a peer that has cut it off
            await self._socket.close()


class _Lines:
    """A byte stream, one message a line; ``process`` is whose stdout it is, if any."""

    close_code: int | None = None
    close_reason = ""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self._reader, self._writer, self._process = reader, writer, process

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def pause(self) -> None:
        self._stream.pause_reading()

    def resume(self) -> None:
        self._stream.resume_reading()

    @property
    def _stream(self) -> asyncio.ReadTransport:
        return cast("asyncio.ReadTransport", self._writer.transport)

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(data + b"\n")
            await self._writer.drain()

    async def receive(self) -> bytes | None:
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return line if line.endswith(b"\n") else None

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._process is None:
            return
        try:
            await self._process.wait()
        finally:
            if self._process.returncode is None:  # nobody waits for it any longer
                self._process.kill()


class Dial(Protocol):
    """Makes one more connection to the server that is judged."""

    async def __call__(self, *, small: bool = False, into: IO[bytes] | None = None) -> Link:
        """A fresh one; Broken when there is none to be had.

        ``small``: a socket whose kernel keeps little of what nobody reads. ``into``: a program's
        output goes to that file, and nothing is received.
        """


def dial(target: str, token: str = "") -> Dial:
    """How to reach ``ws://...`` (or ``wss://...``), ``unix:PATH`` or ``stdio:COMMAND WORDS``."""
    way, _, rest = target.partition(":")

    async def frames(small: bool) -> Link:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        options: dict[str, Any] = {"additional_headers": headers, "max_size": _MESSAGE_BYTES_MAX}
        if small:
            parts = urlsplit(target)
            host, port = parts.hostname or "", parts.port or (443 if way == "wss" else 80)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            options["sock"] = await _small_socket(family, (host, port))
        return _Frames(await connect(target, **options))

    async def unix(small: bool) -> Link:
        raw = await _small_socket(socket.AF_UNIX, rest) if small else None
        where = {"path": rest} if raw is None else {"sock": raw}
        return _Lines(*await asyncio.open_unix_connection(**where, limit=_MESSAGE_BYTES_MAX))

    async def program(into: IO[bytes] | None) -> Link:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(rest), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if into is None else into, limit=_MESSAGE_BYTES_MAX,
        )  # fmt: skip
        assert process.stdin is not None
        reader = process.stdout
        if reader is None:
            reader = asyncio.StreamReader()
            reader.feed_eof()
        return _Lines(reader, process.stdin, process)

    async def dialled(*, small: bool = False, into: IO[bytes] | None = None) -> Link:
        try:
            if way == "stdio":
                return await program(into)
            return await (unix if way == "unix" else frames)(small)
        except (OSError, InvalidHandshake, ValueError) as error:
            raise Broken(f"{target} cannot be reached: {error}") from None

    return dialled


async def _small_socket(family: int, address: Any) -> socket.socket:
    raw = socket.socket(family)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BYTES)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, address)
    return raw


class Client:
    """One connection: everything it was sent, in order, and a ledger over it."""

    def __init__(self, link: Link, seen: Seen, deadline_s: float) -> None:
        self.link, self.ledger, self._deadline_s = link, Ledger(seen), deadline_s
        self.messages: list[Any] = []
        self.closed = False
        self._next_id = 0
        self._news = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while (data := await self.link.receive()) is not None:
            try:
                message = json.loads(data)
            except ValueError:
                self.ledger.breaches.append(f"no JSON: {data[:80]!r}")
                continue
            self.ledger.received(message)
            self.messages.append(message)
            self._news.set()
        self.closed = True
        self._news.set()

    # -- saying --------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """Any JSON value."""
        self.ledger.sent(message)
        await self.link.send(json.dumps(message).encode())

    async def request(self, method: str, params: object = None) -> int:
        """Send a request without waiting; its id."""
        self._next_id += 1
        await self.send(
            {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params or {}}
        )
        return self._next_id

    async def notify(self, method: str, params: object = None) -> None:
        """Send a notification."""
        await self.send({"jsonrpc": "2.0", "method": method, "params": params or {}})

    async def reply(self, request_id: Any, result: object) -> None:
        """Answer a request of the server."""
        await self.send({"jsonrpc": "2.0", "id": request_id, "result": result})

    # -- hearing -------------------------------------------------------------------------------

    async def wait(self, what: str, fits: Callable[[Any], bool], *, since: int = 0) -> Any:
        """The first message that fits, come or to come; Broken when it does not come."""
        at = since
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    for message in self.messages[at:]:
                        if fits(message):
                            return message
                    at = len(self.messages)
                    if self.closed:
                        raise Broken(f"the connection ended before {what} came")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Broken(f"{what} did not come within {self._deadline_s:g} s") from None

    async def answer(self, request_id: int) -> dict[str, Any]:
        """The whole answer to a request."""
        found: dict[str, Any] = await self.wait(
            f"the answer to request {request_id}",
            lambda m: isinstance(m, dict) and "method" not in m and m.get("id") == request_id,
        )
        return found

    async def call(self, method: str, params: object = None) -> dict[str, Any]:
        """The result; Refused with the error."""
        answer = await self.answer(await self.request(method, params))
        if "error" in answer:
            raise Refused(method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def refusal(self, method: str, params: object = None) -> Refused:
        """The error that the method is answered with; Broken when it is not."""
        try:
            result = await self.call(method, params)
        except Refused as refused:
            return refused
        raise Broken(f"{method} was answered with {json.dumps(result)[:160]} instead of an error")

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        try:
            async with asyncio.timeout(self._deadline_s):
                while not self.closed:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Broken("the connection was not closed") from None

    def events(self, session: str, since: int = 0) -> list[dict[str, Any]]:
        """The params of the session's events with an id, as they came."""
        return [
            message["params"]
            for message in self.messages[since:]
            if message.get("method") in ("session/update", "_goclaw/session/event")
            and message["params"].get("sessionId") == session
            and event_id_of(message["params"]) is not None
        ]

    def ids(self, session: str, since: int = 0) -> list[int]:
        """Their ids."""
        return [event_id_of(params) or 0 for params in self.events(session, since)]

    def updates(self, session: str, since: int = 0) -> list[dict[str, Any]]:
        """The standard updates of the session, with or without an id."""
        return [
            message["params"]["update"]
            for message in self.messages[since:]
            if message.get("method") == "session/update"
            and message["params"].get("sessionId") == session
        ]

    async def until(self, session: str, event_id: int) -> None:
        """Wait until that event has come."""

        def is_it(message: Any) -> bool:
            params = message.get("params")
            return (
                isinstance(params, dict)
                and params.get("sessionId") == session
                and event_id_of(params) == event_id
            )

        await self.wait(f"event {event_id}", is_it)

    async def close(self) -> None:
        """End it; idempotent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                await self.link.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
