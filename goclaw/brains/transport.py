"""How a model's server is reached: one POST whose answer is read as it comes.

Owns the seam ``Post``, its way over the one HTTP client, and the reading of server-sent events. Not
in here: what is asked (openai, anthropic), whether it may be (the gate), the connection (net).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from goclaw.core import limits
from goclaw.core.errors import Unreachable
from goclaw.core.records import Retryable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from goclaw.net.egress import Permit
    from goclaw.net.http import Client

__all__ = ["NetPost", "Post", "Reply", "ServerEvent", "read_all", "server_events"]


class Reply(Protocol):
    """A server's answer; names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Retryable when it is cut off or stalls."""


class Post(Protocol):
    """Sends one request. PolicyDenied and Retryable (``unreachable``): nothing was sent."""

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, permit: Permit
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
    pieces: AsyncIterator[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        """See Reply."""
        with _retryable():
            async for piece in self.pieces:
                yield piece


@contextlib.contextmanager
def _retryable() -> Iterator[None]:
    """The client's words, as a run is told: a model's answer may be asked for again."""
    try:
        yield
    except Unreachable as error:
        raise Retryable("unreachable", f"The server cannot be reached: {error.message}") from None
    except TimeoutError:
        seconds = limits.BRAIN_STALL_MS_MAX // 1000
        raise Retryable("server_silent", f"The server said nothing for {seconds} s.") from None
    except ConnectionError as error:
        raise Retryable("stream_cut", f"The server's answer was cut off: {error}.") from None


class NetPost:
    """Post over ``net``: the address that is connected to is the one that was checked (A-4)."""

    def __init__(self) -> None:
        self._client: Client | None = None

    @contextlib.asynccontextmanager
    async def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, permit: Permit
    ) -> AsyncIterator[Reply]:
        """See Post."""
        from goclaw.net.http import Client, Request  # late: it is slow to import

        if self._client is None:
            self._client = Client()
        given = {"content-type": "application/json", **headers}
        request = Request("POST", url, tuple(given.items()), body)
        with _retryable():
            async with self._client.stream(
                request, permit, quiet_ms_max=limits.BRAIN_STALL_MS_MAX,
                sent_bytes_max=limits.BRAIN_SENT_BYTES_MAX,
            ) as streamed:  # fmt: skip
                yield _Reply(streamed.status, dict(streamed.headers), streamed.pieces)


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
