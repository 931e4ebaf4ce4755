"""`goclaw upgrade --rehearse`: before a new goclaw gets the home (S-8).

Owns how the findings are shown. Not in here: the rehearsal (``ops/rehearsal.py``), and the upgrade
itself, which is the next start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.cli.replay import runner_of

if TYPE_CHECKING:
    import argparse

__all__ = ["upgrade"]


def upgrade(options: argparse.Namespace) -> int:
    """0 when the database can be migrated and every parked run goes on; the home stays as it is."""
    from goclaw.brains import REPEATABLE
    from goclaw.core.home import policy_text
    from goclaw.ops.rehearsal import rehearse
    from goclaw.policy.document import load
    from goclaw.policy.redact import Redactor
    from goclaw.protocol.methods import NAMES

    home = home_of(options)
    if home.policy.exists():  # refused here as a start would
        load(policy_text(home.policy), home=os.path.realpath(home.root), methods=NAMES)
    found = rehearse(home, runner_of(home), repeatable=REPEATABLE, cleaner=Redactor())
    if options.json:
        show.json_line(found.to_json())
        return 0 if found.is_ok else 1
    step = f"schema {found.before}"
    if found.after > found.before:
        step += f" to {found.after}; a start backs the database up before it"
    print(f"the database can be used: {step}")
    for one in found.runs:
        far = f"{one.state}, {one.effects} effects"
        print(show.one_line(f"{one.verdict:<9} {one.run_id} ({far}): {one.detail}"))
    if found.more:
        print(f"more runs than {len(found.runs)} are parked; these are the newest")
    return 0 if found.is_ok else 1
