"""Which tools there are: precedence, clashes, unknown schemas, the built-in ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from goclaw.core import limits
from goclaw.core.records import Done, Tool
from goclaw.core.states import EffectClass
from goclaw.tools.builtin import SLEEP, Builtin, sleep_ms
from goclaw.tools.registry import Clash, Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def tool(name: str, source: str = "test", **schema: Any) -> Tool:
    return Tool(name, source, "A tool.", {"type": "object", **schema}, EffectClass.PURE, "none")


class Source:
    def __init__(self, *tools: Tool) -> None:
        self._tools = tools

    def tools(self) -> Sequence[Tool]:
        return self._tools

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        return Done(b"{}")

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        return None


@pytest.mark.req("K-8")
def test_the_first_source_of_a_name_wins_and_the_clash_is_told() -> None:
    first = Source(tool("a", "project"), tool("sleep", "project"))
    registry = Registry([first, Source(tool("a", "installed"), tool("b", "installed"))])
    assert [(one.name, one.source) for one in registry.tools()] == [
        ("a", "project"), ("b", "installed"), ("delegate", "builtin"), ("sleep", "project"),
    ]  # fmt: skip
    assert registry.clashes == (
        Clash("a", "project", "installed"),
        Clash("sleep", "project", "builtin"),
    )
    entry = registry.get("a")
    assert entry is not None
    assert entry.origin is first
    assert registry.get("none") is None


@pytest.mark.req("B-1")
def test_a_tool_whose_schema_is_not_understood_is_left_out_and_told() -> None:
    registry = Registry([Source(tool("bad", wrong=1), tool("good"))])
    assert registry.get("bad") is None
    assert registry.get("good") is not None
    (problem,) = registry.problems
    assert "test/bad" in problem
    assert "'wrong'" in problem


@pytest.mark.req("E-9")
@pytest.mark.parametrize(
    ("seconds", "misfit"),
    [
        (0, None),
        (0.25, None),
        (limits.SLEEP_MS_MAX // 1000, None),
        (-1, "seconds: must be at least 0"),
        (limits.SLEEP_MS_MAX, f"seconds: must be at most {limits.SLEEP_MS_MAX // 1000}"),
        ("1", "seconds: must be of type number"),
        (True, "seconds: must be of type number"),
    ],
)
def test_the_bounds_of_sleep(seconds: Any, misfit: str | None) -> None:
    entry = Registry().get("sleep")
    assert entry is not None
    assert entry.misfit({"seconds": seconds}) == misfit


@pytest.mark.req("E-9")
def test_only_sleep_waits() -> None:
    assert sleep_ms(SLEEP, {"seconds": 0.25}) == 250
    assert sleep_ms(tool("sleep"), {"seconds": 1}) is None


def test_the_end_of_a_sleep_says_how_long_it_was() -> None:
    async def body() -> Done:
        arguments = {"seconds": 2}
        return await Builtin().run(SLEEP, arguments, key="k", cancelled=asyncio.Event(), files={})

    assert asyncio.run(body()) == Done(b'{"slept":2}')


@pytest.mark.parametrize(
    ("schema", "file", "plain", "hint"),
    [
        ({"required": ["file"], "properties": {"file": {}}}, "file", "file", "FILE"),
        ({"properties": {"file": {}, "text": {}}}, "file", "file", "FILE"),
        (
            {"required": ["pointer"], "properties": {"pointer": {}, "file": {}}},
            "file",
            None,
            "{json}",
        ),
        ({"required": ["seconds"], "properties": {"seconds": {}}}, None, "seconds", "SECONDS"),
        ({"properties": {"a": {}}}, None, None, "{json}"),
        ({}, None, None, "{json}"),
    ],
)
def test_what_a_command_line_may_be(
    schema: dict[str, Any], file: str | None, plain: str | None, hint: str
) -> None:
    one = Tool("t", "s", "", schema, EffectClass.PURE, "none", file_argument=file)
    assert (one.plain_argument, one.hint, one.resource) == (plain, hint, "s/t")
