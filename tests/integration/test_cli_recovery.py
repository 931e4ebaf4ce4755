"""What a start found, as people are told: `goclaw status`, `goclaw events _system` (Q-15).

Owns nothing but the tests. Not in here: what becomes of each task (test_engine_recovery.py).
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from roof_support import World as Place
from roof_support import script_file, world

from goclaw.cli.events import line
from goclaw.client import SyncClient
from goclaw.client.records import Event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("Q-15", "U-1")


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with world(home) as made:
        yield made


def begun(place: Place, brain: str) -> str:
    """A run that is under way; its task."""
    run = place.lines("run", "go", "--brain", brain, "--detach")[-1]
    with SyncClient(place.home) as client:
        for event in client.follow(run["sessionId"], 0):
            if event.type == "effect.result" and event.body["name"] == "word-count":
                return str(run["runId"]).replace("run_", "task_")
    raise AssertionError("the log ended")


def test_a_start_says_what_it_found_and_what_became_of_it(place: Place) -> None:
    (place.cwd / "words").write_text("one two", "utf-8")
    brain = script_file(
        place.cwd,
        [
            {"call": "word-count", "args": {"path": str(place.cwd / "words")}},
            {"say": "so be it", "chunks": 2, "delayMs": 3_600_000},
        ],
    )
    place.serve(GOCLAW_QUEUE_CRASH_BUDGET="2")
    assert "nothing was under way" in place.goclaw("status").stdout
    assert place.lines("status")[0]["recovered"] == {"count": 0, "states": {}, "eventId": None}
    first = begun(place, brain)
    place.end(signal.SIGKILL)
    place.serve(GOCLAW_QUEUE_CRASH_BUDGET="2", GOCLAW_QUEUE_LANES="1")
    (status,) = place.lines("status")
    event_id = status["recovered"].pop("eventId")
    assert status["recovered"] == {"count": 1, "states": {"QUEUED": 1}}
    assert "1 task under way: 1 QUEUED; see goclaw events _system" in place.goclaw("status").stdout
    shown = place.goclaw("events", "_system").stdout.splitlines()
    (at,) = [number for number, text in enumerate(shown) if "recovery.report" in text]
    assert shown[at].split()[0] == str(event_id)
    assert shown[at].endswith("recovery.report           1 task under way: 1 QUEUED")
    (task,) = place.lines("task", "list")
    effects = "2 kept, 0 repeated, 0 unknown"
    assert shown[at + 1].startswith(
        f"        {first}  attempt 1 was lost, QUEUED; effects: {effects}; event "
    )
    found = shown[at + 1].rpartition("; event ")[2].split()
    assert found[1:] == ["of", task["sessionId"]]
    # The event that is named is the one that says so.
    with SyncClient(place.home) as client:
        (event,) = client.events(task["sessionId"], int(found[0]) - 1, 1).events
    assert (event.type, event.body["reason"]) == ("task.requeued", "daemon_restarted")
    assert json.loads(place.goclaw("status", "--json").stdout)["recovered"]["count"] == 1

    # The second death uses its budget up: it is said to be given up, not recovered.
    with SyncClient(place.home) as client:
        for event in client.follow(task["sessionId"], 0):
            if event.attempt == 2 and event.type == "task.running":
                break
    place.end(signal.SIGKILL)
    place.serve(GOCLAW_QUEUE_CRASH_BUDGET="2")
    assert "1 task under way: 1 DEAD_LETTER" in place.goclaw("status").stdout
    assert f"{first}  attempt 2 was lost, given up" in place.goclaw("events", "_system").stdout


def test_a_long_report_and_what_the_fence_says_are_lines_too() -> None:
    entry = {
        "taskId": "task_1", "runId": "run_1", "attempt": 2, "state": "SUSPENDED", "kept": 3,
        "repeated": 1, "unknown": 1, "eventId": 17, "owner": "lane:x", "sessionId": "session_\n1",
    }  # fmt: skip
    body = {
        "count": 1_500, "states": {"QUEUED": 1_400, "SUSPENDED": 100}, "tasks": [entry],
        "fence": {"epoch": 2, "fenced": 5},
    }  # fmt: skip
    event = Event("_system", 9, "recovery.report", 0, "", "", "", 0, body)
    assert line(event).split("\n") == [
        "     9  1970-01-01T00:00:00.000Z  recovery.report           1500 tasks under way: "
        "1400 QUEUED, 100 SUSPENDED",
        "        task_1  attempt 2 was lost, SUSPENDED; effects: 3 kept, 1 repeated, 1 unknown; "
        "event 17 of session_ 1",
        "        and 1499 more: goclaw task list",
        '        fence: {"epoch": 2, "fenced": 5}',
    ]
