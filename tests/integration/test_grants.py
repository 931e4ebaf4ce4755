"""A yes beforehand: these calls, this long, at most so many; and questions that wait (A-7)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import World, ask_sink, sink_process
from hypothesis import given
from hypothesis import strategies as st
from wire_support import House, wire

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import AlreadyResolved, InvalidParams, UnknownId
from goclaw.engine.grants import Grant, covers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-7", "G-11")

SAID = Decision(
    "decision_1", 0, Subject(SubjectKind.CLIENT, "me", Origin.UNIX), "approval.answer", "grant",
    Context(), Verdict.ALLOW, "r", "w", "v", (),
)  # fmt: skip


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def give(world: World, tool: str = "asked", **more: Any) -> str:
    terms: dict[str, Any] = {
        "sid": None, "resources": [], "digests": [], "uses": 1, "span_ms": 60_000, **more
    }  # fmt: skip
    return await world.engine.grants.give(tool, **terms, by="me", decision=SAID)


async def effects(socket: Path) -> int:
    return sum((await ask_sink(socket, {"op": "report"}))["effects"].values())


async def ended(world: World, n: int, key: str) -> tuple[str, str]:
    accepted = await world.tool("asked", {"n": n}, key=key)
    task = await world.until(accepted.task_id)
    return task["state"], task["reason"]


ASKED = ("SUSPENDED", "approval")
DONE = ("SUCCEEDED", "finished")


def test_so_many_calls_go_through_and_the_next_is_asked(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            await give(world, uses=2)
            assert [await ended(world, n, str(n)) for n in range(2)] == [DONE, DONE]
        async with World(home, sink) as world:  # the count is durable
            # a serial session: the asked one holds its turn
            assert await ended(world, 3, "3") == ASKED
            assert await effects(sink) == 2
            assert await world.engine.grants.listed() == []
            names = [payload.get("by") for name, payload in await world.events()
                     if name == "approval.resolved"]  # fmt: skip
            assert len(names) == 2
            assert all(str(name).startswith("grant_") for name in names)
            assert len(await world.updates("tool_call")) == 3, "each call was announced"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"resources": ["sink/asked"]}, DONE),
        ({"resources": ["sink/*"]}, DONE),
        ({"resources": ["other/*", "sink/ask*"]}, DONE),
        ({"resources": ["*"]}, ASKED),  # a star stays within a segment
        ({"resources": ["sink"]}, ASKED),
        ({"digests": ["0" * 64]}, ASKED),
        ({"tool": "irreversible"}, ASKED),
        ({"sid": 999}, ASKED),
        ({"span_ms": -1}, ASKED),
    ],
    ids=str,
)
def test_only_such_calls(
    terms: dict[str, Any], says: tuple[str, str], home: Path, sink: Path
) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            await give(world, **terms)
            assert await ended(world, 1, "1") == says
            assert await effects(sink) == (says == DONE)

    asyncio.run(body())


def test_these_calls_by_their_digests(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            session = await world.session()
            accepted = await world.tool("asked", {"n": 1})
            task = await world.until(accepted.task_id)
            (row,) = await world.database.read("approvals_of_task", tid=task["tid"])
            await give(world, digests=[row[2].hex()], uses=5, sid=session.sid)
            (approval,) = await world.engine.approvals.listed()
            await world.engine.approvals.resolve(approval.approval_id, "reject", "me")
            await world.until(accepted.task_id, "FAILED")
            assert await ended(world, 1, "same") == DONE
            assert await ended(world, 2, "other") == ASKED

    asyncio.run(body())


def test_a_yes_for_the_session_holds_over_a_restart_for_these_resources_only(
    home: Path, sink: Path
) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("asked", {"n": 1})
            await world.until(accepted.task_id, "SUSPENDED")
            (approval,) = await world.engine.approvals.listed()
            resolve = world.engine.approvals.resolve
            await resolve(approval.approval_id, "allow_session", "editor")
            assert (await world.until(accepted.task_id))["state"] == "SUCCEEDED"
            with pytest.raises(AlreadyResolved, match="allow_session"):
                await resolve(approval.approval_id, "allow_session", "editor")
            (grant,) = await world.engine.grants.listed()
            assert (grant.tool, grant.by, len(grant.digests)) == ("asked", "editor", 1)
            assert grant.resources == ("sink/asked",)
        async with World(home, sink) as world:
            assert await ended(world, 2, "2") == DONE
            (grant,) = await world.engine.grants.listed()
            question = bytes.fromhex(grant.digests[0])
            assert covers(grant, ["sink/asked"], b"", question)
            assert not covers(grant, ["sink/other"], b"", question)
            assert not covers(grant, ["sink/asked", "/etc/passwd"], b"", question)
            assert not covers(grant, ["sink/asked"], b"", b"another")
            assert await effects(sink) == 2

    asyncio.run(body())


def test_a_no_and_a_single_yes_leave_no_grant(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            for n, option in enumerate(("allow", "reject")):
                accepted = await world.tool("asked", {"n": n}, key=option)
                await world.until(accepted.task_id, "SUSPENDED")
                (approval,) = await world.engine.approvals.listed()
                await world.engine.approvals.resolve(approval.approval_id, option, "me")
                await world.until(accepted.task_id)
            assert await world.engine.grants.listed() == []

    asyncio.run(body())


def test_a_grant_taken_back_is_no_answer(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            grant = await give(world, uses=9)
            await world.engine.grants.revoke(grant, decision=SAID)
            assert await ended(world, 1, "1") == ASKED
            for gone in (grant, "grant_x"):
                with pytest.raises(UnknownId):
                    await world.engine.grants.revoke(gone, decision=SAID)
            wrong: tuple[dict[str, Any], ...] = (
                {"resources": ["***"]}, {"resources": ["*a" * 9]}, {"digests": ["xy"]},
            )  # fmt: skip
            for bad in wrong:
                with pytest.raises(InvalidParams):
                    await give(world, **bad)

    asyncio.run(body())


def test_nothing_beats_a_deny_or_an_unknown_equal(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            await give(world, "denied", uses=9)
            accepted = await world.tool("denied", {"n": 1})
            assert (await world.until(accepted.task_id))["state"] == "FAILED"
            assert await effects(sink) == 0

    asyncio.run(body())


@given(
    st.lists(st.sampled_from(["a", "b", "/", "*", "**", ".", "["]), max_size=6).map("".join),
    st.lists(st.sampled_from(["a", "b", "/", ".", "["]), max_size=6).map("".join),
)
def test_a_glob_of_a_grant_means_what_one_of_a_rule_means(glob: str, text: str) -> None:
    from goclaw._pure import rules as pure

    if "***" in glob:
        return
    grant = Grant("g", None, "t", (glob,), (), 1, 0, "me", 0)
    table = pure.Rules([(pure.ALLOW, 0, 0, 0, 9, 9, b"**", pure.GLOB, glob.encode())])
    effect, _ = table.decide(0, 0, 0, 0, b"x", (text.encode(),))
    assert covers(grant, [text], b"") == (effect == pure.ALLOW)


def test_everything_that_is_asked_about_must_be_covered() -> None:
    grant = Grant("g", None, "t", ("/a/*", "/b"), (), 1, 0, "me", 0)
    assert covers(grant, ["/a/x", "/b"], b"")
    assert not covers(grant, ["/a/x", "/c"], b"")
    assert covers(Grant("g", None, "t", (), (), 1, 0, "me", 0), ["/c"], b"")


@wire(loops=["asyncio"])
async def test_grants_over_the_wire(house: House) -> None:
    client = await house.unix()
    made = await client.call("_goclaw/approvals/grant", {"tool": "rm", "uses": 3, "forMs": 5000})
    (listed,) = (await client.call("_goclaw/approvals/grants"))["grants"]
    assert (listed["grantId"], listed["tool"], listed["usesLeft"]) == (made["grantId"], "rm", 3)
    session = await client.new_session()
    assert (await client.turn(session, "ask:rm"))["stopReason"] == "end_turn", "nobody was asked"
    assert not [m for m in client.messages if m.get("method") == "session/request_permission"]
    (listed,) = (await client.call("_goclaw/approvals/grants"))["grants"]
    assert listed["usesLeft"] == 2
    await client.call("_goclaw/approvals/revoke", {"grantId": made["grantId"]})
    error = await client.refused("_goclaw/approvals/revoke", {"grantId": made["grantId"]})
    assert error["code"] == -31016
    for bad in ({}, {"tool": "rm", "uses": 0}, {"tool": "rm", "forMs": limits.GRANT_MS_MAX + 1}):
        assert (await client.refused("_goclaw/approvals/grant", bad))["code"] == -32602


def test_in_away_mode_a_question_waits_on(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("asked", {"n": 1})
            await world.until(accepted.task_id)
            await world.engine.approvals.go_away(True, decision=SAID)
        async with World(home, sink) as world:
            (approval,) = await world.engine.approvals.listed()
            assert await world.engine.approvals.expire(approval.approval_id) == "parked"
            (later,) = await world.engine.approvals.listed()
            assert later.expires_at >= approval.expires_at
            task = await world.engine.task(accepted.task_id)
            assert (task["state"], task["reason"]) == ASKED
            await world.engine.approvals.go_away(False, decision=SAID)
            # back: the rule may say no by now, and then the yes is worth nothing
            world.policy = _denying(world)
            await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
            assert (await world.until(accepted.task_id))["state"] == "FAILED"
            assert await effects(sink) == 0
            with pytest.raises(AlreadyResolved):
                await world.engine.approvals.expire(approval.approval_id)

    asyncio.run(body())


def _denying(world: World) -> Any:
    from effects_support import POLICY

    from goclaw.policy import document

    text = POLICY.replace('id = "sink-asked"\neffect = "ask"', 'id = "sink-asked"\neffect = "deny"')
    return document.load(text, home=str(world.home))
