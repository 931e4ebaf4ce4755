"""`goclaw stop` and `goclaw resume`: the emergency stop, durable, with or without a daemon.

Owns how it is said. Not in here: what stands still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["resume", "stop"]


def stop(options: argparse.Namespace) -> int:
    """Stop effects, or everything, until `goclaw resume`."""
    params = {"level": "all" if options.all else "effects", "why": options.why}
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/admin/stop", params)
    if options.json:
        show.json_line(found)
    else:
        print(f"stopped: {found['level']}; `goclaw resume` ends it")
    return 0


def resume(options: argparse.Namespace) -> int:
    """End the emergency stop; what it held goes on."""
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/admin/resume", {})
    if options.json:
        show.json_line(found)
    elif found["resumed"]:
        print(f"resumed: {found['tasks']} tasks that it held go on")
    else:
        print("nothing was stopped")
    return 0
