"""`goclaw dlq list|show|redrive|drop`: the tasks that were given up.

Owns how they are shown. Not in here: what a redrive or a drop does (engine).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from goclaw.cli import events, show
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import SystemClock, wall_ms_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from goclaw.client import Moved, SyncClient, TaskInfo

__all__ = ["drop", "list_letters", "redrive", "show_letter"]


_HEAD: Final = (
    "task", "reason", "fingerprint", "attempts", "failures", "crashes", "work", "age", "error",
)  # fmt: skip


def list_letters(options: argparse.Namespace) -> int:
    """Dead letters, newest first."""
    with Place(home_of(options)) as client:
        letters = client.dead_letters(options.fingerprint)
    if options.json:
        for letter in letters:
            show.json_line(letter.json)
        return 0
    now = SystemClock().wall_ms()
    show.table(
        (
            "task",
            "reason",
            "fingerprint",
            "attempts",
            "failures",
            "crashes",
            "work",
            "age",
            "error",
        ),
        (_row(letter, now) for letter in letters),
    )
    return 0


def _row(letter: TaskInfo, now: int) -> tuple[object, ...]:
    value = letter.json
    error = value.get("error") or {}
    return (
        letter.task_id, letter.reason, value.get("fingerprint"), letter.attempt,
        value.get("failures"), value.get("crashes"), value.get("work"),
        _age(now - wall_ms_of(str(value["updatedAt"]))),
        f"{error.get('code')}: {error.get('message')}" if error else None,
    )  # fmt: skip


def _age(ms: int) -> str:
    """In its two largest units."""
    rest = max(0, ms) // 1000
    parts: list[str] = []
    for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, seconds)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def show_letter(options: argparse.Namespace) -> int:
    """One task and its history."""
    with Place(home_of(options)) as client:
        task = client.task(options.task)
        history = [
            event for event in client.history(task.session_id) if event.task_id == task.task_id
        ]
    if options.json:
        show.json_line({**task.json, "events": [event.to_json() for event in history]})
        return 0
    show.pairs(task.json)
    print()
    for event in history:
        print(events.line(event))
    return 0


def redrive(options: argparse.Namespace) -> int:
    """Put tasks back into the queue."""
    home = home_of(options)
    code = _move(options, "redriven", lambda client: client.redrive)
    if code == 0 and not options.dry_run and home.read_daemon_json() is None:
        show.tell("No daemon is running: `goclaw serve`, or a run in its session, goes on with it.")
    return code


def drop(options: argparse.Namespace) -> int:
    """Drop dead letters."""
    return _move(options, "dropped", lambda client: client.drop)


def _move(
    options: argparse.Namespace, done: str, verb: Callable[[SyncClient], Callable[..., Moved]]
) -> int:
    """0 when every task was moved; 1 when one was left, or there was none."""
    with Place(home_of(options)) as client:
        moved = verb(client)(options.task, fingerprint=options.fingerprint, dry_run=options.dry_run)
    if options.json:
        show.json_line(moved.to_json())
    else:
        for task_id in moved.tasks:
            print(f"{'would be ' if options.dry_run else ''}{done}: {task_id}")
    for task_id, code, why in moved.skipped:
        show.tell(show.one_line(f"{task_id} stays as it is ({code}): {why}"))
    if not moved.tasks and not moved.skipped:
        show.tell("No dead letter has that fingerprint: `goclaw dlq list` names them.")
    return 0 if moved.tasks and not moved.skipped else 1
