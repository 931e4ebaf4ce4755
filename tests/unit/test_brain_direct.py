"""Slash commands: what they mean, and what is answered when they mean nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from goclaw.brains.answers import Answer, Intent, Refusal, ToolResult, Turn
from goclaw.brains.deltas import Deltas
from goclaw.brains.direct import DirectBrain, parse_command
from goclaw.core.records import Tool
from goclaw.skills.catalog import Catalog
from goclaw.skills.tools import SkillTools
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from goclaw.core.records import Cleaner


class Nowhere:
    """A stream that nothing goes into."""

    message_id = "m"
    cleaner: Cleaner | None = None
    paced = True

    async def send(self, updates: Any) -> None:
        raise AssertionError(updates)


@pytest.fixture(scope="module")
def registry() -> Registry:
    """The built-in skills, listed and not run."""
    return Registry([SkillTools(Catalog(), None)])  # type: ignore[arg-type]


def answer(registry: Registry, turn: Turn) -> tuple[Answer, list[dict[str, Any]]]:
    async def body() -> tuple[Answer, list[dict[str, Any]]]:
        deltas = Deltas(Nowhere())
        return await DirectBrain(registry).answer(turn, deltas), await deltas.rest()

    return asyncio.run(body())


@pytest.mark.req("B-2")
@pytest.mark.parametrize(
    ("prompt", "tool", "arguments"),
    [
        ("/word-count README.md", "word-count", {"file": "README.md"}),
        ("/word-count a file with spaces.txt", "word-count", {"file": "a file with spaces.txt"}),
        ("  /word-count\t/abs/x  \n", "word-count", {"file": "/abs/x"}),
        ('/word-count {"file": "x\\ny"}', "word-count", {"file": "x\ny"}),
        ("/word-count {odd}.txt", "word-count", {"file": "{odd}.txt"}),
        ("/sha256 x", "sha256", {"file": "x"}),
        ('/sha256 {"text":\n"x"}', "sha256", {"text": "x"}),
        (
            '/json-query {"pointer": "/a", "file": "x"}',
            "json-query",
            {"pointer": "/a", "file": "x"},
        ),
        ("/json-query", "json-query", {}),
        ("/sleep 3", "sleep", {"seconds": 3}),
        ("/sleep 0.5", "sleep", {"seconds": 0.5}),
        ('/sleep {"seconds": 1}', "sleep", {"seconds": 1}),
    ],
)
def test_a_command_is_a_call(
    prompt: str, tool: str, arguments: dict[str, Any], registry: Registry
) -> None:
    assert parse_command(prompt, registry) == Intent(tool, arguments)
    found, updates = answer(registry, Turn(prompt, 0, ()))
    assert found == Answer(intents=(Intent(tool, arguments),))
    assert updates == []


@pytest.mark.req("B-2")
@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("/word-count", "/word-count needs its file. Write /word-count FILE."),
        ("/word-count a\nb", "/word-count takes one line. Write /word-count FILE."),
        ("/sleep soon", "'soon' is no number. Write /sleep SECONDS."),
        ("/sleep nan", "'nan' is no number. Write /sleep SECONDS."),
        ("/sleep inf", "'inf' is no number. Write /sleep SECONDS."),
        ("/json-query /a", "/json-query takes a JSON object. Write /json-query {json}."),
        (
            f'/json-query {{"pointer": "", "json": {"1" * 30}}}',
            "A number beyond 64 bits would be rounded: write the document as a text.",
        ),
        ("/json-query [1]", "/json-query takes a JSON object. Write /json-query {json}."),
    ],
)
def test_a_command_that_cannot_be_read_says_how_to_write_it(
    prompt: str, sentence: str, registry: Registry
) -> None:
    refusal = Refusal("invalid_params", sentence)
    assert parse_command(prompt, registry) == refusal
    found, (update,) = answer(registry, Turn(prompt, 0, ()))
    assert found == Answer(sentence, stop="refusal", refusal=refusal)
    assert Answer.from_json(found.to_json()) == found
    assert update["content"]["text"] == sentence


def test_broken_json_is_named(registry: Registry) -> None:
    for rest in ('{"pointer": }', '{"json": NaN}', "{" * 100_000, '{"a":' * 100_000):
        found = parse_command(f"/json-query {rest}", registry)
        assert isinstance(found, Refusal)
        assert found.message.startswith("The arguments of /json-query are no JSON: ")


@pytest.mark.req("B-2")
@pytest.mark.parametrize("prompt", ["hello", "", "/nope x", "what is /word-count?", "//", "/"])
@pytest.mark.req("U-1")
def test_anything_else_is_told_of_the_commands_and_of_models(
    prompt: str, registry: Registry
) -> None:
    found, updates = answer(registry, Turn(prompt, 0, ()))
    is_command = prompt == "/nope x"
    assert found.stop == ("refusal" if is_command else "end_turn")
    for name in ("/word-count FILE", "/sha256 FILE", "/json-query {json}", "/sleep SECONDS"):
        assert name in found.text
    assert "--brain" in found.text
    (update,) = updates
    assert update["content"]["text"] == found.text
    assert update["messageId"] == "m"
    if is_command:
        assert found.refusal == Refusal("unknown_command", "There is no command /nope.")
        assert found.text.startswith("There is no command /nope.\n\nCommands:")


@pytest.mark.req("B-2")
@pytest.mark.parametrize(
    ("status", "output", "text"),
    [
        ("completed", b'{"lines": 1}', '{"lines": 1}'),
        ("failed", b'{"error":"no such file","code":"x"}', "/t failed: no such file"),
        ("denied", b'{"error":"not here"}', "/t was denied: not here"),
        ("rejected", b'{"error":"a person said no"}', "/t was rejected: a person said no"),
        ("unknown", b'{"error":"x"}', "/t may or may not have happened: x"),
        ("failed", b'"plain"', '/t failed: "plain"'),
    ],
)
def test_what_a_call_came_to_is_shown(
    status: str, output: bytes, text: str, registry: Registry
) -> None:
    found, _ = answer(registry, Turn("/t", 1, (ToolResult("t", status, output),)))
    assert found == Answer(text, stop="end_turn")


def test_an_integer_argument_stays_one() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    tool = Tool("t", "s", "", schema, None, "none")  # type: ignore[arg-type]

    class Source:
        def tools(self) -> list[Tool]:
            return [tool]

    registry = Registry([Source()])  # type: ignore[list-item]
    found = parse_command("/t 7", registry)
    assert isinstance(found, Intent)
    assert orjson.dumps(found.arguments) == b'{"n":7}'
