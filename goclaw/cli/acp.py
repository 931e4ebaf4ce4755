"""`goclaw acp`: the bridge that an editor starts.

Owns nothing but the choice of its parts. Not in here: the bridge (``bridges/acp.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.bridges.acp import run
from goclaw.cli.place import brain_name, home_of
from goclaw.core.clock import SystemClock

if TYPE_CHECKING:
    import argparse

__all__ = ["acp"]


def acp(options: argparse.Namespace) -> int:
    """Serve one editor on stdin and stdout."""
    return run(home_of(options), SystemClock(), brain=brain_name(options.brain))
