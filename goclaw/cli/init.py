"""`goclaw init`: the home, before the first run needs it (U-5).

Owns what is said. Not in here: what is made (``core/home.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.core.clock import SystemClock

if TYPE_CHECKING:
    import argparse

__all__ = ["init"]


def init(options: argparse.Namespace) -> int:
    """Make what is missing; idempotent."""
    from goclaw.policy import default

    home = home_of(options)
    made = home.ensure(default.TEXT, SystemClock().random_bytes)
    if options.json:
        show.json_line({"home": str(home.root), "made": made})
        return 0
    for line in made or [f"{home.root} has all it needs"]:
        print(line)
    print(f"settings: {home.config}; policy: {home.policy}; then: goclaw doctor")
    return 0
