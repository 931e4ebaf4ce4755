"""Reads queries.sql: programs for the writer, queries for the readers.

Owns the notation that queries.sql explains at its top. Not in here: SQL.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import Final, NamedTuple

__all__ = ["MODES", "Catalogue", "Program", "Query", "Step", "load", "parse"]

MODES: Final = {"run": 0, "expect": 1, "refuse": 2, "stop": 3, "need": 4, "emit": 5, "move": 6}


class Step(NamedTuple):
    """One statement of a program; ``code`` is the error that expect and refuse answer with.

    ``skip``: index of the step that a need which found nothing goes on with; past the last: none.
    """

    mode: int
    code: str | None
    sql: str
    skip: int


class Program(NamedTuple):
    """What the writer runs inside one SAVEPOINT. ``late`` programs run last in their batch."""

    name: str
    parameters: tuple[str, ...]
    steps: tuple[Step, ...]
    returns: tuple[str, ...]
    late: bool


class Query(NamedTuple):
    """What a reader runs; parameters are bound by name."""

    name: str
    parameters: tuple[str, ...]
    sql: str


class Catalogue(NamedTuple):
    """Everything in queries.sql."""

    programs: dict[str, Program]
    queries: dict[str, Query]
    statements: dict[str, str]


_HEADER = re.compile(r"^-- (fragment|program|query|statement): (\w+) ?(.*)$")
_USE = re.compile(r"<<(\w+)((?:[^<>]|<(?!<)|>(?!>))*)>>")
_SEPARATOR = re.compile(r"(?<!\|)\|(?!\|)")


def parse(text: str) -> Catalogue:
    """Parse queries.sql; ValueError names what does not fit the notation."""
    blocks: list[tuple[str, str, str, list[str]]] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            blocks.append((header[1], header[2], header[3], []))
        elif blocks:
            blocks[-1][3].append(line)
    names = [name for _kind, name, _arguments, _lines in blocks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"queries.sql names {name} twice")
    fragments = {
        name: (tuple(arguments.split()), "\n".join(filter(_counts, lines)))
        for kind, name, arguments, lines in blocks
        if kind == "fragment"
    }
    catalogue = Catalogue({}, {}, {})
    for kind, name, arguments, lines in blocks:
        parameters = tuple(arguments.split())
        if kind == "program":
            body = _expand("\n".join(lines), fragments)
            catalogue.programs[name] = _program(name, parameters, body)
        elif kind != "fragment":
            body = _expand("\n".join(lines), fragments)
            sql = "\n".join(line for line in body.splitlines() if line[:2] not in ("", "--"))
            if kind == "query":
                catalogue.queries[name] = Query(name, parameters, sql)
            else:
                catalogue.statements[name] = sql
    return catalogue


def _counts(line: str) -> bool:
    """False for what only people read: the words about the block that follows, for one."""
    return line.startswith(("-- step:", "-- section")) or line[:2] not in ("", "--")


def _expand(
    text: str, fragments: dict[str, tuple[tuple[str, ...], str]], within: tuple[str, ...] = ()
) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in fragments:
            raise ValueError(f"there is no fragment {name}: {match[0]}")
        if name in within:
            raise ValueError(f"fragment {name} contains itself")
        names, body = fragments[name]
        values = [part.strip() for part in _SEPARATOR.split(match[2])] if names else []
        if len(values) != len(names):
            raise ValueError(f"fragment {name} takes {len(names)} arguments: {match[0]}")
        for argument, value in zip(names, values, strict=True):
            body = body.replace(f"<<{argument}>>", value)
        return _expand(body, fragments, (*within, name))

    return _USE.sub(replace, text)


def _program(name: str, parameters: tuple[str, ...], body: str) -> Program:
    returns: tuple[str, ...] = ()
    late = False
    steps: list[tuple[int, str | None, list[str]]] = []
    sections: list[int] = []
    for line in body.splitlines():
        if line.startswith("-- returns:"):
            returns = tuple(line.removeprefix("-- returns:").split())
        elif line == "-- late":
            late = True
        elif line == "-- section":
            sections.append(len(steps))
        elif line.startswith("-- step:"):
            steps.append((*_mode(name, line.removeprefix("-- step:").split()), []))
        elif not line.startswith("--") and line.strip():
            if not steps:
                raise ValueError(f"program {name}: SQL before the first step")
            steps[-1][2].append(line)
    if not all(lines for _mode, _code, lines in steps):
        raise ValueError(f"program {name}: a step without SQL")
    return Program(
        name,
        parameters,
        tuple(
            Step(
                mode,
                code,
                "\n".join(lines),
                next((section for section in sections if section > index), len(steps)),
            )
            for index, (mode, code, lines) in enumerate(steps)
        ),
        returns,
        late,
    )


def _mode(name: str, words: list[str]) -> tuple[int, str | None]:
    mode, *code = words
    if mode not in MODES:
        raise ValueError(f"program {name}: no step is called {mode}")
    if mode in ("expect", "refuse"):
        if len(code) != 1:
            raise ValueError(f"program {name}: {mode} takes one code")
        return MODES[mode], code[0]
    if code:
        raise ValueError(f"program {name}: {mode} takes no code")
    return MODES[mode], None


@functools.cache
def load() -> Catalogue:
    """The shipped queries.sql, parsed once."""
    text = resources.files("goclaw.store").joinpath("queries.sql").read_text("utf-8")
    return parse(text)
