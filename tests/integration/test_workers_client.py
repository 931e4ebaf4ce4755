"""Proves goclaw.worker and `goclaw worker`: what a handler does, and what becomes of its task.

Owns nothing but the tests. Not in here: kills and stops (test_workers_kills.py), the words
themselves (test_workers_wire.py).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from workers_support import HERE, works

import goclaw.worker
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import UsageError
from goclaw.policy import default
from goclaw.worker import AsyncContext, Context, EffectFailed, Failure, Retry, Worker

if TYPE_CHECKING:
    from pathlib import Path

CLOCK = SystemClock()


@pytest.mark.req("A-10", "Q-7", "E-2")
def test_what_a_handler_raises_is_what_becomes_of_its_task(home: Path) -> None:
    with works(home) as w:
        w.serve()
        w.worker()
        retried = w.until(w.submit(["retry", "busy", {"attempts": [1, 2]}], ["return", "third"]))
        assert (retried["result"], retried["attempt"], retried["failures"]) == ("third", 3, 2)
        failed = w.until(w.submit(["fail", "no-such-card"]))
        assert (failed["state"], failed["error"]["code"]) == ("FAILED", "no-such-card")
        fault = w.until(w.submit(["raise"]))
        assert (fault["state"], fault["reason"]) == ("DEAD_LETTER", "poison")
        assert fault["error"] == {"code": "worker_fault", "message": "ValueError: a fault"}
        exits = w.until(w.submit(["exit"], maxAttempts=1))
        assert exits["error"]["message"] == "RuntimeError: SystemExit: 3"
        odd = w.until(w.submit(["no-json"], maxAttempts=1))
        assert odd["error"]["message"].startswith("TypeError")
        large = w.until(w.submit(["large", 5 * 1024 * 1024]))
        assert (large["state"], large["error"]["code"]) == ("FAILED", "too_large")


@pytest.mark.req("A-10", "E-1", "E-2", "E-3")
def test_effects_are_answered_from_the_journal(home: Path) -> None:
    with works(home) as w:
        w.serve()
        w.worker()
        # Done, refused, and never sent; then the attempt fails, and another one goes past them.
        done = w.until(
            w.submit(
                ["send", "charge"],
                ["caught", "mail", {"refuse": "no such box"}],
                ["retry", "later", {"attempts": [1]}],
                ["send", "book", {"unsent": True, "within": [2]}],
                ["caught", "mail again", {"refuse": "full"}],
            )
        )
        assert (done["state"], done["attempt"]) == ("SUCCEEDED", 3)
        assert done["result"] == {"caught": {"code": "full"}}
        assert list(w.report()["sends"].values()) == [1, 1]
        effects = w.wire.call("_goclaw/effects/list", {"taskId": done["taskId"]})["effects"]
        assert [(one["ordinal"], one["name"], one["state"]) for one in effects] == [
            (0, "charge", "result"), (1, "mail", "result"), (2, "book", "result"),
            (3, "mail again", "result"),
        ]  # fmt: skip
        # An error that the handler does not catch ends the task: no attempt gets past it.
        ended = w.until(w.submit(["send", "x", {"refuse": "never"}]))
        assert (ended["state"], ended["error"]["code"]) == ("FAILED", "effect_failed")
        # A far side that took it and said nothing: nobody knows.
        parked = w.until(w.submit(["send", "y", {"reset": True}]), "SUSPENDED")
        assert (parked["reason"], parked["failures"]) == ("effect_unknown", 1)


@pytest.mark.req("A-10", "E-1")
def test_a_coroutine_function_works_as_well(home: Path) -> None:
    with works(home) as w:
        w.serve()
        worker = w.worker("--concurrency", "4", handler="handle_async")
        tasks = [w.submit(["say", "hi"], ["all", "a", "b", "c"], parallel=True) for _ in range(6)]
        for task_id in tasks:
            done = w.until(task_id)
            assert (done["state"], len(done["result"])) == ("SUCCEEDED", 3)
        assert sorted(w.report()["effects"].values()) == [1] * 18
        spurious = w.until(w.submit(["spurious"], maxAttempts=1))
        assert spurious["error"]["code"] == "worker_fault"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.req("A-10", "U-1")
def test_a_worker_waits_for_a_daemon(home: Path) -> None:
    with works(home) as w:
        early = w.world.popen(
            "worker", "--pool", "p", "workers_jobs:handle", environ={"PYTHONPATH": f"{HERE}"}
        )
        assert early.stderr is not None
        assert "waiting for one" in early.stderr.readline()
        w.serve()
        assert early.stdout is not None
        assert early.stdout.readline().startswith("goclaw worker ready")
        w.world.end(signal.SIGKILL)
        # Nobody to say goodbye to: it leaves at once.
        begun_ms = CLOCK.mono_ms()
        early.send_signal(signal.SIGINT)
        assert early.wait(30) == 0
        assert CLOCK.mono_ms() - begun_ms < limits.CLOSE_MS_MAX
        early.stderr.close()
        w.serve()


@pytest.mark.req("U-1", "A-10")
def test_the_command_line_says_what_is_wrong(home: Path) -> None:
    with works(home) as w:
        (w.world.cwd / "here.py").write_text("import nowhere_to_be_found\n", "utf-8")
        (w.world.cwd / "jobs.py").write_text("def f(context):\n    return 1\nN = 7\n", "utf-8")
        for words, says in (
            (("jobs",), "names no function"),
            (("jobs:",), "names no function"),
            (("nowhere:f",), "no module nowhere"),
            (("jobs:g",), "no function g"),
            (("jobs:N",), "no function N"),
            (("--concurrency", "0", "jobs:f"), "no count"),
            (("--concurrency", "65", "jobs:f"), "1 to 64 tasks"),
        ):
            refused = w.world.goclaw("worker", "--pool", "p", *words, code=2)
            assert says in refused.stderr, (words, refused.stderr)
        assert "--pool" in w.world.goclaw("worker", "jobs:f", code=2).stderr
        w.world.goclaw("worker", "--pool", "p", "here:f", code=70)
        w.serve()


@pytest.mark.req("A-2", "A-10")
def test_a_worker_that_may_not_claim_says_so(home: Path) -> None:
    with works(home) as w:
        w.serve()
        w.world.end(signal.SIGTERM)
        deny = """
[[rule]]
id = "no-workers"
effect = "deny"
actions = ["worker.claim"]
reason = "nobody works here"
"""
        w.world.home.policy.write_text(default.TEXT + deny, "utf-8")
        w.serve()
        child = w.world.popen(
            "worker", "--pool", "p", "workers_jobs:handle", environ={"PYTHONPATH": f"{HERE}"}
        )
        _, said = child.communicate(timeout=30)
        assert child.returncode == 10
        assert "nobody works here" in said


@pytest.mark.req("A-10", "U-6")
def test_a_worker_inside_a_program(home: Path) -> None:
    """serve() on a loop of one's own, stop() from a thread, a token for the attempt alone."""
    with works(home) as w:
        w.serve()
        seen: list[dict[str, Any]] = []

        def handle(context: Context) -> Any:
            seen.append(vars(context))
            event_id = context.emit({"sessionUpdate": "plan", "entries": []})
            return {"event": event_id, "cancelled": context.cancelled}

        task_id = w.submit(["any"], idempotencyKey="k")
        worker = Worker("p", handle, home=w.world.home, worker_id="me")

        async def main() -> None:
            serving = asyncio.create_task(worker.serve())
            done = await asyncio.to_thread(w.until, task_id)
            assert done["result"]["cancelled"] is False
            threading.Thread(target=worker.stop).start()
            await asyncio.wait_for(serving, 20)

        asyncio.run(main())
        worker.stop()  # it is over already: nothing
        (facts,) = seen
        assert (facts["task_id"], facts["attempt"], facts["payload"]) == (task_id, 1, [["any"]])
        assert len(facts["key"]) == 64
        assert facts["attempt_token"].startswith("attempt_")


@pytest.mark.req("A-10")
def test_the_face_of_the_module() -> None:
    assert set(goclaw.worker.__all__) == {
        "AsyncContext", "Context", "EffectFailed", "Failure", "Retry", "Worker",
    }  # fmt: skip
    assert issubclass(AsyncContext, object)
    assert (Retry("x", code="c", after_ms=5).after_ms, Failure("x").code) == (5, "failed")
    assert EffectFailed({"code": 1}).error == {"code": 1}
    for many in (0, 65):
        with pytest.raises(UsageError, match="1 to 64"):
            Worker("p", print, home="/nonexistent", concurrency=many)
    assert sys.modules["goclaw.worker"] is goclaw.worker
