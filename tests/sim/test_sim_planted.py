"""Bugs put in on purpose: the simulator must notice each of them, soon, and by the right law.

Owns the bugs. Not in here: the laws they break (sim_laws.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import simulate

from goclaw._pure import writer as pure_writer
from goclaw.engine import effects, hub, runtime, schedules, worker
from goclaw.engine import scheduler as lanes
from goclaw.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable

    Plant = Callable[[pytest.MonkeyPatch], None]

SEEDS_MAX = 500  # a bug that hides longer than this is not noticed
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

    def hopeful(self: Any, batch: list[Any]) -> list[Any]:
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


# name: what is planted, the builds it is in, the laws that may name it
NATIVE, PURE = ("native", "pure"), ("pure",)
LYING = "I-1|I-2|I-3|I-4|Q-1|Q-4|Q-5|Q-9|E-2|E-6|IndexError"  # whoever believes it first
NO_HEAD = ("DELETE FROM heads", "SELECT 1 FROM heads")
FENCE = (r" AND (t\.)?lease_token = :token", "")
PLANTED: dict[str, tuple[Plant, tuple[str, ...], str]] = {
    "a heartbeat without the fence": (sql("heartbeat", FENCE), NATIVE, "I-1"),
    "a complete without the fence": (sql("complete", FENCE), NATIVE, "I-1"),
    "a fail without the fence": (sql("fail", FENCE), NATIVE, "I-1"),
    "an effect's result without the fence": (
        sql("effect_result", FENCE, (r" AND token = :token", "")), NATIVE, "I-1|E-2",
    ),
    "a claim that is not atomic": (
        sql("claim", (r" AND t.state = 'QUEUED'", ""), NO_HEAD),
        NATIVE, "I-2",
    ),
    "a reclaim that does not look at the clock": (
        sql("reclaim", (r":expired_mono IS NULL OR", ":expired_mono IS NULL OR 1 OR")),
        NATIVE, "I-1",
    ),
    "an event in 500 is not stored": (one_event_in_500_is_not_stored, PURE, "I-2"),
    "an event in 500 is not published": (one_event_in_500_is_not_published, NATIVE, "I-3"),
    "a flush in 50 is skipped": (one_flush_in_50_is_skipped, PURE, LYING),
    "acknowledged before it is on disk": (acknowledged_before_it_is_on_disk, PURE, LYING),
    "recovery forgets to reclaim": (recovery_forgets_to_reclaim, NATIVE, "Q-6|liveness"),
    "an effect's outcome is guessed": (
        sql(".*", (r"'retryable', 'unknown'\)", "'retryable', 'result')")), NATIVE, "I-2|I-4",
    ),
    "an unknown effect is sent again": (
        sql(".*", (r"'retryable', 'unknown'\)", "'retryable', 'retryable')")),
        NATIVE, "I-2|I-4|E-2|E-3",
    ),
    "a submission is not deduplicated": (
        sql(
            "enqueue",
            (r"AND sid = :sid AND key = :key", "AND 0"),
            ("INSERT INTO submissions", "INSERT OR REPLACE INTO submissions"),
        ),
        NATIVE, "E-6|E-5",
    ),
    "another request under a key is taken": (
        steps_without("enqueue", r"dup_hash <> :hash"), NATIVE, "E-5|E-6",
    ),
    "the journal is not asked": (the_journal_is_not_asked, NATIVE, "E-2|I-4"),
    "dispatched before the intent is on disk": (
        dispatched_before_the_intent_is_on_disk, NATIVE, "E-1",
    ),
    "the turn is not held in RETRY_WAIT": (
        sql(
            "fail",
            (r"^SELECT 1 WHERE :state IN \('FAILED', 'DEAD_LETTER'\)", "SELECT 1"),
            (r"SET open = open - 1", "SET open = open - (:state <> 'RETRY_WAIT')"),
        ),
        NATIVE, "Q-9|I-2",
    ),
    "crashes are not counted": (
        sql("reclaim", (r"crashes >= :crash_budget", "crashes > 99")), NATIVE, "Q-5",
    ),
    "a crash is counted twice": (
        sql("claim", (r"crashes = :crashes \+ 1", "crashes = :crashes + 2")), NATIVE, "Q-5|I-2",
    ),
    "a failure is not counted": (
        sql("fail", (r"failures \+ :retryable", "failures + 0")), NATIVE, "Q-5",
    ),
    "one task more than the bound": (
        sql("enqueue", (r":open >= :session_limit", ":open > :session_limit")), NATIVE, "Q-10",
    ),
    "a cancel ends what has ended": (
        steps_without("cancel", r"'SUCCEEDED', 'FAILED'"), NATIVE, "Q-1|Q-11|I-2",
    ),
    "a question is answered twice": (
        steps_without("approval_resolve", r"a_state <> 'open'"), NATIVE, "A-7",
    ),
    "a stop cancels": (a_stop_cancels, NATIVE, "G-4"),
    "a stop hands nothing back": (a_stop_hands_nothing_back, NATIVE, "R-3"),
    "nothing is ever due": (nothing_is_ever_due, NATIVE, "liveness"),
    "answered tasks wake no lane": (answered_tasks_wake_no_lane, NATIVE, "liveness"),
    "expired leases are nobody's business": (
        expired_leases_are_nobodys_business, NATIVE, "liveness",
    ),
}  # fmt: skip


@pytest.mark.req("I-1", "I-2", "I-3", "I-4", "Q-3", "Q-4")
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, builds, laws = PLANTED[name]
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        found = noticed(seed, builds[seed % len(builds)])
        if found is not None:
            assert found.law in laws.split("|"), str(found).splitlines()[-2]
            return
    pytest.fail(f"not noticed within {SEEDS_MAX} seeds")


def noticed(seed: int, build: str) -> simulate.Failed | None:
    try:
        simulate.play(seed, build)
    except simulate.Failed as error:
        return error
    return None
