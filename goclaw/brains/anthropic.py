"""Messages as Anthropic's protocol has them.

Owns how a window is written down and how a stream is read. Pure. Not in here: sending (model).
The provider's SDK is left out: docs/decisions/0013-models-without-sdks.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.context import SYSTEM, framed
from goclaw.brains.model import Request, fault_of
from goclaw.core import limits
from goclaw.core.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from goclaw.brains.context import Exchange, Window
    from goclaw.brains.model import Reading
    from goclaw.brains.transport import ServerEvent
    from goclaw.core.config import NamedBrain
    from goclaw.core.records import Tool

__all__ = ["Anthropic"]

_VERSION: Final = "2023-06-01"
_BASE_URL: Final = "https://api.anthropic.com/v1"
_ENDS: Final = {
    "max_tokens": Outcome.MAX_TOKENS,
    "model_context_window_exceeded": Outcome.MAX_TOKENS,
    "refusal": Outcome.REFUSAL,
}


class Anthropic:
    """See Dialect."""

    needs_key = True

    def base_url(self, brain: NamedBrain) -> str:
        """See Dialect."""
        return brain.base_url or _BASE_URL

    def key_header(self, key: str) -> tuple[str, str]:
        """See Dialect."""
        return "x-api-key", key

    def request(self, brain: NamedBrain, shown: Window, tools: Sequence[Tool]) -> Request:
        """See Dialect."""
        messages: list[dict[str, Any]] = []
        for number, exchange in enumerate(shown.exchanges):
            messages += _messages(exchange, number)
        body = {
            "model": brain.model,
            "max_tokens": brain.answer_tokens or limits.BRAIN_ANSWER_TOKENS,
            "system": _system(shown),
            "messages": messages,
            "tools": [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.input_schema,
                }
                for tool in tools
            ],
            "stream": True,
        }
        return Request("/messages", {"anthropic-version": _VERSION}, orjson.dumps(body))

    def read(self, event: ServerEvent, reading: Reading) -> Iterator[tuple[str, str]]:
        """See Dialect."""
        said = orjson.loads(event.data)
        match said["type"]:
            case "error":
                raise fault_of(200, {}, event.data, 0)
            case "message_start":
                usage = said["message"].get("usage") or {}
                cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
                reading.input_tokens = int(usage.get("input_tokens", 0)) + sum(
                    int(usage.get(name) or 0) for name in cached
                )
            case "content_block_start":
                block = said["content_block"]
                if block["type"] == "tool_use":
                    reading.calls[int(said["index"])] = [str(block["name"]), ""]
            case "content_block_delta":
                yield from _delta(said, reading)
            case "message_delta":
                end = said["delta"].get("stop_reason")
                if end:
                    reading.finish = _ENDS.get(end, Outcome.END_TURN)
                    reading.refused = reading.finish is Outcome.REFUSAL
                usage = said.get("usage") or {}
                if "output_tokens" in usage:
                    reading.output_tokens = int(usage["output_tokens"])


def _delta(said: dict[str, Any], reading: Reading) -> Iterator[tuple[str, str]]:
    delta = said["delta"]
    match delta["type"]:
        case "text_delta":
            yield "say", str(delta["text"])
        case "thinking_delta":
            yield "think", str(delta["thinking"])
        case "input_json_delta":
            reading.calls[int(said["index"])][1] += str(delta["partial_json"])


def _system(shown: Window) -> str:
    if shown.omitted is None:
        return SYSTEM
    first, last = shown.omitted
    return f"{SYSTEM}\n\nThe beginning of the session (events {first} to {last}) is left out."


def _messages(exchange: Exchange, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"role": "user", "content": exchange.prompt or "(nothing)"}]
    for at, step in enumerate(exchange.steps):
        ids = [f"call_{number}_{at}_{index}" for index in range(len(step.calls))]
        blocks: list[dict[str, Any]] = [{"type": "text", "text": step.text}] if step.text else []
        blocks += [
            {
                "type": "tool_use",
                "id": call_id,
                "name": call.tool,
                "input": orjson.loads(call.arguments),
            }
            for call_id, call in zip(ids, step.calls, strict=True)
        ]
        if not blocks:
            continue
        found.append({"role": "assistant", "content": blocks})
        if step.calls:
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": call_id,
                    "content": framed(call),
                    "is_error": call.status != "completed",
                }
                for call_id, call in zip(ids, step.calls, strict=True)
            ]
            found.append({"role": "user", "content": results})
    return found
