"""An agent on the official Python SDK that does what its prompt says.

Owns a journal of what it did (``$AGENT_LOG``, a line each) and its sessions (``$AGENT_SESSIONS``, a
folder; without it none can be loaded). Not in here: any byte of the wire, which is the SDK's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from acp import (
    Agent,
    InitializeResponse,
    LoadSessionResponse,
    NewSessionResponse,
    PromptResponse,
    RequestError,
    run_agent,
)
from acp.schema import (
    AgentCapabilities,
    AgentMessageChunk,
    AgentThoughtChunk,
    PermissionOption,
    TextContentBlock,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
    UserMessageChunk,
)

SESSIONS = os.environ.get("AGENT_SESSIONS")


def note(line: str) -> None:
    with open(os.environ["AGENT_LOG"], "a") as log:
        log.write(f"{line}\n")


def remember(session_id: str, words: str) -> None:
    with open(f"{SESSIONS}/{session_id}", "a") as log:
        log.write(words.splitlines()[0] + "\n")


def text(words: str) -> TextContentBlock:
    return TextContentBlock(type="text", text=words)


class Example(Agent):
    """Leaves out what it cannot, and takes no notice of what it does not know."""

    def __init__(self) -> None:
        self.client: Any = None
        self.cancelled = asyncio.Event()

    def on_connect(self, conn: Any) -> None:
        self.client = conn

    async def initialize(  # type: ignore[override]
        self, protocol_version: int, **rest: Any
    ) -> InitializeResponse:
        note(f"start home={os.environ.get('GOCLAW_HOME')} argv={sys.argv[1:]}")
        able = AgentCapabilities(load_session=SESSIONS is not None)
        return InitializeResponse(protocol_version=1, agent_capabilities=able)

    async def new_session(  # type: ignore[override]
        self, cwd: str, **rest: Any
    ) -> NewSessionResponse:
        session_id = uuid.uuid4().hex
        note(f"new {session_id}")
        if SESSIONS:
            Path(SESSIONS, session_id).touch()
        return NewSessionResponse(session_id=session_id)

    async def load_session(  # type: ignore[override]
        self, cwd: str, session_id: str, **rest: Any
    ) -> LoadSessionResponse:
        if not SESSIONS or not Path(SESSIONS, session_id).exists():
            raise RequestError(-32002, "Resource not found")
        note(f"load {session_id}")
        for line in Path(SESSIONS, session_id).read_text().splitlines():
            old = UserMessageChunk(session_update="user_message_chunk", content=text(line))
            await self.client.session_update(session_id, old)
        return LoadSessionResponse()

    async def cancel(self, session_id: str, **rest: Any) -> None:
        note("cancel")
        self.cancelled.set()

    async def say(self, session_id: str, words: str) -> None:
        chunk = AgentMessageChunk(session_update="agent_message_chunk", content=text(words))
        await self.client.session_update(session_id, chunk)

    async def prompt(self, session_id: str, prompt: list[Any], **rest: Any) -> PromptResponse:
        words = prompt[0].text
        note(f"prompt {words}")
        if SESSIONS:
            remember(session_id, words)
        order, _, rest_of = words.partition(" ")
        self.cancelled.clear()
        play = getattr(self, f"do_{order}", self.do_other)
        return PromptResponse(stop_reason=await play(session_id, rest_of) or "end_turn")

    async def do_other(self, session_id: str, rest: str) -> None:
        thought = AgentThoughtChunk(session_update="agent_thought_chunk", content=text("hm"))
        await self.client.session_update(session_id, thought)
        for word in ("It ", "is ", "done."):
            await self.say(session_id, word)

    async def do_ask(self, session_id: str, rest: str) -> str:
        await self.say(session_id, "before ")
        start = ToolCallStart(
            session_update="tool_call", tool_call_id="t1", title="rm", kind="delete",
            status="pending",
        )  # fmt: skip
        await self.client.session_update(session_id, start)
        answer = await self.client.request_permission(
            session_id=session_id,
            tool_call=ToolCallUpdate(tool_call_id="t1", title="rm", kind="delete"),
            options=[
                PermissionOption(option_id="y", name="Yes", kind="allow_once"),
                PermissionOption(option_id="n", name="No", kind="reject_once"),
            ],
        )
        outcome = answer.outcome
        note(f"permission {outcome.outcome} {getattr(outcome, 'option_id', '')}")
        if getattr(outcome, "option_id", "") != "y":
            return "refusal"
        done = ToolCallProgress(
            session_update="tool_call_update", tool_call_id="t1", status="completed"
        )
        await self.client.session_update(session_id, done)
        await self.say(session_id, "after")
        return "end_turn"

    async def do_slow(self, session_id: str, rest: str) -> str:
        await self.say(session_id, "slow ")
        await self.cancelled.wait()
        return "cancelled"

    async def do_deaf(self, session_id: str, rest: str) -> str:
        await self.say(session_id, "deaf ")
        await asyncio.Event().wait()
        return "end_turn"

    async def do_crash(self, session_id: str, rest: str) -> None:
        await self.say(session_id, "half ")
        await asyncio.sleep(0.1)
        os._exit(1)

    async def do_orphan(self, session_id: str, rest: str) -> None:
        await self.say(session_id, "half ")
        if len(Path(os.environ["AGENT_LOG"]).read_text().split("prompt")) == 2:
            orphan = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
            note(f"orphan {orphan.pid}")
            os._exit(1)

    async def do_garbage(self, session_id: str, rest: str) -> None:
        for _ in range(int(rest)):
            print("a line of a log")
        sys.stdout.flush()
        await self.say(session_id, "well")

    async def do_flood(self, session_id: str, rest: str) -> None:
        while True:
            await self.say(session_id, "x" * 100_000)

    async def do_read(self, session_id: str, rest: str) -> None:
        try:
            found = await self.client.read_text_file(session_id=session_id, path=rest)
            await self.say(session_id, found.content)
        except RequestError as error:
            await self.say(session_id, f"refused: {error}")

    async def do_write(self, session_id: str, rest: str) -> None:
        try:
            await self.client.write_text_file(session_id=session_id, path=rest, content="written")
            await self.say(session_id, "ok")
        except RequestError as error:
            await self.say(session_id, f"refused: {error}")

    async def do_terminal(self, session_id: str, rest: str) -> None:
        try:
            await self.client.create_terminal(session_id=session_id, command="ls")
            await self.say(session_id, "ok")
        except RequestError as error:
            await self.say(session_id, f"refused: {error}")

    async def do_fail(self, session_id: str, rest: str) -> None:
        raise RequestError(-32603, "it is broken")


if __name__ == "__main__":
    asyncio.run(run_agent(Example()))  # type: ignore[abstract]
