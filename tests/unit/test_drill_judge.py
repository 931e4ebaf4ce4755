"""ops/drill.py: what a life left is judged by its log and its sink alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from goclaw.ops.drill import Life, Report, policy_text
from goclaw.ops.sink import TOOLS, Dispatch, Sink
from goclaw.policy import document

pytestmark = pytest.mark.req("E-10")

TASK = "task_1"


def life(*calls: tuple[str, str], kills: int = 1) -> Life:
    """A good life that made these calls: tool and status."""
    made = Life(kills=kills, run_id="run_1", text="end", runs={"run_1": "SUCCEEDED"})
    for ordinal, (tool, status) in enumerate(calls):
        intent = {
            "type": "effect.intent",
            "ordinal": ordinal,
            "name": tool,
            "idempotencyKey": f"k{ordinal}",
        }
        end = {
            "sessionUpdate": "tool_call_update", "toolCallId": f"{TASK}.{ordinal}",
            "status": "completed", "_meta": {"goclaw": {"status": status}},
        }  # fmt: skip
        for event in (intent, {"type": "update", "update": end}):
            number = len(made.log) + 1
            made.log[number] = {"eventId": number, "runId": "run_1", **event}
        made.dispatches.append(Dispatch(tool, f"k{ordinal}"))
    made.shown = copy.deepcopy(made.log)
    return made


CALLS = tuple((tool.name, "completed") for tool in TOOLS)


def judged(changed: Life, *calls: tuple[str, str]) -> list[str]:
    report = Report(life(*(calls or CALLS), kills=0), [])
    assert not report.violations
    assert report.add("here", changed) == (not report.violations)
    assert report.held == (not report.violations)
    return [what for where, what in report.violations if where == "here"]


def test_a_good_life_is_good() -> None:
    assert judged(life(*CALLS)) == []


def test_without_a_kill_nothing_is_proved() -> None:
    report = Report(life(*CALLS, kills=0), [])
    report.add("here", life(*CALLS, kills=0))
    assert (report.kills, report.spared, report.violations) == (0, 1, [])
    assert not report.held


@pytest.mark.parametrize(("times", "bad"), [(0, True), (1, False), (2, True)])
@pytest.mark.parametrize("tool", ["probeable", "irreversible"])
def test_once_is_once(tool: str, times: int, bad: bool) -> None:
    changed = life((tool, "completed"))
    changed.dispatches *= times
    found = judged(changed, (tool, "completed"))
    assert [f"happened {times} times" in what for what in found] == [True] * bad


@pytest.mark.parametrize(("times", "bad"), [(0, False), (1, False), (2, True)])
def test_what_nobody_knows_happened_once_or_not(times: int, bad: bool) -> None:
    changed = life(("irreversible", "unknown"))
    changed.dispatches *= times
    assert bool(judged(changed, ("irreversible", "completed"))) == bad


def test_a_keyed_call_may_be_sent_again_with_its_key_only() -> None:
    changed = life(("keyed", "completed"))
    changed.dispatches *= 3
    assert judged(changed, ("keyed", "completed")) == []
    changed.log[1]["idempotencyKey"] = "another"
    changed.log[3] = {**life(("keyed", "completed")).log[1], "eventId": 3}
    changed.shown = {}
    changed.dispatches.append(Dispatch("keyed", "another"))
    (what,) = judged(changed, ("keyed", "completed"))
    assert "happened 2 times, allowed: one key" in what


def test_a_refused_call_did_not_happen() -> None:
    changed = life(("pure", "denied"))
    (what,) = judged(changed, ("pure", "completed"))
    assert "happened 1 times" in what


def test_a_dispatch_that_no_journal_knows_is_told() -> None:
    changed = life(*CALLS)
    changed.dispatches.append(Dispatch("keyed", "nobody's"))
    assert judged(changed) == ["keyed was dispatched with a key that the journal does not hold"]


def test_a_lost_run_is_told() -> None:
    changed = life(*CALLS)
    changed.run_id, changed.runs = "run_2", {"run_2": "SUCCEEDED"}
    assert judged(changed) == ["run_1 is gone"]


def test_a_second_run_is_told() -> None:
    changed = life(*CALLS)
    changed.runs["run_2"] = "SUCCEEDED"
    assert judged(changed) == ["one submission became 2 tasks"]


def test_a_run_that_does_not_succeed_is_lost() -> None:
    changed = life(*CALLS)
    changed.runs["run_1"] = "DEAD_LETTER"
    assert judged(changed) == ["run_1 is DEAD_LETTER"]


def test_other_words_and_other_calls_are_told() -> None:
    changed = life(*CALLS)
    changed.text = "else"
    assert judged(changed) == ["the run ended with other words: 'else'"]
    changed = life(*CALLS)
    changed.tools = [("word-count", "completed", {"words": 1})]
    assert judged(changed)[0].startswith("the run's calls came to something else")
    fewer = life(*CALLS[:-1])
    assert any(what.startswith("the run made other calls") for what in judged(fewer))


def test_a_run_that_fails_in_peace_must_fail_when_killed() -> None:
    reference = life(*CALLS, kills=0)
    reference.runs["run_1"] = "FAILED"
    report = Report(reference, [])
    assert not report.add("here", life(*CALLS))
    assert report.tasks_lost == 1
    assert report.add("there", dataclasses.replace(reference, kills=1))


def test_a_run_that_does_not_end_in_peace_is_told() -> None:
    reference = life(*CALLS, kills=0)
    reference.runs["run_1"] = "SUSPENDED"
    (violation,) = Report(reference, []).violations
    assert violation == ("the run that nobody killed", "the run does not end: SUSPENDED")


def test_an_event_that_was_shown_and_changed_is_told() -> None:
    changed = life(*CALLS)
    changed.log[2] = {**changed.log[2], "runId": ""}
    assert judged(changed) == ["event 2 was shown and is not in the log"]


def test_what_stopped_the_drill_is_told() -> None:
    changed = life(*CALLS)
    changed.troubles.append("it does not start again")
    assert judged(changed) == ["it does not start again"]


def test_the_policy_of_a_drill_is_one(tmp_path: Any) -> None:
    rules = document.load(policy_text("wasm/mine"))
    assert rules.version != document.load(policy_text()).version


def test_a_sink_keeps_the_order(tmp_path: Any) -> None:
    sink = Sink(tmp_path / "sink")
    assert sink.dispatches() == []
    lines = [Dispatch("keyed", "b"), Dispatch("pure", "a"), Dispatch("keyed", "b")]
    for line in lines:
        sink.take(line)
    assert sink.dispatches() == lines
