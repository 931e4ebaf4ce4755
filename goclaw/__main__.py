"""The process of the command line: ``goclaw`` and ``python -m goclaw``.

Owns Ctrl-C while there is nothing to undo yet and when there is nothing left to do: Python would
show where it was. Not in here: the verbs (``cli/``).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final

__all__ = ["run"]

_INTERRUPTED: Final = 130


def _leave(_number: int, _frame: Any) -> None:
    os._exit(_INTERRUPTED)


# Before the imports below, which take longer than some people's patience. Who starts a program
# that is to ignore Ctrl-C has said so to the kernel.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

from goclaw.cli import main  # noqa: E402


def _ready() -> None:
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run() -> int:
    """Carry out the command line of this process; its exit code."""
    code = main(ready=_ready)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    return code


if __name__ == "__main__":
    sys.exit(run())
