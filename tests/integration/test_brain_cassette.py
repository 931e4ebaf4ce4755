"""A tape: recorded once, masked, played back exactly, and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from brains_support import call, model_server
from effects_support import World, sink_process

if TYPE_CHECKING:
    from pathlib import Path

REPLIES = [
    {
        "think": "hm",
        "text": "I use sk-abcdef0123456789.",
        "chunks": 3,
        "calls": [call("pure", n=1)],
    },
    {"text": "Done.", "chunks": 2},
]


def configure(home: Path, url: str, tape: Path, *, recording: bool) -> None:
    records = 'records = "model"' if recording else ""
    (home / "config.toml").write_text(
        f'[brains.model]\nkind = "openai"\nbase_url = "{url}"\nmodel = "m"\n'
        f'[brains.model-tape]\nkind = "cassette"\ncassette = "{tape}"\n{records}\n'
    )


def play(home: Path, prompt: str = "go") -> tuple[dict[str, Any], list[Any]]:
    async def run(sink: Path) -> tuple[dict[str, Any], list[Any]]:
        async with World(home, sink, brain="model-tape") as world:
            task = await world.until((await world.prompt(prompt)).task_id)
            said = [
                (one["sessionUpdate"], one["content"]["text"])
                for kind in ("agent_thought_chunk", "agent_message_chunk")
                for one in await world.updates(kind)
            ]
            return task, said

    with sink_process(home / "sink") as sink:
        return asyncio.run(run(sink))


@pytest.mark.req("B-2")
def test_a_tape_is_recorded_once_and_played_exactly(tmp_path: Path, home: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    lives = []
    with model_server(REPLIES) as server:
        for number in range(2):
            folder = home / str(number)
            folder.mkdir()
            configure(folder, server.url, tape, recording=number == 0)
            lives.append(play(folder))
        assert server.calls == len(REPLIES)
    (first, said), (again, played) = lives
    assert (first["state"], again["state"]) == ("SUCCEEDED", "SUCCEEDED"), again["error"]
    text = tape.read_text()
    assert "sk-abcdef" not in text
    assert len(text.splitlines()) == len(REPLIES)
    plain = json.loads(
        json.dumps([said, first["result"].decode()]).replace("sk-abcdef0123456789", "[redacted]")
    )
    joined = [
        "".join(words for kind, words in one if kind == "agent_message_chunk")
        for one in (played, plain[0])
    ]
    assert joined[0] == joined[1]
    assert json.loads(again["result"])["text"] == json.loads(plain[1])["text"]


def test_what_is_not_on_the_tape_is_a_failure(tmp_path: Path, home: Path) -> None:
    configure(home, "http://127.0.0.1:9/v1", tmp_path / "none", recording=False)
    task, _ = play(home)
    assert (task["state"], json.loads(task["error"])["code"]) == ("FAILED", "brain_failed")


def test_a_damaged_tape_is_named_by_its_line(tmp_path: Path, home: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    tape.write_text('{"key": "x", "said": [], "answer": {}}\nnothing\n')
    configure(home, "http://127.0.0.1:9/v1", tape, recording=False)
    task, _ = play(home)
    assert "Line 2" in json.loads(task["error"])["message"]
