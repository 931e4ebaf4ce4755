"""Who may connect: the uid of a Unix peer; Host, Origin and bearer token of an upgrade; TLS.

Owns A-9 and the throttling of A-12. Not in here: what a client may do then (policy). A token is
never logged, and neither is a URL, which might hold one.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import stat
import struct
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from websockets.datastructures import MultipleValuesError

from goclaw.core import limits
from goclaw.core.errors import ListenerFailed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection
    from pathlib import Path

    from websockets.datastructures import Headers

__all__ = [
    "HEALTH",
    "METRICS",
    "PATHS",
    "BearerToken",
    "Refusal",
    "Throttle",
    "bearer",
    "judge",
    "peer_uid",
    "tls_context",
]

PATHS: Final = ("/ws", "/acp")
HEALTH: Final = (
    "/healthz",
    "/readyz",
)  # without a token: a port that answers says as much
METRICS: Final = "/metrics"

_LOCAL_PEERCRED: Final = 1  # of macOS: <sys/un.h>


class BearerToken:
    """The token of the home and its successors. ``renew`` makes the next one and puts it on disk;
    it is called on a thread. Belongs to the loop."""

    def __init__(self, value: str, renew: Callable[[], str]) -> None:
        self.value = value
        self.generation = 0
        """One more with every rotation: whoever was let in under another one was let in before."""
        self._renew = renew
        self._rotating = asyncio.Lock()
        self.on_rotated: Callable[[], None] = lambda: None
        """Called in the very turn of the loop in which the old token died."""

    async def rotate(self) -> None:
        """On disk first; then the old one is dead. What ``renew`` raises changes nothing."""
        async with self._rotating:
            self.value = await asyncio.to_thread(self._renew)
            self.generation += 1
            self.on_rotated()


class Refusal(NamedTuple):
    """Why an upgrade is refused; ``text`` is one line for the person who reads it."""

    status: HTTPStatus
    text: str
    wrong_token: bool = False


def peer_uid(peer: socket.socket) -> int:
    """The user at the other end of a connected Unix socket. OSError when it has gone."""
    if hasattr(socket, "SO_PEERCRED"):
        found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _pid, uid, _gid = struct.unpack("3i", found)
    else:
        found = peer.getsockopt(0, _LOCAL_PEERCRED, 128)
        _version, uid = struct.unpack_from("2I", found)
    return int(uid)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a listener; ListenerFailed when the files are none, or the key is open to others."""
    import ssl

    try:
        mode = key.stat().st_mode
        if mode & 0o077:
            raise ListenerFailed(
                f"Others may read the key {key} (mode {stat.S_IMODE(mode):04o}).",
                hint=f"If you trust it still: chmod 600 {key}",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key, password=lambda: "")  # nobody is asked for one
    except OSError as error:  # ssl.SSLError is one
        raise ListenerFailed(
            f"TLS cannot use {certificate} with {key}: {error.strerror or error}.",
            hint="See listen.tls_certificate and listen.tls_key: PEM files, the key unencrypted.",
        ) from None
    return context


def judge(target: str, headers: Headers, token: str, names: Collection[str] = ()) -> Refusal | None:
    """What is wrong with an upgrade request, None when nothing is. ``names``: what this machine is
    called beside localhost and its loopback addresses.

    A token in the URL is refused first, also beside a good header: it may be in somebody's log
    already. We take no query at all, so that no spelling of it slips through.
    """
    if "?" in target or "#" in target or token in unquote(target):
        return Refusal(
            HTTPStatus.BAD_REQUEST,
            "The URL is a path and nothing else; the token belongs in the Authorization header.",
        )
    try:
        host, origin = headers.get("Host"), headers.get("Origin")
    except MultipleValuesError:
        return Refusal(HTTPStatus.BAD_REQUEST, "A header that stands once stands twice.")
    if host is None or not _is_here(f"//{host}", names):
        return Refusal(HTTPStatus.FORBIDDEN, "The Host is not this machine.")
    if origin is not None and not _is_here(origin, names):
        return Refusal(HTTPStatus.FORBIDDEN, "The Origin is not this machine.")
    if target in HEALTH:
        return None
    given = bearer(headers)
    # Compared in full, whatever was given: the time tells nothing.
    same = hmac.compare_digest((given or "").encode(), token.encode())
    if not (same and given):
        return Refusal(
            HTTPStatus.UNAUTHORIZED,
            "Send the token of the home as 'Authorization: Bearer TOKEN'.",
            wrong_token="Authorization" in headers,
        )
    if target not in PATHS and target != METRICS:
        return Refusal(HTTPStatus.NOT_FOUND, f"There is nothing but {' and '.join(PATHS)} here.")
    return None


def bearer(headers: Headers) -> str | None:
    """The token of the Authorization header; None without exactly one of that scheme."""
    try:
        credentials = headers.get("Authorization", "")
    except MultipleValuesError:
        return None
    scheme, _, given = credentials.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def _is_here(url: str, names: Collection[str]) -> bool:
    """True for a URL whose host is this machine by name or number, on any port."""
    try:
        parts = urlsplit(url)
        name = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if name is None or parts.username is not None or parts.path or parts.query:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Throttle:
    """After wrong tokens an address waits before it is heard: a delay, never a lock-out.

    It waits whatever it will show. Who hangs up instead of waiting has not been heard, so that
    guesses side by side are no quicker than one after the other would be patient.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()

    def owed_ms(self, address: str) -> int:
        """How long an upgrade from there waits before its token is looked at."""
        count = self._failures.get(_canonical(address), 0)
        if not count:
            return 0
        return min(limits.AUTH_DELAY_MS_MAX, limits.AUTH_DELAY_MS_MIN << min(count - 1, 16))

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        key = _canonical(address)
        self._failures[key] = self._failures.pop(key, 0) + 1
        while len(self._failures) > limits.AUTH_ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """A right token clears the address."""
        self._failures.pop(_canonical(address), None)


def _canonical(address: str) -> str:
    """One name for one peer: whoever has an IPv6 address has the rest of its /64, too."""
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(number, ipaddress.IPv4Address):
        return str(number)
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(number if number.is_loopback else ipaddress.IPv6Network((number, 64), strict=False))
