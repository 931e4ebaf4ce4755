"""The kinds of ``session/update`` and what each must hold, as data (PROTOCOL 1.4).

Owns what is accepted of an external worker before it is stored and shown, and which events stand
for one another when only the newest counts. Sans-I/O. Not in here: the updates that goclaw makes.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from goclaw.core.errors import InvalidParams

__all__ = ["KINDS", "check_update", "sort_of"]

_CHUNK: Final[dict[str, type]] = {"content": dict}

KINDS: Final[dict[str, dict[str, type]]] = {
    "user_message_chunk": _CHUNK,
    "agent_message_chunk": _CHUNK,
    "agent_thought_chunk": _CHUNK,
    "tool_call": {"toolCallId": str, "title": str},
    "tool_call_update": {"toolCallId": str},
    "plan": {"entries": list},
    "available_commands_update": {"availableCommands": list},
    "current_mode_update": {"currentModeId": str},
    "config_option_update": {"configOptions": list},
    "session_info_update": {},
    "usage_update": {"used": int, "size": int},
}
"""The stable kinds that need no capability of the client, with the members each must have."""

_NAMES: Final = {dict: "an object", str: "a string", list: "a list", int: "a whole number"}


def check_update(update: dict[str, Any]) -> None:
    """InvalidParams unless every client may be shown it."""
    kind = update.get("sessionUpdate")
    needed = KINDS.get(kind) if isinstance(kind, str) else None
    if needed is None:
        raise InvalidParams(
            f"sessionUpdate is one of {', '.join(KINDS)}.", param="update.sessionUpdate"
        )
    for name, wanted in needed.items():
        if type(update.get(name)) is not wanted:
            raise InvalidParams(
                f"{name} of a {kind} must be {_NAMES[wanted]}.", param=f"update.{name}"
            )
    if needed is _CHUNK:
        _check_block(update["content"])


def sort_of(event_type: str, payload: bytes) -> tuple[str, str]:
    """What an event is the newest of, for a reader that wants no more than that."""
    if event_type != "update":
        return event_type, ""
    return event_type, str(orjson.loads(payload).get("sessionUpdate"))


def _check_block(block: dict[str, Any]) -> None:
    kind = block.get("type")
    if type(kind) is not str or (kind == "text" and type(block.get("text")) is not str):
        raise InvalidParams(
            "A content block has a type, and one of text a text.", param="update.content"
        )
