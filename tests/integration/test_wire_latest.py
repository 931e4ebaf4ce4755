"""Proves the conflated subscription: the newest of each kind to who is behind, all to who keeps up.

Owns nothing but the tests. Not in here: the lossless form (``test_wire_replay.py``).
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from test_wire_replay import events, until_event
from test_wire_slow import small_unix
from wire_support import OPTED_IN, TOKEN, Client, House, wire

import goclaw
from goclaw.core import limits

LATEST = {"mode": "latest"}


def kinds(client: Client, session: str) -> list[str]:
    """What each event of the session was, in the order they came."""
    return [
        params["event"]["type"] if "event" in params else params["update"]["sessionUpdate"]
        for params in events(client, session)
    ]


async def subscribe(client: Client, session: str, **params: Any) -> dict[str, Any]:
    return await client.call("_goclaw/session/subscribe", {"sessionId": session, **params})


@wire()
@pytest.mark.req("W-4")
async def test_who_is_behind_gets_the_newest_of_each_kind(house: House) -> None:
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = 0
    for words in ("chunks:40 tool:x", "chunks:40", "bulk:50x1000 hello"):
        last = (await one.turn(session, words))["_meta"]["goclaw"]["eventId"]
    everything = dict(zip(kinds(one, session), events(one, session), strict=False))
    for two in (await house.unix(**OPTED_IN), await house.ws(**OPTED_IN)):
        block = await subscribe(two, session, fromEventId=0, **LATEST)
        assert block["headEventId"] == last
        await until_event(two, session, last)
        found = kinds(two, session)
        assert len(set(found)) == len(found)
        assert dict(zip(found, events(two, session), strict=True)) == everything
        ids = two.event_ids(session)
        assert ids == sorted(ids)
    vanilla = await house.unix()
    await subscribe(vanilla, session, fromEventId=0, **LATEST)
    await vanilla.wait_for(lambda m: "hello" in str(m.get("params")))
    assert "run.ended" not in kinds(vanilla, session)


@wire()
@pytest.mark.req("W-4", "W-3")
async def test_who_keeps_up_gets_everything(house: House) -> None:
    one, two = await house.unix(**OPTED_IN), await house.ws(**OPTED_IN)
    session = await one.new_session()
    first = (await one.turn(session, "chunks:9"))["_meta"]["goclaw"]["eventId"]
    await subscribe(two, session, **LATEST)
    last = 0
    for _ in range(3):
        last = (await one.turn(session, "chunks:9 tool:x"))["_meta"]["goclaw"]["eventId"]
        await until_event(two, session, last)
    assert two.event_ids(session) == list(range(first + 1, last + 1))
    # its own prompt's answer comes behind its last event, as ever
    answer = await two.turn(session, "mine")
    assert two.event_ids(session)[-1] == answer["_meta"]["goclaw"]["eventId"]


@wire()
@pytest.mark.req("W-4", "W-5")
async def test_a_cursor_is_judged_as_in_the_other_mode(house: House) -> None:
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    error = await one.refused(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 99, **LATEST}
    )
    assert error["code"] == -31002
    error = await one.refused("_goclaw/session/subscribe", {"sessionId": session, "mode": "newest"})
    assert error["code"] == -32602


@wire()
@pytest.mark.req("W-4", "W-9")
async def test_who_reads_nothing_is_not_closed_for_lag_and_is_told_the_newest(
    house: House,
) -> None:
    busy, stuck = await house.unix(**OPTED_IN), await small_unix(house)
    session = await busy.new_session()
    await subscribe(stuck, session, **LATEST)
    await stuck.stop_reading()
    # more than lagBytes, and more than what is looked at afterwards
    last = (await busy.turn(session, "bulk:1200x5000"))["_meta"]["goclaw"]["eventId"]
    assert last * 5000 > limits.LAG_BYTES_MAX
    assert last > limits.LATEST_EVENTS_MAX
    assert house.gateway.connections == 2
    stuck.link.writer.transport.resume_reading()
    stuck.read()
    await until_event(stuck, session, last)
    ids = stuck.event_ids(session)
    assert all(before < after for before, after in itertools.pairwise(ids))
    assert len(ids) < last // 2  # what fits into the buffers, and little else
    # caught up: from here on nothing is left out
    end = (await busy.turn(session, "chunks:20"))["_meta"]["goclaw"]["eventId"]
    await until_event(stuck, session, end)
    assert stuck.event_ids(session)[-(end - last) :] == list(range(last + 1, end + 1))


async def missed_and_live(house: House, *, latest: bool) -> tuple[list[int], list[int]]:
    """What a program's client is told of a turn it missed, and what it should have been told of it
    in the other mode. Of the turn after that it is told everything."""
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    first = (await one.turn(session, "chunks:40 tool:x"))["_meta"]["goclaw"]["eventId"]
    found: list[int] = []

    async def until(last: int) -> None:
        async for event in subscribed:
            found.append(event.event_id)
            if event.event_id == last:
                return

    url = f"ws://127.0.0.1:{house.port}/ws"
    async with goclaw.Client(url=url, token=TOKEN, patient=True) as client:
        subscribed = client.subscribe(session, first - 1, latest=latest)
        await until(first)
        house.gateway._closed = True  # nobody comes in for now
        (theirs,) = (c for c in house.gateway._connections if c.by_token)
        theirs._transport.abort()
        last = (await one.turn(session, "chunks:40 tool:x"))["_meta"]["goclaw"]["eventId"]
        house.gateway._closed = False
        await until(last)
        told = found[1:]
        end = (await one.turn(session, "chunks:9"))["_meta"]["goclaw"]["eventId"]
        await until(end)
        await subscribed.aclose()
    assert found[1 + len(told) :] == list(range(last + 1, end + 1))
    assert told == sorted(set(told))
    return told, list(range(first + 1, last + 1))


@wire(loops=["uvloop"])
@pytest.mark.req("W-4", "W-13")
async def test_a_program_s_client_comes_back_in_the_mode_it_asked_for(house: House) -> None:
    told, everything = await missed_and_live(house, latest=True)
    assert len(told) < len(everything) // 3
    assert await missed_and_live(house, latest=False) == (everything, everything)


@wire()
@pytest.mark.req("W-4")
async def test_a_second_subscribe_changes_the_mode(house: House) -> None:
    one, two = await house.unix(**OPTED_IN), await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = (await one.turn(session, "chunks:30"))["_meta"]["goclaw"]["eventId"]
    await subscribe(two, session, fromEventId=0, **LATEST)
    await until_event(two, session, last)
    seen = len(two.event_ids(session))
    assert seen < last
    await subscribe(two, session, fromEventId=0)
    end = (await one.turn(session, "again"))["_meta"]["goclaw"]["eventId"]
    await until_event(two, session, end)
    assert two.event_ids(session)[seen:] == list(range(1, end + 1))
