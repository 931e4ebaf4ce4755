"""`goclaw worker`: carry out the tasks of a pool with a function of one's own.

Owns the way from MODULE:FUNCTION to a worker. Not in here: the worker.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from goclaw.cli.place import home_of
from goclaw.cli.show import tell
from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["work"]


def work(options: argparse.Namespace) -> int:
    """Work until a signal."""
    from goclaw.client.worker import Worker

    home = home_of(options)
    handler = _handler(options.handler)
    worker = Worker(options.pool, handler, home=home, concurrency=options.concurrency)
    if home.read_daemon_json() is None:
        tell(f"no daemon is running on {home.root} yet; waiting for one")
    worker.on_ready = lambda: print(
        f"goclaw worker ready: pool {options.pool}, {options.concurrency} at once", flush=True
    )
    worker.run()
    return 0


def _handler(place: str) -> Any:
    """The function, looked for in the present directory too; UsageError."""
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise UsageError(
            f"{place[:80]} names no function.", hint="Write MODULE:FUNCTION, as in jobs:handle."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a fault inside the module, which its author wants to see whole
        raise UsageError(
            f"There is no module {module_name}.",
            hint="It is looked for in the present directory and on PYTHONPATH.",
        ) from None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(
            f"{module_name} has no function {name}.", hint="It takes one argument, the context."
        )
    return found
