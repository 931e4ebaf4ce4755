"""JSON Schema of tool arguments: read once, then values are checked against it.

Owns which part of JSON Schema 2020-12 counts, and the sentence for a misfit. Not in here: whose
schema it is. The packaged validators cost 130 to 660 ms of import (2026-11), more than a start.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    # The names and indexes that lead to the misfit, and last what is wrong there.
    _Misfit = tuple[str, ...] | None
    _Check = Callable[[Any], _Misfit]

__all__ = ["Validator"]

_ANNOTATIONS: Final = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default",
        "definitions", "deprecated", "description", "examples", "format", "readOnly", "title",
        "writeOnly",
    }
)  # fmt: skip
_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: _is_number(value),
    "integer": lambda value: _is_number(value) and value == math.floor(value),
}


class Validator:
    """A compiled schema. Immutable, any thread."""

    def __init__(self, schema: dict[str, Any] | bool) -> None:
        """InvalidParams for a keyword that is not understood: nothing could be promised of it."""
        self._root = schema
        self._references: dict[str, _Check] = {}
        self._check = self._compile(schema, "schema", 0)

    def misfit(self, value: Any) -> str | None:
        """Why the value does not fit, as ``where: what``; None when it does."""
        try:
            found = self._check(value)
        except RecursionError:
            return "is nested too deep"
        if found is None:
            return None
        where, what = ".".join(found[:-1]), found[-1]
        return f"{where}: {what}" if where else what

    def _compile(self, schema: Any, where: str, depth: int) -> _Check:
        if depth > limits.JSON_DEPTH_MAX:
            raise InvalidParams(f"{where} is nested too deep.")
        if schema is True:
            return _nothing
        if schema is False:
            return lambda value: ("nothing is allowed here",)
        if not isinstance(schema, dict):
            raise InvalidParams(f"{where} must be an object, true or false.")
        checks = []
        for keyword, value in schema.items():
            if keyword in _ANNOTATIONS or keyword in ("then", "else"):
                continue
            build = _KEYWORDS.get(keyword)
            if build is None:
                raise InvalidParams(f"{where}: the keyword {keyword!r} is not understood.")
            try:
                checks.append(build(self, schema, value, f"{where}.{keyword}", depth + 1))
            except (TypeError, ValueError, AttributeError, LookupError, re.error) as error:
                raise InvalidParams(f"{where}.{keyword} is not well formed: {error}.") from None
        return _all(checks)

    # -- keywords ------------------------------------------------------------------------------

    def _type(self, schema: Any, names: Any, where: str, depth: int) -> _Check:
        known = [names] if isinstance(names, str) else list(names)
        tests = []
        for name in known:
            if name not in _TYPES:
                raise ValueError(f"there is no type {name!r}")
            tests.append(_TYPES[name])
        wanted = " or ".join(known)
        return lambda value: (
            None if any(test(value) for test in tests) else (f"must be of type {wanted}",)
        )

    def _enum(self, schema: Any, options: Any, where: str, depth: int) -> _Check:
        allowed = list(options)
        return lambda value: (
            None if any(_equal(value, one) for one in allowed) else (f"must be one of {allowed!r}",)
        )

    def _const(self, schema: Any, only: Any, where: str, depth: int) -> _Check:
        return lambda value: None if _equal(value, only) else (f"must be {only!r}",)

    def _ref(self, schema: Any, target: Any, where: str, depth: int) -> _Check:
        if target not in self._references:
            found: Any = self._root
            if not isinstance(target, str) or not target.startswith("#"):
                raise ValueError("only references inside the schema are followed")
            for part in target[1:].split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                found = found[int(name)] if isinstance(found, list) else found[name]
            # Entered first: a schema may refer to itself.
            self._references[target] = _nothing
            self._references[target] = self._compile(found, target, depth)
        return lambda value: self._references[target](value)

    def _properties(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        checks = {
            name: self._compile(part, f"{where}.{name}", depth) for name, part in parts.items()
        }

        def check(value: Any) -> _Misfit:
            if not isinstance(value, dict):
                return None
            return _first(
                (name, check(value[name])) for name, check in checks.items() if name in value
            )

        return check

    def _pattern_properties(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        checks = [
            (re.compile(pattern), self._compile(part, f"{where}.{pattern}", depth))
            for pattern, part in parts.items()
        ]

        def check(value: Any) -> _Misfit:
            if not isinstance(value, dict):
                return None
            return _first(
                (name, check(item))
                for name, item in value.items()
                for pattern, check in checks
                if pattern.search(name)
            )

        return check

    def _additional(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        named = frozenset(schema.get("properties", ()))
        patterns = [re.compile(pattern) for pattern in schema.get("patternProperties", ())]
        inner = self._compile(part, where, depth)

        def check(value: Any) -> _Misfit:
            if not isinstance(value, dict):
                return None
            for name, item in value.items():
                if name in named or any(pattern.search(name) for pattern in patterns):
                    continue
                if part is False:
                    known = f"; known are {', '.join(sorted(named))}" if named else ""
                    return (f"{name!r} is not known{known}",)
                found = inner(item)
                if found is not None:
                    return (name, *found)
            return None

        return check

    def _property_names(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        inner = self._compile(part, where, depth)
        return lambda value: (
            _first((name, inner(name)) for name in value) if isinstance(value, dict) else None
        )

    def _required(self, schema: Any, names: Any, where: str, depth: int) -> _Check:
        wanted = [str(name) for name in names]

        def check(value: Any) -> _Misfit:
            if not isinstance(value, dict):
                return None
            missing = [name for name in wanted if name not in value]
            return (f"{missing[0]!r} is missing",) if missing else None

        return check

    def _dependent_required(self, schema: Any, table: Any, where: str, depth: int) -> _Check:
        needs = {name: [str(other) for other in others] for name, others in table.items()}

        def check(value: Any) -> _Misfit:
            if not isinstance(value, dict):
                return None
            for name, others in needs.items():
                for other in others if name in value else ():
                    if other not in value:
                        return (f"{name!r} needs {other!r} beside it",)
            return None

        return check

    def _items(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        inner = self._compile(part, where, depth)
        skip = len(schema.get("prefixItems", ()))
        return lambda value: (
            _first((str(index), inner(item)) for index, item in enumerate(value) if index >= skip)
            if isinstance(value, list)
            else None
        )

    def _prefix_items(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        inner = [self._compile(part, f"{where}[{n}]", depth) for n, part in enumerate(parts)]
        return lambda value: (
            _first(
                (str(index), check(item))
                for index, (check, item) in enumerate(zip(inner, value, strict=False))
            )
            if isinstance(value, list)
            else None
        )

    def _contains(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        inner = self._compile(part, where, depth)
        least, most = schema.get("minContains", 1), schema.get("maxContains", math.inf)

        def check(value: Any) -> _Misfit:
            if not isinstance(value, list):
                return None
            count = sum(inner(item) is None for item in value)
            return None if least <= count <= most else (f"{count} items fit `contains`",)

        return check

    def _unique(self, schema: Any, wanted: Any, where: str, depth: int) -> _Check:
        if wanted is not True:
            return _nothing

        def check(value: Any) -> _Misfit:
            if not isinstance(value, list):
                return None
            keys = [repr(_canonical(item)) for item in value]
            return None if len(set(keys)) == len(keys) else ("holds an item twice",)

        return check

    def _pattern(self, schema: Any, text: Any, where: str, depth: int) -> _Check:
        pattern = re.compile(text)
        return lambda value: (
            (f"must match {text}",)
            if isinstance(value, str) and pattern.search(value) is None
            else None
        )

    def _multiple(self, schema: Any, unit: Any, where: str, depth: int) -> _Check:
        if not _is_number(unit) or unit <= 0:
            raise ValueError("must be a number above 0")

        def check(value: Any) -> _Misfit:
            if not _is_number(value):
                return None
            whole = value % unit == 0 if isinstance(value, int) else (value / unit).is_integer()
            return None if whole else (f"must be a multiple of {unit}",)

        return check

    def _every(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        return _all([self._compile(part, f"{where}[{n}]", depth) for n, part in enumerate(parts)])

    def _some(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        inner = [self._compile(part, f"{where}[{n}]", depth) for n, part in enumerate(parts)]

        def check(value: Any) -> _Misfit:
            found = [one(value) for one in inner]
            return None if None in found else _none_of(found)

        return check

    def _one(self, schema: Any, parts: Any, where: str, depth: int) -> _Check:
        inner = [self._compile(part, f"{where}[{n}]", depth) for n, part in enumerate(parts)]

        def check(value: Any) -> _Misfit:
            found = [one(value) for one in inner]
            match found.count(None):
                case 1:
                    return None
                case 0:
                    return _none_of(found)
                case count:
                    return (f"fits {count} of the forms, and may fit only one",)

        return check

    def _not(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        inner = self._compile(part, where, depth)
        return lambda value: ("has a form that is ruled out",) if inner(value) is None else None

    def _if(self, schema: Any, part: Any, where: str, depth: int) -> _Check:
        test = self._compile(part, where, depth)
        then = self._compile(schema.get("then", True), f"{where}.then", depth)
        other = self._compile(schema.get("else", True), f"{where}.else", depth)
        return lambda value: then(value) if test(value) is None else other(value)

    def _part_of_contains(self, schema: Any, count: Any, where: str, depth: int) -> _Check:
        _bound(count)
        return _nothing


def _limit(
    kind: Callable[[Any], bool], measure: Callable[[Any], Any], low: bool, strict: bool, what: str
) -> Callable[..., _Check]:
    def build(_self: Validator, _schema: Any, bound: Any, _where: str, _depth: int) -> _Check:
        limit = _bound(bound)

        def check(value: Any) -> _Misfit:
            if not kind(value):
                return None
            size = measure(value)
            fits = size > limit if low else size < limit
            if fits or (size == limit and not strict):
                return None
            word = ("more than" if strict else "at least") if low else (
                "less than" if strict else "at most"
            )  # fmt: skip
            return (f"must {what} {word} {limit}",)

        return check

    return build


def _itself(value: Any) -> Any:
    return value


def _bound(value: Any) -> Any:
    if not _is_number(value):
        raise ValueError("must be a number")
    return value


def _nothing(_value: Any) -> _Misfit:
    return None


def _all(checks: list[_Check]) -> _Check:
    if len(checks) == 1:
        return checks[0]

    def check(value: Any) -> _Misfit:
        for one in checks:
            found = one(value)
            if found is not None:
                return found
        return None

    return check


def _first(found: Iterable[tuple[str, _Misfit]]) -> _Misfit:
    for name, misfit in found:
        if misfit is not None:
            return (name, *misfit)
    return None


def _none_of(found: list[_Misfit]) -> _Misfit:
    reasons = sorted({": ".join(misfit) for misfit in found if misfit is not None})
    return (f"fits none of the forms: {'; '.join(reasons)}",)


def _is_number(value: Any) -> bool:
    # a bool is an int to Python, never to JSON
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _canonical(value: Any) -> Any:
    """Equal for equal JSON: true is not 1, and 1.0 is."""
    if isinstance(value, dict):
        return ("object", sorted((name, _canonical(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("array", [_canonical(item) for item in value])
    if isinstance(value, bool):
        return ("boolean", value)
    if _is_number(value) and value == math.floor(value):
        return ("number", int(value))
    return (type(value).__name__, value)


def _equal(one: Any, other: Any) -> bool:
    return bool(_canonical(one) == _canonical(other))


_text, _list, _object = _TYPES["string"], _TYPES["array"], _TYPES["object"]
_KEYWORDS: Final[dict[str, Callable[..., _Check]]] = {
    "type": Validator._type,
    "enum": Validator._enum,
    "const": Validator._const,
    "$ref": Validator._ref,
    "properties": Validator._properties,
    "patternProperties": Validator._pattern_properties,
    "additionalProperties": Validator._additional,
    "propertyNames": Validator._property_names,
    "required": Validator._required,
    "dependentRequired": Validator._dependent_required,
    "minProperties": _limit(_object, len, True, False, "have"),
    "maxProperties": _limit(_object, len, False, False, "have"),
    "items": Validator._items,
    "prefixItems": Validator._prefix_items,
    "contains": Validator._contains,
    "minContains": Validator._part_of_contains,
    "maxContains": Validator._part_of_contains,
    "minItems": _limit(_list, len, True, False, "hold"),
    "maxItems": _limit(_list, len, False, False, "hold"),
    "uniqueItems": Validator._unique,
    "minLength": _limit(_text, len, True, False, "have a length of"),
    "maxLength": _limit(_text, len, False, False, "have a length of"),
    "pattern": Validator._pattern,
    "minimum": _limit(_is_number, _itself, True, False, "be"),
    "maximum": _limit(_is_number, _itself, False, False, "be"),
    "exclusiveMinimum": _limit(_is_number, _itself, True, True, "be"),
    "exclusiveMaximum": _limit(_is_number, _itself, False, True, "be"),
    "multipleOf": Validator._multiple,
    "allOf": Validator._every,
    "anyOf": Validator._some,
    "oneOf": Validator._one,
    "not": Validator._not,
    "if": Validator._if,
}
