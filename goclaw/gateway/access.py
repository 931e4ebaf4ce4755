"""Who may connect: the uid of a Unix peer; Host, Origin and bearer token of an upgrade.

Owns A-9 and the throttling of A-12. Not in here: what a client may do then (policy). A token is
never logged, and neither is a URL, which might hold one.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
import struct
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from websockets.datastructures import MultipleValuesError

from goclaw.core import limits

if TYPE_CHECKING:
    from websockets.datastructures import Headers

__all__ = ["PATHS", "Refusal", "Throttle", "bearer", "judge", "peer_uid"]

PATHS: Final = ("/ws", "/acp")

_LOCAL_PEERCRED: Final = 1  # of macOS: <sys/un.h>


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


def judge(target: str, headers: Headers, token: str) -> Refusal | None:
    """What is wrong with an upgrade request, None when nothing is.

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
    if host is None or not _is_loopback(f"//{host}"):
        return Refusal(HTTPStatus.FORBIDDEN, "The Host is not this machine.")
    if origin is not None and not _is_loopback(origin):
        return Refusal(HTTPStatus.FORBIDDEN, "The Origin is not this machine.")
    given = bearer(headers)
    # Compared in full, whatever was given: the time tells nothing.
    same = hmac.compare_digest((given or "").encode(), token.encode())
    if not (same and given):
        return Refusal(
            HTTPStatus.UNAUTHORIZED,
            "Send the token of the home as 'Authorization: Bearer TOKEN'.",
            wrong_token="Authorization" in headers,
        )
    if target not in PATHS:
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


def _is_loopback(url: str) -> bool:
    """True for a URL whose host is this machine by name or number, on any port."""
    try:
        parts = urlsplit(url)
        name = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    if name is None or parts.username is not None or parts.path or parts.query:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Throttle:
    """Wrong tokens make the next answers to that address slower: a delay, never a lock-out."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()

    def failed(self, address: str) -> int:
        """Count a wrong token; how long its answer waits, in milliseconds."""
        key = _canonical(address)
        count = self._failures.pop(key, 0)
        self._failures[key] = count + 1
        while len(self._failures) > limits.AUTH_ADDRESSES_MAX:
            self._failures.popitem(last=False)
        return min(limits.AUTH_DELAY_MS_MAX, limits.AUTH_DELAY_MS_MIN << min(count, 16))

    def succeeded(self, address: str) -> None:
        """A right token clears the address."""
        self._failures.pop(_canonical(address), None)


def _canonical(address: str) -> str:
    try:
        number = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return str(mapped or number)
