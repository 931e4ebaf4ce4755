"""The brain that follows a file: the same steps every time, for tests, drills and demonstrations.

Owns the format of script files (docs/brains.md) and its errors. Not in here: how a step is carried
out (loop).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.answers import Answer, Failure, Intent
from goclaw.core import limits
from goclaw.core.errors import ConfigRefused
from goclaw.core.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from goclaw.brains.answers import Turn
    from goclaw.brains.deltas import Deltas

__all__ = ["Entry", "ScriptBrain", "load_script", "parse_script"]


@dataclass(frozen=True, slots=True)
class _Say:
    text: str
    chunks: int | None
    delay_ms: int


@dataclass(frozen=True, slots=True)
class _Think:
    text: str


@dataclass(frozen=True, slots=True)
class _Plan:
    entries: tuple[dict[str, str], ...]


_Speech = _Say | _Think | _Plan


@dataclass(frozen=True, slots=True)
class _Part:
    """Steps that are one answer: what is said, and what ends it."""

    speech: tuple[_Speech, ...]
    end: Answer


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a script: the prompts it is for, and its answers."""

    match: re.Pattern[str]
    parts: tuple[_Part, ...]


class ScriptBrain:
    """Follows the first entry whose ``match`` is found in the prompt; says other prompts back."""

    name = "script"
    address = None
    secret = None

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self._entries = entries

    async def answer(self, turn: Turn, deltas: Deltas) -> Answer:
        """See Brain."""
        for entry in self._entries:
            if entry.match.search(turn.prompt):
                break
        else:
            deltas.say(turn.prompt)
            return Answer(deltas.text, stop="end_turn")
        if turn.step >= len(entry.parts):
            return Answer(stop="end_turn")
        part = entry.parts[turn.step]
        for step in part.speech:
            await _speak(step, deltas)
        last = turn.step == len(entry.parts) - 1
        end = part.end
        return Answer(
            deltas.text, end.intents, end.ask, end.sleep_ms, end.fail,
            stop="end_turn" if last else None,
        )  # fmt: skip


async def _speak(step: _Speech, deltas: Deltas) -> None:
    match step:
        case _Think(text):
            deltas.think(text)
        case _Plan(entries):
            deltas.plan(list(entries))
        case _Say(text, None, 0):
            deltas.say(text)
        case _Say(text, chunks, delay_ms):
            for piece in _pieces(text, chunks or 1):
                if delay_ms:
                    await deltas.pause(delay_ms)
                deltas.say(piece)
                await deltas.push()


def _pieces(text: str, count: int) -> list[str]:
    """The text in ``count`` pieces that differ by at most one character; never an empty one."""
    count = max(1, min(count, len(text)))
    edges = [len(text) * index // count for index in range(count + 1)]
    return [text[edges[index] : edges[index + 1]] for index in range(count)]


# -- the file --------------------------------------------------------------------------------------


def load_script(path: Path) -> ScriptBrain:
    """Read a script; ConfigRefused names the file, the entry and the step. Blocks."""
    try:
        data = read_regular(path, limits.SCRIPT_BYTES_MAX)
    except OSError as error:
        raise _refused(path, f"it cannot be read ({error.strerror})") from None
    if len(data) > limits.SCRIPT_BYTES_MAX:
        raise _refused(path, f"it is larger than {limits.SCRIPT_BYTES_MAX} bytes")
    return ScriptBrain(parse_script(data, str(path)))


def parse_script(data: bytes, name: str) -> tuple[Entry, ...]:
    """The entries of a script's text; ``name`` is what errors call it."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _refused(name, f"it is no JSON: {error}") from None
    if not isinstance(document, list):
        raise _refused(name, "it must be a list of entries")
    entries = []
    for number, entry in enumerate(document, 1):
        where = f"entry {number}"
        if not isinstance(entry, dict) or entry.keys() != {"match", "steps"}:
            raise _refused(name, f"{where} must be an object with `match` and `steps`")
        if not isinstance(entry["match"], str):
            raise _refused(name, f"{where}: `match` must be a regular expression")
        if not isinstance(entry["steps"], list):
            raise _refused(name, f"{where}: `steps` must be a list")
        try:
            pattern = re.compile(entry["match"])
        except re.error as error:
            raise _refused(name, f"{where}: `match` is no regular expression: {error}") from None
        entries.append(Entry(pattern, _parts(entry["steps"], name, where)))
    return tuple(entries)


def _parts(steps: list[Any], name: str, where: str) -> tuple[_Part, ...]:
    parts: list[_Part] = []
    speech: list[_Speech] = []
    for number, step in enumerate(steps, 1):
        try:
            found = _step(step)
        except ValueError as error:
            raise _refused(name, f"{where}, step {number}: {error}") from None
        if isinstance(found, Answer):
            parts.append(_Part(tuple(speech), found))
            speech = []
        else:
            speech.append(found)
    if speech or not parts:
        parts.append(_Part(tuple(speech), Answer()))
    return tuple(parts)


def _step(step: Any) -> _Speech | Answer:
    if not isinstance(step, dict):
        raise ValueError("a step is an object")
    kinds = [kind for kind in _STEPS if kind in step]
    if len(kinds) != 1:
        raise ValueError(f"a step has exactly one of {', '.join(_STEPS)}")
    build, others = _STEPS[kinds[0]]
    unknown = sorted(step.keys() - {kinds[0]} - others)
    if unknown:
        raise ValueError(f"`{unknown[0]}` is not known beside `{kinds[0]}`")
    return build(step)


def _say(step: dict[str, Any]) -> _Speech:
    chunks = step.get("chunks")
    if chunks is not None:
        chunks = _whole(step, "chunks", 1, limits.SCRIPT_CHUNKS_MAX)
    return _Say(_text(step, "say"), chunks, _whole(step, "delayMs", 0, limits.SCRIPT_DELAY_MS_MAX))


def _think(step: dict[str, Any]) -> _Speech:
    return _Think(_text(step, "think"))


_PRIORITIES: Final = ("high", "medium", "low")
_STATUSES: Final = ("pending", "in_progress", "completed")


def _plan(step: dict[str, Any]) -> _Speech:
    if not isinstance(step["plan"], list):
        raise ValueError("`plan` must be a list")
    return _Plan(tuple(_plan_entry(entry) for entry in step["plan"]))


def _plan_entry(entry: Any) -> dict[str, str]:
    """A text, or an entry as ACP has it."""
    fields = {"content": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise ValueError("an entry of `plan` is a text, or an object with `content`")
    found = {"priority": "medium", "status": "pending", **fields}
    fits = (
        found.keys() == {"content", "priority", "status"}
        and found["priority"] in _PRIORITIES
        and found["status"] in _STATUSES
    )
    if not fits:
        raise ValueError(
            f"an entry of `plan` has content, priority ({', '.join(_PRIORITIES)}) and status"
            f" ({', '.join(_STATUSES)})"
        )
    return found


def _call(step: dict[str, Any]) -> Answer:
    arguments = step.get("args", {})
    if not isinstance(arguments, dict):
        raise ValueError("`args` must be an object")
    return Answer(intents=(Intent(_text(step, "call"), arguments),))


def _ask(step: dict[str, Any]) -> Answer:
    return Answer(ask=_text(step, "ask"))


def _sleep(step: dict[str, Any]) -> Answer:
    return Answer(sleep_ms=_whole(step, "sleepMs", 0, limits.SLEEP_MS_MAX))


def _fail(step: dict[str, Any]) -> Answer:
    if not isinstance(step.get("retryable", False), bool):
        raise ValueError("`retryable` must be true or false")
    attempts = step.get("onAttempts")
    if attempts is not None:
        fits = isinstance(attempts, list) and all(type(n) is int and n > 0 for n in attempts)
        if not fits:
            raise ValueError("`onAttempts` must be a list of attempts, counted from 1")
        attempts = tuple(attempts)
    return Answer(fail=Failure(_text(step, "fail"), step.get("retryable", False), attempts))


_STEPS: Final[dict[str, tuple[Callable[[dict[str, Any]], _Speech | Answer], set[str]]]] = {
    "say": (_say, {"chunks", "delayMs"}),
    "think": (_think, set()),
    "plan": (_plan, set()),
    "call": (_call, {"args"}),
    "ask": (_ask, set()),
    "sleepMs": (_sleep, set()),
    "fail": (_fail, {"retryable", "onAttempts"}),
}


def _text(step: dict[str, Any], name: str) -> str:
    value = step[name]
    if not isinstance(value, str) or (not value and name != "say"):
        raise ValueError(f"`{name}` must be a text")
    return value


def _whole(step: dict[str, Any], name: str, low: int, high: int) -> int:
    value = step.get(name, low)
    # a bool is an int to Python, never to the author of a script
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"`{name}` must be a whole number from {low} to {high}")
    return value


def _refused(name: Path | str, why: str) -> ConfigRefused:
    return ConfigRefused(
        f"The script {name} is refused: {why}.", hint="docs/brains.md describes the format."
    )
