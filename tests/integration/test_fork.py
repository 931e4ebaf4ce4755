"""`goclaw fork`: a run branched off at any event acts on nothing until a person says so.

The sink is a process of its own that counts what is done to it, whoever's run does it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import store_support
from effects_support import World, ask_sink, sink_process

from goclaw.core import limits
from goclaw.core.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidParams,
    QueueFull,
    SessionUnknown,
    TooLarge,
    UnknownId,
)
from goclaw.core.records import Task
from goclaw.core.states import State
from goclaw.store import database_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.core.records import Accepted, Forked

pytestmark = pytest.mark.req("E-7")

STEPS: list[dict[str, Any]] = [
    {"say": "one"},
    {"call": "keyed", "args": {"n": 1}},
    {"say": "two", "chunks": 3, "delayMs": 1},
    {"call": "probeable", "args": {"n": 2}},
    {"call": "irreversible", "args": {"n": 3}},
    {"say": "end"},
]
WAITING = ("SUSPENDED", "approval")


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


def script(home: Path, steps: list[dict[str, Any]]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "go", "steps": steps}]))
    return f"script:{path}"


async def sends(socket: Path) -> int:
    """How often anything was sent, to whomever it belongs."""
    report = await ask_sink(socket, {"op": "report"})
    return sum(report["sends"].values())


async def log_of(world: World, sid: int) -> list[tuple[int, str, dict[str, Any]]]:
    """(event id, type, payload) of a session."""
    found = await world.database.read("events_after", sid=sid, cursor=0, limit=10_000)
    return [(row[0], row[2], orjson.loads(row[8])) for row in found]


async def ran(world: World) -> tuple[Accepted, list[tuple[int, str, dict[str, Any]]]]:
    """A whole run of the script, and its log."""
    accepted = await world.prompt("go", key=None)
    assert (await world.until(accepted.task_id))["state"] == "SUCCEEDED"
    return accepted, await log_of(world, (await world.session()).sid)


async def forked(world: World, run_id: str, at: int, **options: Any) -> Forked:
    return await world.engine.fork(run_id, at, client="me", **options)


async def question(world: World, fork: Forked) -> str:
    """The one open approval of a fork that waits."""
    task = await world.until(fork.task_id)
    assert (task["state"], task["reason"]) == WAITING
    (approval,) = await world.engine.approvals.listed(fork.sid)
    assert b"this run is a fork" in approval.request
    return approval.approval_id


async def answer(world: World, fork: Forked, option: str) -> None:
    approval_id = await question(world, fork)
    await world.engine.approvals.resolve(approval_id, option, by="test")


def at_result(log: list[tuple[int, str, dict[str, Any]]], ordinal: int) -> int:
    """The event that made an effect final."""
    (found,) = [
        number
        for number, kind, payload in log
        if kind == "effect.result" and payload["ordinal"] == ordinal
    ]
    return found


async def check_counts(world: World) -> None:
    """The fold that the engine keeps is what is on disk."""
    stored = dict(await world.database.read("task_counts"))
    assert world.engine.task_counts() == {str(state): stored.get(state, 0) for state in State}


def test_what_was_done_stands_and_the_rest_is_asked(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, STEPS)) as world:
            accepted, log = await ran(world)
            assert await sends(sink) == 3
            at = at_result(log, 1)  # of the keyed call
            fork = await forked(world, accepted.run_id, at)
            assert (fork.stubbed, fork.parent_event_id, fork.duplicate) == (2, at, False)
            assert fork.parent_run_id == accepted.run_id
            await question(world, fork)
            assert await sends(sink) == 3
            await answer(world, fork, "allow")
            task = await world.until(fork.task_id, "SUSPENDED")
            while await sends(sink) == 3:
                task = await world.until(fork.task_id, "SUSPENDED")
            await answer(world, fork, "reject")
            task = await world.until(fork.task_id, "SUCCEEDED")
            assert await sends(sink) == 4
            result = json.loads(task["result"])
            assert result["text"] == "onetwoend"
            # The first answer is the recorded one; the others are the fork's own.
            assert [tool["status"] for tool in result["tools"]] == [
                "completed", "completed", "rejected",
            ]  # fmt: skip
            original = await world.engine.task(accepted.task_id)
            assert json.loads(original["result"])["tools"][0] == result["tools"][0]
            keys = {row["key"] for row in await world.effects(original["tid"])}
            assert not keys & {row["key"] for row in await world.effects(task["tid"])}
            await check_counts(world)

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


async def fork_everywhere(world: World, socket: Path) -> int:
    """Fork a whole run at each of its events and let every fork come as far as it may by itself;
    how many forks there were. What is sent meanwhile is sent without a yes."""
    accepted, log = await ran(world)
    before = await sends(socket)
    end = next(number for number, kind, _ in log if kind == "task.succeeded")
    begin = next(number for number, kind, _ in log if kind == "task.queued")
    for at in range(begin, end):
        fork = await forked(world, accepted.run_id, at)
        task = await world.until(fork.task_id)
        copied = await log_of(world, fork.sid)
        assert [row[1:] for row in copied[:at]] == [row[1:] for row in log[:at]], at
        assert [row[0] for row in copied] == [*range(1, len(copied) + 1)]
        if task["state"] == "SUCCEEDED":  # nothing was left that could act
            assert at >= at_result(log, 5)
            assert json.loads(task["result"])["text"] == "onetwoend"
        else:
            assert (task["state"], task["reason"]) == WAITING
        assert len({row[2]["messageId"] for row in copied if row[1] == "message.interrupted"}) == (
            sum(row[1] == "message.interrupted" for row in copied)
        )
    await check_counts(world)
    assert await sends(socket) == before, "a fork acted on the world without a yes"
    for at in (end, len(log)):
        with pytest.raises(IllegalTransition, match="was SUCCEEDED"):
            await forked(world, accepted.run_id, at)
    for at in range(1, begin):
        with pytest.raises(InvalidParams, match="had not begun"):
            await forked(world, accepted.run_id, at)
    with pytest.raises(InvalidParams, match="There is no event"):
        await forked(world, accepted.run_id, len(log) + 1)
    return end - begin


def test_a_fork_at_any_event_acts_on_nothing(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, STEPS)) as world:
            assert await fork_everywhere(world, sink) > 20

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_a_fork_that_does_not_ask_is_noticed(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: a fork that is taken for a run like any other."""
    monkeypatch.setattr(Task, "is_fork", property(lambda task: False))

    async def body() -> None:
        async with World(home, sink, brain=script(home, STEPS)) as world:
            with pytest.raises(AssertionError):
                await fork_everywhere(world, sink)
            assert await sends(sink) > 3

    asyncio.run(body())


def test_an_open_question_is_asked_anew_and_stays_the_parents(home: Path, sink: Path) -> None:
    async def body() -> None:
        steps: list[dict[str, Any]] = [{"call": "asked", "args": {"n": 1}}, {"say": "end"}]
        async with World(home, sink, brain=script(home, steps)) as world:
            accepted = await world.prompt("go")
            await world.until(accepted.task_id, "SUSPENDED")
            session = await world.session()
            log = await log_of(world, session.sid)
            fork = await forked(world, accepted.run_id, len(log))
            await world.until(fork.task_id, "SUSPENDED")
            ((parents,), (forks,)) = [
                await world.engine.approvals.listed(sid) for sid in (session.sid, fork.sid)
            ]
            assert parents.approval_id != forks.approval_id
            resolved = [
                p for _, kind, p in await log_of(world, fork.sid) if kind.endswith("solved")
            ]
            assert [(one["approvalId"], one["outcome"], one["by"]) for one in resolved] == [
                (parents.approval_id, "cancelled", "fork")
            ]
            await world.engine.approvals.resolve(parents.approval_id, "allow", by="test")
            await world.until(accepted.task_id, "SUCCEEDED")
            assert (await world.engine.task(fork.task_id))["state"] == "SUSPENDED"
            assert await sends(sink) == 1

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_of_earlier_runs_what_was_said_comes_along(home: Path, sink: Path) -> None:
    async def body() -> None:
        steps: list[dict[str, Any]] = [{"say": "hello"}, {"call": "pure", "args": {"n": 1}}]
        async with World(home, sink, brain=script(home, steps)) as world:
            first, _ = await ran(world)
            second, log = await ran(world)
            at = max(number for number, kind, _ in log if kind == "task.running")
            fork = await forked(world, second.run_id, at)
            task = await world.until(fork.task_id)
            assert task["state"] == "SUCCEEDED"  # nothing of it could act on the world
            found = await world.database.read("events_after", sid=fork.sid, cursor=0, limit=1000)
            run_ids = [row[4] for row in found]
            assert first.run_id not in run_ids
            assert second.run_id not in run_ids
            early = found[: run_ids.index(fork.run_id)]
            kinds = [orjson.loads(row[8])["sessionUpdate"] for row in early]
            assert kinds[0] == "user_message_chunk"
            assert "agent_message_chunk" in kinds
            assert [orjson.loads(row[8])["sessionUpdate"] for row in found if row[1] == 2] == [
                "user_message_chunk"
            ] * 2
            session = await world.engine.intake.session(fork.session_id)
            assert session.parent_id == second.session_id

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_a_failed_run_is_tried_again_in_its_fork(home: Path, sink: Path) -> None:
    async def body() -> None:
        steps: list[dict[str, Any]] = [
            {"call": "irreversible", "args": {"n": 1}},
            {"fail": "odd", "onAttempts": [1]},
            {"say": "end"},
        ]
        async with World(home, sink, brain=script(home, steps)) as world:
            accepted = await world.prompt("go")
            assert (await world.until(accepted.task_id))["state"] == "FAILED"
            log = await log_of(world, (await world.session()).sid)
            fork = await forked(world, accepted.run_id, len(log))
            task = await world.until(fork.task_id)
            assert (task["state"], task["attempt"], task["failures"]) == ("SUCCEEDED", 2, 0)
            assert await sends(sink) == 1
            await check_counts(world)

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_a_task_of_one_call_and_a_fork_of_a_fork_ask_too(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("irreversible", {"n": 1})
            await world.until(accepted.task_id, "SUCCEEDED")
            fork = await forked(world, accepted.run_id, 3)
            await question(world, fork)
            again = await forked(world, fork.run_id, (await log_of(world, fork.sid))[-1][0])
            assert again.parent_session_id == fork.session_id
            await answer(world, again, "allow")
            await world.until(again.task_id, "SUCCEEDED")
            assert (await world.engine.task(fork.task_id))["state"] == "SUSPENDED"
            assert await sends(sink) == 2

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_the_same_key_is_the_same_fork(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, STEPS)) as world:
            accepted, log = await ran(world)
            at = at_result(log, 1)
            first = await forked(world, accepted.run_id, at, key="k")
            second = await forked(world, accepted.run_id, at, key="k")
            assert (second.run_id, second.session_id) == (first.run_id, first.session_id)
            assert (second.stubbed, second.duplicate) == (first.stubbed, True)
            with pytest.raises(IdempotencyConflict):
                await forked(world, accepted.run_id, at + 1, key="k")
            await check_counts(world)

    asyncio.run(body())
    store_support.obey(database_files(home)[0])


def test_what_cannot_be_forked_is_refused_and_nothing_is_made(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, STEPS), total_limit=1) as world:
            accepted, log = await ran(world)
            at = at_result(log, 1)
            with pytest.raises(UnknownId):
                await forked(world, "run_none", at)
            with monkeypatch.context() as patch:
                patch.setattr(limits, "FORK_EVENTS_MAX", at - 1)
                with pytest.raises(TooLarge, match="at most"):
                    await forked(world, accepted.run_id, at)
            await forked(world, accepted.run_id, at)
            with pytest.raises(QueueFull):
                await forked(world, accepted.run_id, at)
            session = await world.session()
            await world.engine.intake.change_session(session, deleted_at=1)
            for task in await world.engine.tasks(sid=None, before=None, state=None, limit=9):
                await world.engine.cancel_task(task["task_id"])
            with pytest.raises(SessionUnknown):
                await forked(world, accepted.run_id, at)
            assert len(await world.engine.tasks(sid=None, before=None, state=None, limit=9)) == 2

    asyncio.run(body())
    store_support.obey(database_files(home)[0])
