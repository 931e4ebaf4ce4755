"""Which tools there are, by one name each, with their arguments' validators.

Owns precedence, the clash report and the validation of arguments. Not in here: carrying a call out
(the sources), deciding about it (gate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from goclaw.core.errors import InvalidParams
from goclaw.tools.builtin import Builtin
from goclaw.tools.schema import Validator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.core.records import Tool, ToolSource

__all__ = ["Clash", "Entry", "Registry"]


@dataclass(frozen=True, slots=True)
class Clash:
    """Two tools of one name: ``source`` is the one that is called, ``hidden`` the other's."""

    name: str
    source: str
    hidden: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A tool with what it takes to call it."""

    tool: Tool
    origin: ToolSource
    validator: Validator

    def misfit(self, arguments: dict[str, Any]) -> str | None:
        """Why the arguments do not fit the schema, None when they do."""
        return self.validator.misfit(arguments)


class Registry:
    """The tools of ``sources``, the first of a name winning; the built-in ones come last.

    A tool whose schema is not understood is left out and told in ``problems``. Immutable.
    """

    def __init__(self, sources: Sequence[ToolSource] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        clashes: list[Clash] = []
        problems: list[str] = []
        for source in (*sources, Builtin()):
            for tool in source.tools():
                known = self._entries.get(tool.name)
                if known is not None:
                    clashes.append(Clash(tool.name, known.tool.source, tool.source))
                    continue
                try:
                    validator = Validator(tool.input_schema)
                except InvalidParams as error:
                    problems.append(f"{tool.resource}: {error}")
                    continue
                self._entries[tool.name] = Entry(tool, source, validator)
        self.clashes = tuple(clashes)
        self.problems = tuple(problems)

    def tools(self) -> list[Tool]:
        """All of them, by name."""
        return [self._entries[name].tool for name in sorted(self._entries)]

    def get(self, name: str) -> Entry | None:
        """The tool that a call by this name runs, None when there is none."""
        return self._entries.get(name)
