"""A daemon that other machines reach, attacked over TLS; the token of a home, rotated, and nowhere
to be found.

Owns a real daemon with a certificate. Not in here: what single headers mean, the in-process
attacks (``test_wire_listeners.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from roof_support import DEADLINE_MS, World, script_file, world
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(__file__).parents[1] / "vectors" / "tls"
NAME = "goclaw.test"
CHUNKS, CHUNK = 40, 50_000


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


def test_a_wide_open_daemon_is_refused(place: World) -> None:
    refused = place.goclaw("serve", "--listen", "0.0.0.0:0", code=3)
    assert "listen.beyond_loopback" in refused.stderr
    refused = place.goclaw("serve", "--listen", "0.0.0.0:0", "--beyond-loopback", code=3)
    assert "listen.tls_certificate" in refused.stderr


@pytest.mark.req("A-9", "A-12")
def test_over_tls_and_over_a_rotation(place: World) -> None:
    environ = settings(place)
    script = script_file(place.cwd, [{"say": "x" * CHUNKS * CHUNK, "chunks": CHUNKS}])
    place.serve(
        "--listen", "0.0.0.0:0", "--beyond-loopback", "--brain", script, **environ
    )  # fmt: skip
    record = place.home.read_daemon_json()
    assert record is not None
    assert record.ws is not None
    assert record.ws.startswith(f"wss://{NAME}:")
    port = int(record.ws.rpartition(":")[2].partition("/")[0])
    old = place.home.token()
    # the token in a URL, and as anything else that might be written down
    for target in (f"/ws?token={old}", f"/{old}", f"/ws?x={old[:8]}"):
        assert asyncio.run(status_of(port, old, target)) == 400
    plain(port, f"GET /ws?token={old} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    assert asyncio.run(status_of(port, old, host="evil.example")) == 403
    assert asyncio.run(status_of(port, old, origin="https://evil.example")) == 403
    assert asyncio.run(status_of(port, old, origin=f"https://{NAME}")) == 101
    asyncio.run(live_and_cut(place, port, old))
    new = place.home.token()
    assert new != old
    assert place.home.auth_token.stat().st_mode & 0o777 == 0o600
    assert asyncio.run(status_of(port, old)) == 401
    assert asyncio.run(status_of(port, new)) == 101
    place.end()
    assert not written(place, old)
    assert written(place, new) == [str(place.home.auth_token)]


def test_without_a_daemon_the_token_is_rotated_too(place: World) -> None:
    place.goclaw("run", "/word-count nothing", code=None)
    old = place.home.token()
    said = place.goclaw("token", "rotate").stdout
    new = place.home.token()
    assert new != old
    assert new not in said
    assert not written(place, old)


def settings(place: World) -> dict[str, str]:
    """The home exists and holds a certificate."""
    place.home.root.mkdir(mode=0o700)
    for name in ("certificate.pem", "key.pem"):
        shutil.copyfile(VECTORS / name, place.home.root / name)
        (place.home.root / name).chmod(0o600)
    return {
        "GOCLAW_LISTEN_TLS_CERTIFICATE": "certificate.pem",
        "GOCLAW_LISTEN_TLS_KEY": "key.pem",
        "GOCLAW_LISTEN_NAMES": NAME,
    }


def dial(port: int, token: str, **options: Any) -> Any:
    context = ssl.create_default_context(cafile=str(VECTORS / "certificate.pem"))
    target = options.pop("target", "/ws")
    headers = {"Authorization": f"Bearer {token}"}
    return connect(
        f"wss://{options.pop('name', NAME)}:{port}{target}", host="127.0.0.1", port=port,
        ssl=context, server_hostname=NAME, additional_headers=headers, max_size=None, **options,
    )  # fmt: skip


async def status_of(
    port: int, token: str, target: str = "/ws", host: str = NAME, origin: Any = None
) -> int:
    try:
        async with dial(port, token, target=target, name=host, origin=origin):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def plain(port: int, words: bytes) -> None:
    """Words without TLS get nothing but an end."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_MS / 1000) as connection:
        connection.sendall(words)
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in connection.recv(100)


async def live_and_cut(place: World, port: int, token: str) -> None:
    """Megabytes of ready-made frames cross TLS whole; then the token dies."""
    async with dial(port, token) as link:

        async def call(number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            await link.send(orjson.dumps(message), text=True)
            while True:
                answer = orjson.loads(await link.recv())
                if answer.get("id") == number:
                    result: dict[str, Any] = answer["result"]
                    return result
                update = answer.get("params", {}).get("update", {})
                if update.get("sessionUpdate") == "agent_message_chunk":
                    said.append(update["content"]["text"])

        said: list[str] = []
        await call(1, "initialize", {"protocolVersion": 1})
        session = await call(2, "session/new", {"cwd": str(place.cwd), "mcpServers": []})
        prompt = [{"type": "text", "text": "go"}]
        await call(3, "session/prompt", {"sessionId": session["sessionId"], "prompt": prompt})
        assert len("".join(said)) == CHUNKS * CHUNK
        rotated = await asyncio.to_thread(place.goclaw, "token", "rotate")
        assert token not in rotated.stdout
        with contextlib.suppress(ConnectionClosedError):
            async for _ in link:
                pass
        assert (link.close_code, link.close_reason) == (4401, "goclaw:token rotated")


def written(place: World, token: str) -> list[str]:
    """Every file of the home that holds the token, and what the daemon printed."""
    found = []
    for folder, _, names in os.walk(place.home.root):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and token.encode() in path.read_bytes():
                found.append(str(path))
    for child in place.children:
        if child.stdout is not None and not child.stdout.closed and child.poll() is not None:
            assert token not in child.stdout.read()
    return found
