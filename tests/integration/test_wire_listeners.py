"""Attacks the listeners from outside, with real sockets and programs: descent, scopes, rotation,
throttling, floods.

Owns the attackers. Not in here: single headers (``test_gateway_access.py``), ordinary upgrades
(``test_wire_access.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from wire_support import NEXT_TOKEN, OPTED_IN, TOKEN, Client, Frames, House, opened, text, wire

from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.gateway import descent, executors, handlers, operators, server, work
from goclaw.gateway.scopes import scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INTRUDER = Path(__file__).with_name("intruder.py")
METHODS = handlers.METHODS | work.METHODS | operators.METHODS | executors.METHODS
HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": 1}}


@pytest.fixture
def adopting() -> Iterator[None]:
    """This process is a daemon that adopts orphans; and no more afterwards."""
    descent.adopt_orphans()
    yield
    ctypes.CDLL(None).prctl(descent._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


async def intruder(task: dict[str, Any], *options: str) -> Any:
    """What a program that this process has started is told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(INTRUDER), *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(task).encode())
    process.stdin.close()
    said = await process.stdout.read()
    await process.wait()
    return json.loads(said)


def children() -> set[int]:
    """Of this process, the dead that nobody waited for among them."""
    return {pid for pid, parent in descent._parents().items() if parent == os.getpid()}


async def buried(others: set[int]) -> None:
    """Wait until the adopted orphans are waited for, as a daemon does; ``others`` may stay."""
    orphans = descent.Orphans()

    def gone() -> bool:
        orphans.bury()
        return children() <= others

    await until(gone)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.to_thread(lambda: None)


# -- programs that the daemon started -----------------------------------------------------


@pytest.mark.req("A-9", "A-12")
@pytest.mark.parametrize("options", [(), ("--orphan",)], ids=["child", "orphan"])
@pytest.mark.usefixtures("adopting")
def test_what_the_daemon_started_gets_nothing(home: Path, options: tuple[str, ...]) -> None:
    others = children()  # fixtures that outlive a test have theirs

    async def main() -> None:
        async with opened(home) as house:
            owner = await house.unix(**OPTED_IN)
            session = await owner.new_session()
            prompt = await owner.prompt(session, "wait:g")
            params = {"sessionId": session, "approvalId": "a", "optionId": "allow", "taskId": "t"}
            asks = [
                {"jsonrpc": "2.0", "id": n, "method": method, "params": params}
                for n, method in enumerate(sorted(set(METHODS) - {"initialize"}), 1)
            ]
            cancel = {"jsonrpc": "2.0", "method": "session/cancel", "params": params}
            task = {"socket": str(house.socket), "messages": [HELLO, cancel, *asks]}
            first, *answers = await intruder(task, *options)
            assert first["result"]["protocolVersion"] == 1
            assert len(answers) == len(asks)
            for ask, answer in zip(asks, answers, strict=True):
                assert answer["error"]["code"] == -31013, ask
                assert answer["error"]["data"]["scope"] == scope_of(str(ask["method"]))
            over_port = {"port": house.port, "token": TOKEN}
            assert await intruder(over_port, *options) == 403
            await buried(others)
            house.open_gate("g")  # nothing was cancelled
            assert (await owner.answer(prompt))["result"]["stopReason"] == "end_turn"

    asyncio.run(main())


@pytest.mark.req("A-9", "A-10")
@pytest.mark.usefixtures("adopting")
def test_it_gets_what_its_attempt_may(home: Path) -> None:
    async def main() -> None:
        async with opened(home) as house:
            owner = await house.unix(**OPTED_IN)
            session = await owner.new_session()
            await owner.call("_goclaw/task/submit", {"sessionId": session, "pool": "p"})
            (task,) = (await owner.call("_goclaw/worker/claim", {"pool": "p", "max": 1}))["tasks"]
            shown = {"goclaw": {"version": 1, "attemptToken": task["attemptToken"]}}
            hello = {"protocolVersion": 1, "clientCapabilities": {"_meta": shown}}
            beat = {"jsonrpc": "2.0", "id": 1, "method": "_goclaw/worker/heartbeat", "params": {}}
            stop = {**beat, "id": 2, "method": "_goclaw/admin/shutdown"}
            messages = [{**HELLO, "params": hello}, beat, stop]
            answers = await intruder({"socket": str(house.socket), "messages": messages})
            by_id = {answer["id"]: answer for answer in answers}
            assert by_id[1]["result"]["leaseMs"] > 0
            assert by_id[2]["error"]["data"]["scope"] == "admin"
            assert not house.stops
            token = task["attemptToken"]
            assert await intruder({"port": house.port, "token": token}) == 101
            figures = {"port": house.port, "token": token, "path": "/metrics"}
            assert await intruder(figures) == 403

    asyncio.run(main())


@pytest.mark.req("A-9")
def test_a_stranger_with_the_users_id_is_the_user(home: Path) -> None:
    """What was not started by the daemon is the user's own, while the daemon has children, too."""
    # A whole daemon that an earlier test ran in this process made it the one that adopts orphans.
    ctypes.CDLL(None).prctl(descent._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    async def main() -> None:
        async with opened(home) as house:
            sleeper = await asyncio.create_subprocess_exec("sleep", "60")
            try:
                status = {**HELLO, "id": 1, "method": "_goclaw/system/status", "params": {}}
                task = {"socket": str(house.socket), "messages": [HELLO, status]}
                # Nobody adopts here: the intruder's parent ends, and it is somebody else's child.
                _, answer = await intruder(task, "--orphan")
                assert answer["result"]["ready"]
                over_port = {"port": house.port, "token": TOKEN}
                assert await intruder(over_port, "--orphan") == 101
                assert (await (await house.unix()).call("session/list"))["sessions"] == []
                assert await (await house.ws()).call("session/list")
            finally:
                sleeper.kill()
                await sleeper.wait()

    asyncio.run(main())


# -- rotation ----------------------------------------------------------------------------


@wire()
@pytest.mark.req("A-12", "A-9", "A-10")
async def test_a_rotated_token_is_dead_at_once(house: House) -> None:
    owner = await house.unix(**OPTED_IN)
    session = await owner.new_session()
    thief, other = await house.ws(**OPTED_IN), await house.ws()
    prompt = await thief.prompt(session, "wait:g say:on")
    await owner.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await owner.event("task.running")
    other_session = await owner.new_session()
    await owner.call("_goclaw/task/submit", {"sessionId": other_session, "pool": "p"})
    (task,) = (await owner.call("_goclaw/worker/claim", {"pool": "p", "max": 1}))["tasks"]
    assert await owner.call("_goclaw/admin/token", {"verb": "rotate"}) == {}
    for client in (thief, other):
        await client.until_closed()
        assert client.link.socket.close_code == 4401
        assert client.link.socket.close_reason == "goclaw:token rotated"
    for token in (TOKEN, task["attemptToken"]):
        with pytest.raises(InvalidStatus) as refused:
            await connect(
                f"ws://127.0.0.1:{house.port}/ws",
                additional_headers={"Authorization": f"Bearer {token}"},
            )
        assert refused.value.response.status_code == 401
    back = Client(Frames(await connect(
        f"ws://127.0.0.1:{house.port}/ws",
        additional_headers={"Authorization": f"Bearer {NEXT_TOKEN}"},
    )))  # fmt: skip
    house.clients.append(back)
    await back.initialize()
    house.open_gate("g")  # the turn belongs to its session, not to the token
    ended = await owner.event("run.ended")
    assert ended["state"] == "SUCCEEDED"
    assert not [m for m in thief.messages if m.get("id") == prompt]


@wire(loops=["uvloop"])
@pytest.mark.req("A-12")
async def test_who_rotates_over_the_network_is_answered_and_cut(house: House) -> None:
    client = await house.ws()
    assert await client.call("_goclaw/admin/token", {"verb": "rotate"}) == {}
    await client.until_closed()
    assert client.link.socket.close_code == 4401


@wire()
@pytest.mark.req("A-12")
async def test_a_token_that_dies_between_its_judgement_and_its_use(house: House) -> None:
    """The upgrade was let in; while the policy of descent was looked up, the token was rotated."""
    owner = await house.unix()
    loop = asyncio.get_running_loop()
    original = server._is_ours

    def slow(connection: Any) -> bool:
        rotate = owner.call("_goclaw/admin/token", {"verb": "rotate"})
        asyncio.run_coroutine_threadsafe(rotate, loop).result(20)
        return original(connection)

    server._is_ours = slow
    try:
        link = await house.ws_link()
    finally:
        server._is_ours = original
    await link.send(orjson.dumps(HELLO))
    assert await link.receive() is None
    assert link.socket.close_code == 4401


# -- wrong tokens ------------------------------------------------------------------------


def upgrade(house: House, token: str) -> bytes:
    return (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{house.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


async def knock(house: House, token: str) -> tuple[int, int]:
    """The status of an upgrade, and how long it took in milliseconds."""
    clock = SystemClock()
    began = clock.mono_ms()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(upgrade(house, token))
    line = await reader.readline()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return int(line.split()[1]), clock.mono_ms() - began


@wire(loops=["uvloop"])
@pytest.mark.req("A-12")
async def test_wrong_tokens_are_slowed_down_and_nobody_is_locked_out(house: House) -> None:
    for count in range(4):
        status, took_ms = await knock(house, "wrong")
        assert status == 401
        assert took_ms >= (limits.AUTH_DELAY_MS_MIN << count - 1 if count else 0)
    status, took_ms = await knock(house, TOKEN)
    assert (status, took_ms >= limits.AUTH_DELAY_MS_MIN << 3) == (101, True)
    # a right token clears the address
    await knock(house, "wrong")
    assert house.gateway._throttle.owed_ms("127.0.0.1") == limits.AUTH_DELAY_MS_MIN
    # the Unix socket is nobody's address
    assert (await (await house.unix()).call("session/list"))["sessions"] == []


@wire(loops=["uvloop"])
@pytest.mark.req("A-12")
async def test_who_does_not_wait_is_not_heard(house: House) -> None:
    for _ in range(3):
        await knock(house, "wrong")
    throttle = house.gateway._throttle
    owed_ms = throttle.owed_ms("127.0.0.1")
    with socket.create_connection(("127.0.0.1", house.port)) as hasty:
        hasty.sendall(upgrade(house, TOKEN))  # right, and gone before its turn
        await until(lambda: bool(house.gateway._handshaking))
    await until(lambda: not house.gateway._handshaking)
    await knock(house, "wrong")
    assert throttle.owed_ms("127.0.0.1") == 2 * owed_ms


# -- I-5: floods -------------------------------------------------------------------------------


@wire()
@pytest.mark.req("A-9", "I-5")
async def test_a_flood_of_silent_connections_is_turned_away(house: House) -> None:
    limit, limits_max = 20, limits.HANDSHAKES_MAX
    limits.HANDSHAKES_MAX = limit  # type: ignore[misc]
    silent: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        friend = await house.ws()
        silent += [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(limit)]
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(limits.HANDSHAKE_MS_MAX / 2000):
                assert await reader.read() == b""
        writer.close()
        assert (await friend.call("session/list"))["sessions"] == []
        silent.pop()[1].close()
        await until(lambda: len(house.gateway._handshaking) < limit)
        assert await knock(house, TOKEN)
    finally:
        limits.HANDSHAKES_MAX = limits_max  # type: ignore[misc]
        for _, writer in silent:
            writer.close()
    await until(lambda: not house.gateway._handshaking)


@wire()
@pytest.mark.req("A-9", "I-5")
async def test_more_connections_than_there_may_be(house: House) -> None:
    limits_max = limits.CONNECTIONS_MAX
    limits.CONNECTIONS_MAX = 3  # type: ignore[misc]
    try:
        friends = [await house.unix(), await house.ws(), await house.unix()]
        assert (await knock(house, TOKEN))[0] == 503
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        for friend in friends:
            assert (await friend.call("session/list"))["sessions"] == []
        await friends[0].close()
        await until(lambda: house.gateway.connections < 3)
        assert (await knock(house, TOKEN))[0] == 101
    finally:
        limits.CONNECTIONS_MAX = limits_max  # type: ignore[misc]


@pytest.mark.req("A-9", "I-5", "W-1")
def test_who_says_nothing_is_let_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a handshake has its time: TCP without an upgrade, an upgrade or a line without
    initialize."""
    monkeypatch.setattr(limits, "HANDSHAKE_MS_MAX", 200)

    async def main() -> None:
        async with opened(home) as house:
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            upgraded = await house.ws_link()
            lines = await house.unix_link()
            async with asyncio.timeout(20):
                assert (await reader.read())[:12] in (b"", b"HTTP/1.1 400")
                assert await upgraded.receive() is None
                assert await lines.receive() is None
            assert upgraded.socket.close_code == 1002
            writer.close()
            await lines.close()

    asyncio.run(main())


@wire()
@pytest.mark.req("A-14", "I-5")
async def test_depth_and_size_are_bounded_on_both_ways(house: House) -> None:
    for client in (await house.unix(), await house.ws()):
        session = await client.new_session()
        deep: Any = "x"
        for _ in range(limits.JSON_DEPTH_MAX):
            deep = [deep]
        seen = len(client.messages)
        message = {"jsonrpc": "2.0", "id": 77, "method": "session/list", "params": {"a": deep}}
        await client.link.send(json.dumps(message).encode())
        await client.call("session/list")
        assert client.messages[seen]["error"]["code"] == -32700
        assert (await client.turn(session, text("say:hi")[0]["text"]))["stopReason"] == "end_turn"
