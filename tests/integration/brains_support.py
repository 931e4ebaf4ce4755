"""A model's server as a process of its own, and homes that know it.

Owns the fixtures' making. Not in here: any test.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


class Server:
    """A running server: its URL and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url

    def report(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/report", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def calls(self) -> int:
        return int(self.report()["calls"])

    def body(self, index: int = -1) -> dict[str, Any]:
        """Of one request."""
        found: dict[str, Any] = self.report()["requests"][index]["body"]
        return found


_running: list[Server] = []


@contextlib.contextmanager
def model_server(replies: list[Any], *, scenario: list[Any] | None = None) -> Iterator[Server]:
    """One that answers every prompt with ``replies``, or follows a whole scenario. The process
    serves all tests of a run, one after the other."""
    if not _running:
        _running.append(_start())
    server = _running[0]
    told = json.dumps(scenario or [{"match": "", "replies": replies}]).encode()
    request = urllib.request.Request(f"{server.url}/scenario", told, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        yield server


def _start() -> Server:
    command = [sys.executable, "-m", "goclaw.testing", "openai-server", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    atexit.register(_end, process)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready "), line
    return Server(line.split()[1])


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def configure(home: Path, url: str, *lines: str, kind: str = "openai", name: str = "model") -> None:
    """config.toml with one brain at that server."""
    text = [f"[brains.{name}]", f'kind = "{kind}"', f'base_url = "{url}"', 'model = "tiny"', *lines]
    (home / "config.toml").write_text("\n".join(text) + "\n")


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call of a reply."""
    return {"name": name, "arguments": arguments}
