"""The brain without a model: slash commands call tools, so that everything works offline (B-2).

Owns the reading of a command and the showing of its result. Not in here: which tools there are
(registry), whether they may run (gate).
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.answers import Answer, Intent, Refusal
from goclaw.core.errors import InvalidParams
from goclaw.core.states import Outcome

if TYPE_CHECKING:
    from goclaw.brains.answers import ToolResult, Turn
    from goclaw.brains.deltas import Deltas
    from goclaw.core.records import Tool
    from goclaw.tools.registry import Registry

__all__ = ["DirectBrain", "parse_command"]

_COMMAND: Final = re.compile(r"/(?P<name>[\w-]+)(?:\s+(?P<rest>.*))?", re.DOTALL)
_UNKNOWN: Final = "unknown_command"


class DirectBrain:
    """Answers ``/TOOL ...`` with a call, and everything else with what commands there are: prose
    ends its turn well, a command that cannot be carried out is refused."""

    name = "direct"
    address = None
    secret = None

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def answer(self, turn: Turn, deltas: Deltas) -> Answer:
        """See Brain."""
        if turn.step > 0:
            for result in turn.results:
                deltas.say(_shown(result))
            return Answer(deltas.text, stop=Outcome.END_TURN)
        found = parse_command(turn.prompt, self._registry)
        if isinstance(found, Intent):
            return Answer(intents=(found,))
        if found is None:
            why = "No model is configured, so only commands are understood."
            deltas.say(f"{why}\n\n{_help(self._registry)}")
            return Answer(deltas.text, stop=Outcome.END_TURN)
        deltas.say(found.message)
        if found.code == _UNKNOWN:
            deltas.say(f"\n\n{_help(self._registry)}")
        return Answer(deltas.text, stop=Outcome.REFUSAL, refusal=found)


def parse_command(prompt: str, registry: Registry) -> Intent | Refusal | None:
    """The call that a prompt asks for, or why it cannot be made; None: it is no command."""
    match = _COMMAND.fullmatch(prompt.strip())
    if match is None:
        return None
    entry = registry.get(match["name"])
    if entry is None:
        return Refusal(_UNKNOWN, f"There is no command /{match['name'][:80]}.")
    arguments = _arguments(entry.tool, (match["rest"] or "").strip())
    if isinstance(arguments, str):
        return Refusal(InvalidParams.code, arguments)
    return Intent(entry.tool.name, arguments)


def _arguments(tool: Tool, rest: str) -> dict[str, Any] | str:
    """From JSON, or from the rest of the line where the tool has one plain argument."""
    usage = f"Write /{tool.name} {tool.hint}."
    if rest.startswith("{") or (not rest and tool.plain_argument is None):
        try:
            parsed = json.loads(rest or "{}", parse_constant=_no_number)
            orjson.dumps(parsed)
        except TypeError:
            return "A number beyond 64 bits would be rounded: write the document as a text."
        except (ValueError, RecursionError) as error:
            if tool.plain_argument is None:
                return f"The arguments of /{tool.name} are no JSON: {error}. {usage}"
        else:
            if isinstance(parsed, dict):
                return parsed
    name = tool.plain_argument
    if name is None:
        return f"/{tool.name} takes a JSON object. {usage}"
    if not rest:
        return f"/{tool.name} needs its {name}. {usage}"
    if "\n" in rest:
        return f"/{tool.name} takes one line. {usage}"
    kind = tool.input_schema.get("properties", {}).get(name, {}).get("type")
    if kind not in ("number", "integer"):
        return {name: rest}
    try:
        number = float(rest)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return f"{rest[:80]!r} is no number. {usage}"
    return {name: int(number) if number.is_integer() else number}


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _help(registry: Registry) -> str:
    commands = "\n".join(
        f"  /{tool.name} {tool.hint} - {tool.description}" for tool in registry.tools()
    )
    return (
        f"Commands:\n{commands}\n\n"
        'Every command also takes its arguments as JSON: /word-count {"file": "README.md"}.\n'
        "To talk to a model, start goclaw with --brain NAME; docs/brains.md lists the brains."
    )


def _shown(result: ToolResult) -> str:
    """The output as it is; of a call that was not made or failed, the sentence that says why."""
    text = result.output.decode("utf-8", "replace")
    if result.status == "completed":
        return text
    parsed = orjson.loads(result.output)
    why = parsed.get("error", text) if isinstance(parsed, dict) else text
    return f"/{result.name} {_WORDS.get(result.status, result.status)}: {why}"


_WORDS: Final = {
    "failed": "failed",
    "denied": "was denied",
    "rejected": "was rejected",
    "unknown": "may or may not have happened",
}
