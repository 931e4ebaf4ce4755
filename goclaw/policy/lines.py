"""On which line of a TOML document each key and each array element stands.

Owns that map, which ``tomllib`` does not give. Not in here: TOML itself; the text was parsed by
``tomllib`` before, so this walk only has to find its way through a valid document.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import Final, TypeAlias

__all__ = ["Path", "locate"]

Path: TypeAlias = "tuple[str | int, ...]"
"""Keys and array positions from the top of the document."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL
)
_SCALAR: Final = re.compile(r"[^,\]}\r\n#]+")


def locate(text: str) -> dict[Path, int]:
    """The line, from 1, where each key, table and array element of a valid document begins."""
    walk = _Walk(text)
    walk.document()
    return walk.lines


class _Walk:
    """One pass over a document; every method takes a position and returns the next one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: dict[Path, int] = {}
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._lengths: dict[Path, int] = {}  # of arrays of tables

    def document(self) -> None:
        base: Path = ()
        at = self._blank(0)
        while at < len(self.text):
            start = at
            if self.text.startswith("[[", at):
                keys, at = self._keys(at + 2)
                array = self._resolve(keys[:-1]) + keys[-1:]
                place = self._lengths[array] = self._lengths.get(array, -1) + 1
                base = (*array, place)
                self._note(base, start)
                at += 2
            elif self.text[at] == "[":
                keys, at = self._keys(at + 1)
                base = self._resolve(keys)
                self._note(base, start)
                at += 1
            else:
                at = self._pair(at, base)
            at = self._blank(at)

    def _pair(self, at: int, base: Path) -> int:
        start = at
        keys, at = self._keys(at)
        path = base + keys
        self._note(path, start)
        return self._value(self._blank(at + 1), path)

    def _value(self, at: int, path: Path) -> int:
        mark = self.text[at]
        if mark == "[":
            at, place = self._blank(at + 1), 0
            while self.text[at] != "]":
                element = (*path, place)
                self._note(element, at)
                at, place = self._comma(self._value(at, element)), place + 1
            return at + 1
        if mark == "{":
            at = self._blank(at + 1)
            while self.text[at] != "}":
                at = self._comma(self._pair(at, path))
            return at + 1
        found = (_STRING if mark in "\"'" else _SCALAR).match(self.text, at)
        assert found is not None, "tomllib accepted this text"
        return found.end()

    def _comma(self, at: int) -> int:
        at = self._blank(at)
        return self._blank(at + 1) if self.text[at] == "," else at

    def _keys(self, at: int) -> tuple[Path, int]:
        keys: list[str] = []
        while True:
            at = self._blank(at)
            found = _KEY.match(self.text, at)
            assert found is not None, "tomllib accepted this text"
            key = found[0]
            # a quoted key may hold escapes: read it as TOML does
            keys.append(next(iter(tomllib.loads(f"{key} = 0"))) if key[0] in "\"'" else key)
            at = self._blank(found.end())
            if self.text[at] != ".":
                return tuple(keys), at
            at += 1

    def _resolve(self, keys: Path) -> Path:
        """A header's keys, with the last element wherever one names an array of tables."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self._lengths:
                path = (*path, self._lengths[path])
        return path

    def _blank(self, at: int) -> int:
        found = _BLANK.match(self.text, at)
        return found.end() if found else at

    def _note(self, path: Path, at: int) -> None:
        """Where it begins; a table made by a dotted key begins with that key."""
        line = bisect.bisect_right(self._starts, at)
        while path and path not in self.lines:
            self.lines[path] = line
            path = path[:-1]
