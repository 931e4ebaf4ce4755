"""`goclaw approvals list|answer`: the questions that wait for a person.

Owns how they are shown. Not in here: who may answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["answer", "list_approvals"]


def list_approvals(options: argparse.Namespace) -> int:
    """Open questions, oldest first."""
    with Place(home_of(options)) as client:
        waiting = client.approvals(options.session)
    if options.json:
        for approval in waiting:
            show.json_line(approval.json)
        return 0
    show.table(
        ("approval", "question", "why", "options", "session"),
        (
            (
                one.approval_id,
                one.title,
                one.reason,
                " ".join(option_id for option_id, _name, _kind in one.options),
                one.session_id,
            )
            for one in waiting
        ),
    )
    return 0


def answer(options: argparse.Namespace) -> int:
    """Answer one."""
    home = home_of(options)
    with Place(home) as client:
        outcome = client.resolve(options.approval, options.option)
    print(f"answered: {outcome}")
    if home.read_daemon_json() is None:
        show.tell("No daemon is running: `goclaw serve`, or a run in its session, goes on with it.")
    return 0
