"""`goclaw replay RUN`: the run once more, from its record alone; nothing is written (E-11).

Owns the choice between the daemon that has the home open and the files themselves. Not in here: the
replay (``ops/replay.py``).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.client.blocking import SyncClient
from goclaw.core.errors import DaemonGone

if TYPE_CHECKING:
    import argparse

    from goclaw.brains import BrainRunner
    from goclaw.core.home import Home

__all__ = ["replay", "runner_of"]


def replay(options: argparse.Namespace) -> int:
    """0 when it came to the same, 1 when it departs from its record."""
    home = home_of(options)
    try:
        with SyncClient(home) as client:
            found = client.call("_goclaw/admin/replay", {"runId": options.run})
    except DaemonGone:
        found = _from_files(home, options.run)
    if options.json:
        show.json_line(found)
    else:
        _print(found)
    return 0 if found["verdict"] == "identical" else 1


def _from_files(home: Home, run_id: str) -> dict[str, Any]:
    """Nobody has the home open, and nobody needs to."""
    from goclaw.brains import REPEATABLE
    from goclaw.ops import replay as ops
    from goclaw.policy.redact import Redactor
    from goclaw.store import Archive

    archive = Archive(home.root)

    async def read(query: str, **arguments: Any) -> list[tuple[Any, ...]]:
        return archive.fetch(query, **arguments)

    try:
        found = asyncio.run(
            ops.replay(read, runner_of(home), run_id, repeatable=REPEATABLE, cleaner=Redactor())
        )
    finally:
        archive.close()
    return found.to_json()


def runner_of(home: Home) -> BrainRunner:
    """The brains of a home that nobody serves, with a gate to nothing."""
    from goclaw.brains import BrainRunner, NamedBrains
    from goclaw.core.clock import SystemClock
    from goclaw.core.config import load
    from goclaw.core.processes import Children
    from goclaw.ops.replay import RecordedGate
    from goclaw.skills.catalog import Catalog
    from goclaw.skills.tools import Listed
    from goclaw.tools.exec import ExecTool
    from goclaw.tools.http import HttpTool
    from goclaw.tools.registry import Registry

    # the same tools as a daemon has, since a brain names them; none of them is called
    programs = ExecTool(Children(home.run / "children", SystemClock()), home.root)
    registry = Registry([Listed(Catalog(home.skills)), HttpTool(), programs])
    named = NamedBrains(load(home.root, os.environ).brains, registry)
    return BrainRunner(registry, RecordedGate(registry), named=named)


def _print(found: dict[str, Any]) -> None:
    effects = f"{found['effects']} effects"
    if found["verdict"] == "identical":
        far = "to its end" if found["whole"] else f"as far as it has come ({found['state']})"
        print(f"identical: {effects}, {far}")
        return
    divergence = found["divergence"]
    ordinal = divergence["ordinal"]
    where = "at its end" if ordinal is None else f"at effect {ordinal}"
    print(f"diverged {where}: {divergence['what']}")
    for name in ("recorded", "requested"):
        fields = divergence[name] or {"nothing": ""}
        text = "  ".join(f"{key} {value}".strip() for key, value in fields.items())
        print(show.one_line(f"  {name:<10} {text}"))
