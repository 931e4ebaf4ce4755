"""Tools that need nothing but the engine: sleep.

Owns their schemas. Not in here: WASM skills, which are built in too (``skills/builtin``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.records import Done, Tool
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

__all__ = ["SLEEP", "Builtin", "sleep_ms"]

SLEEP: Final = Tool(
    name="sleep",
    source="builtin",
    description="Waits. A sleeping run holds no lane and sleeps on over a restart.",
    input_schema={
        "type": "object",
        "required": ["seconds"],
        "additionalProperties": False,
        "properties": {
            "seconds": {
                "type": "number",
                "minimum": 0,
                "maximum": limits.SLEEP_MS_MAX // 1000,
                "description": "How long, in seconds; fractions count.",
            }
        },
    },
    effect_class=EffectClass.PURE,
    sandbox="none",
)


def sleep_ms(tool: Tool, arguments: dict[str, Any]) -> int | None:
    """The durable wait before the tool answers, in milliseconds; None when it needs none."""
    return round(arguments["seconds"] * 1000) if tool is SLEEP else None


class Builtin:
    """The source of these tools."""

    def tools(self) -> Sequence[Tool]:
        """See ToolSource."""
        return (SLEEP,)

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource. The wait itself is the journal's: this is its end."""
        return Done(orjson.dumps({"slept": arguments["seconds"]}))

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """See ToolSource."""
        return None
