"""Proves who may connect: upgrade requests judged one header at a time, and the throttle.

Owns the table of requests. Not in here: real sockets (``test_wire_access.py``).
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from websockets.datastructures import Headers

from goclaw.core import limits
from goclaw.core.errors import ListenerFailed
from goclaw.gateway.access import Throttle, judge, peer_uid, tls_context

VECTORS = Path(__file__).parents[1] / "vectors" / "tls"
TOKEN = "f" * 43


def asked(target: str = "/ws", **changes: str | None) -> int:
    """The status of an upgrade request, 101 when it may go on."""
    fields = {
        "Host": "127.0.0.1:4711",
        "Authorization": f"Bearer {TOKEN}",
        **{name.capitalize(): value for name, value in changes.items()},
    }
    headers = Headers({name: value for name, value in fields.items() if value is not None})
    refusal = judge(target, headers, TOKEN)
    if refusal is None:
        return 101
    assert TOKEN not in refusal.text
    return int(refusal.status)


@pytest.mark.req("A-9")
@pytest.mark.parametrize("target", ["/ws", "/acp"])
def test_the_token_opens_both_paths(target: str) -> None:
    assert asked(target) == 101
    assert asked(target, authorization=f"bearer  {TOKEN} ") == 101


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    "credentials",
    [
        None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}", "Bearer \u00e4", f"Bearer {TOKEN.upper()}",
    ],
)  # fmt: skip
def test_without_the_token_nobody_gets_in(credentials: str | None) -> None:
    assert asked(authorization=credentials) == 401
    assert asked("/elsewhere", authorization=credentials) == 401


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    "target",
    [
        f"/ws?token={TOKEN}", f"/ws?access_token={TOKEN}", f"/ws/{TOKEN}", "/ws?", "/ws?x=1",
        "/ws#" + TOKEN, "/%66" + TOKEN[1:],
    ],
)  # fmt: skip
def test_a_token_in_the_url_is_refused_beside_a_good_header(target: str) -> None:
    assert asked(target) == 400
    assert asked(target, host="evil.example", authorization=None) == 400


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 101), ("localhost:1", 101), ("127.0.0.1", 101), ("127.1.2.3:80", 101),
        ("[::1]:4711", 101), ("LOCALHOST:1", 101), ("evil.example", 403), ("localhost.evil", 403),
        ("127.0.0.1.evil", 403), ("10.0.0.1", 403), ("", 403), (None, 403), ("localhost:x", 403),
        ("user@localhost", 403), ("localhost/x", 403), ("[::1", 403), ("0.0.0.0", 403),
    ],
)  # fmt: skip
def test_the_host_is_this_machine(host: str | None, status: int) -> None:
    assert asked(host=host) == status
    if status == 403:
        assert asked(host=host, authorization=None) == 403


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101), ("http://localhost", 101), ("http://127.0.0.1:3000", 101),
        ("https://[::1]", 101), ("null", 403), ("", 403), ("https://evil.example", 403),
        ("http://localhost.evil.example", 403), ("http://localhost@evil.example", 403),
        ("file://", 403), ("http://127.0.0.1.evil", 403), ("http://[", 403),
    ],
)  # fmt: skip
def test_the_origin_is_this_machine(origin: str | None, status: int) -> None:
    assert asked(origin=origin) == status


@pytest.mark.req("A-9")
def test_the_names_of_this_machine_are_those_it_was_given() -> None:
    for name, status in (("build.lan", None), ("BUILD.lan:1", None), ("lan", 403), ("a.lan", 403)):
        for origin in (None, f"https://{name}"):
            fields = {"Host": "localhost" if origin else name, "Authorization": f"Bearer {TOKEN}"}
            headers = Headers(fields if origin is None else {**fields, "Origin": origin})
            refusal = judge("/ws", headers, TOKEN, {"build.lan"})
            assert (refusal and int(refusal.status)) == status, (name, origin)


@pytest.mark.req("A-9")
@pytest.mark.parametrize("fault", ["none", "open", "missing", "mixed", "encrypted"])
def test_tls_takes_a_private_key_that_fits(fault: str, home: Path) -> None:
    certificate, key = home / "c.pem", home / "k.pem"
    certificate.write_bytes((VECTORS / "certificate.pem").read_bytes())
    key.write_bytes((VECTORS / "key.pem").read_bytes())
    key.chmod(0o640 if fault == "open" else 0o600)
    if fault == "missing":
        key.unlink()
    elif fault == "mixed":
        key.write_bytes(certificate.read_bytes())
    elif fault == "encrypted":
        key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n")
    if fault == "none":
        assert tls_context(certificate, key).minimum_version >= ssl.TLSVersion.TLSv1_2
        return
    with pytest.raises(ListenerFailed) as refused:
        tls_context(certificate, key)
    assert refused.value.exit == 6
    assert str(key) in str(refused.value)


@pytest.mark.req("A-9")
def test_a_header_that_stands_twice_is_not_believed() -> None:
    for name, value in (("Host", "localhost"), ("Origin", "http://localhost")):
        headers = Headers({"Host": "localhost", "Authorization": f"Bearer {TOKEN}"})
        headers[name] = value
        headers[name] = "evil.example"
        refusal = judge("/ws", headers, TOKEN)
        assert refusal is not None
        assert refusal.status == 400
    headers = Headers({"Host": "localhost", "Authorization": f"Bearer {TOKEN}"})
    headers["Authorization"] = "Bearer other"
    refusal = judge("/ws", headers, TOKEN)
    assert refusal is not None
    assert refusal.status == 401


def test_other_paths_are_not_there() -> None:
    assert asked("/") == asked("/ws/") == asked("/healthz/") == asked("/metric") == 404
    assert asked("/healthz") == asked("/readyz") == asked("/metrics") == 101, "not for judge to say"


def test_no_token_opens_nothing() -> None:
    headers = Headers({"Host": "localhost", "Authorization": "Bearer "})
    refusal = judge("/ws", headers, "")
    assert refusal is not None


@pytest.mark.req("A-12")
def test_wrong_tokens_wait_longer_and_longer_up_to_a_bound() -> None:
    throttle = Throttle()
    assert throttle.owed_ms("127.0.0.1") == 0
    waits = []
    for _ in range(40):
        throttle.failed("127.0.0.1")
        waits.append(throttle.owed_ms("127.0.0.1"))
    assert waits[0] == limits.AUTH_DELAY_MS_MIN
    assert waits == sorted(waits)
    assert waits[-1] == limits.AUTH_DELAY_MS_MAX
    assert throttle.owed_ms("127.0.0.2") == 0
    throttle.succeeded("127.0.0.1")
    assert throttle.owed_ms("127.0.0.1") == 0


@pytest.mark.req("A-12")
def test_one_address_is_one_address_however_it_is_written() -> None:
    throttle = Throttle()
    names = ("127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::1", "::1%lo", "odd", "odd")
    for name in (*names, "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"):
        throttle.failed(name)
    assert throttle.owed_ms("127.0.0.1") == limits.AUTH_DELAY_MS_MIN << 2
    assert throttle.owed_ms("0:0::1") == limits.AUTH_DELAY_MS_MIN << 1
    assert throttle.owed_ms("odd") == limits.AUTH_DELAY_MS_MIN << 1
    # the rest of a /64 is the same peer's
    assert throttle.owed_ms("2001:db8::2") == limits.AUTH_DELAY_MS_MIN << 1
    assert throttle.owed_ms("2001:db8:0:1::2") == limits.AUTH_DELAY_MS_MIN


@pytest.mark.req("A-12", "I-5")
def test_the_memory_of_wrong_tokens_is_bounded() -> None:
    throttle = Throttle()
    throttle.failed("10.0.0.0")
    for n in range(limits.AUTH_ADDRESSES_MAX):
        throttle.failed(f"10.1.{n // 256}.{n % 256}")
    assert throttle.owed_ms("10.0.0.0") == 0
    assert throttle.owed_ms("10.1.3.0") > 0


@pytest.mark.req("A-9")
def test_the_peer_of_a_unix_socket_is_known() -> None:
    import os

    one, two = socket.socketpair(socket.AF_UNIX)
    with one, two:
        assert peer_uid(one) == os.geteuid()
