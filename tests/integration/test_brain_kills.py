"""Kill -9 at the commits of a run of ten model answers with tools: nothing is asked or done twice.

The model's server and the sink are processes of their own that count; each first life is one that a
fault point ends. The suite takes a sample of the boundaries; GOCLAW_MODEL_KILLS=all takes each.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from brains_support import call, configure, model_server
from effects_support import World, ask_sink, first_life, next_life, sink_process, submit

from goclaw.core.faults import arm, hits

if TYPE_CHECKING:
    from pathlib import Path

    from brains_support import Server

STEPS = 10
CLASSES = ("keyed", "irreversible", "pure", "probeable", "irreversible")
TOOLS = [CLASSES[number % len(CLASSES)] for number in range(STEPS - 1)]
REPLIES: list[dict[str, Any]] = [
    *({"text": f"{n} ", "calls": [call(kind, n=n)]} for n, kind in enumerate(TOOLS)),
    {"text": "end"},
]
TEXT = "".join(str(reply["text"]) for reply in REPLIES)
JOB: dict[str, Any] = {"prompt": "go", "brain": "model"}
POINTS = ("before_commit", "after_commit")
SAMPLE = 7


async def rest_of(home: Path, sink: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The life after: statuses of the calls, and (class, key) of each tool effect."""
    async with next_life(home, sink, JOB) as world:
        accepted = await submit(world, JOB)
        task = await world.until(accepted.task_id)
        assert task["state"] == "SUCCEEDED", task
        result = json.loads(task["result"])
        assert result["text"] == TEXT
        said = [p for name, p in await world.events() if name == "message.interrupted"]
        chunks = await world.updates("agent_message_chunk")
        cut = {one["messageId"] for one in said}
        whole = [one for one in chunks if one["messageId"] not in cut]
        assert "".join(one["content"]["text"] for one in whole) == TEXT
        effects = await world.effects(accepted.tid)
        assert [row["ordinal"] for row in effects] == list(range(2 * STEPS - 1))
        made = [(row["class"], row["key"]) for row in effects if row["kind"] == "tool"]
        return [tool["status"] for tool in result["tools"]], made


def judge(server: Server, sink: Path, statuses: list[str], made: list[tuple[str, str]]) -> int:
    """Every answer was asked for once, but for the one in flight; the extra questions."""
    asked = server.report()["asked"]
    assert len(asked) == STEPS
    extra: int = sum(asked.values()) - STEPS
    assert extra in (0, 1), asked
    happened = asyncio.run(ask_sink(sink, {"op": "report"}))
    again = 0
    for status, (kind, key) in zip(statuses, made, strict=True):
        count = happened["effects"].get(key, 0)
        sent = happened["sends"].get(key, 0)
        again += max(0, sent - 1)
        if status == "unknown":
            assert kind == "irreversible"
            assert count <= 1
        elif kind == "pure":
            assert count in (1, 2)
        else:
            assert (status, count) == ("completed", 1), (kind, key)
        assert sent <= 1 or kind in ("pure", "keyed")
    assert again + statuses.count("unknown") + extra <= 1, "only what was in flight"
    return extra


@pytest.mark.req("E-1", "E-2", "E-3", "B-3", "I-4")
@pytest.mark.timeout(1800)
def test_a_kill_at_commits_of_ten_answers_with_tools(home: Path) -> None:
    with model_server(REPLIES) as server, sink_process(home / "sink") as sink:
        counts = {}
        folder = home / "reference"
        folder.mkdir()
        configure(folder, server.url)
        arm({"GOCLAW_FAULTS": ",".join(f"{point}:kill@999999999" for point in POINTS)})

        async def reference() -> None:
            async with World(folder, sink, brain="model") as world:
                task = await world.until((await submit(world, JOB)).task_id)
                assert task["state"] == "SUCCEEDED"

        try:
            asyncio.run(reference())
            counts = hits()
        finally:
            arm({})
        assert server.calls == STEPS
        boundaries = [(point, hit) for hit in range(1, counts[POINTS[0]] + 1) for point in POINTS]
        assert len(boundaries) > 4 * STEPS
        if os.environ.get("GOCLAW_MODEL_KILLS") != "all":
            boundaries = boundaries[3 :: len(boundaries) // SAMPLE]
    kills = extras = unknown = 0
    for point, hit in boundaries:
        folder = home / f"{point}-{hit}"
        folder.mkdir()
        with model_server(REPLIES) as server, sink_process(folder / "sink") as sink:
            configure(folder, server.url)
            kills += first_life(folder, sink, JOB, f"{point}:kill@{hit}") == -9
            statuses, made = asyncio.run(rest_of(folder, sink))
            extras += judge(server, sink, statuses, made)
            unknown += statuses.count("unknown")
    print(f"\n{kills} kills, {extras} answers asked for again, {unknown} outcomes unknown")
    assert kills >= len(boundaries) - 2  # an idle life's last commits may be one fewer
