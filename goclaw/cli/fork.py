"""`goclaw fork RUN --at EVENT`: branch a run off, and ask before it acts (E-7).

Owns how that is shown. Not in here: what a fork takes along and what it is asked about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import SystemClock

if TYPE_CHECKING:
    import argparse

__all__ = ["fork"]


def fork(options: argparse.Namespace) -> int:
    """Branch it off; the fork runs as soon as a lane is free."""
    key = SystemClock().new_id("key")  # asked again after a lost connection: still one fork
    with Place(home_of(options)) as client:
        found = client.call(
            "_goclaw/admin/fork",
            {"runId": options.run, "at": options.at, "idempotencyKey": key},
        )
    if options.json:
        show.json_line(found)
        return 0
    show.pairs(
        {
            "session": found["sessionId"],
            "run": found["runId"],
            "forked from": f"{found['parentRunId']} at event {found['parentEventId']}",
            "effects taken along": found["stubbed"],
        }
    )
    print(
        "What it does from here on is asked before it acts: "
        f"goclaw approvals list --session {found['sessionId']}"
    )
    return 0
