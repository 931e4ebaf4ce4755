"""`goclaw why` and what `task show` makes of it, on a real daemon and without one.

Owns nothing but the tests. Not in here: the reasons one by one (test_engine_why.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World as Place
from roof_support import script_file, world

from goclaw.client import SyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("Q-14", "U-1")


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with world(home) as made:
        yield made


def detached(place: Place, prompt: str, *words: str) -> dict[str, Any]:
    """A run that is left to the daemon: its ids."""
    lines = place.lines("run", prompt, "--detach", *words)
    return lines[-1]


def task_of(run: dict[str, Any]) -> str:
    return str(run["runId"]).replace("run_", "task_")


def until(place: Place, task: str, state: str) -> None:
    """Follow the session's events until the task is in that state."""
    with SyncClient(place.home) as client:
        session = client.task(task).session_id
        for event in client.follow(session, 0):
            if event.task_id == task and event.body.get("to") == state:
                return


def test_a_chain_of_reasons_down_to_the_command_that_moves_it(place: Place) -> None:
    brain = script_file(place.cwd, [{"ask": "go on?"}])
    place.serve()
    asking = detached(place, "go", "--brain", brain)
    until(place, task_of(asking), "SUSPENDED")
    behind = detached(place, "go", "--session", asking["sessionId"])
    shown = place.goclaw("why", task_of(behind)).stdout.splitlines()
    (approval,) = place.lines("approvals", "list")
    command = f"goclaw approvals answer {approval['approvalId']} allow|reject"
    assert shown[0] == "QUEUED"
    assert shown[1] == (
        "  It comes after 1 task in its session, the first of which, "
        f"{task_of(asking)}, is SUSPENDED."
    )
    assert shown[2].startswith(f"  Task {task_of(asking)} waits for an answer to go on?")
    assert shown[3] == f"    {command}"
    assert len(shown) == 4
    (whole,) = place.lines("why", task_of(behind))
    assert [one["code"] for one in whole["because"]] == ["session_turn", "approval"]
    told = place.goclaw("task", "show", task_of(behind))
    assert command in told.stderr
    assert command not in told.stdout
    # And it is the command that moves it.
    place.goclaw(*command.replace("allow|reject", "allow").split()[1:])
    until(place, task_of(asking), "SUCCEEDED")
    assert place.goclaw("task", "show", task_of(asking)).stderr == ""
    assert place.goclaw("why", task_of(asking)).stdout == "SUCCEEDED\n  It has ended well.\n"


def test_what_is_missing_is_named_with_a_daemon_and_without(place: Place) -> None:
    place.serve()
    asleep = detached(place, "/sleep 3600")
    until(place, task_of(asleep), "SUSPENDED")
    with SyncClient(place.home) as client:
        other = client.new_session(place.cwd).session_id
        pool = client.call("_goclaw/task/submit", {"sessionId": other, "pool": "p", "payload": 1})
    (found,) = place.lines("why", pool["taskId"])
    assert found["because"][0]["command"] == "goclaw worker --pool p MODULE:FUNCTION"
    place.end()
    (found,) = place.lines("why", task_of(asleep))
    assert [one["code"] for one in found["because"]] == ["sleep"]
    assert found["because"][0]["until"] in found["because"][0]["text"]
    assert "no task task_none" in place.goclaw("why", "task_none", code=1).stderr


def test_a_task_left_queued_names_the_daemon_it_needs(place: Place) -> None:
    brain = script_file(place.cwd, [{"say": "hello"}])
    place.serve()
    # Killed as soon as it is on disk: it stays QUEUED, and nobody runs.
    place.end()
    child = place.serve(GOCLAW_FAULTS="after_submit:kill")
    run = place.popen("run", "go", "--brain", brain, "--detach")
    child.wait(30)
    run.kill()
    (task,) = place.lines("task", "list")
    assert task["state"] == "QUEUED"
    (found,) = place.lines("why", task["taskId"])
    assert found["because"][0]["code"] == "no_daemon"
    assert "goclaw serve" in place.goclaw("task", "show", task["taskId"]).stderr
    assert found["because"][0]["command"] == "goclaw serve"
    place.serve()
    until(place, task["taskId"], "SUCCEEDED")


def test_the_worker_that_a_reason_names_moves_the_task(place: Place) -> None:
    (place.cwd / "jobs.py").write_text("def handle(context):\n    return 1\n", "utf-8")
    place.serve()
    with SyncClient(place.home) as client:
        session = client.new_session(place.cwd).session_id
        said = {"sessionId": session, "pool": "p", "payload": 1}
        task = client.call("_goclaw/task/submit", said)["taskId"]
    (found,) = place.lines("why", task)
    command = found["because"][0]["command"].replace("MODULE:FUNCTION", "jobs:handle")
    place.popen(*command.split()[1:])
    until(place, task, "SUCCEEDED")


@pytest.mark.req("E-9")
def test_a_run_is_sent_a_signal(place: Place) -> None:
    place.serve()
    run = detached(place, "/sleep 3600")["runId"]
    first = place.goclaw("task", "signal", run, "go on", "--payload", '{"a": 1}').stdout
    assert first.startswith("signalled, at event ")
    (again,) = place.lines("task", "signal", run, "go on")
    assert again == {"eventId": int(first.split()[-1]), "duplicate": True}
    assert "it counts" in place.goclaw("task", "signal", run, "go on").stdout
    assert "no JSON" in place.goclaw("task", "signal", run, "x", "--payload", "go", code=2).stderr
    assert "run_none" in place.goclaw("task", "signal", "run_none", "x", code=1).stderr
