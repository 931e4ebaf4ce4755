"""`goclaw backup create|verify|list` and `goclaw restore`.

Owns the choice between the daemon that has the home and the home itself, and how it is shown. Not
in here: what a backup is (``ops/backup.py``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import home_of, prepare
from goclaw.client.blocking import SyncClient
from goclaw.core.clock import SystemClock
from goclaw.core.errors import DaemonGone
from goclaw.core.faults import arm
from goclaw.ops import backup as ops

if TYPE_CHECKING:
    import argparse

__all__ = ["create", "list_backups", "restore", "verify"]


def create(options: argparse.Namespace) -> int:
    """Make one: by the daemon, else here, holding the home."""
    home = home_of(options)
    try:
        with SyncClient(home) as client:
            made = client.call("_goclaw/admin/backup", {"verb": "create"})
    except DaemonGone:
        prepare(home)
        with home.lock():
            made = ops.create(home, SystemClock().wall_ms()).to_json()
    _show_one(options, made, "backed up")
    return 0


def verify(options: argparse.Namespace) -> int:
    """0 when it is whole; a broken one is an error that says why."""
    # Files that nobody writes to: no daemon is needed, and a damaged one is read here, not there.
    _show_one(options, ops.verify(home_of(options), options.name).to_json(), "whole")
    return 0


def list_backups(options: argparse.Namespace) -> int:
    """Newest first."""
    found = ops.listed(home_of(options))
    if options.json:
        for one in found:
            show.json_line(one.to_json())
        return 0
    show.table(
        ("name", "bytes", "goclaw", "schema"),
        ((one.name, one.size, one.version, one.schema) for one in found),
    )
    return 0


def restore(options: argparse.Namespace) -> int:
    """Refused while anybody has the home."""
    home = home_of(options)
    prepare(home)
    arm(os.environ)
    with home.lock():
        done = ops.restore(home, options.name, SystemClock().wall_ms(), settings=options.settings)
    kept = None if done.kept is None else str(done.kept)
    if options.json:
        show.json_line({"backup": done.backup.to_json(), "kept": kept})
        return 0
    print(f"restored: {done.backup.name}")
    if kept is not None:
        print(f"the database it replaced: {kept}")
    return 0


def _show_one(options: argparse.Namespace, backup: dict[str, Any], done: str) -> None:
    if options.json:
        show.json_line(backup)
    else:
        print(f"{done}: {backup['name']} ({backup['bytes']} bytes, {backup['path']})")
