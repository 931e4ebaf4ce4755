"""Proves that workers which die, hang, are stopped or come late harm nothing (A-10, Q-4, E-3).

Every part is a process of its own: daemon, workers, and a sink that counts side effects by key.
After each test the laws of the store hold, a task has one end, and no key has two effects.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from workers_support import works

from goclaw.core.errors import EffectUnknown, LeaseLost

if TYPE_CHECKING:
    from pathlib import Path

    from workers_support import Works

CALL = {"kind": "tool", "name": "charge", "requestHash": "0" * 64}


@pytest.mark.req("A-10", "W-11")
def test_a_worker_that_does_its_work(home: Path) -> None:
    with works(home) as w:
        w.serve()
        worker = w.worker("--concurrency", "2")
        first = w.submit(["say", "one"], ["send", "charge"], ["send", "mail"], ["return", 7])
        second = w.submit(["caught", "charge", {"refuse": "card"}])
        assert w.until(first)["result"] == 7
        done = w.until(second)
        assert (done["state"], done["result"]) == ("SUCCEEDED", {"caught": {"code": "card"}})
        assert sorted(w.report()["effects"].values()) == [1, 1]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.req("A-10", "Q-4", "Q-5", "E-3")
@pytest.mark.parametrize("effect_class", ["irreversible", "probeable", "keyed", "pure"])
def test_a_worker_that_dies_with_a_call_on_its_way(home: Path, effect_class: str) -> None:
    """kill -9 between the far side's doing and the result: unknown, or sent again with its key."""
    with works(home) as w:
        w.serve()
        task_id = w.submit(
            ["send", "charge", {"class": effect_class, "after": [["die"]], "within": [1]}],
            ["return", "done"],
        )
        worker = w.worker()
        worker.wait()
        w.worker()
        if effect_class in ("keyed", "pure"):
            done = w.until(task_id)
            assert (done["state"], done["attempt"], done["result"]) == ("SUCCEEDED", 2, "done")
            # Our one key reached the far side twice; for a pure call that is no effect at all.
            assert list(w.report()["sends"].values()) == [2]
            if effect_class == "pure":
                w.wire.call("_goclaw/system/status", {})
                forget(w)
        else:
            parked = w.until(task_id, "SUSPENDED")
            assert (parked["reason"], parked["crashes"]) == ("effect_unknown", 1)
            w.wire.call(
                "_goclaw/effects/settle",
                {"taskId": task_id, "ordinal": 0, "outcome": "done", "result": {"seen": True}},
            )
            assert w.until(task_id)["result"] == "done"
            assert list(w.report()["sends"].values()) == [1]


def forget(w: Works) -> None:
    """Pure calls may happen as often as they like."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(w.sink))
        line.sendall(json.dumps({"op": "forget"}).encode() + b"\n")
        line.makefile().readline()


@pytest.mark.req("A-10", "Q-4", "E-3", "I-4")
def test_a_worker_that_is_stopped_longer_than_its_lease(home: Path) -> None:
    """SIGSTOP between the intent and the call: whoever finds it resumed does no second effect."""
    with works(home) as w:
        w.serve()
        task_id = w.submit(["send", "charge", {"before": [["stop"]], "within": [1]}])
        sleeper = w.worker()
        w.until_stopped(sleeper)
        # The lease runs out; nobody may repeat the call, which may have been made.
        assert w.until(task_id, "SUSPENDED")["reason"] == "effect_unknown"
        other = w.worker()
        w.resume(sleeper)  # it makes its call, late, and learns that its result counts no more
        next_id = w.submit(["send", "mail"], session=w.wire.new_session(w.world.cwd).session_id)
        assert w.until(next_id)["state"] == "SUCCEEDED"
        until_sent(w, 2)
        w.wire.call(
            "_goclaw/effects/settle",
            {"taskId": task_id, "ordinal": 0, "outcome": "done", "result": 1},
        )
        assert w.until(task_id)["result"] == 1
        for worker in (sleeper, other):
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0


def until_sent(w: Works, count: int) -> None:
    """Wait until that many calls reached the sink."""
    while sum(w.report()["sends"].values()) < count:
        w.wire.status()


@pytest.mark.req("A-10", "Q-4", "I-1")
def test_a_stopped_worker_that_has_done_nothing_yet_is_too_late(home: Path) -> None:
    with works(home) as w:
        w.serve()
        task_id = w.submit(["stop", {"attempts": [1]}], ["send", "charge"], ["note", "sent"])
        sleeper = w.worker()
        w.until_stopped(sleeper)
        w.worker()
        done = w.until(task_id)
        assert (done["state"], done["attempt"], done["crashes"]) == ("SUCCEEDED", 2, 1)
        w.resume(sleeper)
        after = w.submit(["return", "fresh"])
        assert w.until(after)["state"] == "SUCCEEDED"
        sleeper.send_signal(signal.SIGTERM)
        assert sleeper.wait(20) == 0
        # Its effect was refused: one sending, by the other one.
        assert list(w.report()["sends"].values()) == [1]
        assert w.marked().count("sent") == 1


@pytest.mark.req("A-10", "Q-4")
@pytest.mark.parametrize(("handler", "verb"), [("handle", "busy"), ("handle_async", "block")])
def test_a_busy_worker_keeps_its_lease(home: Path, handler: str, verb: str) -> None:
    """A handler that never lets go of its thread: heartbeats come from another one."""
    with works(home) as w:
        w.serve()
        w.worker(handler=handler)
        task_id = w.submit(["note", "begun"], [verb, "enough"])
        w.until_marked("begun")
        # Other leases come and go meanwhile: three of them, each longer than a heartbeat.
        for _ in range(3):
            lost = w.submit(session=w.wire.new_session(w.world.cwd).session_id)
            (claimed,) = w.claim()
            assert claimed["taskId"] == lost
            w.until(lost, "QUEUED")
            (claimed,) = w.claim()
            w.word(claimed, "complete", result=None)
        shown = w.task(task_id)
        assert (shown["state"], shown["attempt"]) == ("RUNNING", 1)
        w.mark("enough")
        done = w.until(task_id)
        assert (done["state"], done["attempt"]) == ("SUCCEEDED", 1)


@pytest.mark.req("A-10", "Q-4", "Q-11")
@pytest.mark.parametrize(
    ("handler", "verb", "mark"), [("handle", "lost", "lost"), ("handle_async", "hang", "let-go")]
)
def test_a_worker_that_hangs_is_told_when_its_task_is_cancelled(
    home: Path, handler: str, verb: str, mark: str
) -> None:
    with works(home) as w:
        w.serve()
        w.worker(handler=handler)
        task_id = w.submit(["note", "begun"], [verb])
        w.until_marked("begun")
        assert w.wire.cancel(task_id).outcome == "may_still_be_running"
        w.until_marked(mark)
        # Its place is free again.
        after = w.submit(["note", "after"])
        assert w.until(after)["state"] == "SUCCEEDED"
        assert w.task(task_id)["state"] == "CANCELED"


@pytest.mark.req("Q-4", "A-10")
def test_a_worker_that_answers_late_or_twice(home: Path) -> None:
    with works(home) as w:
        w.serve()
        task_id = w.submit()
        (first,) = w.claim()
        w.until(task_id, "QUEUED")  # nobody beats for it
        (second,) = w.claim()
        assert second["attempt"] == 2
        for word, params in (
            ("complete", {"result": "late"}),
            ("fail", {"code": "x", "message": "", "retryable": False}),
            ("release", {}),
            ("heartbeat", {}),
            ("effect", {"ordinal": 0, "phase": "intent", **CALL}),
        ):
            with pytest.raises(LeaseLost):
                w.word(first, word, **params)
        done = w.word(second, "complete", result="right")
        assert w.word(second, "complete", result="right") == done
        with pytest.raises(LeaseLost):
            w.word(second, "complete", result="other")
        with pytest.raises(LeaseLost):
            w.word(first, "complete", result="right")
        assert w.until(task_id)["result"] == "right"
        assert w.types().count("task.succeeded") == 1


@pytest.mark.req("Q-3", "I-1", "A-10")
def test_workers_that_race_for_each_task(home: Path) -> None:
    with works(home) as w:
        w.serve()
        workers = [w.worker("--concurrency", "3") for _ in range(2)]
        steps = (["send", "charge"], ["note", "done"])
        tasks = [w.submit(*steps, parallel=True) for _ in range(40)]
        assert {w.until(one)["state"] for one in tasks} == {"SUCCEEDED"}
        assert {w.task(one)["attempt"] for one in tasks} == {1}
        report = w.report()
        assert len(report["effects"]) == 40
        assert w.marked().count("done") == 40
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0


# Every place where the daemon may die under a worker's word. The worker never notices: it repeats
# what had no answer, under the same tokens.
PHASES = [
    *(f"{point}:kill@2" for point in (
        "after_claim", "before_intent", "after_intent", "before_result", "after_result",
        "before_complete", "after_complete",
    )),
    "after_claim:kill", "after_commit:kill@20", "after_commit:kill@25", "before_publish:kill@7",
]  # fmt: skip


@pytest.mark.req("A-10", "Q-6", "Q-4", "E-1", "W-11", "I-3", "I-4")
@pytest.mark.parametrize("fault", PHASES)
def test_a_daemon_that_dies_under_a_worker(home: Path, fault: str) -> None:
    with works(home) as w:
        w.serve()
        steps = (["send", "charge"], ["send", "mail"], ["return", "done"])
        tasks = [w.submit(*steps) for _ in range(3)]
        w.world.end(signal.SIGKILL)
        dying = w.serve(GOCLAW_FAULTS=fault)
        worker = w.worker()
        dying.wait()
        w.serve()
        for task_id in tasks:
            done = w.until(task_id)
            assert (done["state"], done["result"]) == ("SUCCEEDED", "done")
        assert sorted(w.report()["effects"].values()) == [1] * 6
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.req("Q-6", "Q-15", "A-10")
def test_leases_outlive_a_daemon_and_run_out_under_the_next(home: Path) -> None:
    """Also those of pools that nobody serves any more."""
    with works(home) as w:
        w.serve()
        kept, lost = w.submit(parallel=True), w.submit(parallel=True)
        first, second = w.claim(2)
        kept, lost = first["taskId"], second["taskId"]
        w.world.end(signal.SIGKILL)
        w.serve()
        # The same token goes on; the other one's time is up.
        assert w.word(first, "heartbeat")["leaseMs"] == 1_000
        w.word(first, "complete", result=1)
        assert w.task(kept)["state"] == "SUCCEEDED"
        shown = w.until(lost, "QUEUED")
        assert (shown["reason"], shown["crashes"], shown["failures"]) == ("lease_expired", 1, 0)
        with pytest.raises(LeaseLost):
            w.word(second, "complete", result=1)
        report = [event for event in w.types("_system") if event == "recovery.report"]
        assert report == []  # external leases are no business of a recovery
        assert w.world.end(signal.SIGTERM)
        w.serve()
        assert w.task(lost)["state"] == "QUEUED"


@pytest.mark.req("R-3", "Q-5", "Q-6", "A-10")
def test_a_daemon_that_stops_in_order_leaves_workers_alone(home: Path) -> None:
    with works(home) as w:
        w.serve()
        worker = w.worker()
        task_id = w.submit(["note", "begun"], ["wait", "go"], ["send", "charge"], ["return", 1])
        w.until_marked("begun")
        assert w.world.end(signal.SIGTERM)
        w.mark("go")
        w.serve()
        done = w.until(task_id)
        assert (done["state"], done["attempt"], done["crashes"]) == ("SUCCEEDED", 1, 0)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.req("Q-5", "A-10")
def test_a_worker_that_is_asked_to_stop(home: Path) -> None:
    """It finishes what it has; asked twice, it hands it back."""
    with works(home) as w:
        w.serve()
        worker = w.worker("--concurrency", "2")
        task_id = w.submit(["note", "begun"], ["wait", "go"], ["return", "finished"])
        w.until_marked("begun")
        worker.send_signal(signal.SIGTERM)
        other = w.submit(["return", 2], session=w.wire.new_session(w.world.cwd).session_id)
        w.mark("go")
        assert w.until(task_id)["result"] == "finished"
        assert worker.wait(20) == 0
        assert w.task(other)["state"] == "QUEUED"
        worker = w.worker()
        assert w.until(other)["state"] == "SUCCEEDED"
        stuck = w.submit(["note", "again"], ["wait", "never"])
        w.until_marked("again")
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)  # a second of the same kind would be one with the first
        assert worker.wait(20) == 0
        shown = w.task(stuck)
        assert (shown["state"], shown["reason"], shown["crashes"]) == ("QUEUED", "released", 0)


@pytest.mark.req("Q-5", "A-10")
def test_a_task_that_kills_every_worker_is_given_up(home: Path) -> None:
    with works(home) as w:
        w.serve()
        task_id = w.submit(["die"])
        for _ in range(3):
            worker = w.worker()
            worker.wait()
        done = w.until(task_id)
        assert (done["state"], done["reason"]) == ("DEAD_LETTER", "crashes_exhausted")
        assert (done["attempt"], done["crashes"], done["failures"]) == (3, 3, 0)


@pytest.mark.req("E-3", "A-10")
def test_a_late_word_of_an_unknown_effect_is_told_so(home: Path) -> None:
    with works(home) as w:
        w.serve()
        task_id = w.submit()
        (task,) = w.claim()
        assert w.word(task, "effect", ordinal=0, phase="intent", **CALL)["go"] is True
        w.until(task_id, "SUSPENDED")
        w.world.end(signal.SIGKILL)
        w.serve()  # another daemon says the same
        with pytest.raises(EffectUnknown) as told:
            w.word(task, "effect", ordinal=0, phase="result", result=1, **CALL)
        assert told.value.data["taskId"] == task_id
