"""The journal, by what it does to a sink: classes, approvals, keys, waits, streams, cancels.

Owns the cases within one life (and orderly restarts). Not in here: kills (test_effects_kills.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from effects_support import World, ask_sink, first_life, next_life, sink_process, submit

from goclaw.core import limits
from goclaw.core.records import Succeeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from goclaw.core.records import Attempt, CallResult, Outcome


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def counts(socket: Path) -> tuple[int, int]:
    report = await ask_sink(socket, {"op": "report"})
    return sum(report["sends"].values()), sum(report["effects"].values())


def script(home: Path, *steps: dict[str, Any]) -> str:
    path = home / "script.json"
    path.write_text(json.dumps([{"match": "", "steps": list(steps)}]))
    return f"script:{path}"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"call": name, "args": {"n": 1, **arguments}}


def tools_of(task: dict[str, Any]) -> list[tuple[str, str]]:
    return [(tool["name"], tool["status"]) for tool in json.loads(task["result"])["tools"]]


async def run_another(world: World) -> None:
    """With one lane: whoever waits does not hold it."""
    folder = str(world.home)
    session = await world.engine.intake.create_session(
        cwd=folder, roots=[folder], brain="direct", interactive=True
    )
    other = await world.engine.intake.submit_prompt(
        session, [{"type": "text", "text": "hi"}], key=None, client=None, origin="unix"
    )
    await world.until(other.task_id, "SUCCEEDED")


class Calls:
    """A Runner that makes the calls of one answer, as its ``make`` says for each attempt."""

    def __init__(self, make: Callable[[World, Attempt], Awaitable[list[Any]]]) -> None:
        self.make = make
        self.world: World | None = None
        self.results: list[CallResult] = []

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        assert self.world is not None
        self.results = await attempt.perform(await self.make(self.world, attempt))
        return Succeeded()


def batch(*wanted: tuple[str, dict[str, Any]]) -> Calls:
    async def make(world: World, attempt: Attempt) -> list[Any]:
        return [
            await world.gate.call(attempt.task, attempt.session, "direct", tool, arguments)
            for tool, arguments in wanted
        ]

    return Calls(make)


@contextlib.asynccontextmanager
async def running(home: Path, sink: Path, runner: Calls, **queue: Any) -> Any:
    async with World(home, sink, runner=runner, **queue) as world:
        runner.world = world
        yield world


# -- no definite answer (E-3) ----------------------------------------------------------------------


@pytest.mark.req("E-3", "E-4")
@pytest.mark.parametrize(
    ("kind", "status", "sent"),
    [
        ("pure", "completed", None),
        ("keyed", "completed", None),
        ("probeable", "completed", (1, 1)),
        ("irreversible", "unknown", (1, 1)),
    ],
)
def test_a_reset_is_treated_by_class(
    kind: str, status: str, sent: tuple[int, int] | None, home: Path, sink: Path
) -> None:
    """Pure and keyed ones are sent until the attempts are used up, with one key."""

    async def body() -> None:
        brain = script(home, call(kind, mode="reset"), {"say": "done"})
        async with World(home, sink, brain=brain, poison=9) as world:
            task = await world.until((await world.prompt("go")).task_id)
            if sent is None:
                assert (task["state"], task["reason"]) == ("DEAD_LETTER", "attempts_exhausted")
                report = await ask_sink(sink, {"op": "report"})
                (sends,) = report["sends"].values()
                assert sends == task["max_attempts"]
                assert len(await world.updates("tool_call")) == 1
                return
            assert task["state"] == "SUCCEEDED"
            assert tools_of(task) == [(kind, status)]
            assert await counts(sink) == sent

    asyncio.run(body())


@pytest.mark.req("E-3")
@pytest.mark.parametrize("mode", ["raise", "cancel"])
def test_a_fault_of_the_tool_tells_nothing(mode: str, home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink) as world:
            accepted = await world.tool("irreversible", {"n": 1, "mode": mode})
            task = await world.until(accepted.task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
            assert task["attempt"] == 1

    asyncio.run(body())


@pytest.mark.req("E-2")
def test_a_retryable_call_is_sent_again_under_the_same_key(home: Path, sink: Path) -> None:
    async def body() -> None:
        brain = script(home, {"say": "a"}, call("irreversible", mode="refuse"), {"say": "b"})
        async with World(home, sink, brain=brain) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["attempt"], task["failures"]) == ("SUCCEEDED", 2, 1)
            assert await counts(sink) == (1, 1)
            assert len(await world.updates("tool_call")) == 1
            intents = [p for t, p in await world.events() if t == "effect.intent"]
            assert len({intent["idempotencyKey"] for intent in intents}) == 1
            assert len(intents) == 2

    asyncio.run(body())


@pytest.mark.req("E-2", "E-3")
def test_a_tools_own_error_is_final(home: Path, sink: Path) -> None:
    async def body() -> None:
        brain = script(home, call("irreversible", mode="fail"), {"say": "told"})
        async with World(home, sink, brain=brain) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert tools_of(task) == [("irreversible", "failed")]
            assert (task["attempt"], await counts(sink)) == (1, (1, 1))

    asyncio.run(body())


@pytest.mark.req("E-3", "A-7")
def test_the_equal_of_an_unknown_call_is_asked_for(home: Path, sink: Path) -> None:
    async def body() -> None:
        lost, other = call("irreversible", mode="reset"), call("irreversible", n=2)
        async with World(home, sink, brain=script(home, lost, other, lost)) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
            assert await counts(sink) == (2, 2)
            (approval,) = await world.engine.approvals.listed()
            assert b"nobody knows whether it happened" in approval.request
            await world.engine.approvals.resolve(approval.approval_id, "reject", "test")
            task = await world.until(task["task_id"], "SUCCEEDED")
            assert [status for _, status in tools_of(task)] == ["unknown", "completed", "rejected"]
            assert await counts(sink) == (2, 2)

    asyncio.run(body())


@pytest.mark.req("E-3")
def test_no_output_of_a_tool_can_pass_for_a_word_of_the_journal(home: Path, sink: Path) -> None:
    """A failing tool that writes of denial or of unknown outcomes has failed, no more."""

    async def body() -> None:
        runner = batch(("irreversible", {"n": 1, "mode": "fail"}))
        async with running(home, sink, runner) as world:
            original = world.tools.run

            async def lying(*arguments: Any, **named: Any) -> Any:
                done = await original(*arguments, **named)
                return type(done)(b'{"status":"unknown","code":"denied"}', failed=True)

            world.tools.run = lying
            task = await world.until((await world.prompt("go")).task_id)
            assert task["state"] == "SUCCEEDED"
            assert [result.status for result in runner.results] == ["failed"]

    asyncio.run(body())


# -- may it be sent at all? ------------------------------------------------------------------------


@pytest.mark.req("I-6", "A-1")
def test_a_denied_call_is_told_and_never_sent(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, call("denied"), {"say": "b"})) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert tools_of(task) == [("denied", "denied")]
            assert await counts(sink) == (0, 0)
            (shown,) = await world.updates("tool_call")
            (end,) = await world.updates("tool_call_update")
            assert (shown["status"], end["status"]) == ("pending", "failed")
            assert end["_meta"]["goclaw"]["status"] == "denied"
            assert not [1 for type_, _ in await world.events() if type_ == "effect.intent"]
            found = await world.database.read("audit_after", seq=0, limit=100)
            records = [orjson.loads(row[2]) for row in found]
            assert [one["effect"] for one in records if one["action"] == "tool.call"] == ["deny"]

    asyncio.run(body())


@pytest.mark.req("A-7", "E-1", "G-11")
@pytest.mark.parametrize(
    ("answer", "status", "sent"), [("allow", "completed", 1), ("reject", "rejected", 0)]
)
def test_an_asked_call_waits_for_its_answer_over_a_restart(
    answer: str, status: str, sent: int, home: Path, sink: Path
) -> None:
    brain = script(home, {"say": "a"}, call("asked"), {"say": "b"})

    async def ask() -> str:
        async with World(home, sink, brain=brain, lanes=1) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
            await run_another(world)
            (shown,) = await world.updates("tool_call")
            assert shown["status"] == "pending"
            (approval,) = await world.engine.approvals.listed()
            request = orjson.loads(approval.request)
            assert request["toolCall"]["toolCallId"] == shown["toolCallId"]
            assert "sessionUpdate" not in request["toolCall"]
            return approval.approval_id

    async def resolve(approval_id: str) -> None:
        async with World(home, sink, brain=brain) as world:
            await world.engine.approvals.resolve(approval_id, answer, "test")
            task = await world.until((await world.prompt("go")).task_id, "SUCCEEDED")
            assert tools_of(task) == [("asked", status)]
            assert (await counts(sink))[0] == sent
            assert len(await world.updates("tool_call")) == 1
            ends = [update["status"] for update in await world.updates("tool_call_update")]
            assert ends == (["in_progress", "completed"] if sent else ["failed"])

    asyncio.run(resolve(asyncio.run(ask())))


@pytest.mark.req("A-7")
def test_an_expired_approval_is_a_rejection_with_its_reason(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, brain=script(home, call("asked"))) as world:
            task = await world.until((await world.prompt("go")).task_id)
            (approval,) = await world.engine.approvals.listed()
            await world.engine.approvals.expire(approval.approval_id)
            task = await world.until(task["task_id"], "SUCCEEDED")
            (tool,) = json.loads(task["result"])["tools"]
            assert (tool["status"], tool["output"]["error"]) == ("rejected", "the approval expired")
            assert await counts(sink) == (0, 0)

    asyncio.run(body())


@pytest.mark.req("A-7", "E-1")
def test_nothing_of_an_answer_is_sent_while_a_part_of_it_is_asked(home: Path, sink: Path) -> None:
    runner = batch(("irreversible", {"n": 1}), ("asked", {"n": 2}), ("denied", {"n": 3}))

    async def body() -> None:
        async with running(home, sink, runner) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], await counts(sink)) == ("SUSPENDED", (0, 0))
            (approval,) = await world.engine.approvals.listed()
            await world.engine.approvals.resolve(approval.approval_id, "allow", "test")
            await world.until(task["task_id"], "SUCCEEDED")
            statuses = [result.status for result in runner.results]
            assert statuses == ["completed", "completed", "denied"]
            assert await counts(sink) == (2, 2)

    asyncio.run(body())


@pytest.mark.req("E-1")
def test_all_intents_of_an_answer_commit_before_the_first_dispatch(home: Path, sink: Path) -> None:
    runner = batch(*(("keyed", {"n": n}) for n in range(3)))

    async def body() -> None:
        async with running(home, sink, runner) as world:
            await world.until((await world.prompt("go")).task_id, "SUCCEEDED")
            kinds = [type_ for type_, _ in await world.events() if type_.startswith("effect.")]
            assert kinds == ["effect.intent"] * 3 + ["effect.result"] * 3
            assert [result.ordinal for result in runner.results] == [0, 1, 2]

    asyncio.run(body())


@pytest.mark.req("E-9")
def test_a_scripts_question_goes_on_only_with_a_yes(home: Path, sink: Path) -> None:
    async def body(answer: str, text: str, key: str) -> None:
        brain = script(home, {"say": "a"}, {"ask": "Go on?"}, {"say": "b"})
        async with World(home, sink, brain=brain) as world:
            task = await world.until((await world.prompt("go", key=key)).task_id)
            (approval,) = await world.engine.approvals.listed()
            assert orjson.loads(approval.request)["toolCall"]["title"] == "Go on?"
            await world.engine.approvals.resolve(approval.approval_id, answer, "test")
            task = await world.until(task["task_id"], "SUCCEEDED")
            assert json.loads(task["result"])["text"] == text

    asyncio.run(body("allow", "ab", "1"))
    asyncio.run(body("reject", "a", "2"))


# -- keys (E-4, E-5) -------------------------------------------------------------------------------


@pytest.mark.req("E-5", "I-4", "G-5")
def test_a_designated_key_is_sent_once_and_answered_again(home: Path, sink: Path) -> None:
    arguments = {"n": 1, "key": "order-7"}

    async def body() -> None:
        async with World(home, sink) as world:
            first = await world.tool("irreversible", arguments, key="1")
            one = await world.until(first.task_id, "SUCCEEDED")
            second = await world.tool("irreversible", arguments, key="2")
            two = await world.until(second.task_id, "SUCCEEDED")
            assert one["result"] == two["result"]
            assert await counts(sink) == (1, 1)
            (row,) = await world.effects(two["tid"])
            assert row["deduplicated"] == 1
            ends = await world.updates("tool_call_update")
            assert [end["status"] for end in ends] == ["completed", "completed"]
            assert len({end["toolCallId"] for end in ends}) == 2

    asyncio.run(body())


@pytest.mark.req("E-5")
def test_a_key_with_another_hash_is_a_conflict_and_hurts_no_neighbour(
    home: Path, sink: Path
) -> None:
    runner = batch(
        ("irreversible", {"n": 1, "key": "order-7"}),
        ("irreversible", {"n": 2, "key": "order-7"}),
        ("irreversible", {"n": 3}),
    )

    async def body() -> None:
        async with running(home, sink, runner) as world:
            await world.until((await world.prompt("go")).task_id, "SUCCEEDED")
            statuses = [result.status for result in runner.results]
            assert statuses == ["completed", "failed", "completed"]
            assert b"idempotency_conflict" in runner.results[1].output
            assert await counts(sink) == (2, 2)
            calls = {update["toolCallId"] for update in await world.updates("tool_call")}
            ends = {update["toolCallId"] for update in await world.updates("tool_call_update")}
            assert len(calls) == 3
            assert calls == ends

    asyncio.run(body())


@pytest.mark.req("E-2")
def test_another_call_under_the_same_ordinal_suspends_with_both_hashes(
    home: Path, sink: Path
) -> None:
    async def make(world: World, attempt: Attempt) -> list[Any]:
        arguments = {"n": attempt.task.attempt, "mode": "refuse"}
        task, session = attempt.task, attempt.session
        return [await world.gate.call(task, session, "direct", "keyed", arguments)]

    async def body() -> None:
        async with running(home, sink, Calls(make)) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "nondeterminism")
            (event,) = [p for t, p in await world.events() if t == "task.suspended"]
            assert event["ordinal"] == 0
            assert event["recorded"] != event["requested"]
            assert await counts(sink) == (0, 0)

    asyncio.run(body())


# -- durable waits (E-9) ---------------------------------------------------------------------------


@pytest.mark.req("E-9")
def test_a_sleeping_run_holds_no_lane_and_sleeps_on_over_a_restart(home: Path, sink: Path) -> None:
    brain = script(home, {"say": "a"}, {"call": "sleep", "args": {"seconds": 0.4}}, {"say": "b"})

    async def begin() -> None:
        async with World(home, sink, brain=brain, lanes=1) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["reason"]) == ("SUSPENDED", "sleep")
            await run_another(world)

    async def wake() -> None:
        async with World(home, sink, brain=brain) as world:
            task = await world.until((await world.prompt("go")).task_id, "SUCCEEDED")
            assert tools_of(task) == [("sleep", "completed")]
            assert (task["attempt"], task["failures"], task["crashes"]) == (2, 0, 0)
            (suspended,) = [p for t, p in await world.events() if t == "task.suspended"]
            assert task["updated_at"] >= suspended["dueAt"]
            assert len(await world.updates("tool_call")) == 1
            (end,) = await world.updates("tool_call_update")
            assert end["status"] == "completed"

    asyncio.run(begin())
    asyncio.run(wake())


@pytest.mark.req("E-9", "E-3")
@pytest.mark.parametrize("mode", [None, "reset"])
def test_a_sleep_beside_another_call_of_the_same_answer(
    mode: str | None, home: Path, sink: Path
) -> None:
    """The wait is served in full, and what nobody knows is asked about when it is over."""
    other = {"n": 1} if mode is None else {"n": 1, "mode": mode}
    runner = batch(
        ("sleep", {"seconds": 0.2}), ("irreversible", other), ("sleep", {"seconds": 0.1})
    )

    async def body() -> None:
        async with running(home, sink, runner) as world:
            accepted = await world.tool("irreversible", {"n": 0})  # a task: it suspends
            if mode is not None:
                task = await world.until(accepted.task_id)
                while task["reason"] != "effect_unknown":
                    async with world.changed:
                        await world.changed.wait()
                    task = await world.until(accepted.task_id)
                await world.engine.settlement.settle(
                    accepted.task_id, 1, "done", result=b"1", by="test"
                )
            task = await world.until(accepted.task_id, "SUCCEEDED")
            suspended = [p for t, p in await world.events() if t == "task.suspended"]
            assert suspended[0]["reason"] == "sleep"
            assert task["updated_at"] >= suspended[0]["dueAt"]
            assert [result.status for result in runner.results] == ["completed"] * 3
            assert await counts(sink) == (1, 1)

    asyncio.run(body())


class Waiting:
    """A Runner that waits for a signal."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        self.begun.set()
        await self.go_on.wait()
        return Succeeded(result=await attempt.wait_signal("door"))


@pytest.mark.req("E-9")
@pytest.mark.parametrize("when", ["before", "while_running", "after"])
def test_a_signal_is_never_missed_and_the_first_wins(when: str, home: Path, sink: Path) -> None:
    async def body() -> None:
        runner = Waiting()
        async with World(home, sink, runner=runner, open_lanes=False) as world:
            accepted = await world.prompt("go")
            if when == "before":
                await world.engine.signal(accepted.run_id, "door", b"1")
            world.engine.open_lanes()
            await runner.begun.wait()
            if when == "while_running":
                await world.engine.signal(accepted.run_id, "door", b"1")
            runner.go_on.set()
            if when == "after":
                await world.until(accepted.task_id, "SUSPENDED")
                await world.engine.signal(accepted.run_id, "door", b"1")
            _, duplicate = await world.engine.signal(accepted.run_id, "door", b"2")
            assert duplicate
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert task["result"] == b"1"

    asyncio.run(body())


# -- the end of an attempt -------------------------------------------------------------------------


@pytest.mark.req("Q-11")
def test_a_cancel_interrupts_a_running_call_and_says_what_is_unknown(
    home: Path, sink: Path
) -> None:
    async def body() -> None:
        brain = script(home, call("keyed"), call("irreversible", mode="hang"))
        async with World(home, sink, brain=brain) as world:
            accepted = await world.prompt("go")
            await world.tools.hanging.wait()
            receipt = await world.engine.cancel_run(accepted.run_id)
            assert receipt.outcome in ("stopping", "stopped")  # how far it came by now
            assert receipt.effects_done == ("keyed",)
            task = await world.until(accepted.task_id, "CANCELED")
            effects = {row["name"]: row["state"] for row in await world.effects(task["tid"])}
            assert effects["irreversible"] == "unknown"
            again = await world.engine.cancel_run(accepted.run_id)
            assert again.outcome == "already_finished"

    asyncio.run(body())


@pytest.mark.req("R-3", "E-3", "Q-5", "G-4")
def test_a_shutdown_hands_the_task_back_without_spending_a_budget(home: Path, sink: Path) -> None:
    brain = script(home, call("keyed", mode="hang"), {"say": "b"})

    async def begin() -> None:
        async with World(home, sink, brain=brain) as world:
            await world.prompt("go")
            await world.tools.hanging.wait()

    async def go_on() -> None:
        async with World(home, sink, brain=brain, open_lanes=False) as world:
            world.tools.released.set()
            accepted = await world.prompt("go")
            task = await world.until(accepted.task_id, "QUEUED")
            assert (task["reason"], task["failures"], task["crashes"]) == ("handed_back", 0, 0)
            world.engine.open_lanes()
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert await counts(sink) == (1, 1)

    asyncio.run(begin())
    asyncio.run(go_on())


@pytest.mark.req("Q-7", "B-2")
def test_a_scripts_failures_spend_attempts(home: Path, sink: Path) -> None:
    async def end_of(key: str, step: dict[str, Any]) -> dict[str, Any]:
        async with World(home, sink, brain=script(home, {"say": "a"}, step, {"say": "b"})) as world:
            return await world.until((await world.prompt("go", key=key)).task_id)

    task = asyncio.run(end_of("1", {"fail": "flaky", "retryable": True, "onAttempts": [1, 2]}))
    assert (task["state"], task["attempt"], task["failures"]) == ("SUCCEEDED", 3, 2)
    assert json.loads(task["result"])["text"] == "ab"
    task = asyncio.run(end_of("2", {"fail": "always", "retryable": True}))
    assert (task["state"], task["reason"], task["failures"]) == ("DEAD_LETTER", "poison", 3)
    task = asyncio.run(end_of("3", {"fail": "broken"}))
    assert (task["state"], task["reason"]) == ("FAILED", "broken")


@pytest.mark.req("I-5")
def test_the_steps_of_a_run_are_bounded(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEPS_MAX", 3)

    async def body() -> None:
        async with World(home, sink, brain=script(home, *[call("pure")] * 9)) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["stop_reason"]) == ("SUCCEEDED", "max_turn_requests")
            assert (await counts(sink))[0] == 3

    asyncio.run(body())


@pytest.mark.req("I-5")
def test_the_effects_of_a_task_are_bounded(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EFFECTS_MAX", 3)

    async def body() -> None:
        async with World(home, sink, brain=script(home, *[call("pure")] * 9)) as world:
            task = await world.until((await world.prompt("go")).task_id)
            assert (task["state"], task["reason"]) == ("FAILED", "budget_exhausted")

    asyncio.run(body())


# -- streams (B-3) ---------------------------------------------------------------------------------


@pytest.mark.req("B-3", "G-7")
def test_a_cut_message_is_closed_and_the_retry_opens_a_new_id(home: Path, sink: Path) -> None:
    """The first life ends while the answer streams: after its fifth batch of commits or so."""
    brain = script(home, {"say": "abcdef", "chunks": 6, "delayMs": 40})
    job = {"prompt": "go", "brain": brain}
    # the policy, session, submission, claim, the first delta and the second
    assert first_life(home, sink, job, "before_publish:kill@6") == -9

    async def body() -> None:
        async with next_life(home, sink, job) as world:
            accepted = await submit(world, job)
            task = await world.until(accepted.task_id, "SUCCEEDED")
            assert json.loads(task["result"])["text"] == "abcdef"
            events = await world.events()
            said: dict[str, str] = {}
            for type_, payload in events:
                if type_ == "update" and payload["sessionUpdate"] == "agent_message_chunk":
                    text = payload["content"]["text"]
                    said[payload["messageId"]] = said.get(payload["messageId"], "") + text
            (cut, whole) = said
            assert said[whole] == "abcdef"
            assert "abcdef".startswith(said[cut])
            assert said[cut] != "abcdef"
            (closed,) = [p for t, p in events if t == "message.interrupted"]
            assert closed["messageId"] == cut
            names = [type_ for type_, _ in events]
            assert names.index("message.interrupted") < names.index("task.requeued")

    asyncio.run(body())


@pytest.mark.req("B-3", "Q-11")
def test_a_cancelled_stream_is_closed_too(home: Path, sink: Path) -> None:
    async def body() -> None:
        brain = script(home, {"say": "abc", "chunks": 3, "delayMs": 50}, call("pure"))
        async with World(home, sink, brain=brain) as world:
            accepted = await world.prompt("go")
            async with asyncio.timeout(5), world.changed:
                while not await world.updates("agent_message_chunk"):
                    await world.changed.wait()
            await world.engine.cancel_run(accepted.run_id)
            await world.until(accepted.task_id, "CANCELED")
            (closed,) = [p for t, p in await world.events() if t == "message.interrupted"]
            (chunk, *_) = await world.updates("agent_message_chunk")
            assert closed["messageId"] == chunk["messageId"]

    asyncio.run(body())
