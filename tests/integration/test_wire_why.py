"""Proves `_goclaw/task/why` over the wire: its shape, and that it takes no more than reading.

Owns nothing but the tests. Not in here: the reasons (test_engine_why.py).
"""

from __future__ import annotations

import pytest
from wire_support import OPTED_IN, House, wire

from goclaw.core.clock import wall_ms_of


@wire()
@pytest.mark.req("Q-14", "W-11", "W-5")
async def test_state_and_reasons_with_what_moves_the_task(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await client.prompt(session, "ask:dangerous")
    task = (await client.event("task.suspended"))["taskId"]
    found = await client.call("_goclaw/task/why", {"taskId": task})
    assert set(found) == {"state", "because"}
    (approval,) = (await client.call("_goclaw/approvals/list", {}))["approvals"]
    assert found["state"] == "SUSPENDED"
    (one,) = found["because"]
    assert set(one) == {"code", "text", "until", "command"}
    assert (one["code"], one["until"]) == ("approval", approval["expiresAt"])
    assert one["command"] == (
        f"goclaw approvals answer {approval['approvalId']} allow|allow_session|reject"
    )
    assert wall_ms_of(one["until"]) > house.engine.clock.wall_ms()
    params = {"sessionId": session, "tool": "x", "arguments": {}}
    behind = (await client.call("_goclaw/task/submit", params))["taskId"]
    turn, other = (await client.call("_goclaw/task/why", {"taskId": behind}))["because"]
    assert (turn["code"], set(turn)) == ("session_turn", {"code", "text"})
    assert other == {**one, "text": one["text"].replace("It waits", f"Task {task} waits")}
    assert (await client.refused("_goclaw/task/why", {"taskId": "task_none"}))["code"] == -31016
    assert (await client.refused("_goclaw/task/why", {}))["code"] == -32602
