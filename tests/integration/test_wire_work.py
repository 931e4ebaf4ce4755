"""Proves runs, tasks, status and administration over the wire, and that the policy is asked.

Owns nothing but the tests. Not in here: the queue's own rules (the engine's tests).
"""

from __future__ import annotations

import asyncio

import orjson
import pytest
from wire_support import OPTED_IN, House, text, wire

from goclaw.core.clock import SystemClock
from goclaw.policy import default


@wire()
@pytest.mark.req("W-11")
async def test_a_task_from_submission_to_result(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    params = {
        "sessionId": session, "tool": "echo", "arguments": {"a": 1}, "idempotencyKey": "k",
        "priority": 0, "maxAttempts": 2,
    }  # fmt: skip
    accepted = await client.call("_goclaw/task/submit", params)
    assert accepted["taskId"].removeprefix("task_") == accepted["runId"].removeprefix("run_")
    assert (accepted["state"], accepted["duplicate"]) == ("QUEUED", False)
    assert accepted["eventId"] >= 1
    await client.event("task.succeeded")
    task = await client.call("_goclaw/task/get", {"taskId": accepted["taskId"]})
    assert set(task) >= {
        "taskId", "sessionId", "runId", "state", "reason", "attempt", "failures", "crashes",
        "maxAttempts", "priority", "leaseOwner", "leaseExpiresInMs", "availableAt", "createdAt",
        "updatedAt", "result", "error",
    }  # fmt: skip
    assert (task["state"], task["priority"], task["maxAttempts"]) == ("SUCCEEDED", 0, 2)
    assert (task["result"], task["error"]) == ({"echo": {"a": 1}}, None)
    assert task["createdAt"].endswith("Z")
    again = await client.call("_goclaw/task/submit", params)
    assert (again["taskId"], again["duplicate"]) == (accepted["taskId"], True)
    error = await client.refused("_goclaw/task/submit", {**params, "tool": "other"})
    assert error["code"] == -31003


@wire()
@pytest.mark.req("W-11", "Q-12", "Q-13")
async def test_terms_of_a_task_go_over_the_wire(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    now = SystemClock().wall_ms()
    base = {"sessionId": session, "tool": "echo"}
    soon = await client.call("_goclaw/task/submit", {**base, "notBeforeMs": now + 300})
    await client.event("task.succeeded")
    assert (await client.call("_goclaw/task/get", {"taskId": soon["taskId"]}))["attempt"] == 1
    terms = {
        "notBeforeMs": now + 3_600_000, "deadlineMs": now + 7_200_000, "timeoutMs": 65_000,
        "unique": "u",
    }  # fmt: skip
    held = await client.call("_goclaw/task/submit", {**base, **terms})
    twin = await client.call("_goclaw/task/submit", {**base, **terms})
    assert (twin["taskId"], twin["duplicate"]) == (held["taskId"], True)
    task = await client.call("_goclaw/task/get", {"taskId": held["taskId"]})
    assert task["state"] == "QUEUED"
    assert (task["timeoutMs"], task["fingerprint"]) == (65_000, None)
    assert task["availableAt"] < task["deadlineAt"]
    cron = {"cron": "0 4 * * *", "timeZone": "Europe/Vienna", "misfire": "skip"}
    daily = await client.call("_goclaw/task/submit", {**base, "schedule": cron})
    assert (await client.call("_goclaw/task/get", {"taskId": daily["taskId"]}))["availableAt"]
    for wrong in (
        {"timeoutMs": 0}, {"timeoutMs": -5}, {"deadlineMs": now - 1}, {"notBeforeMs": "soon"},
        {"unique": ""}, {"schedule": {}, "notBeforeMs": 1.5}, {"schedule": {"cron": "x"}},
        {"schedule": {"timeZone": "UTC"}}, {"schedule": {**cron, "misfire": "never"}},
        {"schedule": {**cron, "timeZone": "Mars"}}, {"schedule": cron, "unique": "u"},
    ):  # fmt: skip
        error = await client.refused("_goclaw/task/submit", {**base, **wrong})
        assert error["code"] == -32602, wrong
    assert len((await client.call("_goclaw/task/list", {}))["tasks"]) == 3


@wire(lanes=False)
@pytest.mark.req("W-11")
async def test_tasks_are_listed_in_pages(house: House) -> None:
    client = await house.ws()
    sessions = [await client.new_session() for _ in range(2)]
    requests = [
        await client.request("_goclaw/task/submit", {"sessionId": sessions[n % 2], "tool": "x"})
        for n in range(30)
    ]
    made = [(await client.answer(r))["result"]["taskId"] for r in requests]
    await client.call("_goclaw/task/cancel", {"taskId": made[0]})
    found: list[str] = []
    after = None
    while True:
        page = await client.call("_goclaw/task/list", {"limit": 7, "after": after})
        found += [task["taskId"] for task in page["tasks"]]
        after = page.get("next")
        if after is None:
            break
    assert found == made[::-1]  # newest first; submissions of one connection keep their order
    one = await client.call("_goclaw/task/list", {"sessionId": sessions[1]})
    assert [task["taskId"] for task in one["tasks"]] == made[1::2][::-1]
    some = await client.call("_goclaw/task/list", {"states": ["CANCELED", "SUCCEEDED"]})
    assert [task["taskId"] for task in some["tasks"]] == made[:1]
    both = await client.call("_goclaw/task/list", {"states": ["CANCELED", "QUEUED"], "limit": 99})
    assert [task["taskId"] for task in both["tasks"]] == made[::-1]


@wire()
@pytest.mark.req("W-11", "Q-11", "W-5")
async def test_cancel_gives_a_receipt(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    running = await client.prompt(session, "wait:g")
    run = (await client.wait_for(lambda m: "task.running" in str(m)))["params"]["event"]["runId"]
    receipt = await client.call("_goclaw/run/cancel", {"runId": run})
    assert receipt["outcome"] in ("stopping", "stopped")
    assert receipt["effectsDone"] == []
    assert (await client.answer(running))["result"]["stopReason"] == "cancelled"
    receipt = await client.call("_goclaw/run/cancel", {"runId": run})
    assert receipt["outcome"] == "already_finished"
    for method, params in (
        ("_goclaw/run/cancel", {"runId": "run_none"}),
        ("_goclaw/run/get", {"runId": "run_none"}),
        ("_goclaw/task/get", {"taskId": "task_none"}),
        ("_goclaw/task/cancel", {"taskId": "task_none"}),
        ("_goclaw/run/signal", {"runId": "run_none", "name": "x"}),
        ("_goclaw/run/get", {"sessionId": session, "idempotencyKey": "none"}),
    ):
        error = await client.refused(method, params)
        assert error["code"] == -31016, method
        assert "not found" not in error["message"]


@wire()
@pytest.mark.req("W-6")
async def test_a_run_can_be_looked_up_by_its_key(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    result = await client.turn(session, "hello", idempotencyKey="k")
    ours = result["_meta"]["goclaw"]
    run = await client.call("_goclaw/run/get", {"sessionId": session, "idempotencyKey": "k"})
    assert run == await client.call("_goclaw/run/get", {"runId": ours["runId"]})
    assert run["stopReason"] == "end_turn"
    assert (run["state"], run["attempts"], run["eventId"]) == ("SUCCEEDED", 1, ours["eventId"])


@wire()
@pytest.mark.req("E-9")
async def test_the_first_signal_of_a_name_counts(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await client.prompt(session, "wait:g")
    run = (await client.wait_for(lambda m: "task.running" in str(m)))["params"]["event"]["runId"]
    first = await client.call(
        "_goclaw/run/signal", {"runId": run, "name": "go", "payload": {"n": 1}}
    )
    assert first["eventId"] > 0
    second = await client.call("_goclaw/run/signal", {"runId": run, "name": "go"})
    assert second == {"eventId": first["eventId"], "duplicate": True}
    house.open_gate("g")


@wire()
async def test_status_and_administration(house: House) -> None:
    client = await house.ws()
    status = await client.call("_goclaw/system/status")
    assert status == {"ready": True, "connections": 1}
    assert await client.call("_goclaw/admin/skill", {"verb": "list"}) == {
        "skills": [{"name": "word-count"}]
    }
    decision = await client.call(
        "_goclaw/admin/policy",
        {"verb": "explain", "subject": "run/direct", "action": "brain.call", "resource": "direct"},
    )
    assert (decision["effect"], decision["ruleId"]) == ("allow", "offline-brains")
    assert decision["subject"]["kind"] == "run"
    denied = await client.call(
        "_goclaw/admin/policy",
        {"subject": {"kind": "skill"}, "action": "approval.answer", "resource": "x"},
    )
    assert denied["effect"] == "deny"
    for subject in ("king", {"kind": "run", "origin": "mars"}, 7, None, {"kind": "run", "id": 7}):
        error = await client.refused(
            "_goclaw/admin/policy", {"subject": subject, "action": "x", "resource": "x"}
        )
        assert error["code"] == -32602
    assert await client.call("_goclaw/admin/replay", {"runId": "run_1"}) == {
        "runId": "run_1",
        "verdict": "identical",
    }
    assert await client.call("_goclaw/admin/shutdown") == {}
    assert house.stops == [True]


@wire()
@pytest.mark.req("E-7", "A-1")
async def test_a_fork_is_a_session_with_a_parent(house: House) -> None:
    client = await house.ws()
    session = await client.new_session()
    turn = await client.turn(session, "say:hello")
    run = turn["_meta"]["goclaw"]["runId"]
    events = (await client.call("_goclaw/session/events", {"sessionId": session}))["events"]
    at = next(
        one["_meta"]["goclaw"]["eventId"]
        for one in events
        if one.get("event", {}).get("type") == "task.running"
    )
    asked = {"runId": run, "at": at, "idempotencyKey": "k"}
    fork = await client.call("_goclaw/admin/fork", asked)
    assert (fork["parentSessionId"], fork["parentRunId"], fork["parentEventId"]) == (
        session, run, at,
    )  # fmt: skip
    assert fork["duplicate"] is False
    again = await client.call("_goclaw/admin/fork", asked)
    assert (again["runId"], again["duplicate"]) == (fork["runId"], True)
    block = await client.call("_goclaw/session/subscribe", {"sessionId": fork["sessionId"]})
    assert block["parentSessionId"] == session
    listed = (await client.call("session/list", {}))["sessions"]
    parents = {one["sessionId"]: one["_meta"]["goclaw"].get("parentSessionId") for one in listed}
    assert parents == {session: None, fork["sessionId"]: session}
    other = await house.ws()
    await other.call("session/load", {"sessionId": fork["sessionId"], "mcpServers": []})
    updates = [shown["update"] for shown in other.updates()]
    words = [u for u in updates if u["sessionUpdate"] == "user_message_chunk"]
    assert [u["content"]["text"] for u in words] == ["say:hello"]
    audit = await house.engine.database.read("audit_after", seq=0, limit=100)
    actions = [orjson.loads(row[2])["action"] for row in audit]
    assert actions.count("admin.fork") == 1  # it commits with the fork, and with nothing else
    for params in ({"runId": run}, {"runId": run, "at": 0}, {"at": 1}, {"runId": run, "at": 10**6}):
        assert (await client.refused("_goclaw/admin/fork", params))["code"] == -32602
    error = await client.refused("_goclaw/admin/fork", {"runId": "run_none", "at": 1})
    assert error["code"] == -31016


@wire()
@pytest.mark.req("W-5")
async def test_unknown_methods_are_named(house: House) -> None:
    client = await house.unix()
    for method in ("session/fork", "_goclaw/none", "authenticate", "session/cancel"):
        error = await client.refused(method)
        assert (error["code"], method in error["message"]) == (-32601, True)
    await client.notify("session/none", {"x": 1})
    await client.notify("_goclaw/none")
    await client.notify("session/cancel", {"sessionId": "session_none"})
    assert await client.call("_goclaw/system/status")


QUIET = (
    default.TEXT
    + """
[[rule]]
id = "no-listing"
effect = "deny"
actions = ["protocol.call"]
resources = [{ exact = "session/list" }]

[[rule]]
id = "ask-before-runs"
effect = "ask"
actions = ["run.submit"]
reason = "work needs a yes"
"""
)


@wire(policy=QUIET)
@pytest.mark.req("A-2", "A-8", "I-6", "W-5")
async def test_every_method_is_a_decision(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for _ in range(3):
        error = await client.refused("session/list")
        assert (error["code"], error["data"]["ruleId"]) == (-31005, "no-listing")
    error = await client.refused("session/prompt", {"sessionId": session, "prompt": text("x")})
    assert (error["code"], error["data"]["reason"]) == (-31005, "work needs a yes")
    assert house.runner.ran == []
    records: list[str] = []
    async with asyncio.timeout(10):
        while len(records) < 2:
            found = await house.engine.database.read("audit_after", seq=0, limit=100)
            records = [row[2].decode() for row in found]
    # equal denials are one record with a count
    assert sum('"no-listing"' in record for record in records) == 1
    assert any('"count":3' in record for record in records)


@wire()
@pytest.mark.req("A-8", "I-6")
async def test_what_allowed_a_run_is_on_record(house: House) -> None:
    client = await house.ws()
    session = await client.new_session()
    await client.turn(session, "hello")
    found = await house.engine.database.read("audit_after", seq=0, limit=100)
    (record,) = [row[2].decode() for row in found if '"run.submit"' in row[2].decode()]
    assert f'"resource":"{session}"' in record
    assert '"origin":"ws"' in record


@wire()
async def test_a_stopping_daemon_takes_no_work(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    house.engine.intake.closed = True
    for method, params in (
        ("session/prompt", {"sessionId": session, "prompt": text("x")}),
        ("session/new", {"cwd": "/tmp", "mcpServers": []}),
        ("_goclaw/task/submit", {"sessionId": session, "tool": "x"}),
    ):
        error = await client.refused(method, params)
        assert error["code"] == -31006
        assert error["data"]["retryAfterMs"] > 0
