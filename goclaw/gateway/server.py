"""The listeners: a Unix socket that speaks lines, a loopback port that speaks WebSocket.

Owns the sockets, the number of connections and the order of a shutdown. Not in here: who may
connect (``access``), whose child it is (``descent``), what a connection does (``connection``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from goclaw.core import limits, log
from goclaw.core.decisions import Origin, Subject, SubjectKind
from goclaw.core.errors import ListenerFailed
from goclaw.gateway import executors, governance, handlers, operators, work
from goclaw.gateway.access import HEALTH, METRICS, Refusal, Throttle, bearer, judge, peer_uid
from goclaw.gateway.administration import mirrored
from goclaw.gateway.connection import Connection
from goclaw.gateway.descent import descends, holds, peer_pid
from goclaw.gateway.permits import Permits
from goclaw.gateway.roster import Roster
from goclaw.gateway.scopes import NO_SCOPES, OWN_SCOPES
from goclaw.gateway.transports import FrameTransport, LineTransport, listen_frames
from goclaw.gateway.watch import Board

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection
    from pathlib import Path

    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

    from goclaw.gateway.scopes import AttemptPass, Scope
    from goclaw.gateway.services import Services
    from goclaw.gateway.transports import FrameConnection, Transport

__all__ = ["METHODS", "Gateway"]

_log = log.logger("gateway.server")
_OWN: Final = (
    handlers.METHODS | work.METHODS | operators.METHODS | executors.METHODS | governance.METHODS
)
METHODS: Final = _OWN | mirrored(_OWN)
"""Every request there is, by method."""
_STRANGER: Final = Subject(SubjectKind.CLIENT, "-", Origin.WS)
"""Who was not let in."""


class Gateway:
    """All listeners and connections of a daemon. Belongs to the loop it is made on."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._board = Board(services.engine, lambda: self.connections)
        self._roster = Roster()
        self._permits = Permits(services)
        self._throttle = Throttle()
        self._connections: set[Connection] = set()
        self._handshaking: set[FrameConnection] = set()
        self._names: frozenset[str] = frozenset()
        self.had_client = False
        """True once a client was connected, however briefly."""
        self._unix: asyncio.AbstractServer | None = None
        self._unix_path: Path | None = None
        self._ws: Server | None = None
        self._closed = False
        services.engine.hub.observe(self._roster.observe)
        services.engine.hub.observe(lambda _events: self._board.moved())
        services.token.on_rotated = self._cut

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    # -- listeners -----------------------------------------------------------------------------

    async def serve_unix(self, path: Path) -> None:
        """Listen at ``path``, mode 0600; what a dead daemon left there is replaced.

        The caller holds the home's lock, so nobody alive listens there. ListenerFailed.
        """
        name = os.fsencode(path)
        if len(name) > limits.SOCKET_PATH_BYTES_MAX:
            raise ListenerFailed(
                f"The path of the socket has {len(name)} bytes: {path}.",
                hint=f"The system takes {limits.SOCKET_PATH_BYTES_MAX}: use a shorter home.",
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            listener.bind(str(path))
            path.chmod(0o600)  # before listen(): nobody gets in between
            listener.setblocking(False)
            self._unix = await asyncio.get_running_loop().create_unix_server(
                lambda: LineTransport(self._accept_unix), sock=listener
            )
        except OSError as error:
            listener.close()
            raise ListenerFailed(
                f"The socket {path} cannot be opened: {error.strerror}.",
                hint="Mend the directory's permissions, or choose another home.",
            ) from None
        self._unix_path = path

    async def serve_ws(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        names: Collection[str] = (),
    ) -> int:
        """Listen for WebSocket upgrades; the port in use. ``names``: what clients may call this
        machine beside localhost. ListenerFailed."""
        self._names = frozenset((host, *names))
        self._ws = await listen_frames(
            self._serve_ws,
            "127.0.0.1" if host == "localhost" else host,
            port,
            doors=self,
            tls=tls,
            process_request=self._judge,
            process_response=self._respond,
        )
        bound: int = next(iter(self._ws.sockets)).getsockname()[1]
        return bound

    # -- who comes in --------------------------------------------------------------------------

    def _accept_unix(self, transport: LineTransport) -> Connection | None:
        peer = transport.stream.get_extra_info("socket")
        try:
            uid = peer_uid(peer)
            ours = descends(peer_pid(peer))
        except OSError:
            return None
        if uid != os.geteuid():
            _log.warning("turned a foreign user away", extra={"data": {"uid": uid}})
            return None
        if self._is_full():
            return None
        return self._connect(transport, Origin.UNIX, scopes=NO_SCOPES if ours else OWN_SCOPES)

    def arrived(self, connection: FrameConnection) -> bool:
        """See Doors: who has not said what it wants takes up room for ``HANDSHAKE_MS_MAX``."""
        if len(self._handshaking) >= limits.HANDSHAKES_MAX:
            _log.warning("too many handshakes", extra={"data": {"limit": limits.HANDSHAKES_MAX}})
            return False
        self._handshaking.add(connection)
        return True

    def left(self, connection: FrameConnection) -> None:
        """See Doors."""
        self._handshaking.discard(connection)

    def _is_full(self) -> bool:
        if self._closed:
            return True
        full = len(self._connections) >= limits.CONNECTIONS_MAX
        if full:
            _log.warning("too many connections", extra={"data": {"limit": limits.CONNECTIONS_MAX}})
        return full

    async def _judge(self, connection: ServerConnection, request: Request) -> Response | None:
        address = connection.remote_address[0] if connection.remote_address else ""
        owed_ms = self._throttle.owed_ms(address)
        if owed_ms:
            await _wait(owed_ms)
            if connection.transport.is_closing():
                return connection.respond(408, "\n")  # nobody hears it: it has not been judged
        token, frames = self._services.token, cast("FrameConnection", connection)
        frames.generation = token.generation
        refusal = judge(request.path, request.headers, token.value, self._names)
        if refusal is not None and refusal.wrong_token:
            shown = bearer(request.headers) or ""
            frames.attempt = await self._permits.attempt(shown)
            if frames.attempt is not None:
                refusal = judge(request.path, request.headers, shown, self._names)
                if request.path == METRICS:
                    refusal = Refusal(HTTPStatus.FORBIDDEN, "An attempt has its own methods only.")
        elif refusal is None and request.path in HEALTH:
            return self._health(connection, request.path)
        elif refusal is None and await asyncio.to_thread(_is_ours, connection):
            refusal = Refusal(
                HTTPStatus.FORBIDDEN, "What goclaw started comes with the token of its attempt."
            )
        if refusal is None:
            self._throttle.succeeded(address)
            if request.path == METRICS:
                return await self._metrics(connection)
            if self._is_full():
                return connection.respond(503, "There are too many connections.\n")
            return None
        _log.info("refused an upgrade", extra={"data": {"status": int(refusal.status)}})
        self._permits.refused(_STRANGER, "connect", "(unauthenticated)", refusal.text)
        if refusal.wrong_token:
            self._throttle.failed(address)
        response = connection.respond(refusal.status, refusal.text + "\n")
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def _health(self, connection: ServerConnection, path: str) -> Response:
        """Alive is who answers; ready is who takes work."""
        if path == "/readyz" and not (self._services.is_ready() and not self._closed):
            return connection.respond(503, "not ready\n")
        return connection.respond(200, "ok\n")

    async def _metrics(self, connection: ServerConnection) -> Response:
        if cast("FrameConnection", connection).attempt is not None:
            return connection.respond(403, "An attempt's token opens no figures.\n")
        behind = sum(client.outbox.behind for client in self._connections)
        page = await self._services.metrics(behind)
        response = connection.respond(200, page.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response

    def _respond(self, connection: ServerConnection, _request: Request, response: Response) -> None:
        if response.status_code == 101:
            response.headers["Acp-Connection-Id"] = str(connection.id)

    async def _serve_ws(self, connection: FrameConnection) -> None:
        self._handshaking.discard(connection)
        transport = FrameTransport(connection)
        owner = self._connect(
            transport, Origin.WS, f"connection_{connection.id}", connection.attempt, by_token=True
        )
        if connection.generation != self._services.token.generation:
            owner.revoke()  # its token died between its judgement and this
        await transport.serve(owner)

    def _connect(
        self,
        transport: Transport,
        origin: Origin,
        connection_id: str | None = None,
        attempt: AttemptPass | None = None,
        *,
        scopes: frozenset[Scope] = OWN_SCOPES,
        by_token: bool = False,
    ) -> Connection:
        connection = Connection(
            self._services,
            self._roster,
            self._permits,
            self._board,
            transport,
            origin,
            METHODS,
            handlers.NOTIFICATIONS,
            connection_id=connection_id,
            attempt=attempt,
            scopes=scopes,
            by_token=by_token,
            on_gone=self._connections.discard,
        )
        self._connections.add(connection)
        self.had_client = True
        return connection

    # -- the end -------------------------------------------------------------------------------

    def _cut(self) -> None:
        """The token of the home was rotated, and with it died those of attempts."""
        for connection in tuple(self._connections):
            if connection.by_token:
                connection.revoke()

    async def announce_shutdown(self, grace_s: int) -> None:
        """Tell opted-in clients that the daemon goes away within ``grace_s``."""
        self._board.moved()
        for connection in tuple(self._connections):
            if connection.opted_in:
                connection.notify("_goclaw/shutdown", {"graceSeconds": grace_s})

    def announce_storage(self) -> None:
        """Tell opted-in clients that the disk takes no writes, or takes them again (S-7)."""
        self._board.moved()
        for connection in tuple(self._connections):
            connection.tell_storage()

    async def close(self) -> None:
        """Take no more clients, send what is ready, close with 1001. Idempotent."""
        self._closed = True
        if self._unix is not None:
            self._unix.close()
        if self._ws is not None:
            self._ws.close(close_connections=False)
        await asyncio.gather(
            *(connection.finish(1001, "goclaw:shutdown") for connection in self._connections)
        )
        if self._ws is not None:
            await self._ws.wait_closed()
        if self._unix_path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._unix_path.unlink()
            self._unix_path = None
        await self._roster.settled()
        await self._permits.close()


def _is_ours(connection: ServerConnection) -> bool:
    """True for a program that this daemon started."""
    peer, own = connection.remote_address, connection.local_address
    return bool(peer and own) and holds(peer[:2], own[:2])


async def _wait(wait_ms: int) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    timer = loop.call_later(wait_ms / 1000, future.set_result, None)
    try:
        await future
    finally:
        timer.cancel()
