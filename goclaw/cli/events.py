"""`goclaw events SESSION`: the log of a session, page by page or as it happens.

Owns how an event is shown to people. Not in here: what programs are shown (``client/records.py``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import rfc3339

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

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
    """An event as people are shown it; a recovery report has a line for each task."""
    if event.type == "recovery.report":
        return "\n".join((_begun(event, _counted(event.body)), *_recovered(event.body)))
    body = dict(event.body)
    name = event.type if event.type != "update" else str(body.pop("sessionUpdate", "update"))
    shown = {key: value for key, value in body.items() if value is not None}
    text = show.one_line(json.dumps(shown, ensure_ascii=False))
    return _begun(event, text if len(text) <= 160 else text[:157] + "...", name)


def _begun(event: Event, text: str, name: str = "") -> str:
    return f"{event.event_id:>6}  {rfc3339(event.at_ms)}  {name or event.type:<24}  {text}"


def _counted(body: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(body["states"].items()))
    count = body["count"]
    return f"{count} task{'' if count == 1 else 's'} under way{f': {states}' if states else ''}"


def _recovered(body: dict[str, Any]) -> Iterator[str]:
    """What became of each task that the daemon before left behind, and where that stands."""
    for entry in body["tasks"]:
        given_up = entry["state"] == "DEAD_LETTER"
        effects = f"{entry['kept']} kept, {entry['repeated']} repeated, {entry['unknown']} unknown"
        yield show.one_line(
            f"        {entry['taskId']}  attempt {entry['attempt']} was lost, "
            f"{'given up' if given_up else entry['state']}; effects: {effects}; event "
            f"{entry['eventId']} of {entry['sessionId']}"
        )
    if body["count"] > len(body["tasks"]):
        yield f"        and {body['count'] - len(body['tasks'])} more: goclaw task list"
    if body.get("fence"):
        yield show.one_line(f"        fence: {json.dumps(body['fence'], ensure_ascii=False)}")
