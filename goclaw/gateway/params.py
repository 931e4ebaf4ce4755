"""Reads a method's params: each getter gives a checked value or InvalidParams that names the key.

Owns the wording of those errors. Not in here: which params a method has (``handlers``, ``work``).
"""

from __future__ import annotations

import re
from typing import Any, Final

from goclaw.core import limits
from goclaw.core.errors import InvalidParams

__all__ = ["Params"]

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Params:
    """The params of one call; a missing object reads as an empty one."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any] | list[Any] | None) -> None:
        if isinstance(values, list):
            raise InvalidParams("The params must be an object.")
        self._values = values or {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    @property
    def values(self) -> dict[str, Any]:
        """As they came."""
        return self._values

    @property
    def extension(self) -> Params:
        """``_meta.goclaw``, empty when absent."""
        meta = self._values.get("_meta")
        found = meta.get("goclaw") if isinstance(meta, dict) else None
        return Params(found if isinstance(found, dict) else None)

    @property
    def trace(self) -> str | None:
        """``_meta.traceparent`` when it is one."""
        meta = self._values.get("_meta")
        found = meta.get("traceparent") if isinstance(meta, dict) else None
        return found if isinstance(found, str) and _TRACEPARENT.fullmatch(found) else None

    def text(self, name: str, *, chars_max: int = limits.ID_CHARS_MAX) -> str:
        """A non-empty string."""
        value = self.text_or_none(name, chars_max=chars_max)
        if value is None:
            raise InvalidParams(f"{name} is missing.", param=name)
        return value

    def text_or_none(self, name: str, *, chars_max: int = limits.ID_CHARS_MAX) -> str | None:
        """A non-empty string, or None when absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not 1 <= len(value) <= chars_max:
            raise InvalidParams(
                f"{name} must be a string of 1 to {chars_max} characters.", param=name
            )
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """A whole number in a range, ``default`` when absent."""
        value = self._values.get(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise InvalidParams(f"{name} must be a whole number from {low} to {high}.", param=name)
        return value

    def page(self, name: str = "limit", most: int = limits.EVENTS_PAGE_MAX) -> int:
        """A page size; above its bound it is taken as the bound."""
        value = self.number(name, 1, limits.FIGURE_MAX, most)
        return min(most, value or most)

    def cursor(self, name: str) -> int | None:
        """Where a page begins, as the page before said; None when absent."""
        value = self.text_or_none(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) < 19):
            raise InvalidParams(f"{name} was not given by this method.", param=name)
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidParams(f"{name} must be true or false.", param=name)
        return value

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects, empty when absent."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidParams(f"{name} must be a list of objects.", param=name)
        return value

    def texts(self, name: str, *, chars_max: int = limits.ID_CHARS_MAX) -> list[str]:
        """A list of non-empty strings, empty when absent."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(
            isinstance(item, str) and 1 <= len(item) <= chars_max for item in value
        ):
            raise InvalidParams(f"{name} must be a list of strings.", param=name)
        return value

    def object(self, name: str) -> dict[str, Any]:
        """An object, empty when absent."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InvalidParams(f"{name} must be an object.", param=name)
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of the choices; the first when absent."""
        value = self._values.get(name)
        if value is None:
            return choices[0]
        if value not in choices:
            raise InvalidParams(f"{name} must be {' or '.join(choices)}.", param=name)
        return str(value)

    def path(self, name: str) -> str:
        """An absolute path."""
        value = self.text(name, chars_max=limits.PATH_CHARS_MAX)
        return _absolute(name, value)

    def paths(self, name: str) -> list[str]:
        """Absolute paths, empty when absent."""
        values = self.texts(name, chars_max=limits.PATH_CHARS_MAX)
        if len(values) >= limits.ROOTS_MAX:
            raise InvalidParams(f"{name} may have {limits.ROOTS_MAX - 1} entries.", param=name)
        return [_absolute(name, value) for value in values]


def _absolute(name: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidParams(f"{name} must be an absolute path.", param=name)
    return path
