"""Proves that a person is asked everywhere and answers once.

Owns nothing but the tests. Not in here: what opens an approval (the engine's tests).
"""

from __future__ import annotations

from typing import Any

import pytest
from wire_support import OPTED_IN, Client, House, wire

from goclaw.core import limits
from goclaw.policy import default


async def asked(client: Client, after: int = 0) -> dict[str, Any]:
    """The first request for permission behind the first ``after`` messages."""
    return await client.wait_for(
        lambda m: (
            m.get("method") == "session/request_permission" and client.messages.index(m) >= after
        )
    )


async def reply(client: Client, question: dict[str, Any], option: str) -> None:
    outcome = {"outcome": "selected", "optionId": option}
    await client.send({"id": question["id"], "result": {"outcome": outcome}})


@wire()
@pytest.mark.req("W-8", "A-7")
async def test_a_person_says_yes_or_no(house: House) -> None:
    for client in (await house.unix(), await house.ws()):
        for option, said in (("allow", "completed"), ("reject", "rejected")):
            session = await client.new_session()
            request = await client.prompt(session, "ask:rm")
            question = await asked(client, len(client.messages) - 1)
            params = question["params"]
            assert params["sessionId"] == session
            assert params["toolCall"]["title"] == "rm"
            kinds = [o["kind"] for o in params["options"]]
            assert kinds == ["allow_once", "allow_always", "reject_once"]
            assert params["_meta"]["goclaw"]["approvalId"].startswith("approval_")
            # the call was shown before the question
            shown = [p["update"]["sessionUpdate"] for p in client.updates(session)]
            assert "tool_call" in shown
            await reply(client, question, option)
            assert (await client.answer(request))["result"]["stopReason"] == "end_turn"
            assert client.said().endswith(said)


@wire()
@pytest.mark.req("W-8")
async def test_everybody_is_asked_and_the_first_answer_counts(house: House) -> None:
    one, two, three = await house.unix(), await house.ws(**OPTED_IN), await house.unix(**OPTED_IN)
    session = await one.new_session()
    await two.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    await three.call("_goclaw/session/subscribe", {"sessionId": session, "role": "observer"})
    request = await one.prompt(session, "ask:rm")
    first, second = await asked(one), await asked(two)
    assert first["params"] == second["params"]
    await reply(two, second, "allow")
    assert (await one.answer(request))["result"]["stopReason"] == "end_turn"
    withdrawn = await one.wait_for(lambda m: m.get("method") == "$/cancel_request")
    assert withdrawn["params"] == {"requestId": first["id"]}
    for client in (two, three):
        told = await client.wait_for(lambda m: m.get("method") == "_goclaw/approval/resolved")
        assert told["params"]["outcome"] == "allow"
        assert told["params"]["approvalId"] == first["params"]["_meta"]["goclaw"]["approvalId"]
    assert not [m for m in three.messages if m.get("method") == "session/request_permission"]
    # a late answer is nobody's business
    await reply(one, first, "reject")
    assert (await one.turn(session, "after"))["stopReason"] == "end_turn"


@wire()
@pytest.mark.req("W-8")
async def test_the_undecided_are_asked_again_behind_the_replay(house: House) -> None:
    one = await house.unix()
    session = await one.new_session()
    await one.prompt(session, "bulk:2000x1000 ask:rm done")
    question = await asked(one)
    await one.close()
    for method, more in (
        ("session/load", {"cwd": "/tmp", "mcpServers": []}),
        ("session/resume", {"cwd": "/tmp", "_meta": {"goclaw": {"fromEventId": 0}}}),
        ("_goclaw/session/subscribe", {"fromEventId": 0}),
        ("_goclaw/session/subscribe", {}),
    ):
        two = await house.ws(**OPTED_IN)
        request = await two.request(method, {"sessionId": session, **more})
        again = await asked(two)
        answer = await two.answer(request)
        assert again["params"] == question["params"], method
        at = two.messages.index(again)
        assert at > two.messages.index(answer)
        if "fromEventId" in str(more):
            assert two.event_ids(session)[-1] == (await house.engine.intake.session(session)).head
            seen = [m for m in two.messages[:at] if "eventId" in str(m.get("params", {}))]
            assert len(seen) == len(two.event_ids(session))
        await two.close()
    three = await house.unix()
    await three.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    await reply(three, await asked(three), "allow")
    await three.wait_for(lambda m: "done" in str(m.get("params", {}).get("update", {})))


@wire()
@pytest.mark.req("W-8")
async def test_a_client_that_cannot_be_asked_is_left_out(house: House) -> None:
    one = await house.unix()
    session = await one.new_session()
    request = await one.prompt(session, "ask:rm")
    question = await asked(one)
    await one.send({"id": question["id"], "error": {"code": -32601, "message": "no"}})
    listed = await one.call("_goclaw/approvals/list")
    approval = listed["approvals"][0]["approvalId"]
    outcome = await one.call(
        "_goclaw/approvals/resolve", {"approvalId": approval, "optionId": "reject"}
    )
    assert outcome == {"outcome": "reject"}
    assert "result" in await one.answer(request)
    request = await one.prompt(session, "ask:again")
    other = await house.ws()
    await other.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    await reply(other, await asked(other), "allow")
    assert "result" in await one.answer(request)
    assert len([m for m in one.messages if m.get("method") == "session/request_permission"]) == 1


@wire()
@pytest.mark.req("W-8", "W-5", "A-7")
async def test_approvals_over_the_extension(house: House) -> None:
    one, two = await house.unix(), await house.unix()
    session = await one.new_session()
    request = await one.prompt(session, "ask:rm")
    await asked(one)
    listed = (await two.call("_goclaw/approvals/list", {"sessionId": session}))["approvals"]
    assert [a["sessionId"] for a in listed] == [session]
    assert listed[0]["request"]["toolCall"]["title"] == "rm"
    assert listed[0]["expiresAt"] > listed[0]["createdAt"]
    approval = listed[0]["approvalId"]
    error = await two.refused(
        "_goclaw/approvals/resolve", {"approvalId": approval, "optionId": "maybe"}
    )
    assert error["code"] == -32602
    await two.call("_goclaw/approvals/resolve", {"approvalId": approval, "optionId": "allow"})
    error = await two.refused(
        "_goclaw/approvals/resolve", {"approvalId": approval, "optionId": "reject"}
    )
    assert (error["code"], error["data"]["outcome"]) == (-31007, "allow")
    error = await two.refused(
        "_goclaw/approvals/resolve", {"approvalId": "approval_none", "optionId": "allow"}
    )
    assert error["code"] == -31016
    assert "result" in await one.answer(request)
    assert (await two.call("_goclaw/approvals/list"))["approvals"] == []
    # the answer and the decision that let this client give it are one commit
    records = [row[2] for row in await house.engine.database.read("audit_after", seq=0, limit=100)]
    assert any(b'"approval.answer"' in record for record in records)


@wire()
@pytest.mark.req("W-7", "W-8")
async def test_cancel_with_a_question_open(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    request = await client.prompt(session, "ask:rm never")
    question = await asked(client)
    await client.notify("session/cancel", {"sessionId": session})
    await client.send({"id": question["id"], "result": {"outcome": {"outcome": "cancelled"}}})
    assert (await client.answer(request))["result"]["stopReason"] == "cancelled"
    assert (await client.call("_goclaw/approvals/list"))["approvals"] == []
    assert (await client.turn(session, "after"))["stopReason"] == "end_turn"
    assert client.said() == "after"


@wire()
@pytest.mark.req("W-8")
async def test_a_dialog_that_was_dismissed_stays_open(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    request = await client.prompt(session, "ask:rm")
    question = await asked(client)
    for result in ({"outcome": {"outcome": "cancelled"}}, None):
        await client.send({"id": question["id"], "result": result})
    (approval,) = (await client.call("_goclaw/approvals/list"))["approvals"]
    await client.call("session/resume", {"sessionId": session, "cwd": "/tmp"})
    again = await asked(client, client.messages.index(question) + 1)
    assert again["params"]["_meta"]["goclaw"]["approvalId"] == approval["approvalId"]
    await reply(client, again, "allow")
    assert "result" in await client.answer(request)


NOBODY_ANSWERS = (
    default.TEXT
    + """
[[rule]]
id = "no-answers-over-the-network"
effect = "deny"
actions = ["approval.answer", "admin.*"]
subjects = [{ kind = "client", origin = "ws" }]
"""
)


@wire(policy=NOBODY_ANSWERS)
@pytest.mark.req("A-3", "I-6", "W-5")
async def test_who_may_answer_is_a_decision(house: House) -> None:
    one, two = await house.ws(), await house.unix()
    session = await one.new_session()
    request = await one.prompt(session, "ask:rm")
    question = await asked(one)
    await reply(one, question, "allow")
    (approval,) = (await one.call("_goclaw/approvals/list"))["approvals"]
    answer = {"approvalId": approval["approvalId"], "optionId": "allow"}
    error = await one.refused("_goclaw/approvals/resolve", answer)
    assert error["code"] == -31005
    assert error["data"]["ruleId"] == "no-answers-over-the-network"
    assert error["data"]["decisionId"].startswith("decision_")
    assert (await two.call("_goclaw/approvals/resolve", answer))["outcome"] == "allow"
    assert "result" in await one.answer(request)


@wire()
@pytest.mark.req("A-7", "W-8")
async def test_a_yes_for_the_session_is_a_grant_that_can_be_taken_back(house: House) -> None:
    client, editor = await house.unix(), await house.ws()
    session = await editor.new_session()
    request = await editor.prompt(session, "ask:rm")
    question = await asked(editor)
    (option,) = [o for o in question["params"]["options"] if o["kind"] == "allow_always"]
    about = question["params"]["_meta"]["goclaw"]["grant"]
    assert option["name"] == f"Allow for this session: rm on {about['resources'][0]}"
    await reply(editor, question, option["optionId"])
    assert (await editor.answer(request))["result"]["stopReason"] == "end_turn"
    (grant,) = (await client.call("_goclaw/approvals/grants"))["grants"]
    assert (grant["tool"], grant["sessionId"]) == ("rm", session)
    assert grant["resources"] == about["resources"]
    assert grant["usesLeft"] == limits.GRANT_USES_MAX
    # more of it asks nobody, and another session does
    before = len(editor.messages)
    assert (await editor.turn(session, "ask:rm"))["stopReason"] == "end_turn"
    assert not [m for m in editor.messages[before:] if "permission" in m.get("method", "")]
    (grant,) = (await client.call("_goclaw/approvals/grants"))["grants"]
    assert grant["usesLeft"] == limits.GRANT_USES_MAX - 1
    other = await editor.new_session()
    request = await editor.prompt(other, "ask:rm")
    await reply(editor, await asked(editor, before), "reject")
    assert (await editor.answer(request))["result"]["stopReason"] == "end_turn"
    # taken back: the next one is a question again
    await client.call("_goclaw/approvals/revoke", {"grantId": grant["grantId"]})
    before = len(editor.messages)
    request = await editor.prompt(session, "ask:rm")
    await reply(editor, await asked(editor, before), "reject")
    assert (await editor.answer(request))["result"]["stopReason"] == "end_turn"
    assert (await client.call("_goclaw/approvals/grants"))["grants"] == []
