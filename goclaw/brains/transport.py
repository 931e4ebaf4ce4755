"""How a model's server is reached: one POST whose answer is read as it comes, over HTTP/1.1.

Owns the seam ``Post``, the plain client behind it and the reading of server-sent events. Not in
here: what is asked (openai, anthropic), whether it may be asked (the gate). The client takes a
connection of its own for each call, follows no redirect and asks no proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from goclaw.core import limits
from goclaw.core.records import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping
    from contextlib import AbstractAsyncContextManager

__all__ = ["Post", "Reply", "ServerEvent", "plain_post", "read_all", "server_events"]


class Reply(Protocol):
    """A server's answer; names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Retryable when it is cut off or stalls."""


class Post(Protocol):
    """Sends one request. Retryable when the server cannot be reached or does not speak HTTP."""

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes
    ) -> AbstractAsyncContextManager[Reply]:
        """Inside the context the answer's body may be read; leaving it closes the connection."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    name: str
    data: bytes


@dataclass(slots=True)
class _Reply:
    """See Reply."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader

    async def chunks(self) -> AsyncIterator[bytes]:
        """See Reply."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := await self._chunk_size():
                while size:
                    data = await _patiently(self.reader.read(min(size, limits.WRITE_BYTES_MAX)))
                    if not data:
                        raise _cut()
                    size -= len(data)
                    yield data
                await _patiently(self.reader.readline())
            return
        left = int(self.headers.get("content-length") or -1)
        while left:
            data = await _patiently(self.reader.read(limits.WRITE_BYTES_MAX))
            if not data:
                if left > 0:
                    raise _cut()
                return
            left -= len(data) if left > 0 else 0
            yield data

    async def _chunk_size(self) -> int:
        line = await _patiently(self.reader.readline())
        try:
            return int(line.split(b";")[0].strip(), 16)
        except ValueError:
            raise _cut() from None


def _cut() -> Retryable:
    return Retryable("stream_cut", "The server's answer was cut off.")


async def _patiently(reading: Coroutine[Any, Any, bytes]) -> bytes:
    """Within the longest silence that a server is allowed."""
    try:
        async with asyncio.timeout(limits.BRAIN_STALL_MS_MAX / 1000):
            return await reading
    except TimeoutError:
        seconds = limits.BRAIN_STALL_MS_MAX // 1000
        raise Retryable("server_silent", f"The server said nothing for {seconds} s.") from None
    except OSError as error:
        raise Retryable("stream_cut", f"The server's answer was cut off: {error}.") from None
    except ValueError:  # a line without end
        raise _no_http() from None


def _no_http() -> Retryable:
    return Retryable("no_http", "What answers at the server's address does not speak HTTP.")


@contextlib.asynccontextmanager
async def plain_post(url: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Reply]:
    """See Post."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(limits.BRAIN_DIAL_MS_MAX / 1000):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=ssl.create_default_context() if secure else None
            )
    except (OSError, TimeoutError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        why = why or ("no answer in time" if isinstance(error, TimeoutError) else str(error))
        raise Retryable("unreachable", f"{host}:{port} cannot be reached: {why}.") from None
    try:
        target = parts.path or "/"
        head = [f"POST {target}{'?' + parts.query if parts.query else ''} HTTP/1.1"]
        lines = {
            "host": parts.netloc.rpartition("@")[2], "content-length": str(len(body)),
            "content-type": "application/json", "connection": "close",
            "user-agent": "goclaw", **headers,
        }  # fmt: skip
        head += [f"{name}: {value}" for name, value in lines.items()]
        with contextlib.suppress(OSError):  # it may have answered before it read everything
            writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
            await writer.drain()
        yield await _head(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(limits.CLOSE_MS_MAX / 1000):
                await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> _Reply:
    while True:
        line = await _patiently(reader.readline())
        if not line:
            raise _cut()
        version, _, rest = line.partition(b" ")
        status = rest[:3]
        if not version.startswith(b"HTTP/1.") or not status.isdigit():
            raise _no_http()
        headers: dict[str, str] = {}
        size = 0
        while (line := await _patiently(reader.readline())).strip():
            size += len(line)
            if size > limits.BRAIN_HEAD_BYTES_MAX:
                raise _no_http()
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if int(status) >= 200:  # before it, interim answers
            return _Reply(int(status), headers, reader)


async def read_all(reply: Reply, bytes_max: int) -> bytes:
    """The body, or its beginning when it is longer."""
    found = b""
    async for chunk in reply.chunks():
        found += chunk
        if len(found) >= bytes_max:
            break
    return found[:bytes_max]


_LINE_END: Final = b"\n"


async def server_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The events of a stream, whatever pieces it comes in; a half one at its end is dropped."""
    rest = b""
    name, size = "", 0
    data: list[bytes] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(_LINE_END)
        if len(rest) > limits.BRAIN_SSE_BYTES_MAX or size > limits.BRAIN_SSE_BYTES_MAX:
            raise Retryable("no_stream", "The server sends events without end.")
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if data:
                    yield ServerEvent(name, b"\n".join(data))
                name, data, size = "", [], 0
                continue
            key, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            size += len(value)
            if key == b"data":
                data.append(value)
            elif key == b"event":
                name = value.decode("utf-8", "replace")
    if data:
        yield ServerEvent(name, b"\n".join(data))
