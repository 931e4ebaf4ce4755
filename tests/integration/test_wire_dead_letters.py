"""Proves the methods of dead letters over the wire: shapes, refusals, who may and what is audited.

Owns nothing but the tests. Not in here: what a redrive does to a task (test_engine_dead_letters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from wire_support import OPTED_IN, House, wire

from goclaw.core import limits
from goclaw.core.config import Config, QueueConfig
from goclaw.policy import default

if TYPE_CHECKING:
    from wire_support import Client

REDRIVE, DROP = "_goclaw/task/redrive", "_goclaw/task/drop"


async def dead(client: Client, count: int = 1, fingerprint: str = "f") -> list[str]:
    """Dead letters, each of a session and a pool of its own (no breaker opens), as workers leave
    them."""
    found = []
    for number in range(count):
        pool = f"p{number}"
        params = {
            "sessionId": await client.new_session(), "pool": pool, "payload": 1, "maxAttempts": 1
        }  # fmt: skip
        await client.call("_goclaw/task/submit", params)
        (claimed,) = (await client.call("_goclaw/worker/claim", {"pool": pool}))["tasks"]
        failed = await client.call(
            "_goclaw/worker/fail",
            {"taskId": claimed["taskId"], "leaseToken": claimed["leaseToken"], "code": "gone",
             "message": "It is gone.", "retryable": True, "fingerprint": fingerprint},
        )  # fmt: skip
        assert failed["state"] == "DEAD_LETTER"
        found.append(claimed["taskId"])
    return found


async def decisions(house: House, action: str) -> list[dict[str, Any]]:
    found = await house.engine.database.read("audit_after", seq=0, limit=1_000)
    records = [orjson.loads(row[2]) for row in found]
    return [record for record in records if record["action"] == action]


async def states(client: Client, tasks: list[str]) -> list[str]:
    return [(await client.call("_goclaw/task/get", {"taskId": task}))["state"] for task in tasks]


@wire()
@pytest.mark.req("Q-7", "W-11", "A-8", "G-22")
async def test_one_is_listed_redriven_and_dropped(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    (task,) = await dead(client)
    (letter,) = (await client.call("_goclaw/admin/dlq", {"verb": "list"}))["tasks"]
    assert (letter["taskId"], letter["work"], letter["fingerprint"]) == (task, "pool:p0", "f")
    assert (letter["reason"], letter["attempt"], letter["failures"], letter["crashes"]) == (
        "attempts_exhausted", 1, 1, 0,
    )  # fmt: skip
    assert letter["error"] == {"code": "gone", "message": "It is gone."}
    dry = await client.call(REDRIVE, {"taskId": task, "dryRun": True})
    assert dry == {"tasks": [task], "skipped": []}
    assert (await states(client, [task]), await decisions(house, "admin.redrive")) == (
        ["DEAD_LETTER"], [],
    )  # fmt: skip
    done = await client.call(REDRIVE, {"taskId": task})
    assert set(done) == {"tasks", "skipped", "eventId"}
    assert done["tasks"] == [task]
    (again,) = (await client.call("_goclaw/worker/claim", {"pool": "p0"}))["tasks"]
    assert (again["taskId"], again["attempt"]) == (task, 2)
    await client.call(
        "_goclaw/worker/fail",
        {"taskId": task, "leaseToken": again["leaseToken"], "code": "x", "retryable": True},
    )  # fmt: skip
    dropped = await client.call(DROP, {"taskId": task})
    assert (dropped["tasks"], isinstance(dropped["eventId"], int)) == ([task], True)
    assert (await client.call("_goclaw/admin/dlq", {}))["tasks"] == []
    for action in ("admin.redrive", "admin.drop"):
        (record,) = await decisions(house, action)
        assert (record["resource"], record["effect"]) == (task, "allow")
        assert record["subject"]["kind"] == "client"


@wire(config=Config(queue=QueueConfig(session_limit=1)))
@pytest.mark.req("Q-7", "Q-10", "W-11")
async def test_all_of_a_fingerprint_in_pages_with_what_was_left(house: House) -> None:
    client = await house.unix()
    tasks = await dead(client, 4)
    (other,) = await dead(client, fingerprint="g")
    session = (await client.call("_goclaw/task/get", {"taskId": tasks[1]}))["sessionId"]
    busy = await client.call("_goclaw/task/submit", {"sessionId": session, "pool": "q"})
    page = await client.call("_goclaw/admin/dlq", {"fingerprint": "f", "limit": 3})
    assert [one["taskId"] for one in page["tasks"]] == tasks[:0:-1]
    page = await client.call(
        "_goclaw/admin/dlq", {"fingerprint": "f", "limit": 3, "after": page["next"]}
    )
    assert ([one["taskId"] for one in page["tasks"]], "next" in page) == (tasks[:1], False)
    params = {"fingerprint": "f", "limit": 2}
    first = await client.call(REDRIVE, params)
    assert first["tasks"] == [tasks[0]]
    (left,) = first["skipped"]
    assert (left["taskId"], left["code"], set(left)) == (
        tasks[1], "queue_full", {"taskId", "code", "message"},
    )  # fmt: skip
    second = await client.call(REDRIVE, {**params, "after": first["next"]})
    assert (second["tasks"], "next" in second) == (tasks[2:], False)
    assert await states(client, [*tasks, other]) == [
        "QUEUED", "DEAD_LETTER", "QUEUED", "QUEUED", "DEAD_LETTER",
    ]  # fmt: skip
    await client.call("_goclaw/task/cancel", {"taskId": busy["taskId"]})
    assert (await client.call(REDRIVE, {"fingerprint": "f"}))["tasks"] == [tasks[1]]
    assert (await client.call(DROP, {"fingerprint": "g"}))["tasks"] == [other]
    assert (await client.call(DROP, {"fingerprint": "none"})) == {"tasks": [], "skipped": []}


@wire()
@pytest.mark.req("W-5", "W-11", "Q-1")
async def test_refusals_are_named(house: House) -> None:
    client = await house.unix()
    (task,) = await dead(client)
    for method in (REDRIVE, DROP):
        for params, code in (
            ({}, -32602),
            ({"taskId": task, "fingerprint": "f"}, -32602),
            ({"taskId": ""}, -32602),
            ({"taskId": 1}, -32602),
            ({"taskId": "task_none"}, -31016),
            ({"taskId": task, "dryRun": 1}, -32602),
            ({"fingerprint": "f" * (limits.MESSAGE_CHARS_MAX + 1)}, -32602),
            ({"fingerprint": "f", "after": "x"}, -32602),
            ({"fingerprint": "f", "limit": 0}, -32602),
        ):
            error = await client.refused(method, params)
            assert error["code"] == code, (method, params)
            assert "not found" not in error["message"]
    for params in ({"verb": "burn"}, {"after": "9" * 30}, {"limit": -1}):
        assert (await client.refused("_goclaw/admin/dlq", params))["code"] == -32602
    assert await states(client, [task]) == ["DEAD_LETTER"]
    await client.call(REDRIVE, {"taskId": task})
    error = await client.refused(REDRIVE, {"taskId": task})
    assert (error["code"], error["data"]["from"], error["data"]["to"]) == (
        -31010, "QUEUED", "QUEUED",
    )  # fmt: skip
    assert (await client.refused(DROP, {"taskId": task}))["code"] == -31010


NOBODY = (
    default.TEXT
    + """
[[rule]]
id = "what-is-dead-stays-dead"
effect = "deny"
actions = ["admin.redrive"]
reason = "nobody brings it back"
"""
)


@wire(policy=NOBODY)
@pytest.mark.req("A-2", "A-8", "I-6")
async def test_the_policy_says_who_may(house: House) -> None:
    client = await house.unix()
    (task,) = await dead(client)
    for extra in ({}, {"dryRun": True}):
        error = await client.refused(REDRIVE, {"taskId": task, **extra})
        assert (error["code"], error["data"]["ruleId"]) == (-31005, "what-is-dead-stays-dead")
        moved = await client.call(REDRIVE, {"fingerprint": "f", **extra})
        assert (moved["tasks"], moved["skipped"][0]["code"]) == ([], "policy_denied")
    assert await states(client, [task]) == ["DEAD_LETTER"]
    assert (await client.call(DROP, {"taskId": task}))["tasks"] == [task]
