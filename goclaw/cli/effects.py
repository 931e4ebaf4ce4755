"""`goclaw effects list|probe|settle|redo`: what a task did, and what nobody knows about it.

Owns how effects are shown, and the words that move one. Not in here: what each word means (engine).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from goclaw.client import EffectInfo, SyncClient, TaskInfo
    from goclaw.core.home import Home

__all__ = ["list_effects", "probe", "redo", "settle", "tell_unknown"]


def list_effects(options: argparse.Namespace) -> int:
    """The effects of a task, in order."""
    with Place(home_of(options)) as client:
        effects = client.effects(options.task)
    if options.json:
        for effect in effects:
            show.json_line(effect.json)
        return 0
    show.table(
        ("effect", "name", "class", "state", "key", "at"),
        (
            (one.ordinal, one.name, one.effect_class, one.state, one.json.get("idempotencyKey"),
             one.json.get("at"))
            for one in effects
        ),
    )  # fmt: skip
    return 0


def settle(options: argparse.Namespace) -> int:
    """Say what became of one."""
    result = None
    if options.result is not None:
        try:
            result = json.loads(options.result)
        except (ValueError, RecursionError):
            raise UsageError(
                "The result is no JSON.", hint="""Quote a text twice: --result '"sent"'."""
            ) from None
    return _moved(
        options, lambda client: client.settle(options.task, options.effect, options.outcome, result)
    )


def redo(options: argparse.Namespace) -> int:
    """Send one again."""
    return _moved(options, lambda client: client.redo(options.task, options.effect))


def probe(options: argparse.Namespace) -> int:
    """Ask the tool of one."""
    return _moved(options, lambda client: client.probe(options.task, options.effect))


def tell_unknown(client: SyncClient, task: TaskInfo) -> None:
    """Say what moves a task that waits because nobody knows whether an effect happened."""
    if (task.state, task.reason) != ("SUSPENDED", "effect_unknown"):
        return
    for effect in client.effects(task.task_id):
        if effect.state != "unknown":
            continue
        words = f"{task.task_id} {effect.ordinal}"
        show.tell(f"Nobody knows whether effect {effect.ordinal} ({effect.name}) happened. Next:")
        if effect.effect_class == "probeable":
            show.tell(f"  goclaw effects probe {words}")
        show.tell(f"  goclaw effects settle {words} done|not_done|fail")


def _moved(options: argparse.Namespace, move: Callable[[SyncClient], EffectInfo]) -> int:
    home = home_of(options)
    with Place(home) as client:
        effect = move(client)
        task = client.task(options.task)
        if options.json:
            show.json_line(effect.json)
        else:
            shown = show.one_line(effect.name)
            print(f"effect {effect.ordinal} ({shown}) is {effect.state}; the task is {task.state}")
        tell_unknown(client, task)
    _tell_idle(home, task)
    return 0


def _tell_idle(home: Home, task: TaskInfo) -> None:
    if task.state == "QUEUED" and home.read_daemon_json() is None:
        show.tell("No daemon is running: `goclaw serve`, or a run in its session, goes on with it.")
