"""Proves the way of a client that knows nothing of goclaw, over a daemon that is killed (2.7).

Owns real daemons and the reference client of the conformance kit. Not in here: single steps
(``test_wire_replay.py``, ``test_wire_sessions.py``).
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World, world

from goclaw.conformance.client import Client, dial
from goclaw.conformance.laws import Seen

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = [
    {
        "match": "^long",
        "steps": [
            {"say": "one two three four five six seven eight", "chunks": 8, "delayMs": 400},
        ],
    },
    {"match": "^for ever", "steps": [{"say": "begun"}, {"sleepMs": 600_000}]},
    {"match": "^may", "steps": [{"ask": "May I?"}, {"say": "thanks"}]},
    {"match": "", "steps": [{"say": "short"}]},
]


class Editor:
    """A vanilla client on the Unix socket that is told nothing of ids."""

    def __init__(self, place: World) -> None:
        self.place = place
        self.seen = Seen()
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        record = self.place.home.read_daemon_json()
        assert record is not None
        client = Client(await dial(f"unix:{record.socket}")(), self.seen, 20)
        self.clients.append(client)
        await client.call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.close()

    async def load(self, client: Client, session: str) -> tuple[list[dict[str, Any]], Any]:
        """The past, and the block of the answer."""
        params = {"sessionId": session, "cwd": str(self.place.cwd), "mcpServers": []}
        answer = await client.answer(await client.request("session/load", params))
        told = client.messages[: client.messages.index(answer)]
        past = [m["params"]["update"] for m in told if m.get("method") == "session/update"]
        assert past.pop()["sessionUpdate"] == "available_commands_update"  # right before it
        return past, answer["result"]["_meta"]["goclaw"]


def prompt(session: str, words: str) -> dict[str, Any]:
    return {"sessionId": session, "prompt": [{"type": "text", "text": words}]}


def texts(updates: list[dict[str, Any]], kind: str) -> list[str]:
    return [u["content"]["text"] for u in updates if u["sessionUpdate"] == kind]


@pytest.mark.req("W-10", "W-7", "W-8", "I-3", "B-3")
def test_a_killed_daemon_in_mid_turn(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT), "utf-8")
    with world(tmp_path) as place:
        place.serve("--brain", f"script:{script}")

        editor = Editor(place)

        async def main() -> None:
            # 1: session/new, then the commands; a turn, two prompts behind it
            one = await editor.connect()
            new = {"cwd": str(place.cwd), "mcpServers": []}
            session = (await one.call("session/new", new))["sessionId"]
            await one.wait("the commands", lambda m: "available_commands_update" in json.dumps(m))
            for words in ("long story", "second", "may I"):
                await one.request("session/prompt", prompt(session, words))
            await one.wait("a first piece", lambda m: "agent_message_chunk" in json.dumps(m))
            assert "_goclaw/" not in json.dumps([m.get("method") for m in one.messages])
            # 2, 7: the daemon dies in the middle of a message, and another one starts
            await asyncio.to_thread(place.end, signal.SIGKILL)
            await one.ended()
            await asyncio.to_thread(place.serve, "--brain", f"script:{script}")
            # 3: the past up to here, the cut message marked, then the answer, then what goes on
            two = await editor.connect()
            past, block = await editor.load(two, session)
            assert texts(past, "user_message_chunk")[0] == "long story"
            said = texts(past, "agent_message_chunk")
            assert said[0].startswith("one")
            assert said[0].endswith(" (interrupted)")
            assert block["activeTurn"]["state"] in ("queued", "running")
            assert block["queued"] == 2
            # 4: each end is told by a standard update; the durable queue runs on, in order
            ends = "session_info_update"
            await two.wait("an end", lambda m: ends in json.dumps(m))
            question = await two.wait(
                "the question", lambda m: m.get("method") == "session/request_permission"
            )
            # 3 again: what is undecided is asked of whoever loads
            three = await editor.connect()
            await editor.load(three, session)
            again = await three.wait(
                "the question again", lambda m: m.get("method") == "session/request_permission"
            )
            call = question["params"]["toolCall"]["toolCallId"]
            assert again["params"]["toolCall"]["toolCallId"] == call
            allow = next(
                o["optionId"] for o in again["params"]["options"] if o["kind"] == "allow_once"
            )
            await three.reply(again["id"], {"outcome": {"outcome": "selected", "optionId": allow}})
            await two.wait("its withdrawal", lambda m: m.get("method") == "$/cancel_request")
            await three.wait("the last end", lambda m: ends in json.dumps(m))
            # 5: resume tells no history; a prompt at once is served
            four = await editor.connect()
            await four.call("session/resume", {"sessionId": session, "cwd": str(place.cwd)})
            assert [u["sessionUpdate"] for u in four.updates(session)] == [
                "available_commands_update"
            ]
            answer = await four.call("session/prompt", prompt(session, "last"))
            assert answer["stopReason"] == "end_turn"
            # 4: the next load shows everything once, whole and in order
            past, block = await editor.load(await editor.connect(), session)
            assert block["activeTurn"] is None
            assert texts(past, "user_message_chunk") == ["long story", "second", "may I", "last"]
            whole = [t for t in texts(past, "agent_message_chunk") if "(interrupted)" not in t]
            assert whole == [
                "one two three four five six seven eight", "short", "thanks", "short",
            ]  # fmt: skip
            # 6: a cancel from a new connection reaches the turn of a lost one
            request = await four.request("session/prompt", prompt(session, "for ever"))
            await four.wait("its begin", lambda m: '"begun"' in json.dumps(m))
            five = await editor.connect()
            await editor.load(five, session)
            await five.notify("session/cancel", {"sessionId": session})
            answer = await four.answer(request)
            assert answer["result"]["stopReason"] == "cancelled"
            assert [client.ledger.breaches for client in editor.clients] == [[]] * 6

        async def whole_story() -> None:
            try:
                await main()
            finally:
                await editor.close()

        asyncio.run(whole_story())
