"""Durable waits are effects (E-9): sleeps, signals and questions, with kills in every phase.

Owns their journal rows, their repetition and their price in budgets. Not in here: waits in virtual
time (test_engine_waits.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import (
    World,
    ask_sink,
    first_life,
    next_life,
    sink_process,
    submit,
)

from goclaw.core import limits
from goclaw.core.errors import IdempotencyConflict, IllegalTransition, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("E-9")


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


async def sends(socket: Path) -> list[int]:
    report = await ask_sink(socket, {"op": "report"})
    return sorted(report["sends"].values())


# -- kills -----------------------------------------------------------------------------------------

# Where the life of a run that calls, waits for a signal, calls again and ends is cut off. The
# fourth commit with events is the suspension; each call passes before_result and after_result.
PHASES = [
    "after_claim:kill@1",
    "before_result:kill@1",  # the first call was sent
    "after_result:kill@1",
    *(f"before_publish:kill@{commit}" for commit in range(3, 12)),
    "after_claim:kill@2",  # the signal has let it go on
    "before_result:kill@2",  # the signal's record
    "after_result:kill@2",
    "before_result:kill@3",  # the second call was sent
    "after_result:kill@3",
    "before_complete:kill@1",
]


@pytest.mark.req("E-2", "I-4", "Q-5")
@pytest.mark.parametrize("fault", PHASES)
def test_a_signal_survives_a_kill_in_every_phase(fault: str, home: Path, sink: Path) -> None:
    job = {"tool": "keyed", "arguments": {"n": 0}, "signal": "first"}
    assert first_life(home, sink, job, fault) == -9

    async def rest() -> None:
        async with next_life(home, sink, job) as world:
            accepted = await submit(world, job)
            task = await world.until(accepted.task_id)
            first, _ = await world.engine.signal(accepted.run_id, "door", b"first", key="s")
            second, late = await world.engine.signal(accepted.run_id, "door", b"second", key="t")
            assert (first, late) == (second, True)
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert task["result"] == b"first"
            assert (task["failures"], task["crashes"] <= 1) == (0, True)
            rows = await world.effects(task["tid"])
            assert [(row["ordinal"], row["kind"], row["state"]) for row in rows] == [
                (0, "tool", "result"), (1, "signal", "result"), (2, "tool", "result"),
            ]  # fmt: skip
            assert (rows[1]["name"], rows[1]["result"]) == ("door", b"first")
            names = [type_ for type_, _ in await world.events()]
            assert names.count("signal.received") == 1

    asyncio.run(rest())
    found = asyncio.run(sends(sink))
    assert len(found) == 2  # two keys
    assert sum(found) <= 3  # at most the one that was under way went again, under its key
    report = asyncio.run(ask_sink(sink, {"op": "report"}))
    assert set(report["effects"].values()) == {1}


@pytest.mark.req("E-2")
@pytest.mark.parametrize("fault", ["after_claim:kill@1", *(
    f"before_publish:kill@{commit}" for commit in range(3, 8)
), "after_claim:kill@2", "before_complete:kill@1"])  # fmt: skip
def test_a_sleep_survives_a_kill_in_every_phase(fault: str, home: Path, sink: Path) -> None:
    steps = [{"call": "sleep", "args": {"seconds": 0.2}}, {"call": "keyed", "args": {"n": 1}}]
    job = {"prompt": "go", "brain": script(home, *steps)}
    assert slept_life(home, sink, job, fault) == -9

    async def rest() -> None:
        async with next_life(home, sink, job) as world:
            accepted = await submit(world, job)
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert [one["status"] for one in json.loads(task["result"])["tools"]] == [
                "completed"
            ] * 2
            waits = [p for t, p in await world.events() if t == "task.suspended"]
            assert [one["reason"] for one in waits] == ["sleep"]  # begun once
            assert task["updated_at"] >= waits[0]["dueAt"]
            assert (task["failures"], task["crashes"] <= 1) == (0, True)

    asyncio.run(rest())
    assert asyncio.run(sends(sink)) == [1]


def slept_life(home: Path, sink: Path, job: dict[str, Any], fault: str) -> int:
    """A life that waits for the end, not for the sleep."""
    return first_life(home, sink, {**job, "ends": True}, fault)


# -- what a signal says ----------------------------------------------------------------------------


def test_the_same_key_is_the_same_signal(home: Path, sink: Path) -> None:
    """Also over a restart, and after the run has ended."""
    job = {"tool": "keyed", "arguments": {"n": 0}, "signal": ""}

    async def signal(
        world: World, run: str, payload: bytes, key: str | None, name: str = "door"
    ) -> Any:
        return await world.engine.signal(run, name, payload, key=key)

    async def one() -> tuple[str, int]:
        async with next_life(home, sink, job) as world:
            accepted = await submit(world, job)
            await world.until(accepted.task_id, "SUSPENDED")
            run = accepted.run_id
            other = await signal(world, run, b"0", "o", "window")
            assert await signal(world, run, b"0", "o", "window") == (other[0], True)
            for payload, name in ((b"1", "window"), (b"0", "door")):
                with pytest.raises(IdempotencyConflict) as caught:
                    await signal(world, run, payload, "o", name)
                assert caught.value.data == {"idempotencyKey": "o", "runId": run}
            assert (await world.engine.task(accepted.task_id))["state"] == "SUSPENDED"
            event_id, duplicate = await signal(world, run, b"1", "s")
            assert not duplicate
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert task["result"] == b"1"
            return run, event_id

    async def two(run: str, event_id: int) -> None:
        async with next_life(home, sink, job) as world:
            assert await signal(world, run, b"1", "s") == (event_id, True)
            assert await signal(world, run, b"2", "t") == (event_id, True)
            assert await signal(world, run, b"3", None) == (event_id, True)
            with pytest.raises(IdempotencyConflict):
                await signal(world, run, b"2", "s")
            for key in (None, "n"):
                with pytest.raises(IllegalTransition) as caught:
                    await signal(world, run, b"1", key, "nobody waits for it")
                assert caught.value.data["from"] == "SUCCEEDED"
            names = [type_ for type_, _ in await world.events()]
            assert names.count("signal.received") == 2

    run, event_id = asyncio.run(one())
    asyncio.run(two(run, event_id))


@pytest.mark.req("I-5")
def test_the_signals_of_a_run_are_bounded(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SIGNALS_MAX", 3)
    job = {"tool": "keyed", "arguments": {"n": 0}, "signal": ""}

    async def body() -> None:
        async with next_life(home, sink, job) as world:
            accepted = await submit(world, job)
            await world.until(accepted.task_id, "SUSPENDED")
            for number in range(3):
                await world.engine.signal(accepted.run_id, str(number), b"", key=str(number))
            with pytest.raises(TooLarge) as caught:
                await world.engine.signal(accepted.run_id, "door", b"")
            assert caught.value.data == {"limit": 3, "unit": "signals"}
            with pytest.raises(TooLarge):
                await world.engine.signal(accepted.run_id, "0", b"", key="another")
            _, duplicate = await world.engine.signal(accepted.run_id, "0", b"")
            assert duplicate

    asyncio.run(body())


# -- what a wait costs -----------------------------------------------------------------------------


@pytest.mark.req("Q-5", "A-7")
def test_five_approvals_spend_no_attempt(home: Path, sink: Path) -> None:
    """Beside sleeps, with budgets that would not survive a single failure."""
    steps: list[dict[str, Any]] = []
    for n in range(5):
        steps += [
            {"call": "asked", "args": {"n": n}}, {"call": "sleep", "args": {"seconds": 0.01}}
        ]  # fmt: skip

    async def body() -> None:
        brain = script(home, *steps, {"say": "end"})
        async with World(home, sink, brain=brain, max_attempts=1, crash_budget=1) as world:
            accepted = await world.prompt("go")
            for number in range(5):
                async with asyncio.timeout(20), world.changed:
                    while not (waiting := await world.engine.approvals.listed()):
                        await world.changed.wait()
                (approval,) = waiting
                task = await world.engine.task(accepted.task_id)
                assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
                assert (task["failures"], task["crashes"]) == (0, 0), number
                await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert (task["attempt"], task["failures"], task["crashes"]) == (11, 0, 0)
            assert await sends(sink) == [1] * 5

    asyncio.run(body())
