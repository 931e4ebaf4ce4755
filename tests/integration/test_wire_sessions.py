"""Proves sessions and turns over both sockets: order, barriers, queueing, cancel, idempotency.

Owns nothing but the tests. Not in here: replay (``test_wire_replay.py``), permissions, bounds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from wire_support import OPTED_IN, Client, House, text, wire

from goclaw.core.config import AcpConfig, Config, QueueConfig


def index(client: Client, request_id: int) -> int:
    """Where in the stream an answer came."""
    return next(
        at for at, m in enumerate(client.messages)
        if m.get("id") == request_id and ("result" in m or "error" in m)
    )  # fmt: skip


@wire()
@pytest.mark.req("W-1", "W-2")
async def test_the_greeting_says_what_there_is(house: House) -> None:
    client = await house.unix()
    result = client.messages[0]["result"]
    assert result["protocolVersion"] == 1
    assert result["agentInfo"]["name"] == "goclaw"
    assert result["authMethods"] == []
    capabilities = result["agentCapabilities"]
    assert capabilities["loadSession"] is True
    assert set(capabilities["sessionCapabilities"]) == {"list", "resume", "close", "delete"}
    extension = capabilities["_meta"]["goclaw"]
    assert extension["version"] == 1
    assert extension["daemonId"] == "daemon_1"
    assert extension["queue"] == {"limit": 1000}
    assert extension["idempotency"] == {"windowSeconds": 604800}
    assert extension["limits"] == {
        "frameBytes": 8 << 20, "lagEvents": 10_000, "lagBytes": 4 << 20, "answerBytes": 1 << 20,
        "stallSeconds": 30,
    }  # fmt: skip


@wire()
@pytest.mark.req("W-1", "W-3")
async def test_a_turn_on_both_sockets(house: House) -> None:
    for client in (await house.unix(), await house.ws(), await house.ws("/acp")):
        session = await client.new_session()
        request = await client.prompt(session, "hello chunks:3")
        result = (await client.answer(request))["result"]
        assert result["stopReason"] == "end_turn"
        assert client.said() == "hello0 1 2 "
        # the answer is last, and its barrier is at least the last event that was seen
        assert index(client, request) == len(client.messages) - 1
        assert max(client.event_ids(session)) <= result["_meta"]["goclaw"]["eventId"]
        assert client.event_ids(session) == sorted(set(client.event_ids(session)))


@wire()
@pytest.mark.req("W-3")
async def test_the_answer_to_new_comes_before_any_update(house: House) -> None:
    client = await house.ws()
    request = await client.request("session/new", {"cwd": "/tmp", "mcpServers": []})
    session = (await client.answer(request))["result"]["sessionId"]
    commands = await client.wait_for(lambda m: m.get("method") == "session/update")
    assert client.messages.index(commands) > index(client, request)
    assert commands["params"]["update"]["sessionUpdate"] == "available_commands_update"
    assert commands["params"]["sessionId"] == session
    assert house.sids == [(await house.engine.intake.session(session)).sid]


@wire()
@pytest.mark.req("W-3")
async def test_an_opted_in_client_sees_dense_ids(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    result = await client.turn(session, "hello tool:x")
    ids = client.event_ids(session)
    assert ids == list(range(1, result["_meta"]["goclaw"]["eventId"] + 1))
    kinds = [
        m["params"]["event"]["type"] for m in client.messages
        if m.get("method") == "_goclaw/session/event"
    ]  # fmt: skip
    assert kinds[:2] == ["run.accepted", "task.queued"]
    assert kinds[-1] == "run.ended"


@wire()
@pytest.mark.req("W-2", "W-10")
async def test_a_vanilla_client_sees_the_standard_only(house: House) -> None:
    client = await house.ws()
    session = await client.new_session()
    await client.turn(session, "hello tool:x")
    assert {m["method"] for m in client.messages if "method" in m} == {"session/update"}
    assert "user_message_chunk" not in {u["update"]["sessionUpdate"] for u in client.updates()}


@wire()
@pytest.mark.req("W-6", "E-6")
async def test_the_same_key_is_the_same_turn(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    first = await client.turn(session, "hello", idempotencyKey="k")
    again = await client.turn(session, "hello", idempotencyKey="k")
    ours = again["_meta"]["goclaw"]
    assert ours == {**first["_meta"]["goclaw"], "duplicate": True}
    assert house.runner.ran == ["hello"]
    request = await client.prompt(session, "other", idempotencyKey="k")
    error = (await client.answer(request))["error"]
    assert error["code"] == -31003
    assert error["data"]["idempotencyKey"] == "k"


@wire()
@pytest.mark.req("W-6")
async def test_the_same_key_joins_a_running_turn(house: House) -> None:
    one, two = await house.unix(**OPTED_IN), await house.ws()
    session = await one.new_session()
    first = await one.prompt(session, "wait:g done", idempotencyKey="k")
    await one.event("run.accepted")
    second = await two.prompt(session, "wait:g done", idempotencyKey="k")
    house.open_gate("g")
    results = [(await c.answer(r))["result"] for c, r in ((one, first), (two, second))]
    assert {r["_meta"]["goclaw"]["runId"] for r in results} == {
        results[0]["_meta"]["goclaw"]["runId"]
    }
    assert results[1]["_meta"]["goclaw"]["duplicate"] is True
    assert house.runner.ran == ["wait:g done"]


async def prompted(client: Client, session: str, words: str, request_id: object) -> dict[str, Any]:
    """The next answer under an id of the test's own, to a prompt."""

    def answers() -> list[dict[str, Any]]:
        return [m for m in client.messages if m.get("id") == request_id and "method" not in m]

    before = len(answers())
    params = {"sessionId": session, "prompt": text(words)}
    await client.send({"id": request_id, "method": "session/prompt", "params": params})
    await client.wait_for(lambda _: len(answers()) > before)
    return answers()[-1]


@wire()
@pytest.mark.req("W-6")
async def test_without_a_key_a_request_is_its_own(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    for request_id in ("7", 7):  # not the same id
        first = await prompted(client, session, "hello", request_id)
        again = await prompted(client, session, "hello", request_id)
        ours = again["result"]["_meta"]["goclaw"]
        assert ours == {**first["result"]["_meta"]["goclaw"], "duplicate": True}
        other = (await prompted(client, session, "other", request_id))["error"]
        assert (other["code"], other["data"]["runId"]) == (-31003, ours["runId"])
        assert "request with this id" in other["message"]
    assert house.runner.ran == ["hello", "hello"]
    events = [m["params"]["event"] for m in client.messages if "event" in m.get("params", {})]
    keys = [one["idempotencyKey"] for one in events if one["type"] == "run.accepted"]
    assert keys == [None, None]  # the client gave none


@wire()
@pytest.mark.req("W-6")
async def test_a_null_id_stands_for_no_request_twice(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    runs = [(await prompted(client, session, "hello", None))["result"] for _ in range(2)]
    assert len({one["_meta"]["goclaw"]["runId"] for one in runs}) == 2
    assert house.runner.ran == ["hello", "hello"]


@wire()
@pytest.mark.req("W-6", "W-10")
async def test_a_request_sent_again_on_another_connection_is_another(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    capabilities: dict[str, Any] = {"_meta": {"goclaw": {"version": 1, "clientId": "me"}}}
    for dial in (house.unix, house.unix, house.ws):
        client = await dial(**capabilities)
        assert "result" in await prompted(client, session, "hello", 7)
        assert "result" in await prompted(client, session, "other", 8)
        await client.close()
    assert house.runner.ran == ["hello", "other"] * 3


@wire()
@pytest.mark.req("W-6")
async def test_an_open_request_s_id_is_refused_and_queues_nothing(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    first = await client.prompt(session, "wait:g done")
    await client.event("run.accepted")
    params = {"sessionId": session, "prompt": text("wait:g done")}
    await client.send({"id": first, "method": "session/prompt", "params": params})
    refusal = await client.answer(None)
    assert (refusal["error"]["code"], refusal["error"]["data"]["requestId"]) == (-32600, first)
    house.open_gate("g")
    assert (await client.answer(first))["result"]["stopReason"] == "end_turn"
    assert house.runner.ran == ["wait:g done"]


@wire()
@pytest.mark.req("W-6")
async def test_a_session_with_a_key_is_made_once(house: House) -> None:
    client = await house.unix()
    meta = {"goclaw": {"idempotencyKey": "s"}}
    first = await client.new_session(_meta=meta)
    assert await client.new_session(_meta=meta) == first
    error = await client.refused("session/new", {"cwd": "/", "mcpServers": [], "_meta": meta})
    assert error["code"] == -31003


@wire()
@pytest.mark.req("W-7")
async def test_prompts_queue_in_order(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    requests = [await client.prompt(session, f"p{n}") for n in range(5)]
    for request in requests:
        assert (await client.answer(request))["result"]["stopReason"] == "end_turn"
    assert house.runner.ran == [f"p{n}" for n in range(5)]
    assert client.said() == "p0p1p2p3p4"
    assert [index(client, r) for r in requests] == sorted(index(client, r) for r in requests)


@wire(config=Config(queue=QueueConfig(session_limit=2)))
@pytest.mark.req("W-7", "Q-10")
async def test_a_full_queue_says_so(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    requests = [await client.prompt(session, f"wait:g p{n}") for n in range(3)]
    error = (await client.answer(requests[2]))["error"]
    assert error["code"] == -31004
    assert error["data"]["limit"] == 2
    assert error["data"]["retryAfterMs"] > 0
    house.open_gate("g")
    for request in requests[:2]:
        assert "result" in await client.answer(request)


@wire()
@pytest.mark.req("W-7", "Q-11")
async def test_cancel_ends_the_turn_and_ones_own_queue(house: House) -> None:
    one, two = await house.unix(), await house.ws()
    session = await one.new_session()
    mine = [await one.prompt(session, "wait:g never"), await one.prompt(session, "mine")]
    await one.call("session/list")  # both are begun
    theirs = await two.prompt(session, "theirs")
    await two.call("session/list")
    await one.notify("session/cancel", {"sessionId": session})
    for request in mine:
        assert (await one.answer(request))["result"]["stopReason"] == "cancelled"
    assert (await two.answer(theirs))["result"]["stopReason"] == "end_turn"
    assert "never" not in one.said()
    assert house.runner.ran[-1] == "theirs"


@wire()
@pytest.mark.req("W-7")
async def test_a_cancel_right_behind_its_prompt_finds_it(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for _ in range(5):
        request = await client.prompt(session, "wait:g")
        await client.notify("session/cancel", {"sessionId": session})
        assert (await client.answer(request))["result"]["stopReason"] == "cancelled"


@wire()
@pytest.mark.req("W-7")
async def test_a_request_can_be_cancelled(house: House) -> None:
    client = await house.ws()
    session = await client.new_session()
    running, queued = await client.prompt(session, "wait:g"), await client.prompt(session, "later")
    await client.notify("$/cancel_request", {"requestId": queued})
    assert (await client.answer(queued))["result"]["stopReason"] == "cancelled"
    await client.notify("$/cancel_request", {"requestId": running})
    assert (await client.answer(running))["result"]["stopReason"] == "cancelled"
    assert house.runner.ran in (["wait:g"], [])


@wire()
@pytest.mark.req("W-7", "W-10")
async def test_a_client_that_comes_back_owns_its_turns(house: House) -> None:
    mine = {"_meta": {"goclaw": {"version": 1, "clientId": "me"}}}
    one = await house.unix(**mine)
    session = await one.new_session()
    await one.prompt(session, "wait:g")
    await one.prompt(session, "queued")
    await one.call("session/list")
    await one.close()
    two = await house.unix(**mine)
    await two.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    await two.notify("session/cancel", {"sessionId": session})
    await two.wait_for(lambda m: "session_info_update" in str(m))
    assert await two.turn(session, "after")
    assert "queued" not in house.runner.ran


@wire(config=Config(acp=AcpConfig(on_disconnect="cancel")))
@pytest.mark.req("W-10")
async def test_a_turn_may_end_with_its_connection(house: House) -> None:
    one, two = await house.unix(), await house.unix(**OPTED_IN)
    session = await one.new_session()
    await one.prompt(session, "wait:g")
    await one.call("session/list")
    await two.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await one.close()
    assert (await two.event("run.ended"))["state"] == "CANCELED"


@wire()
@pytest.mark.req("W-10")
async def test_a_turn_goes_on_without_its_connection(house: House) -> None:
    one, two = await house.unix(**OPTED_IN), await house.ws()
    session = await one.new_session()
    await one.prompt(session, "wait:g goes_on")
    await one.event("run.accepted")
    await one.close()
    answer = await two.call("session/load", {"sessionId": session, "cwd": "/tmp", "mcpServers": []})
    assert answer["_meta"]["goclaw"]["activeTurn"]["state"] in ("running", "queued")
    house.open_gate("g")
    await two.wait_for(lambda m: "goes_on" in str(m.get("params", {}).get("update", "")))
    info = await two.wait_for(lambda m: "session_info_update" in str(m))
    assert info["params"]["update"]["updatedAt"].endswith("Z")


@wire()
@pytest.mark.req("W-5")
async def test_a_failed_turn_is_an_error_with_its_ids(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    request = await client.prompt(session, "fail:broken")
    error = (await client.answer(request))["error"]
    assert error["code"] == -32603
    assert error["data"]["code"] == "broken"
    assert error["data"]["runId"].startswith("run_")
    assert error["data"]["eventId"] > 0
    assert "not found" not in error["message"]


@wire()
@pytest.mark.req("W-1")
async def test_other_ends_of_a_turn(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for reason in ("refusal", "max_tokens", "max_turn_requests"):
        for verb in ("stop", "fail"):
            assert (await client.turn(session, f"{verb}:{reason}"))["stopReason"] == reason


@wire()
@pytest.mark.req("W-5")
async def test_an_unknown_session_says_so(house: House) -> None:
    client = await house.unix()
    for method, more in (
        ("session/prompt", {"prompt": text("x")}),
        ("session/load", {"cwd": "/", "mcpServers": []}),
        ("session/resume", {"cwd": "/"}),
        ("session/close", {}),
        ("_goclaw/session/subscribe", {}),
        ("_goclaw/session/events", {}),
        ("_goclaw/task/submit", {"tool": "x"}),
    ):
        error = await client.refused(method, {"sessionId": "session_none", **more})
        assert (error["code"], error["data"]["sessionId"]) == (-32002, "session_none"), method
    assert await client.call("session/delete", {"sessionId": "session_none"}) == {}


@wire()
@pytest.mark.req("W-1", "W-5")
async def test_bad_params_are_named(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for method, params, word in (
        ("session/new", {"cwd": "here", "mcpServers": []}, "cwd"),
        ("session/new", {"mcpServers": []}, "cwd"),
        ("session/new", {"cwd": "/", "mcpServers": {}}, "mcpServers"),
        ("session/new", {"cwd": "/", "additionalDirectories": ["x"]}, "additionalDirectories"),
        ("session/new", [], "object"),
        ("session/prompt", {"sessionId": session}, "prompt"),
        ("session/prompt", {"sessionId": session, "prompt": [{"type": "image"}]}, "text"),
        ("session/prompt", {"sessionId": session, "prompt": [{"type": "text"}]}, "text"),
        ("session/prompt", {"sessionId": 7, "prompt": text("x")}, "sessionId"),
        ("session/list", {"cursor": "no"}, "cursor"),
        ("_goclaw/session/subscribe", {"sessionId": session, "role": "king"}, "role"),
        ("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": -1}, "fromEventId"),
        ("_goclaw/task/submit", {"sessionId": session, "tool": "x", "priority": 10}, "priority"),
        ("_goclaw/task/submit", {"sessionId": session, "pool": 7}, "pool"),
        ("_goclaw/task/list", {"states": ["ODD"]}, "states"),
    ):
        error = await client.refused(method, params)
        assert error["code"] == -32602, (method, params)
        assert word in error["message"], error
    assert await client.turn(session, "still here")


@wire()
async def test_long_keys_are_refused(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for key in ("", "x" * 129, 7):
        request = await client.prompt(session, "x", idempotencyKey=key)
        assert (await client.answer(request))["error"]["code"] == -32602
    assert house.runner.ran == []


@wire()
@pytest.mark.req("W-1")
async def test_sessions_are_listed_in_pages(house: House) -> None:
    client = await house.unix()
    made = [await client.new_session(cwd=f"/tmp/{n % 2}") for n in range(105)]
    found: list[str] = []
    cursor = None
    while True:
        page = await client.call("session/list", {"cursor": cursor})
        found += [s["sessionId"] for s in page["sessions"]]
        cursor = page.get("nextCursor")
        if cursor is None:
            break
    assert sorted(found) == sorted(made)
    some = await client.call("session/list", {"cwd": "/tmp/1"})
    assert {s["cwd"] for s in some["sessions"]} == {"/tmp/1"}
    assert some["sessions"][0]["updatedAt"].endswith("Z")


@wire()
async def test_a_closed_session_stops_and_can_be_taken_up_again(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    running = await client.prompt(session, "wait:g")
    await client.call("session/list")
    assert await client.call("session/close", {"sessionId": session}) == {}
    assert (await client.answer(running))["result"]["stopReason"] == "cancelled"
    await client.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    assert (await client.turn(session, "again"))["stopReason"] == "end_turn"
    assert client.said() == "again"


@wire()
async def test_a_deleted_session_is_gone_for_all(house: House) -> None:
    one, two = await house.unix(), await house.ws()
    session = await one.new_session()
    await two.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    running = await two.prompt(session, "wait:g")
    await two.call("session/list")
    assert await one.call("session/delete", {"sessionId": session}) == {}
    assert (await two.answer(running))["result"]["stopReason"] == "cancelled"
    assert (await two.call("session/list"))["sessions"] == []
    error = await two.refused("session/prompt", {"sessionId": session, "prompt": text("x")})
    assert error["code"] == -32002


@wire()
async def test_the_system_session_is_nobodys(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    error = await client.refused("session/prompt", {"sessionId": "_system", "prompt": text("x")})
    assert error["code"] == -32002
    block = await client.call("_goclaw/session/subscribe", {"sessionId": "_system"})
    assert block["headEventId"] == 1  # the policy that came into force
    assert (await client.call("session/list"))["sessions"] == []


SERVERS = [{"name": "git", "command": "/bin/git", "args": [], "env": []}, {"odd": 1}]


def told(client: Client, since: int = 0) -> list[dict[str, Any]]:
    """The updates that name MCP servers, each behind the answer before it."""
    return [
        m["params"]["update"] for m in client.messages[since:]
        if m.get("method") == "session/update" and "MCP" in str(m["params"]["update"])
    ]  # fmt: skip


@wire()
@pytest.mark.req("W-1", "W-10")
async def test_mcp_servers_are_skipped_and_named_to_the_user(house: House) -> None:
    client = await house.unix()
    result = await client.call("session/new", {"cwd": "/tmp", "mcpServers": SERVERS})
    skipped = result["_meta"]["goclaw"]["mcpSkipped"]
    assert [entry["name"] for entry in skipped] == ["git", ""]
    assert all(entry["reason"] for entry in skipped)
    session = result["sessionId"]
    # whoever gives the list again is told again, behind the answer
    again = {"sessionId": session, "cwd": "/tmp", "mcpServers": SERVERS[:1]}
    for method in ("session/load", "session/resume"):
        since = len(client.messages)
        request = await client.request(method, again)
        assert (await client.answer(request))["result"]["_meta"]["goclaw"]["mcpSkipped"] == [
            skipped[0]
        ]
        await client.call("session/list")
        (thought,) = told(client, since)
        assert "git." in thought["content"]["text"]
        assert told(client, index(client, request)) == [thought]
    first = told(client)[0]
    assert first["sessionUpdate"] == "agent_thought_chunk"
    assert "git, (no name)" in first["content"]["text"]
    assert len({update["messageId"] for update in told(client)}) == 3
    # it is no event: nobody else hears it, and no history has it
    other = await house.unix(**OPTED_IN)
    await other.call("session/load", {**again, "mcpServers": []})
    await client.turn(session, "hello")
    await client.call("session/load", {**again, "mcpServers": []})
    assert (told(other), len(told(client))) == ([], 3)
    assert "MCP" not in client.said()


@wire()
@pytest.mark.req("W-1", "W-10")
async def test_who_shows_notices_gets_one(house: House) -> None:
    for notices, kind in (({}, "notice"), (True, "notice"), (None, "agent_thought_chunk")):
        client = await house.unix(session={"notices": notices})
        request = await client.request("session/new", {"cwd": "/", "mcpServers": SERVERS * 6})
        await client.answer(request)
        await client.call("session/list")
        (update,) = told(client, index(client, request))
        assert update["sessionUpdate"] == kind
        assert "and 2 more." in str(update)
        if kind == "notice":
            assert (update["severity"], set(update)) == (
                "warning", {"sessionUpdate", "severity", "title", "description"},
            )  # fmt: skip


@wire()
@pytest.mark.req("R-4")
async def test_the_clients_trace_is_carried(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    params = {"sessionId": session, "prompt": text("hello"), "_meta": {"traceparent": trace}}
    await client.call("session/prompt", params)
    metas = [p["_meta"] for p in client.updates(session) if "_meta" in p]
    assert {meta["traceparent"] for meta in metas} == {trace}
    params["_meta"] = {"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}
    await client.call("session/prompt", params)
    assert len({p["_meta"]["traceparent"] for p in client.updates(session) if "_meta" in p}) == 2


@wire(config=dataclasses.replace(Config(), queue=QueueConfig(lanes=8)))
async def test_many_sessions_on_one_connection(house: House) -> None:
    client = await house.ws(**OPTED_IN)
    sessions = [await client.new_session() for _ in range(20)]
    requests = [await client.prompt(s, "chunks:20") for s in sessions]
    for session, request in zip(sessions, requests, strict=True):
        result = (await client.answer(request))["result"]
        ids = client.event_ids(session)
        assert ids == list(range(1, result["_meta"]["goclaw"]["eventId"] + 1))
