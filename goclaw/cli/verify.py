"""`goclaw verify`: what the log proves of its own sessions and of every state that follows from it.

Owns how the verdict is shown. Not in here: the walk (``ops/verify.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["verify"]


def verify(options: argparse.Namespace) -> int:
    """0 when everything is as the log says, 1 when something is not."""
    from goclaw.ops import verify as ops
    from goclaw.store import Archive

    archive = Archive(home_of(options).root)
    try:
        found = ops.verify(archive, options.session)
    finally:
        archive.close()
    told = found.to_json()
    if options.json:
        show.json_line(told)
        return 0 if found.is_ok else 1
    for fault in told["faults"]:
        where = f"event {fault['eventId']} of " if fault["eventId"] else ""
        print(show.one_line(f"{where}{fault['sessionId']}: {fault['what']}"))
    if told["more"]:
        print("and more")
    if found.is_ok:
        rest = f"; {found.partial} without their first events" if found.partial else ""
        print(f"{found.events} events of {found.sessions} sessions, every state as they say{rest}")
    return 0 if found.is_ok else 1
