"""Fairness as numbers (Q-8): skews and overtaking, counted in claims on the real store.

Owns the judge of service skew, newcomers and aging; seeded, so it depends on no clock. Not in here:
how fast a claim is (test_bench_queue.py).
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
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
FLOOD = int(os.environ.get("GOCLAW_FAIRNESS_FLOOD", "3000"))  # tasks of the loudest session


class Queue:
    """The store without a thread: every operation is one step, in this thread."""

    def __init__(self, home: Path, seed: int) -> None:
        # What is judged is an order: these need no flush.
        self.database: Database = open_database(home, synchronous="normal", threaded=False)
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


class Night(Queue):
    """Everything at once: three levels, weights, a flood, a gate of two, a lane for prompts, and
    newcomers at any moment. Judged from outside: what is counted here is not read from the store.
    """

    RESERVED, GATED = 1, 2

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        self.claims = 0
        self.started: Counter[int] = Counter()
        self.level: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.above: dict[int, int] = defaultdict(int)  # claims above each level
        self.since: dict[int, int] = {}  # of `above`, when the session's head became ready
        self.overtaken: Counter[int] = Counter()  # the most, by level
        self.running: list[tuple[int, bytes, int]] = []
        self.newcomers: dict[int, int] = {}  # the claim before which each came
        self.waits: list[int] = []
        self.write("gate_set", work="tool:gated", pool="", most=self.GATED)

    def come(
        self, priority: int, count: int, *, weight: int = 1, work: str = "any", prompt: bool = False
    ) -> int:
        """A session with so many parallel tasks; they commit in batches, as a client's would."""
        self.number += 1
        kind = "prompt" if prompt else "tool"
        made = self.write(
            "session_new", session_id=f"s{self.number}", stream_id="x", salt=b"s" * 16, cwd="/",
            roots="[]", brain="direct", interactive=0, weight=weight, hash=b"", now=1,
        )  # fmt: skip
        sid: int = made["sid"]
        writer = self.database._writer
        for first in range(0, count, limits.BATCH_OPERATIONS_MAX):
            for _ in range(min(limits.BATCH_OPERATIONS_MAX, count - first)):
                self.number += 1
                part = self.database.bind(
                    "enqueue", sid=sid, task_id=f"task_{self.number}", run_id=f"run_{self.number}",
                    pool="", work="brain:b" if prompt else f"tool:{work}", kind=kind, parallel=1,
                    rank=limits.PRIORITY_MAX - priority, max_attempts=5, on_unknown="suspend",
                    payload=b"{}", origin="unix", hash=b"", session_limit=10**9, now=1,
                )  # fmt: skip
                writer.submit((part,), True)
            while writer.step():
                pass
            assert all(done[1] is None for done in writer.drain())
        self.level[sid], self.kinds[sid] = priority, "prompt" if prompt else work
        self.since[sid] = self.above[priority]
        return sid

    def newcomer(self, priority: int, *, prompt: bool = False) -> None:
        """One that is to start within lanes + 2 claims (b)."""
        self.newcomers[self.come(priority, 1, prompt=prompt)] = self.claims

    def turn(self) -> None:
        """A lane comes free and takes what the fair pick gives it; one is for prompts alone."""
        if len(self.running) == LANES:
            tid, token, _ = self.running.pop(self.random.randrange(LANES))
            self.write(
                "complete", tid=tid, token=token, hash=b"", result=b"", stop_reason="", now=1
            )
        others = sum(self.kinds[sid] != "prompt" for _, _, sid in self.running)
        reserved = others == LANES - self.RESERVED
        if not self._claim("claim_interactive" if reserved else "claim") and reserved:
            # Nobody for the lane that is reserved: one of the others is done, then.
            tid, token, _ = self.running.pop(self.random.randrange(len(self.running)))
            self.write(
                "complete", tid=tid, token=token, hash=b"", result=b"", stop_reason="", now=1
            )
            assert self._claim("claim")

    def _claim(self, program: str) -> bool:
        token = self.random.randbytes(16)
        aging = {} if program == "claim_interactive" else {"aging_factor": limits.AGING_FACTOR}
        claimed = self.write(
            program, pool="", owner="bench", token=token, lease_until_mono=1, now_mono=0,
            policy_version="p", now=1, **aging,
        )  # fmt: skip
        if claimed["tid"] is None:
            return False
        sid = claimed["sid"]
        self.claims += 1
        self.running.append((claimed["tid"], token, sid))
        level = self.level[sid]
        if self.kinds[sid] != "gated":  # one that waits at its gate is no ready head
            passed = self.above[level] - self.since[sid]
            self.overtaken[level] = max(self.overtaken[level], passed)
        for lower in set(self.level.values()):
            self.above[lower] += lower < level
        self.since[sid] = self.above[level]
        self.started[sid] += 1
        if sid in self.newcomers:
            self.waits.append(self.claims - self.newcomers.pop(sid))
        assert sum(self.kinds[one] == "gated" for _, _, one in self.running) <= self.GATED
        return True


@pytest.mark.req("Q-8", "Q-16")
def test_a_night_of_everything_keeps_the_figures(benchmark: Any, tmp_path: Path) -> None:
    """(a), (b) and (c) together. GOCLAW_FAIRNESS_FLOOD=100000: as .ci/soak floods it."""
    turns = 1_200

    def run() -> dict[str, float]:
        night = Night(tmp_path, seed=11)
        flood = night.come(5, FLOOD)
        light = [flood, *(night.come(5, turns) for _ in range(5))]
        heavy = [night.come(5, turns, weight=3) for _ in range(3)]
        gated = [night.come(5, turns, work="gated") for _ in range(3)]
        low = [night.come(3, turns) for _ in range(4)]
        for _ in range(40):
            night.turn()
        before = Counter(night.started)
        while night.claims < turns:
            if not night.newcomers and night.random.random() < 0.1:
                night.newcomer(night.random.choice([5, 7]), prompt=night.random.random() < 0.5)
            night.turn()
        night.database.close()
        begun = {sid: night.started[sid] - before[sid] for sid in night.started}

        def skew(sids: list[int]) -> int:
            return max(begun[sid] for sid in sids) - min(begun[sid] for sid in sids)

        share = sum(begun[sid] for sid in heavy) / 3 / (sum(begun[sid] for sid in light) / 6)
        return {
            "service_skew": max(skew(light), skew(heavy), skew(low)),
            "gated_skew": skew(gated),
            "gated_turns": min(begun.get(sid, 0) for sid in gated),
            "weight_3_has": share,
            "newcomers": len(night.waits),
            "newcomer_waits_claims": max(night.waits),
            "overtaken_of_5": night.overtaken[5],
            "overtaken_of_3": night.overtaken[3],
        }

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(found, flood=FLOOD)
    assert found["service_skew"] <= 2
    assert found["gated_skew"] <= 2
    assert found["gated_turns"] > 20
    assert 2.9 < found["weight_3_has"] < 3.1
    assert found["newcomers"] > 50
    assert found["newcomer_waits_claims"] <= LANES + 2
    # Of priority 3 below newcomers of 7; the heads that are due with it go every second claim.
    assert found["overtaken_of_3"] <= limits.AGING_FACTOR * 4 + 2 * 4
    assert found["overtaken_of_5"] <= limits.AGING_FACTOR * 2 + 2 * 16
