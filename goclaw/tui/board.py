"""What the overview shows, asked of the daemon in a handful of requests.

Owns the questions and the rows. Not in here: widgets, and when to ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from goclaw.client import asks
from goclaw.core import limits
from goclaw.tui.transcript import clean

if TYPE_CHECKING:
    from goclaw.client import Approval, Client, EffectInfo, TaskInfo
    from goclaw.client.records import Status

__all__ = ["Board", "Question", "look"]


@dataclass(frozen=True, slots=True)
class Question:
    """Something that waits for a person: a question of the policy, or an effect that nobody knows
    about. ``key`` tells it apart."""

    key: str
    session_id: str
    title: str
    reason: str
    approval: Approval | None = None
    effect: tuple[str, EffectInfo] | None = None
    """The task and the effect."""


@dataclass(frozen=True, slots=True)
class Board:
    """One look at the daemon; lists are first pages, newest first."""

    status: Status
    sessions: list[dict[str, Any]]
    """As session/list has them."""
    tasks: list[TaskInfo]
    questions: list[Question]
    letters: list[TaskInfo]
    reports: list[dict[str, Any]]
    """The newest recovery reports, as events."""

    @property
    def headline(self) -> str:
        """Lanes and queue in one line."""
        value = self.status.json
        lanes, counts = value["lanes"], value["tasks"]
        bar = "▮" * lanes["busy"] + "▯" * max(0, lanes["size"] - lanes["busy"])
        shown = [f"lanes {bar[: limits.TUI_LANES_SHOWN]} {lanes['busy']}/{lanes['size']}"]
        shown += [
            f"{counts[state]} {state.lower().replace('_', ' ')}"
            for state in ("QUEUED", "RUNNING", "RETRY_WAIT", "SUSPENDED", "DEAD_LETTER")
            if counts.get(state)
        ]
        return "  ".join(shown)

    def open_of(self, session_id: str) -> str:
        """The states of a session's tasks on the page, as `2 queued, 1 running`."""
        counts: dict[str, int] = {}
        for task in self.tasks:
            if task.session_id == session_id:
                counts[task.state] = counts.get(task.state, 0) + 1
        return ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))


async def look(client: Client) -> Board:
    """Ask for everything once; GoclawError when the daemon refuses."""
    page = limits.TUI_ROWS_MAX
    listed = await client.call("session/list", {})
    tasks, _ = await client.ask(asks.tasks(limit=page))
    letters, _ = await client.ask(asks.tasks(states=["DEAD_LETTER"], limit=page))
    waiting, _ = await client.ask(asks.tasks(states=["SUSPENDED"], limit=page))
    questions = [_asked(one) for one in await client.approvals()]
    for task in waiting:
        if task.reason == "effect_unknown" and len(questions) < page:
            questions += [
                _unknown(task, effect)
                for effect in await client.effects(task.task_id)
                if effect.state == "unknown"
            ]
    status = await client.status()
    return Board(
        status, listed["sessions"][:page], tasks, questions, letters, await _reports(client)
    )


async def _reports(client: Client) -> list[dict[str, Any]]:
    """The newest of the daemon's own events; a page is enough for many starts."""
    head = (await client.events("_system", 0, 1)).head_event_id
    page = await client.events("_system", max(0, head - limits.TUI_ROWS_MAX), limits.TUI_ROWS_MAX)
    return [event.to_json() for event in reversed(page.events)]


def _asked(approval: Approval) -> Question:
    return Question(
        f"approval:{approval.approval_id}", approval.session_id, clean(approval.title),
        clean(approval.reason), approval=approval,
    )  # fmt: skip


def _unknown(task: TaskInfo, effect: EffectInfo) -> Question:
    return Question(
        f"effect:{task.task_id}:{effect.ordinal}", task.session_id,
        clean(f"did {effect.name} happen?"), f"{effect.effect_class}, effect {effect.ordinal}",
        effect=(task.task_id, effect),
    )  # fmt: skip
