"""Cancel in every state: once, with a receipt, and the session goes on (Q-11, PROTOCOL 2.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from engine_support import Home, World, passes, settled

from goclaw.core.errors import AlreadyResolved, LeaseLost, UnknownId
from goclaw.core.records import Call, Done, Failed, Succeeded
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.Event().wait()
    return Succeeded()


async def lingers(attempt: Attempt) -> Outcome:
    try:
        await asyncio.Event().wait()
    finally:
        await passes(100)
    return Succeeded()


async def brief(attempt: Attempt) -> Outcome:
    await passes(1_000)
    return Succeeded()


async def asks(attempt: Attempt) -> Outcome:
    async def dispatch(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    await attempt.perform(
        [Call("tool", "act", b"{}", EffectClass.IRREVERSIBLE, dispatch, question=True)]
    )
    return Succeeded()


async def flaky(attempt: Attempt) -> Outcome:
    return Failed("flaky", "it broke", retryable=True, retry_after_ms=100_000)


@pytest.mark.req("Q-11", "Q-9", "G-4")
@pytest.mark.parametrize(
    ("play", "state", "outcome"),
    [
        (None, "QUEUED", "stopped"),
        (lingers, "RUNNING", "stopping"),
        (forever, "RUNNING", "stopped"),
        (flaky, "RETRY_WAIT", "stopped"),
        (asks, "SUSPENDED", "stopped"),
    ],
    ids=["QUEUED", "RUNNING and slow", "RUNNING", "RETRY_WAIT", "SUSPENDED"],
)
def test_a_cancel_in_any_state_ends_the_run_once(
    home: Path, play: object, state: str, outcome: str
) -> None:
    house = Home(home, lanes=1)
    if play is None:
        house.plays["other"] = forever
    else:
        house.plays["work"] = play  # type: ignore[assignment]

    async def main(world: World) -> None:
        session = await world.session()
        blocker = None
        if play is None:
            blocker = await world.prompt(await world.session(), "other")
            await settled()
        task = await world.prompt(session, "work")
        following = await world.prompt(session, "following")
        await world.until(task, state)
        waiters = [asyncio.ensure_future(world.engine.run_ended(task.run_id)) for _ in range(3)]
        await settled()
        first, second = await asyncio.gather(
            world.engine.cancel_run(task.run_id), world.engine.cancel_task(task.task_id)
        )
        assert (first.outcome, second.outcome) == (outcome, "already_finished")
        assert first.event_id == second.event_id
        for end in await asyncio.gather(*waiters):
            assert (end.state, end.stop_reason, end.code) == ("CANCELED", "cancelled", "cancel")
            assert end.event_id == first.event_id
        assert await world.engine.run_state(task.run_id) == await waiters[0]
        row = await world.engine.task(task.task_id)
        assert (row["state"], row["error"], row["lease_owner"]) == ("CANCELED", None, None)
        assert await world.engine.approvals.listed() == []
        types = await world.types(session)
        assert types.count("task.canceled") == types.count("run.ended") == 1
        if blocker is not None:
            await world.engine.cancel_task(blocker.task_id)
        assert await world.ended(following) == "SUCCEEDED"
        third = await world.engine.cancel_run(task.run_id)
        assert third.outcome == "already_finished"
        assert (await world.types(session)).count("task.canceled") == 1

    house.live(main)


@pytest.mark.req("Q-11", "A-7")
def test_the_questions_of_a_cancelled_run_are_closed(home: Path) -> None:
    house = Home(home)
    house.plays["asks"] = asks

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "asks")
        await world.until(task, "SUSPENDED")
        (approval,) = await world.engine.approvals.listed()
        await world.engine.cancel_run(task.run_id)
        with pytest.raises(AlreadyResolved) as refused:
            await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
        assert refused.value.data["outcome"] == "cancelled"
        types = await world.types(session)
        assert types[-3:] == ["approval.resolved", "task.canceled", "run.ended"]

    house.live(main)


@pytest.mark.req("Q-11", "E-3")
def test_a_cancel_interrupts_an_effect_and_tells_what_was_done(home: Path) -> None:
    house = Home(home)
    heard: list[str] = []

    async def quick(key: str, cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    async def slow(key: str, cancelled: asyncio.Event) -> Done:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("set" if cancelled.is_set() else "not set")
            raise
        return Done(b"1")

    async def acts(attempt: Attempt) -> Outcome:
        for name, dispatch in [("first", quick), ("second", quick), ("third", slow)]:
            await attempt.perform([Call("tool", name, b"{}", EffectClass.IRREVERSIBLE, dispatch)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "acts")
        await settled()
        receipt = await world.engine.cancel_run(task.run_id)
        assert (receipt.outcome, receipt.effects_done) == ("stopping", ("first", "second"))
        await settled()
        assert heard == ["set"]
        types = await world.types(session)
        assert types[-3:] == ["effect.unknown", "task.canceled", "run.ended"]

    house.live(main)


@pytest.mark.req("Q-11", "Q-4", "G-1")
def test_late_words_of_a_cancelled_run_are_refused(home: Path) -> None:
    house = Home(home, lanes=1)
    refused = []

    async def deaf(attempt: Attempt) -> Outcome:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await attempt.think("late", {}, answer)
        except LeaseLost:
            refused.append("think")
        return Succeeded(result=b'"late"')

    async def answer(stream: object) -> dict[str, object]:
        return {"updates": [{"sessionUpdate": "agent_message_chunk"}]}

    house.plays["deaf"] = deaf

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "deaf")
        await settled()
        await world.engine.cancel_run(task.run_id)
        await settled()
        assert refused == ["think"]
        row = await world.engine.task(task.task_id)
        assert (row["state"], row["result"]) == ("CANCELED", None)
        *_, ended, late = await world.events(session)
        assert ended[0] == "run.ended"
        assert late == (
            "attempt.late",
            {"outcome": "SUCCEEDED", "stopReason": "end_turn", "bytes": 6, "result": "late"},
        )
        # The lane is free again.
        assert await world.ended(await world.tool(session, "after")) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-11", "Q-4", "E-3")
@pytest.mark.parametrize("way", ["deaf", "just then"])
def test_a_late_result_is_joined_to_its_attempt_and_nothing_goes_on_by_it(
    home: Path, way: str
) -> None:
    """It came after the cancel was on disk: from a tool that hears nothing, and from one whose
    result was on its way to disk."""
    house = Home(home, lanes=1)
    done: list[str] = []
    let_go = asyncio.Event()

    async def slow(key: str, cancelled: asyncio.Event) -> Done:
        with contextlib.suppress(asyncio.CancelledError):
            await let_go.wait()
        done.append(key)
        return Done(b'"paid"')

    async def acts(attempt: Attempt) -> Outcome:
        await attempt.perform([Call("tool", "pay", b"{}", EffectClass.IRREVERSIBLE, slow)])
        await attempt.perform([Call("tool", "again", b"{}", EffectClass.IRREVERSIBLE, slow)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        session = await world.session()
        task = await world.prompt(session, "acts")
        await settled()
        row = await world.engine.task(task.task_id)
        if way == "deaf":
            assert (await world.engine.cancel_run(task.run_id)).effects_done == ()
        else:  # the result stands behind the cancel in the writer's line when the attempt is ended
            cancel = {"tid": row["tid"], "reason": "canceled", "now": world.clock.wall_ms()}
            cancelling = world.database.write("cancel", **cancel)
            let_go.set()
            for _ in range(8):
                await asyncio.sleep(0)
            assert done
            (attempt,) = world.engine.scheduler.live.values()
            attempt.stop("canceled")
            await cancelling
        await settled()
        assert len(done) == 1
        types = await world.types(session)
        assert types[-4:] == ["effect.unknown", "task.canceled", "run.ended", "effect.result"]
        (_, late) = (await world.events(session))[-1]
        assert (late["ordinal"], late["state"], late["late"]) == (0, "result", True)
        (effect,) = await world.rows("effects_of_task", tid=row["tid"])
        assert (effect["state"], effect["result"], effect["failed"]) == ("result", b'"paid"', 0)
        assert await world.state(task) == "CANCELED"

    house.live(main)


@pytest.mark.req("Q-11")
@pytest.mark.parametrize("seed", range(8))
def test_a_cancel_that_races_with_the_end(home: Path, seed: int) -> None:
    """Whichever commits first wins, and there is one end."""
    house = Home(home, seed=seed, hurry=0.4, lanes=2)

    async def work(attempt: Attempt) -> Outcome:
        for _ in range(house.clock.chance.randrange(6)):
            await asyncio.sleep(0)
        return Succeeded()

    house.plays["work"] = work

    async def main(world: World) -> None:
        for _ in range(8):
            session = await world.session()
            task = await world.prompt(session, "work")
            receipt, end = await asyncio.gather(
                world.engine.cancel_run(task.run_id), world.engine.run_ended(task.run_id)
            )
            won = receipt.outcome != "already_finished"
            assert end.state == ("CANCELED" if won else "SUCCEEDED")
            await settled()
            types = await world.types(session)
            assert types.count("run.ended") == 1
            # What the loser still said is joined to its attempt, and ends nothing.
            assert types[types.index("run.ended") + 1 :] in ([], ["attempt.late"] * won)

    house.live(main)


@pytest.mark.req("Q-11", "Q-1", "Q-2", "I-1")
def test_a_thousand_tasks_cancelled_while_they_finish(home: Path) -> None:
    """Each ends once, as its receipt says; counters, lanes and lines are clean after."""
    house = Home(home, seed=11, hurry=0.3, lanes=16)
    chance = house.clock.chance

    async def brief_work(attempt: Attempt) -> Outcome:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        match chance.randrange(4):
            case 0:
                return Failed("no_good", "")
            case 1:
                return Failed("again", "", retryable=True, fingerprint=attempt.task.task_id)
            case _:
                return Succeeded()

    house.plays["brief"] = brief_work

    async def cancel(world: World, task: Accepted) -> tuple[str, str]:
        while not any(task.task_id == begun for begun, _ in house.plays.begun[-64:]):
            await asyncio.sleep(0.001)
            if await world.state(task) not in ("QUEUED", "RUNNING"):
                break
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        receipt = await world.engine.cancel_task(task.task_id)
        return receipt.outcome, await world.ended(task)

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(20)]
        tasks = [
            await world.tool(session, "brief", parallel=n % 2 == 0)
            for n in range(50)
            for session in sessions
        ]
        found = Counter(await asyncio.gather(*(cancel(world, task) for task in tasks)))
        assert found.total() == 1_000
        finished = {state for outcome, state in found if outcome == "already_finished"}
        assert finished <= {"SUCCEEDED", "FAILED", "DEAD_LETTER"}
        assert {state for outcome, state in found if outcome != "already_finished"} == {"CANCELED"}
        canceled = sum(count for (_, state), count in found.items() if state == "CANCELED")
        assert 100 < canceled < 900, "not at the moment that matters"
        ends = Counter[str]()
        for session in sessions:
            for kind, fields in await world.events(session):
                if fields.get("to") in ("SUCCEEDED", "FAILED", "DEAD_LETTER", "CANCELED"):
                    ends[kind] += 1
        assert ends.total() == 1_000
        assert ends["task.canceled"] == canceled
        assert world.engine.open_tasks() == 0
        for session in sessions:
            assert await world.ended(await world.tool(session, "after")) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-11", "W-7")
@pytest.mark.parametrize("turn", ["running", "suspended", "backed off", "resumed"])
def test_session_cancel_takes_the_turn_and_the_callers_own_prompts(home: Path, turn: str) -> None:
    house = Home(home, lanes=1 if turn == "resumed" else 3)
    house.plays["turn"] = {"suspended": asks, "backed off": flaky, "resumed": asks}.get(
        turn, forever
    )
    house.plays["beside"] = forever
    house.plays["blocker"] = forever

    async def main(world: World) -> None:
        session = await world.session()
        # A parallel task came first: it is no turn.
        beside = await world.tool(session, "beside", parallel=True, client="tool")
        if turn == "resumed":
            await world.engine.cancel_task(beside.task_id)
        first = await world.prompt(session, "turn", client="other")
        await passes(10)
        mine = [await world.prompt(session, f"mine{n}", client="me") for n in range(3)]
        theirs = await world.prompt(session, "theirs", client="other")
        job = await world.tool(session, "job", client="me")
        blocker = None
        if turn == "resumed":
            # The answer is there, no lane is: QUEUED, and still the turn.
            blocker = await world.tool(await world.session(), "blocker")
            await passes(10)
            (approval,) = await world.engine.approvals.listed()
            await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
            assert await world.state(first) == "QUEUED"
        receipts = await world.engine.cancel_session(session, client="me")
        assert len(receipts) == 4
        for task in [first, *mine]:
            assert await world.state(task) == "CANCELED"
        if blocker is not None:
            await world.engine.cancel_task(blocker.task_id)
        assert await world.ended(theirs) == "SUCCEEDED"
        assert await world.ended(job) == "SUCCEEDED"
        if turn != "resumed":
            assert await world.state(beside) == "RUNNING"
        # No lane that the turn freed has begun what was cancelled with it.
        assert not {name for name in house.plays.order if name.startswith("mine")}

    house.live(main)


@pytest.mark.req("Q-11", "W-7")
def test_session_cancel_of_nothing_and_by_nobody_in_particular(home: Path) -> None:
    house = Home(home)
    house.plays["turn"] = lingers

    async def main(world: World) -> None:
        session = await world.session()
        assert await world.engine.cancel_session(session, client="me") == []
        tasks = [await world.prompt(session, "turn", client=str(number)) for number in range(3)]
        await settled()
        receipts = await world.engine.cancel_session(session, client=None)
        assert [receipt.outcome for receipt in receipts] == ["stopping", "stopped", "stopped"]
        assert {await world.state(task) for task in tasks} == {"CANCELED"}

    house.live(main)


@pytest.mark.req("Q-11")
def test_a_cancel_of_what_somebody_else_runs_says_so(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        task_id = world.clock.new_id("task")
        await world.database.write(
            "enqueue", sid=session.sid, task_id=task_id, run_id=task_id.replace("task", "run"),
            pool="builders", work="pool:builders", kind="pool", parallel=0, rank=4, max_attempts=3,
            on_unknown="suspend", policy_version="p", trace="", payload=b"{}", origin="unix",
            session_limit=10, now=world.clock.wall_ms(),
        )  # fmt: skip
        await world.database.write(
            "claim", pool="builders", owner="worker:1", token=b"t", policy_version="p",
            lease_until_mono=1 << 60, aging_factor=16, now=world.clock.wall_ms(),
        )  # fmt: skip
        behind = await world.prompt(session, "behind")
        await settled()
        assert await world.state(behind) == "QUEUED"  # behind its session's serial task
        receipt = await world.engine.cancel_task(task_id)
        assert receipt.outcome == "may_still_be_running"
        assert await world.ended(behind) == "SUCCEEDED"
        with pytest.raises(UnknownId):
            await world.engine.cancel_task("task_of_nobody")

    house.live(main)


@pytest.mark.req("Q-11", "Q-9")
@pytest.mark.parametrize("seed", range(4))
def test_cancelling_at_random_lets_every_other_task_end(home: Path, seed: int) -> None:
    house = Home(home, seed=seed, hurry=0.3, lanes=2)
    house.plays["work"] = brief

    async def main(world: World) -> None:
        chance = house.clock.chance
        sessions = [await world.session() for _ in range(3)]
        tasks: list[Accepted] = []
        cancelled = set()
        for _ in range(40):
            session = chance.choice(sessions)
            tasks.append(await world.tool(session, "work", parallel=chance.random() < 0.3))
            if chance.random() < 0.4:
                victim = chance.choice(tasks)
                receipt = await world.engine.cancel_task(victim.task_id)
                if receipt.outcome != "already_finished":
                    cancelled.add(victim.task_id)
            await passes(chance.randrange(400))
        for task in tasks:
            assert await world.ended(task) == (
                "CANCELED" if task.task_id in cancelled else "SUCCEEDED"
            )

    house.live(main)
