"""The emergency stop: durable, read before every effect, and shown (A-15)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import World, ask_sink, sink_process
from roof_support import World as Roof
from roof_support import world as roof
from wire_support import House, text, wire

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import PolicyDenied
from goclaw.core.states import EffectClass
from goclaw.engine.halt import Level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-15")

WHO = Subject(SubjectKind.CLIENT, "me", Origin.UNIX)
SAID = Decision(
    "decision_1", 0, WHO, "admin.stop", "all", Context(), Verdict.ALLOW, "r", "w", "v", ()
)


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def stop(world: World, level: Level) -> None:
    await world.engine.halt.stop(level, by="me", why="night", sid=0, decision=SAID)


async def resume(world: World) -> int:
    return await world.engine.halt.resume(by="me", sid=0, decision=SAID)


async def effects(socket: Path) -> int:
    report = await ask_sink(socket, {"op": "report"})
    return sum(report["effects"].values())


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


@pytest.mark.parametrize("kind", ["pure", "keyed", "probeable", "irreversible"])
def test_no_effect_is_sent_until_resumed(kind: str, home: Path, sink: Path) -> None:
    brain = script(home, {"call": kind, "args": {"n": 1}}, {"say": "on"})

    async def body() -> None:
        async with World(home, sink, brain=brain) as world:
            await stop(world, Level.EFFECTS)
            accepted = await world.prompt("go")
            task = await world.until(accepted.task_id)
            if kind == "pure":
                assert (task["state"], await effects(sink)) == ("SUCCEEDED", 1)
                return
            assert (task["state"], task["reason"]) == ("SUSPENDED", "emergency_stop")
            _, because = await world.engine.why.explain(accepted.task_id)
            assert (because[0].code, because[0].command) == ("emergency_stop", "goclaw resume")
            assert await effects(sink) == 0
            names = [name for name, _ in await world.events()]
            assert "effect.intent" not in [
                name for name, payload in await world.events() if payload.get("class") == kind
            ]
            assert "task.suspended" in names
        # durable: another life holds it, too
        async with World(home, sink, brain=brain) as world:
            other = await world.prompt("again", key="2")
            assert await effects(sink) == 0
            assert await resume(world) == 1
            for one in (accepted, other):
                assert (await world.until(one.task_id, "SUCCEEDED"))["crashes"] == 0
            assert await effects(sink) == 2

    asyncio.run(body())


def test_the_stop_is_read_between_intent_and_dispatch(home: Path, sink: Path) -> None:
    """At the last moment there is: the intent is on disk, and closed again as not sent."""

    async def body() -> None:
        async with World(home, sink) as world:
            journaled = world.database.fence.note

            async def note(notes: Any) -> None:
                await journaled(notes)
                await stop(world, Level.EFFECTS)

            world.database.fence.note = note  # type: ignore[assignment, method-assign]
            accepted = await world.tool("irreversible", {"n": 1})
            task = await world.until(accepted.task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "emergency_stop")
            (effect,) = await world.effects(task["tid"])
            assert (effect["state"], await effects(sink)) == ("retryable", 0)
            world.database.fence.note = journaled  # type: ignore[method-assign]
            await resume(world)
            await world.until(accepted.task_id, "SUCCEEDED")
            assert await effects(sink) == 1

    asyncio.run(body())


def test_stopping_all_interrupts_and_holds_the_lanes(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("keyed", {"n": 1, "mode": "hang"})
            await world.tools.hanging.wait()
            await stop(world, Level.ALL)
            task = await world.until(accepted.task_id, "QUEUED")
            assert (task["failures"], task["crashes"]) == (0, 0)
            _, because = await world.engine.why.explain(accepted.task_id)
            assert because[-1].code == "emergency_stop"
            assert world.engine.scheduler.busy == 0
        async with World(home, sink) as world:
            later = await world.prompt("/pure {}", key="later")
            assert (await world.engine.task(later.task_id))["state"] == "QUEUED"
            assert world.engine.scheduler.busy == 0
            assert world.engine.halt.holds(EffectClass.PURE)
            world.tools.released.set()
            await resume(world)
            await world.until(accepted.task_id, "SUCCEEDED", "FAILED")
            await world.until(later.task_id, "SUCCEEDED", "FAILED")

    asyncio.run(body())


def test_a_resume_that_was_cut_wakes_the_rest_at_the_next_start(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            await stop(world, Level.EFFECTS)
            accepted = await world.tool("irreversible", {"n": 1})
            await world.until(accepted.task_id, "SUSPENDED")
            # what a kill leaves between the commit of the resume and the first task
            await world.database.write("stop_clear", sid=0, by="me", now=0)
        async with World(home, sink) as world:
            await world.until(accepted.task_id, "SUCCEEDED")

    asyncio.run(body())


def test_a_disk_that_refuses_keeps_nothing_going(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:

            def refuse(*_: Any, **__: Any) -> Any:
                raise PolicyDenied("no disk")

            kept, world.database.apply = world.database.apply, refuse  # type: ignore[method-assign]
            with pytest.raises(PolicyDenied, match="no disk"):
                await stop(world, Level.EFFECTS)
            world.database.apply = kept  # type: ignore[method-assign]
            assert world.engine.halt.holds(EffectClass.IRREVERSIBLE)
            task = await world.until((await world.tool("irreversible", {"n": 1})).task_id)
            assert (task["state"], await effects(sink)) == ("SUSPENDED", 0)

    asyncio.run(body())


@wire(loops=["asyncio"])
async def test_workers_are_held_and_the_record_says_who(house: House) -> None:
    client = await house.unix()
    session = (await client.call("session/new", {"cwd": "/tmp", "mcpServers": []}))["sessionId"]
    await client.call("_goclaw/task/submit", {"sessionId": session, "pool": "p", "payload": 1})
    claim = {"pool": "p", "max": 1, "waitMs": 0, "workerId": "w"}
    (task,) = (await client.call("_goclaw/worker/claim", claim))["tasks"]
    stopped = await client.call("_goclaw/admin/stop", {"level": "all", "why": "night"})
    assert (stopped["level"], stopped["why"]) == ("all", "night")
    intent = {
        "taskId": task["taskId"], "leaseToken": task["leaseToken"], "ordinal": 0,
        "phase": "intent", "kind": "tool", "name": "x", "requestHash": "00" * 32,
    }  # fmt: skip
    error = await client.refused("_goclaw/worker/effect", intent)
    assert (error["code"], error["data"]["reason"]) == (-31005, "emergency_stop")
    await client.call("_goclaw/task/submit", {
        "sessionId": session, "pool": "p", "payload": 2, "parallel": True,
    })  # fmt: skip
    assert (await client.call("_goclaw/worker/claim", claim))["tasks"] == []
    await client.request("session/prompt", {"sessionId": session, "prompt": text("say:hi")})
    again = await client.call("_goclaw/admin/resume")
    assert again["resumed"]
    assert (await client.call("_goclaw/admin/resume")) == {"resumed": False, "tasks": 0}
    assert (await client.call("_goclaw/worker/effect", intent))["go"]
    assert len((await client.call("_goclaw/worker/claim", claim))["tasks"]) == 1
    rows = await house.engine.database.read("audit_after", seq=0, limit=100)
    actions = [json.loads(row[2])["action"] for row in rows]
    assert actions.count("admin.stop") == 1
    assert actions.count("admin.resume") == 2
    events = await house.engine.database.read(
        "events_after", sid=house.services.system_sid, cursor=0, limit=100
    )
    assert [row[2] for row in events][-2:] == ["daemon.stopped", "daemon.resumed"]


@pytest.fixture
def place(home: Path) -> Iterator[Roof]:
    with roof(home) as made:
        yield made


def test_the_command_line_stops_with_and_without_a_daemon(place: Roof) -> None:
    place.goclaw("stop", code=2)
    (stopped,) = place.lines("stop", "--effects", "--why", "night")
    assert (stopped["level"], stopped["why"]) == ("effects", "night")
    place.serve()
    (status,) = place.lines("status")
    assert status["stopped"]["level"] == "effects"
    assert "EMERGENCY STOP (effects)" in place.goclaw("status").stderr
    assert "resumed" in place.goclaw("resume").stdout
    (status,) = place.lines("status")
    assert status["stopped"] is None
