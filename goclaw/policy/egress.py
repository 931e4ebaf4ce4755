"""Which addresses a connection may end at: our own table, and what a policy names (A-4).

Owns the table of special addresses and the naming of networks. Not in here: whether a URL may be
reached (``pdp``), resolving and dialling (``net``).
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
from typing import TYPE_CHECKING, Final

from goclaw.core.decisions import Verdict
from goclaw.policy import address, pdp
from goclaw.policy.pdp import ResourceKind, ResourcePattern

if TYPE_CHECKING:
    from goclaw.core.decisions import Context, Subject
    from goclaw.policy.pdp import Policy

__all__ = ["ACTION", "Address", "names", "plain_address", "special_kind"]

ACTION: Final = "net.connect"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The first row that holds an address counts; what no row holds is ordinary, for IPv6 only inside
# 2000::/3, which is all that was ever given out.
_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(text), kind)
    for text, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.100.100.200/32", "metadata"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "metadata"),
        ("169.254.169.254/32", "metadata"),
        ("169.254.170.2/32", "metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.192/32", "metadata"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "tunnel"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("100::/64", "reserved"),
        ("2001::/32", "tunnel"),
        ("2001:db8::/32", "documentation"),
        ("2001::/23", "reserved"),
        ("2002::/16", "tunnel"),
        ("3fff::/20", "documentation"),
        ("fd00:ec2::254/128", "metadata"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
)
_GIVEN_OUT: Final = ipaddress.IPv6Network("2000::/3")
# Networks whose last 32 bits are an IPv4 address that the connection ends at: mapped, NAT64.
_CARRIERS: Final = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96"))


def plain_address(found: Address) -> Address:
    """The IPv4 address that an IPv6 one is another spelling of; any other as it is."""
    if isinstance(found, ipaddress.IPv6Address) and any(found in one for one in _CARRIERS):
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found


def special_kind(found: Address) -> str | None:
    """What is special about an address, so that nothing connects to it unless it is named; None
    for an ordinary one of the public Internet. An address with a zone is link-local."""
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None:
        return "link-local"
    plain = plain_address(found)
    for network, kind in _SPECIAL:
        if plain.version == network.version and plain in network:
            return kind
    if isinstance(plain, ipaddress.IPv6Address) and plain not in _GIVEN_OUT:
        return "reserved"
    return None


def names(
    policy: Policy, place: Address, *, subject: Subject, context: Context, at_ms: int
) -> bool:
    """Does a rule that lets this subject reach something name an address as one that may be
    dialled: by ``cidr``, or as the literal host of an ``exact`` or ``prefix`` pattern?

    A rule for everything, or for a host name, names none: that is what keeps a name from leading
    into the machine's own network. A rule about somebody else, or about other circumstances, names
    it for them. Its rate does not matter here: the request itself was counted.
    """
    shown = f"[{place}]" if place.version == 6 else str(place)
    decision = pdp.decide(
        _naming(policy), subject=subject, action=ACTION, resource=f"tcp://{shown}:1",
        context=context, decision_id="", at_ms=at_ms,
    )  # fmt: skip
    return decision.effect is not Verdict.DENY


@functools.lru_cache(maxsize=8)
def _naming(policy: Policy) -> Policy:
    """The rules that name addresses, as rules about nothing but these."""
    rules = []
    for rule in policy.rules:
        if rule.effect is Verdict.DENY or ACTION not in rule.actions:
            continue
        found: list[Network] = []
        for pattern in rule.resources:
            if pattern.kind is ResourceKind.CIDR:
                found.append(_plain_network(ipaddress.ip_network(pattern.text)))
            elif pattern.kind in (ResourceKind.EXACT, ResourceKind.PREFIX):
                _url, host = address.canonical_url(pattern.text)
                if not isinstance(host, str):
                    found.append(ipaddress.ip_network(host))
        if found:
            named = tuple(ResourcePattern(ResourceKind.CIDR, str(network)) for network in found)
            conditions = dataclasses.replace(rule.conditions, rate_max=None)
            rules.append(
                dataclasses.replace(rule, actions=(ACTION,), resources=named, conditions=conditions)
            )
    return pdp.compile_policy(rules)


def _plain_network(network: Network) -> Network:
    plain = plain_address(network.network_address)
    if plain.version == network.version or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((plain, network.prefixlen - 96))
