"""Skills as tools of a run: from a slash command to the sandbox and back, or cut off."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from effects_support import World
from skills_support import MemoryDigests, children_of, command, skill_from_wat

from goclaw.core.clock import SystemClock
from goclaw.core.records import Unclear
from goclaw.policy import default
from goclaw.skills.catalog import Catalog
from goclaw.skills.sandbox import CallOutcome, Sandbox
from goclaw.skills.tools import SkillTools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.core.records import Done

FILES = {
    "text.txt": b"one two\nthree\n",
    "empty": b"",
    "a binary file": bytes(range(256)) * 9,
    "no-newline": b"\xff\xfe one",
}


class Watched(Sandbox):
    """A sandbox that says when a call begins and when it has ended."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun, self.ended = threading.Event(), threading.Event()

    def call(self, *arguments: Any, **named: Any) -> CallOutcome:
        self.prepare(arguments[0])
        self.begun.set()
        try:
            return super().call(*arguments, **named)
        finally:
            self.ended.set()


class Skills(SkillTools):
    """The built-in skills, and an installed one that never ends."""

    def __init__(self, folder: Path) -> None:
        skill_from_wat(folder / "skills", command("(loop (br 0))"), name="endless")
        self.sandbox = Watched(
            folder / "cache", MemoryDigests(), SystemClock(), children_of(folder)
        )
        super().__init__(Catalog(folder / "skills"), self.sandbox)

    async def begin_endless(self) -> asyncio.Task[Done]:
        (tool,) = [one for one in self.tools() if one.name == "endless"]
        running = asyncio.create_task(
            self.run(tool, {}, key="k", cancelled=asyncio.Event(), files={})
        )
        await asyncio.get_running_loop().run_in_executor(None, self.sandbox.begun.wait, 20)
        return running


@pytest.fixture
def skills(tmp_path: Path) -> Iterator[Skills]:
    source = Skills(tmp_path)
    yield source
    source.sandbox.close()
    source.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The session's directory; the home is closed to tools."""
    folder = tmp_path / "work"
    (folder / "dir").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def world_of(home: Path, skills: Skills, work: Path, policy: str = default.TEXT) -> World:
    return World(home, home / "no-sink", sources=[skills], cwd=work, policy=policy)


async def run(world: World, prompt: str, key: str) -> dict[str, Any]:
    task = await world.until((await world.prompt(prompt, key=key)).task_id)
    assert (task["state"], task["stop_reason"]) == ("SUCCEEDED", "end_turn")
    found: dict[str, Any] = json.loads(task["result"])
    return found


@pytest.mark.req("U-2", "K-2")
@pytest.mark.parametrize("name", FILES)
def test_word_count_counts_as_wc_does(name: str, home: Path, work: Path, skills: Skills) -> None:
    command_line = ["wc", "-lc", str(work / name)]
    said = subprocess.run(command_line, capture_output=True, check=True, text=True).stdout.split()

    async def body() -> None:
        async with world_of(home, skills, work) as world:
            found = await run(world, f"/word-count {name}", "k")
            (tool,) = found["tools"]
            assert tool["status"] == "completed"
            output = tool["output"]
            assert [output["lines"], output["bytes"]] == [int(said[0]), int(said[1])]
            assert json.loads(found["text"]) == output

    asyncio.run(body())


@pytest.mark.req("A-3", "I-6", "K-8")
def test_what_the_default_policy_lets_skills_do(home: Path, work: Path, skills: Skills) -> None:
    cases = {
        "/word-count dir/../empty": "completed",
        "/word-count /etc/hostname": "denied",  # outside the roots
        "/word-count dir/../../../../../../etc/hostname": "denied",
        f"/word-count {home}/goclaw.db": "denied",  # goclaw's own directory
        "/endless {}": "denied",  # installed: nobody has allowed it yet
        "/word-count none": "failed",
        "/word-count dir": "failed",
        '/sha256 {"text": "abc"}': "completed",
        '/sha256 {"text": 1}': "failed",
        '/json-query {"pointer": "/a", "json": {"a": 1}}': "completed",
        '/json-query {"pointer": "/a"}': "failed",
    }

    async def body() -> None:
        async with world_of(home, skills, work) as world:
            for number, (prompt, status) in enumerate(cases.items()):
                (tool,) = (await run(world, prompt, str(number)))["tools"]
                assert tool["status"] == status, prompt

    asyncio.run(body())


@pytest.mark.req("Q-4", "Q-11", "K-6")
def test_a_cancel_cuts_a_skill_off(home: Path, work: Path, skills: Skills) -> None:
    policy = default.TEXT.replace('"builtin/sleep"', '"wasm/endless"')

    async def body() -> None:
        async with world_of(home, skills, work, policy) as world:
            accepted = await world.prompt("/endless {}")
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, skills.sandbox.begun.wait, 20)
            await world.engine.cancel_run(accepted.run_id)
            await world.until(accepted.task_id, "CANCELED")
            # Its manifest would let it run for half a minute: only the cancel can have ended it.
            assert await loop.run_in_executor(None, skills.sandbox.ended.wait, 10)

    asyncio.run(body())


@pytest.mark.req("K-2")
def test_a_cancelled_call_ends_only_when_the_skill_has(skills: Skills) -> None:
    """The file is closed then: too early, and the skill would read another one by that number."""

    async def body() -> None:
        running = await skills.begin_endless()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert skills.sandbox.ended.is_set()

    asyncio.run(body())


@pytest.mark.req("E-3")
def test_a_sandbox_that_closes_leaves_the_call_unclear(skills: Skills) -> None:
    async def body() -> None:
        running = await skills.begin_endless()
        await asyncio.get_running_loop().run_in_executor(None, skills.sandbox.close)
        with pytest.raises(Unclear):
            await running

    asyncio.run(body())


def test_closing_twice_is_fine(skills: Skills) -> None:
    skills.close()
    skills.close()
