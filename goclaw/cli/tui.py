"""`goclaw tui`: the terminal UI on the daemon of the home, started where there is none.

Owns the check that there is a terminal and the library. Not in here: the screens (``goclaw/tui``).
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from goclaw.cli.place import home_of, prepare
from goclaw.client import Client
from goclaw.core.errors import UsageError
from goclaw.core.files import absolute

if TYPE_CHECKING:
    import argparse

    from goclaw.core.home import Home

__all__ = ["tui"]


def tui(options: argparse.Namespace) -> int:
    """Until `q`."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "The terminal UI needs a terminal.", hint="In a pipe: `goclaw run`, `goclaw events`."
        )
    try:
        import textual  # noqa: F401
    except ImportError:
        raise UsageError(
            "The terminal UI needs the package textual.", hint="pip install 'goclaw[tui]'"
        ) from None
    home = home_of(options)
    prepare(home)
    asyncio.run(_run(home, options.session))
    return 0


async def _run(home: Home, session: str | None) -> None:
    from goclaw.tui import GoclawApp

    async with Client(home, start=True, patient=True) as client:
        await GoclawApp(client, absolute(), session=session).run_async()
