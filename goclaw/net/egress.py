"""The check before any connection: the URL is decided on, and every address of its host (A-4).

Owns the order of the checks and their words. Not in here: the decisions (``policy``), the sockets
(``dial``).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from goclaw.core import limits
from goclaw.core.decisions import Verdict
from goclaw.core.errors import InvalidParams, PolicyDenied, Unreachable
from goclaw.policy import address, egress

if TYPE_CHECKING:
    from goclaw.core.decisions import Decision
    from goclaw.net.resolver import Resolve
    from goclaw.policy.egress import Address

__all__ = ["Endpoint", "Permit", "check_address", "check_url", "place_of", "resolved"]

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HINT: Final = "A rule about net.connect in policy.toml decides this; `goclaw policy explain`."


class Permit(Protocol):
    """The capability to reach something: without one nothing is dialled (A-2)."""

    def decide(self, url: str, method: str) -> Decision:
        """The decision about ``net.connect`` to a URL. Pure, and quick."""

    def refuses(self, url: str, place: Address) -> Decision | None:
        """The decision that keeps a connection from ending at an address, ``url`` naming it as the
        host: a special one (``policy.egress``) that no rule names, or one that a rule denies. None:
        it may."""

    def reveal(self, text: str, host: str) -> str:
        """The text with references to secrets replaced, for that host alone (A-5); SecretRefused
        when one is not bound to it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one connection may go. ``url`` is in canonical form, ``target`` what a request line
    says, ``addresses`` those that were checked: nothing else is dialled."""

    url: str
    scheme: str
    host: str
    port: int
    target: str
    addresses: tuple[Address, ...] = ()

    @property
    def is_tls(self) -> bool:
        """The connection is encrypted, and the far side shows who it is."""
        return self.scheme in ("https", "wss")

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def place_of(url: str) -> Endpoint:
    """The parts of a URL, by the one spelling that is decided about; InvalidParams, saying why,
    for what has none and for a scheme that is not spoken."""
    try:
        canonical, host = address.canonical_url(url)
    except ValueError as error:
        raise InvalidParams(f"The URL cannot be used: {error}.") from None
    scheme, _, rest = canonical.partition("://")
    if scheme not in _PORTS:
        raise InvalidParams(f"The scheme of a URL is one of {', '.join(_PORTS)}.")
    authority, slash, path = rest.partition("/")
    port = re.search(r":([0-9]+)\Z", authority.rpartition("]")[2])
    query = re.search(r"\?([^#]*)", url)
    target = f"{slash}{path}" + (f"?{query[1]}" if query else "")
    return Endpoint(canonical, scheme, str(host), int(port[1]) if port else _PORTS[scheme], target)


def check_url(permit: Permit, url: str, method: str) -> Endpoint:
    """The URL as it may be reached, not resolved yet; PolicyDenied when it may not."""
    place = place_of(url)
    decision = permit.decide(place.url, method)
    if decision.effect is not Verdict.ALLOW:
        raise _denied(place.url, decision)
    return place


def check_address(permit: Permit, place: Endpoint, found: Address) -> None:
    """May a connection for ``place`` end at that address? PolicyDenied when it may not."""
    plain = egress.plain_address(found)
    shown = f"[{plain}]" if plain.version == 6 else str(plain)
    refusal = permit.refuses(f"{place.scheme}://{shown}:{place.port}{place.target}", found)
    if refusal is not None:
        raise _denied(f"{place.url} at {found}", refusal)


async def resolved(permit: Permit, url: str, method: str, resolve: Resolve) -> Endpoint:
    """The whole check: the URL, its name's addresses, each of them. One that may not be reached
    refuses the name: who answers with it is not to be trusted with the others."""
    place = check_url(permit, url, method)
    try:
        addresses: tuple[Address, ...] = (ipaddress.ip_address(place.host),)
    except ValueError:
        addresses = (await resolve(place.host))[: limits.ADDRESSES_MAX]
    if not addresses:
        raise Unreachable(f"{place.host} has no address.")
    for found in addresses:
        check_address(permit, place, found)
    return Endpoint(place.url, place.scheme, place.host, place.port, place.target, tuple(addresses))


def _denied(what: str, decision: Decision) -> PolicyDenied:
    word = "needs a yes first" if decision.effect is Verdict.ASK else "may not be reached"
    return PolicyDenied(
        f"{what} {word}: {decision.reason} ({decision.rule_id}).",
        hint=_HINT,
        decisionId=decision.decision_id,
        reason=decision.reason,
    )
