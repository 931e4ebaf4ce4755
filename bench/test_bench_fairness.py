"""Fairness as numbers (Q-8): skews and overtaking, counted in claims on the real store.

Owns the judge of service skew, newcomers and aging; seeded, so it depends on no clock. Not in here:
how fast a claim is (test_bench_queue.py).
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from goclaw.core import limits
from goclaw.store import open_database, rows

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.store import Database

LANES = 4
SESSIONS = 20
ROUNDS = 60  # claims per session while all are backlogged


class Queue:
    """The store without a thread: every operation is one step, in this thread."""

    def __init__(self, home: Path, seed: int) -> None:
        self.database: Database = open_database(home, threaded=False)
        self.random = random.Random(seed)
        self.number = 0
        self.live: list[tuple[int, bytes, int]] = []
        self.freed = 0
        self.equal_lengths = False
        self.sids: list[int] = []

    def write(self, program: str, **arguments: Any) -> dict[str, Any]:
        part = self.database.bind(program, **arguments)
        self.database._writer.submit((part,), True)
        while self.database._writer.step():
            pass
        ((_, code, message, returns, _),) = self.database._writer.drain()
        assert code is None, (program, code, message)
        return self.database.returns(program, returns[0])

    def session(self) -> int:
        self.number += 1
        made = self.write(
            "session_new", session_id=f"s{self.number}", stream_id="x", salt=b"s" * 16, cwd="/",
            roots="[]", brain="direct", interactive=0, hash=b"", now=1,
        )  # fmt: skip
        self.sids.append(made["sid"])
        sid: int = made["sid"]
        return sid

    def enqueue(self, sid: int, *, priority: int = limits.PRIORITY, parallel: bool = True) -> None:
        self.number += 1
        self.write(
            "enqueue", sid=sid, task_id=f"task_{self.number}", run_id=f"run_{self.number}",
            pool="", work="tool:any", kind="tool", parallel=int(parallel),
            rank=limits.PRIORITY_MAX - priority, max_attempts=5, on_unknown="suspend",
            payload=b"{}", origin="unix", hash=b"", session_limit=10**9, now=1,
        )  # fmt: skip

    def claim(self) -> int:
        """Free a random lane if all are taken, claim; the session's number."""
        if len(self.live) == LANES:
            tid, token, self.freed = self.live.pop(
                0 if self.equal_lengths else self.random.randrange(LANES)
            )
            self.write(
                "complete", tid=tid, token=token, hash=b"", result=b"", stop_reason="", now=1
            )
        token = self.random.randbytes(16)
        claimed = self.write(
            "claim", pool="", owner="bench", token=token, lease_until_mono=1, now_mono=0,
            policy_version="p", aging_factor=limits.AGING_FACTOR, now=1,
        )  # fmt: skip
        assert claimed["tid"] is not None
        sid: int = claimed["sid"]
        self.live.append((claimed["tid"], token, sid))
        return sid

    def priority_of_last(self) -> int:
        found = rows("task_by_tid", self.database.fetch("task_by_tid", tid=self.live[-1][0]))
        priority: int = found[0]["priority"]
        return priority


@pytest.mark.req("Q-8")
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "serial"])
def test_sessions_that_stay_backlogged_start_equally_often(
    benchmark: Any, tmp_path: Path, *, parallel: bool
) -> None:
    """(a): started tasks differ by at most 2; waits of ready heads by at most lanes + 2 claims."""

    def run() -> tuple[int, int]:
        queue = Queue(tmp_path, seed=8)
        queue.equal_lengths = not parallel
        sids = [queue.session() for _ in range(SESSIONS)]
        for sid in sids:
            for _ in range(ROUNDS + 8):
                queue.enqueue(sid, parallel=parallel)
        started: Counter[int] = Counter()
        ready = dict.fromkeys(sids, 0)  # the claim at which the session's head became ready
        service_skew, waits = 0, []
        for number in range(SESSIONS * ROUNDS):
            sid = queue.claim()
            started[sid] += 1
            if not parallel and queue.freed:
                ready[queue.freed] = number  # its turn was over before this very claim
            waits.append(number - ready[sid])
            ready[sid] = number
            counts = [started[one] for one in sids]
            service_skew = max(service_skew, max(counts) - min(counts))
        steady = waits[SESSIONS:]
        queue.database.close()
        return service_skew, max(steady) - min(steady)

    service_skew, wait_skew = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(service_skew=service_skew, wait_skew=wait_skew)
    assert service_skew <= 2
    assert wait_skew <= LANES + 2


@pytest.mark.req("Q-8")
def test_a_newcomer_starts_at_once(benchmark: Any, tmp_path: Path) -> None:
    """(b): a session that comes from idle starts within lanes + 2 claims, whatever the backlog."""

    def run() -> int:
        queue = Queue(tmp_path, seed=9)
        sids = [queue.session() for _ in range(SESSIONS)]
        for sid in sids:
            for _ in range(ROUNDS):
                queue.enqueue(sid, priority=queue.random.choice([3, 5]))
        worst = 0
        for _ in range(20):
            for _ in range(queue.random.randrange(SESSIONS)):
                queue.claim()
            newcomer = queue.session()
            queue.enqueue(newcomer)
            waited = 1
            while queue.claim() != newcomer:
                waited += 1
            worst = max(worst, waited)
        queue.database.close()
        return worst

    worst = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(newcomer_waits_claims=worst)
    assert worst <= LANES + 2


@pytest.mark.req("Q-8")
def test_a_low_head_becomes_due_and_not_too_often(benchmark: Any, tmp_path: Path) -> None:
    """(c): due after aging_factor x difference claims of higher priority; every second at most."""

    def run() -> tuple[int, int]:
        queue = Queue(tmp_path, seed=10)
        high = [queue.session() for _ in range(4)]
        low = [queue.session() for _ in range(4)]
        for sid in high:
            for _ in range(300):
                queue.enqueue(sid, priority=5)
        for sid in low:
            for _ in range(20):
                queue.enqueue(sid, priority=3)
        first, run_length, longest = 0, 0, 0
        for number in range(1, 300):
            queue.claim()
            if queue.priority_of_last() == 3:
                first = first or number
                run_length += 1
                longest = max(longest, run_length)
            else:
                run_length = 0
        queue.database.close()
        return first, longest

    first, longest = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(first_low_claim=first, low_claims_in_a_row=longest)
    due = limits.AGING_FACTOR * 2
    assert due < first <= due + 2
    assert longest == 1
