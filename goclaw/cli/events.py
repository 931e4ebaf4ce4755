"""`goclaw events SESSION`: the log of a session, page by page or as it happens.

Owns how an event is shown to people. Not in here: what programs are shown (``client/records.py``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import rfc3339

if TYPE_CHECKING:
    import argparse

    from goclaw.client.records import Event

__all__ = ["events", "line"]


def events(options: argparse.Namespace) -> int:
    """Print events after ``--from``; with ``--follow`` until the reader leaves."""
    with Place(home_of(options)) as client:
        found = (
            client.follow(options.session, options.from_event)
            if options.follow
            else client.history(options.session, options.from_event)
        )
        for event in found:
            if options.json:
                show.json_line(event.to_json())
            else:
                print(line(event), flush=options.follow)
    return 0


def line(event: Event) -> str:
    """An event as people are shown it."""
    body = dict(event.body)
    name = event.type if event.type != "update" else str(body.pop("sessionUpdate", "update"))
    shown = {key: value for key, value in body.items() if value is not None}
    text = show.one_line(json.dumps(shown, ensure_ascii=False))
    at = rfc3339(event.at_ms)
    return (
        f"{event.event_id:>6}  {at}  {name:<24}  {text if len(text) <= 160 else text[:157] + '...'}"
    )
