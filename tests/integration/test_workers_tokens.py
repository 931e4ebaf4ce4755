"""Proves the tokens of single attempts: what they open, and when they die (A-10).

Owns nothing but the tests. Not in here: the words themselves (test_workers_wire.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from test_workers_wire import CALL, SHORT, claim, lease, submit
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from wire_support import OPTED_IN, TOKEN, Client, Frames, House, wire

from goclaw.gateway.executors import METHODS as WORKER_METHODS
from goclaw.gateway.handlers import METHODS as ACP_METHODS
from goclaw.gateway.operators import METHODS as OPERATOR_METHODS
from goclaw.gateway.scopes import ATTEMPT_METHODS, attempt_token, scope_of
from goclaw.gateway.work import METHODS as OTHER_METHODS


async def over_ws(house: House, token: str) -> Client:
    """A client on the WebSocket that shows that token; not initialised."""
    socket = await connect(
        f"ws://127.0.0.1:{house.port}/ws",
        additional_headers={"Authorization": f"Bearer {token}"},
        max_size=None,
    )
    client = Client(Frames(socket))
    house.clients.append(client)
    return client


async def over_unix(house: House, token: str, **more: Any) -> Client:
    return await house.unix(_meta={"goclaw": {"version": 1, "attemptToken": token, **more}})


async def opened(house: House, way: str, token: str) -> tuple[Client, dict[str, Any]]:
    if way == "unix":
        client = await over_unix(house, token)
        return client, client.messages[0]["result"]
    client = await over_ws(house, token)
    return client, await client.initialize()


@wire()
@pytest.mark.req("A-10", "W-11", "A-2")
async def test_a_token_opens_one_attempt_and_nothing_else(house: House) -> None:
    owner = await house.unix(**OPTED_IN)
    session = await owner.new_session()
    other_session = await owner.new_session()
    other_id = await submit(owner, other_session)
    (other,) = await claim(owner)
    for way in ("unix", "ws"):
        await submit(owner, session)
        (task,) = await claim(owner)
        client, answer = await opened(house, way, task["attemptToken"])
        shown = answer["agentCapabilities"]["_meta"]["goclaw"]["attempt"]
        assert (shown["taskId"], shown["attempt"]) == (task["taskId"], task["attempt"])
        assert shown["methods"] == sorted(ATTEMPT_METHODS)
        every = {**ACP_METHODS, **OTHER_METHODS, **OPERATOR_METHODS, **WORKER_METHODS}
        for method in sorted(set(every) - ATTEMPT_METHODS - {"initialize"}):
            error = await client.refused(method, {"sessionId": session, "pool": "p"})
            assert (error["code"], error["data"]["scope"]) == (-31013, scope_of(method)), method
        error = await client.refused("_goclaw/none")
        assert error["code"] == -32601
        await client.notify("session/cancel", {"sessionId": other_session})
        # Of its own task it needs to name neither task nor lease.
        assert "leaseMs" in await client.call("_goclaw/worker/heartbeat", {})
        assert "leaseMs" in await client.call("_goclaw/worker/heartbeat", lease(task))
        effect = {"ordinal": 0, "phase": "intent", **CALL}
        assert (await client.call("_goclaw/worker/effect", effect))["go"] is True
        await client.call("_goclaw/worker/effect", {**effect, "phase": "result", "result": 1})
        for params in (lease(other), {"taskId": other_id}):
            error = await client.refused("_goclaw/worker/complete", params)
            assert (error["code"], error["data"]["scope"]) == (-31013, "worker")
        error = await client.refused("_goclaw/worker/complete", {"leaseToken": other["leaseToken"]})
        assert error["code"] == -31009
        answer = await client.call(
            "_goclaw/worker/heartbeat", {"leases": [lease(task), lease(task, leaseToken="0" * 32)]}
        )
        assert [entry["ok"] for entry in answer["leases"]] == [True, False]
        # The word that ends the attempt is answered, then the connection closes.
        done = await client.call("_goclaw/worker/complete", {"result": way})
        assert done["state"] == "SUCCEEDED"
        await client.until_closed()
        if way == "ws":
            assert client.link.socket.close_code == 4401
            with pytest.raises(InvalidStatus, match="401"):
                await over_ws(house, task["attemptToken"])
        else:
            with pytest.raises(AssertionError, match="-31009"):
                await over_unix(house, task["attemptToken"])
    assert (await owner.call("_goclaw/task/get", {"taskId": other_id}))["state"] == "RUNNING"


@wire(config=SHORT)
@pytest.mark.req("A-10", "W-9")
async def test_a_token_dies_with_its_lease(house: House) -> None:
    """Expired, released, cancelled, claimed again: whoever still uses it is cut off."""
    owner = await house.unix(**OPTED_IN)
    for how in ("expired", "released", "cancelled", "failed"):
        session = await owner.new_session()
        task_id = await submit(owner, session, effectClass="pure")
        (task,) = await claim(owner)
        client = await over_ws(house, task["attemptToken"])
        await client.initialize()
        if how == "released":
            await owner.call("_goclaw/worker/release", lease(task))
        elif how == "cancelled":
            await owner.call("_goclaw/task/cancel", {"taskId": task_id})
        elif how == "failed":
            await owner.call(
                "_goclaw/worker/fail", lease(task, code="x", message="", retryable=False)
            )
        await client.until_closed()
        assert (client.link.socket.close_code, client.link.socket.close_reason) == (
            4401, "goclaw:lease over",
        )  # fmt: skip
        with pytest.raises(InvalidStatus, match="401"):
            await over_ws(house, task["attemptToken"])
        if how in ("expired", "released"):
            (again,) = await claim(owner)
            assert again["attemptToken"] != task["attemptToken"]
            with pytest.raises(InvalidStatus, match="401"):
                await over_ws(house, task["attemptToken"])
            fresh = await over_ws(house, again["attemptToken"])
            await fresh.initialize()
            await fresh.call("_goclaw/worker/complete", {})


@wire()
@pytest.mark.req("A-10", "A-12")
async def test_a_token_that_is_none_opens_nothing(house: House) -> None:
    owner = await house.unix()
    task_id = await submit(owner, await owner.new_session())
    (task,) = await claim(owner)
    right = task["attemptToken"]
    lanes = await owner.call(
        "_goclaw/task/submit", {"sessionId": await owner.new_session(), "tool": "x"}
    )
    wrong = [
        right[:-1] + ("0" if right[-1] != "0" else "1"),
        right.replace("attempt_", ""),
        f"attempt_{'0' * 26}_{'0' * 64}",
        attempt_token("another secret", task_id, bytes.fromhex(task["leaseToken"])),
        attempt_token(TOKEN, task_id, b""),
        attempt_token(TOKEN, lanes["taskId"], bytes(16)),
        task["leaseToken"],
    ]
    for token in wrong:
        with pytest.raises(InvalidStatus, match="401"):
            await over_ws(house, token)
    for token in (*wrong, ""):
        link = await house.unix_link()
        client = Client(link)
        house.clients.append(client)
        error = await client.refused(
            "initialize",
            {
                "protocolVersion": 1,
                "clientCapabilities": {"_meta": {"goclaw": {"version": 1, "attemptToken": token}}},
            },
        )
        assert error["code"] == (-31009 if token else -32602)
        # Nothing was opened, not even what the socket gives to everybody else.
        error = await client.refused("_goclaw/task/list")
        assert error["code"] == -31008
    assert "leaseMs" in await owner.call("_goclaw/worker/heartbeat", lease(task))
    with pytest.raises(InvalidStatus, match="404"):
        await connect(
            f"ws://127.0.0.1:{house.port}/other",
            additional_headers={"Authorization": f"Bearer {right}"},
        )
    with pytest.raises(InvalidStatus, match="400"):
        await connect(f"ws://127.0.0.1:{house.port}/ws?token={right}")


@wire(loops=["asyncio"])
@pytest.mark.req("A-10", "R-4")
async def test_words_on_their_way_are_answered_before_the_close(house: House) -> None:
    owner = await house.unix()
    await submit(owner, await owner.new_session())
    (task,) = await claim(owner)
    client = await over_ws(house, task["attemptToken"])
    await client.initialize()
    sent = [
        await client.request("_goclaw/worker/heartbeat", {}),
        await client.request("_goclaw/worker/complete", {"result": 1}),
        await client.request("_goclaw/worker/complete", {"result": 1}),
    ]
    answers = [await client.answer(request) for request in sent]
    assert [("result" in answer) for answer in answers] == [True, True, True]
    await client.until_closed()
