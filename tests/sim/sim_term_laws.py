"""The laws of when a task may run: delayed, recurring, unique, until when, how long (Q-12, Q-13).

Owns the terms that a task was accepted with and what became of them. Not in here: its states
(sim_laws.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim_broken import hold

from goclaw.core import limits
from goclaw.core.states import TERMINAL

if TYPE_CHECKING:
    from sim_laws import Task


@dataclass(slots=True)
class Chain:
    """A recurring task: its occurrences, of which at most one waits for its time."""

    name: str
    misfire: str
    waiting: Task | None = None
    given: set[int] = field(default_factory=set)
    """The times of its occurrences so far."""
    last: Task | None = None
    """The occurrence before the one that waits."""


@dataclass(slots=True)
class Terms:
    """When a task may run, as it was accepted and as it stands."""

    held_until: int | None
    """Wall time; None: it is in its line."""
    timeout_ms: int | None
    deadline_at: int | None
    unique: tuple[str, str] | None
    chain: Chain | None = None
    begun_mono: int = 0
    """Of the attempt that runs."""
    begun_life: int = 0


class TermLaws:
    """The terms of all tasks."""

    def __init__(self) -> None:
        self.uniques: dict[tuple[str, str], Task] = {}
        self.chains: dict[str, Chain] = {}
        self.life = 0
        """Which of the daemon's."""
        self.late_ms: int | None = None
        """How late a timer may be in this life; None: the disk keeps it from anything."""

    def unique_of(self, given: dict[str, Any]) -> tuple[str, str] | None:
        """Scope and key of a submission that wants to be the only one."""
        if given["unique_key"] is None:
            return None
        scope = f"pool:{given['pool']}" if given["pool"] else f"session:{given['sid']}"
        return scope, given["unique_key"]

    def is_taken(self, unique: tuple[str, str] | None) -> Task | None:
        """Who has that key and has not ended."""
        task = self.uniques.get(unique) if unique is not None else None
        return None if task is None or task.state in TERMINAL else task

    def accepted(self, given: dict[str, Any]) -> Terms:
        """Of a new task."""
        return Terms(
            given["not_before"], given["timeout_ms"], given["deadline_at"], self.unique_of(given)
        )

    def takes_key(self, task: Task) -> None:
        """A task that is accepted, or comes back, is the only one of its key."""
        if task.terms.unique is not None:
            other = self.is_taken(task.terms.unique)
            hold(other in (None, task), "Q-12", "two unique tasks:", task.task_id, other)
            self.uniques[task.terms.unique] = task

    def recurs(self, task: Task, misfire: str) -> None:
        """It is the first of its chain."""
        assert task.terms.held_until is not None
        chain = Chain(task.task_id, misfire, task, {task.terms.held_until})
        task.terms.chain = self.chains[chain.name] = chain

    def followed(self, last: Task, task: Task, due_at: int) -> None:
        """``task`` is the next occurrence after ``last``."""
        chain = last.terms.chain
        hold(chain, "Q-12", "an occurrence of nothing", task.task_id)
        assert chain is not None
        hold(chain.waiting is last, "Q-12", last.task_id, "has a second successor", task.task_id)
        hold(due_at not in chain.given, "Q-12", chain.name, "is due twice at", due_at)
        hold(due_at > max(chain.given), "Q-12", chain.name, "goes back to", due_at)
        chain.given.add(due_at)
        chain.last, chain.waiting, task.terms.chain = last, task, chain

    def due(self, task: Task, now: int) -> None:
        """It takes its place in line."""
        until = task.terms.held_until
        hold(until is not None, "Q-12", task.task_id, "is released, and was not held")
        assert until is not None
        hold(until <= now, "Q-12", task.task_id, "is released", until - now, "ms too soon")
        task.terms.held_until = None

    def missed(self, task: Task, due_at: int, now: int) -> None:
        """An occurrence is left out."""
        chain, until = task.terms.chain, task.terms.held_until
        assert chain is not None
        assert until is not None
        hold(chain.misfire == "skip", "Q-12", chain.name, "skips, and it is", chain.misfire)
        hold(now - until > limits.MISFIRE_GRACE_MS, "Q-12", "skipped, and it was", now - until)
        hold(due_at > now, "Q-12", "put off to what is past")
        chain.given.add(due_at)
        task.terms.held_until = due_at

    def claimed(self, task: Task, mono: int) -> None:
        """Nobody takes what is not due."""
        hold(task.terms.held_until is None, "Q-12", task.task_id, "began before its time")
        task.terms.begun_mono, task.terms.begun_life = mono, self.life

    def ended(self, task: Task, reason: str, now: int | None) -> None:
        """It is terminal; ``now``: when its deadline was found to have passed."""
        if reason == "deadline_exceeded":
            deadline = task.terms.deadline_at
            hold(deadline is not None, "Q-13", task.task_id, "has no deadline, and failed by it")
            assert deadline is not None
            hold(now is not None and deadline <= now, "Q-13", task.task_id, "failed too soon")
        chain = task.terms.chain
        if chain is not None and chain.waiting is task and task.terms.held_until is not None:
            chain.waiting = None  # cancelled while it waited: that ends it
            del self.chains[chain.name]
        task.terms.held_until = task.terms.deadline_at = None

    def left(self, task: Task, mono: int) -> None:
        """An attempt is over: not long after its time-out, unless nobody was there to look."""
        wait_ms = task.terms.timeout_ms
        if wait_ms is None or self.late_ms is None or task.terms.begun_life != self.life:
            return
        late = mono - task.terms.begun_mono - wait_ms
        hold(late <= self.late_ms, "Q-13", task.task_id, "outlived its time-out by", late)

    def timed_out(self, task: Task, mono: int) -> None:
        """An attempt that took too long."""
        wait_ms = task.terms.timeout_ms
        hold(wait_ms is not None, "Q-13", task.task_id, "has no time-out, and failed by it")
        assert wait_ms is not None
        took = mono - task.terms.begun_mono
        hold(took >= wait_ms, "Q-13", task.task_id, "timed out after", took, "of", wait_ms)

    def overdue(self, tasks: list[Task], now: int, mono: int, slack_ms: int) -> None:
        """What should have been ended by now, had anybody looked."""
        for task in tasks:
            terms = task.terms
            if terms.deadline_at is not None:
                late = now - terms.deadline_at
                hold(late <= slack_ms, "Q-13", task.task_id, "is", late, "ms over its deadline")
            if terms.timeout_ms is not None and task.state == "RUNNING":
                late = mono - terms.begun_mono - terms.timeout_ms
                hold(late <= slack_ms, "Q-13", task.task_id, "is", late, "ms over its time-out")

    def chains_go_on(self) -> None:
        """Between two lives: what recurs has an occurrence that waits."""
        for chain in self.chains.values():
            waits = chain.waiting is not None and chain.waiting.terms.held_until is not None
            hold(waits, "Q-12", chain.name, "recurs no more, and nobody ended it")
