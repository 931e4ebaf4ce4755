"""`goclaw why TASK`: why a task waits, is blocked, denied or dead, and which command moves it.

Owns how reasons are shown. Not in here: the reasons (engine).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

    from goclaw.client import SyncClient, TaskInfo

__all__ = ["tell", "why"]

_SETTLED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})


def why(options: argparse.Namespace) -> int:
    """Print the reasons, the one that matters most first."""
    with Place(home_of(options)) as client:
        explained = client.why(options.task)
    if options.json:
        show.json_line(explained.json)
        return 0
    print(explained.state)
    for one in explained.because:
        print(f"  {show.one_line(one.text)}")
        if one.command is not None:
            print(f"    {show.one_line(one.command)}")
    return 0


def tell(client: SyncClient, task: TaskInfo) -> None:
    """Beside the output: what moves a task that waits for somebody, or was given up."""
    if task.state in _SETTLED:
        return
    for one in client.why(task.task_id).because:
        if one.command is not None:
            show.tell(f"{show.one_line(one.text)} Next:")
            show.tell(f"  {show.one_line(one.command)}")
