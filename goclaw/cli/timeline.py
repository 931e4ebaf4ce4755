"""`goclaw timeline RUN`: what a run did, when, and how long each step took.

Owns how it is shown. Not in here: the fold (``ops/timeline.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["timeline"]


def timeline(options: argparse.Namespace) -> int:
    """A line for each entry; durations in milliseconds."""
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/admin/timeline", {"runId": options.run})
    if options.json:
        show.json_line(found)
        return 0
    for entry in found["entries"]:
        took = entry.get("durationMs")
        text = f"{entry['kind']:<10}  {entry['what']}"
        if entry.get("outcome"):
            text += f"  -> {entry['outcome']}"
        print(
            f"{entry['sinceMs']:>9} ms  {'' if took is None else f'{took} ms':>10}  "
            + show.one_line(text)
        )
    if not found["whole"]:
        show.tell("Older decisions are in `goclaw audit show`.")
    return 0
