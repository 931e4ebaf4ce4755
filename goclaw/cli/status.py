"""`goclaw status`: is there a daemon, and what does it do.

Owns how that is shown. Not in here: the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.client.blocking import SyncClient
from goclaw.core.errors import DaemonGone

if TYPE_CHECKING:
    import argparse

__all__ = ["status"]


def status(options: argparse.Namespace) -> int:
    """0 with a daemon that is ready, 1 without."""
    home = home_of(options)
    try:
        with SyncClient(home) as client:
            found = client.status()
    except DaemonGone:
        if options.json:
            show.json_line({"ready": False})
        else:
            print(f"No daemon is running on {home.root}. Start one with `goclaw serve`.")
        return 1
    if options.json:
        show.json_line(found.json)
        return 0
    value = found.json
    fairness = value["fairness"]
    busy = {state: count for state, count in value["tasks"].items() if count}
    stopped = value.get("stopped")
    if stopped is not None:
        why = f": {stopped['why']}" if stopped["why"] else ""
        show.tell(
            f"EMERGENCY STOP ({stopped['level']}) since {stopped['at']}{why}; "
            "`goclaw resume` ends it"
        )
    show.pairs(
        {
            "home": home.root,
            "ready": "yes" if found.ready else "no",
            "version": f"{found.version} ({'native' if found.native else 'pure Python'})",
            "lanes": f"{value['lanes']['busy']} of {value['lanes']['size']} busy",
            "tasks": ", ".join(f"{count} {state}" for state, count in busy.items()) or "none",
            "last start": _recovered(value["recovered"]),
            "sessions": value["sessions"],
            "connections": value["connections"],
            "policy": value["policyVersion"][:12],
            "synchronous": value["synchronous"],
            "database": f"{value['databaseBytes']} bytes",
            "fairness": (
                f"{fairness['serviceSkew']} turns, {fairness['maxWaitSkew']} claims apart; "
                f"overtaken by {fairness['longestOvertaking']} (last {fairness['claims']} claims)"
            ),
        }
    )
    return 0 if found.ready else 1


def _recovered(value: dict[str, Any]) -> str:
    """What the start of this daemon found of the one before it (Q-15)."""
    if value["eventId"] is None:
        return "nothing was under way"
    count = value["count"]
    states = ", ".join(f"{number} {state}" for state, number in sorted(value["states"].items()))
    tasks = f"{count} task{'' if count == 1 else 's'} under way"
    return f"{tasks}{f': {states}' if states else ''}; see goclaw events _system"
