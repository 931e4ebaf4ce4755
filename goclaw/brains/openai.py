"""Chat completions as OpenAI's protocol has them: any compatible server speaks it.

Owns how a window is written down and how a stream is read. Pure. Not in here: sending (model).
The provider's SDK is left out: docs/decisions/0013-models-without-sdks.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.context import SYSTEM, framed
from goclaw.brains.model import Request, fault_of
from goclaw.core.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from goclaw.brains.context import Exchange, Window
    from goclaw.brains.model import Reading
    from goclaw.brains.transport import ServerEvent
    from goclaw.core.config import NamedBrain
    from goclaw.core.records import Tool

__all__ = ["OpenAI"]

_ENDS: Final = {"length": Outcome.MAX_TOKENS, "content_filter": Outcome.REFUSAL}
_DONE: Final = b"[DONE]"


class OpenAI:
    """See Dialect."""

    needs_key = False  # a local server has none

    def base_url(self, brain: NamedBrain) -> str:
        """See Dialect."""
        return brain.base_url

    def key_header(self, key: str) -> tuple[str, str]:
        """See Dialect."""
        return "authorization", f"Bearer {key}"

    def request(self, brain: NamedBrain, shown: Window, tools: Sequence[Tool]) -> Request:
        """See Dialect."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": _system(shown)}]
        for number, exchange in enumerate(shown.exchanges):
            messages += _messages(exchange, number)
        body: dict[str, Any] = {
            "model": brain.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.input_schema,
                    },
                }
                for tool in tools
            ]
        if brain.answer_tokens:
            # OpenAI's own newer models refuse the old name, most other servers know only that.
            own = "://api.openai.com" in brain.base_url
            body["max_completion_tokens" if own else "max_tokens"] = brain.answer_tokens
        accept = {"accept": "text/event-stream"}
        return Request("/chat/completions", accept, orjson.dumps(body))

    def read(self, event: ServerEvent, reading: Reading) -> Iterator[tuple[str, str]]:
        """See Dialect."""
        if event.data.strip() == _DONE:
            return
        chunk = orjson.loads(event.data)
        if chunk.get("error"):
            raise fault_of(200, {}, event.data, 0)
        usage = chunk.get("usage")
        if usage:
            reading.input_tokens = int(usage["prompt_tokens"])
            reading.output_tokens = int(usage["completion_tokens"])
        for choice in chunk.get("choices", [])[:1]:
            # A server that does not stream sends the message whole.
            yield from _delta(choice.get("delta") or choice.get("message") or {}, reading)
            if choice.get("finish_reason"):
                end = _ENDS.get(choice["finish_reason"], Outcome.END_TURN)
                reading.finish = end
                reading.refused = reading.refused or end is Outcome.REFUSAL


def _delta(delta: dict[str, Any], reading: Reading) -> Iterator[tuple[str, str]]:
    for name in ("reasoning_content", "reasoning"):
        if isinstance(delta.get(name), str) and delta[name]:
            yield "think", delta[name]
            break
    if delta.get("content"):
        yield "say", str(delta["content"])
    if delta.get("refusal"):
        reading.refused = True
        yield "say", str(delta["refusal"])
    for position, call in enumerate(delta.get("tool_calls") or []):
        index = call.get("index", position)
        known = reading.calls.setdefault(int(index), ["", ""])
        function = call.get("function") or {}
        known[0] = known[0] or str(function.get("name") or "")
        arguments = function.get("arguments")
        known[1] += arguments if isinstance(arguments, str) else _whole(arguments)


def _whole(arguments: Any) -> str:
    """Some servers send the object itself."""
    return "" if arguments is None else orjson.dumps(arguments).decode()


def _system(shown: Window) -> str:
    if shown.omitted is None:
        return SYSTEM
    first, last = shown.omitted
    return f"{SYSTEM}\n\nThe beginning of the session (events {first} to {last}) is left out."


def _messages(exchange: Exchange, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"role": "user", "content": exchange.prompt}]
    for at, step in enumerate(exchange.steps):
        message: dict[str, Any] = {"role": "assistant", "content": step.text or None}
        ids = [f"call_{number}_{at}_{index}" for index in range(len(step.calls))]
        if step.calls:
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": call.tool, "arguments": call.arguments.decode()},
                }
                for call_id, call in zip(ids, step.calls, strict=True)
            ]
        elif not step.text:
            continue
        found.append(message)
        found += [
            {"role": "tool", "tool_call_id": call_id, "content": framed(call)}
            for call_id, call in zip(ids, step.calls, strict=True)
        ]
    return found
