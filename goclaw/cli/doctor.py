"""`goclaw doctor`: is everything as it should be, and if not, what to do.

Owns how the findings are shown. Not in here: the checks (``ops/doctor.py``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from goclaw import daemon
from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.client.reach import dial
from goclaw.core.clock import SystemClock
from goclaw.ops import doctor as ops

if TYPE_CHECKING:
    import argparse

__all__ = ["doctor"]


def doctor(options: argparse.Namespace) -> int:
    """0 when nothing fails; a warning is no failure."""
    home = home_of(options)
    connection = dial(home)
    if connection is not None:
        connection.close()
    patient = ops.Patient(
        home, os.environ, SystemClock(), daemon.check_config, is_served=connection is not None
    )
    checks = ops.examine(patient)
    is_ok = all(check.status != "fail" for check in checks)
    if options.json:
        show.json_line({"ok": is_ok, "checks": [check.to_json() for check in checks]})
        return 0 if is_ok else 1
    for check in checks:
        print(show.one_line(f"{check.status:<5} {check.name:<12} {check.detail}"))
        if check.fix:
            print(show.one_line(f"{'':<18} -> {check.fix}"))
    return 0 if is_ok else 1
