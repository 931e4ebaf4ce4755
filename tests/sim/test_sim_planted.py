"""Bugs put in on purpose: the simulator must notice each of them, soon, and by the right law.

Owns the bugs. Not in here: the laws they break (sim_laws.py).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import simulate

from goclaw._pure import writer as pure_writer
from goclaw.engine import (
    dead_letters,
    effects,
    gates,
    hub,
    runtime,
    schedules,
    subtasks,
    worker,
)
from goclaw.engine import scheduler as lanes
from goclaw.engine.recurrence import Recurrence
from goclaw.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    Plant = Callable[[pytest.MonkeyPatch], None]

SEEDS_MAX = 150  # a bug that hides longer than this is not noticed
EVERY = "GOCLAW_SIM_PLANTED" in os.environ  # .ci/soak plants those that hide for longer, too
CATALOGUE = queries.load()


def sql(programs: str, *changes: tuple[str, str]) -> Plant:
    """Change the SQL of the programs whose names match; each change must find its place."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        made = dict(CATALOGUE.programs)
        for pattern, instead in changes:
            found = 0
            for name, program in made.items():
                if not re.fullmatch(programs, name):
                    continue
                texts = [re.subn(pattern, instead, step.sql) for step in program.steps]
                found += sum(count for _, count in texts)
                steps = [
                    step._replace(sql=text)
                    for step, (text, _) in zip(program.steps, texts, strict=True)
                ]
                made[name] = program._replace(steps=tuple(steps))
            assert found, f"nothing like {pattern!r} in {programs}"
        planted = CATALOGUE._replace(programs=made)
        patch.setattr(queries, "load", lambda: planted)

    return plant


def steps_without(program: str, pattern: str) -> Plant:
    """Make the steps of a program that match find nothing."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        before = CATALOGUE.programs[program]
        steps = [
            step._replace(sql="SELECT 1 WHERE 0") if re.search(pattern, step.sql) else step
            for step in before.steps
        ]
        assert steps != [*before.steps], f"nothing like {pattern!r} in {program}"
        made = {**CATALOGUE.programs, program: before._replace(steps=tuple(steps))}
        planted = CATALOGUE._replace(programs=made)
        patch.setattr(queries, "load", lambda: planted)

    return plant


def asked(*changes: tuple[str, str, str]) -> Plant:
    """Change queries of the readers: each by its name, what is there and what is instead."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        before = queries.load()
        made = dict(before.queries)
        for name, there, instead in changes:
            assert there in made[name].sql, f"nothing like {there!r} in {name}"
            made[name] = made[name]._replace(sql=made[name].sql.replace(there, instead))
        planted = before._replace(queries=made)
        patch.setattr(queries, "load", lambda: planted)

    return plant


def one_event_in_500_is_not_stored(patch: pytest.MonkeyPatch) -> None:
    emit, count = pure_writer.Writer._emit, 0

    def forgetful(self: Any, *event: Any) -> Any:
        nonlocal count
        count += 1
        insert = self._insert
        if count % 500 == 0:
            self._insert = lambda *_statement: None
        try:
            return emit(self, *event)
        finally:
            self._insert = insert

    patch.setattr(pure_writer.Writer, "_emit", forgetful)


def one_event_in_500_is_not_published(patch: pytest.MonkeyPatch) -> None:
    publish, count = hub.Hub.publish, 0

    def forgetful(self: Any, events: list[Any]) -> None:
        nonlocal count
        kept = []
        for event in events:
            count += 1
            if count % 500:
                kept.append(event)
        publish(self, kept)

    patch.setattr(hub.Hub, "publish", forgetful)


def one_flush_in_50_is_skipped(patch: pytest.MonkeyPatch) -> None:
    opened, count = pure_writer.Writer._open, 0

    def lying(self: Any) -> None:
        opened(self)
        execute = self._execute

        def skips(text: str, *rest: Any) -> Any:
            nonlocal count
            if text == "COMMIT":
                count += 1
                if count % 50 == 0:
                    text = "ROLLBACK"
            return execute(text, *rest)

        self._execute = skips

    patch.setattr(pure_writer.Writer, "_open", lying)


def acknowledged_before_it_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    """What failed at COMMIT is answered as if it had not."""
    run_batch = pure_writer.Writer._run_batch

    def hopeful(self: Any, batch: Any) -> list[Any]:
        answers: list[Any] = []
        run_one = self._run_one

        def remembered(*arguments: Any) -> Any:
            answers.append(run_one(*arguments))
            return answers[-1]

        self._run_one = remembered
        try:
            done = run_batch(self, batch)
        finally:
            del self._run_one
        failed = done and done[0][1] == "storage_failed"
        return answers[-len(batch) :] if failed and len(answers) >= len(batch) else done

    patch.setattr(pure_writer.Writer, "_run_batch", hopeful)


def recovery_forgets_to_reclaim(patch: pytest.MonkeyPatch) -> None:
    async def recover(*_arguments: Any, **_options: Any) -> list[Any]:
        return []

    patch.setattr(runtime, "recover", recover)


def the_journal_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Neither of the two places that answer a call from its record."""
    sql(
        "effect_intent",
        (r":e_state = 'retryable'", ":e_state IN ('retryable', 'result')"),
    )(patch)
    patch.setattr(effects._Entry, "settle_from_journal", lambda _entry: False)


def dispatched_before_the_intent_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(effects._Entry, "is_harmless", True)


def a_stop_cancels(patch: pytest.MonkeyPatch) -> None:
    """The ancestor's fault: SIGTERM loses what SIGKILL would have kept (G-4)."""

    async def cancels(self: Any) -> None:
        if self.ended_by == "shutdown":
            await self._database.write("cancel", tid=self.task.tid, reason="shutdown", now=1)

    patch.setattr(worker.LiveAttempt, "_hand_back", cancels)


def a_stop_hands_nothing_back(patch: pytest.MonkeyPatch) -> None:
    async def forgets(_attempt: Any) -> None:
        return None

    patch.setattr(worker.LiveAttempt, "_hand_back", forgets)


def nothing_is_ever_due(patch: pytest.MonkeyPatch) -> None:
    async def idles(_schedules: Any) -> int:
        return 60_000

    patch.setattr(schedules.Schedules, "_turn", idles)


def answered_tasks_wake_no_lane(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes, "_FREEING", lanes._FREEING - {"task.requeued"})


def expired_leases_are_nobodys_business(patch: pytest.MonkeyPatch) -> None:
    async def shrugs(*_arguments: Any) -> None:
        return None

    patch.setattr(lanes.Scheduler, "_reclaim", shrugs)


def a_kill_between_two_occurrences(patch: pytest.MonkeyPatch) -> None:
    """The next one is on disk before the last is released, in two operations."""
    steps_without("recur", "UPDATE schedules")(patch)

    async def release(self: Any, row: tuple[Any, ...], now: int) -> None:
        tid, _, cron, zone, misfire = row
        if cron is None:
            await self._database.write("release", live=True, tid=tid, now=now)
            return
        suffix = self._clock.new_id("task").removeprefix("task_")
        await self._database.write(
            "recur", live=True, last_tid=tid, task_id=f"task_{suffix}", run_id=f"run_{suffix}",
            trace="", due_at=Recurrence(cron, zone, misfire).after(now), now=now,
        )  # fmt: skip
        bind = self._database.bind
        following = bind(
            "schedule", task_id=f"task_{suffix}", cron=cron, zone=zone, misfire=misfire
        )
        await self._database.apply(bind("release", tid=tid, now=now), following, live=True)

    patch.setattr(schedules.Schedules, "_release", release)


def the_next_occurrence_comes_too_late(patch: pytest.MonkeyPatch) -> None:
    """A kill after the release of the last one: nothing recurs any more."""

    async def release(self: Any, row: tuple[Any, ...], now: int) -> None:
        tid, _, cron, zone, misfire = row
        await self._database.write("release", live=True, tid=tid, now=now)
        if cron is not None:
            suffix = self._clock.new_id("task").removeprefix("task_")
            await self._database.write(
                "recur", live=True, last_tid=tid, task_id=f"task_{suffix}", run_id=f"run_{suffix}",
                trace="", due_at=Recurrence(cron, zone, misfire).after(now), now=now,
            )  # fmt: skip

    patch.setattr(schedules.Schedules, "_release", release)


def a_delayed_task_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    sql("release", ("OR due_at > :now", ""))(patch)
    asked(("held_due", "t.due_at <= :now", "t.due_at <= :now + 60000"))(patch)


def a_deadline_comes_too_soon(patch: pytest.MonkeyPatch) -> None:
    sql("expire", (r"ifnull\(deadline_at, :now \+ 1\) > :now", "deadline_at IS NULL"))(patch)
    asked(("deadlines_due", "deadline_at <= :now", "deadline_at <= :now + 60000"))(patch)


def an_answer_waits_for_all_of_its_gate(patch: pytest.MonkeyPatch) -> None:
    """More calls than it ever lets in: they wait for ever."""
    pass_gates = effects.Journal._pass_gates

    async def all_or_none(self: Any, entries: list[Any]) -> None:
        await pass_gates(self, entries)
        if any(entry.is_behind for entry in entries):
            for entry in entries:
                await entry.leave_gate(well=False)
            raise effects.Park("rate_limited", due_ms=20)

    patch.setattr(effects.Journal, "_pass_gates", all_or_none)


def a_call_that_failed_keeps_its_slot(patch: pytest.MonkeyPatch) -> None:
    async def left(self: Any, work: str, *, well: bool) -> None:
        if well:
            self._running[work] -= 1

    patch.setattr(gates.Gates, "left", left)


def nobody_wakes_a_parent(patch: pytest.MonkeyPatch) -> None:
    async def sleeps(_subtasks: Any, _tid: int) -> None:
        return None

    patch.setattr(subtasks.Subtasks, "_wake", sleeps)


def children_outlive_their_parent(patch: pytest.MonkeyPatch) -> None:
    async def spares(_subtasks: Any, _task_id: str) -> None:
        return None

    patch.setattr(subtasks.Subtasks, "_end_child", spares)


def no_lane_is_reserved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes.Scheduler, "_has_room", lambda _scheduler: True)


def what_was_dropped_comes_back(patch: pytest.MonkeyPatch) -> None:
    sql("redrive", ("AND t.dropped_at IS NULL", ""))(patch)
    patch.setattr(dead_letters.DeadLetters, "_hindrance", lambda *_given: None)


# name: what is planted, the builds it is in, the laws that may name it, what its stories are about
NATIVE, PURE = ("native", "pure"), ("pure",)
LYING = "I-1|I-2|I-3|I-4|Q-1|Q-4|Q-5|Q-9|E-2|E-6|IndexError"  # whoever believes it first
NO_HEAD = ("DELETE FROM heads", "SELECT 1 FROM heads")
FENCE = (r" AND (t\.)?lease_token = :token", "")
PLANTED: dict[str, tuple[Plant, tuple[str, ...], str, str]] = {
    "a heartbeat without the fence": (sql("heartbeat", FENCE), NATIVE, "I-1", "zombies"),
    "a complete without the fence": (sql("complete", FENCE), NATIVE, "I-1", "zombies"),
    "a fail without the fence": (sql("fail", FENCE), NATIVE, "I-1", "zombies"),
    "an effect's result without the fence": (
        sql("effect_result", FENCE, (r" AND token = :token", "")), NATIVE, "I-1|E-2", "zombies",
    ),
    "a claim that is not atomic": (
        sql("claim", (r" AND t.state = 'QUEUED'", ""), NO_HEAD), NATIVE, "I-2", "",
    ),
    "a reclaim that does not look at the clock": (
        sql("reclaim", (r":expired_mono IS NULL OR", ":expired_mono IS NULL OR 1 OR")),
        NATIVE, "I-1", "zombies",
    ),
    "an event in 500 is not stored": (one_event_in_500_is_not_stored, PURE, "I-2", ""),
    "an event in 500 is not published": (one_event_in_500_is_not_published, NATIVE, "I-3", ""),
    "a flush in 50 is skipped": (one_flush_in_50_is_skipped, PURE, LYING, ""),
    "acknowledged before it is on disk": (acknowledged_before_it_is_on_disk, PURE, LYING, ""),
    "recovery forgets to reclaim": (recovery_forgets_to_reclaim, NATIVE, "Q-6", ""),
    "an effect's outcome is guessed": (
        sql(".*", (r"'retryable', 'unknown'\)", "'retryable', 'result')")), NATIVE, "I-2|I-4", "",
    ),
    "an unknown effect is sent again": (
        sql(".*", (r"'retryable', 'unknown'\)", "'retryable', 'retryable')")),
        NATIVE, "I-2|I-4|E-2|E-3", "",
    ),
    "a submission is not deduplicated": (
        sql(
            "enqueue",
            (r"AND sid = :sid AND key = :key", "AND 0"),
            ("INSERT INTO submissions", "INSERT OR REPLACE INTO submissions"),
        ),
        NATIVE, "E-6|E-5", "",
    ),
    "another request under a key is taken": (
        steps_without("enqueue", r"dup_hash <> :hash"), NATIVE, "E-5|E-6", "",
    ),
    "the journal is not asked": (the_journal_is_not_asked, NATIVE, "E-2|I-4", ""),
    "dispatched before the intent is on disk": (
        dispatched_before_the_intent_is_on_disk, NATIVE, "E-1", "",
    ),
    "the turn is not held in RETRY_WAIT": (
        sql(
            "fail",
            (r"^SELECT 1 WHERE :state IN \('FAILED', 'DEAD_LETTER'\)", "SELECT 1"),
            (r"open = open - 1", "open = open - (:state <> 'RETRY_WAIT')"),
        ),
        NATIVE, "Q-9|I-2", "",
    ),
    "crashes are not counted": (
        sql("reclaim", (r"crashes >= :crash_budget", "crashes > 99")), NATIVE, "Q-5", "",
    ),
    "a crash is counted twice": (
        sql("claim", (r"crashes = :crashes \+ 1", "crashes = :crashes + 2")), NATIVE, "Q-5|I-2", "",
    ),
    "a failure is not counted": (
        sql("fail", (r"failures \+ :retryable", "failures + 0")), NATIVE, "Q-5", "breaker",
    ),
    "one task more than the bound": (
        sql("enqueue", (r":open >= :session_limit", ":open > :session_limit")), NATIVE, "Q-10", "",
    ),
    "a cancel ends what has ended": (
        steps_without("cancel", r"'SUCCEEDED', 'FAILED'"), NATIVE, "Q-1|Q-11|I-2", "",
    ),
    "a question is answered twice": (
        steps_without("approval_resolve", r"a_state <> 'open'"), NATIVE, "A-7", "",
    ),
    "a stop cancels": (a_stop_cancels, NATIVE, "G-4", ""),
    "a stop hands nothing back": (a_stop_hands_nothing_back, NATIVE, "R-3", ""),
    "nothing is ever due": (nothing_is_ever_due, NATIVE, "liveness|Q-13", ""),
    "answered tasks wake no lane": (answered_tasks_wake_no_lane, NATIVE, "liveness", ""),
    "expired leases are nobody's business": (
        expired_leases_are_nobodys_business, NATIVE, "liveness", "zombies",
    ),
    "a delayed task does not wait": (a_delayed_task_does_not_wait, NATIVE, "Q-12", "delays"),
    "a delayed task is forgotten": (
        asked(("held_due", "t.held = 1", "0"), ("next_held", "min(due_at)", "max(NULL)")),
        NATIVE, "liveness|Q-12", "delays",
    ),
    "a delayed task comes back to its old place": (
        sql("release", (r"seq = \(SELECT s.tail[^)]*\)", "seq = seq")), NATIVE, "Q-9", "delays",
    ),
    "a unique task is there twice": (
        sql(
            "enqueue",
            (r"u.key = :unique_key", "0"),
            ("INSERT INTO uniques", "INSERT OR REPLACE INTO uniques"),
        ),
        NATIVE, "Q-12", "unique",
    ),
    "the key of a duplicate is forgotten": (
        sql("enqueue", (r"(SELECT :sid, :key, :hash, :tid, :now WHERE :key IS NOT NULL)",
                        r"\1 AND :duplicate = 0")),
        NATIVE, "Q-12|E-5|E-6", "unique",
    ),
    "a kill between two occurrences": (a_kill_between_two_occurrences, NATIVE, "Q-12", "recurring"),
    "the next occurrence comes too late": (
        the_next_occurrence_comes_too_late, NATIVE, "Q-12|Q-10", "recurring",
    ),
    "a deadline is ignored": (
        asked(
            ("deadlines_due", "deadline_at <= :now", "0"),
            ("next_deadline", "min(deadline_at)", "max(NULL)"),
        ),
        NATIVE, "Q-13", "deadlines",
    ),
    "a deadline comes too soon": (
        a_deadline_comes_too_soon,
        NATIVE, "Q-13", "deadlines",
    ),
    "a time-out is ignored": (
        asked(
            ("timeouts_due", "timeout_mono <= :now_mono", "0"),
            ("next_timeout", "min(timeout_mono)", "max(NULL)"),
        ),
        NATIVE, "Q-13|liveness", "timeouts",
    ),
    "a gate lets in one too many": (
        sql(".*", (r"< ifnull\(w.most", "<= ifnull(w.most")), NATIVE, "Q-16|I-2", "gates",
    ),
    "a crash leaks the slot at its gate": (
        sql(".*", (r"g.wid = w.wid AND g.state = 'RUNNING'",
                   "g.wid = w.wid AND (g.state = 'RUNNING' OR g.reason = 'daemon_restarted')")),
        NATIVE, "liveness", "gates",
    ),
    "a call that failed keeps its slot": (
        a_call_that_failed_keeps_its_slot, NATIVE, "liveness", "gates",
    ),
    "an answer waits for all of its gate": (
        an_answer_waits_for_all_of_its_gate, NATIVE, "liveness", "gates",
    ),
    "a rate takes no token": (
        sql(".*", (r"SET tokens = tokens - 1", "SET tokens = tokens")), NATIVE, "Q-16", "rates",
    ),
    "the breaker never opens": (
        sql("fail", (r">= :breaker_tasks", "> 99")), NATIVE, "Q-7", "breaker",
    ),
    "an open breaker lets all in": (
        steps_without("fail", r"INSERT INTO stalled"), NATIVE, "Q-7|I-2", "breaker",
    ),
    "a redrive keeps the budget that was spent": (
        sql("redrive", (r"failures = 0, crashes = 0", "failures = failures, crashes = crashes")),
        NATIVE, "Q-5|I-2", "redrive",
    ),
    "a redriven task goes before those that wait": (
        sql("redrive", (r"seq = :tail", "seq = seq")), NATIVE, "Q-9", "redrive",
    ),
    "a new task goes before those that came back": (
        sql("enqueue", (r"max\(:tid, :tail \+ 1\)", ":tid")), NATIVE, "Q-9", "redrive",
    ),
    "what was dropped comes back": (what_was_dropped_comes_back, NATIVE, "Q-7", "redrive"),
    "nobody wakes a parent": (nobody_wakes_a_parent, NATIVE, "liveness", "subtasks"),
    "children outlive their parent": (children_outlive_their_parent, NATIVE, "Q-9", "subtasks"),
    "no lane is reserved": (no_lane_is_reserved, NATIVE, "Q-16", "reserved"),
}  # fmt: skip


# Noticed after some twenty seeds or more, which is seconds each.
HIDING = {
    "an effect's result without the fence", "recovery forgets to reclaim",
    "one task more than the bound", "a question is answered twice",
    "a call that failed keeps its slot", "an answer waits for all of its gate",
    "a redriven task goes before those that wait", "a new task goes before those that came back",
    "children outlive their parent",
}  # fmt: skip


@pytest.mark.req("I-1", "I-2", "I-3", "I-4", "Q-3", "Q-4")
@pytest.mark.parametrize("name", [name for name in PLANTED if EVERY or name not in HIDING])
def test_a_planted_bug_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, builds, laws, tastes = PLANTED[name]
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        found = noticed(seed, builds[seed % len(builds)], tastes)
        if found is not None:
            assert found.law in laws.split("|"), str(found).splitlines()[-2]
            return
    pytest.fail(f"not noticed within {SEEDS_MAX} seeds")


def noticed(seed: int, build: str, tastes: str) -> simulate.Failed | None:
    try:
        simulate.play(seed, build, tastes=frozenset(tastes.split()))
    except simulate.Failed as error:
        return error
    return None
