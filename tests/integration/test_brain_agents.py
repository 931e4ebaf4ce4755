"""Another agent as a brain: its process, its turns, its requests; crashes of it and of ours.

The agent is one on the official Python SDK, a real process. It notes what it was asked, so that a
test can tell what was sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from effects_support import POLICY, World, first_life, next_life, submit

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AGENT = Path(__file__).parent / "example_agent.py"
BRAIN = f"acp:{shlex.join([sys.executable, str(AGENT)])}"


@pytest.fixture(autouse=True)
def places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "sessions").mkdir()
    monkeypatch.setenv("AGENT_LOG", str(home / "agent.log"))
    monkeypatch.setenv("AGENT_SESSIONS", str(home / "sessions"))
    monkeypatch.setenv("GOCLAW_HOME", str(home))


def noted(home: Path, what: str = "") -> list[str]:
    """What the agent noted, in order."""
    path = home / "agent.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(what)]


@contextlib.asynccontextmanager
async def life(home: Path, **options: Any) -> AsyncIterator[World]:
    options.setdefault("cwd", home)
    async with World(home, home / "none", brain=BRAIN, **options) as world:
        yield world


def asked(home: Path, *prompts: str, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    """Prompts of one session, one after the other."""

    async def run() -> tuple[list[dict[str, Any]], Any]:
        async with life(home, **options) as world:
            tasks = []
            for number, prompt in enumerate(prompts):
                accepted = await world.prompt(prompt, key=str(number))
                tasks.append(await world.until(accepted.task_id))
            return tasks, await world.events()

    return asyncio.run(run())


def text_of(task: dict[str, Any]) -> str:
    found: str = json.loads(task["result"])["text"]
    return found


def code_of(task: dict[str, Any]) -> str:
    found: str = json.loads(task["error"])["code"]
    return found


@pytest.mark.req("B-2", "A-9")
def test_one_process_answers_the_turns_of_a_session(home: Path) -> None:
    tasks, events = asked(home, "hello", "again")
    assert [task["state"] for task in tasks] == ["SUCCEEDED"] * 2, tasks[0]["error"]
    assert [text_of(task) for task in tasks] == ["It is done."] * 2
    assert [line.partition(" ")[0] for line in noted(home)] == ["start", "new", "prompt", "prompt"]
    assert "home=None" in noted(home, "start")[0]
    chunks = [p for _, p in events if p.get("sessionUpdate") == "agent_message_chunk"]
    assert "".join(one["content"]["text"] for one in chunks) == "It is done." * 2
    assert len({one["messageId"] for one in chunks}) == 2
    intents = [p for name, p in events if name == "effect.intent"]
    assert [one["class"] for one in intents] == ["irreversible"] * 2


@pytest.mark.req("A-7", "A-1", "E-3")
@pytest.mark.parametrize("option", ["y", "n"])
def test_its_question_is_an_approval_that_holds_no_lane(home: Path, option: str) -> None:
    async def run() -> None:
        async with life(home) as world:
            accepted = await world.prompt("ask me")
            task = await world.until(accepted.task_id, "SUSPENDED")
            assert (task["reason"], world.engine.scheduler.busy) == ("approval", 0)
            (approval,) = await world.engine.approvals.listed()
            request = orjson.loads(approval.request)
            assert [one["optionId"] for one in request["options"]] == ["y", "n"]
            assert request["toolCall"]["toolCallId"] == f"{accepted.task_id}:t1"
            assert not noted(home, "permission")
            await world.engine.approvals.resolve(approval.approval_id, option, by="me")
            task = await world.until(accepted.task_id, "SUCCEEDED")
            said = text_of(task), task["stop_reason"]
            assert said == {"y": ("before after", "end_turn"), "n": ("before ", "refusal")}[option]
            assert (task["attempt"], task["crashes"]) == (2, 0)

    asyncio.run(run())
    assert noted(home, "permission") == [f"permission selected {option}"]
    assert len(noted(home, "start")) == len(noted(home, "prompt")) == 1


@pytest.mark.req("A-1")
@pytest.mark.parametrize(("effect", "answer"), [("allow", "y"), ("deny", "n")])
def test_a_rule_answers_its_question(home: Path, effect: str, answer: str) -> None:
    rule = f"""
[[rule]]
id = "its-deletes"
effect = "{effect}"
actions = ["tool.call"]
resources = [{{ exact = "acp/acp/delete" }}]
"""
    base = POLICY.replace('effect = "ask"\nactions = ["tool.call"]\nsubjects', "#").replace(
        'id = "ask-before-agents-tools"\n#',
        'id = "ask-before-agents-tools"\neffect = "allow"\nactions = ["approval.answer"]\nsubjects',
    )  # an ask would win over an allow
    (task,), _ = asked(home, "ask me", policy=base + rule)
    assert task["state"] == "SUCCEEDED"
    assert noted(home, "permission") == [f"permission selected {answer}"]


@pytest.mark.req("A-7", "Q-11")
def test_a_question_that_nobody_answers_ends_with_its_task(home: Path) -> None:
    async def run() -> None:
        async with life(home) as world:
            accepted = await world.prompt("ask me")
            await world.until(accepted.task_id, "SUSPENDED")
            await world.engine.cancel_task(accepted.task_id)
            await world.until(accepted.task_id, "CANCELED")
            later = await world.prompt("hello", key="later")
            task = await world.until(later.task_id)
            assert text_of(task) == "It is done."

    asyncio.run(run())
    assert noted(home, "cancel") == ["cancel"]


@pytest.mark.req("Q-11")
@pytest.mark.parametrize("order", ["slow", "deaf"])
def test_a_cancel_is_passed_down(home: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that obeys answers the next turn; one that does not is killed."""
    monkeypatch.setattr(limits, "AGENT_CANCEL_MS_MAX", 300)

    async def run() -> None:
        async with life(home) as world:
            accepted = await world.prompt(order)
            async with asyncio.timeout(20), world.changed:
                while not await world.updates("agent_message_chunk"):
                    await world.changed.wait()
            await world.engine.cancel_task(accepted.task_id)
            await world.until(accepted.task_id, "CANCELED")
            later = await world.prompt("hello", key="later")
            assert text_of(await world.until(later.task_id)) == "It is done."

    asyncio.run(run())
    assert noted(home, "cancel") == ["cancel"]
    assert len(noted(home, "start")) == (1 if order == "slow" else 2)
    assert len(noted(home, "load")) == (0 if order == "slow" else 1)


@pytest.mark.req("E-3", "B-2")
def test_a_crash_of_the_agent_resumes_its_session(home: Path) -> None:
    """The cut turn is not sent again: the agent is told to look and go on."""
    (task,), events = asked(home, "crash now")
    assert (task["state"], text_of(task)) == ("SUCCEEDED", "It is done.")
    assert [line.split()[0] for line in noted(home)] == [
        "start", "new", "prompt", "start", "load", "prompt",
    ]  # fmt: skip
    assert noted(home, "prompt")[1].startswith("prompt Your last turn was cut off")
    assert [p["name"] for name, p in events if name == "effect.unknown"] == ["acp"]
    chunks = [p for _, p in events if p.get("sessionUpdate") == "agent_message_chunk"]
    assert chunks[0]["content"]["text"] == "half "
    assert chunks[0]["messageId"] != chunks[1]["messageId"]


@pytest.mark.req("E-3", "B-2")
def test_what_an_agent_leaves_behind_does_not_hide_its_crash(home: Path) -> None:
    """A program of its own, in a session of its own, holds the agent's output open."""
    try:
        (task,), _ = asked(home, "orphan now")
        assert (task["state"], text_of(task)) == ("SUCCEEDED", "It is done.")
    finally:
        for line in noted(home, "orphan"):
            os.kill(int(line.split()[1]), signal.SIGKILL)


@pytest.mark.req("E-3")
def test_an_agent_that_cannot_load_leaves_its_turn_unknown(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENT_SESSIONS")
    (task, later), events = asked(home, "crash now", "hello")
    assert (task["state"], code_of(task)) == ("FAILED", "brain_failed")
    assert "nobody knows what it did" in json.loads(task["error"])["message"]
    assert len(noted(home, "prompt crash")) == 1
    assert text_of(later) == "It is done."
    thoughts = [p for _, p in events if p.get("sessionUpdate") == "agent_thought_chunk"]
    assert "does not know what was said" in thoughts[0]["content"]["text"]


@pytest.mark.req("E-3", "E-1", "Q-6")
@pytest.mark.parametrize("hit", [3, 5, 6, 8, 9])
def test_a_crash_of_the_daemon_resumes_the_agents_session(home: Path, hit: int) -> None:
    """Wherever it strikes, the prompt is sent once, and the run comes to its end."""
    job = {"prompt": "hello", "brain": BRAIN}
    first_life(home, home / "none", job, f"before_publish:kill@{hit}")
    sent = len(noted(home, "prompt hello"))

    async def rest() -> dict[str, Any]:
        async with next_life(home, home / "none", job) as world:
            return await world.until((await submit(world, job)).task_id)

    task = asyncio.run(rest())
    assert (task["state"], text_of(task)) == ("SUCCEEDED", "It is done."), task["error"]
    assert len(noted(home, "prompt hello")) == 1
    assert len(noted(home, "load")) == (1 if task["attempt"] > 1 and sent else 0)


@pytest.mark.req("A-2", "B-6")
def test_its_files_go_through_the_gate(home: Path, tmp_path: Path) -> None:
    work = tmp_path
    (work / "a.txt").write_text("content")
    (home / "secret").write_text("hidden")
    prompts = (f"read {work}/a.txt", f"read {home}/secret", f"write {work}/b.txt",
               f"write {home}/c.txt", f"read {work}/none")  # fmt: skip
    tasks, _ = asked(home, *prompts, cwd=work)
    said = [text_of(task) for task in tasks]
    assert said[0] == "content"
    assert said[1].startswith("refused: fs.read")
    assert said[2] == "ok"
    assert (work / "b.txt").read_text() == "written"
    assert said[3].startswith("refused: fs.write")
    assert not (home / "c.txt").exists()
    assert said[4].startswith("refused: ")


@pytest.mark.parametrize(
    ("prompt", "state", "text"),
    [("garbage 5", "SUCCEEDED", "well"), ("garbage 500", "SUCCEEDED", "It is done.")],
)
def test_lines_that_are_no_message(home: Path, prompt: str, state: str, text: str) -> None:
    """A few are passed over; of many it is killed, and taken up again."""
    (task,), _ = asked(home, prompt)
    assert (task["state"], text_of(task)) == (state, text)


@pytest.mark.req("A-2")
def test_terminals_are_refused_by_name(home: Path) -> None:
    """It was told that there are none; who asks all the same gets an error and goes on."""
    (task,), _ = asked(home, "terminal")
    assert task["state"] == "SUCCEEDED"
    assert text_of(task).startswith("refused: ")


def test_a_flood_is_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGENT_TURN_BYTES_MAX", 3_000_000)
    (task,), _ = asked(home, "flood")
    assert (task["state"], text_of(task)) == ("SUCCEEDED", "It is done.")


def test_what_it_says_itself_is_a_failure(home: Path) -> None:
    (task,), _ = asked(home, "fail")
    assert (task["state"], code_of(task)) == ("FAILED", "agent_failed")


@pytest.mark.parametrize(
    ("command", "code"),
    [("no-such-program-here", "brain_failed"), ("true", "agent_gone"),
     ("sleep 1000", "agent_silent")],
)  # fmt: skip
def test_a_program_that_is_no_agent(
    home: Path, command: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if code == "agent_silent":
        monkeypatch.setattr(limits, "AGENT_START_MS_MAX", 300)

    async def run() -> dict[str, Any]:
        async with World(home, home / "none", brain=f"acp:{command}") as world:
            return await world.until((await world.prompt("hello")).task_id)

    task = asyncio.run(run())
    assert task["state"] in ("FAILED", "DEAD_LETTER")
    assert code_of(task) == code


@pytest.mark.req("A-1", "A-2")
@pytest.mark.parametrize(("effect", "asks"), [("ask", True), ("deny", False)])
def test_its_program_needs_a_decision(home: Path, effect: str, asks: bool) -> None:
    """Of its own, besides brain.call; a rule may have a person asked for each turn."""
    policy = POLICY.replace(
        'effect = "allow"\nactions = ["exec.run"]', f'effect = "{effect}"\nactions = ["exec.run"]'
    )
    assert policy != POLICY

    async def run() -> None:
        async with life(home, policy=policy) as world:
            accepted = await world.prompt("hello")
            task = await world.until(accepted.task_id)
            assert not noted(home)
            if not asks:
                assert code_of(task) == "policy_denied"
                return
            assert (task["state"], task["reason"]) == ("SUSPENDED", "approval")
            (approval,) = await world.engine.approvals.listed()
            await world.engine.approvals.resolve(approval.approval_id, "allow", by="me")
            assert text_of(await world.until(accepted.task_id, "SUCCEEDED")) == "It is done."

    asyncio.run(run())
