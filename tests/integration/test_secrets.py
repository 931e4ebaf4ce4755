"""Secrets: sealed, bound, put in at the boundary alone, dead when they are revoked (A-5)."""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import TYPE_CHECKING, Any

import keyring
import keyring.backend
import keyring.errors
import pytest
from egress_support import OPEN_POLICY, SESSION, TASK, Way, lying, web

from goclaw.core.clock import SystemClock
from goclaw.core.decisions import Verdict
from goclaw.core.errors import GoclawError, InvalidParams, SecretRefused, UnknownId
from goclaw.core.records import Done
from goclaw.store import Secrets, keys, open_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-5")

VALUE = "the value that nobody sees 1"
POLICY = (
    OPEN_POLICY
    + """
[[rule]]
id = "use"
effect = "allow"
actions = ["secret.use"]
"""
)


@pytest.fixture(autouse=True)
def no_keyring() -> Iterator[None]:
    """The machine that runs the tests keeps its own keyring."""
    before = keyring.get_keyring()
    keyring.set_keyring(Locked())
    yield
    keyring.set_keyring(before)


class Locked(keyring.backend.KeyringBackend):
    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def get_password(self, service: str, username: str) -> str | None:
        raise keyring.errors.KeyringLocked("nobody unlocked it")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise keyring.errors.KeyringLocked("nobody unlocked it")

    def delete_password(self, service: str, username: str) -> None:
        raise keyring.errors.KeyringLocked("nobody unlocked it")


class Kept(Locked):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


def with_secrets(home: Path, work: Callable[[Secrets], Awaitable[Any]]) -> Any:
    async def scenario() -> Any:
        database = open_database(home)
        database.start(lambda events: None)
        try:
            secrets = Secrets(database, SystemClock())
            await secrets.load()
            return await work(secrets)
        finally:
            database.close()

    return asyncio.run(scenario())


def test_a_secret_outlives_its_daemon_and_its_bindings_cannot_be_changed(tmp_path: Path) -> None:
    async def first(secrets: Secrets) -> str:
        kept = await secrets.set("one", VALUE, hosts=["A.example.", ".b.example"], tools=[])
        assert (kept.hosts, kept.tools) == (("a.example", ".b.example"), ("http",))
        return kept.digest

    async def second(secrets: Secrets) -> None:
        (listed,) = secrets.listed()
        assert listed.digest == digest
        for text, host in (("secret:one", "a.example"), (f"secret:one#{digest}", "x.b.example")):
            assert secrets.revealed(f"a {text} b", tool="http", host=host) == f"a {VALUE} b"
        where: str | None
        for tool, where in (
            ("http", "b.example"), ("http", "evil-a.example"), ("http", "xa.example"),
            ("http", "a.example.evil"), ("exec", "a.example"), ("other", None),
        ):  # fmt: skip
            with pytest.raises(SecretRefused, match="not bound"):
                secrets.revealed("secret:one", tool=tool, host=where)
        # who can write to the database still cannot bind it elsewhere
        row = (await secrets._database.read("secrets_all"))[0]
        await secrets._database.write(
            "secret_put", name="one", sealed=row[1], hosts='["evil.example"]', tools=row[3],
            digest=row[4], created=row[5], now=row[6],
        )  # fmt: skip

    async def third(secrets: Secrets) -> None:
        assert secrets.listed()[0].hosts == ("evil.example",)
        with pytest.raises(SecretRefused, match="does not open"):
            secrets.revealed("secret:one", tool="http", host="evil.example")

    digest = with_secrets(tmp_path, first)
    with_secrets(tmp_path, second)
    with_secrets(tmp_path, third)


def test_what_is_revoked_is_dead_at_once_and_still_looked_for(tmp_path: Path) -> None:
    async def work(secrets: Secrets) -> None:
        seen: list[set[str]] = []
        secrets.on_change = lambda all_of_them: seen.append({one[2] for one in all_of_them})
        old = await secrets.set("one", VALUE, hosts=["a.example"], tools=[])
        new = await secrets.rotate("one", VALUE + "2")
        assert new.digest != old.digest
        with pytest.raises(SecretRefused, match="another value by now"):
            secrets.revealed(f"secret:one#{old.digest}", tool="http", host="a.example")
        assert secrets.revealed("secret:one", tool="http", host="a.example") == VALUE + "2"
        await secrets.remove("one")
        with pytest.raises(UnknownId):
            secrets.revealed(f"secret:one#{new.digest}", tool="http", host="a.example")
        assert secrets.revealed("secret:one", tool="http", host="a.example") == "secret:one"
        assert seen[-1] == {VALUE, VALUE + "2"}
        for call in (secrets.remove("one"), secrets.rotate("one", VALUE)):
            with pytest.raises(UnknownId):
                await call

    with_secrets(tmp_path, work)


@pytest.mark.parametrize(
    ("name", "value", "hosts", "tools"),
    [
        ("one", VALUE, [], []), ("one", "short", ["a"], []), ("one", "aaaaaaaaaaaa", ["a"], []),
        ("One", VALUE, ["a"], []), ("~jwt", VALUE, ["a"], []), ("", VALUE, ["a"], []),
        ("a" * 65, VALUE, ["a"], []), ("one", VALUE, ["a/b"], []), ("one", VALUE, ["*.a"], []),
        ("one", VALUE, [], ["http"]), ("one", VALUE, [], ["a b"]), ("one", VALUE, ["."], []),
        ("one", VALUE + "\0", ["a"], []), ("one", VALUE + "\ud800", ["a"], []),
        ("one", "ab1!" * 5_000, ["a"], []), ("one", VALUE, ["a"] * 2 + ["b" * 300], []),
        ("one", VALUE, [f"h{n}" for n in range(65)], []), ("one", VALUE, ["ä.example"], []),
    ],
)  # fmt: skip
def test_what_cannot_be_a_secret_is_refused_by_name(
    tmp_path: Path, name: str, value: str, hosts: list[str], tools: list[str]
) -> None:
    async def work(secrets: Secrets) -> None:
        with pytest.raises(InvalidParams):
            await secrets.set(name, value, hosts=hosts, tools=tools)
        assert secrets.listed() == []

    with_secrets(tmp_path, work)


def test_the_key_is_in_the_keyring_where_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Kept()
    keyring.set_keyring(ring)
    made = keys.make_key(tmp_path, SystemClock().random_bytes)
    assert list(ring.kept.values()) == [base64.b64encode(made).decode()]
    assert list(tmp_path.iterdir()) == []
    assert keys.find_key(tmp_path) == made
    keyring.set_keyring(Locked())
    assert keys.find_key(tmp_path) is None
    other = keys.make_key(tmp_path, SystemClock().random_bytes)
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
    assert keys.find_key(tmp_path) == other != made
    with pytest.raises(SecretRefused):
        keys.make_key(tmp_path, SystemClock().random_bytes)  # never over another one
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert keys.find_key(tmp_path) == other
    (tmp_path / "secrets.key").write_text("no key")
    with pytest.raises(SecretRefused, match="it is no key"):
        keys.find_key(tmp_path)


def through(tmp_path: Path, arguments: dict[str, Any], *, hosts: list[str], policy: str = POLICY,
            also: str | None = None) -> tuple[str, Any, list[bytes], list[bytes]]:  # fmt: skip
    """A call with a secret of that name, to the control server."""

    async def work(secrets: Secrets) -> Any:
        await secrets.set("one", VALUE, hosts=hosts, tools=[])
        async with web() as control, web() as other:
            way = Way(lying("127.0.0.2"), policy, secrets)
            url = arguments.get("url", "").replace("OTHER", f"http://b.example:{other.port}")
            url = f"http://a.example:{control.port}{url}"
            status, said = await way.ask({**arguments, "url": url})
            heads = [head + body for head, body in zip(control.heads, control.bodies, strict=True)]
            return status, said, heads, list(other.heads)

    found: tuple[str, Any, list[bytes], list[bytes]] = with_secrets(tmp_path, work)
    return found


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"headers": {"Authorization": "Bearer secret:one"}}, f"Bearer {VALUE}"),
        ({"url": "/?key=secret:one&b=1"}, "/?key=the%20value%20that%20nobody%20sees%201&b=1"),
        ({"method": "POST", "body": '{"k": "secret:one"}'}, '{"k": "' + VALUE),
    ],
)
def test_a_value_is_put_in_for_the_host_it_is_bound_to(
    tmp_path: Path, arguments: dict[str, Any], sent: str
) -> None:
    status, _said, heads, _ = through(tmp_path, arguments, hosts=["a.example"])
    assert status == "completed"
    assert sent.encode() in heads[0]
    assert b"secret:one" not in heads[0]


@pytest.mark.parametrize("hosts", [["b.example"], ["x.a.example"], ["example"], [".a.example"]])
def test_no_other_host_gets_it_and_nothing_is_sent(tmp_path: Path, hosts: list[str]) -> None:
    headers = {"headers": {"Authorization": "Bearer secret:one"}}
    status, said, heads, _ = through(tmp_path, headers, hosts=hosts)
    assert (status, said["code"]) == ("failed", "secret_refused")
    assert heads == []


def test_a_redirect_takes_no_value_along(tmp_path: Path) -> None:
    """To another origin; in whatever header it was; whoever it is bound to."""
    for headers in ({"Authorization": "secret:one"}, {"X": "secret:one"}):
        _, _, heads, other = through(
            tmp_path, {"url": "/?to=OTHER/", "headers": headers}, hosts=["a.example", "b.example"]
        )
        assert VALUE.encode() in heads[0]
        assert len(other) == 1
        assert VALUE.encode() not in other[0]
    status, said, heads, other = through(
        tmp_path, {"url": "/?to=OTHER/", "headers": {"User-Agent": "secret:one"}},
        hosts=["a.example"],
    )  # fmt: skip
    assert (status, said["code"]) == ("failed", "secret_refused")
    assert other == []


def test_each_use_is_decided_about(tmp_path: Path) -> None:
    headers = {"headers": {"X": "secret:one"}}
    status, reason, heads, _ = through(tmp_path, headers, hosts=["a.example"], policy=OPEN_POLICY)
    assert status == "denied"
    assert "secret.use" in reason
    assert heads == []


def test_a_reference_is_written_nowhere_else(tmp_path: Path) -> None:
    """Not into a file, not to a program, not to a tool that would pass it on; masks nowhere."""
    from goclaw.core.records import Tool
    from goclaw.core.states import EffectClass
    from goclaw.tools.gate import Gate
    from goclaw.tools.registry import Registry

    class Writer:
        def __init__(self) -> None:
            self.written: list[Any] = []

        def tools(self) -> list[Tool]:
            schema = {"type": "object"}
            return [
                Tool(name, "builtin", "", schema, kind, "none")
                for name, kind in (
                    ("write", EffectClass.PROBEABLE), ("mcp", EffectClass.IRREVERSIBLE),
                    ("look", EffectClass.PURE),
                )
            ]  # fmt: skip

        async def run(self, tool: Tool, arguments: dict[str, Any], **_more: Any) -> Done:
            self.written.append(arguments)
            return Done(b"{}")

        async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> None:
            return None

    async def work(secrets: Secrets) -> None:
        kept = await secrets.set("one", VALUE, hosts=["a.example"], tools=[])
        way = Way(lying("127.0.0.2"), POLICY, secrets)
        source = Writer()
        gate = Gate(Registry([source]), way._decide, secrets=secrets)
        for text in ("secret:one", f"x secret:one#{kept.digest}", "secret:~jwt", "secret:~pypi"):
            for tool in ("write", "mcp"):
                call = await gate.call(TASK, SESSION, "direct", tool, {"text": text})
                done = await call.dispatch("k", asyncio.Event())
                assert done.failed
                assert b"written out as it is" in done.output
            call = await gate.call(TASK, SESSION, "direct", "look", {"text": text})
            assert not (await call.dispatch("k", asyncio.Event())).failed
        assert len(source.written) == 4
        assert VALUE not in str(source.written)
        call = await gate.call(TASK, SESSION, "direct", "write", {"text": "secret:nobody's, or so"})
        assert not (await call.dispatch("k", asyncio.Event())).failed
        status, said = await way.ask({"url": "http://a.example/", "body": "secret:~jwt"})
        assert (status, said["code"]) == ("failed", "invalid_params")

    with_secrets(tmp_path, work)


def test_a_decision_to_use_it_names_the_secret(tmp_path: Path) -> None:
    async def work(secrets: Secrets) -> None:
        await secrets.set("one", VALUE, hosts=["a.example"], tools=[])
        way = Way(lying("127.0.0.2"), POLICY, secrets)
        call = await way.gate.call(
            TASK, SESSION, "direct", "http", {"url": "http://a.example/", "body": "secret:one"}
        )
        uses = [one for one in call.decisions if one.action == "secret.use"]
        assert [(one.resource, one.effect) for one in uses] == [("one", Verdict.ALLOW)]

    with_secrets(tmp_path, work)


def test_the_errors_do_not_say_the_value(tmp_path: Path) -> None:
    async def work(secrets: Secrets) -> None:
        await secrets.set("one", VALUE + "\nx", hosts=["a.example"], tools=["http", "other"])
        async with web() as control:
            way = Way(lying("127.0.0.2"), POLICY, secrets)
            url = f"http://a.example:{control.port}/"
            status, said = await way.ask({"url": url, "headers": {"X": "secret:one"}})
            assert (status, said["code"]) == ("failed", "invalid_params")
            assert VALUE not in said["error"]
            assert control.heads == []
        for text in ("secret:one#" + "0" * 12, "secret:one"):
            with pytest.raises(GoclawError) as caught:
                secrets.revealed(text, tool="http", host="evil.example")
            assert VALUE not in str(caught.value)

    with_secrets(tmp_path, work)
