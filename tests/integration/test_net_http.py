"""The one HTTP client and its tool: bounds, redirects, keys, decisions (A-4, B-6)."""

from __future__ import annotations

import asyncio
import datetime
import functools
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from egress_support import OPEN_POLICY, SESSION, TASK, Way, canary, lying, web

from goclaw.core import limits
from goclaw.core.errors import NoCapability
from goclaw.core.states import EffectClass
from goclaw.net import egress

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.req("A-4", "B-6")

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def asked(arguments: dict[str, Any], policy: str = OPEN_POLICY) -> tuple[str, Any, list[bytes]]:
    async def scenario() -> tuple[str, Any, list[bytes]]:
        async with web() as control:
            way = Way(lying("127.0.0.2"), policy)
            url = control.url + arguments.get("url", "/")
            status, said = await way.ask({**arguments, "url": url})
            return status, said, control.heads

    return asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS)
def test_the_effect_class_follows_the_method(method: str) -> None:
    async def class_of(**extra: str) -> EffectClass:
        way = Way(lying("127.0.0.2"))
        call = await way.gate.call(
            TASK, SESSION, "direct", "http", {"url": "http://a.example/", "method": method, **extra}
        )
        assert all(one.context.effect_class is call.effect_class for one in call.decisions)
        return call.effect_class

    pure = method in ("GET", "HEAD")
    assert asyncio.run(class_of()) is (EffectClass.PURE if pure else EffectClass.IRREVERSIBLE)
    keyed = asyncio.run(class_of(key_header="X-Key"))
    assert keyed is (EffectClass.PURE if pure else EffectClass.KEYED)


@pytest.mark.req("E-4")
def test_the_effects_key_goes_out_by_itself() -> None:
    status, said, heads = asked({"method": "POST", "body": "x", "url": "/a/../b?q=1"})
    assert (status, said["status"]) == ("completed", 200)
    assert heads[0].startswith(b"POST /b?q=1 HTTP/1.1\r\n")
    assert b"\r\nIdempotency-Key: key_1\r\n" in heads[0]
    _, _, heads = asked({"method": "POST", "key_header": "X-Key"})
    assert b"\r\nX-Key: key_1\r\n" in heads[0]
    assert b"Idempotency-Key" not in heads[0]
    _, _, heads = asked({})
    assert b"key_1" not in heads[0]


def test_an_answer_is_cut_at_its_bound() -> None:
    size = limits.HTTP_BODY_BYTES_MAX
    status, said, _ = asked({"url": f"/size={size + 5_000_000}"})
    assert status == "completed"
    assert len(said["body"]) == size
    assert str(size) in said["cut"]
    assert "cut" not in asked({"url": f"/size={size}"})[1]


def test_an_answer_that_does_not_come_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GET has failed then; of anything else nobody knows whether it happened (E-3)."""
    from goclaw.net.http import Client

    soon = functools.partialmethod(Client.stream, quiet_ms_max=50)
    monkeypatch.setattr(Client, "stream", soon)
    status, said, _ = asked({"url": "/hang"})
    assert (status, said["code"]) == ("failed", "no_answer")
    with pytest.raises(TimeoutError):
        asked({"url": "/hang", "method": "POST"})


def test_who_does_not_answer_is_told_apart_from_who_is_refused() -> None:
    async def scenario() -> None:
        way = Way(lying("127.0.0.2"))
        status, said = await way.ask({"url": "http://127.0.0.2:1/", "method": "POST"})
        assert (status, said["code"]) == ("failed", "unreachable")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "elsewhere"}, {"content-length": "3"}, {"Transfer-Encoding": "chunked"},
        {"X": "a\r\nInjected: 1"}, {"X\r\nY": "a"}, {"X": "a\0"}, {"": "a"}, {"Ü": "a"},
    ],
)  # fmt: skip
def test_a_header_that_would_change_the_message_is_refused(headers: dict[str, str]) -> None:
    status, said, heads = asked({"headers": headers})
    assert (status, said["code"]) == ("failed", "invalid_params")
    assert heads == []


def test_an_ask_is_an_ask_and_the_url_is_what_was_asked_for() -> None:
    policy = OPEN_POLICY.replace('"everywhere"\neffect = "allow"', '"everywhere"\neffect = "ask"')
    status, _said, heads = asked({}, policy)
    assert (status, heads) == ("asked", [])


POLICY = """
version = 1
[[rule]]
id = "tools"
effect = "allow"
actions = ["tool.call"]
[[rule]]
id = "reading-a-part"
effect = "allow"
actions = ["net.connect"]
resources = [{ prefix = "http://a.example:PORT/open" }]
conditions = { effect_class = ["pure"] }
[[rule]]
id = "asked-for"
effect = "ask"
actions = ["net.connect"]
resources = [{ prefix = "http://a.example:PORT/ask" }]
[[rule]]
id = "its-address"
effect = "allow"
actions = ["net.connect"]
resources = [{ cidr = "127.0.0.2/32" }]
"""


def test_scheme_host_port_path_and_method_are_decided_about() -> None:
    async def scenario() -> None:
        async with web() as control:
            way = Way(lying("127.0.0.2"), POLICY.replace("PORT", str(control.port)))
            base = f"http://a.example:{control.port}"
            assert (await way.ask({"url": f"{base}/open/x"}))[0] == "completed"
            for arguments in (
                {"url": f"{base}/"},
                {"url": f"{base}/open/../x"},
                {"url": f"{base}/%6fpen/../x"},
                {"url": f"http://a.example:{control.port + 1}/open"},
                {"url": f"https://a.example:{control.port}/open"},
                {"url": f"http://b.example:{control.port}/open"},
                {"url": f"{base}/open", "method": "POST"},
            ):
                assert (await way.ask(arguments))[0] == "denied", arguments
            assert len(control.heads) == 1

    asyncio.run(scenario())


def test_each_redirect_is_decided_about_and_what_is_not_allowed_is_not_followed() -> None:
    async def scenario() -> None:
        async with web() as control:
            policy = POLICY.replace("PORT", str(control.port))
            way = Way(lying("127.0.0.2"), policy.replace('"/open', '"/'))
            base = f"http://a.example:{control.port}/open"
            status, said = await way.ask({"url": f"{base}?to={base}/end"})
            assert (status, said["body"], said["url"]) == ("completed", "hello", f"{base}/end")
            assert [one.resource for one in way.inside] == [f"{base}/end"]
            for where, why in (
                ("/shut", "may not be reached"),
                ("/ask", "needs a yes first"),
                ("ftp://a.example/", "scheme"),
                ("http://user@a.example/open", "names a user"),
            ):
                count = len(control.heads)
                status, said = await way.ask({"url": f"{base}?to={where}"})
                assert (status, said["status"]) == ("completed", 302)
                assert why in said["redirect"]
                assert len(control.heads) == count + 1
            status, said = await way.ask({"url": f"{base}?to={base}?to={base}"})
            assert "too often" not in said.get("redirect", "")
            loop = f"{base}?to=?to=x"
            status, said = await way.ask({"url": loop})
            assert "too often" in said["redirect"]

    asyncio.run(scenario())


def test_nothing_that_tells_who_asks_goes_to_another_origin() -> None:
    async def scenario() -> None:
        async with web() as control, web() as other:
            way = Way(lying("127.0.0.2"))
            headers = {"Authorization": "Bearer x", "Cookie": "a=b", "X-Key": "k", "Accept": "text"}
            there = f"http://b.example:{other.port}/"
            await way.ask({"url": f"{control.url}/?to={there}", "headers": headers})
            assert b"Bearer x" in control.heads[0]
            for name in (b"Authorization", b"Cookie", b"X-Key"):
                assert name not in other.heads[0]
            assert b"Accept: text" in other.heads[0]
            await way.ask({"url": f"{control.url}/?to=/x", "headers": headers})
            assert b"Bearer x" in control.heads[-1]
            assert control.heads[-1].startswith(b"GET /x ")

    asyncio.run(scenario())


def test_only_reading_follows_a_redirect() -> None:
    async def scenario() -> None:
        async with web() as control:
            way = Way(lying("127.0.0.2"))
            status, said = await way.ask({"url": f"{control.url}/?to=/x", "method": "POST"})
            assert (status, said["status"]) == ("completed", 302)
            assert "POST is not followed" in said["redirect"]
            assert len(control.heads) == 1

    asyncio.run(scenario())


def test_a_rule_that_denies_a_network_holds_for_the_names_in_it() -> None:
    deny = """
[[rule]]
id = "not-there"
effect = "deny"
actions = ["net.connect"]
resources = [{ cidr = "127.0.0.0/30" }]
"""

    async def scenario() -> None:
        async with web() as control:
            way = Way(lying("127.0.0.2"), OPEN_POLICY + deny)
            status, said = await way.ask({"url": f"http://a.example:{control.port}/"})
            assert (status, said["code"]) == ("failed", "policy_denied")
            assert "not-there" in said["error"]
            assert [one.rule_id for one in way.inside] == ["not-there"]
            assert control.heads == []

    asyncio.run(scenario())


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with canary() as bird, web() as control:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{bird.port}")
            status, _said = await Way(lying("127.0.0.2")).ask({"url": control.url})
            assert status == "completed"
            assert await bird.settled() == 0

    asyncio.run(scenario())


def test_a_tool_without_its_permit_sends_nothing() -> None:
    from goclaw.tools.http import HTTP, HttpTool

    async def scenario() -> None:
        with pytest.raises(NoCapability, match="without a permit"):
            await HttpTool().run(
                HTTP, {"url": "http://a/"}, key="k", cancelled=asyncio.Event(), files={}
            )

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("HTTP://A.example./x/../y?q=%41#f", ("http", "a.example", 80, "/y?q=%41", "a.example")),
        ("https://[::ffff:1.2.3.4]:8443", ("https", "1.2.3.4", 8443, "/", "1.2.3.4:8443")),
        ("wss://[2001:db8::1]/", ("wss", "2001:db8::1", 443, "/", "[2001:db8::1]")),
        ("http://0x7f.1:81/?a?b", ("http", "127.0.0.1", 81, "/?a?b", "127.0.0.1:81")),
    ],
)
def test_a_url_has_its_parts_from_the_one_spelling(url: str, parts: tuple[Any, ...]) -> None:
    place = egress.place_of(url)
    assert (place.scheme, place.host, place.port, place.target, place.authority) == parts


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a fresh certificate for ``name``; its file is ``folder/ca.pem``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_an_encrypted_connection_checks_the_name_that_was_decided_about(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with web() as plain:
            server = await asyncio.start_server(
                plain._serve, "127.0.0.2", 0, ssl=certificate(tmp_path, "a.example")
            )
            port = server.sockets[0].getsockname()[1]
            trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            way = Way(lying("127.0.0.2"), tls=trusting)
            status, said = await way.ask({"url": f"https://a.example:{port}/"})
            assert (status, said["body"]) == ("completed", "hello")
            status, said = await way.ask({"url": f"https://b.example:{port}/"})
            assert (status, said["code"]) == ("failed", "unreachable")
            status, said = await Way(lying("127.0.0.2")).ask({"url": f"https://a.example:{port}/"})
            assert (status, said["code"]) == ("failed", "unreachable")
            way = Way(lying("127.0.0.2"), tls=trusting)
            status, said = await way.ask(
                {"url": f"https://a.example:{port}/?to=http://a.example:{plain.port}/"}
            )
            assert "encrypted connection to an open one" in said["redirect"]
            server.close()

    asyncio.run(scenario())
