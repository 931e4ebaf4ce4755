"""`goclaw verify`: what it finds in a home as it is, and in one that somebody changed (O-4).

Owns the changes. Not in here: the audit's chain (``test_audit_chain.py``).
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import apsw
import pytest
from roof_support import World, script_file, world

from goclaw.store import database_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("O-4")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    """A home with runs of several ends, and the session of the first."""
    with world(tmp_path_factory.mktemp("v")) as place:
        brain = script_file(
            place.cwd,
            [{"call": "word-count", "args": {"file": "script.json"}}, {"sleepMs": 1}, {"say": "x"}],
        )
        first = place.lines("run", "--brain", brain, "go")[-1]
        place.lines("run", "--session", first["sessionId"], "nothing that fits")
        place.goclaw("run", "/no-such-command", code=1)
        yield place, first["sessionId"]


def test_a_home_as_it_is(lived: tuple[World, str]) -> None:
    place, session = lived
    (found,) = place.lines("verify")
    assert (found["ok"], found["faults"], found["partial"]) == (True, [], 0)
    assert found["sessions"] >= 3
    assert found["events"] > 20
    (one,) = place.lines("verify", session)
    assert (one["ok"], one["sessions"]) == (True, 1)
    assert one["events"] == len(place.lines("events", session))
    assert "every state as they say" in place.goclaw("verify").stdout
    assert "There is no session" in place.goclaw("verify", "session_x", code=1).stderr


CHANGES = {
    "a word of an event": (
        "UPDATE events SET payload = replace(payload, 'go', 'no') WHERE event_id = 3"
        " AND sid = :sid",
        3, "its content was changed",
    ),
    "the time of an event": (
        "UPDATE events SET at = at + 1 WHERE event_id = 4 AND sid = :sid", 0, "the chain does not",
    ),
    "an event that is gone": (
        "DELETE FROM events WHERE event_id = 5 AND sid = :sid", 6, "the event 5 is missing",
    ),
    "the last event": (
        "DELETE FROM events WHERE sid = :sid AND event_id = (SELECT head FROM sessions WHERE"
        " sid = :sid)",
        None, "the log ends there",
    ),
    "a task's state": (
        "UPDATE tasks SET state = 'FAILED' WHERE sid = :sid", 0, "by the log SUCCEEDED",
    ),
    "an attempt": ("UPDATE tasks SET attempt = 9 WHERE sid = :sid", 0, "at attempt 9, by the log"),
    "an effect's state": (
        "UPDATE effects SET state = 'unknown' WHERE ordinal = 0 AND tid IN"
        " (SELECT tid FROM tasks WHERE sid = :sid)",
        0, "is unknown, by the log result",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changed_is_named(
    lived: tuple[World, str], tmp_path: Path, change: str
) -> None:
    sql, event_id, what = CHANGES[change]
    place, session = lived
    with world(tmp_path) as other:
        shutil.rmtree(other.home.root, ignore_errors=True)
        shutil.copytree(place.home.root, other.home.root, ignore=shutil.ignore_patterns("run"))
        connection = apsw.Connection(str(database_files(other.home.root)[0]))
        ((sid,),) = connection.execute(
            "SELECT sid FROM sessions WHERE session_id = ?", (session,)
        ).fetchall()
        connection.execute(sql, {"sid": sid})
        assert connection.changes() > 0
        connection.close()
        (found,) = other.lines("verify", code=1)
        faults = [one for one in found["faults"] if what in one["what"]]
        assert faults, json.dumps(found)
        assert faults[0]["sessionId"] == session
        assert event_id in (None, faults[0]["eventId"])
        assert f"{session}: " in other.goclaw("verify", code=1).stdout


def test_it_looks_beside_a_daemon(lived: tuple[World, str]) -> None:
    place, _ = lived
    place.serve("--listen", "none")
    try:
        (found,) = place.lines("verify")
        assert found["ok"]
    finally:
        place.end()
