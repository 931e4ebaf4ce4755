"""Proves that every command has its name on the wire, and what an error's data holds there.

Owns nothing but the tests. Not in here: what the methods do (``test_wire_work.py`` and others).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
import pytest
from wire_support import OPTED_IN, Client, House, text, wire

from goclaw.core import limits
from goclaw.core.config import Config, QueueConfig
from goclaw.gateway.server import METHODS
from goclaw.policy import default
from goclaw.protocol.methods import ERROR_DATA, MIRRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable


@wire()
@pytest.mark.req("W-11")
async def test_a_verb_says_what_its_method_says(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    turn = await client.turn(session, "hello")
    run = turn["_meta"]["goclaw"]["runId"]
    task = (await client.call("_goclaw/run/get", {"runId": run}))["taskId"]
    params = {"sessionId": session, "taskId": task, "runId": run, "states": [], "limit": 5}
    looking = {"list", "show"}  # the other words change something
    for verb, words in MIRRORS.items():
        for word, name in words.items():
            if word not in looking or name == f"_goclaw/admin/{verb}":
                continue
            found = await client.call(f"_goclaw/admin/{verb}", {**params, "verb": word})
            assert found == await client.call(name, params), (verb, word)
    # the first word is meant unless one is given, and others are refused
    assert "tasks" in await client.call("_goclaw/admin/task", {})
    assert (await client.refused("_goclaw/admin/task", {"verb": "eat"}))["code"] == -32602
    # verbs that change something change it, once
    waiting = await client.prompt(session, "wait:g")
    while not house.runner.gates:
        await client.call("session/list")
    (active,) = (await client.call("_goclaw/admin/task", {"states": ["RUNNING"]}))["tasks"]
    receipt = await client.call(
        "_goclaw/admin/task", {"verb": "cancel", "taskId": active["taskId"]}
    )
    assert receipt["outcome"] in ("stopped", "stopping")
    assert (await client.answer(waiting))["result"]["stopReason"] == "cancelled"
    error = await client.refused("_goclaw/admin/dlq", {"verb": "redrive", "taskId": task})
    assert error["code"] == -31010


NO_TASKS = (
    default.TEXT
    + """
[[rule]]
id = "no-administration-of-tasks"
effect = "deny"
actions = ["admin.task"]
"""
)


@wire(policy=NO_TASKS, loops=["uvloop"])
@pytest.mark.req("W-11", "A-2", "I-6")
async def test_a_verb_is_a_decision_of_its_own(house: House) -> None:
    client = await house.unix()
    error = await client.refused("_goclaw/admin/task", {"verb": "list"})
    assert (error["code"], error["data"]["ruleId"]) == (-31005, "no-administration-of-tasks")
    assert "tasks" in await client.call("_goclaw/task/list", {})


# -- what errors carry -------------------------------------------------------------------------

NEEDS = {kind.rpc: (kind.code, keys) for kind, keys in ERROR_DATA.items()}
STRICT = (
    default.TEXT
    + """
[[rule]]
id = "no-replays"
effect = "deny"
actions = ["admin.replay"]
"""
)
SMALL = Config(queue=QueueConfig(session_limit=1))


@wire(policy=STRICT, config=SMALL)
@pytest.mark.req("W-5")
async def test_every_error_carries_its_data(house: House) -> None:
    """Each code that a client can bring about by itself; the journal's are in test_workers_wire."""
    client, found = await house.unix(**OPTED_IN), set()
    session = await client.new_session()

    async def told(code: int, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        error = await answer
        name, keys = NEEDS[code]
        assert (error["code"], error["data"]["name"]) == (code, name), error
        assert set(keys) <= set(error["data"]), error
        assert "not found" not in error["message"].lower() or code == -32002
        found.add(code)
        data: dict[str, Any] = error["data"]
        return data

    def ask(method: str, **params: Any) -> Awaitable[dict[str, Any]]:
        return client.refused(method, params)

    def prompt(words: str, key: str) -> dict[str, Any]:
        meta = {"goclaw": {"idempotencyKey": key}}
        return {"sessionId": session, "prompt": text(words), "_meta": meta}

    turn = await client.turn(session, "one", idempotencyKey="k1")
    run = turn["_meta"]["goclaw"]["runId"]
    task = (await client.call("_goclaw/run/get", {"runId": run}))["taskId"]
    await told(-32002, ask("session/load", sessionId="session_none", cwd="/", mcpServers=[]))
    await told(-31002, ask("_goclaw/session/subscribe", sessionId=session, fromEventId=10**6))
    data = await told(-31003, client.refused("session/prompt", prompt("two", "k1")))
    assert (data["runId"], data["idempotencyKey"]) == (run, "k1")
    new = {"cwd": "/tmp", "mcpServers": [], "_meta": {"goclaw": {"idempotencyKey": "s"}}}
    await client.call("session/new", new)
    await told(-31003, client.refused("session/new", {**new, "cwd": "/"}))
    events = (await client.call("_goclaw/session/events", {"sessionId": session}))["events"]
    began = next(e["_meta"]["goclaw"]["eventId"] for e in events
             if e.get("event", {}).get("type") == "task.running")  # fmt: skip
    await client.call("_goclaw/admin/fork", {"runId": run, "at": began, "idempotencyKey": "f"})
    await told(-31003, ask("_goclaw/admin/fork", runId=run, at=began + 1, idempotencyKey="f"))
    request = await client.prompt(session, "ask:may")
    question = await client.wait_for(lambda m: m.get("method") == "session/request_permission")
    approval = question["params"]["_meta"]["goclaw"]["approvalId"]
    await told(-31004, client.refused("session/prompt", prompt("three", "k3")))
    yes = {"approvalId": approval, "optionId": question["params"]["options"][0]["optionId"]}
    await client.call("_goclaw/approvals/resolve", yes)
    await told(-31007, client.refused("_goclaw/approvals/resolve", yes))
    await client.answer(request)
    await told(-31005, ask("_goclaw/admin/replay", runId=run))
    await told(-31010, ask("_goclaw/task/redrive", taskId=task))
    await told(-31010, ask("_goclaw/run/signal", runId=run, name="n"))
    for method, params in (
        ("_goclaw/task/get", {"taskId": "task_none"}),
        ("_goclaw/run/get", {"runId": "run_none"}),
        ("_goclaw/run/get", {"sessionId": session, "idempotencyKey": "none"}),
        ("_goclaw/approvals/resolve", {"approvalId": "none", "optionId": "x"}),
        ("_goclaw/effects/settle", {"taskId": task, "ordinal": 99, "outcome": "done"}),
    ):
        await told(-31016, client.refused(method, params))
    await told(-31009, lost(house))
    await told(-31008, before_initialize(house))
    await told(-31012, too_many(house))
    await told(-31013, out_of_scope(house, client, session))
    await told(-31017, too_long(house))
    with apsw.Connection(str(house.engine.database.path)) as connection:
        connection.execute("UPDATE sessions SET oldest = 4 WHERE session_id = ?", (session,))
    data = await told(-31001, ask("_goclaw/session/subscribe", sessionId=session, fromEventId=1))
    assert (data["requestedEventId"], data["oldestEventId"]) == (1, 4)
    with apsw.Connection(str(house.engine.database.path)) as connection:
        connection.execute("UPDATE sessions SET oldest = 1 WHERE session_id = ?", (session,))
    house.engine.intake.closed = True
    await told(-31006, client.refused("session/prompt", prompt("four", "k4")))
    # those of the journal: test_workers_wire.py
    assert set(NEEDS) - found == {-31011, -31015, -31018}


async def stranger(house: House) -> Client:
    """A client that has said nothing yet."""
    client = Client(await house.unix_link())
    house.clients.append(client)
    return client


async def lost(house: House) -> dict[str, Any]:
    client = await stranger(house)
    return await client.refused(
        "initialize",
        {"protocolVersion": 1,
         "clientCapabilities": {"_meta": {"goclaw": {"version": 1, "attemptToken": "none"}}}},
    )  # fmt: skip


async def before_initialize(house: House) -> dict[str, Any]:
    client = await stranger(house)
    return await client.refused("_goclaw/system/status")


async def too_many(house: House) -> dict[str, Any]:
    client = await house.unix()
    claim = {"pool": "p", "waitMs": limits.CLAIM_WAIT_MS_MAX}
    requests = [
        await client.request("_goclaw/worker/claim", claim)
        for _ in range(limits.CLAIMS_WAITING_MAX + 1)
    ]
    answer: dict[str, Any] = (await client.answer(requests[-1]))["error"]
    return answer


async def out_of_scope(house: House, client: Client, session: str) -> dict[str, Any]:
    await client.call("_goclaw/task/submit", {"sessionId": session, "pool": "q", "payload": 1})
    (work,) = (await client.call("_goclaw/worker/claim", {"pool": "q", "waitMs": 5000}))["tasks"]
    worker = await house.unix(
        _meta={"goclaw": {"version": 1, "attemptToken": work["attemptToken"]}}
    )
    error = await worker.refused("_goclaw/system/status")
    await client.call("_goclaw/task/cancel", {"taskId": work["taskId"]})
    return error


async def too_long(house: House) -> dict[str, Any]:
    client = await house.unix()
    await client.link.send(b"1" * (limits.FRAME_BYTES_MAX + 2))
    found: dict[str, Any] = (await client.wait_for(lambda m: "error" in m))["error"]
    return found


@pytest.mark.req("W-5")
def test_the_codes_lie_outside_every_reserved_range() -> None:
    own = [code for code in NEEDS if code != -32002]
    assert all(-31999 < code < -31000 for code in own)
    assert len(own) == len(ERROR_DATA) - 1
    assert set(METHODS) >= {f"_goclaw/admin/{verb}" for verb in MIRRORS}
