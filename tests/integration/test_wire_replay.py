"""Proves replay: cursors, gaps, the seam to live, history on load, and the pull form.

Owns nothing but the tests. Not in here: readers that are too slow (``test_wire_slow.py``).
"""

from __future__ import annotations

from typing import Any

import pytest
from wire_support import OPTED_IN, Client, House, text, wire


def events(client: Client, session: str) -> list[dict[str, Any]]:
    """Params of everything with an event id, in order."""
    return [
        m["params"] for m in client.messages
        if m.get("params", {}).get("sessionId") == session
        and "eventId" in m["params"].get("_meta", {}).get("goclaw", {})
    ]  # fmt: skip


async def until_event(client: Client, session: str, event_id: int) -> None:
    await client.wait_for(
        lambda m: (
            m.get("params", {}).get("sessionId") == session
            and m["params"].get("_meta", {}).get("goclaw", {}).get("eventId") == event_id
        )
    )


@wire()
@pytest.mark.req("W-4", "I-3", "G-8")
async def test_replay_and_live_are_the_same_bytes(house: House) -> None:
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = 0
    for words in ("hello chunks:30", "tool:x", "bulk:200x2000"):
        last = (await one.turn(session, words))["_meta"]["goclaw"]["eventId"]
    live = [data for data in one.raw if b'"eventId":' in data and b'"id":' not in data]
    for cursor in (0, 1, last // 2, last - 1):
        two = await house.unix(**OPTED_IN)
        block = await two.call(
            "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": cursor}
        )
        assert block["headEventId"] == last
        await until_event(two, session, last)
        replayed = [data for data in two.raw if b'"eventId":' in data and b'"id":' not in data]
        assert replayed == live[cursor:]
        assert two.event_ids(session) == list(range(cursor + 1, last + 1))


@wire()
@pytest.mark.req("W-4", "W-3", "G-8")
async def test_no_gap_and_no_duplicate_at_the_seam(house: House) -> None:
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    await one.turn(session, "bulk:300x1000")
    request = await one.prompt(session, "chunks:300")
    readers = []
    for n in range(6):
        reader = await (house.ws if n % 2 else house.unix)(**OPTED_IN)
        await reader.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": n})
        readers.append(reader)
    last = (await one.answer(request))["result"]["_meta"]["goclaw"]["eventId"]
    for n, reader in enumerate(readers):
        await until_event(reader, session, last)
        assert reader.event_ids(session) == list(range(n + 1, last + 1))


@wire()
@pytest.mark.req("W-4")
async def test_the_block_comes_first(house: House) -> None:
    one, two = await house.unix(), await house.ws(**OPTED_IN)
    session = await one.new_session()
    last = (await one.turn(session, "hello"))["_meta"]["goclaw"]["eventId"]
    request = await two.request(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0}
    )
    block = (await two.answer(request))["result"]
    await until_event(two, session, last)
    assert two.messages[1]["id"] == request
    assert block == {
        "streamId": (await house.engine.intake.session(session)).stream_id,
        "headEventId": last, "oldestEventId": 1, "activeTurn": None, "queued": 0, "mcpSkipped": [],
    }  # fmt: skip


@wire()
@pytest.mark.req("W-4", "W-5")
async def test_a_refused_cursor_leaves_everything_as_it_was(house: House) -> None:
    one, two = await house.unix(), await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = (await one.turn(session, "hello"))["_meta"]["goclaw"]["eventId"]
    error = await two.refused(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": last + 1}
    )
    assert (error["code"], error["data"]["headEventId"]) == (-31002, last)
    error = await two.refused(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 1, "streamId": "other"}
    )
    assert (error["code"], error["data"]["recover"]) == (-31002, "session/load")
    await one.turn(session, "more")
    await two.call("_goclaw/system/status")
    assert two.event_ids(session) == []


@wire()
@pytest.mark.req("W-4")
async def test_a_second_subscribe_replaces_the_cursor(house: House) -> None:
    one, two = await house.unix(), await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = (await one.turn(session, "hello chunks:3"))["_meta"]["goclaw"]["eventId"]
    for _ in range(2):
        await two.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
        await until_event(two, session, last)
    await two.call("_goclaw/system/status")
    assert two.event_ids(session) == [*range(1, last + 1)] * 2


@wire()
@pytest.mark.req("W-4")
async def test_unsubscribe_ends_it(house: House) -> None:
    one, two = await house.unix(), await house.unix(**OPTED_IN)
    session = await one.new_session()
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    await one.turn(session, "first")
    await two.event("run.ended")
    for _ in range(2):
        assert await two.call("_goclaw/session/unsubscribe", {"sessionId": session}) == {}
    seen = len(two.event_ids(session))
    await one.turn(session, "second")
    await two.call("_goclaw/system/status")
    assert len(two.event_ids(session)) == seen


@wire()
@pytest.mark.req("W-4")
async def test_resume_answers_first_then_tells_what_was_missed(house: House) -> None:
    one = await house.unix()
    session = await one.new_session()
    last = (await one.turn(session, "one two three"))["_meta"]["goclaw"]["eventId"]
    two = await house.ws(**OPTED_IN)
    request = await two.request(
        "session/resume",
        {"sessionId": session, "cwd": "/tmp", "_meta": {"goclaw": {"fromEventId": 2}}},
    )
    await until_event(two, session, last)
    at = next(i for i, m in enumerate(two.messages) if m.get("id") == request)
    assert two.messages[at]["result"]["_meta"]["goclaw"]["headEventId"] == last
    assert two.event_ids(session) == list(range(3, last + 1))
    assert not [m for m in two.messages[:at] if "eventId" in str(m.get("params"))]
    # commands go before the answer on resume
    assert two.messages[at - 1]["params"]["update"]["sessionUpdate"] == "available_commands_update"


@wire()
@pytest.mark.req("W-4")
async def test_events_can_be_pulled(house: House) -> None:
    one = await house.unix(**OPTED_IN)
    session = await one.new_session()
    last = (await one.turn(session, "hello tool:x chunks:20"))["_meta"]["goclaw"]["eventId"]
    two = await house.unix()
    pulled: list[dict[str, Any]] = []
    position = 0
    while position < last:
        page = await two.call(
            "_goclaw/session/events", {"sessionId": session, "fromEventId": position, "limit": 7}
        )
        assert len(page["events"]) <= 7
        assert page["headEventId"] == last
        pulled += page["events"]
        position = page["nextEventId"]
    assert pulled == events(one, session)
    everything = await two.call("_goclaw/session/events", {"sessionId": session, "limit": 99_999})
    assert everything["events"] == pulled
    error = await two.refused(
        "_goclaw/session/events", {"sessionId": session, "fromEventId": last + 1}
    )
    assert error["code"] == -31002


# -- history -----------------------------------------------------------------------------------


async def load(client: Client, session: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The updates before the answer, without the commands, and the answer's block."""
    seen = len(client.messages)
    request = await client.request(
        "session/load", {"sessionId": session, "cwd": "/tmp", "mcpServers": []}
    )
    answer = await client.answer(request)
    at = client.messages.index(answer)
    updates = [m["params"]["update"] for m in client.messages[seen:at]]
    assert updates.pop()["sessionUpdate"] == "available_commands_update"
    return updates, answer["result"]["_meta"]["goclaw"]


@wire()
@pytest.mark.req("W-10")
async def test_load_tells_whole_messages_and_tools(house: House) -> None:
    one, two = await house.unix(), await house.ws()
    session = await one.new_session()
    await one.turn(session, "chunks:50 tool:grep hello")
    last = (await one.turn(session, "second"))["_meta"]["goclaw"]["eventId"]
    updates, block = await load(two, session)
    assert [u["sessionUpdate"] for u in updates] == [
        "user_message_chunk", "agent_message_chunk", "tool_call", "agent_message_chunk",
        "user_message_chunk", "agent_message_chunk",
    ]  # fmt: skip
    assert updates[0]["content"]["text"] == "chunks:50 tool:grep hello"
    assert updates[1]["content"]["text"] == "".join(f"{n} " for n in range(50))
    assert (updates[2]["status"], updates[2]["title"]) == ("completed", "grep")
    assert updates[2]["rawInput"] == {"name": "grep"}
    ids = [u["messageId"] for u in updates if "messageId" in u]
    assert len(set(ids)) == 5
    assert block["headEventId"] == last
    again, _ = await load(two, session)
    assert again == updates  # ids of messages are stable
    assert (await two.turn(session, "third"))["stopReason"] == "end_turn"
    assert two.said().endswith("third")


@wire()
@pytest.mark.req("W-10", "W-3")
async def test_load_in_mid_turn_goes_on_live(house: House) -> None:
    one, two = await house.unix(**OPTED_IN), await house.ws()
    session = await one.new_session()
    request = await one.prompt(session, "first wait:g second")
    await one.wait_for(lambda m: "first" in str(m.get("params", {}).get("update", "")))
    while not house.runner.gates:
        await two.call("session/list")
    updates, block = await load(two, session)
    assert [u["content"]["text"] for u in updates] == ["first wait:g second", "first"]
    turn = block["activeTurn"]
    assert turn["state"] == "running"
    late = await house.unix(**OPTED_IN)
    await late.call(
        "_goclaw/session/subscribe",
        {"sessionId": session, "fromEventId": turn["sinceEventId"] - 1},
    )
    first = await late.wait_for(lambda m: m.get("method") == "_goclaw/session/event")
    assert first["params"]["event"]["type"] == "run.accepted"
    assert first["params"]["_meta"]["goclaw"]["runId"] == turn["runId"]
    assert block["queued"] == 0
    house.open_gate("g")
    await one.answer(request)
    await two.wait_for(lambda m: "session_info_update" in str(m))
    texts = [u["update"].get("content", {}).get("text") for u in two.updates(session)]
    assert [t for t in texts if t] == ["first wait:g second", "first", "second"]


@wire()
@pytest.mark.req("W-10", "W-3")
async def test_load_by_who_is_attached_already(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await client.turn(session, "bulk:300x1000")
    request = await client.prompt(session, "chunks:400")
    await client.wait_for(lambda m: '"0 "' in str(m).replace("'", '"'))
    load_id = await client.request(
        "session/load", {"sessionId": session, "cwd": "/tmp", "mcpServers": []}
    )
    answer = await client.answer(load_id)
    head = answer["result"]["_meta"]["goclaw"]["headEventId"]
    last = (await client.answer(request))["result"]["_meta"]["goclaw"]["eventId"]
    at = client.messages.index(answer)
    begin = next(i for i, m in enumerate(client.messages) if "'history': True" in str(m))
    # nothing live between the first word of the past and the answer, and then from that cut on
    assert not [m for m in client.messages[begin:at] if "'eventId'" in str(m)]
    live = [
        m["params"]["_meta"]["goclaw"]["eventId"] for m in client.messages[at:]
        if "'eventId'" in str(m.get("params", {}).get("_meta"))
    ]  # fmt: skip
    assert live == list(range(head + 1, last + 1))


@wire()
@pytest.mark.req("W-10")
async def test_load_of_a_long_session(house: House) -> None:
    one, two = await house.unix(), await house.unix()
    session = await one.new_session()
    for n in range(3):
        await one.turn(session, f"bulk:400x2000 end{n}")
    updates, _ = await load(two, session)
    said = [u for u in updates if u["sessionUpdate"] == "agent_message_chunk"]
    assert "".join(u["content"]["text"] for u in said) == one.said()
    assert len({u["messageId"] for u in said}) == 6
    assert len(said) == 6


@wire()
@pytest.mark.req("W-10")
async def test_a_session_takes_new_roots_with_load(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for method in ("session/load", "session/resume"):
        cwd = f"/tmp/{method[8:]}"
        await client.call(
            method,
            {"sessionId": session, "cwd": cwd, "mcpServers": [], "additionalDirectories": ["/b"]},
        )
        found = await house.engine.intake.session(session)
        assert (found.cwd, found.roots) == (cwd, (cwd, "/b"))
    await client.call("session/prompt", {"sessionId": session, "prompt": text("hello")})


@wire()
@pytest.mark.req("W-10")
async def test_blocks_of_a_prompt_stay_apart(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    link = {"type": "resource_link", "uri": "file:///x", "name": "x"}
    blocks = [*text("say:a"), link, *text("b")]
    await client.call("session/prompt", {"sessionId": session, "prompt": blocks})
    updates, _ = await load(client, session)
    users = [u for u in updates if u["sessionUpdate"] == "user_message_chunk"]
    assert [u["content"] for u in users] == blocks
    assert len({u["messageId"] for u in users}) == 1
