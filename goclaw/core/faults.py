"""Named fault points: places where a test may kill, delay or fail the process (R-6).

Owns the list of the names and the switch GOCLAW_FAULTS. Not in here: any way to switch them on
other than the environment at start, so that no client can.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POINTS", "arm", "faultpoint", "hits"]

POINTS: Final[dict[str, str]] = {
    "before_submit": "a submission was checked, nothing of it is on disk",
    "after_submit": "a submission is on disk, nobody was told",
    "after_claim": "a claim is on disk, its attempt has not begun",
    "before_intent": "an effect was decided on, its intent is not on disk",
    "after_intent": "an intent is on disk, the effect was not dispatched",
    "before_note": "intents are on disk, no note says that they are sent",
    "after_note": "notes say that effects are sent, none was dispatched",
    "before_result": "an effect was dispatched and answered, its result is not on disk",
    "after_result": "a result is on disk, nobody was told",
    "before_complete": "an attempt is over, its end is not on disk",
    "after_complete": "the end of an attempt is on disk, nobody was told",
    "before_commit": "an operation is about to go to the writer, nothing of it is on disk",
    "after_commit": "an operation is on disk, its result was not handed out",
    "before_publish": "events are on disk, no client has seen them",
    "before_ready": "a start is over but for daemon.json",
    "before_restore": "a backup was brought into the home, nothing is replaced",
    "during_restore": "a restore is decided, a file of it is about to be moved",
    "during_drain": "a stop waits for running attempts",
}
"""Every name and what is true at that moment. A house test compares it with the calls."""

_ENTRY: Final = re.compile(
    r"(?P<name>\w+):(?P<kind>kill|fail|delay)(=(?P<delay_ms>\d{1,6}))?(@(?P<hit>\d{1,9}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Fault:
    kind: str
    hit: int | None  # None: at every hit
    delay_ms: int


_armed: dict[str, list[_Fault]] | None = None
_hits: dict[str, int] = {}
_lock = threading.Lock()


def faultpoint(name: str, times: int = 1) -> None:
    """Do nothing, unless the environment asked for a fault here. Any thread.

    ``times``: it is true of so many things at once, each of which is a hit. ``kill`` ends the
    process as kill -9 does; ``fail`` raises OSError (EIO); ``delay`` blocks the calling thread, as
    a slow disk would.
    """
    if _armed is None:
        return
    for _ in range(times):
        _strike(name)


def arm(environ: Mapping[str, str]) -> None:
    """Take GOCLAW_FAULTS, as in ``after_claim:kill@3,after_commit:delay=50``; counts start at 0.

    ``@N`` means the Nth hit only; without it kill and fail strike at the first, delay at every one.
    Called once at start. Raises ConfigRefused for anything it does not know.
    """
    global _armed
    text = environ.get("GOCLAW_FAULTS", "")
    armed: dict[str, list[_Fault]] = {}
    for entry in filter(None, text.split(",")):
        match = _ENTRY.fullmatch(entry)
        if match is None or (match["kind"] == "delay") != (match["delay_ms"] is not None):
            raise ConfigRefused(
                f"GOCLAW_FAULTS: {entry!r} is not understood.",
                hint="Write NAME:kill, NAME:fail or NAME:delay=MS, each with @N for the Nth hit.",
            )
        name = match["name"]
        if name not in POINTS:
            raise ConfigRefused(
                f"GOCLAW_FAULTS: there is no fault point {name!r}.",
                hint=f"Known are {', '.join(sorted(POINTS))}.",
            )
        kind, delay_ms = match["kind"], int(match["delay_ms"] or 0)
        every = None if kind == "delay" else 1
        hit = int(match["hit"]) if match["hit"] else every
        if hit == 0 or delay_ms > limits.FAULT_DELAY_MS_MAX:
            raise ConfigRefused(
                f"GOCLAW_FAULTS: {entry!r} is out of range.",
                hint=f"Hits count from 1; a delay is at most {limits.FAULT_DELAY_MS_MAX} ms.",
            )
        armed.setdefault(name, []).append(_Fault(kind, hit, delay_ms))
    with _lock:
        _hits.clear()
        _armed = armed or None


def hits() -> dict[str, int]:
    """How often each point was passed since ``arm``; empty when nothing is armed. Any thread."""
    with _lock:
        return dict(_hits)


def _strike(name: str) -> None:
    with _lock:
        count = _hits[name] = _hits.get(name, 0) + 1
        due = [fault for fault in (_armed or {}).get(name, ()) if fault.hit in (None, count)]
    for fault in due:
        if fault.kind == "delay":
            time.sleep(fault.delay_ms / 1000)
        elif fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(errno.EIO, f"fault point {name}")
