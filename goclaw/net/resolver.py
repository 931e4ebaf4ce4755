"""Names to addresses, by whoever is asked: the system, or a table of a test (R-6).

Owns the asking. Not in here: which of the addresses may be dialled (``egress``).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Protocol

from goclaw.core import limits
from goclaw.core.errors import Unreachable

if TYPE_CHECKING:
    from goclaw.policy.egress import Address

__all__ = ["Resolve", "resolve_by_system"]


class Resolve(Protocol):
    """Answers every address of a name; Unreachable when there is none."""

    async def __call__(self, name: str) -> tuple[Address, ...]:
        """Asked once for each connection: what it says is what is checked and dialled."""


async def resolve_by_system(name: str) -> tuple[Address, ...]:
    """As the machine resolves names, within ``limits.RESOLVE_MS_MAX``."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.RESOLVE_MS_MAX / 1000):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{name} has no address: {error}.") from error
    # a zone stays part of the address: "fe80::1%2" is no address that is decided about
    return tuple(dict.fromkeys(ipaddress.ip_address(place[0]) for *_, place in found))
