"""`goclaw approvals list|answer`: the questions that wait for a person.

Owns how they are shown. Not in here: who may answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["answer", "away", "grant", "grants", "list_approvals", "revoke"]


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


def grant(options: argparse.Namespace) -> int:
    """Say yes beforehand: such calls, this long, at most so many."""
    params = {
        "tool": options.tool, "sessionId": options.session, "resources": options.resource,
        "digests": options.digest, "uses": options.uses, "forMs": options.span,
    }  # fmt: skip
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/approvals/grant", params)
    if options.json:
        show.json_line(found)
    else:
        print(found["grantId"])
    return 0


def grants(options: argparse.Namespace) -> int:
    """What is allowed beforehand, by tool."""
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/approvals/grants", {})["grants"]
    if options.json:
        for one in found:
            show.json_line(one)
        return 0
    show.table(
        ("grant", "tool", "left", "until", "resources", "session", "by"),
        (
            (
                one["grantId"],
                one["tool"],
                one["usesLeft"],
                one["until"],
                " ".join(one["resources"]) or "any",
                one["sessionId"] or "any",
                one["by"],
            )
            for one in found
        ),
    )
    return 0


def revoke(options: argparse.Namespace) -> int:
    """Take a grant back."""
    with Place(home_of(options)) as client:
        client.call("_goclaw/approvals/revoke", {"grantId": options.grant})
    print("revoked")
    return 0


def away(options: argparse.Namespace) -> int:
    """Questions wait on while nobody is there, or expire again."""
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/approvals/away", {"away": options.state == "on"})
    print("questions wait until they are answered" if found["away"] else "questions expire again")
    return 0
