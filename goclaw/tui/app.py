"""The overview: lanes and queue, sessions, tasks, questions, dead letters, what starts found.

Owns the tabs, their keys and the look at the daemon once a second. Not in here: what is asked
(``board.py``), the conversation (``conversation.py``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from goclaw.client.aio import pause
from goclaw.core import limits
from goclaw.core.errors import GoclawError
from goclaw.tui.board import Board, Question, look
from goclaw.tui.conversation import Conversation
from goclaw.tui.transcript import clean

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from textual.binding import BindingType

    from goclaw.client import Client, TaskInfo

__all__ = ["GoclawApp"]

_HEADS: Final[dict[str, tuple[str, ...]]] = {
    "sessions": ("session", "title", "open", "updated"),
    "tasks": ("task", "state", "reason", "try", "updated"),
    "questions": ("what", "why", "session"),
    "letters": ("task", "reason", "fingerprint", "work", "error"),
    "reports": ("at", "what", "told"),
}
_TITLES: Final = {
    "sessions": "1 Sessions",
    "tasks": "2 Tasks",
    "questions": "3 Questions",
    "letters": "4 Dead letters",
    "reports": "5 Reports",
}
_CSS: Final = """
#headline { height: 1; background: $primary; color: $text; padding: 0 1; }
#detail { height: auto; max-height: 9; padding: 0 1; border-top: solid $primary; }
#tabs { height: 1fr; }
DataTable { height: 1fr; }
TabPane { padding: 0; }
"""


class GoclawApp(App[None]):
    """A terminal on one daemon. ``client`` is connected, and patient: it outlives restarts.
    ``cwd``: where new sessions work; ``session``: begin in its conversation."""

    TITLE = "goclaw"
    CSS = _CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("n", "new_session", "new session"),
        Binding("a", "answer('allow')", "allow", show=False),
        Binding("x", "answer('reject')", "reject", show=False),
        Binding("d", "settle('done')", "it happened", show=False),
        Binding("u", "settle('not_done')", "it did not", show=False),
        Binding("f", "settle('fail')", "fail the task", show=False),
        Binding("p", "probe", "ask the tool", show=False),
        Binding("c", "cancel", "cancel", show=False),
        Binding("r", "redrive", "redrive", show=False),
        Binding("delete", "drop", "drop", show=False),
        *(Binding(str(number), f"show('{name}')", show=False)
          for number, name in enumerate(_TITLES, 1)),
    ]  # fmt: skip

    def __init__(self, client: Client, cwd: str, *, session: str | None = None) -> None:
        super().__init__()
        self.client, self._cwd, self._first = client, cwd, session
        self.board: Board | None = None
        self._rows: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self._soon = asyncio.Event()

    def compose(self) -> ComposeResult:
        """See App."""
        yield Static("connecting ...", id="headline", markup=False)
        with TabbedContent(id="tabs"):
            for name, title in _TITLES.items():
                with TabPane(title, id=name):
                    yield DataTable(id=f"{name}-table", cursor_type="row", zebra_stripes=True)
        yield Static("", id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """See App."""
        for name, head in _HEADS.items():
            self._table(name).add_columns(*head)
        self._table("sessions").focus()
        self.run_worker(self._looking(), exclusive=False)
        if self._first is not None:
            self._talk(self._first)

    # -- looking -------------------------------------------------------------------------------

    async def _looking(self) -> None:
        while True:
            asked = asyncio.ensure_future(look(self.client))
            done, _ = await asyncio.wait([asked], timeout=2 * limits.TUI_LOOK_MS / 1000)
            if not done:
                self._say("no answer from the daemon; what was accepted goes on when it is back")
            try:
                self._show(await asked)
            except GoclawError as error:
                self._say(str(error))
            self._soon.clear()
            waiting = asyncio.ensure_future(self._soon.wait())
            await asyncio.wait([waiting, asyncio.ensure_future(pause(limits.TUI_LOOK_MS))],
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            waiting.cancel()

    def _say(self, text: str) -> None:
        self.query_one("#headline", Static).update(clean(text))

    def _show(self, board: Board) -> None:
        self.board = board
        self._say(board.headline)
        self._fill("sessions", [
            (one["sessionId"], (one["sessionId"][-8:], str(one.get("title") or one.get("cwd", "")),
                                board.open_of(one["sessionId"]), _time(one.get("updatedAt"))))
            for one in board.sessions
        ])  # fmt: skip
        self._fill("tasks", [
            (task.task_id, (task.task_id[-8:], task.state.lower(), task.reason or "",
                            str(task.attempt), _time(task.json.get("updatedAt"))))
            for task in board.tasks
        ])  # fmt: skip
        self._fill("questions", [
            (one.key, (one.title, one.reason, one.session_id[-8:])) for one in board.questions
        ])  # fmt: skip
        self._fill("letters", [
            (task.task_id, (task.task_id[-8:], task.reason or "",
                            str(task.json.get("fingerprint") or ""),
                            str(task.json.get("work") or ""), _error(task)))
            for task in board.letters
        ])  # fmt: skip
        self._fill("reports", [
            (str(one["eventId"]), (_time(one["at"]), one["type"], _told(one)))
            for one in board.reports
        ])  # fmt: skip
        tabs = self.query_one("#tabs", TabbedContent)
        for name, count in (("questions", len(board.questions)), ("letters", len(board.letters))):
            title = _TITLES[name] + (f" ({count})" if count else "")
            tabs.get_tab(name).label = Text(title)
        self._describe()

    def _fill(self, name: str, rows: list[tuple[str, tuple[str, ...]]]) -> None:
        """Only what is different is drawn, and the cursor stays on its row."""
        if self._rows.get(name) == rows:
            return
        chosen = self._chosen(name)
        self._rows[name] = rows
        table = self._table(name)
        table.clear()
        for key, cells in rows:
            table.add_row(*map(_cell, cells), key=key)
        keys = [key for key, _ in rows]
        if chosen in keys:
            table.move_cursor(row=keys.index(chosen))

    def _table(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}-table", DataTable)

    @property
    def _tab(self) -> str:
        return self.query_one("#tabs", TabbedContent).active

    def _chosen(self, name: str) -> str | None:
        rows, row = self._rows.get(name, []), self._table(name).cursor_row
        return rows[row][0] if 0 <= row < len(rows) else None

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        """See App."""
        self._describe()

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """See App."""
        self._table(event.pane.id or "sessions").focus()
        self._describe()

    def _describe(self) -> None:
        """What the chosen row is, and the keys that move it."""
        name, key = self._tab, self._chosen(self._tab)
        board = self.board
        text = ""
        if board is None or key is None:
            text = "Nothing here." if board is not None else ""
            if name == "sessions" and board is not None:
                text = "No session yet: n begins one."
        elif name == "sessions":
            text = f"{key}\nenter: talk   n: new session"
        elif name == "tasks":
            task = next(task for task in board.tasks if task.task_id == key)
            text = (
                f"{key}  {task.state}  {task.reason or ''}\n{_error(task)}\nenter: why   c: cancel"
            )
        elif name == "questions":
            question = self._question()
            keys = "a: allow   x: reject"
            if question is not None and question.effect is not None:
                keys = (
                    "d: it happened   u: it did not, send it   f: fail the task   p: ask the tool"
                )
            text = "" if question is None else f"{question.title}\n{question.reason}\n{keys}"
        elif name == "letters":
            task = next(task for task in board.letters if task.task_id == key)
            text = f"{key}  {_error(task)}\nenter: why   r: redrive   delete: drop"
        elif name == "reports":
            text = _told(next(one for one in board.reports if str(one["eventId"]) == key))
        self.query_one("#detail", Static).update(clean(text))

    # -- keys ----------------------------------------------------------------------------------

    def action_show(self, name: str) -> None:
        """Go to a tab."""
        self.query_one("#tabs", TabbedContent).active = name

    async def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        """Enter: talk in a session, or say why a task is where it is."""
        name, key = self._tab, self._chosen(self._tab)
        if key is None:
            return
        if name == "sessions":
            self._talk(key)
        elif name in ("tasks", "letters"):
            self._do(self._why(key))

    def _talk(self, session_id: str) -> None:
        self._do(self.push_screen(Conversation(self.client, session_id)))

    async def _why(self, task_id: str) -> None:
        found = await self.client.why(task_id)
        lines = [
            f"{one.text}{f' until {one.until}' if one.until else ''}"
            f"{f'  -> {one.command}' if one.command else ''}"
            for one in found.because
        ]
        self.query_one("#detail", Static).update(clean("\n".join([found.state, *lines])))

    def action_new_session(self) -> None:
        """Begin a session and talk in it."""

        async def begin() -> None:
            made = await self.client.new_session(self._cwd, interactive=True)
            self._talk(made.session_id)

        self._do(begin())

    def action_answer(self, kind: str) -> None:
        """Allow or reject the chosen question, this once."""
        question = self._question()
        if question is None or question.approval is None:
            return
        approval = question.approval
        options = [option for option, _, what in approval.options if what.startswith(kind)]
        if options:
            self._do(self.client.resolve(approval.approval_id, options[0]))

    def action_settle(self, outcome: str) -> None:
        """Say what became of the chosen effect."""
        question = self._question()
        if question is not None and question.effect is not None:
            task_id, effect = question.effect
            self._do(self.client.settle(task_id, effect.ordinal, outcome))

    def action_probe(self) -> None:
        """Ask the tool of the chosen effect."""
        question = self._question()
        if question is not None and question.effect is not None:
            task_id, effect = question.effect
            self._do(self.client.probe(task_id, effect.ordinal))

    def action_cancel(self) -> None:
        """Cancel the chosen task."""
        key = self._chosen("tasks")
        if self._tab == "tasks" and key is not None:
            self._do(self.client.cancel(key))

    def action_redrive(self) -> None:
        """Put the chosen dead letter back into the queue."""
        key = self._chosen("letters")
        if self._tab == "letters" and key is not None:
            self._do(self.client.redrive(key))

    def action_drop(self) -> None:
        """List the chosen dead letter no more."""
        key = self._chosen("letters")
        if self._tab == "letters" and key is not None:
            self._do(self.client.drop(key))

    def _question(self) -> Question | None:
        key = self._chosen("questions")
        if self.board is None or self._tab != "questions":
            return None
        return next((one for one in self.board.questions if one.key == key), None)

    def _do(self, work: Awaitable[Any]) -> None:
        """Carry it out beside the screen; an error is told, never raised."""

        async def done() -> None:
            try:
                await work
            except GoclawError as error:
                self.notify(clean(str(error)), severity="error", markup=False)
            self._soon.set()

        self.run_worker(done(), exclusive=False)


def _cell(text: str) -> Text:
    line = " ".join(clean(text).split())
    wide = limits.TUI_CELL_CHARS
    return Text(line if len(line) <= wide else f"{line[: wide - 1]}…")


def _time(text: object) -> str:
    """The time of an RFC 3339 moment."""
    return str(text)[11:19] if text else ""


def _error(task: TaskInfo) -> str:
    error = task.json.get("error") or {}
    return f"{error.get('code')}: {error.get('message')}" if error else ""


def _told(report: dict[str, Any]) -> str:
    skipped = ("eventId", "type", "at", "sessionId", "traceId", "runId", "taskId", "attempt")
    return "  ".join(
        f"{key} {value}" for key, value in report.items() if key not in skipped and value
    )
