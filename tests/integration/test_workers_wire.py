"""Proves the methods of external workers over the wire: claims, leases, effects, last words (W-11).

Owns tests with a daemon's inside in this process. Not in here: workers and daemons that are killed
(test_workers_kills.py), the Python face (test_workers_client.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import Any

import pytest
from wire_support import OPTED_IN, Client, House, wire

from goclaw.core import limits
from goclaw.core.config import Config
from goclaw.policy.redact import Redactor, Registered

DIGEST = hashlib.sha256(b"request").hexdigest()
CALL = {"kind": "tool", "name": "charge", "requestHash": DIGEST}
SHORT = Config(queue=dataclasses.replace(Config().queue, lease_ms=1_000, backoff_ms_min=1))


async def submit(client: Client, session: str, payload: Any = None, **more: Any) -> str:
    params = {"sessionId": session, "pool": "p", "payload": payload, **more}
    task_id: str = (await client.call("_goclaw/task/submit", params))["taskId"]
    return task_id


async def claim(client: Client, most: int = 1, wait_ms: int = 10_000) -> list[dict[str, Any]]:
    params = {"pool": "p", "max": most, "waitMs": wait_ms, "workerId": "w1"}
    tasks: list[dict[str, Any]] = (await client.call("_goclaw/worker/claim", params))["tasks"]
    return tasks


def lease(task: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"taskId": task["taskId"], "leaseToken": task["leaseToken"], **more}


async def state(client: Client, task_id: str) -> dict[str, Any]:
    return await client.call("_goclaw/task/get", {"taskId": task_id})


async def until(client: Client, task_id: str, wanted: str) -> dict[str, Any]:
    """The task, once it is in that state; its session must be attached."""
    kind = {"QUEUED": "task.requeued"}.get(wanted, f"task.{wanted.lower()}")
    await client.wait_for(
        lambda m: (
            (event := m.get("params", {}).get("event", {})).get("type") == kind
            and event.get("taskId") == task_id
        )
    )
    return await state(client, task_id)


async def intent(client: Client, task: dict[str, Any], ordinal: int = 0, **more: Any) -> Any:
    params = lease(task, ordinal=ordinal, phase="intent", **{**CALL, **more})
    return await client.call("_goclaw/worker/effect", params)


async def result(client: Client, task: dict[str, Any], ordinal: int = 0, **more: Any) -> Any:
    params = lease(task, ordinal=ordinal, phase="result", **{**CALL, **more})
    return await client.call("_goclaw/worker/effect", params)


@wire()
@pytest.mark.req("W-11", "Q-3", "A-10")
async def test_work_from_submission_to_result(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    worker = await house.ws()
    session = await client.new_session()
    payload = {"a": [1, {"b": None}], "n": 2**53}
    task_id = await submit(client, session, payload, priority=7, maxAttempts=2)
    (task,) = await claim(worker, most=64)
    assert task["payload"] == payload
    assert (task["taskId"], task["sessionId"], task["attempt"]) == (task_id, session, 1)
    assert (task["maxAttempts"], task["leaseMs"], task["effects"]) == (2, limits.LEASE_MS, [])
    assert task["idempotencyKey"] == task_id
    assert task["traceparent"].startswith("00-")
    assert task["runId"].removeprefix("run_") == task_id.removeprefix("task_")
    shown = await state(client, task_id)
    assert (shown["state"], shown["leaseOwner"], shown["priority"]) == ("RUNNING", "w1", 7)
    assert await worker.call("_goclaw/worker/heartbeat", lease(task)) == {
        "leaseMs": limits.LEASE_MS
    }
    update = {
        "sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "at work"},
    }  # fmt: skip
    emitted = await worker.call("_goclaw/worker/emit", lease(task, update=update))
    done = await worker.call("_goclaw/worker/complete", lease(task, result={"n": 1}))
    assert done == {"state": "SUCCEEDED", "eventId": emitted["eventId"] + 1}
    await client.event("task.succeeded")
    assert client.said() == "at work"
    shown = await state(client, task_id)
    assert (shown["state"], shown["result"]) == ("SUCCEEDED", {"n": 1})
    # The same again: the same answer. Another result, or any other word: the lease is over.
    again = lease(task, result={"n": 1})
    assert await worker.call("_goclaw/worker/complete", again) == done
    for method, more in (
        ("complete", {"result": {"n": 2}}),
        ("heartbeat", {}),
        ("release", {}),
        ("emit", {"update": update}),
        ("fail", {"code": "x", "message": "", "retryable": True}),
        ("effect", {"ordinal": 0, "phase": "intent", **CALL}),
        ("effect", {"ordinal": 0, "phase": "result", **CALL}),
    ):
        error = await worker.refused(f"_goclaw/worker/{method}", lease(task, **more))
        assert (error["code"], error["data"]["taskId"]) == (-31009, task_id), method
    assert (await state(client, task_id))["result"] == {"n": 1}


@wire()
@pytest.mark.req("W-11", "W-1")
async def test_any_json_is_a_payload(house: House) -> None:
    """Nested as deep as a message may be, and with numbers beyond 64 bits."""
    client = await house.unix()
    session = await client.new_session()
    deep = limits.JSON_DEPTH_MAX - 3
    for number, body in enumerate((b"null", b"1" * 300, b"[" * deep + b"]" * deep)):
        await client.link.send(
            b'{"jsonrpc":"2.0","id":"s%d","method":"_goclaw/task/submit","params":'
            b'{"sessionId":"%s","pool":"p","idempotencyKey":"k%d","payload":%s}}'
            % (number, session.encode(), number, body)
        )
        assert "result" in await client.answer(f"s{number}")
        (task,) = await claim(client)
        assert b'"payload":' + body in client.raw[-1]
        await client.link.send(
            b'{"jsonrpc":"2.0","id":"c%d","method":"_goclaw/worker/complete","params":'
            b'{"taskId":"%s","leaseToken":"%s","result":%s}}'
            % (number, task["taskId"].encode(), task["leaseToken"].encode(), body)
        )
        assert "result" in await client.answer(f"c{number}")
        shown = await client.request("_goclaw/task/get", {"taskId": task["taskId"]})
        await client.answer(shown)
        assert b'"result":' + body in client.raw[-1]


@wire()
@pytest.mark.req("W-11")
async def test_a_claim_waits_and_a_commit_wakes_it(house: House) -> None:
    client = await house.unix()
    worker = await house.unix()
    session = await client.new_session()
    assert await claim(worker, wait_ms=0) == []
    assert await claim(worker, wait_ms=5) == []
    waiting = asyncio.ensure_future(claim(worker, wait_ms=30_000))
    await client.call("_goclaw/system/status")
    first, second = await submit(client, session, 1), await submit(client, session, 2)
    (task,) = await waiting
    assert task["taskId"] == first
    # The second waits for its session's turn; what frees it wakes the claim.
    waiting = asyncio.ensure_future(claim(worker, wait_ms=30_000))
    await worker.call("_goclaw/worker/complete", lease(task))
    (task,) = await waiting
    assert (task["taskId"], task["payload"]) == (second, 2)


@wire()
@pytest.mark.req("Q-3", "I-1")
async def test_every_task_has_one_winner(house: House) -> None:
    client = await house.unix()
    workers = [await house.unix() for _ in range(4)]
    session = await client.new_session()
    claims = [
        asyncio.ensure_future(claim(worker, most=3, wait_ms=30_000))
        for worker in workers
        for _ in range(2)
    ]
    tasks = {await submit(client, session, n, parallel=True) for n in range(20)}
    got = [task for found in await asyncio.gather(*claims) for task in found]
    while len(got) < 20:
        got += await claim(workers[0], most=64)
    assert len(got) == 20
    assert {task["taskId"] for task in got} == tasks
    assert len({task["leaseToken"] for task in got}) == 20


@wire()
@pytest.mark.req("W-11")
async def test_a_claim_takes_what_there_is_in_one_transaction(house: House) -> None:
    client = await house.unix()
    sessions = [await client.new_session() for _ in range(70)]
    for session in sessions:
        await submit(client, session)
    got = await claim(client, most=64)
    assert len(got) == 64
    assert {task["sessionId"] for task in got} < set(sessions)
    assert len(await claim(client, most=64)) == 6


@wire()
@pytest.mark.req("W-11", "W-5")
async def test_bad_claims_and_submissions_are_named(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    for params in (
        {}, {"pool": ""}, {"pool": "p", "max": 0}, {"pool": "p", "max": 65}, {"pool": 7},
        {"pool": "p", "waitMs": -1}, {"pool": "p", "waitMs": "1"}, {"pool": "p", "max": True},
    ):  # fmt: skip
        error = await client.refused("_goclaw/worker/claim", params)
        assert error["code"] == -32602, params
    more: dict[str, Any]
    for more in (
        {"tool": "x"}, {"arguments": {}}, {"priority": 10}, {"effectClass": "harmless"},
        {"maxAttempts": 0}, {"parallel": 1}, {"pool": "x" * 257},
    ):  # fmt: skip
        error = await client.refused(
            "_goclaw/task/submit", {"sessionId": session, "pool": "p", "payload": 1, **more}
        )
        assert error["code"] == -32602, more
    error = await client.refused(
        "_goclaw/task/submit", {"sessionId": session, "tool": "x", "payload": 1}
    )
    assert error["code"] == -32602
    error = await client.refused(
        "_goclaw/task/submit", {"sessionId": session, "pool": "p", "payload": "x" * 1024 * 1024}
    )
    assert (error["code"], error["data"]["limit"]) == (-31017, limits.PAYLOAD_BYTES_MAX)
    assert await claim(client, wait_ms=0) == []
    for method, more in (
        ("heartbeat", {}), ("complete", {}), ("release", {}),
        ("effect", {"ordinal": 0, "phase": "intent", **CALL}),
        ("emit", {"update": {"sessionUpdate": "plan", "entries": []}}),
        ("fail", {"code": "x", "message": "y", "retryable": False}),
    ):  # fmt: skip
        params = {"taskId": "task_none", "leaseToken": "0" * 32, **more}
        error = await client.refused(f"_goclaw/worker/{method}", params)
        assert (error["code"], error["data"]["what"]) == (-31016, "task"), method
        error = await client.refused(f"_goclaw/worker/{method}", {"taskId": "task_none", **more})
        assert error["code"] == -32602, method


@wire()
@pytest.mark.req("W-11")
async def test_tasks_are_listed_by_their_pool(house: House) -> None:
    client = await house.unix()
    session, other = await client.new_session(), await client.new_session()
    expected: dict[tuple[str | None, str | None], set[str]] = {}
    for place in (session, other):
        for pool in ("p", "q", "p"):
            task_id = await submit(client, place, pool=pool)
            for key in ((None, pool), (place, pool), (None, None), (place, None)):
                expected.setdefault(key, set()).add(task_id)
    for (place_or_none, pool_or_none), tasks in expected.items():
        params: dict[str, Any] = {"sessionId": place_or_none, "pool": pool_or_none, "limit": 2}
        seen: list[str] = []
        while params.get("after", "") is not None:
            page = await client.call("_goclaw/task/list", params)
            seen += [task["taskId"] for task in page["tasks"]]
            params["after"] = page.get("next")
        assert seen == sorted(tasks, reverse=True)
    shown = await client.call("_goclaw/task/list", {"pool": "q", "states": ["RUNNING"]})
    assert shown == {"tasks": []}
    assert (await client.call("_goclaw/task/list", {"pool": "none"})) == {"tasks": []}
    error = await client.refused("_goclaw/task/list", {"pool": 7})
    assert error["code"] == -32602


@wire(config=SHORT)
@pytest.mark.req("Q-13", "E-3")
async def test_a_time_out_leaves_an_unknown_effect_to_a_person(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    task_id = await submit(client, await client.new_session(), timeoutMs=500)
    (task,) = await claim(client)
    go = await intent(client, task)
    shown = await until(client, task_id, "SUSPENDED")
    assert (shown["reason"], shown["error"]["code"]) == ("effect_unknown", "attempt_timeout")
    error = await client.refused("_goclaw/worker/complete", lease(task, result=1))
    assert error["code"] == -31015
    settled = {"taskId": task_id, "ordinal": 0, "outcome": "done", "result": 5}
    await client.call("_goclaw/effects/settle", settled)
    (last,) = await claim(client)
    assert await intent(client, last) == {
        "go": False, "result": 5, "idempotencyKey": go["idempotencyKey"],
    }  # fmt: skip


@wire(config=dataclasses.replace(SHORT, queue=dataclasses.replace(SHORT.queue, crash_budget=1)))
@pytest.mark.req("Q-5", "E-3")
async def test_what_was_unknown_when_a_task_was_given_up_is_unknown_after_a_redrive(
    house: House,
) -> None:
    client = await house.unix(**OPTED_IN)
    task_id = await submit(client, await client.new_session())
    (task,) = await claim(client)
    await intent(client, task)
    shown = await until(client, task_id, "DEAD_LETTER")
    assert shown["reason"] == "crashes_exhausted"
    error = await client.refused("_goclaw/worker/heartbeat", lease(task))
    assert error["code"] == -31009
    await client.call("_goclaw/task/redrive", {"taskId": task_id})
    (again,) = await claim(client)
    error = await client.refused(
        "_goclaw/worker/effect", lease(again, ordinal=0, phase="intent", **CALL)
    )
    assert (error["code"], error["data"]["ordinal"]) == (-31015, 0)
    shown = await state(client, task_id)
    assert (shown["state"], shown["reason"]) == ("SUSPENDED", "effect_unknown")


@wire()
@pytest.mark.req("E-6", "W-6")
async def test_a_submission_is_known_by_its_key(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    params = {"sessionId": session, "pool": "p", "idempotencyKey": "k"}
    first = await client.call("_goclaw/task/submit", {**params, "payload": {"a": 1, "b": 2}})
    again = await client.call("_goclaw/task/submit", {**params, "payload": {"b": 2, "a": 1}})
    assert again["duplicate"] is True
    assert again["taskId"] == first["taskId"]
    for other in ({"payload": {"a": 1}}, {"payload": {"a": 1, "b": 2}, "pool": "q"}):
        error = await client.refused("_goclaw/task/submit", {**params, **other})
        assert error["code"] == -31003
    (task,) = await claim(client)
    # What goes out is made from the key, and is not the key.
    assert len(task["idempotencyKey"]) == 64
    assert await claim(client, wait_ms=0) == []


@wire()
@pytest.mark.req("Q-5", "Q-7", "W-11")
async def test_failures_wait_and_budgets_end(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session, maxAttempts=2)
    (task,) = await claim(client)
    word = lease(task, code="busy", message="", retryable=True, retryAfterMs=1)
    failed = await client.call("_goclaw/worker/fail", word)
    assert (failed["state"], failed["availableInMs"]) == ("RETRY_WAIT", 1)
    again = await client.call("_goclaw/worker/fail", word)
    assert (again["state"], again["eventId"]) == ("RETRY_WAIT", failed["eventId"])
    (task,) = await claim(client)
    assert task["attempt"] == 2
    ended = await client.call(
        "_goclaw/worker/fail", lease(task, code="busy", message="full", retryable=True)
    )
    assert ended["state"] == "DEAD_LETTER"
    assert "availableInMs" not in ended
    shown = await state(client, task_id)
    assert (shown["failures"], shown["crashes"], shown["reason"]) == (2, 0, "attempts_exhausted")
    other = await submit(client, session)
    (task,) = await claim(client)
    ended = await client.call(
        "_goclaw/worker/fail", lease(task, code="wrong", message="no", retryable=False)
    )
    assert ended["state"] == "FAILED"
    assert (await state(client, other))["error"] == {"code": "wrong", "message": "no"}
    for more in ({}, {"code": "x"}, {"retryable": True}, {"code": "x", "retryable": 1}):
        error = await client.refused("_goclaw/worker/fail", lease(task, **more))
        assert error["code"] == -32602, more


@wire()
@pytest.mark.req("Q-5", "Q-4")
async def test_a_release_spends_nothing(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    released = await client.call("_goclaw/worker/release", lease(task))
    assert released["state"] == "QUEUED"
    assert await client.call("_goclaw/worker/release", lease(task)) == released
    (second,) = await claim(client)
    assert second["attempt"] == 2
    assert await client.call("_goclaw/worker/release", lease(task)) == released
    shown = await state(client, task_id)
    assert (shown["state"], shown["crashes"], shown["failures"]) == ("RUNNING", 1, 0)
    await client.call("_goclaw/worker/complete", lease(second))
    assert (await state(client, task_id))["crashes"] == 0


@wire(config=SHORT)
@pytest.mark.req("Q-4", "Q-5", "Q-6", "I-1")
async def test_a_lease_that_runs_out_is_somebody_elses(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session, effectClass="pure")
    (first,) = await claim(client)
    assert await intent(client, first) == {"go": True, "idempotencyKey": first_key(first)}
    (second,) = await claim(client)
    assert (second["taskId"], second["attempt"]) == (task_id, 2)
    shown = await state(client, task_id)
    assert (shown["crashes"], shown["failures"]) == (2, 0)
    for method, more in (
        ("complete", {"result": 1}), ("heartbeat", {}), ("release", {}),
        ("effect", {"ordinal": 0, "phase": "result", "result": 1, **CALL}),
        ("effect", {"ordinal": 1, "phase": "intent", **CALL}),
        ("fail", {"code": "x", "message": "y", "retryable": False}),
    ):  # fmt: skip
        error = await client.refused(f"_goclaw/worker/{method}", lease(first, **more))
        assert error["code"] == -31009, method
    await client.call("_goclaw/worker/complete", lease(second, result="second"))
    assert (await state(client, task_id))["result"] == "second"


def first_key(task: dict[str, Any], ordinal: int = 0) -> str:
    parts = (task["idempotencyKey"], str(ordinal), CALL["name"])
    return hashlib.sha256(
        b"\0".join([part.encode() for part in parts] + [bytes.fromhex(DIGEST)])
    ).hexdigest()


@wire()
@pytest.mark.req("E-1", "E-2", "E-4")
async def test_what_is_journaled_is_not_done_again(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await submit(client, session)
    (task,) = await claim(client)
    go = await intent(client, task, 0)
    assert go == {"go": True, "idempotencyKey": first_key(task)}
    assert await intent(client, task, 0) == go  # a repeat: the answer may have been lost
    # Intents may run ahead of results; holes are refused and leave nothing.
    ahead = await intent(client, task, 1, name="mail", requestHash="a hash of its own")
    assert ahead["go"] is True
    error = await client.refused(
        "_goclaw/worker/effect", lease(task, ordinal=3, phase="intent", **CALL)
    )
    assert (error["code"], error["data"]["param"]) == (-32602, "ordinal")
    assert await result(client, task, 1, error={"code": "refused"}) == {}
    assert await result(client, task, 0, result={"id": 7}) == {}
    assert await result(client, task, 0, result={"id": 7}) == {}
    error = await client.refused(
        "_goclaw/worker/effect", lease(task, ordinal=0, phase="result", result=8, **CALL)
    )
    assert (error["code"], error["data"]["from"]) == (-31010, "result")
    known = {"go": False, "result": {"id": 7}, "idempotencyKey": first_key(task)}
    assert await intent(client, task, 0) == known
    await client.call("_goclaw/worker/release", lease(task))
    (second,) = await claim(client)
    assert [
        (effect["ordinal"], effect["name"], effect["result"], effect.get("error"))
        for effect in second["effects"]
    ] == [(0, "charge", {"id": 7}, None), (1, "mail", None, {"code": "refused"})]
    assert second["effects"][0]["requestHash"] == DIGEST
    assert await intent(client, second, 0) == known
    told = await intent(client, second, 1, name="mail", requestHash="a hash of its own")
    assert (told["go"], told["error"]) == (False, {"code": "refused"})
    assert (await intent(client, second, 2))["go"] is True


@wire()
@pytest.mark.req("E-2")
async def test_another_effect_than_the_journals_suspends_the_task(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    await intent(client, task)
    await result(client, task, result=1)
    await client.call("_goclaw/worker/release", lease(task))
    (task,) = await claim(client)
    other = hashlib.sha256(b"another").hexdigest()
    error = await client.refused(
        "_goclaw/worker/effect",
        lease(task, ordinal=0, phase="intent", **{**CALL, "requestHash": other}),
    )
    assert error["code"] == -31011
    assert (error["data"]["recorded"], error["data"]["requested"]) == (DIGEST, other)
    shown = await state(client, task_id)
    assert (shown["state"], shown["reason"]) == ("SUSPENDED", "nondeterminism")
    error = await client.refused("_goclaw/worker/heartbeat", lease(task))
    assert error["code"] == -31009


@wire(config=SHORT)
@pytest.mark.req("E-3", "I-4")
async def test_an_unknown_effect_suspends_its_task(house: House) -> None:
    """Lost, released or failed with a call that nobody has an answer for: a person decides."""
    client = await house.unix(**OPTED_IN)
    for how in ("lost", "release", "fail", "probeable"):
        session = await client.new_session()
        task_id = await submit(client, session)
        (task,) = await claim(client)
        kind: dict[str, Any] = {"class": "probeable"} if how == "probeable" else {}
        await intent(client, task, **kind)
        if how == "release":
            answer = await client.call("_goclaw/worker/release", lease(task))
            assert answer["state"] == "SUSPENDED"
        elif how == "fail":
            word = lease(task, code="timeout", message="", retryable=True)
            answer = await client.call("_goclaw/worker/fail", word)
            assert answer["state"] == "SUSPENDED"
            assert await client.call("_goclaw/worker/fail", word) == answer
        shown = await until(client, task_id, "SUSPENDED")
        assert (shown["reason"], shown["failures"]) == ("effect_unknown", int(how == "fail"))
        for method, more in (
            ("heartbeat", {}),
            ("complete", {"result": 1}),
            ("effect", {"ordinal": 0, "phase": "result", "result": 1, **CALL}),
        ):
            error = await client.refused(f"_goclaw/worker/{method}", lease(task, **more))
            assert error["code"] == -31015, (how, method)
            assert error["data"] | {"taskId": task_id, "ordinal": 0} == error["data"]
        # Anybody else's token is merely stale.
        error = await client.refused(
            "_goclaw/worker/heartbeat", {"taskId": task_id, "leaseToken": "f" * 32}
        )
        assert error["code"] == -31009
        await client.call(
            "_goclaw/effects/settle", {"taskId": task_id, "ordinal": 0, "outcome": "not_done"}
        )
        (again,) = await claim(client)
        assert await intent(client, again) == {"go": True, "idempotencyKey": first_key(task)}
        await result(client, again, result=1)
        await client.call("_goclaw/worker/complete", lease(again))
        error = await client.refused("_goclaw/worker/heartbeat", lease(task))
        assert error["code"] == -31009


@wire(config=SHORT)
@pytest.mark.req("E-3", "E-4")
async def test_keyed_and_pure_effects_are_sent_again(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    await submit(client, session, effectClass="keyed")
    (task,) = await claim(client)
    go = await intent(client, task, 0)
    await intent(client, task, 1, **{"class": "pure", "name": "look"})
    assert await result(client, task, 2, result=[3], **{"class": "pure", "name": "think"}) == {}
    (second,) = await claim(client)
    assert await intent(client, second, 0) == go
    assert (await intent(client, second, 1, **{"class": "pure", "name": "look"}))["go"] is True
    assert (await intent(client, second, 2, name="think"))["result"] == [3]
    assert [effect["ordinal"] for effect in second["effects"]] == [2]


@wire()
@pytest.mark.req("E-2")
async def test_an_effect_that_was_not_sent_may_be_sent_again(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    go = await intent(client, task)
    unsent = {"code": "refused", "retryable": True}
    assert await result(client, task, error=unsent) == {}
    assert await result(client, task, error=unsent) == {}
    failed = await client.call(
        "_goclaw/worker/fail",
        lease(task, code="refused", message="", retryable=True, retryAfterMs=0),
    )
    assert failed["state"] == "RETRY_WAIT"
    (again,) = await claim(client)
    assert (again["taskId"], again["effects"]) == (task_id, [])
    assert await intent(client, again) == go


@wire()
@pytest.mark.req("E-3")
async def test_an_end_says_what_its_worker_owes(house: House) -> None:
    """An intent without a result is unknown as soon as its attempt is over, however it went."""
    client = await house.unix(**OPTED_IN)
    for word, more in (
        ("complete", {"result": 1}),
        ("fail", {"code": "x", "message": "", "retryable": False}),
    ):
        task_id = await submit(client, await client.new_session())
        (task,) = await claim(client)
        await intent(client, task, 0)
        await result(client, task, 0, result=1)
        await intent(client, task, 1)
        await intent(client, task, 2, **{"class": "keyed"})
        ended = await client.call(f"_goclaw/worker/{word}", lease(task, **more))
        assert await client.call(f"_goclaw/worker/{word}", lease(task, **more)) == ended
        listed = await client.call("_goclaw/effects/list", {"taskId": task_id})
        states = [effect["state"] for effect in listed["effects"]]
        assert states == ["result", "unknown", "retryable"], word


@wire()
@pytest.mark.req("E-4", "E-5")
async def test_a_key_of_the_workers_own(house: House) -> None:
    client = await house.unix()
    tasks = []
    for _ in range(3):
        await submit(client, await client.new_session())
        tasks += await claim(client)
    first, second, third = tasks
    own: dict[str, Any] = {"idempotencyKey": "order-1"}
    assert await intent(client, first, **own) == {"go": True, "idempotencyKey": "order-1"}
    # While nobody knows what became of it, the key is taken.
    error = await client.refused(
        "_goclaw/worker/effect", lease(second, ordinal=0, phase="intent", **CALL, **own)
    )
    assert (error["code"], error["data"]["idempotencyKey"]) == (-31003, "order-1")
    await result(client, first, result={"id": 1})
    assert await intent(client, second, **own) == {
        "go": False, "result": {"id": 1}, "idempotencyKey": "order-1", "deduplicated": True,
    }  # fmt: skip
    # Another tool's key of the same name is another key; other arguments are a conflict.
    assert (await intent(client, third, name="mail", **own))["go"] is True
    other = {**CALL, "requestHash": "x", **own}
    error = await client.refused(
        "_goclaw/worker/effect", lease(third, ordinal=1, phase="intent", **other)
    )
    assert error["code"] == -31003
    assert (await intent(client, third, 1))["go"] is True


@wire()
@pytest.mark.req("W-11")
async def test_many_leases_in_one_heartbeat(house: House) -> None:
    client = await house.unix()
    for _ in range(3):
        await submit(client, await client.new_session())
    tasks = await claim(client, most=3)
    await client.call("_goclaw/worker/release", lease(tasks[1]))
    leases = [lease(task) for task in tasks] + [{"taskId": "task_none", "leaseToken": "x"}]
    answer = await client.call("_goclaw/worker/heartbeat", {"leases": leases})
    assert [entry["ok"] for entry in answer["leases"]] == [True, False, True, False]
    assert [entry["taskId"] for entry in answer["leases"]] == [one["taskId"] for one in leases]
    assert answer["leases"][0]["leaseMs"] == limits.LEASE_MS
    error = await client.refused("_goclaw/worker/heartbeat", {"leases": [{}] * 1001})
    assert error["code"] == -32602


@wire()
@pytest.mark.req("W-11", "W-5")
async def test_what_is_too_large_is_named_and_changes_nothing(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    chunk = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": ""}}
    large = {**chunk, "content": {"type": "text", "text": "x" * limits.EVENT_BYTES_MAX}}
    await intent(client, task)
    for method, more, limit in (
        ("complete", {"result": "x" * limits.RESULT_BYTES_MAX}, limits.RESULT_BYTES_MAX),
        ("emit", {"update": large}, limits.EVENT_BYTES_MAX),
        (
            "effect",
            {"ordinal": 0, "phase": "result", "result": "x" * limits.TOOL_OUTPUT_BYTES_MAX},
            limits.TOOL_OUTPUT_BYTES_MAX,
        ),
    ):
        error = await client.refused(f"_goclaw/worker/{method}", lease(task, **more))
        assert (error["code"], error["data"]["limit"]) == (-31017, limit), method
    for update in (None, {}, {"sessionUpdate": "odd"}, {"sessionUpdate": "plan"}, 7):
        error = await client.refused("_goclaw/worker/emit", lease(task, update=update))
        assert error["code"] == -32602, update
    error = await client.refused(
        "_goclaw/worker/effect",
        lease(task, ordinal=limits.EFFECTS_MAX, phase="intent", **CALL),
    )
    assert error["code"] == -31018
    await client.call("_goclaw/worker/complete", lease(task, result="fits"))
    assert (await state(client, task_id))["result"] == "fits"


@wire()
@pytest.mark.req("W-11")
async def test_large_payloads_come_a_few_at_a_time(house: House) -> None:
    client = await house.unix()
    payload = "x" * (limits.PAYLOAD_BYTES_MAX - 2)
    for _ in range(5):
        await submit(client, await client.new_session(), payload)
    got = await claim(client, most=5)
    assert 1 <= len(got) <= 4
    rest = await claim(client, most=5)
    assert len({task["taskId"] for task in got + rest}) == 5
    assert all(task["payload"] == payload for task in got + rest)
    # What did not fit went back and spent nothing.
    for task in rest:
        await client.call("_goclaw/worker/complete", lease(task))
        assert (await state(client, task["taskId"]))["crashes"] == 0


@wire()
@pytest.mark.req("Q-11", "W-11")
async def test_a_cancelled_task_takes_no_late_word(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    await intent(client, task)
    await result(client, task, result=1)
    receipt = await client.call("_goclaw/task/cancel", {"taskId": task_id})
    assert (receipt["outcome"], receipt["effectsDone"]) == ("may_still_be_running", ["charge"])
    error = await client.refused("_goclaw/worker/complete", lease(task, result=1))
    assert error["code"] == -31009
    receipt = await client.call("_goclaw/task/cancel", {"taskId": task_id})
    assert receipt["outcome"] == "already_finished"
    assert (await state(client, task_id))["state"] == "CANCELED"


@wire()
@pytest.mark.req("Q-11", "Q-4", "W-11")
async def test_what_is_said_after_a_cancel_is_joined_to_its_attempt_once(house: House) -> None:
    """Each time the worker is told that its lease is lost."""
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    await intent(client, task)
    await client.call("_goclaw/task/cancel", {"taskId": task_id})
    said = {"ordinal": 0, "phase": "result", **CALL, "result": {"paid": 5}}
    ways: tuple[tuple[str, dict[str, Any]], ...] = (("effect", said), ("complete", {"result": 7}))
    for method, more in ways:
        for _ in range(2):
            error = await client.refused(f"_goclaw/worker/{method}", lease(task, **more))
            assert error["code"] == -31009
    late = await client.event("attempt.late")
    assert (late["attempt"], late["result"]) == (1, 7)
    page = await client.call("_goclaw/session/events", {"sessionId": session})
    types = [one.get("event", {}).get("type") for one in page["events"]]
    ended = types.index("task.canceled")
    assert types[ended + 1 :] == ["effect.result", "attempt.late"]
    (effect,) = (await client.call("_goclaw/effects/list", {"taskId": task_id}))["effects"]
    assert effect["state"] == "result"
    assert await claim(client, wait_ms=0) == []
    assert (await state(client, task_id))["state"] == "CANCELED"


@wire()
@pytest.mark.req("W-11")
async def test_a_claim_that_is_withdrawn_takes_nothing(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    params = {"pool": "p", "max": 1, "waitMs": 30_000, "workerId": "w"}
    for begun in (False, True):
        request = await client.request("_goclaw/worker/claim", params)
        if begun:
            await client.call("_goclaw/system/status")
        await client.notify("$/cancel_request", {"requestId": request})
        answer = await client.answer(request)
        assert answer["error"]["code"] == -32800
    task_id = await submit(client, session)
    assert (await state(client, task_id))["state"] == "QUEUED"
    for _ in range(limits.CLAIMS_WAITING_MAX):
        await client.request("_goclaw/worker/claim", {**params, "pool": "other"})
    error = await client.refused("_goclaw/worker/claim", params)
    assert error["code"] == -31012


@wire()
@pytest.mark.req("W-11", "Q-3")
async def test_a_claim_nobody_hears_of_goes_back(house: House) -> None:
    """Closed while it waits, and closed with the answer unread in our own buffers."""
    client = await house.unix(**OPTED_IN)
    gone = await house.unix()
    params = {"pool": "p", "max": 1, "waitMs": 30_000, "workerId": "gone"}
    await gone.request("_goclaw/worker/claim", params)
    await gone.call("_goclaw/system/status")
    await gone.close()
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    assert (task["taskId"], task["attempt"]) == (task_id, 1)
    await client.call("_goclaw/worker/complete", lease(task))

    stuck = await house.unix()
    await stuck.stop_reading()
    sessions = [await client.new_session() for _ in range(4)]
    for session in sessions:
        await submit(client, session, "x" * (limits.PAYLOAD_BYTES_MAX - 2))
    await stuck.request("_goclaw/worker/claim", {**params, "max": 4})
    await client.wait_for(lambda m: "task.running" in str(m) and sessions[0] in str(m))
    await client.call("_goclaw/system/status")  # by now the answer is in the transport
    stuck.link.writer.transport.abort()
    got: list[dict[str, Any]] = []
    while len(got) < 4:
        got += await claim(client, most=4)
    assert {task["attempt"] for task in got} <= {2, 3}
    for task in got:
        await client.call("_goclaw/worker/complete", lease(task))
        shown = await state(client, task["taskId"])
        assert (shown["crashes"], shown["failures"]) == (0, 0)


@wire()
@pytest.mark.req("R-3", "Q-6")
async def test_a_stopping_daemon_gives_out_no_work_and_hears_its_workers(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    task_id = await submit(client, session)
    (task,) = await claim(client)
    request = await client.request(
        "_goclaw/worker/claim", {"pool": "p", "max": 1, "waitMs": 30_000, "workerId": "w"}
    )
    await client.prompt(session, "wait:never")
    await house.engine.stop(0, asyncio.Event())
    answer = await client.answer(request)
    assert answer["error"]["code"] == -31006
    error = await client.refused("_goclaw/worker/claim", {"pool": "p"})
    assert error["code"] == -31006
    # The lease lives on.
    assert (await state(client, task_id))["state"] == "RUNNING"
    await client.call("_goclaw/worker/complete", lease(task, result=1))
    assert (await state(client, task_id))["state"] == "SUCCEEDED"


@wire()
@pytest.mark.req("Q-9")
async def test_a_prompt_waits_behind_its_sessions_serial_work(house: House) -> None:
    client = await house.unix(**OPTED_IN)
    session = await client.new_session()
    await submit(client, session)
    (task,) = await claim(client)
    request = await client.prompt(session, "after")
    await client.event("run.accepted")
    shown = await client.call("_goclaw/task/list", {"sessionId": session, "states": ["QUEUED"]})
    assert [one["kind"] for one in shown["tasks"]] == ["prompt"]
    await client.call("_goclaw/worker/complete", lease(task))
    assert (await client.answer(request))["result"]["stopReason"] == "end_turn"
    assert house.runner.ran == ["after"]


NO_CLAIMS = """
version = 1
[[rule]]
id = "talk"
effect = "allow"
actions = ["protocol.call", "run.submit"]
subjects = [{ kind = "client" }]

[[rule]]
id = "only-mail"
effect = "allow"
actions = ["worker.claim"]
subjects = [{ kind = "worker", id = "w1" }]
resources = [{ exact = "mail" }]
"""


@wire(policy=NO_CLAIMS)
@pytest.mark.req("A-2", "A-8", "I-6")
async def test_a_claim_is_a_decision_about_worker_and_pool(house: House) -> None:
    client = await house.unix()
    session = await client.new_session()
    await client.call("_goclaw/task/submit", {"sessionId": session, "pool": "mail"})
    for params in ({"pool": "p", "workerId": "w1"}, {"pool": "mail", "workerId": "w2"}):
        error = await client.refused("_goclaw/worker/claim", params)
        assert error["code"] == -31005
    for _ in range(2):
        await client.call("_goclaw/worker/claim", {"pool": "mail", "workerId": "w1"})
    found = await house.engine.database.read("audit_after", seq=0, limit=100)
    allowed = [row[2] for row in found if b'"worker.claim"' in row[2] and b'"allow"' in row[2]]
    assert len(allowed) == 1  # the second found nothing
    assert b'"id":"w1"' in allowed[0]


@wire()
@pytest.mark.req("W-11", "A-6")
async def test_a_secret_in_two_emits_is_found_and_nothing_is_left_behind(house: House) -> None:
    value = "hunter2-But-Longer"
    house.engine.external._database.cleaner = Redactor([Registered("k", "0123456789ab", value)])
    client, worker = await house.unix(**OPTED_IN), await house.ws()
    session = await client.new_session()
    said = ""
    for word, kind, more in (
        ("release", "task.requeued", {}),
        ("fail", "task.failed", {"code": "x", "message": "", "retryable": False}),
        ("complete", "task.succeeded", {}),
    ):
        if word != "fail":  # it takes up what was released
            await submit(client, session)
        (task,) = await claim(worker)
        held = []
        for text in (f"it is {value[:7]}", f"{value[7:]} and {value[:9]}"):
            update = {
                "sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text},
            }  # fmt: skip
            emitted = await worker.call("_goclaw/worker/emit", lease(task, update=update))
            held.append(emitted["heldBytes"])
        await worker.call(f"_goclaw/worker/{word}", lease(task, **more))
        await client.event(kind)
        said += f"it is secret:k#0123456789ab and {value[:9]}"
        assert (client.said(), held) == (said, [7, 9])
