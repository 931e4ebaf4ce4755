"""Proves the listeners: modes, tokens, bad first words, bad input, shutdown.

Owns the raw sockets. Not in here: the judgement of single headers (``test_gateway_access.py``).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from wire_support import OPTED_IN, TOKEN, House, opened, text, wire

from goclaw.core import limits
from goclaw.core.errors import ListenerFailed

if TYPE_CHECKING:
    from pathlib import Path


@wire()
@pytest.mark.req("A-9")
async def test_the_socket_is_the_users_alone(house: House) -> None:
    mode = house.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@wire()
@pytest.mark.req("A-9")
async def test_a_foreign_user_is_turned_away(house: House) -> None:
    original = os.geteuid
    os.geteuid = lambda: original() + 1
    try:
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        async with asyncio.timeout(limits.HANDSHAKE_MS_MAX / 2000):
            assert await reader.read() == b""
        writer.close()
    except ConnectionResetError:
        pass
    finally:
        os.geteuid = original
    assert house.gateway.connections == 0


async def status_of(house: House, target: str, headers: dict[str, str]) -> int:
    """The HTTP status that an upgrade gets."""
    try:
        link = await connect(f"ws://127.0.0.1:{house.port}{target}", additional_headers=headers)
        response = link.response
        await link.close()
    except InvalidStatus as refused:
        response = refused.response
    assert response is not None
    assert "Server" not in response.headers
    assert TOKEN.encode() not in (response.body or b"")
    if response.status_code == 101:
        assert response.headers["Acp-Connection-Id"]
    if response.status_code == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    return response.status_code


@wire()
@pytest.mark.req("A-9", "A-12")
async def test_upgrades(house: House) -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    for target, headers, status in (
        ("/ws", good, 101),
        ("/acp", good, 101),
        ("/ws", {}, 401),
        ("/ws", {"Authorization": "Bearer wrong"}, 401),
        (f"/ws?token={TOKEN}", good, 400),
        (f"/ws?token={TOKEN}", {}, 400),
        ("/ws", {**good, "Origin": "https://evil.example"}, 403),
        ("/elsewhere", good, 404),
        ("/ws", good, 101),
    ):
        assert await status_of(house, target, headers) == status, (target, status)


@pytest.mark.req("A-9")
def test_the_token_is_never_logged(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with opened(home) as house:
            for target in ("/ws", f"/ws?token={TOKEN}", f"/{TOKEN}"):
                await status_of(house, target, {"Authorization": f"Bearer {TOKEN}"})
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(f"GARBAGE /{TOKEN}\r\n\r\n".encode())
            await reader.read()
            writer.close()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main(), debug=True)
    # the client of this test logs what it sends; the daemon's own lines are goclaw's
    said = [r for r in caplog.records if r.name != "websockets.client"]
    assert any("refused" in r.getMessage() for r in said)
    assert not [r for r in said if TOKEN in r.getMessage() or TOKEN in str(r.__dict__)]


# -- the first word ----------------------------------------------------------------------------


@wire()
@pytest.mark.req("W-1", "W-5", "W-9")
async def test_the_first_word_must_be_initialize(house: House) -> None:
    for method, code in (("session/new", -32600), ("_goclaw/system/status", -31008)):
        link = await house.ws_link()
        await link.send(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method}))
        answer = orjson.loads(await link.receive() or b"")
        assert answer["error"]["code"] == code
        with pytest.raises(ConnectionClosed):
            await link.socket.recv()
        assert link.socket.close_code == 1002
    link = await house.ws_link()
    await link.send(b'{"jsonrpc":"2.0","method":"session/cancel"}')
    assert await link.receive() is None
    assert link.socket.close_code == 1002


@wire()
@pytest.mark.req("W-1", "W-5")
async def test_on_lines_the_connection_lives(house: House) -> None:
    reader, writer = await asyncio.open_unix_connection(str(house.socket))
    for method, code in (("session/new", -32600), ("_goclaw/system/status", -31008)):
        writer.write(orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method}) + b"\n")
        assert orjson.loads(await reader.readline())["error"]["code"] == code
    hello = {"jsonrpc": "2.0", "id": 2, "method": "initialize", "params": {"protocolVersion": 7}}
    writer.write(orjson.dumps(hello) + b"\n")
    assert orjson.loads(await reader.readline())["result"]["protocolVersion"] == 1
    writer.write(orjson.dumps({**hello, "id": 3}) + b"\n")
    assert orjson.loads(await reader.readline())["error"]["code"] == -32600
    writer.close()


BAD: list[tuple[bytes, int]] = [
    (b"nonsense", -32700),
    (b"\xff\xfe", -32700),
    (b'{"a":1,"a":2}', -32700),
    (b"[" * 300 + b"]" * 300, -32700),
    (b"7", -32600),
    (b'"x"', -32600),
    (b"null", -32600),
    (b"[]", -32600),
    (b'[{"jsonrpc":"2.0","id":1,"method":"session/list"}]', -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"session/list"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"session/list"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"session/list","params":7}', -32600),
]


def answered(request_id: object, message: dict[str, Any]) -> bool:
    return message.get("id", 0.5) == request_id and "result" in message


@wire()
@pytest.mark.req("W-1", "A-14")
async def test_bad_input_never_ends_a_connection(house: House) -> None:
    for client in (await house.unix(), await house.ws()):
        for data, code in BAD:
            seen = len(client.messages)
            await client.link.send(data)
            await client.call("session/list")
            assert client.messages[seen]["error"]["code"] == code, data
        for request_id in (None, "a", 0, -5):
            await client.send({"id": request_id, "method": "session/list", "params": None})
            await client.wait_for(functools.partial(answered, request_id))
        await client.link.send(b'{"jsonrpc":"2.0","id":%d,"method":"session/list"}' % (1 << 70))
        await client.call("session/list")
        assert any(b'"id":%d' % (1 << 70) in data for data in client.raw)
        # answers to nothing, and a cancel of nothing
        await client.send({"id": 99, "result": None})
        await client.notify("$/cancel_request", {"requestId": 99})
        assert (await client.call("session/list"))["sessions"] == []


@wire()
@pytest.mark.req("W-1", "W-5")
async def test_a_message_that_is_too_large(house: House) -> None:
    huge = b'"' + b"x" * limits.FRAME_BYTES_MAX + b'"'
    lines = await house.unix()
    await lines.link.send(huge)
    refused = await lines.wait_for(lambda m: "error" in m)
    assert refused["error"]["code"] == -31017
    assert await lines.call("session/list")
    frames = await house.ws()
    await frames.link.send(huge)
    await frames.until_closed()
    assert frames.link.socket.close_code == 1009


@wire()
@pytest.mark.req("W-1")
async def test_a_prompt_of_megabytes(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    prompt = text("say:" + "x" * 3_000_000)
    result = await client.call("session/prompt", {"sessionId": session, "prompt": prompt})
    assert result["stopReason"] == "end_turn"


@wire()
@pytest.mark.req("W-1", "I-5")
async def test_too_many_requests_at_once_are_refused_by_name(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    requests = [await client.prompt(session, "wait:g") for _ in range(limits.REQUESTS_MAX + 1)]
    error = (await client.answer(requests[-1]))["error"]
    assert error["code"] == -31012
    await client.notify("session/cancel", {"sessionId": session})
    for request in requests[:-1]:
        assert (await client.answer(request))["result"]["stopReason"] == "cancelled"


# -- listeners ---------------------------------------------------------------------------------


@pytest.mark.req("A-9")
def test_a_dead_socket_is_replaced(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "s.sock"))  # what a killed daemon leaves behind

    async def main() -> None:
        async with opened(home) as house:
            assert (await house.unix()).messages

    asyncio.run(main())


@wire()
@pytest.mark.req("A-9")
async def test_a_place_that_cannot_be_is_named(house: House) -> None:
    for place in (house.socket.parent / "no" / "s", house.socket.parent / ("x" * 120)):
        with pytest.raises(ListenerFailed) as failed:
            await house.gateway.serve_unix(place)
        assert failed.value.exit == 6
    with pytest.raises(ListenerFailed):
        await house.gateway.serve_ws("127.0.0.1", house.port)


@wire()
@pytest.mark.req("R-3", "W-9")
async def test_shutdown_is_told_and_sends_what_there_is(house: House) -> None:
    lines, frames = await house.unix(**OPTED_IN), await house.ws(**OPTED_IN)
    vanilla = await house.ws()
    session = await lines.new_session()
    for client in (frames, vanilla):
        await client.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    await lines.prompt(session, "bulk:300x2000 wait:g")
    while not house.gates:
        await vanilla.call("session/list")
    head = (await house.engine.intake.session(session)).head
    await house.gateway.announce_shutdown(3)
    await house.gateway.close()
    await house.gateway.close()
    for client in (lines, frames):
        await client.until_closed()
        told = await client.wait_for(lambda m: m.get("method") == "_goclaw/shutdown")
        assert told["params"] == {"graceSeconds": 3}
        assert client.event_ids(session)[-1] == head
    await vanilla.until_closed()
    assert "_goclaw" not in str({m.get("method") for m in vanilla.messages})
    assert vanilla.link.socket.close_code == 1001
    assert vanilla.link.socket.close_reason == "goclaw:shutdown"
    assert not house.socket.exists()
    assert house.gateway.connections == 0


@pytest.mark.req("S-7")
@wire()
async def test_opted_in_clients_are_told_how_the_disk_does(house: House) -> None:
    lines, vanilla = await house.unix(**OPTED_IN), await house.ws()
    session = await lines.new_session()
    database = house.engine.database
    database.on_trouble = house.gateway.announce_storage
    database.fail_next_commit(after=False)
    await lines.prompt(session, "say:one")
    told = await lines.wait_for(lambda m: m.get("method") == "_goclaw/storage")
    assert told["params"] == {"ok": False, "message": "a test asked for this failure"}
    late = await house.ws(**OPTED_IN)
    assert (await late.wait_for(lambda m: m.get("method") == "_goclaw/storage")) == told
    await lines.prompt(session, "say:two")
    told = await lines.wait_for(
        lambda m: m.get("method") == "_goclaw/storage" and m["params"]["ok"]
    )
    assert told["params"] == {"ok": True, "message": ""}
    assert "_goclaw/storage" not in {m.get("method") for m in vanilla.messages}
