"""A thousand ways to write an address of this machine: none of them touches it (A-4, G-13).

Owns the corpus. Not in here: the client's manners (``test_net_http.py``).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from egress_support import OPEN_POLICY, Way, canary, lying, web

from goclaw.policy import egress

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.req("A-4", "G-13")

# Addresses at which the canary listens: the kernel takes every one of them for this machine.
HERE = ("127.0.0.1", "127.1.2.3", "127.255.255.254", "0.0.0.0", "127.0.0.53")
NAMES = (
    "localhost",
    "evil.example",
    "a.b.c.d.example",
    "127.0.0.1.nip.example",
    "xn--bcher-kva.example",
)


def spellings(text: str) -> Iterator[str]:
    """One IPv4 address as resolvers, libraries and kernels read it."""
    number = int(ipaddress.IPv4Address(text))
    a, b, c, d = ipaddress.IPv4Address(text).packed
    yield text
    yield f"{text}."
    yield str(number)
    yield hex(number)
    yield f"0{number:o}"
    yield f"0x{number:08X}"
    yield f"000{number:o}"
    yield f"{a}.{(b << 16) + (c << 8) + d}"
    yield f"{a}.{b}.{(c << 8) + d}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"
    yield f"0{a:o}.{b}.0x{c:x}.{d}"
    yield f"0x{a:x}.{(b << 16) + (c << 8) + d}"
    yield f"00{a:o}.00{b:o}.00{c:o}.00{d:o}"
    six = f"{a:02x}{b:02x}:{c:02x}{d:02x}"
    yield f"[::ffff:{text}]"
    yield f"[::ffff:{six}]"
    yield f"[0:0:0:0:0:ffff:{six}]"
    yield f"[::{text}]"
    yield f"[::{six}]"
    yield f"[::ffff:0:{six}]"
    yield f"[64:ff9b::{text}]"
    yield f"[64:ff9b::{six}]"
    yield f"[64:ff9b:1::{six}]"
    yield f"[2002:{six}::]"
    yield f"[2002:{six}::1]"
    yield f"[2001:0:{six}::]"
    yield f"[fe80::{six}%25lo]"
    yield f"[::ffff:{text}%lo]"
    yield text.replace(".", "。")
    yield text.replace(".", "%2e")
    yield "".join(chr(0xFF10 + int(x)) if x.isdigit() else x for x in text)
    yield "".join(f"%{ord(x):02x}" for x in text)
    yield f"{text}%00.example.org"
    yield f"{text}\t"
    yield f"{text[:3]}\t{text[3:]}"
    yield f"{text}\n"
    yield f"{text}\\.example.org"


IPV6 = ("::1", "0:0:0:0:0:0:0:1", "::", "::0001", "0000::0001", "::1%lo", "::1%251", "::1%1")


def urls(host: str, port: int, seed: random.Random) -> Iterator[str]:
    """A host in the places where a URL can hide one."""
    place = f"{host}:{port}"
    yield f"http://{place}/"
    yield from seed.sample(
        (
            f"http://example.org@{place}/",
            f"http://user:pass@{place}/",
            f"http://{place}\\@example.org/",
            f"http://example.org\\@{place}/",
            f"http:\\\\{place}\\",
            f"http://example.org#@{place}/",
            f"http://{place}#@example.org/",
            f"http:///{place}/",
            f"http:/{place}/",
            f"http:{place}/",
            f"//{place}/",
            f"\thttp://{place}/",
            f"http://\t{place}/",
            f"ht\ttp://{place}/",
            f"HTTP://{place}/x/../y",
            f"http://{place}/?@example.org",
            f"http://{place}%2f@example.org/",
            f"https://{place}/",
            f"ws://{place}/",
            f"ftp://{place}/",
            f"file://{place}/etc/passwd",
            f"gopher://{place}/_x",
            f"http://[{place}]/",
            f"http://{place}:80/",
        ),
        4,
    )


def corpus(port: int) -> list[str]:
    seed = random.Random(4)
    hosts = [form for address in HERE for form in spellings(address)]
    hosts += [f"[{form}]" for form in IPV6]
    found = [url for host in hosts for url in urls(host, port, seed)]
    for name in NAMES:
        for case in (str.lower, str.upper, str.title):
            for dot in ("", "."):
                found += list(urls(case(name) + dot, port, seed))
    found += [f"http://{name}:{port}/" for name in ("ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "lоcalhost")]
    found += [f"http://{'a' * 2000}:{port}/", f"http://{port}/", f"http://0:{port}/"]
    return list(dict.fromkeys(found))


def test_no_form_of_this_machines_address_is_contacted_directly_or_by_redirect() -> None:
    """By every form itself, and once more where an allowed server redirects to it."""

    async def scenario() -> None:
        async with canary() as bird, web() as control:
            forms = corpus(bird.port)
            way = Way(lying("127.0.0.1"))
            assert len(forms) >= 1_000
            for url in forms:
                status, said = await way.ask({"url": url})
                assert status in ("denied", "failed"), (url, said)
            assert await bird.settled() == 0
            for url in forms:
                where = quote(url.encode("utf-8", "replace").decode(), safe="")
                status, said = await way.ask({"url": f"{control.url}/?to={where}"})
                # A lonely slash and the like lead back to the control itself.
                assert status == "failed" or said["status"] in (200, 302), (url, said)
            assert len(control.heads) >= len(forms), "the controls did not pass"
            assert await bird.settled() == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answers",
    [
        ("127.0.0.1",),
        ("127.0.0.2 127.0.0.1",),
        ("::1",),
        ("::ffff:127.0.0.1",),
        ("::ffff:0:127.0.0.1",),
        ("64:ff9b::7f00:1",),
        ("2002:7f00:1::",),
        ("::127.0.0.1",),
        ("fe80::1",),
        ("fe80::1%1",),
        ("0.0.0.0",),
        ("::",),
        ("10.0.0.1",),
        ("100.64.0.1",),
        ("169.254.169.254",),
        ("168.63.129.16",),
        ("fd00:ec2::254",),
        ("224.0.0.1",),
        ("ff02::1",),
        ("255.255.255.255",),
        ("4000::1",),
    ],
)
def test_a_name_that_leads_inside_is_not_followed(answers: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with canary() as bird:
            way = Way(lying(*answers))
            status, said = await way.ask({"url": f"http://innocent.example:{bird.port}/"})
            assert (status, said["code"]) == ("failed", "policy_denied")
            assert [one.effect for one in way.inside] == ["deny"]
            assert await bird.settled() == 0

    asyncio.run(scenario())


def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A resolver that lies the second time finds nobody who asks a second time for one request."""

    async def scenario() -> None:
        async with canary() as bird, web() as control:
            way = Way(lying("127.0.0.2", "127.0.0.1"))
            status, said = await way.ask({"url": f"http://rebind.example:{control.port}/"})
            assert (status, said["body"]) == ("completed", "hello")
            # the second request is a question of its own, and so is its refusal
            status, said = await way.ask({"url": f"http://rebind.example:{bird.port}/"})
            assert (status, said["code"]) == ("failed", "policy_denied")
            assert await bird.settled() == 0

    asyncio.run(scenario())


def test_a_peer_that_is_not_the_address_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with web() as control:
            way = Way(lying("127.0.0.2"))
            elsewhere = (ipaddress.ip_address("127.0.0.3"), control.port)
            monkeypatch.setattr("goclaw.net.dial.peer_of", lambda connection: elsewhere)
            status, said = await way.ask({"url": control.url})
            assert (status, said["code"]) == ("failed", "unreachable")
            assert "ended at 127.0.0.3" in said["error"]
            assert control.heads == []

    asyncio.run(scenario())


def test_the_controls_pass_in_every_spelling_that_is_one() -> None:
    """The same forms of an address that the policy names reach it."""

    async def scenario() -> None:
        async with web() as control:
            way = Way(lying("127.0.0.2"))
            reached = 0
            for host in [*spellings("127.0.0.2"), "named.example"]:
                status, _said = await way.ask({"url": f"http://{host}:{control.port}/"})
                reached += status == "completed"
            assert reached == len(control.heads) >= 16

    asyncio.run(scenario())


def test_what_is_not_named_is_not_reached_however_wide_the_rule() -> None:
    policy = OPEN_POLICY.replace("127.0.0.2/32", "10.9.8.7/32")

    async def scenario() -> None:
        async with web() as control:
            for rule in (policy, policy + _PREFIX):
                way = Way(lying("127.0.0.2"), rule)
                for host in ("127.0.0.2", "a.example"):
                    status, _ = await way.ask({"url": f"http://{host}:{control.port}/"})
                    assert status == "failed"
            assert control.heads == []

    asyncio.run(scenario())


_PREFIX = """
[[rule]]
id = "a-name"
effect = "allow"
actions = ["net.connect"]
resources = [{ host = "a.example" }, { prefix = "http://a.example/" }]
"""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8.8.8.8", None), ("1.1.1.1", None), ("2606:4700::1111", None), ("2a00:1450::1", None),
        ("172.15.0.1", None), ("172.16.0.1", "private"), ("172.31.255.255", "private"),
        ("172.32.0.1", None), ("100.63.255.255", None), ("100.127.255.255", "carrier-grade NAT"),
        ("::ffff:8.8.8.8", None), ("64:ff9b::808:808", None), ("2002:808:808::", "tunnel"),
        ("fe80::1%3", "link-local"), ("::1", "loopback"), ("::2", "reserved"),
        ("::ffff:127.0.0.1", "loopback"), ("169.254.169.254", "metadata"),
        ("198.19.0.1", "benchmarking"), ("3ffe::1", None), ("4000::", "reserved"),
    ],
)  # fmt: skip
def test_the_table_knows_what_is_special(text: str, kind: str | None) -> None:
    assert egress.special_kind(ipaddress.ip_address(text)) == kind


def test_the_table_refuses_whatever_pythons_own_does() -> None:
    """What ``ipaddress`` holds for not global is special here, too, but for tunnels' endpoints."""
    seed = random.Random(9)
    for _ in range(20_000):
        four = ipaddress.IPv4Address(seed.getrandbits(32))
        six = ipaddress.IPv6Address(seed.getrandbits(128))
        for found in (four, six):
            if not found.is_global and not found.is_multicast:
                assert egress.special_kind(found) is not None, found
