"""Proves the effect methods over the wire: shapes, refusals, who may and what is audited.

Owns nothing but the tests. Not in here: what each word does to a task (test_effects_settle.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from wire_support import OPTED_IN, House, wire

from goclaw.core import limits
from goclaw.core.records import Done
from goclaw.policy import default

if TYPE_CHECKING:
    from wire_support import Client

EFFECT = {"ordinal", "kind", "name", "class", "state", "idempotencyKey", "requestHash", "at"}


async def lost(client: Client, *ns: int, tool: str = "losing", key: str = "k") -> str:
    """The task, SUSPENDED over as many unknown effects."""
    session = await client.new_session()
    params = {"sessionId": session, "tool": tool, "arguments": {"ns": ns}, "idempotencyKey": key}
    task: str = (await client.call("_goclaw/task/submit", params))["taskId"]
    while True:
        event = await client.event("task.suspended")
        if event["reason"] == "effect_unknown":
            return task


async def state_of(client: Client, task: str) -> str:
    found: str = (await client.call("_goclaw/task/get", {"taskId": task}))["state"]
    return found


async def decisions(house: House, action: str) -> list[dict[str, Any]]:
    found = await house.engine.database.read("audit_after", seq=0, limit=1_000)
    records = [orjson.loads(row[2]) for row in found]
    return [record for record in records if record["action"] == action]


@wire()
@pytest.mark.req("W-11", "E-3", "A-8")
async def test_several_unknown_effects_are_settled_one_by_one(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task = await lost(client, 1, 2)
    listed = (await client.call("_goclaw/effects/list", {"taskId": task}))["effects"]
    assert [set(effect) for effect in listed] == [EFFECT, EFFECT]
    assert [(one["ordinal"], one["kind"], one["name"]) for one in listed] == [
        (0, "tool", "losing"), (1, "tool", "losing"),
    ]  # fmt: skip
    assert {(one["class"], one["state"]) for one in listed} == {("irreversible", "unknown")}
    assert len({one["idempotencyKey"] for one in listed}) == 2
    assert all(len(one["requestHash"]) == 64 and one["at"].endswith("Z") for one in listed)

    about = {"taskId": task, "ordinal": 0}
    first = await client.call("_goclaw/effects/settle", {**about, "outcome": "done", "result": [1]})
    assert set(first) == EFFECT | {"eventId"}
    assert (first["state"], await state_of(client, task)) == ("result", "SUSPENDED")
    event = await client.event("effect.settled")
    assert (event["outcome"], event["ordinal"]) == ("done", 0)
    await client.call("_goclaw/effects/settle", {**about, "ordinal": 1, "outcome": "done"})
    await client.event("task.succeeded")
    result = (await client.call("_goclaw/task/get", {"taskId": task}))["result"]
    assert result == [[1], None]
    answers = await decisions(house, "admin.effects")
    assert [one["resource"] for one in answers] == [f"settle/{task}/0", f"settle/{task}/1"]
    assert all(one["effect"] == "allow" and one["subject"]["sessionId"] for one in answers)


@wire()
@pytest.mark.req("W-11", "E-3", "Q-1")
async def test_redo_and_fail(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task = await lost(client, 1)
    again = await client.call("_goclaw/effects/redo", {"taskId": task, "ordinal": 0})
    assert (again["state"], set(again)) == ("retryable", EFFECT | {"eventId"})
    event = await client.event("effect.settled")
    assert event["outcome"] == "redo"
    seen = event["attempt"]
    await client.wait_for(
        lambda m: "task.suspended" in str(m) and m["params"]["event"]["attempt"] > seen
    )  # lost again
    params = {"taskId": task, "ordinal": 0, "outcome": "fail"}
    given_up = await client.call("_goclaw/effects/settle", params)
    assert given_up["state"] == "unknown"
    ended = await client.event("task.failed")
    assert (ended["from"], ended["to"], ended["reason"]) == (
        "SUSPENDED", "FAILED", "settled_as_fail",
    )  # fmt: skip
    assert await state_of(client, task) == "FAILED"
    assert [one["resource"].split("/")[0] for one in await decisions(house, "admin.effects")] == [
        "redo", "settle",
    ]  # fmt: skip


@wire()
@pytest.mark.req("W-11", "E-3", "A-8")
async def test_a_probe_answers_with_the_effect(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task = await lost(client, 1, tool="doubting")
    about = {"taskId": task, "ordinal": 0}
    house.probed += [None, Done(b'"seen"')]
    unsure = await client.call("_goclaw/effects/probe", about)
    assert (unsure["state"], unsure["eventId"]) == ("unknown", None)
    sure = await client.call("_goclaw/effects/probe", about)
    assert sure["state"] == "result"
    await client.event("task.succeeded")
    assert (await client.call("_goclaw/task/get", {"taskId": task}))["result"] == ["seen"]
    # The one that changed nothing is on record, too.
    assert len(await decisions(house, "admin.effects")) == 2


@wire()
@pytest.mark.req("W-5", "W-11", "E-3")
async def test_refusals_of_the_effect_methods_are_named(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task = await lost(client, 1)
    settle, good = "_goclaw/effects/settle", {"taskId": task, "ordinal": 0, "outcome": "done"}
    for method, change, code in (
        ("_goclaw/effects/list", {"taskId": "task_none"}, -31016),
        ("_goclaw/effects/list", {"taskId": None}, -32602),
        ("_goclaw/effects/list", {"limit": 0}, -32602),
        ("_goclaw/effects/list", {"after": -1}, -32602),
        (settle, {"taskId": "task_none"}, -31016),
        (settle, {"ordinal": 1}, -31016),
        (settle, {"ordinal": limits.EFFECTS_MAX}, -31016),
        (settle, {"ordinal": limits.EFFECTS_MAX + 1}, -32602),
        (settle, {"ordinal": None}, -32602),
        (settle, {"ordinal": "0"}, -32602),
        (settle, {"outcome": None}, -32602),
        (settle, {"outcome": "redo"}, -32602),
        (settle, {"outcome": "not_done", "result": 1}, -32602),
        (settle, {"result": "x" * limits.TOOL_OUTPUT_BYTES_MAX}, -32602),
        ("_goclaw/effects/redo", {"ordinal": 1}, -31016),
        ("_goclaw/effects/probe", {"ordinal": 1}, -31016),
        ("_goclaw/effects/probe", {}, -32602),  # irreversible: nobody can be asked
    ):
        error = await client.refused(method, {**good, **change})
        assert error["code"] == code, (method, change)
        assert "not found" not in error["message"]
    assert await state_of(client, task) == "SUSPENDED"
    await client.call(settle, good)
    error = await client.refused(settle, good)
    assert (error["code"], error["data"]["from"], error["data"]["to"]) == (
        -31010, "result", "result",
    )  # fmt: skip


@wire(lanes=False)
@pytest.mark.req("W-11", "I-5")
async def test_effects_are_listed_in_pages(house: House) -> None:
    """However many there are, no answer is too long for the connection."""
    client = await house.unix()
    session = await client.new_session()
    params = {"sessionId": session, "tool": "x", "arguments": {}}
    task = (await client.call("_goclaw/task/submit", params))["taskId"]
    tid = (await house.engine.task(task))["tid"]
    database, now = house.engine.database, house.engine.clock.wall_ms()
    await database.write(
        "claim", pool="", owner="o", token=b"t" * 16, lease_until_mono=1 << 60,
        policy_version="p", aging_factor=1, now=now,
    )  # fmt: skip
    await database.apply(
        *(
            database.bind(
                "effect_record", tid=tid, token=b"t" * 16, ordinal=ordinal, kind="tool", name="t",
                key="k", hash=b"h" * 32, request=b"{}", result=b"1", failed=0, now=now,
            )
            for ordinal in range(1_003)
        )
    )  # fmt: skip
    found: list[int] = []
    after = None
    while True:
        page = await client.call("_goclaw/effects/list", {"taskId": task, "after": after})
        found += [effect["ordinal"] for effect in page["effects"]]
        after = page.get("next")
        if after is None:
            break
    assert found == list(range(1_003))
    few = await client.call("_goclaw/effects/list", {"taskId": task, "after": 999, "limit": 2})
    assert [effect["ordinal"] for effect in few["effects"]] == [1_000, 1_001]


CLOSED = (
    default.TEXT
    + """
[[rule]]
id = "nobody-repeats"
effect = "deny"
actions = ["admin.effects"]
resources = [{ prefix = "redo/" }, { prefix = "probe/" }]
reason = "what is unknown stays as it is"
"""
)


@wire(policy=CLOSED)
@pytest.mark.req("A-2", "A-8", "E-3", "I-6")
async def test_the_policy_says_who_may(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task = await lost(client, 1)
    about = {"taskId": task, "ordinal": 0}
    for verb in ("redo", "probe"):
        error = await client.refused(f"_goclaw/effects/{verb}", about)
        assert (error["code"], error["data"]["ruleId"]) == (-31005, "nobody-repeats")
    assert await state_of(client, task) == "SUSPENDED"
    await client.call("_goclaw/effects/settle", {**about, "outcome": "not_done"})
