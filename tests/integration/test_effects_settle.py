"""An operator's word on what nobody knows: settle, redo, probe; who may, and what each moves.

Owns the engine's side, with a real sink. Not in here: the wire (test_wire_effects.py), the command
line (test_cli_effects.py), how an effect becomes unknown (test_effects_journal.py, _kills.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from effects_support import POLICY, World, ask_sink, sink_process

from goclaw.core import limits
from goclaw.core.errors import IllegalTransition, InvalidParams, PolicyDenied, UnknownId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def counts(socket: Path) -> tuple[int, int]:
    report = await ask_sink(socket, {"op": "report"})
    return sum(report["sends"].values()), sum(report["effects"].values())


async def unknown(world: World, tool: str = "irreversible", key: str = "k") -> dict[str, Any]:
    """A task that is SUSPENDED because its one call was sent and got no answer."""
    task = await world.until((await world.tool(tool, {"n": 1, "mode": "reset"}, key=key)).task_id)
    assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
    return task


async def settled(world: World) -> dict[str, Any]:
    (event,) = [payload for type_, payload in await world.events() if type_ == "effect.settled"]
    return event


@pytest.mark.req("E-3")
def test_done_is_answered_from_the_word_that_was_given(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            effect, event_id = await world.engine.settlement.settle(
                task["task_id"], 0, "done", result=b'{"seen":1}', by="me"
            )
            assert (effect.ordinal, effect.state) == (0, "result")
            assert (await world.events())[event_id - 1][0] == "task.requeued"
            task = await world.until(task["task_id"], "SUCCEEDED")
            assert task["result"] == b'{"seen":1}'
            assert await settled(world) == {
                "ordinal": 0, "name": "irreversible", "outcome": "done", "by": "me",
            }  # fmt: skip
            assert await counts(sink) == (1, 1)

    asyncio.run(body())


@pytest.mark.req("E-3", "E-4")
@pytest.mark.parametrize("word", ["not_done", "redo"])
def test_what_is_sent_again_goes_under_its_old_key(word: str, home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            before = await world.engine.settlement.listed(task["task_id"])
            world.tools.faults_left = 0
            effect, _ = await world.engine.settlement.settle(task["task_id"], 0, word, by="me")
            assert effect.state == "retryable"
            await world.until(task["task_id"], "SUCCEEDED")
            after = await world.engine.settlement.listed(task["task_id"])
            assert [one.key for one in after] == [one.key for one in before]
            assert (await settled(world))["outcome"] == word
            report = await ask_sink(sink, {"op": "report"})
            assert report["sends"] == {before[0].key: 2}

    asyncio.run(body())


@pytest.mark.req("E-3", "Q-1")
def test_fail_ends_the_task_and_claims_to_know_nothing(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            effect, event_id = await world.engine.settlement.settle(
                task["task_id"], 0, "fail", by="me"
            )
            assert effect.state == "unknown"
            task = await world.until(task["task_id"], "FAILED")
            assert (task["reason"], task["end_event"]) == ("settled_as_fail", event_id)
            assert json.loads(task["error"])["code"] == "settled_as_fail"
            assert world.engine.task_counts()["FAILED"] == 1
            with pytest.raises(IllegalTransition) as caught:
                await world.engine.settlement.settle(task["task_id"], 0, "fail", by="me")
            assert caught.value.data == {"from": "FAILED", "to": "FAILED"}
            # The record may still be put right, and nothing moves.
            await world.engine.settlement.settle(task["task_id"], 0, "done", by="me")
            assert (await world.engine.task(task["task_id"]))["state"] == "FAILED"

    asyncio.run(body())


@pytest.mark.req("E-3", "Q-1")
def test_what_is_not_unknown_is_not_settled(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            settle = world.engine.settlement.settle
            task = await world.until((await world.tool("irreversible", {"n": 1})).task_id)
            for word in ("done", "not_done", "fail", "redo"):
                with pytest.raises(IllegalTransition) as caught:
                    await settle(task["task_id"], 0, word, by="me")
                assert caught.value.data["from"] == "result"
            with pytest.raises(IllegalTransition):
                await world.engine.settlement.ask(task["task_id"], 0, by="me")
            for task_id, ordinal in (("task_none", 0), (task["task_id"], 1)):
                with pytest.raises(UnknownId):
                    await settle(task_id, ordinal, "done", by="me")
                with pytest.raises(UnknownId):
                    await world.engine.settlement.ask(task_id, ordinal, by="me")
            with pytest.raises(UnknownId):
                await world.engine.settlement.listed("task_none")
            assert not [1 for type_, _ in await world.events() if type_ == "effect.settled"]

    asyncio.run(body())


@pytest.mark.req("E-3", "I-5")
def test_a_result_belongs_to_what_is_done_and_is_bounded(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            for word, result in (
                ("not_done", b"1"),
                ("done", b'"' + b"x" * limits.TOOL_OUTPUT_BYTES_MAX + b'"'),
            ):
                with pytest.raises(InvalidParams):
                    await world.engine.settlement.settle(
                        task["task_id"], 0, word, result=result, by="me"
                    )
            assert (await world.engine.task(task["task_id"]))["state"] == "SUSPENDED"

    asyncio.run(body())


@pytest.mark.req("E-3")
def test_a_canceled_tasks_effect_is_settled_and_never_redone(home: Path, sink: Path) -> None:
    """Somebody looked what became of it; but nothing will ever send it."""

    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            await world.engine.cancel_task(task["task_id"])
            for word in ("redo", "fail"):
                with pytest.raises(IllegalTransition) as caught:
                    await world.engine.settlement.settle(task["task_id"], 0, word, by="me")
                assert caught.value.data["from"] == "CANCELED"
            effect, _ = await world.engine.settlement.settle(task["task_id"], 0, "done", by="me")
            assert effect.state == "result"
            assert (await world.engine.task(task["task_id"]))["state"] == "CANCELED"

    asyncio.run(body())


# -- probes ----------------------------------------------------------------------------------------


async def silent(world: World) -> dict[str, Any]:
    """A task that is SUSPENDED over a probeable call, because the tool could not tell."""
    world.tools.tells = False
    return await unknown(world, "probeable")


@pytest.mark.req("E-3", "A-8")
@pytest.mark.parametrize("happened", [True, False])
def test_a_probe_settles_by_what_the_tool_says(happened: bool, home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await silent(world)
            same, event_id = await world.engine.settlement.ask(task["task_id"], 0, by="me")
            assert (same.state, event_id) == ("unknown", None)
            world.tools.tells = True
            if not happened:
                await ask_sink(sink, {"op": "forget"})
                world.tools.faults_left = 0
            effect, event_id = await world.engine.settlement.ask(task["task_id"], 0, by="me")
            assert effect.state == ("result" if happened else "retryable")
            assert event_id is not None
            assert (await settled(world))["outcome"] == ("done" if happened else "not_done")
            await world.until(task["task_id"], "SUCCEEDED")
            assert await counts(sink) == (1, 1)
            found = await world.database.read("audit_after", seq=0, limit=100)
            asked = [orjson.loads(row[2]) for row in found]
            # of the two questions, of the attempts that sent and asked
            assert len([one for one in asked if one["action"] == "tool.call"]) >= 3

    asyncio.run(body())


@pytest.mark.req("E-3")
@pytest.mark.parametrize("fault", [ConnectionError, TimeoutError, RuntimeError])
def test_a_probe_without_an_answer_changes_nothing(
    fault: type[Exception], home: Path, sink: Path
) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await silent(world)
            world.tools.probe_fault = fault("the sink is gone")
            if fault is RuntimeError:
                with pytest.raises(RuntimeError):  # the edge of a request logs it
                    await world.engine.settlement.ask(task["task_id"], 0, by="me")
            else:
                effect, event_id = await world.engine.settlement.ask(task["task_id"], 0, by="me")
                assert (effect.state, event_id) == ("unknown", None)
            assert (await world.engine.task(task["task_id"]))["state"] == "SUSPENDED"

    asyncio.run(body())


@pytest.mark.req("E-3", "I-5")
def test_a_probe_that_hangs_is_given_up(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROBE_MS_MAX", 20)

    async def body() -> None:
        async with World(home, sink) as world:
            task = await silent(world)
            world.tools.probe_hangs = True
            effect, event_id = await world.engine.settlement.ask(task["task_id"], 0, by="me")
            assert (effect.state, event_id) == ("unknown", None)

    asyncio.run(body())


@pytest.mark.req("E-3")
def test_only_what_can_be_asked_is_asked(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            task = await unknown(world)
            with pytest.raises(InvalidParams) as caught:
                await world.engine.settlement.ask(task["task_id"], 0, by="me")
            assert "goclaw effects settle" in (caught.value.hint or "")

    asyncio.run(body())


async def wake(world: World, task: dict[str, Any]) -> None:
    """Another attempt, though nobody has settled anything."""
    await world.database.write(
        "wake", tid=task["tid"], now_mono=None, reason="test", now=world.clock.wall_ms()
    )


async def again(world: World, task: dict[str, Any]) -> dict[str, Any]:
    """The task, suspended by a later attempt."""
    async with asyncio.timeout(10), world.changed:
        while True:
            found = await world.engine.task(task["task_id"])
            if found["state"] == "SUSPENDED" and found["attempt"] > task["attempt"]:
                return found
            await world.changed.wait()


DENY = """
[[rule]]
id = "no-more"
effect = "deny"
actions = ["tool.call"]
resources = [{ exact = "sink/probeable" }]
reason = "not any more"
"""


@pytest.mark.req("E-3", "I-6", "A-8")
def test_a_denied_tool_is_not_asked_by_anybody(home: Path, sink: Path) -> None:
    """The policy changed between the call and the question; in a run the brain is told."""

    async def begin() -> None:
        async with World(home, sink) as world:
            await silent(world)

    async def go_on() -> None:
        async with World(home, sink, policy=POLICY + DENY) as world:
            task = await world.until(
                (await world.tool("probeable", {"n": 1, "mode": "reset"})).task_id
            )
            with pytest.raises(PolicyDenied):
                await world.engine.settlement.ask(task["task_id"], 0, by="me")
            found = await world.database.read("audit_after", seq=0, limit=100)
            assert orjson.loads(found[-1][2])["ruleId"] == "no-more"
            await wake(world, task)
            task = await again(world, task)
            assert (task["reason"], world.tools.probes) == ("effect_unknown", 0)
            await world.engine.settlement.settle(task["task_id"], 0, "not_done", by="me")
            task = await world.until(task["task_id"], "FAILED")
            assert (task["reason"], world.tools.probes) == ("policy_denied", 0)
            assert await counts(sink) == (1, 1)

    asyncio.run(begin())
    asyncio.run(go_on())


@pytest.mark.req("E-3", "I-6")
def test_what_a_probe_finds_not_done_is_decided_on_again(home: Path, sink: Path) -> None:
    """In an attempt too: between the call and its repetition a person must be asked."""
    asked = POLICY + DENY.replace('"deny"', '"ask"')

    async def begin() -> None:
        async with World(home, sink) as world:
            await silent(world)

    async def go_on() -> None:
        async with World(home, sink, policy=asked, open_lanes=False) as world:
            await ask_sink(sink, {"op": "forget"})
            accepted = await world.tool("probeable", {"n": 1, "mode": "reset"})
            await wake(world, await world.engine.task(accepted.task_id))
            world.engine.open_lanes()
            task = await world.until(accepted.task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
            assert await counts(sink) == (0, 0)

    asyncio.run(begin())
    asyncio.run(go_on())
