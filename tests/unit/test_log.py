"""core/log.py: lines with ids, bounded in every direction, never in the caller's way."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits, log
from goclaw.core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("O-2")


class FixedClock(SystemClock):
    def wall_ms(self) -> int:
        return 1_700_000_000_123


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def writing(folder: Path, **options: Any) -> Iterator[log.SystemLog]:
    system = log.SystemLog(folder / "system.jsonl", FixedClock(), **options)
    try:
        yield system
    finally:
        system.close()


def ours() -> list[logging.Handler]:
    """The handlers that goclaw added; pytest adds its own."""
    handlers = logging.getLogger("goclaw").handlers
    return [handler for handler in handlers if type(handler).__module__ == log.__name__]


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "system.jsonl").read_text("ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_has_time_level_component_and_message(home: Path) -> None:
    with writing(home):
        log.logger("engine.scheduler").info("claimed %d", 3, extra={"data": {"lanes": 4}})
        log.logger("store").debug("not at this level")
    assert lines(home) == [
        {
            "timestamp": "2023-11-14T22:13:20.123Z",
            "level": "INFO",
            "component": "engine.scheduler",
            "message": "claimed 3",
            "data": {"lanes": 4},
        }
    ]
    assert stat.S_IMODE((home / "system.jsonl").stat().st_mode) == 0o600


@pytest.mark.req("R-4")
def test_ids_travel_with_the_work(home: Path) -> None:
    async def work(name: str) -> None:
        with log.bound(task=name, attempt=2):
            await asyncio.sleep(0)
            log.logger("x").info(name)

    async def main() -> None:
        with log.bound(trace="t", session="s"), log.bound(run="r", session=None):
            await asyncio.gather(work("a"), work("b"))
            log.logger("x").info("outside")

    with writing(home):
        asyncio.run(main())
        assert log.ids() == {}
    ids = [{name: line.get(name) for name in log.ID_NAMES} for line in lines(home)]
    common = {"traceId": "t", "sessionId": "s", "runId": "r"}
    assert ids == [
        {**common, "taskId": "a", "attempt": 2},
        {**common, "taskId": "b", "attempt": 2},
        {**common, "taskId": None, "attempt": None},
    ]


def test_an_error_brings_its_stack_to_the_file_only(home: Path) -> None:
    terminal = Terminal()
    with writing(home, terminal=terminal):
        try:
            raise RuntimeError("inner")
        except RuntimeError:
            log.logger("x").exception("it failed")
    (line,) = lines(home)
    assert line["level"] == "ERROR"
    assert "RuntimeError: inner" in line["stack"]
    assert terminal.getvalue() == "22:13:20 ERROR x: it failed\n"


def test_people_see_a_short_line_without_control_characters(home: Path) -> None:
    terminal = Terminal()
    with writing(home, terminal=terminal):
        log.logger("x").info("red \x1b[31m and\nnew line \u202e")
    assert terminal.getvalue() == "22:13:20 x: red  [31m and new line  \n"


def test_what_is_no_terminal_gets_nothing(home: Path) -> None:
    pipe = io.StringIO()
    with writing(home, terminal=pipe):
        log.logger("x").info("a")
    assert pipe.getvalue() == ""


@given(text=st.text(alphabet=st.characters(), max_size=60))
def test_any_text_is_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("log", numbered=True)
    with writing(folder), log.bound(task=text):
        log.logger("x").info("%s", text, extra={"data": {"text": text}})
    (line,) = lines(folder)
    assert (line["message"], line["taskId"], line["data"]) == (text, text, {"text": text})


def test_a_long_line_is_cut(home: Path) -> None:
    with writing(home):
        log.logger("x").info("\U0001f600" * 1_000_000)
        log.logger("x").info("short", extra={"data": {"a": "b" * 1_000_000}})
    assert [line["data"] for line in lines(home)] == [{"cut": True}] * 2
    for raw in (home / "system.jsonl").read_bytes().splitlines():
        assert len(raw) < limits.LOG_LINE_BYTES_MAX


@pytest.mark.parametrize("value", [object(), float("nan"), {1: {2}}])
def test_data_that_is_not_json_costs_the_data_only(home: Path, value: object) -> None:
    with writing(home):
        log.logger("x").info("kept", extra={"data": {"value": value}})
    (line,) = lines(home)
    assert (line["message"], line["data"]) == ("kept", {"unencodable": True})


def test_wrong_arguments_never_reach_the_caller(home: Path) -> None:
    record = logging.LogRecord("goclaw.x", logging.INFO, "", 0, "%d lanes", ("four",), None)
    with writing(home):
        (intake,) = ours()
        intake.handle(record)
    assert lines(home)[0]["message"] == "%d lanes ('four',)"


def test_files_rotate_within_their_bound(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOG_FILE_BYTES_MAX", 1_000)
    with writing(home):
        for n in range(200):
            log.logger("x").info("line %d", n)
    names = sorted(path.name for path in home.iterdir())
    assert names == ["system.jsonl", *(f"system.jsonl.{n}" for n in range(1, 5))]
    assert all(path.stat().st_size <= 1_000 for path in home.iterdir())
    numbers: list[int] = []
    for name in [*reversed(names[1:]), names[0]]:
        text = (home / name).read_text()
        numbers += [int(json.loads(line)["message"].split()[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 200))


@pytest.mark.req("R-5", "I-8")
def test_a_full_queue_drops_and_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held in the terminal while the caller goes on."""
    entered, released = threading.Event(), threading.Event()

    class Stuck(Terminal):
        def write(self, text: str) -> int:
            entered.set()
            released.wait()
            return len(text)

    monkeypatch.setattr(limits, "LOG_RECORDS_MAX", 10)
    with writing(home, terminal=Stuck()) as system:
        log.logger("x").info("held")
        entered.wait()
        for n in range(15):
            log.logger("x").info("line %d", n)
        assert system.dropped == 5
        released.set()
    found = lines(home)
    assert [line["data"] for line in found if "data" in line] == [{"lost": 5}]
    assert len(found) == 1 + 10 + 1


def test_a_disk_that_fails_and_recovers(home: Path) -> None:
    folder = home / "logs"
    written: list[str] = []

    class Watching(Terminal):
        def write(self, text: str) -> int:
            written.append(text)
            seen.release()
            return len(text)

    seen = threading.Semaphore(0)
    with writing(folder, terminal=Watching()) as system:
        log.logger("x").info("lost")
        seen.acquire()
        log.logger("x").info("lost as well")
        seen.acquire()
        while system.dropped < 2:
            os.sched_yield()
        folder.mkdir()
        log.logger("x").info("kept")
    messages = [line["message"] for line in lines(folder)]
    assert messages[-1] == "kept"
    assert messages[0].startswith("2 log lines were lost")


def test_a_torn_line_spoils_itself_only(home: Path) -> None:
    (home / "system.jsonl").write_text('{"timestamp": "20')
    with writing(home):
        log.logger("x").info("whole")
    torn, whole = (home / "system.jsonl").read_text().splitlines()
    assert torn == '{"timestamp": "20'
    assert json.loads(whole)["message"] == "whole"


def test_a_full_disk_is_a_loss_and_no_error(home: Path) -> None:
    """/dev/full fails as a full disk does."""
    (home / "system.jsonl").symlink_to("/dev/full")
    with writing(home) as system:
        log.logger("x").info("lost")
    assert system.dropped == 1


def test_a_line_that_fits_in_part_is_a_loss(home: Path) -> None:
    """In a process of its own: the kernel cuts the write at the largest file size."""
    code = (
        "import resource, signal, sys, pathlib\n"
        "from goclaw.core import clock, log\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "system = log.SystemLog(pathlib.Path(sys.argv[1]), clock.SystemClock())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))\n"
        "log.logger('x').info('cut')\n"
        "system.close()\n"
        "print(system.dropped)\n"
    )
    path = home / "system.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert path.stat().st_size == 50


def test_close_twice_and_lines_after_it(home: Path) -> None:
    with writing(home) as system:
        log.logger("x").info("a")
    system.close()
    log.logger("x").info("nobody listens")
    assert len(lines(home)) == 1
    assert ours() == []


@pytest.mark.req("A-6", "I-7")
def test_nothing_secret_comes_to_the_file_or_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_clean", lambda data: data.replace(b"hunter2", b"secret:k"))
    terminal = Terminal()
    with writing(tmp_path, terminal=terminal):
        log.logger("t").info("it is hunter2", extra={"data": {"also": "hunter2"}})
    written = (tmp_path / "system.jsonl").read_text()
    for said in (terminal.getvalue(), written):
        assert "it is secret:k" in said
        assert "hunter2" not in said
    errors = log.CleanErrors(below := io.StringIO())
    errors.write("half hun")
    errors.write("ter2 and\nthe rest")
    assert below.getvalue() == "half secret:k and\n"
    errors.write(" is hunter2")
    errors.flush()
    assert below.getvalue() == "half secret:k and\nthe rest is secret:k"
