"""SPEC 2 as a state machine: whatever is asked of the store, it answers what the model says.

Owns what Hypothesis draws from, and its weights. Not in here: the model (store_model.py), the laws
that hold over the file whatever was asked (store_support.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import store_support as support
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from store_model import BUDGET, LIMIT, POISON, Model

from goclaw import _fast

EXAMPLES = int(os.environ.get("GOCLAW_MODEL_EXAMPLES", "0"))
MEMORY = Path("/dev/shm")
TIMES = st.sampled_from([0, 10, 40])
BUILDS = support.BUILDS if EXAMPLES else ("native" if _fast.NATIVE else "pure",)
POOLS = st.sampled_from(["", "", "yard"])


NUMBERS = st.integers(0, 2)
# name: how often, and what else is drawn
ACTS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "submit": (3, {
        "session": st.integers(0, 1), "key": st.sampled_from([None, None, "a", "b"]),
        "digest": st.sampled_from([b"h", b"h", b"other"]), "parallel": st.integers(0, 1),
        "pool": POOLS, "most": st.integers(1, 3), "unique": st.sampled_from([None, None, "u"]),
        "on_unknown": st.sampled_from(["suspend", "tell_brain"]),
        "wait": st.sampled_from([None, None, 20]), "rest": st.sampled_from([None, None, 0, 30]),
    }),
    "claim": (9, {"pool": POOLS, "lease": TIMES}),
    "heartbeat": (1, {"more": TIMES}),
    "append": (1, {}),
    "complete": (3, {"result": st.sampled_from([b"1", b"2"])}),
    "fail": (4, {
        "retryable": st.sampled_from([1, 1, 0]), "wait": TIMES,
        "fingerprint": st.sampled_from([None, "x", "x", "y"]),
    }),
    "suspend": (2, {
        "wait": st.sampled_from([None, 0, 20]),
        "reason": st.sampled_from(["approval", "signal:go", "sleep", "effect_unknown"]),
    }),
    "reclaim": (4, {"why": st.sampled_from(["expired", "died", "handed back", "released"])}),
    "intend": (4, {"ordinal": NUMBERS}),
    "result": (1, {"ordinal": NUMBERS, "state": st.sampled_from(["result", "retryable"])}),
    "settle": (3, {"ordinal": NUMBERS, "outcome": st.sampled_from(["done", "not_done", "redo"])}),
    "give_up": (1, {"ordinal": NUMBERS}),
    "person": (3, {"word": st.sampled_from(["cancel", "signal", "redrive", "redrive", "drop"])}),
    "open_question": (1, {}),
    "answer": (1, {"which": st.integers(0, 3), "state": st.sampled_from(["resolved", "expired"])}),
    "timer": (3, {"word": st.sampled_from(["wake", "wake", "answered", "expire", "release"])}),
    "time_passes": (2, {"ms": TIMES}),
    "the_disk_fails": (1, {"after": st.booleans()}),
    "opened_anew": (1, {"boot": st.booleans()}),
}  # fmt: skip
NAMES = [name for name, (often, _) in ACTS.items() for _ in range(often)]
HOW = {name: st.fixed_dictionaries(how) for name, (_, how) in ACTS.items()}
OF_AN_ATTEMPT = frozenset(
    {
        "heartbeat", "append", "complete", "fail", "suspend", "reclaim", "intend", "result",
        "open_question",
    }
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """One store, run by either writer; operations wait together until they are flushed."""

    build = "native"

    def __init__(self) -> None:
        super().__init__()
        folder = MEMORY if MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="gc-model-", dir=folder))
        self.store = support.Store(support.fresh(self.folder), self.build)
        self.store.now = 0
        self.model = Model()
        self.mono = self.count = 0
        self.sids: list[int] = []
        self.tids: list[int] = []
        self.tokens = [b"guessed"]
        self.questions = ["none"]
        self.asked: list[tuple[int, str, dict[str, Any]]] = []

    def teardown(self) -> None:
        self.flush()
        self.store.close()
        support.obey(self.store.path)
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.sids = [self.store.session() for _ in range(2)]
        for sid in self.sids:
            self.enqueue(sid=sid)
            self.enqueue(sid=sid, parallel=1)

    @rule(
        name=st.sampled_from(NAMES), data=st.data(), task=st.integers(0, 9),
        token=st.integers(0, 9), live=st.sampled_from([True, True, True, False]),
        flush=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def happens(
        self, name: str, data: st.DataObject, task: int, token: int, live: bool, flush: bool
    ) -> None:
        """Something is asked, about some task, mostly with the token that counts."""
        running = [tid for tid in self.tids if self.model.tasks[tid].state == "RUNNING"]
        known = running if live and running and name in OF_AN_ATTEMPT else self.tids
        self.tid = known[task % len(known)]
        self.token = self.model.tasks[self.tid].token if live else None
        self.token = self.token or self.tokens[token % len(self.tokens)]
        getattr(self, name)(**data.draw(HOW[name]))
        if flush:
            self.flush()

    @invariant()
    def as_the_model_says(self) -> None:
        if self.asked:
            return
        found = support.rows(
            self.store.path,
            "SELECT tid, state, attempt, failures, crashes, lease_token FROM tasks",
        )
        expected = {
            (task.tid, task.state, task.attempt, task.failures, task.crashes, task.token)
            for task in self.model.tasks.values()
        }
        assert set(found) == expected

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, program: str, **given: Any) -> None:
        """Queue an operation; the model hears of it when it is answered."""
        if "now" in support.CATALOGUE.programs[program].parameters:
            given["now"] = self.store.now
        ticket = self.store.submit(self.store.part(program, **given), live=True)
        self.asked.append((ticket, program, given))

    def say(self, program: str, **given: Any) -> None:
        """Ask as somebody who holds a lease, or believes so."""
        self.ask(program, tid=self.tid, token=self.token, **given)

    def flush(self) -> list[support.Answer]:
        """All that waits, in one transaction; the answers are judged in commit order."""
        waiting = {ticket: (program, given) for ticket, program, given in self.asked}
        self.asked.clear()
        answers = self.store.flush()
        for answer in answers:
            self.model.answered(*waiting.pop(answer.ticket), answer)
        assert not waiting
        return answers

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def enqueue(self, **how: Any) -> None:
        self.flush()
        number = self.name("task")
        plain = {
            "key": None, "hash": b"h", "pool": "", "parallel": 0, "max_attempts": 2,
            "on_unknown": "suspend", "unique_key": None, "not_before": None, "deadline_at": None,
        }  # fmt: skip
        given = {**plain, **how}
        self.ask(
            "enqueue", task_id=number, run_id=f"run of {number}", work=f"work:{given['pool']}",
            kind="pool" if given["pool"] else "tool", rank=4, policy_version="p", trace="t",
            payload=b"{}", origin="unix", session_limit=LIMIT, **given,
        )  # fmt: skip
        (answer,) = self.flush()
        if answer.code is None and not answer["duplicate"]:
            self.tids.append(answer["tid"])

    # -- work ------------------------------------------------------------------------------------

    def submit(
        self, session: int, digest: bytes, most: int, unique: Any, wait: Any, rest: Any, **how: Any
    ) -> None:
        now = self.store.now
        self.enqueue(
            sid=self.sids[session], hash=digest, max_attempts=most, unique_key=unique,
            not_before=None if wait is None else now + wait,
            deadline_at=None if rest is None else now + rest, **how,
        )  # fmt: skip

    def claim(self, pool: str, lease: int) -> None:
        self.tokens.append(self.name("token").encode())
        self.ask(
            "claim", pool=pool, owner="w", token=self.tokens[-1], now_mono=self.mono,
            lease_until_mono=self.mono + lease, policy_version="p", aging_factor=16,
        )  # fmt: skip

    def heartbeat(self, more: int) -> None:
        self.say("heartbeat", lease_until_mono=self.mono + more)

    def append(self) -> None:
        self.say("append", kind=0, type="update", payload=b"{}")

    def complete(self, result: bytes) -> None:
        self.say("complete", hash=result, stop_reason="end", result=result)

    def fail(self, retryable: int, wait: int, fingerprint: str | None) -> None:
        self.say(
            "fail", hash=f"{fingerprint}{retryable}".encode(), code="c", message="m",
            retryable=retryable, fingerprint=fingerprint, poison=POISON,
            due_mono=self.mono + wait, due_at=self.store.now + wait,
        )  # fmt: skip

    def suspend(self, wait: int | None, reason: str) -> None:
        self.say(
            "suspend", hash=reason.encode(), reason=reason, detail=None,
            due_mono=None if wait is None else self.mono + wait,
            due_at=None if wait is None else self.store.now + wait,
        )  # fmt: skip

    def reclaim(self, why: str) -> None:
        self.say(
            "reclaim", reason="over", expired_mono=self.mono if why == "expired" else None,
            crash_budget=BUDGET, spent=int(why in ("expired", "died")),
            hash=b"r" if why == "released" else None,
        )  # fmt: skip

    def intend(self, ordinal: int) -> None:
        kind = ("keyed", "irreversible", "probeable")[ordinal]
        self.say(
            "effect_intent", ordinal=ordinal, kind="tool", name="t", key=f"{self.tid}.{ordinal}",
            hash=b"h", request=b"{}", **{"class": kind},
        )  # fmt: skip

    def result(self, ordinal: int, state: str) -> None:
        self.say("effect_result", ordinal=ordinal, state=state, result=b"1", failed=0)

    # -- people ----------------------------------------------------------------------------------

    def person(self, word: str) -> None:
        more: dict[str, dict[str, Any]] = {
            "cancel": {"reason": "cancel"},
            "signal": {"name": "go", "payload": b"1", "most": 9},
            "redrive": {"session_limit": LIMIT},
        }
        self.ask(word, tid=self.tid, **more.get(word, {}))

    def settle(self, ordinal: int, outcome: str) -> None:
        self.ask("effect_settle", tid=self.tid, ordinal=ordinal, outcome=outcome, by="me", failed=0)

    def give_up(self, ordinal: int) -> None:
        self.ask("effect_fail", tid=self.tid, ordinal=ordinal, message="m", by="me")

    def open_question(self) -> None:
        self.questions.append(self.name("approval"))
        self.say(
            "approval_open", approval_id=self.questions[-1], ordinal=0, digest=b"d", request=b"{}",
            expires_at=1 << 40,
        )  # fmt: skip

    def answer(self, which: int, state: str) -> None:
        name = self.questions[-1 - which % len(self.questions)]
        self.ask(
            "approval_resolve", approval_id=name, option_id="allow", allowed=1, state=state, by="me"
        )

    # -- time, disk, death -----------------------------------------------------------------------

    def timer(self, word: str) -> None:
        if word in ("wake", "answered"):
            due = None if word == "answered" else self.mono
            self.ask("wake", tid=self.tid, now_mono=due, reason="due")
        else:
            self.ask(word, tid=self.tid)

    def time_passes(self, ms: int) -> None:
        self.flush()
        self.mono += ms
        self.store.now += ms

    def the_disk_fails(self, after: bool) -> None:
        if self.asked:
            self.store.writer.fail_next_commit(after)
            self.flush()

    def opened_anew(self, boot: bool) -> None:
        self.flush()
        self.store.close()
        now, ids = self.store.now, self.store._ids
        self.store = support.Store(self.store.path, self.build)
        self.store.now, self.store._ids = now, ids
        if boot:
            self.ask("rebase_boot", boot=self.name("boot"), now_mono=self.mono)
            self.flush()


def explore(build: str, examples: int, *, derandomize: bool, shrink: bool = True) -> None:
    machine = type("Machine", (Machine,), {"build": build})
    chosen = settings(
        max_examples=examples, stateful_step_count=50, derandomize=derandomize, deadline=None,
        database=None, suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )  # fmt: skip
    run(machine, settings=chosen)


@pytest.mark.req("Q-1", "Q-3", "Q-4", "Q-5", "Q-7", "Q-9", "Q-10", "Q-11", "Q-12", "Q-13", "E-3")
@pytest.mark.timeout(3_000)  # a failure is made small before it is shown
@pytest.mark.parametrize("build", BUILDS)
def test_the_store_answers_what_the_model_says(build: str) -> None:
    explore(build, EXAMPLES or 100, derandomize=not EXAMPLES)


PLANTED = {
    "a complete without the fence": ("complete", " AND t.lease_token = :token", ""),
    "a suspension that costs a crash": ("suspend", "crashes = crashes - 1", "crashes = crashes"),
    "a reclaim that gives the crash back": ("reclaim", "crashes - (:spent = 0)", "crashes - 1"),
    "a cancel that leaves the turn": ("cancel", "iif(turn = :tid, NULL, turn)", "turn"),
}  # fmt: skip


@pytest.mark.req("Q-3", "Q-4", "Q-5")
@pytest.mark.parametrize("name", PLANTED)
def test_the_model_notices_a_planted_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, text, instead = PLANTED[name]
    before = support.CATALOGUE.programs[program]
    steps = [step._replace(sql=step.sql.replace(text, instead)) for step in before.steps]
    assert steps != [*before.steps]
    programs = list(support.PROGRAMS)
    programs[support.INDEX[program]] = before._replace(steps=tuple(steps))
    monkeypatch.setattr(support, "PROGRAMS", programs)
    with pytest.raises(AssertionError):
        explore(BUILDS[0], 300, derandomize=True, shrink=False)
