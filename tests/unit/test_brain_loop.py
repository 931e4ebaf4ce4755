"""What the loop makes of prompts and results; its runs are in tests/integration/test_effects_*."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from goclaw.brains.answers import ToolResult
from goclaw.brains.loop import prompt_text, run_result
from goclaw.core import limits


@pytest.mark.req("W-1")
@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], ""),
        (
            [{"type": "text", "text": "/word-count "}, {"type": "text", "text": "a"}],
            "/word-count a",
        ),
        (
            [
                {"type": "text", "text": "see "},
                {"type": "resource_link", "uri": "file:///a", "name": "a"},
            ],
            "see file:///a",
        ),
        ([{"type": "resource", "resource": {"uri": "x", "text": "inside"}}], "inside"),
        ([{"type": "image", "data": ""}], ""),
    ],
)
def test_a_prompt_is_read_as_text(blocks: list[dict[str, Any]], text: str) -> None:
    assert prompt_text(blocks) == text


@pytest.mark.req("U-2")
def test_a_result_keeps_numbers_as_they_were_written() -> None:
    tools = [ToolResult("t", "completed", b'{"n": 1.10, "m": 12345678901234567890123}')]
    assert run_result("said", tools) == (
        b'{"text":"said","tools":[{"name":"t","status":"completed",'
        b'"output":{"n": 1.10, "m": 12345678901234567890123}}]}'
    )


@pytest.mark.req("I-5")
def test_the_largest_outputs_give_way_to_the_bound() -> None:
    large = b'"' + b"a" * limits.TOOL_OUTPUT_BYTES_MAX + b'"'
    tools = [ToolResult("small", "completed", b"1"), *[ToolResult("big", "completed", large)] * 6]
    result = run_result("said", tools)
    assert len(result) <= limits.RESULT_BYTES_MAX
    found = orjson.loads(result)
    assert found["text"] == "said"
    assert found["tools"][0]["output"] == 1
    outputs = [tool["output"] for tool in found["tools"][1:]]
    assert outputs.count({"omittedBytes": len(large)}) == 3


@pytest.mark.req("I-5")
def test_an_endless_text_is_cut_last() -> None:
    tools = [ToolResult("t", "completed", b"1")]
    result = run_result("é" * limits.RESULT_BYTES_MAX, tools)
    assert len(result) <= limits.RESULT_BYTES_MAX
    assert orjson.loads(result)["text"].startswith("éé")
