"""`goclaw acp`: the bridge that an editor starts.

Owns nothing but the choice of its parts. Not in here: the bridge (``bridges/acp.py``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from goclaw.bridges.acp import run
from goclaw.cli.place import brain_name, home_of
from goclaw.core.clock import SystemClock
from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["acp"]


def acp(options: argparse.Namespace) -> int:
    """Serve one editor on stdin and stdout. UsageError when stdout was closed from the start."""
    if sys.__stdout__ is None:
        raise UsageError(
            "stdout is closed, and whoever started this reads its answers there.",
            hint="Start it with a pipe or a file as its stdout.",
        )
    return run(home_of(options), SystemClock(), brain=brain_name(options.brain))
