"""`goclaw dlq` as a person uses it, with a daemon and without.

Owns nothing but the tests. Not in here: what a redrive does (test_engine_dead_letters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World as Place
from roof_support import world

from goclaw.client import SyncClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with world(home) as made:
        yield made


def dead(place: Place, count: int = 1, fingerprint: str = "f") -> list[str]:
    """Dead letters that a worker left in the daemon's home."""
    found = []
    with SyncClient(place.home) as client:
        for number in range(count):
            pool = f"p{number}"  # a work of its own: no breaker opens
            session = client.new_session(place.cwd).session_id
            work: dict[str, Any] = {
                "sessionId": session, "pool": pool, "payload": 1, "maxAttempts": 1
            }  # fmt: skip
            client.call("_goclaw/task/submit", work)
            (claimed,) = client.call("_goclaw/worker/claim", {"pool": pool})["tasks"]
            client.call(
                "_goclaw/worker/fail",
                {"taskId": claimed["taskId"], "leaseToken": claimed["leaseToken"], "code": "gone",
                 "message": "It is\ngone.", "retryable": True, "fingerprint": fingerprint},
            )  # fmt: skip
            found.append(claimed["taskId"])
    return found


@pytest.mark.req("Q-7", "G-22", "U-1")
@pytest.mark.parametrize("served", [True, False])
def test_dead_letters_are_listed_shown_redriven_and_dropped(place: Place, served: bool) -> None:
    place.serve()
    one, two, three = dead(place, 3)
    (other,) = dead(place, fingerprint="g")
    if not served:
        place.end()
    listed = place.lines("dlq", "list")
    assert [letter["taskId"] for letter in listed] == [other, three, two, one]
    assert {letter["fingerprint"] for letter in listed} == {"f", "g"}
    assert [one["taskId"] for one in place.lines("dlq", "list", "--fingerprint", "g")] == [other]
    table = place.goclaw("dlq", "list").stdout.splitlines()
    assert table[0].split() == [
        "task", "reason", "fingerprint", "attempts", "failures", "crashes", "work", "age", "error",
    ]  # fmt: skip
    assert len(table) == 5
    for word in (one, "attempts_exhausted", "pool:p0", "gone: It is gone.", " s "):
        assert word in table[4], word

    shown = place.goclaw("dlq", "show", one).stdout
    assert "task.queued" in shown
    assert "task.dead_letter" in shown
    (whole,) = place.lines("dlq", "show", one)
    assert [event["type"] for event in whole["events"]] == [
        "task.queued", "task.claimed", "task.running", "task.dead_letter",
    ]  # fmt: skip

    dry = place.goclaw("dlq", "redrive", "--fingerprint", "f", "--dry-run").stdout
    assert dry.splitlines() == [f"would be redriven: {task}" for task in (one, two, three)]
    done = place.goclaw("dlq", "redrive", one)
    assert done.stdout == f"redriven: {one}\n"
    assert ("goclaw serve" in done.stderr) is not served
    (moved,) = place.lines("dlq", "redrive", "--fingerprint", "f")
    assert moved == {"tasks": [two, three], "skipped": []}
    assert place.lines("task", "show", two)[0]["reason"] == "redrive"
    assert place.goclaw("dlq", "drop", other).stdout == f"dropped: {other}\n"
    assert place.lines("dlq", "list") == []


@pytest.mark.req("U-1", "Q-1")
def test_what_cannot_be_carried_out_is_said(place: Place) -> None:
    place.serve()
    (task,) = dead(place)
    for words, code, said in (
        (("redrive", "task_none"), 1, "no task task_none"),
        (("redrive",), 2, "required"),
        (("redrive", task, "--fingerprint", "f"), 2, "not allowed with"),
        (("redrive", "--fingerprint", "none"), 1, "No dead letter has that fingerprint"),
        (("drop", "task_none"), 1, "no task"),
        (("show", "task_none"), 1, "no task"),
    ):
        assert said in place.goclaw("dlq", *words, code=code).stderr, words
    place.goclaw("dlq", "drop", task)
    again = place.goclaw("dlq", "redrive", task, code=1)
    assert f"Task {task} is dropped: it cannot be redriven." in again.stderr
