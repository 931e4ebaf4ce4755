"""Tools that need nothing but the engine: sleep, delegate.

Owns their schemas. Not in here: WASM skills, which are built in too (``skills/builtin``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.decisions import Taint
from goclaw.core.records import Child, Done, Tool
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

__all__ = ["DELEGATE", "SLEEP", "Builtin", "child_of", "sleep_ms"]

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


DELEGATE: Final = Tool(
    name="delegate",
    source="builtin",
    description="Asks another run, in a session of its own, and waits for its end.",
    input_schema={
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "description": "What it is asked."},
            "brain": {
                "type": "string",
                "minLength": 1,
                "description": "Who answers; this run's own brain unless one is named.",
            },
        },
    },
    effect_class=EffectClass.KEYED,  # its submission is known by the effect's key (E-6)
    sandbox="none",
    taints=tuple(Taint),  # whatever the other run has met
)


def child_of(tool: Tool, arguments: dict[str, Any]) -> Child | None:
    """The sub-task that a call is; None when it is none."""
    if tool is not DELEGATE:
        return None
    return Child(arguments["prompt"], arguments.get("brain"))


def sleep_ms(tool: Tool, arguments: dict[str, Any]) -> int | None:
    """The durable wait before the tool answers, in milliseconds; None when it needs none."""
    return round(arguments["seconds"] * 1000) if tool is SLEEP else None


class Builtin:
    """The source of these tools."""

    def tools(self) -> Sequence[Tool]:
        """See ToolSource."""
        return (SLEEP, DELEGATE)

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource. The wait itself is the journal's: this is its end. A sub-task is the
        journal's altogether."""
        return Done(orjson.dumps({"slept": arguments["seconds"]}))

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """See ToolSource."""
        return None
