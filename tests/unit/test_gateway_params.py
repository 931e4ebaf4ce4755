"""Proves the reading of params: each wrong value is named, each right one comes through.

Owns the tables of values. Not in here: which method takes what (``test_wire_*.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from goclaw.core import limits
from goclaw.core.errors import InvalidParams
from goclaw.gateway.params import Params

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD: list[tuple[Callable[[Params], object], Any, Any]] = [
    (lambda p: p.text("x"), "a", "a"),
    (lambda p: p.text_or_none("x"), None, None),
    (lambda p: p.text("x", chars_max=2), "ab", "ab"),
    (lambda p: p.number("x", 0, 9), 0, 0),
    (lambda p: p.number("x", 0, 9), None, None),
    (lambda p: p.number("x", 0, 9, 5), None, 5),
    (lambda p: p.page(), None, limits.EVENTS_PAGE_MAX),
    (lambda p: p.page(), 7, 7),
    (lambda p: p.page(), limits.FIGURE_MAX, limits.EVENTS_PAGE_MAX),
    (lambda p: p.flag("x", True), None, True),
    (lambda p: p.flag("x", True), False, False),
    (lambda p: p.objects("x"), None, []),
    (lambda p: p.objects("x"), [{}], [{}]),
    (lambda p: p.texts("x"), None, []),
    (lambda p: p.texts("x"), ["a"], ["a"]),
    (lambda p: p.object("x"), None, {}),
    (lambda p: p.object("x"), {"a": 1}, {"a": 1}),
    (lambda p: p.choice("x", ("a", "b")), None, "a"),
    (lambda p: p.choice("x", ("a", "b")), "b", "b"),
    (lambda p: p.path("x"), "/a", "/a"),
    (lambda p: p.paths("x"), ["/a", "/b"], ["/a", "/b"]),
]

BAD: list[tuple[Callable[[Params], object], list[Any]]] = [
    (lambda p: p.text("x"), [None, "", 1, [], "a" * 257]),
    (lambda p: p.text_or_none("x"), ["", 1, {}, "a" * 257]),
    (lambda p: p.number("x", 0, 9), [-1, 10, 1.0, True, "1", []]),
    (lambda p: p.page("x"), [0, -1, "1", 2**60, True]),
    (lambda p: p.flag("x", True), [0, 1, "true", {}]),
    (lambda p: p.objects("x"), [{}, "", [1], [{}, None]]),
    (lambda p: p.texts("x"), ["a", [1], [""], {}]),
    (lambda p: p.object("x"), [[], "a", 1]),
    (lambda p: p.choice("x", ("a", "b")), ["c", 1, "", []]),
    (lambda p: p.path("x"), [None, "a", "./a", "~/a", "/a\0", 1, "/" * 4097]),
    (lambda p: p.paths("x"), [["a"], "/a", ["/a", 1], ["/a"] * limits.ROOTS_MAX]),
]


@pytest.mark.parametrize(("getter", "value", "found"), GOOD)
def test_right_values_come_through(
    getter: Callable[[Params], object], value: Any, found: Any
) -> None:
    assert getter(Params({"x": value, "limit": value})) == found


@pytest.mark.parametrize(
    ("getter", "value"), [(getter, value) for getter, values in BAD for value in values]
)
def test_wrong_values_are_named(getter: Callable[[Params], object], value: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        getter(Params({"x": value}))
    assert refused.value.data["param"] == "x"
    assert refused.value.message.startswith("x ")


def test_params_are_an_object_or_nothing() -> None:
    assert "x" not in Params(None)
    with pytest.raises(InvalidParams):
        Params([])


@pytest.mark.req("W-2")
@pytest.mark.parametrize("meta", [None, 1, [], {"goclaw": None}, {"goclaw": 1}, {}])
def test_odd_meta_is_no_meta(meta: object) -> None:
    assert Params({"_meta": meta}).extension.values == {}
    assert Params({"_meta": meta}).trace is None


@pytest.mark.req("R-4")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", False),
        ('00-"', False),
        (7, False),
    ],
)
def test_a_trace_is_taken_only_whole(text: object, kept: bool) -> None:
    assert Params({"_meta": {"traceparent": text}}).trace == (text if kept else None)
