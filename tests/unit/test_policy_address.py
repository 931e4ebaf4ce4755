"""One spelling for each resource: what looks different and means the same is decided the same."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.policy import address

pytestmark = pytest.mark.req("A-1", "A-14")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("//a///b", "/a/b"),
        ("/a/./b/.", "/a/b"),
        ("/a/b/../c", "/a/c"),
        ("/a/..", "/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/a/...", "/a/..."),
        ("/a/.b", "/a/.b"),
        ("/a/b..", "/a/b.."),
        ("/a\n/b c", "/a\n/b c"),
        ("/ä/\u202e", "/ä/\u202e"),
    ],
)
def test_a_path_has_one_spelling(text: str, path: str) -> None:
    assert address.canonical_path(text) == path
    assert address.canonical_path(path) == path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a/b", "not absolute"),
        ("~/x", "not absolute"),
        ("/a\0b", "NUL"),
        ("/a\ud800", "lone surrogate"),
        ("/" + "a" * limits.LABEL_CHARS_MAX, "longer than"),
    ],
)
def test_what_is_no_path_has_no_spelling(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        address.canonical_path(text)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "...", "a.b"]), max_size=8))
def test_a_path_is_what_walking_it_gives(parts: list[str]) -> None:
    place: list[str] = []
    for part in parts:
        if part == "..":
            place = place[:-1]
        elif part not in ("", "."):
            place = [*place, part]
    assert address.canonical_path("/" + "/".join(parts)) == "/" + "/".join(place)


@pytest.mark.parametrize(
    ("path", "roots", "forms"),
    [
        ("/p/x", ("/p",), ("/p/x", "\0root/x")),
        ("/p", ("/p",), ("/p", "\0root")),
        ("/px", ("/p",), ("/px",)),
        ("/", ("/p",), ("/",)),
        ("/x", ("/",), ("/x", "\0root/x")),
        ("/", ("/",), ("/", "\0root")),
        ("/p/q/x", ("/p", "/p/q"), ("/p/q/x", "\0root/q/x", "\0root/x")),
        ("/p/x", (), ("/p/x",)),
    ],
)
def test_a_path_is_in_a_root_only_on_a_boundary(
    path: str, roots: tuple[str, ...], forms: tuple[str, ...]
) -> None:
    assert address.path_forms(path, roots) == forms


@pytest.mark.req("A-4")
@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Example.ORG", "https://example.org/"),
        ("HTTPS://example.org:443/", "https://example.org/"),
        ("https://example.org.:0443/a", "https://example.org/a"),
        ("https://example.org:/a", "https://example.org/a"),
        ("http://example.org:443/a", "http://example.org:443/a"),
        ("https://example.org/a?secret=1#f", "https://example.org/a"),
        ("https://example.org?x", "https://example.org/"),
        ("https://example.org/a/../b/./c", "https://example.org/b/c"),
        ("https://example.org/a/..", "https://example.org/"),
        ("https://example.org/a/b/.", "https://example.org/a/b/"),
        ("https://example.org/%2e%2E/x", "https://example.org/x"),
        ("https://example.org/%61dmin", "https://example.org/admin"),
        ("https://example.org/a%2fb", "https://example.org/a%2Fb"),
        ("https://example.org/%2561", "https://example.org/%2561"),
        ("https://example.org//a", "https://example.org//a"),
        ("example.org:22", "tcp://example.org:22/"),
        ("example.org", "tcp://example.org/"),
        ("https://127.0.0.1/", "https://127.0.0.1/"),
        ("https://127.1/", "https://127.0.0.1/"),
        ("https://2130706433/", "https://127.0.0.1/"),
        ("https://0x7f.0.0.1/", "https://127.0.0.1/"),
        ("https://0177.0.0.1/", "https://127.0.0.1/"),
        ("https://127.0.0.1./", "https://127.0.0.1/"),
        ("https://0x/", "https://0.0.0.0/"),
        ("https://[::1]:8443/", "https://[::1]:8443/"),
        ("https://[::ffff:10.0.0.1]/", "https://10.0.0.1/"),
        ("https://[::FFFF:a00:1]/", "https://10.0.0.1/"),
        ("https://[64:ff9b::a00:1]/", "https://10.0.0.1/"),
        ("https://[2001:DB8:0::1]/", "https://[2001:db8::1]/"),
        ("wss://example.org:443/ws", "wss://example.org/ws"),
    ],
)
def test_a_url_has_one_spelling(text: str, url: str) -> None:
    assert address.canonical_url(text)[0] == url
    assert address.canonical_url(url)[0] == url


@pytest.mark.req("A-4")
@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "https:///x",
        "file:///etc/passwd",
        "https://user@example.org/",
        "https://user:pass@example.org/",
        "https://example.org@evil.org/",
        "https://exa mple.org/",
        "https://example.org\\@evil.org/",
        "https://example.org/\n",
        "https://bücher.example/",
        "https://ex%61mple.org/",
        "https://example..org/",
        "https://.example.org/",
        "https://example.org../",
        "https://-a.org/",
        "https://" + "a" * 64 + ".org/",
        "https://" + ".".join(["a" * 63] * 4) + ".org/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[::1/",
        "https://::1/",
        "https://[not]/",
        "https://256.1/",
        "https://1.2.3.4.5/",
        "https://example.0x7f/",
        "https://1.2.3.4294967296/",
        "https://08.0.0.1/",
        "https://example.org:0/",
        "https://example.org:65536/",
        "https://example.org:80:80/",
        "https://example.org/%",
        "https://example.org/%zz",
        "1://example.org/",
        "https://example.org/\ud800",
    ],
)
def test_what_is_no_url_has_no_spelling(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        address.canonical_url(text)


@given(st.text() | st.from_regex(r"[a-z]{1,5}://[\[\]0-9a-fx:.%@-]{0,20}(/[a-z%.0-9]{0,6})?"))
def test_a_url_is_spelled_or_refused_and_spelling_twice_changes_nothing(text: str) -> None:
    try:
        url, host = address.canonical_url(text)
    except ValueError:
        return
    assert address.canonical_url(url) == (url, host)
    assert url.isascii()
    assert "@" not in url.split("/")[2]


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_that_address(one: ipaddress.IPv4Address) -> None:
    number = int(one)
    a, b, c, d = one.packed
    for text in (
        str(one), f"{number}", f"0x{number:x}", f"0{number:o}", f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{(c << 8) + d}", f"0x{a:X}.0{b:o}.{c}.{d}", f"[::ffff:{one}]",
    ):  # fmt: skip
        assert address.canonical_url(f"https://{text}/")[1] == one


@given(st.integers(0, 32), st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_a_network_is_the_trees_of_its_addresses(
    length: int, base: ipaddress.IPv4Address, other: ipaddress.IPv4Address
) -> None:
    network = ipaddress.IPv4Network((base, length), strict=False)
    trees = address.network_texts(str(network))
    assert len(trees) <= 8
    for one in (base, other, network.broadcast_address, network.network_address):
        text = address.address_forms("https://x/", one)[1]
        inside = any(text == tree or text.startswith(tree + "/") for tree in trees)
        assert inside == (one in network)


@pytest.mark.parametrize(
    ("text", "count"), [("::/0", 1), ("fe80::/10", 4), ("2001:db8::/32", 1), ("::1", 1)]
)
def test_a_network_of_version_6_is_trees_too(text: str, count: int) -> None:
    assert len(address.network_texts(text)) == count


def test_a_mapped_network_is_the_network_it_maps() -> None:
    assert address.network_texts("::ffff:10.0.0.0/104") == address.network_texts("10.0.0.0/8")


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.org", "x\0"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        address.network_texts(text)


def test_host_patterns_are_trees_of_names() -> None:
    assert address.host_suffix("Example.org.") == "\0host/org/example"
    assert address.host_suffix(".") == "\0host"
    for bad in ("10.0.0.1", "[::1]", "*.org", ""):
        with pytest.raises(ValueError, match=r"\w"):
            address.host_suffix(bad)


def test_no_marker_can_be_written_as_a_resource() -> None:
    for marker in (address.ROOT, address.HOME):
        assert re.match("\0", marker)
        with pytest.raises(ValueError, match="NUL"):
            address.canonical_name(marker + "/x")
