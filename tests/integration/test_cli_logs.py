"""`goclaw logs`: the last lines, those of a level, session or task, and what comes (O-2)."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import CLOCK, World, world

from goclaw.core import limits, log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("O-2", "U-1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.home.logs.mkdir(parents=True)
        yield made


def noted(place: World, *messages: str, level: int = logging.INFO, **ids: Any) -> None:
    writer = log.SystemLog(place.home.logs / "system.jsonl", CLOCK)
    with log.bound(**ids):
        for message in messages:
            log.logger("test").log(level, message, extra={"data": {"n": 1}})
    writer.close()


def test_lines_are_chosen(place: World) -> None:
    noted(place, "one", session="session_1", task="task_1")
    noted(place, "two\x1b[31m", level=logging.ERROR, session="session_2")
    with open(place.home.logs / "system.jsonl", "a") as file:
        file.write("no line of ours\n[1]\n")
    noted(place, "three", level=logging.WARNING)

    def said(*words: str) -> list[str]:
        return [line["message"].rstrip("\x1b[31m") for line in place.lines("logs", *words)]

    assert said() == ["one", "two", "three"]
    assert said("--lines", "2") == ["two", "three"]
    assert said("--lines", "0") == []
    assert said("--level", "warning") == ["two", "three"]
    assert said("--level", "error", "--lines", "1") == ["two"]
    assert said("--session", "session_1") == said("--task", "task_1") == ["one"]
    first, second, _ = place.goclaw("logs").stdout.splitlines()
    assert first.endswith('INFO      test: one task_1 {"n": 1}')
    assert "\x1b" not in second
    assert "invalid choice: 'loud'" in place.goclaw("logs", "--level", "loud", code=2).stderr


def test_the_older_files_come_first_and_a_home_without_any_has_none(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.goclaw("logs").stdout == ""
    monkeypatch.setattr(limits, "LOG_FILE_BYTES_MAX", 400)
    messages = [f"message {number}" for number in range(8)]
    noted(place, *messages)
    assert len(list(place.home.logs.iterdir())) > 2
    assert [line["message"] for line in place.lines("logs")] == messages


def test_what_is_noted_from_now_on_is_followed_into_the_next_file(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_FILE_BYTES_MAX", 400)
    noted(place, "before")
    child = place.popen("logs", "--follow", "--json")
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["message"] == "before"
    for number in range(4):
        noted(place, f"after {number}")
        assert json.loads(child.stdout.readline())["message"] == f"after {number}"
    assert (place.home.logs / "system.jsonl.1").exists()
