"""A server for the replay bench, as a process of its own: goclaw's gateway, or picows.

Usage: replay_server.py goclaw HOME EVENTS cold|warm, or replay_server.py picows EVENTS. Prints one
JSON line {"port", "token", "session"} when ready.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import orjson
import uvloop

TEXT = 'The quick brown fox jumps; "quoted" and \u00fcnicode text.'
UPDATE = {
    "sessionUpdate": "agent_message_chunk",
    "messageId": "message_01k6zq3v8x2m4n6p8r0s2t4v6w",
    "content": {"type": "text", "text": TEXT},
}


class Idle:
    """A listener that keeps a ring alive."""

    def committed(self, sid: int, head: int) -> None: ...

    def lagging(self, sid: int, event_id: int, frame_bytes: int) -> None: ...


class Nothing:
    """A runner for an engine that gets no work."""

    async def run_attempt(self, attempt: Any) -> Any:
        raise AssertionError(attempt)


async def gateway_on(home: Path, *, ring_bytes: int) -> tuple[Any, Any, str, Any]:
    """A gateway without listeners, on an engine without work: database, gateway, token and a
    session."""
    from goclaw.brains import check_brain
    from goclaw.core.clock import SystemClock
    from goclaw.core.config import load
    from goclaw.core.home import Home
    from goclaw.engine import Engine
    from goclaw.engine.audit import Audit
    from goclaw.engine.policies import Policies
    from goclaw.gateway import Gateway, Services
    from goclaw.gateway.access import BearerToken
    from goclaw.policy import default
    from goclaw.store import Secrets, open_database

    clock = SystemClock()
    place = Home.locate(str(home), {})
    place.ensure(default.TEXT, clock.random_bytes)
    config = load(home, {})
    rings = dataclasses.replace(config.events, ring_bytes=ring_bytes, ring_bytes_total=256 << 20)
    config = dataclasses.replace(config, events=rings)
    database = open_database(home)
    policies = Policies(clock, database, place)
    engine = Engine(
        database, clock, config, Nothing(), daemon_boot="bench",
        policy_version=lambda: policies.version,
    )  # fmt: skip
    await engine.start()
    await policies.load()
    session = await engine.intake.create_session(
        cwd="/", roots=["/"], brain="direct", interactive=False
    )

    async def status() -> dict[str, Any]:
        return {}

    async def replay(_run_id: str) -> dict[str, Any]:
        return {}

    async def page(_behind: int) -> bytes:
        return b""

    gateway = Gateway(
        Services(
            engine=engine, config=config, decide=policies.decide, check_brain=check_brain,
            daemon_id="d", boot_id="b",
            version="0", commands=lambda _session: [], status=status,
            policies=policies, system_sid=1, secrets=Secrets(database, clock),
            audit=Audit(database, clock, home / "audit.jsonl"),
            skills=list, request_stop=lambda: None,
            on_session=lambda _sid: None, replay=replay, backup=status, metrics=page,
            timeline=replay,
            is_ready=lambda: True,
            token=BearerToken(place.token(), place.token),
        )
    )  # fmt: skip
    return database, gateway, place.token(), session


async def serve_goclaw(home: Path, events: int, *, warm: bool) -> None:
    from goclaw.daemon import settle_memory

    database, gateway, token, session = await gateway_on(home, ring_bytes=128 << 20)
    if warm:
        gateway._services.engine.hub.watch(session.sid, session.session_id, 0, Idle())
    payload, now = orjson.dumps(UPDATE), 1_700_000_000_000
    part = database.bind(
        "session_event", sid=session.sid, kind=0, type="update", payload=payload, now=now
    )
    for start in range(0, events, 100):
        await database.apply(*[part] * min(100, events - start))

    port = await gateway.serve_ws("127.0.0.1", 0)
    settle_memory()
    ready = {"port": port, "token": token, "session": session.session_id}
    print(json.dumps(ready), flush=True)
    await asyncio.Event().wait()


async def serve_picows(events: int) -> None:
    import picows

    envelope: dict[str, Any] = {
        "jsonrpc": "2.0",
        "method": "session/update",
        "params": {
            "sessionId": "session_01k6zq3v8x2m4n6p8r0s2t4v6w",
            "update": UPDATE,
            "_meta": {"goclaw": {"eventId": 0, "at": 1_700_000_000_000}},
        },
    }

    class Listener(picows.WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type != picows.WSMsgType.TEXT:
                return
            for number in range(1, events + 1):
                envelope["params"]["_meta"]["goclaw"]["eventId"] = number
                transport.send(picows.WSMsgType.TEXT, orjson.dumps(envelope))

    server = await picows.ws_create_server(lambda _request: Listener(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "token": "", "session": ""}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "picows":
        uvloop.run(serve_picows(int(sys.argv[2])))
    else:
        uvloop.run(serve_goclaw(Path(sys.argv[2]), int(sys.argv[3]), warm=sys.argv[4] == "warm"))
