"""One session as a conversation: what was said and done, and a line to say more.

Owns that screen. Not in here: the fold of events into blocks (``transcript.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.suggester import Suggester
from textual.widgets import Footer, Input, Static

from goclaw.client.aio import pause
from goclaw.core import limits
from goclaw.core.errors import GoclawError, ReplayGap
from goclaw.tui.transcript import Block, Transcript, clean

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from goclaw.client import Client

__all__ = ["Conversation"]

_CSS: Final = """
#title { height: 1; background: $primary; color: $text; padding: 0 1; }
#log { height: 1fr; padding: 0 1; }
.block { height: auto; margin: 0 0 1 0; }
.you { color: $accent; text-style: bold; }
.thought { color: $text-muted; text-style: italic; }
.tool, .plan { color: $success; }
.note { color: $warning; }
.error { color: $error; }
"""
_WHO: Final = {"you": "> ", "thought": "~ "}


class _Commands(Suggester):
    """Completes slash commands that the session offers."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._transcript = transcript

    async def get_suggestion(self, value: str) -> str | None:
        if not value.startswith("/") or " " in value:
            return None
        return next((one for one in self._transcript.commands if one.startswith(value)), None)


class Conversation(Screen[None]):
    """The conversation of one session; what is typed becomes a prompt of it."""

    CSS = _CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "back"),
        Binding("ctrl+t", "stop", "cancel the run"),
        Binding("pageup", "scroll(-1)", "up", show=False),
        Binding("pagedown", "scroll(1)", "down", show=False),
    ]

    def __init__(self, client: Client, session_id: str) -> None:
        super().__init__()
        self._client, self._session = client, session_id
        self.transcript = Transcript()
        self._shown: dict[str, Static] = {}
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Static(self._session, id="title", markup=False)
        yield VerticalScroll(id="log")
        yield Input(
            placeholder="say something, or / for a command; right arrow completes",
            suggester=_Commands(self.transcript), id="line", max_length=limits.FRAME_BYTES_MAX // 8,
        )  # fmt: skip
        yield Footer()

    def on_mount(self) -> None:
        """See Screen."""
        self.query_one("#line", Input).focus()
        self.run_worker(self._listen(), exclusive=False)
        self.run_worker(self._drawing(), exclusive=False)
        self.run_worker(self._learn_commands(), exclusive=False)

    async def _learn_commands(self) -> None:
        with contextlib.suppress(GoclawError):
            found = await self._client.call("_goclaw/admin/skill", {"verb": "list"})
            names = [str(one["name"]) for one in found["skills"]]
            self.transcript.commands = self.transcript.commands or [f"/{name}" for name in names]

    async def _listen(self) -> None:
        """From as far back as is shown, then as it happens."""
        try:
            head = (await self._client.events(self._session, 0, 1)).head_event_id
            start: int | None = max(0, head - 4 * limits.TUI_BLOCKS_MAX)
            while True:
                try:
                    await self._follow(start)
                except ReplayGap:
                    start = None  # retention was quicker: from now on
        except GoclawError as error:
            self.transcript.blocks["error:listen"] = Block(
                "error:listen", "error", clean(str(error))
            )
            self._note("error:listen")

    async def _follow(self, start: int | None) -> None:
        async for event in self._client.subscribe(self._session, start):
            block = self.transcript.add(event)
            self._note("" if block is None else block.key)

    def _note(self, key: str) -> None:
        if key:
            self._changed[key] = None
        self._wake.set()

    async def _drawing(self) -> None:
        """What a burst of events leaves is drawn, not each of them: a layout costs more than all
        the folding."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._draw()
            await pause(limits.TUI_DRAW_MS)

    async def _draw(self) -> None:
        busy = " ... working" if self.transcript.is_busy else ""
        self.query_one("#title", Static).update(f"{self._session}{busy}")
        log = self.query_one("#log", VerticalScroll)
        at_end = log.scroll_y >= log.max_scroll_y - 1
        changed, self._changed = self._changed, {}
        blocks = self.transcript.blocks
        gone = [key for key in self._shown if key not in blocks]
        new: list[Static] = []
        for block in [blocks[key] for key in changed if key in blocks]:
            text = Text(_WHO.get(block.kind, "") + block.text)
            known = self._shown.get(block.key)
            if known is None:
                known = Static(text, classes=f"block {block.kind}", markup=False)
                new.append(known)
                self._shown[block.key] = known
            else:
                known.update(text)
                known.set_classes(f"block {block.kind}")
        await log.remove_children([self._shown.pop(key) for key in gone])
        await log.mount(*new)
        if at_end:
            log.scroll_end(animate=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """What was typed becomes a prompt; it is on disk before the line is empty for good."""
        text = event.value.strip()
        if text:
            event.input.clear()
            self.run_worker(self._prompt(text), exclusive=False)

    async def _prompt(self, text: str) -> None:
        try:
            await self._client.prompt(text, session=self._session)
        except GoclawError as error:
            self.notify(clean(str(error)), severity="error", markup=False)

    def action_stop(self) -> None:
        """Cancel what runs in this session."""
        run_id = self.transcript.run_id
        if run_id:
            self.run_worker(self._cancel(run_id), exclusive=False)

    async def _cancel(self, run_id: str) -> None:
        try:
            await self._client.cancel(run_id)
        except GoclawError as error:
            self.notify(clean(str(error)), severity="error", markup=False)

    def action_scroll(self, pages: int) -> None:
        """A page up or down."""
        log = self.query_one("#log", VerticalScroll)
        log.scroll_relative(y=pages * max(1, log.size.height - 1), animate=False)
