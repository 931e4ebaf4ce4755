"""One spelling for every path, URL, host and address before anything is decided about it.

Owns canonical forms and the texts that the compiled rules are looked up by. Not in here: what is
allowed, and which addresses may be dialled (``net``): a name is decided as a name.

Every function is pure and raises ValueError, saying why, for what has no canonical form; the
caller denies.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from goclaw.core import limits

__all__ = [
    "HOME",
    "ROOT",
    "address_forms",
    "canonical_name",
    "canonical_path",
    "canonical_url",
    "host_suffix",
    "network_texts",
    "path_forms",
]

# no canonical text holds a NUL, so these can only come from here
ROOT: Final = "\0root"
HOME: Final = "\0home"
_HOST: Final = "\0host"
_IPV4: Final = "\0ipv4"
_IPV6: Final = "\0ipv6"

_DOTS: Final = re.compile(r"//|/\.{1,2}(?:/|\Z)|./\Z", re.DOTALL)
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)")
_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PERCENT: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNPRINTED: Final = re.compile(r"[^\x21-\x7e]|\\")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST_CHARS_MAX: Final = 253  # RFC 1035, without the dot at the end

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def canonical_name(text: str) -> str:
    """The text itself, if it is one: not empty, not over-long, no NUL, no lone surrogate."""
    if not text:
        raise ValueError("it is empty")
    if len(text) > limits.LABEL_CHARS_MAX:
        raise ValueError(f"it is longer than {limits.LABEL_CHARS_MAX} characters")
    if "\0" in text:
        raise ValueError("it holds a NUL")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("it holds a lone surrogate, so it is no text") from None
    return text


def canonical_path(text: str) -> str:
    """An absolute path without ``//``, ``.``, ``..`` and final ``/``.

    ``..`` is resolved by the letters alone. That is the file's true place only where no directory
    on the way is a link, so the caller resolves links first and opens what the decision names.
    """
    canonical_name(text)
    if text[0] != "/":
        raise ValueError("the path is not absolute")
    if not _DOTS.search(text):
        return text
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def path_forms(path: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """The canonical path, and how it looks from each of the (canonical) roots it lies in."""
    forms = [path]
    for root in roots:
        base = root.rstrip("/")
        if path == root:
            forms.append(ROOT)
        elif path.startswith(base + "/"):
            forms.append(ROOT + path[len(base) :])
    return tuple(forms)


def canonical_url(text: str) -> tuple[str, str | _Address]:
    """The URL without default port, query and fragment, and its host: a name or an address.

    The host is lower case without a final dot; whatever a resolver would read as an address
    (decimal, octal, hexadecimal, IPv4-mapped, NAT64) is that address. ``host:port`` without a
    scheme is ``tcp://host:port``.
    """
    canonical_name(text)
    if _UNPRINTED.search(text):
        raise ValueError("a URL is printable ASCII: percent-encode the rest, write hosts as xn--")
    if "://" not in text:
        text = "tcp://" + text
    found = _URL.match(text)
    if found is None:
        raise ValueError("it is no URL")
    scheme, authority, path = found[1].lower(), found[2], found[3]
    if "@" in authority:
        raise ValueError("it names a user; credentials come from the secret store")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise ValueError("its host is no name, no address and no address in brackets")
    host = _host(parts[1])
    port = int(parts[2]) if parts[2] else _PORTS.get(scheme)
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"there is no port {port}")
    shown = f"[{host}]" if isinstance(host, ipaddress.IPv6Address) else str(host)
    if port is not None and port != _PORTS.get(scheme):
        shown = f"{shown}:{port}"
    return f"{scheme}://{shown}{_url_path(path)}", host


def address_forms(url: str, host: str | _Address) -> tuple[str, ...]:
    """The canonical URL and the place of its host among names or addresses."""
    return (url, _name_text(host) if isinstance(host, str) else _bits_text(host))


def host_suffix(text: str) -> str:
    """The tree of a host pattern: that name and all below it; ``.`` is every name."""
    if text == ".":
        return _HOST
    if not canonical_name(text).isascii():
        raise ValueError("a host is ASCII: write the rest as xn--, where you see what it really is")
    host = _host(text)
    if not isinstance(host, str):
        raise ValueError("that is an address: use cidr")
    return _name_text(host)


def network_texts(text: str) -> tuple[str, ...]:
    """The trees of a network: one, or up to eight where it ends inside a hexadecimal digit."""
    network = ipaddress.ip_network(canonical_name(text), strict=True)
    if isinstance(network, ipaddress.IPv6Network):
        mapped = _embedded(network.network_address)
        if mapped is not None and network.prefixlen >= 96:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    digits = -(-network.prefixlen // 4)
    return tuple(
        _bits_text(subnet.network_address, digits)
        for subnet in network.subnets(new_prefix=digits * 4)
    )


def _name_text(name: str) -> str:
    """A host name as a path from the top of the tree of names, so that a suffix is a tree."""
    return "/".join([_HOST, *reversed(name.split("."))])


def _bits_text(address: _Address, digits: int | None = None) -> str:
    """An address as a path, one hexadecimal digit a step, so that a network is a tree."""
    text = address.packed.hex()[:digits]
    return "/".join([_IPV4 if address.version == 4 else _IPV6, *text])


def _host(text: str) -> str | _Address:
    if text.startswith("["):
        if "%" in text:
            raise ValueError("an address with a zone is not decided about")
        six = ipaddress.IPv6Address(text[1:-1])
        return _embedded(six) or six
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _numeric(labels)
    if len(name) > _HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("that is no host name")
    return name


def _numeric(labels: list[str]) -> ipaddress.IPv4Address:
    """What resolvers make of ``127.1``, ``0177.0.0.1``, ``0x7f000001`` or ``2130706433``."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise ValueError("its last label is a number, but it is no address")
    numbers = []
    for label in labels:
        if label.startswith("0x"):
            numbers.append(int(label[2:] or "0", 16))
        elif label.startswith("0"):
            numbers.append(int(label, 8))
        else:
            numbers.append(int(label))
    *high, last = numbers
    if any(number > 255 for number in high) or last >= 256 ** (4 - len(high)):
        raise ValueError("its last label is a number, but it is no address")
    for place, number in enumerate(high):
        last += number << (24 - 8 * place)
    return ipaddress.IPv4Address(last)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that this one is another spelling of."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped


def _url_path(path: str) -> str:
    """Absolute, without dot segments; only what must be percent-encoded is, in capitals."""
    if "%" in path:
        path = _PERCENT.sub(_percent, path)
    parts: list[str] = []
    for part in path.split("/")[1:]:
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    if path.endswith(("/.", "/..")):
        parts.append("")
    return "/" + "/".join(parts)


def _percent(found: re.Match[str]) -> str:
    if found[1] is None:
        raise ValueError("a % in a URL is followed by two hexadecimal digits")
    character = chr(int(found[1], 16))
    return character if _UNRESERVED.fullmatch(character) else f"%{found[1].upper()}"
