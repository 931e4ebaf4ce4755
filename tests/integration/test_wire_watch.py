"""Proves what those see who watch the daemon: the latest state, seldom, never an old one last.

Owns nothing but the tests. Not in here: events, which are never left out (``test_wire_replay.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_wire_slow import small_unix
from wire_support import OPTED_IN, Client, House, wire

from goclaw.core import limits


def pictures(client: Client) -> list[dict[str, Any]]:
    return [m["params"] for m in client.messages if m.get("method") == "_goclaw/system/state"]


async def picture(client: Client, **wanted: Any) -> dict[str, Any]:
    """The first one whose fields hold this, past or to come."""

    def fits(message: dict[str, Any]) -> bool:
        if message.get("method") != "_goclaw/system/state":
            return False
        shown = message["params"]
        return all(shown.get(name, {}) == shown.get(name, {}) | part
                   for name, part in wanted.items())  # fmt: skip

    found: dict[str, Any] = (await client.wait_for(fits))["params"]
    return found


@wire()
@pytest.mark.req("W-4", "O-3")
async def test_the_present_state_then_what_becomes_of_it(house: House) -> None:
    client, watcher = await house.unix(), await house.ws(**OPTED_IN)
    calm = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await calm.call("_goclaw/system/watch", {"fields": ["health"], "minIntervalMs": 100})
    params = {"minIntervalMs": limits.WATCH_MS_MIN}
    assert await watcher.call("_goclaw/system/watch", params) == {}
    first = await picture(watcher)
    assert first["lanes"] == {"size": house.engine.config.queue.lanes, "busy": 0}
    assert first["queue"]["sessions"] == []
    assert first["health"] == {
        "accepting": True, "storage": {"ok": True, "message": ""}, "connections": 3,
    }  # fmt: skip
    asked = [await client.prompt(session, "wait:g"), await client.prompt(session, "hello")]
    busy = await picture(watcher, lanes={"busy": 1})
    busy = await picture(
        watcher, queue={"sessions": [{"sessionId": session, "states": {"QUEUED": 1, "RUNNING": 1}}]}
    )
    assert (busy["queue"]["states"]["RUNNING"], busy["queue"]["states"]["QUEUED"]) == (1, 1)
    house.open_gate("g")
    for request in asked:
        await client.answer(request)
    # the last picture is of the end, though a lane is free a moment behind its commit
    async with asyncio.timeout(10):
        while pictures(watcher)[-1]["lanes"]["busy"] or pictures(watcher)[-1]["queue"]["sessions"]:
            await watcher.call("session/list")
    assert set(pictures(watcher)[-1]["queue"]["states"].values()) == {0}
    assert len(pictures(calm)) == 1  # nothing of it has changed


@wire()
@pytest.mark.req("W-4", "I-5")
async def test_pictures_are_conflated(house: House) -> None:
    client, watcher = await house.unix(), await house.unix(**OPTED_IN)
    await watcher.call("_goclaw/system/watch", {"minIntervalMs": limits.WATCH_MS_MAX})
    await picture(watcher)
    session = await client.new_session()
    for n in range(20):
        await client.turn(session, f"hello {n}")
    await watcher.call("_goclaw/system/status")
    assert len(pictures(watcher)) == 1
    # another watch takes its place, and tells at once
    await watcher.call("_goclaw/system/watch", {"fields": ["lanes"]})
    await watcher.wait_for(lambda m: "lanes" in m.get("params", {}) and "queue" not in m["params"])


@wire()
@pytest.mark.req("W-4", "W-9")
async def test_a_full_socket_gets_the_latest_when_it_reads_again(house: House) -> None:
    busy, stuck = await house.unix(), await small_unix(house)
    session = await busy.new_session()
    await stuck.call("_goclaw/session/subscribe", {"sessionId": session, "mode": "latest"})
    await stuck.call("_goclaw/system/watch", {"minIntervalMs": limits.WATCH_MS_MIN})
    await picture(stuck)
    await stuck.stop_reading()
    await busy.turn(session, "bulk:100x10000")  # its transport is full
    request = await busy.prompt(session, "wait:g")
    while not house.runner.gates:
        await busy.call("_goclaw/system/status")
    stuck.link.writer.transport.resume_reading()
    stuck.read()
    await picture(stuck, lanes={"busy": 1})
    house.open_gate("g")
    await busy.answer(request)


@wire()
@pytest.mark.req("W-2", "W-4")
async def test_who_watches_nothing_is_told_nothing(house: House) -> None:
    vanilla, watcher = await house.unix(), await house.unix(**OPTED_IN)
    assert await vanilla.call("_goclaw/system/watch") == {}
    await watcher.call("_goclaw/system/watch", {"fields": ["health"], "minIntervalMs": 100})
    shown = await picture(watcher)
    assert shown.keys() == {"at", "health"}
    assert await watcher.call("_goclaw/system/watch", {"fields": []}) == {}
    house.gateway.announce_storage()
    session = await vanilla.new_session()
    await vanilla.turn(session, "hello")
    assert pictures(vanilla) == []
    assert len(pictures(watcher)) == 1
    for params in ({"fields": ["weather"]}, {"fields": "lanes"}, {"minIntervalMs": 99},
                   {"minIntervalMs": limits.WATCH_MS_MAX + 1}):  # fmt: skip
        assert (await watcher.refused("_goclaw/system/watch", params))["code"] == -32602


@wire()
@pytest.mark.req("R-3", "W-4")
async def test_a_daemon_that_stops_says_that_it_takes_no_work(house: House) -> None:
    watcher = await house.ws(**OPTED_IN)
    await watcher.call("_goclaw/system/watch", {"fields": ["health"], "minIntervalMs": 100})
    await picture(watcher, health={"accepting": True})
    house.engine.intake.closed = True
    await house.gateway.announce_shutdown(7)
    await picture(watcher, health={"accepting": False})
    await watcher.wait_for(lambda m: m.get("method") == "_goclaw/shutdown")
