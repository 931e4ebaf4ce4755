"""`goclaw task list|show|cancel|signal` and `goclaw cancel`.

Owns how tasks and receipts are shown. Not in here: what they are.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from goclaw.cli import show, why
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import SystemClock
from goclaw.core.errors import UsageError
from goclaw.core.states import State

if TYPE_CHECKING:
    import argparse

__all__ = ["cancel", "list_tasks", "show_task", "signal"]


def list_tasks(options: argparse.Namespace) -> int:
    """All tasks, newest first."""
    states = [state.upper() for state in options.state]
    for state in states:
        if state not in set(State):
            raise UsageError(f"There is no state {state}.", hint=f"States: {', '.join(State)}.")
    with Place(home_of(options)) as client:
        tasks = client.tasks(session=options.session, states=states)
    if options.json:
        for task in tasks:
            show.json_line(task.json)
        return 0
    show.table(
        ("task", "state", "reason", "attempt", "session", "updated"),
        (
            (t.task_id, t.state, t.reason, t.attempt, t.session_id, t.json.get("updatedAt"))
            for t in tasks
        ),
    )
    return 0


def show_task(options: argparse.Namespace) -> int:
    """One task."""
    with Place(home_of(options)) as client:
        task = client.task(options.task)
        if options.json:
            show.json_line(task.json)
        else:
            show.pairs(task.json)
            why.tell(client, task)
    return 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel a task or a run; the receipt says what that means."""
    with Place(home_of(options)) as client:
        receipt = client.cancel(options.id)
    if options.json:
        show.json_line({"outcome": receipt.outcome, "effectsDone": list(receipt.effects_done)})
        return 0
    done = ", ".join(show.one_line(effect) for effect in receipt.effects_done) or "none"
    print(f"{receipt.outcome.replace('_', ' ')}; effects already done: {done}")
    return 0


def signal(options: argparse.Namespace) -> int:
    """Send a run the signal that it waits for, or will; the first of a name counts."""
    try:
        payload = json.loads(options.payload)
    except (ValueError, RecursionError):
        raise UsageError(
            "The payload is no JSON.", hint="""Quote a text twice: --payload '"go"'."""
        ) from None
    key = SystemClock().new_id("key")  # asked again after a lost connection: still one signal
    said = {"runId": options.run, "name": options.name, "payload": payload, "idempotencyKey": key}
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/run/signal", said)
    if options.json:
        show.json_line(found)
    elif found["duplicate"]:
        print(f"that signal came before, at event {found['eventId']}; it counts")
    else:
        print(f"signalled, at event {found['eventId']}")
    return 0
