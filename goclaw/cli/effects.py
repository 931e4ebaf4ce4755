"""`goclaw effects list|probe|settle|redo`: what a task did, and what nobody knows about it.

Owns how effects are shown, and the words that move one. Not in here: what each word means (engine).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from goclaw.cli import show, why
from goclaw.cli.place import Place, home_of
from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from goclaw.client import EffectInfo, SyncClient

__all__ = ["list_effects", "probe", "redo", "settle"]


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


def _moved(options: argparse.Namespace, move: Callable[[SyncClient], EffectInfo]) -> int:
    with Place(home_of(options)) as client:
        effect = move(client)
        task = client.task(options.task)
        if options.json:
            show.json_line(effect.json)
        else:
            shown = show.one_line(effect.name)
            print(f"effect {effect.ordinal} ({shown}) is {effect.state}; the task is {task.state}")
        why.tell(client, task)
    return 0
