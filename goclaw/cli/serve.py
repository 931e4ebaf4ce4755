"""`goclaw serve`: the daemon in the foreground.

Owns the way from options to a configuration. Not in here: the daemon.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from goclaw import daemon
from goclaw.cli.place import brain_name, home_of
from goclaw.core import config

if TYPE_CHECKING:
    import argparse

__all__ = ["serve"]


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    home = home_of(options)
    if options.idle_exit:
        with contextlib.suppress(FileNotFoundError):
            os.chdir(home.root)  # not in the way of whoever wants to unmount the editor's place
    given = {
        "queue.lanes": options.lanes,
        "listen.address": options.listen,
        "listen.beyond_loopback": options.beyond_loopback,
        "brain.default": brain_name(options.brain),
    }
    chosen = {name: text for name, text in given.items() if text is not None}
    settings = config.load(home.root, os.environ, chosen)
    return daemon.serve(home, settings, idle_exit=options.idle_exit)
