"""`goclaw timeline RUN` (O-4): the steps of runs whose steps are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World, script_file, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("O-4", "U-1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def of(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in found["entries"] if entry["kind"] == kind]


def test_every_step_is_there_once_with_its_duration(place: World) -> None:
    steps: list[dict[str, Any]] = [
        {"call": "sha256", "args": {"text": "abc"}}, {"ask": "may I?"}, {"say": "yes"},
    ]  # fmt: skip
    brain = script_file(place.cwd, steps)
    place.serve()
    (accepted,) = place.lines("run", "go", "--brain", brain, "--detach")
    other = place.lines("run", "other")[-1]
    waiting: list[dict[str, Any]] = []
    while not waiting:
        waiting = place.lines("approvals", "list")
    place.goclaw("approvals", "answer", waiting[0]["approvalId"], "allow")
    place.lines("run", "after", "--session", accepted["sessionId"])
    (found,) = place.lines("timeline", accepted["runId"])
    assert (found["state"], found["whole"]) == ("SUCCEEDED", True)
    states = [entry["what"].split()[0] for entry in of(found, "transition")]
    assert states == [
        "QUEUED", "CLAIMED", "RUNNING", "SUSPENDED", "QUEUED", "CLAIMED", "RUNNING", "SUCCEEDED",
    ]  # fmt: skip
    durations = [entry.get("durationMs") for entry in of(found, "transition")]
    assert durations[-1] is None, "the end lasts"
    since = [entry["sinceMs"] for entry in of(found, "transition")]
    assert durations[:-1] == [after - before for before, after in zip(since, since[1:])]  # noqa: B905, RUF007
    assert [entry["sinceMs"] for entry in found["entries"]] == sorted(
        entry["sinceMs"] for entry in found["entries"]
    )
    tools = [entry for entry in of(found, "effect") if "tool" in entry["what"]]
    assert [(entry["what"], entry["outcome"]) for entry in tools] == [
        ("1 tool sha256 (pure)", "done")
    ]
    (asked,) = of(found, "approval")
    assert asked["what"] == "may I?"
    assert asked["outcome"].startswith("allow")
    (suspended,) = [entry for entry in of(found, "transition") if "SUSPENDED" in entry["what"]]
    assert asked["sinceMs"] <= suspended["sinceMs"], "asked, then parked"
    assert asked["durationMs"] >= suspended["durationMs"]
    decided = [entry["what"] for entry in of(found, "decision")]
    assert any(what.startswith("allow tool.call") and "sha256" in what for what in decided)
    text = place.goclaw("timeline", accepted["runId"]).stdout
    assert text.count("\n") == len(found["entries"])
    # Another run has none of it.
    (second,) = place.lines("timeline", other["runId"])
    assert not of(second, "approval")
    assert {entry["what"] for entry in of(second, "decision")}.isdisjoint(
        what for what in decided if "sha256" in what
    )


def test_a_run_that_is_none_is_named(place: World) -> None:
    place.serve()
    assert "There is no run" in place.goclaw("timeline", "run_nothing", code=1).stderr
