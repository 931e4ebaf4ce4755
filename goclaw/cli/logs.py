"""`goclaw logs`: the daemon's own notes, of which it is not needed.

Owns the choice of lines and how one is shown. Not in here: their writing (``core/log.py``), where
secrets are taken out; decisions (``goclaw audit``), the events of a session (``goclaw events``).
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.core import limits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["logs"]

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def logs(options: argparse.Namespace) -> int:
    """Print the last lines that fit, oldest first; with ``--follow`` until the reader leaves."""
    path = home_of(options).logs / "system.jsonl"
    with_ages = [path.with_name(f"{path.name}.{age}") for age in range(limits.LOG_FILES_MAX, 0, -1)]
    last: deque[dict[str, Any]] = deque(maxlen=options.lines)
    tail = _Tail(path)
    for old in with_ages:
        last.extend(one for one in _Tail(old).lines() if _fits(one, options))
    last.extend(one for one in tail.lines() if _fits(one, options))
    for one in last:
        _print(one, options)
    pause = threading.Event()
    while options.follow:
        found = [one for one in tail.lines() if _fits(one, options)]
        for one in found:
            _print(one, options)
        pause.wait(limits.LOG_LOOK_MS / 1000)
    return 0


class _Tail:
    """The whole lines of a file that grows, and that another takes the place of when it is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._rest = b""

    def lines(self) -> Iterator[dict[str, Any]]:
        """Those that were not read before. What is no line of ours is left out."""
        while True:
            if self._file is None and not self._open():
                return
            is_replaced = self._is_replaced()  # before it is read to its end
            for line in self._file:
                self._rest += line
                if self._rest.endswith(b"\n"):
                    whole, self._rest = self._rest, b""
                    found = _read(whole)
                    if found is not None:
                        yield found
            if not is_replaced:
                return
            self._file.close()
            self._file, self._rest = None, b""

    def _open(self) -> bool:
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115 - it stays open to be followed
        except FileNotFoundError:
            return False
        return True

    def _is_replaced(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("level") in _LEVELS else None


def _fits(one: dict[str, Any], options: argparse.Namespace) -> bool:
    least = _LEVELS.index((options.level or "debug").upper())
    return (
        _LEVELS.index(one["level"]) >= least
        and options.session in (None, one.get("sessionId"))
        and options.task in (None, one.get("taskId"))
    )


def _print(one: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        show.json_line(one)
        return
    about = [str(one[name]) for name in ("taskId", "sessionId") if name in one][:1]
    data = [json.dumps(one["data"], ensure_ascii=False)] if "data" in one else []
    text = " ".join([f"{one.get('component')}: {one.get('message')}", *about, *data])
    print(show.one_line(f"{one.get('timestamp')}  {one['level']:<8}  {text}"), flush=options.follow)
    for line in str(one.get("stack", "")).splitlines():
        print(show.one_line(f"        {line}"), flush=options.follow)
