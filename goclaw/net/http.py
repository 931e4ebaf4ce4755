"""The one HTTP client: every request, and every redirect of one, is decided about (A-4).

Owns requests, their bounds and redirects. Not in here: the checks (``egress``), the sockets
(``dial``), HTTP/1.1 itself (httpcore, over connections that are made here).

Import it late: it takes a tenth of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin

import httpcore

from goclaw.core import limits
from goclaw.core.errors import InvalidParams, PolicyDenied, TooLarge, Unreachable
from goclaw.net import dial, egress
from goclaw.net.resolver import resolve_by_system
from goclaw.policy.redact import REFERENCE

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from goclaw.net.egress import Endpoint, Permit
    from goclaw.net.resolver import Resolve

__all__ = ["SAFE_METHODS", "Answer", "Client", "Request", "Streamed"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
"""Methods that change nothing; only these follow a redirect."""

_METHOD: Final = re.compile(r"[A-Z]{1,20}")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# What frames the message, or says who is asked: the client's own business.
_OURS: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# What may go to another origin with a redirect.
_HARMLESS: Final = frozenset({"accept", "accept-language", "user-agent"})
_MOVED: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. ``headers`` without those that the client makes itself."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``cut``: there was more than was wanted. ``stayed`` says why a redirect was
    not followed."""

    status: int
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: bool = False
    stayed: str = ""

    def header(self, name: str) -> str | None:
        """The first of that name, in lower case."""
        return next((value for known, value in self.headers if known == name), None)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose body is read as it comes. ``url`` and ``headers`` as in Answer."""

    status: int
    url: str
    headers: tuple[tuple[str, str], ...]
    pieces: AsyncIterator[bytes]


class Client:
    """Sends requests; one connection each, which went to a checked address.

    Raises PolicyDenied and Unreachable when nothing was sent, ConnectionError or TimeoutError when
    something may have been. Reads no proxy settings and keeps no cookies.
    """

    def __init__(
        self,
        *,
        resolve: Resolve = resolve_by_system,
        connect: Callable[[Endpoint], Awaitable[socket.socket]] = dial.connected,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._resolve, self._connect = resolve, connect
        self._tls = tls

    async def fetch(
        self,
        request: Request,
        permit: Permit,
        *,
        bytes_max: int = limits.HTTP_BODY_BYTES_MAX,
        ms_max: int = limits.HTTP_MS_MAX,
    ) -> Answer:
        """The whole answer, at most ``bytes_max`` of its body. GET and HEAD follow redirects."""
        async with asyncio.timeout(ms_max / 1000):
            for _ in range(limits.HTTP_REDIRECTS_MAX):
                answer = await self._once(request, permit, bytes_max)
                following = self._following(request, answer)
                if not isinstance(following, Request):
                    return replace(answer, stayed=following)
                try:
                    egress.check_url(permit, following.url, following.method)
                except PolicyDenied as error:
                    return replace(answer, stayed=error.message)
                request = following
            return replace(
                await self._once(request, permit, bytes_max), stayed="it redirects too often"
            )

    async def _once(self, request: Request, permit: Permit, bytes_max: int) -> Answer:
        async with self.stream(request, permit) as streamed:
            kept = bytearray()
            async for piece in streamed.pieces:
                kept += piece
                if len(kept) > bytes_max:
                    break
            body, cut = bytes(kept[:bytes_max]), len(kept) > bytes_max
            return Answer(streamed.status, streamed.url, streamed.headers, body, cut)

    def _following(self, request: Request, answer: Answer) -> Request | str:
        """Where a redirect leads; else why there is none to follow."""
        where = answer.header("location")
        if answer.status not in _MOVED or where is None:
            return ""
        if request.method not in SAFE_METHODS:
            return f"a redirect of {request.method} is not followed"
        try:
            there = egress.place_of(urljoin(answer.url, where))
        except (InvalidParams, ValueError) as error:
            return str(error)
        here = egress.place_of(request.url)
        if here.is_tls and not there.is_tls:
            return "it leads from an encrypted connection to an open one"
        headers = request.headers
        if (here.scheme, here.host, here.port) != (there.scheme, there.host, there.port):
            headers = tuple(pair for pair in headers if pair[0].lower() in _HARMLESS)
        return replace(request, url=there.url + _query(there), headers=headers)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        request: Request,
        permit: Permit,
        *,
        quiet_ms_max: int = limits.HTTP_QUIET_MS_MAX,
        sent_bytes_max: int = limits.HTTP_SENT_BYTES_MAX,
    ) -> AsyncIterator[Streamed]:
        """The answer as it comes; redirects are the caller's to ask for again. The pauses of its
        body are bounded by ``quiet_ms_max``, its length by the caller."""
        _check(request, sent_bytes_max)
        place = await egress.resolved(permit, request.url, request.method, self._resolve)
        if place.scheme not in ("http", "https"):
            raise InvalidParams(f"A request over HTTP is http or https, not {place.scheme}.")
        sent = _with_secrets(request, place, permit)
        wire = httpcore.Request(
            sent.method,
            httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=sent.url),
            headers=_framed(sent, place),
            content=sent.body,
            extensions={"timeout": {**_TIMEOUTS, "read": quiet_ms_max / 1000}},
        )
        # one connection a request: what was checked is what carries it
        backend = _Checked(place, self._connect)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._context() if place.is_tls else None,
            network_backend=backend,
            max_keepalive_connections=0,
            max_connections=1,
        )
        try:
            async with pool:
                with _said_plainly():
                    response = await pool.handle_async_request(wire)
                    try:
                        yield Streamed(
                            response.status, place.url + _query(place), _lowered(response.headers),
                            _pieces(response),
                        )  # fmt: skip
                    finally:
                        await response.aclose()
        finally:
            backend.close()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _with_secrets(request: Request, place: Endpoint, permit: Permit) -> Request:
    """The request as it goes out: ``url`` is its target. Only this copy holds values."""
    path, mark, query = place.target.partition("?")
    query = REFERENCE.sub(lambda one: quote(permit.reveal(one[0], place.host), safe=":#"), query)
    headers = tuple((name, permit.reveal(value, place.host)) for name, value in request.headers)
    for name, value in headers:
        if not _VALUE.fullmatch(value):
            raise InvalidParams(f"The secret for the header {name} holds what no header may hold.")
    body = request.body
    if b"secret:" in body:
        body = permit.reveal(body.decode("utf-8", "surrogateescape"), place.host).encode(
            "utf-8", "surrogateescape"
        )
    return Request(request.method, path + mark + query, headers, body)


def _query(place: Endpoint) -> str:
    _path, mark, query = place.target.partition("?")
    return mark + query


_TIMEOUTS: Final = {
    "pool": limits.NET_DIAL_MS_MAX / 1000,
    "connect": limits.NET_DIAL_MS_MAX / 1000,
    "write": limits.HTTP_QUIET_MS_MAX / 1000,
}


def _check(request: Request, sent_bytes_max: int) -> None:
    """InvalidParams for what would be another message than it seems to be."""
    if not _METHOD.fullmatch(request.method) or request.method in ("CONNECT", "TRACE"):
        raise InvalidParams("The method is one of HTTP's, in capitals; not CONNECT or TRACE.")
    if len(request.body) > sent_bytes_max:
        raise TooLarge(
            f"A request's body has at most {sent_bytes_max} bytes.",
            limit=sent_bytes_max,
            unit="bytes",
        )
    if len(request.headers) > limits.HTTP_HEADERS_MAX:
        raise InvalidParams(f"A request has at most {limits.HTTP_HEADERS_MAX} headers.")
    for name, value in request.headers:
        if len(name) + len(value) > limits.HTTP_HEADER_CHARS_MAX:
            raise InvalidParams(f"A header has at most {limits.HTTP_HEADER_CHARS_MAX} characters.")
        if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidParams(f"The header {name[:80]!r} holds what no header may hold.")
        if name.lower() in _OURS:
            raise InvalidParams(f"The header {name} is made by goclaw.")


def _framed(request: Request, place: Endpoint) -> list[tuple[bytes, bytes]]:
    given = {name.lower() for name, _value in request.headers}
    headers = [("Host", place.authority), ("Connection", "close")]
    headers += [
        pair for pair in (("User-Agent", "goclaw"), ("Accept", "*/*"))
        if pair[0].lower() not in given
    ]  # fmt: skip
    # nothing is unpacked here, so nothing may come packed
    headers += [("Accept-Encoding", "identity")] if "accept-encoding" not in given else []
    headers += request.headers
    if request.body or request.method not in SAFE_METHODS:
        headers.append(("Content-Length", str(len(request.body))))
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


def _lowered(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers
    )


async def _pieces(response: httpcore.Response) -> AsyncIterator[bytes]:
    with _said_plainly():
        async for piece in response.aiter_stream():
            yield piece


@contextlib.contextmanager
def _said_plainly() -> Any:
    """The library's errors in the words of the client's deal."""
    try:
        yield
    except httpcore.ConnectError as error:
        raise Unreachable(f"No encrypted connection could be made: {error}.") from error
    except httpcore.TimeoutException as error:
        raise TimeoutError(f"no answer in time ({type(error).__name__})") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise ConnectionError(f"the connection broke: {error}") from error


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to the endpoint, whatever it is asked for."""

    def __init__(
        self, place: Endpoint, connect: Callable[[Endpoint], Awaitable[socket.socket]]
    ) -> None:
        self._place, self._connect = place, connect
        self._open: list[asyncio.StreamWriter] = []

    async def connect_tcp(
        self, host: str, port: int, *_args: Any, **_options: Any
    ) -> httpcore.AsyncNetworkStream:
        connection = await self._connect(self._place)
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        self._open.append(writer)
        return _Stream(reader, writer)

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()


class _Stream(httpcore.AsyncNetworkStream):
    """An asyncio connection as httpcore wants one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._writer.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:  # of which ssl.SSLError is one
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._writer.get_extra_info("socket" if info == "socket" else info)
