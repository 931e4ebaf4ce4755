"""Budgets on real daemons: crashes that are counted, stops and questions that cost nothing.

Owns nothing but the tests. Not in here: the same on virtual time (test_engine_leases.py), what is
sent again (test_effects_kills.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import DEADLINE_MS, script_file, world
from roof_support import World as Place

from goclaw.client import SyncClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KILLER = {"GOCLAW_FAULTS": "after_claim:kill"}
CRASH_BUDGET = 3


# A daemon for the purpose: its child's child is deaf to the death of either.
MOTHER = """
import os, pathlib, sys
from goclaw.core.clock import SystemClock
from goclaw.core.processes import Children
children = Children(pathlib.Path(sys.argv[1]), SystemClock())
children.start(["sh", "-c", "sleep 1000 & echo $!; wait"], env=os.environ, cwd="/").wait()
"""


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with world(home) as made:
        yield made


def dies(place: Place, **environ: str) -> None:
    """A daemon from its start to its death by its own hand."""
    child = place.popen("serve", environ=environ)
    assert child.wait(DEADLINE_MS / 1000) == -signal.SIGKILL


def task(place: Place, task_id: str) -> dict[str, Any]:
    (found,) = place.lines("task", "show", task_id)
    return found


def follow(place: Place, task_id: str, *states: str) -> str:
    """Wait until the task enters one of the states, past or future; which."""
    with SyncClient(place.home) as client:
        session = client.task(task_id).session_id
        for event in client.follow(session, 0):
            if event.task_id == task_id and event.body.get("to") in states:
                return str(event.body["to"])
    raise AssertionError("the log ended")


def detached(place: Place, prompt: str, *words: str, **environ: Any) -> str:
    line = place.lines("run", prompt, "--detach", *words, **environ)[-1]
    return str(line["runId"]).replace("run_", "task_")


@contextlib.contextmanager
def ear(place: Place) -> Iterator[Callable[[], None]]:
    """A client; waits until the daemon tells it that it stops."""
    record = place.home.read_daemon_json()
    assert record is not None
    extension = {"_meta": {"goclaw": {"version": 1, "notifications": True}}}
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": 1, "clientCapabilities": extension},
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX) as link, link.makefile("rwb") as lines:
        link.settimeout(DEADLINE_MS / 1000)
        link.connect(record.socket)
        lines.write(json.dumps(hello).encode() + b"\n")
        lines.flush()
        assert b'"result"' in lines.readline()

        def hear() -> None:
            while b"_goclaw/shutdown" not in (line := lines.readline()):
                assert line, "the daemon went without a word"

        yield hear


@pytest.mark.req("Q-5", "Q-7", "G-3", "G-22")
def test_a_task_that_kills_the_daemon_is_given_up_and_redriven_with_whole_budgets(
    place: Place,
) -> None:
    brain = script_file(place.cwd, [{"say": "hello"}])
    child = place.serve(**KILLER)
    with SyncClient(place.home) as client:
        session = client.new_session(place.cwd, brain=brain).session_id
        client.submit("go", session=session, key="k")
        assert child.wait(DEADLINE_MS / 1000) == -signal.SIGKILL
    for _ in range(CRASH_BUDGET - 1):
        dies(place, **KILLER)
    # The next start gives it up, before a lane could take it once more.
    place.serve(**KILLER)
    (letter,) = place.lines("dlq", "list")
    name = letter["taskId"]
    assert (letter["reason"], letter["attempt"], letter["crashes"], letter["failures"]) == (
        "crashes_exhausted", CRASH_BUDGET, CRASH_BUDGET, 0,
    )  # fmt: skip
    (status,) = place.lines("status")
    assert status["recovered"]["states"] == {"DEAD_LETTER": 1}
    (told,) = place.lines("why", name)
    assert [one["command"] for one in told["because"]] == [f"goclaw dlq redrive {name}"]

    # Whole budgets: it may take the daemon down as often again.
    with SyncClient(place.home) as client:
        client.call("_goclaw/task/redrive", {"taskId": name})
    for _ in range(CRASH_BUDGET - 1):
        dies(place, **KILLER)
    place.serve(**KILLER)
    again = task(place, name)
    assert (again["state"], again["attempt"], again["crashes"]) == (
        "DEAD_LETTER", 2 * CRASH_BUDGET, CRASH_BUDGET,
    )  # fmt: skip

    place.end()
    place.serve()
    assert place.goclaw("dlq", "redrive", name).stdout == f"redriven: {name}\n"
    assert follow(place, name, "SUCCEEDED") == "SUCCEEDED"
    done = task(place, name)
    assert (done["attempt"], done["crashes"], done["failures"]) == (2 * CRASH_BUDGET + 1, 0, 0)
    history = [event["type"] for event in place.lines("dlq", "show", name)[0]["events"]]
    assert history.count("task.claimed") == 2 * CRASH_BUDGET + 1
    assert history.count("task.dead_letter") == 2


STOPS = {
    "SIGKILL": ({}, [signal.SIGKILL]),
    "SIGTERM, no time to drain": ({"GOCLAW_DAEMON_DRAIN_S": "0"}, [signal.SIGTERM]),
    "SIGTERM twice": ({}, [signal.SIGTERM, signal.SIGTERM]),
    "SIGINT twice": ({}, [signal.SIGINT, signal.SIGINT]),
    "SIGTERM, killed in its drain": (
        {"GOCLAW_FAULTS": "during_drain:kill"}, [signal.SIGTERM]
    ),
}  # fmt: skip


@pytest.mark.req("Q-5", "R-3", "G-4")
@pytest.mark.parametrize("how", STOPS)
def test_a_stop_keeps_all_that_a_kill_would_have_kept(place: Place, how: str) -> None:
    """Work in every state that is not terminal; what ended the daemon costs none of it anything."""
    environ, signals = STOPS[how]
    steps: dict[str, list[dict[str, Any]]] = {
        "slow": [{"say": "one"}, {"say": "two", "chunks": 2, "delayMs": 3_600_000}],
        "asks": [{"ask": "go on?"}, {"say": "asked"}],
        "fails": [
            {"fail": "busy", "retryable": True, "onAttempts": [1]}, {"say": "done"},
        ],
    }  # fmt: skip
    brains = {}
    for name, entry in steps.items():
        folder = place.cwd / name
        folder.mkdir()
        brains[name] = script_file(folder, entry)
    budgets = {
        "GOCLAW_QUEUE_CRASH_BUDGET": "2", "GOCLAW_QUEUE_BACKOFF_MS_MIN": "3600000",
        "GOCLAW_QUEUE_BACKOFF_MS_MAX": "3600000",
    }  # fmt: skip
    child = place.serve(**budgets, **environ)
    tasks = {name: detached(place, "go", "--brain", brain) for name, brain in brains.items()}
    session = str(task(place, tasks["slow"])["sessionId"])
    tasks["behind"] = detached(place, "go", "--session", session)
    tasks["asleep"] = detached(place, "/sleep 3600")
    before = {"slow": "RUNNING", "asks": "SUSPENDED", "fails": "RETRY_WAIT", "asleep": "SUSPENDED"}
    for name, state in before.items():
        follow(place, tasks[name], state)

    with ear(place) as hears_of_the_stop:
        child.send_signal(signals[0])
        for number in signals[1:]:
            hears_of_the_stop()  # two at once are one
            child.send_signal(number)
        child.wait(DEADLINE_MS / 1000)
    killed = child.returncode == -signal.SIGKILL
    assert killed == ("kill" in how.lower())
    place.serve(**budgets)
    after = {name: task(place, name_of) for name, name_of in tasks.items()}
    for name, state in (before | {"behind": "QUEUED"}).items():
        found = after[name]
        follow_on = {"RUNNING", "QUEUED"} if name == "slow" else {state}
        assert found["state"] in follow_on, (name, found)
        # Only a kill of the running one counts, and only for it.
        spent = int(killed) if name == "slow" else 0
        running = int(found["state"] == "RUNNING")
        assert found["crashes"] == spent + running, (name, found)
        assert found["failures"] == int(name == "fails"), (name, found)
    (approval,) = place.lines("approvals", "list")
    assert approval["taskId"] == tasks["asks"]
    place.goclaw("approvals", "answer", approval["approvalId"], "allow")
    assert follow(place, tasks["asks"], "SUCCEEDED", "FAILED") == "SUCCEEDED"


@pytest.mark.req("Q-5", "A-7")
def test_five_approvals_spend_no_attempt(place: Place) -> None:
    """With budgets of a single failure and a single crash, over stops and kills in between."""
    brain = script_file(place.cwd, [{"ask": f"question {n}?"} for n in range(5)])
    budgets = {"GOCLAW_QUEUE_MAX_ATTEMPTS": "1", "GOCLAW_QUEUE_CRASH_BUDGET": "1"}
    place.serve(**budgets)
    name = detached(place, "go", "--brain", brain)
    follow(place, name, "SUSPENDED")
    for number in range(5):
        (approval,) = wait_for_approval(place, name, number)
        if number == 1:
            place.end()
            place.serve(**budgets)
        elif number == 3:
            place.end(signal.SIGKILL)
            place.serve(**budgets)
        place.goclaw("approvals", "answer", approval["approvalId"], "allow")
    assert follow(place, name, "SUCCEEDED", "FAILED", "DEAD_LETTER") == "SUCCEEDED"
    done = task(place, name)
    assert (done["attempt"], done["failures"], done["crashes"]) == (6, 0, 0)


def wait_for_approval(place: Place, name: str, number: int) -> list[dict[str, Any]]:
    """The question of that number, when it is open and its task suspended."""
    with SyncClient(place.home) as client:
        session, asked = client.task(name).session_id, 0
        for event in client.follow(session, 0):
            if event.task_id == name and event.body.get("to") == "SUSPENDED":
                asked += 1
                if asked > number:
                    return [one.json for one in client.approvals()]
    raise AssertionError("the log ended")


@pytest.mark.req("Q-6")
@pytest.mark.skipif(sys.platform != "linux", reason="groups are recorded where there is /proc")
def test_children_of_the_dead_daemon_end_before_anything_is_reclaimed(place: Place) -> None:
    place.goclaw("status", code=1)
    task_id = detached(place, "hello", GOCLAW_FAULTS="after_claim:kill")
    folder = place.home.run / "children"
    mother = subprocess.Popen(
        [sys.executable, "-c", MOTHER, folder], stdout=subprocess.PIPE, text=True
    )
    assert mother.stdout is not None
    with mother.stdout as output:
        orphan = int(output.readline())
        mother.kill()
        mother.wait()
        os.kill(orphan, 0)
        # The first word of a start that goes to disk, long before a lease is reclaimed, kills it.
        dies(place, GOCLAW_FAULTS="before_commit:kill@1")
        assert select.select([output], [], [], 10)[0], "it lives on beside the next attempt"
        assert output.read() == ""
    assert not list(folder.iterdir())
    place.serve()
    assert follow(place, task_id, "SUCCEEDED", "FAILED") == "SUCCEEDED"
