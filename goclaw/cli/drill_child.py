"""The daemon that a drill starts and kills: a real one with the tools of the sink beside (E-10).

Owns this entry: ``python -m goclaw.cli.drill_child FOLDER``. It serves ``FOLDER/home`` alone, which
the drill has made, so no home of a person ever gets these tools. Not in here: the drill.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goclaw import daemon
from goclaw.core import config, faults
from goclaw.core.errors import GoclawError
from goclaw.core.home import Home
from goclaw.ops.sink import Sink, SinkTools

if TYPE_CHECKING:
    from goclaw.core.records import ToolSource

__all__ = ["HOME", "SINK", "main", "serve"]

HOME: Final = "home"
SINK: Final = "sink.jsonl"
"""Names in the folder of a drill."""


def serve(folder: Path, tools: ToolSource) -> int:
    """Serve until a signal, then say how often each fault point was passed; the exit code."""
    home = Home(folder / HOME)
    try:
        settings = config.load(home.root, os.environ)
        code = daemon.serve(home, settings, idle_exit=True, extra_tools=[tools])
    except GoclawError as error:
        print(f"goclaw: {error}", file=sys.stderr)
        return error.exit
    print(json.dumps(faults.hits()), flush=True)
    return code


def main() -> int:
    """Serve the folder that the command line names."""
    folder = Path(sys.argv[1])
    return serve(folder, SinkTools(Sink(folder / SINK)))


if __name__ == "__main__":
    sys.exit(main())
