"""Every way in which a call ends without a definite answer, for every class, as task and as prompt.

Owns time-out, reset, cancel and lost lease, and what a told brain may do next, over attempts and
lives. Not in here: kills (test_effects_kills.py), settlement (test_effects_settle.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import (
    CLASSES,
    World,
    ask_sink,
    first_life,
    next_life,
    sink_process,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.core.records import Accepted


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def counts(socket: Path) -> tuple[int, int]:
    report = await ask_sink(socket, {"op": "report"})
    assert len(report["sends"]) <= 1, "every sending has one key"
    return sum(report["sends"].values()), sum(report["effects"].values())


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


async def begin(world: World, form: str, kind: str, mode: str) -> Accepted:
    if form == "task":
        return await world.tool(kind, {"n": 1, "mode": mode})
    return await world.prompt("go")


async def lose_lease(world: World, task_id: str) -> None:
    """What another process's look at expired leases does to an owner that is not heard of."""
    task = await world.engine.task(task_id)
    ((token,),) = [
        row[1:2] for row in await world.database.read("live_tasks") if row[0] == task["tid"]
    ]
    await world.database.write(
        "reclaim", live=True, tid=task["tid"], token=token, spent=1, crash_budget=9,
        reason="lease_expired", now=world.clock.wall_ms(),
    )  # fmt: skip


# What the sink counts when the line is good again after the first call: sends, effects.
AFTER = {"pure": (2, 2), "keyed": (2, 1), "probeable": (1, 1), "irreversible": (1, 1)}


@pytest.mark.req("E-3", "E-2", "I-4", "Q-4")
@pytest.mark.parametrize("form", ["task", "prompt"])
@pytest.mark.parametrize("way", ["timeout", "reset", "lost"])
@pytest.mark.parametrize("kind", CLASSES)
def test_no_definite_answer_by_class(
    kind: str, way: str, form: str, home: Path, sink: Path
) -> None:
    mode = "stall" if way == "lost" else way
    brain = script(home, {"call": kind, "args": {"n": 1, "mode": mode}}, {"say": "on"})

    async def body() -> None:
        async with World(home, sink, brain=brain) as world:
            world.tools.faults_left = 1
            accepted = await begin(world, form, kind, mode)
            if way == "lost":
                await world.tools.stalling.wait()
                await lose_lease(world, accepted.task_id)
            task = await world.until(accepted.task_id)
            names = [type_ for type_, _ in await world.events()]
            assert names.count("effect.unknown") == (kind in ("probeable", "irreversible"))
            if kind == "irreversible" and form == "task":
                assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
            else:
                assert task["state"] == "SUCCEEDED"
            if form == "prompt":
                (tool,) = json.loads(task["result"])["tools"]
                assert tool["status"] == ("unknown" if kind == "irreversible" else "completed")
            assert await counts(sink) == AFTER[kind]
            (effect,) = [row for row in await world.effects(task["tid"]) if row["name"] == kind]
            told_or_known = kind != "irreversible" or form == "prompt"
            assert effect["state"] == ("result" if told_or_known else "unknown")

    asyncio.run(body())


@pytest.mark.req("E-3", "Q-11")
@pytest.mark.parametrize("form", ["task", "prompt"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_cancel_in_the_middle_of_a_call_by_class(
    kind: str, form: str, home: Path, sink: Path
) -> None:
    brain = script(home, {"call": kind, "args": {"n": 1, "mode": "stall"}})

    async def body() -> None:
        async with World(home, sink, brain=brain) as world:
            accepted = await begin(world, form, kind, "stall")
            await world.tools.stalling.wait()
            await world.engine.cancel_task(accepted.task_id)
            task = await world.until(accepted.task_id, "CANCELED")
            (effect,) = [row for row in await world.effects(task["tid"]) if row["name"] == kind]
            may_go_again = kind in ("pure", "keyed")
            assert effect["state"] == ("retryable" if may_go_again else "unknown")
            names = [type_ for type_, _ in await world.events()]
            assert names.count("effect.unknown") == (not may_go_again)
            assert await counts(sink) == (1, 1)

    asyncio.run(body())


# -- a brain that was told (E-3: an equal call becomes a question) ---------------------------------

LOST = {"call": "irreversible", "args": {"n": 1, "mode": "reset"}}


async def is_asked(world: World, accepted: Accepted, sends: int) -> str:
    """The approval of the equal call; nothing has been sent again."""
    task = await world.until(accepted.task_id)
    assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
    (approval,) = await world.engine.approvals.listed()
    assert b"nobody knows whether it happened" in approval.request
    report = await ask_sink(world.home / "sink", {"op": "report"})
    assert sum(report["sends"].values()) == sends
    return approval.approval_id


@pytest.mark.req("E-3", "A-7")
@pytest.mark.parametrize("restart", [False, True])
def test_an_equal_call_is_asked_for_in_a_later_attempt(
    restart: bool, home: Path, sink: Path
) -> None:
    """The attempt that was told failed; the next one, perhaps in another life, makes the call."""
    fails = {"fail": "flaky", "retryable": True, "onAttempts": [1]}
    brain = script(home, LOST, fails, LOST, {"say": "end"})

    async def told() -> None:
        async with World(
            home, sink, brain=brain, backoff_ms_min=60_000, backoff_ms_max=60_000
        ) as w:
            task = await w.until((await w.prompt("go")).task_id, "RETRY_WAIT")
            await w.database.write(
                "wake", tid=task["tid"], now_mono=None, reason="due", now=w.clock.wall_ms()
            )
            if not restart:
                await asked_then_allowed(w)

    async def asked_then_allowed(world: World) -> None:
        world.tools.faults_left = 0
        accepted = await world.prompt("go")
        approval_id = await is_asked(world, accepted, sends=1)
        await world.engine.approvals.resolve(approval_id, "allow", "me")
        task = await world.until(accepted.task_id, "SUCCEEDED")
        statuses = [tool["status"] for tool in json.loads(task["result"])["tools"]]
        assert statuses == ["unknown", "completed"]
        report = await ask_sink(sink, {"op": "report"})
        assert sorted(report["sends"].values()) == [1, 1]  # ordinals differ, so do keys

    async def later() -> None:
        async with World(home, sink, brain=brain) as world:
            await asked_then_allowed(world)

    asyncio.run(told())
    if restart:
        asyncio.run(later())


@pytest.mark.req("E-3", "A-7", "I-4")
def test_an_equal_call_is_asked_for_over_kills(home: Path, sink: Path) -> None:
    """Killed in the call, told in the next life, killed before the equal call, asked in the third;
    the question outlives a fourth."""
    job = {"prompt": "go", "brain": script(home, LOST, {"say": "a"}, LOST)}
    assert first_life(home, sink, job, "after_intent:kill@1") == -9
    assert first_life(home, sink, job, "after_result:kill@1") == -9  # the second answer's record

    async def third() -> str:
        async with next_life(home, sink, job) as world:
            return await is_asked(world, await submit(world, job), sends=0)

    async def fourth(approval_id: str) -> None:
        async with next_life(home, sink, job) as world:
            world.tools.faults_left = 0
            accepted = await submit(world, job)
            assert await is_asked(world, accepted, sends=0) == approval_id
            await world.engine.approvals.resolve(approval_id, "allow", "me")
            await world.until(accepted.task_id, "SUCCEEDED")
            report = await ask_sink(sink, {"op": "report"})
            assert [*report["sends"].values()] == [1]

    asyncio.run(fourth(asyncio.run(third())))


@pytest.mark.req("E-3")
def test_another_call_of_the_same_tool_needs_no_question(home: Path, sink: Path) -> None:
    """Equal means tool and arguments; and another task was told nothing."""
    other = {"call": "irreversible", "args": {"n": 2}}

    async def body() -> None:
        async with World(home, sink, brain=script(home, LOST, other)) as world:
            task = await world.until((await world.prompt("go")).task_id, "SUCCEEDED")
            statuses = [tool["status"] for tool in json.loads(task["result"])["tools"]]
            assert statuses == ["unknown", "completed"]
            task = await world.until((await world.prompt("go", key="2")).task_id, "SUCCEEDED")

    asyncio.run(body())
