"""The world of a drill: a file that takes one line per dispatch, and tools that act on it (E-10).

Owns the file's format and one tool of each effect class. Not in here: what a class allows
(``drill.py``), the daemons that have these tools: only those that a drill starts.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from goclaw.core.records import Done, Tool
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["TOOLS", "Dispatch", "Sink", "SinkTools"]

TOOLS: Final = tuple(
    Tool(
        name=str(kind),
        source="drill",
        description=f"Writes a line to the drill's sink; declared as {kind}.",
        input_schema={"type": "object"},
        effect_class=kind,
        sandbox="none",
    )
    for kind in EffectClass
)


class Dispatch(NamedTuple):
    """One line: a call that reached the world."""

    tool: str
    key: str


class Sink:
    """The file. It belongs to no daemon: a line that was written stays, whoever dies next."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, dispatch: Dispatch) -> None:
        """Count a dispatch. One write of a short line, so that lines never mix. Blocks."""
        line = orjson.dumps(dispatch._asdict()) + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def dispatches(self) -> list[Dispatch]:
        """All so far, in order. Blocks."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [Dispatch(**orjson.loads(line)) for line in lines]


class SinkTools:
    """The source of ``TOOLS``. What they answer is the same at every dispatch."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def tools(self) -> Sequence[Tool]:
        """See ToolSource."""
        return TOOLS

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._sink.take, Dispatch(tool.name, key))
        return Done(orjson.dumps({"done": arguments}))

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """See ToolSource."""
        loop = asyncio.get_running_loop()
        happened = Dispatch(tool.name, key) in await loop.run_in_executor(
            None, self._sink.dispatches
        )
        return Done(orjson.dumps({"done": arguments})) if happened else False
