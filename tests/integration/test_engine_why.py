"""Why a task waits, is blocked, denied or dead: each reason as the engine makes it (Q-14).

Owns nothing but the tests. Not in here: the command (test_cli_why.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World, passes, settled

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import IllegalTransition, UnknownId
from goclaw.core.records import Call, Done, Failed, Retryable, Succeeded, Terms
from goclaw.core.states import EffectClass
from goclaw.engine.dead_letters import Verb
from goclaw.engine.effects import Park

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from goclaw.core.records import Accepted, Attempt, Outcome
    from goclaw.engine.why import Because

    Play = Callable[[Attempt], Awaitable[Outcome]]

pytestmark = pytest.mark.req("Q-14")

ME = Subject(SubjectKind.CLIENT, "me", Origin.UNIX)


async def why(world: World, task: Accepted) -> list[Because]:
    """The reasons; the state that comes with them is that of the task."""
    state, because = await world.engine.why.explain(task.task_id)
    assert state == await world.state(task)
    assert because, "there is always a reason"
    for one in because:
        assert one.text[0].isupper(), one
        assert one.text.endswith("."), one
        assert "\n" not in one.text, one
        if one.until_ms is not None:
            assert rfc3339(one.until_ms) in one.text, one
    return because


def codes(because: list[Because]) -> list[str]:
    return [one.code for one in because]


async def forever(attempt: Attempt) -> Outcome:
    await asyncio.get_running_loop().create_future()
    return Succeeded()


async def question(attempt: Attempt) -> Outcome:
    await attempt.perform([call("ask", question=True, title="May I?")])
    return Succeeded()


def call(
    name: str,
    kind: EffectClass = EffectClass.IRREVERSIBLE,
    dispatch: Callable[[str, asyncio.Event], Awaitable[Done]] | None = None,
    **fields: Any,
) -> Call:
    async def well(_key: str, _cancelled: asyncio.Event) -> Done:
        return Done(b"1")

    return Call("tool", name, b"{}", kind, dispatch or well, **fields)


def decision(verdict: Verdict, rule: str, reason: str) -> Decision:
    return Decision(
        "decision_1", 0, ME, "tool.call", "x", Context(), verdict, rule, reason, "p", ()
    )


# -- in line ---------------------------------------------------------------------------------------


@pytest.mark.req("Q-9")
def test_behind_others_of_its_session_and_what_the_first_waits_for(home: Path) -> None:
    house = Home(home, lanes=2)
    house.plays["busy"], house.plays["question"] = forever, question

    async def main(world: World) -> None:
        session = await world.session()
        first = await world.tool(session, "busy")
        second, third = [await world.tool(session, "next") for _ in range(2)]
        await settled()
        (turn, under_way) = await why(world, third)
        assert (turn.code, turn.text) == (
            "session_turn",
            "It comes after 2 tasks in its session, the first of which, "
            f"{first.task_id}, is RUNNING.",
        )  # fmt: skip
        assert under_way.code == "running"
        assert under_way.text == f"Attempt 1 of task {first.task_id} is under way in a lane."
        await world.engine.cancel_task(first.task_id)
        await world.ended(third)

        asking = await world.prompt(session, "question")
        behind = await world.prompt(session, "next")
        await world.until(asking, "SUSPENDED")
        (approval,) = await world.engine.approvals.listed()
        (turn, answer) = await why(world, behind)
        assert turn.text == (
            "It comes after 1 task in its session, the first of which, "
            f"{asking.task_id}, is SUSPENDED."
        )
        assert answer.code == "approval"
        assert answer.text.startswith(f"Task {asking.task_id} waits for an answer to May I?; ")
        assert answer.command == f"goclaw approvals answer {approval.approval_id} allow|reject"
        await world.engine.approvals.resolve(approval.approval_id, "allow", "me")
        assert await world.ended(behind) == "SUCCEEDED"
        assert second.task_id

    house.live(main)


@pytest.mark.req("Q-9", "Q-7")
def test_a_turn_that_is_held_in_a_backoff_names_the_failure(home: Path) -> None:
    house = Home(home, backoff_ms_min=60_000, backoff_ms_max=60_000)

    async def flaky(attempt: Attempt) -> Outcome:
        return Failed("flaky", "Not\nnow.", retryable=True, fingerprint=str(attempt.task.attempt))

    house.plays["flaky"] = flaky

    async def main(world: World) -> None:
        session = await world.session()
        first, second = await world.tool(session, "flaky"), await world.tool(session, "well")
        await world.until(first, "RETRY_WAIT")
        (own,) = await why(world, first)
        assert own.code == "backoff"
        assert own.text.endswith("after failure 1 of at most 5: flaky: Not now.")
        (turn, other) = await why(world, second)
        assert f"{first.task_id}, is RETRY_WAIT." in turn.text
        assert (other.code, other.until_ms) == ("backoff", own.until_ms)
        # What is said of the time comes true, to the millisecond.
        await passes((own.until_ms or 0) - world.clock.wall_ms() - 1)
        assert await world.state(first) == "RETRY_WAIT"
        await passes(1)
        await settled()
        assert (await world.engine.task(first.task_id))["failures"] == 2

    house.live(main)


@pytest.mark.req("Q-8")
def test_the_rank_is_the_order_in_which_they_start(home: Path) -> None:
    house = Home(home, lanes=1, aging_factor=1_000)
    house.plays["busy"] = forever
    started: list[str] = []

    async def note(attempt: Attempt) -> Outcome:
        started.append(attempt.task.task_id)
        return Succeeded()

    house.plays["note"] = note

    async def main(world: World) -> None:
        sessions = [await world.session() for _ in range(14)]
        for number in (1, 5, 0):  # had their turn just now: they come last of their level
            await world.ended(await world.tool(sessions[number], "note"))
        started.clear()
        busy = await world.tool(await world.session(), "busy", priority=9)
        await settled()
        tasks = []
        for number, session in enumerate(sessions):
            tasks.append(await world.tool(session, "note", priority=[5, 5, 7, 3, 5][number % 5]))
        ranks = {}
        for task in tasks:
            lanes, *rest = await why(world, task)
            assert lanes.code == "lanes_busy"
            assert lanes.text == "It is ready, but the only lane is busy."
            text = rest[0].text if rest else "It comes after 0 ready tasks in the fair order."
            assert text.endswith(" in the fair order.")
            ranks[task.task_id] = int(text.split()[3])
        assert sorted(ranks.values()) == list(range(14))
        await world.engine.cancel_task(busy.task_id)
        for task in tasks:
            await world.ended(task)
        assert started == sorted(ranks, key=lambda task_id: ranks[task_id])

    house.live(main)


@pytest.mark.req("Q-8")
def test_one_that_waited_long_is_said_to_be_due(home: Path) -> None:
    house = Home(home, lanes=1, aging_factor=2)

    async def main(world: World) -> None:
        gate = asyncio.Event()

        async def waits(attempt: Attempt) -> Outcome:
            await gate.wait()
            gate.clear()
            return Succeeded()

        house.plays["waits"] = waits
        urgent = [await world.tool(await world.session(), "waits", priority=6) for _ in range(6)]
        low = await world.tool(await world.session(), "low", priority=5)
        found: list[str] = []
        for done in range(4):
            await settled()
            found = codes(await why(world, low))
            claims = done + 1  # urgent ones that were claimed after it became ready
            if claims < 3:
                assert found == ["lanes_busy", "rank"], claims
            gate.set()
            await settled()
            if await world.state(low) == "SUCCEEDED":
                break
        assert "aging" in found
        assert await world.state(urgent[-1]) != "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-9")
def test_parallel_tasks_wait_behind_each_other_only(home: Path) -> None:
    house = Home(home, lanes=1)
    house.plays["busy"] = forever

    async def main(world: World) -> None:
        session = await world.session()
        tasks = [await world.tool(session, "busy", parallel=True) for _ in range(4)]
        await settled()
        assert codes(await why(world, tasks[1])) == ["lanes_busy"]
        turn, first = await why(world, tasks[3])
        assert turn.text == (
            "It comes after 2 tasks in its session, the first of which, "
            f"{tasks[1].task_id}, is QUEUED."
        )
        assert first.text == f"Task {tasks[1].task_id} is ready, but the only lane is busy."

    house.live(main)


@pytest.mark.req("Q-16")
def test_lanes_that_are_reserved(home: Path) -> None:
    house = Home(home, lanes=2, reserved_lanes=1)
    house.plays["busy"] = forever

    async def main(world: World) -> None:
        await world.tool(await world.session(), "busy")
        await settled()
        waits = await world.tool(await world.session(), "busy")
        (reserved,) = await why(world, waits)
        assert (reserved.code, reserved.text) == (
            "lanes_reserved", "It is ready, but the free lanes are reserved for prompts."
        )  # fmt: skip
        await world.prompt(await world.session(), "busy")
        await settled()
        assert codes(await why(world, waits)) == ["lanes_busy"]

    house.live(main)


@pytest.mark.req("U-2")
def test_no_daemon_runs_it_or_it_is_stopping(home: Path) -> None:
    house = Home(home)
    house.plays["busy"] = forever

    async def embedded(world: World) -> None:
        task = await world.tool(await world.session(), "well")
        (nobody,) = await why(world, task)
        assert (nobody.code, nobody.command) == ("no_daemon", "goclaw serve")

    house.live(embedded, only_sids=set())

    async def stopping(world: World) -> None:
        session = await world.session()
        await world.tool(session, "busy")
        await settled()
        ready = await world.tool(await world.session(), "well", terms=later(world, 1_000))
        stop = asyncio.ensure_future(world.stop(60_000))
        await settled()
        # The timer has ended: by hand.
        await world.database.write(
            "release", tid=ready.tid, now=world.clock.wall_ms() + 2_000
        )  # fmt: skip
        (told,) = await why(world, ready)
        assert (told.code, told.command) == ("shutting_down", "goclaw serve")
        stop.cancel()

    house.live(stopping)


def later(world: World, ms: int) -> Terms:
    return Terms(not_before_ms=world.clock.wall_ms() + ms)


@pytest.mark.req("A-10")
def test_a_pool_without_workers_and_with_busy_ones(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        tasks = [
            await world.intake.submit_work(
                await world.session(), "p", n, key=None, client="me", origin="unix"
            )
            for n in range(3)
        ]
        for number, task in enumerate(tasks):
            nobody, *rest = await why(world, task)
            assert nobody.code == "no_worker"
            assert nobody.text == (
                "It is ready, but no worker has asked for work of the pool p since the daemon "
                "started."
            )
            assert nobody.command == "goclaw worker --pool p MODULE:FUNCTION"
            many = "1 ready task" if number == 1 else f"{number} ready tasks"
            shown = [f"It comes after {many} in the fair order of its pool."] if number else []
            assert [one.text for one in rest] == shown
        allowed = decision(Verdict.ALLOW, "r", "it may")
        (lease,) = await world.engine.pools.claim(
            "p", most=1, wait_ms=0, owner="worker:w", decision=allowed
        )
        asked = rfc3339(world.clock.wall_ms())
        await passes(5_000)
        assert lease.task_id == tasks[0].task_id
        (held,) = await why(world, tasks[0])
        assert held.code == "running"
        assert held.text.startswith("Worker worker:w holds attempt 1 of it; its lease ends at ")
        (busy, *_) = await why(world, tasks[1])
        assert (busy.code, busy.text) == (
            "workers_busy",
            f"It is ready, but no worker of the pool p has asked since {asked}; they hold 1 of "
            "its tasks.",
        )  # fmt: skip
        waiting = asyncio.ensure_future(
            world.engine.pools.claim("q", most=1, wait_ms=60_000, owner="w", decision=allowed)
        )
        await settled()
        assert world.engine.pools.asked("q") == (True, world.clock.mono_ms())
        waiting.cancel()

    house.live(main, limit_s=20)


def test_the_pools_of_which_is_known_who_asked_are_bounded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POOLS_MAX", 3)
    house = Home(home)

    async def main(world: World) -> None:
        allowed = decision(Verdict.ALLOW, "r", "it may")
        for name in "abcab":
            await world.engine.pools.claim(name, most=1, wait_ms=0, owner="w", decision=allowed)
        await world.engine.pools.claim("d", most=1, wait_ms=0, owner="w", decision=allowed)
        known = [name for name in "abcd" if world.engine.pools.asked(name)[1] is not None]
        assert known == ["a", "b", "d"]

    house.live(main)


# -- until its time --------------------------------------------------------------------------------


@pytest.mark.req("Q-12")
def test_delayed_and_recurring_tasks_name_their_time(home: Path) -> None:
    house = Home(home)

    async def main(world: World) -> None:
        session = await world.session()
        late = await world.tool(session, "late", terms=later(world, 90_000))
        cron = await world.tool(
            session, "cron", terms=Terms(recurrence=("*/5 * * * *", "Europe/Berlin", "skip"))
        )
        (own,) = await why(world, late)
        assert (own.code, own.until_ms) == ("not_before", world.clock.wall_ms() + 90_000)
        (recurring,) = await why(world, cron)
        assert recurring.code == "recurring"
        assert recurring.text.startswith("It recurs (*/5 * * * * in Europe/Berlin) and is due at ")
        await passes((recurring.until_ms or 0) - world.clock.wall_ms() - 1)
        assert await world.state(cron) == "QUEUED"
        await passes(1)
        await settled()
        assert await world.state(cron) == "SUCCEEDED"

    house.live(main)


@pytest.mark.req("Q-13")
def test_a_deadline_and_a_time_out_are_named_beside(home: Path) -> None:
    house = Home(home, lanes=1)
    house.plays["busy"] = forever

    async def main(world: World) -> None:
        session, at = await world.session(), world.clock.wall_ms() + 50_000
        terms = Terms(deadline_ms=at, timeout_ms=20_000)
        task = await world.tool(session, "busy", terms=terms)
        await settled()
        running, timeout, deadline = await why(world, task)
        assert codes([running, timeout, deadline]) == ["running", "timeout", "deadline"]
        assert timeout.until_ms == world.clock.wall_ms() + 20_000
        assert (deadline.until_ms, deadline.text) == (
            at, f"It fails at {rfc3339(at)} unless it has ended by then."
        )  # fmt: skip
        await passes(at - world.clock.wall_ms())
        await settled()
        (over,) = await why(world, task)
        assert over.code == "deadline_exceeded"
        assert over.text == (
            "It failed for good: deadline_exceeded: It did not end before its deadline."
        )
        assert over.command == f"goclaw dlq redrive {task.task_id}"

    house.live(main)


# -- at a gate -------------------------------------------------------------------------------------


@pytest.mark.req("Q-16")
def test_a_bound_and_a_rate_and_the_order_at_them(home: Path) -> None:
    house = Home(home, lanes=8, bounds="tool:narrow 2 at once; tool:often 1/min")
    house.plays["narrow"] = house.plays["often"] = forever

    async def main(world: World) -> None:
        narrow = [await world.tool(await world.session(), "narrow") for _ in range(5)]
        often = [await world.tool(await world.session(), "often") for _ in range(3)]
        await settled()
        (bound,) = await why(world, narrow[2])
        assert (bound.code, bound.text) == (
            "bound",
            "Of tool:narrow 2 are under way, and at most 2 may be.",
        )
        (_, order) = await why(world, narrow[4])
        assert (order.code, order.text) == (
            "gate_order", "It comes after 2 tasks at the gate of tool:narrow."
        )  # fmt: skip
        (rate,) = await why(world, often[1])
        assert rate.code == "rate"
        assert rate.text.startswith("The rate of tool:often is used up; the next may begin at ")
        assert codes(await why(world, often[2])) == ["rate", "gate_order"]
        await passes((rate.until_ms or 0) - world.clock.wall_ms() - 1)
        assert await world.state(often[1]) == "QUEUED"
        await passes(2)
        await settled()
        assert await world.state(often[1]) == "RUNNING"
        await world.engine.cancel_task(narrow[0].task_id)
        await settled()
        assert await world.state(narrow[2]) == "RUNNING"

    house.live(main)


@pytest.mark.req("Q-7")
def test_an_open_breaker_names_its_fingerprint_and_its_probe(home: Path) -> None:
    house = Home(home, lanes=8, backoff_ms_min=100, backoff_ms_max=100)
    slow = False

    async def far(attempt: Attempt) -> Outcome:
        if slow:
            await passes(5_000)
        return Failed("refused", "no", retryable=True, fingerprint="refused")

    house.plays["far"] = far

    async def main(world: World) -> None:
        nonlocal slow
        tasks = [await world.tool(await world.session(), "far") for _ in range(12)]
        await passes(1_000)
        waiting = [task for task in tasks if await world.state(task) == "QUEUED"]
        slow = True
        open_, *_ = await why(world, waiting[0])
        assert open_.code == "breaker"
        assert open_.text.startswith(
            "The breaker of tool:far is open, since it failed with refused in several tasks; the "
            "next probe may run at "
        )
        await passes((open_.until_ms or 0) - world.clock.wall_ms() - 1)
        assert [await world.state(task) for task in tasks].count("RUNNING") == 0
        await passes(2)
        await settled()
        (probe,) = [task for task in tasks if await world.state(task) == "RUNNING"]
        (rest, *_) = await why(world, next(task for task in waiting if task != probe))
        assert "a probe is under way, the next may run at" in rest.text
        assert (rest.until_ms or 0) > world.clock.wall_ms()

    house.live(main)


@pytest.mark.req("Q-16")
def test_a_call_inside_a_run_that_waits_at_its_tools_gate(home: Path) -> None:
    house = Home(home, lanes=4, bounds="tool:far 1/min")

    async def calls(attempt: Attempt) -> Outcome:
        await attempt.perform([call("far")])
        return Succeeded()

    house.plays["calls"] = calls

    async def main(world: World) -> None:
        assert await world.ended(await world.prompt(await world.session(), "calls")) == "SUCCEEDED"
        task = await world.prompt(await world.session(), "calls")
        await world.until(task, "SUSPENDED")
        asks, rate = await why(world, task)
        assert asks.code == "rate_limited"
        assert asks.text.endswith("whether it may call tool:far.")
        assert rate.code == "rate"
        await passes((asks.until_ms or 0) - world.clock.wall_ms() + 1)
        await settled()
        assert await world.ended(task) == "SUCCEEDED"

    house.live(main)


# -- suspended -------------------------------------------------------------------------------------


@pytest.mark.req("A-7", "E-9")
def test_what_a_suspended_task_waits_for(home: Path) -> None:
    house = Home(home)

    async def ruled(attempt: Attempt) -> Outcome:
        ask = decision(Verdict.ASK, "careful", "nobody watches this session")
        await attempt.perform([call("write", decisions=(ask,), title="write x")])
        return Succeeded()

    async def sleeps(attempt: Attempt) -> Outcome:
        await attempt.sleep(30_000)
        return Succeeded()

    async def hears(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        return Succeeded()

    house.plays["ruled"], house.plays["sleeps"], house.plays["hears"] = ruled, sleeps, hears

    async def main(world: World) -> None:
        asked, slept, heard = [
            await world.prompt(await world.session(), name) for name in ("ruled", "sleeps", "hears")
        ]
        for task in (asked, slept, heard):
            await world.until(task, "SUSPENDED")
        (approval,) = await world.engine.approvals.listed()
        (own,) = await why(world, asked)
        at = rfc3339(approval.expires_at)
        assert (own.code, own.text, own.until_ms) == (
            "approval",
            "It waits for an answer to write x (nobody watches this session); without one that is "
            f"a no at {at}.",
            approval.expires_at,
        )  # fmt: skip
        assert own.command == (
            f"goclaw approvals answer {approval.approval_id} allow|allow_session|reject"
        )
        (sleep,) = await why(world, slept)
        assert sleep.code == "sleep"
        await passes((sleep.until_ms or 0) - world.clock.wall_ms())
        await settled()
        assert await world.state(slept) == "SUCCEEDED"
        (signal,) = await why(world, heard)
        assert (signal.code, signal.text) == ("signal", "It waits for the signal go.")
        assert signal.command == f"goclaw task signal {heard.run_id} go"

    house.live(main)


@pytest.mark.req("E-3")
def test_an_unknown_effect_names_the_words_that_settle_it(home: Path) -> None:
    house = Home(home)

    async def lost(_key: str, _cancelled: asyncio.Event) -> Done:
        raise ConnectionResetError("no answer")

    async def both(attempt: Attempt) -> Outcome:
        await attempt.perform([call("pay", dispatch=lost), call("mail", dispatch=lost)])
        return Succeeded()

    async def asks(_key: str) -> Done | bool | None:
        return None

    async def probeable(attempt: Attempt) -> Outcome:
        await attempt.perform(
            [call("put", EffectClass.PROBEABLE, lost, probe=asks), call("x", dispatch=lost)]
        )
        return Succeeded()

    house.plays["both"], house.plays["probeable"] = both, probeable

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "both")
        await world.until(task, "SUSPENDED")
        first, second = await why(world, task)
        assert first.text == "Nobody knows whether effect 0 (pay) of it happened."
        assert first.command == f"goclaw effects settle {task.task_id} 0 done|not_done|fail"
        assert second.command == f"goclaw effects settle {task.task_id} 1 done|not_done|fail"
        other = await world.tool(await world.session(), "probeable")
        await world.until(other, "SUSPENDED")
        commands = [one.command for one in await why(world, other)]
        assert commands[0] == f"goclaw effects probe {other.task_id} 0"
        assert commands[1] == f"goclaw effects settle {other.task_id} 1 done|not_done|fail"

        # In a worker's place nobody can ask.
        work = await world.intake.submit_work(
            await world.session(), "p", 1, key=None, client="me", origin="unix"
        )
        (lease,) = await world.engine.pools.claim(
            "p", most=1, wait_ms=0, owner="w", decision=decision(Verdict.ALLOW, "r", "it may")
        )
        about: dict[str, Any] = {
            "tid": work.tid,
            "token": lease.token,
            "now": world.clock.wall_ms(),
        }
        await world.database.write(
            "effect_intent", ordinal=0, kind="tool", name="put", key="k", hash=b"h", request=b"{}",
            **{**about, "class": "probeable"},
        )  # fmt: skip
        await world.database.write(
            "reclaim", spent=0, crash_budget=3, reason="handed_back", **about
        )
        (own,) = await why(world, work)
        assert own.command == f"goclaw effects settle {work.task_id} 0 done|not_done|fail"

    house.live(main)


@pytest.mark.req("E-2")
def test_a_run_that_asks_for_another_effect(home: Path) -> None:
    house = Home(home, backoff_ms_min=10, backoff_ms_max=10)

    async def changes(attempt: Attempt) -> Outcome:
        await attempt.perform([call(f"call{attempt.task.attempt}")])
        raise Retryable("again", "once more")

    house.plays["changes"] = changes

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "changes")
        await world.until(task, "SUSPENDED")
        (own,) = await why(world, task)
        assert (own.code, own.text) == (
            "nondeterminism", "Effect 0 of it is another call now than its journal holds."
        )  # fmt: skip
        assert own.command == f"goclaw cancel {task.task_id}"

    house.live(main)


@pytest.mark.req("Q-9")
def test_a_parent_names_its_sub_task_and_what_that_waits_for(home: Path) -> None:
    house = Home(home)
    house.plays["question"] = question

    async def main(world: World) -> None:
        async def parent(attempt: Attempt) -> Outcome:
            for name in ("question", "well"):
                other = await world.session()
                await world.database.write(
                    "enqueue", sid=other.sid, task_id=f"task_{name}", run_id=f"run_{name}", pool="",
                    work=f"tool:{name}", kind="tool", parallel=0, rank=4, max_attempts=1,
                    on_unknown="suspend", policy_version="p", trace="", origin="internal",
                    payload=orjson.dumps({"tool": name, "arguments": {}}),
                    parent_tid=attempt.task.tid, session_limit=10, now=world.clock.wall_ms(),
                )  # fmt: skip
            raise Park("subtask")

        house.plays["parent"] = parent
        task = await world.tool(await world.session(), "parent")
        await world.until(task, "SUSPENDED")
        await passes(1)
        sub, answer = await why(world, task)
        assert (sub.code, sub.text) == (
            "subtask", "It waits for its sub-task task_question, which is SUSPENDED."
        )  # fmt: skip
        assert answer.code == "approval"
        assert (answer.command or "").startswith("goclaw approvals answer ")

    house.live(main)


# -- under way, and over ---------------------------------------------------------------------------


def test_an_effect_that_is_under_way(home: Path) -> None:
    house = Home(home)

    async def hangs(_key: str, _cancelled: asyncio.Event) -> Done:
        await asyncio.get_running_loop().create_future()
        return Done(b"1")

    async def acts(attempt: Attempt) -> Outcome:
        await attempt.perform([call("far", dispatch=hangs)])
        return Succeeded()

    house.plays["acts"] = acts

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "acts")
        await passes(100)
        running, effect = await why(world, task)
        assert running.text == "Attempt 1 of it is under way in a lane."
        assert (effect.code, effect.text) == ("effect", "Effect 0 (far) is under way.")

    house.live(main)


@pytest.mark.req("A-1")
def test_denied_calls_name_their_rule_and_a_no_is_no_denial(home: Path) -> None:
    house = Home(home)
    deny = decision(Verdict.DENY, "never-there", "it is closed")

    async def denied(attempt: Attempt) -> Outcome:
        (found,) = await attempt.perform([call("write", decisions=(deny,))])
        assert found.status == "denied"
        return Failed("policy_denied", "it is closed")

    async def goes_on(attempt: Attempt) -> Outcome:
        await attempt.perform([call("write", decisions=(deny,)), call("other")])
        await attempt.perform([call("ask", question=True)])
        return Succeeded()

    house.plays["denied"], house.plays["goes on"] = denied, goes_on

    async def main(world: World) -> None:
        task = await world.tool(await world.session(), "denied")
        assert await world.ended(task) == "FAILED"
        failed, rule = await why(world, task)
        assert (failed.code, failed.text) == (
            "policy_denied", "It failed for good: policy_denied: it is closed."
        )  # fmt: skip
        assert failed.command == f"goclaw dlq redrive {task.task_id}"
        assert (rule.code, rule.text) == (
            "denied", "Effect 0 (write) of it was denied by the rule never-there: it is closed."
        )  # fmt: skip
        other = await world.prompt(await world.session(), "goes on")
        await world.until(other, "SUSPENDED")
        (approval,) = await world.engine.approvals.listed()
        await world.engine.approvals.resolve(approval.approval_id, "reject", "me")
        assert await world.ended(other) == "SUCCEEDED"
        well, rule, no = await why(world, other)
        assert codes([well, rule, no]) == ["finished", "denied", "rejected"]
        assert no.text == "Effect 2 (ask) of it was not made: a person said no."

    house.live(main)


@pytest.mark.req("Q-7", "Q-5")
def test_dead_letters_say_what_was_used_up_and_how_to_redrive_them(home: Path) -> None:
    house = Home(home, max_attempts=2, poison=3, crash_budget=1, backoff_ms_min=1, backoff_ms_max=1)

    async def flaky(attempt: Attempt) -> Outcome:
        return Failed("flaky", "no", retryable=True, fingerprint=str(attempt.task.attempt))

    async def alike(attempt: Attempt) -> Outcome:
        return Failed("gone", "It is gone.", retryable=True, fingerprint="gone:7")

    house.plays.plays |= {"flaky": flaky, "alike": alike, "killer": forever}

    async def first(world: World) -> list[Accepted]:
        tasks = [
            await world.tool(await world.session(), "flaky"),
            await world.tool(await world.session(), "alike", max_attempts=9),
            await world.tool(await world.session(), "killer"),
        ]
        await world.until(tasks[2], "RUNNING")
        for task in tasks[:2]:
            assert await world.ended(task) == "DEAD_LETTER"
        return tasks

    async def second(world: World) -> None:
        for task, code, text in zip(
            tasks,
            ("attempts_exhausted", "poison", "crashes_exhausted"),
            (
                "It was given up: it failed 2 of at most 2 times, the last with flaky: no.",
                "It was given up: its last failures were all alike (gone:7): gone: It is gone.",
                "It was given up: 1 of its attempts ended without a word.",
            ),
            strict=True,
        ):
            (dead,) = await why(world, task)
            assert (dead.code, dead.text) == (code, text)
            assert dead.command == f"goclaw dlq redrive {task.task_id}"
        allowed = decision(Verdict.ALLOW, "r", "it may")
        await world.engine.dead_letters.move(
            Verb.DROP, tasks[0].task_id, decide=lambda _task: allowed
        )
        dead, dropped = await why(world, tasks[0])
        assert (dead.command, dropped.code) == (None, "dropped")
        gone = await world.tool(await world.session(), "flaky", terms=later(world, 9_000))
        await world.engine.cancel_task(gone.task_id, "me")
        (canceled,) = await why(world, gone)
        assert canceled.text == "It was canceled by me."
        with pytest.raises(UnknownId, match="no task task_none"):
            await world.engine.why.explain("task_none")

    tasks = house.live(first)
    house.live(second)


# -- whatever happens ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_in_any_state_there_is_a_reason_and_it_is_so(home: Path, seed: int) -> None:
    """Lives of mixed work, looked at when nothing more can happen without time passing."""
    house = Home(
        home, seed=seed, lanes=2, reserved_lanes=1, backoff_ms_min=500, backoff_ms_max=5_000,
        crash_budget=2, max_attempts=3, bounds="tool:bounded 1 at once; tool:rated 2/min",
    )  # fmt: skip
    chance = house.clock.chance

    async def slow(attempt: Attempt) -> Outcome:
        await passes(chance.randrange(3_000))
        return Succeeded()

    async def flaky(attempt: Attempt) -> Outcome:
        await passes(chance.randrange(500))
        return Failed("flaky", "no", retryable=True, fingerprint=chance.choice("ab"))

    async def sleeps(attempt: Attempt) -> Outcome:
        await attempt.sleep(chance.randrange(1, 5_000))
        return Succeeded()

    async def inner(attempt: Attempt) -> Outcome:
        await attempt.perform([call("rated")])
        return Succeeded()

    async def hears(attempt: Attempt) -> Outcome:
        await attempt.wait_signal("go")
        return Succeeded()

    names = {
        "slow": slow, "bounded": slow, "rated": slow, "flaky": flaky, "sleeps": sleeps,
        "inner": inner, "hears": hears, "question": question,
    }  # fmt: skip
    house.plays.plays |= names
    tasks: list[Accepted] = []
    seen: set[str] = set()

    async def check(world: World) -> None:
        await settled()
        busy = world.engine.scheduler.busy
        for task in tasks:
            row = await world.engine.task(task.task_id)
            because = await why(world, task)
            first = because[0]
            seen.update(codes(because))
            # Nobody is about to be claimed or let in who is not.
            assert first.code != "ready", first
            assert (first.code == "lanes_busy") <= (busy == 2), first
            assert (first.code == "lanes_reserved") <= (row["kind"] != "prompt" and busy == 1)
            if first.code == "session_turn":
                (other,) = [one for one in tasks if f", {one.task_id}, is " in first.text]
                before = await world.engine.task(other.task_id)
                assert before["sid"] == row["sid"]
                assert f"{other.task_id}, is {before['state']}." in first.text
            if first.until_ms is not None and row["state"] != "RUNNING":
                assert first.until_ms > world.clock.wall_ms(), first

    async def life(world: World) -> None:
        sessions = [await world.session() for _ in range(4)]
        for _ in range(25):
            await passes(chance.randrange(800))
            session, name = chance.choice(sessions), chance.choice(list(names))
            if chance.random() < 0.4:
                tasks.append(await world.prompt(session, name))
            else:
                terms = later(world, chance.randrange(1, 4_000))
                tasks.append(
                    await world.tool(
                        session, name, parallel=chance.random() < 0.3,
                        priority=chance.randrange(10),
                        terms=terms if chance.random() < 0.3 else Terms(),
                    )
                )  # fmt: skip
            if chance.random() < 0.2:
                await world.engine.cancel_task(chance.choice(tasks).task_id)
            if chance.random() < 0.2:
                with contextlib.suppress(IllegalTransition):  # it has ended
                    await world.engine.signal(chance.choice(tasks).run_id, "go", b"")
            await check(world)

    for _ in range(3):
        house.live(life)
    assert {"session_turn", "lanes_reserved", "sleep"} <= seen
