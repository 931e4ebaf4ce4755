"""Connections to addresses that were checked, and to nothing else (A-4).

Owns the sockets and the comparison of the peer with the decision. Not in here: which addresses
those are (``egress``), what is said over the connection (``http``).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING

from goclaw.core import limits
from goclaw.core.errors import Unreachable
from goclaw.policy import egress

if TYPE_CHECKING:
    from goclaw.net.egress import Endpoint
    from goclaw.policy.egress import Address

__all__ = ["connected", "peer_of"]


async def connected(place: Endpoint) -> socket.socket:
    """A connected socket to one of the endpoint's addresses, the first that answers.

    Its peer was read back from the kernel and is that address. Unreachable when none answers, or
    when something redirects the connection; nothing was sent then. The caller closes the socket.
    """
    trouble = "it has no address"
    for address in place.addresses:
        try:
            async with asyncio.timeout(limits.NET_DIAL_MS_MAX / 1000):
                return await _connected(address, place.port)
        except OSError as error:  # a timeout is one, too
            trouble = str(error) or "it does not answer"
    raise Unreachable(f"{place.host} port {place.port} cannot be reached: {trouble}.")


async def _connected(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, (str(address), port))
        peer = peer_of(made)
        if peer != (egress.plain_address(address), port):
            raise Unreachable(
                f"The connection to {address} port {port} ended at {peer[0]} port {peer[1]}.",
                hint="Something on this machine redirects connections; nothing was sent.",
            )
    except BaseException:
        made.close()
        raise
    return made


def peer_of(connection: socket.socket) -> tuple[Address, int]:
    """Whom a connected socket talks to, as the kernel has it; an IPv4 address is one however the
    socket spells it."""
    place = connection.getpeername()
    return egress.plain_address(ipaddress.ip_address(place[0])), place[1]
