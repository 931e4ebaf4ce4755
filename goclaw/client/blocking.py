"""The blocking client: the command line's, and that of scripts. No event loop, no thread.

Owns one Unix socket at a time and what waits on it. Not in here: the rules of reconnecting
(``link.py``), what the requests are (``asks.py``).
"""

from __future__ import annotations

import collections
import os
import select
from typing import TYPE_CHECKING, Any, TypeVar

import goclaw
from goclaw.client import asks
from goclaw.client.link import Answered, Asked, Happened, Link, Missed, Refused, Told
from goclaw.client.reach import Starter, dial, gone
from goclaw.client.records import Approval, Event, PromptResult
from goclaw.client.turn import Turn
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import DaemonGone, MethodUnknown
from goclaw.core.files import absolute
from goclaw.core.home import Home
from goclaw.protocol.lines import LineSplitter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from goclaw.client.asks import Ask
    from goclaw.client.link import Incoming
    from goclaw.client.records import (
        EffectInfo,
        EventPage,
        Explained,
        Moved,
        Receipt,
        SessionInfo,
        Status,
        TaskInfo,
    )

__all__ = ["Prompted", "SyncClient"]

T = TypeVar("T")


class Prompted:
    """A prompt that was sent; ``turn`` gathers what its run does."""

    __slots__ = ("request_id", "turn")

    def __init__(self, request_id: int, turn: Turn) -> None:
        self.request_id, self.turn = request_id, turn


class SyncClient:
    """A client of the daemon of one home; use it in a ``with``, from one thread.

    Every call raises the GoclawError that the daemon answers with, and DaemonGone when there is no
    daemon (any more). After a lost connection it connects again, repeats what had no answer under
    the same keys and goes on at the last event. ``start``: start a daemon where there is none.
    ``reach``: another way to a connection, tried again and again while it answers None.
    """

    def __init__(
        self,
        home: str | Path | Home | None = None,
        *,
        start: bool = False,
        reach: Callable[[], socket.socket | None] | None = None,
        client_id: str | None = None,
    ) -> None:
        if not isinstance(home, Home):
            home = Home.locate(None if home is None else str(home), os.environ)
        self._home, self._clock = home, SystemClock()
        self._patient = start or reach is not None
        if reach is None:
            reach = Starter(home, self._clock).step if start else lambda: dial(home)
        self._reach = reach
        self._link = Link(lambda: self._clock.new_id("key"))
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: collections.deque[Event] = collections.deque()
        self._socket: socket.socket | None = None
        self._lines = LineSplitter()
        self._poll = select.poll()
        self.on_question: Callable[[Approval], str | None] | None = None
        """Answers session/request_permission with an option's id; None leaves it to others."""
        self.on_told: Callable[[str, dict[str, Any]], None] = lambda method, params: None
        """Sees notifications that are no events: their method and params."""
        self.wake: tuple[int, Callable[[], None]] | None = None
        """A descriptor, and what to call when it can be read while a call waits."""
        hello = asks.greeting(client_id or self._clock.new_id("client"), goclaw.__version__)
        if not self._patient:
            self._socket = self._reach()
            if self._socket is None:
                raise gone(home)
        try:
            self._connect()
            self._wait(self._link.request("initialize", hello))
        except BaseException:
            self.close()  # a daemon ends, and a home is free, only when its clients have left
            raise

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave; what runs goes on. Twice is fine."""
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None

    # -- requests -------------------------------------------------------------------------------

    def ask(self, ask: Ask[T]) -> T:
        """Carry out a request of ``asks.py``."""
        return ask.read(self._wait(self._link.request(ask.method, ask.params)))

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Any method, as it is on the wire."""
        return self._wait(self._link.request(method, params))

    def new_session(
        self,
        cwd: str | Path | None = None,
        *,
        roots: Sequence[str] = (),
        key: str | None = None,
        brain: str | None = None,
        interactive: bool | None = None,
    ) -> SessionInfo:
        """A session in a directory; the present one when none is given."""
        return self.ask(
            asks.new_session(
                absolute(cwd or "."),
                roots=roots,
                key=key,
                brain=brain,
                interactive=interactive,
            )
        )

    def status(self) -> Status:
        """The daemon's state."""
        return self.ask(asks.status())

    def rotate_token(self) -> None:
        """Put another token into auth.token: the old one is dead when this returns, and whoever
        came with it, or with one of an attempt, is cut off."""
        self.ask(asks.rotate_token())

    def tasks(self, *, session: str | None = None, states: Sequence[str] = ()) -> list[TaskInfo]:
        """All tasks, page by page, newest first."""
        found: list[TaskInfo] = []
        after: str | None = None
        while True:
            page, after = self.ask(asks.tasks(session=session, states=states, after=after))
            found += page
            if after is None:
                return found

    def task(self, task_id: str) -> TaskInfo:
        """One task; UnknownId."""
        return self.ask(asks.task(task_id))

    def cancel(self, some_id: str) -> Receipt:
        """Cancel a task or a run by its id."""
        return self.ask(asks.cancel(some_id))

    def why(self, task_id: str) -> Explained:
        """Why a task waits, is blocked, denied or dead, and which command moves it; UnknownId."""
        return self.ask(asks.why(task_id))

    def dead_letters(self, fingerprint: str | None = None) -> list[TaskInfo]:
        """Tasks that were given up, newest first; of one fingerprint or all."""
        found: list[TaskInfo] = []
        after: str | None = None
        while True:
            page, after = self.ask(asks.dead_letters(fingerprint, after))
            found += page
            if after is None:
                return found

    def redrive(
        self, task_id: str | None = None, *, fingerprint: str | None = None, dry_run: bool = False
    ) -> Moved:
        """Put a failed task or dead letter back into the queue, or all with one fingerprint.

        A single one that cannot be raises why; of several, ``skipped`` says so. ``dry_run``
        changes nothing.
        """
        return self._move("redrive", task_id, fingerprint, dry_run)

    def drop(
        self, task_id: str | None = None, *, fingerprint: str | None = None, dry_run: bool = False
    ) -> Moved:
        """Drop a dead letter, or all with one fingerprint; as ``redrive``."""
        return self._move("drop", task_id, fingerprint, dry_run)

    def _move(
        self, verb: str, task_id: str | None, fingerprint: str | None, dry_run: bool
    ) -> Moved:
        if fingerprint is None:
            return self.ask(asks.move_task(verb, task_id or "", dry_run))
        moved, after = self.ask(asks.move_tasks(verb, fingerprint, dry_run, None))
        while after is not None:
            page, after = self.ask(asks.move_tasks(verb, fingerprint, dry_run, after))
            moved = moved.and_then(page)
        return moved

    def approvals(self, session: str | None = None) -> list[Approval]:
        """Open questions."""
        return self.ask(asks.approvals(session))

    def resolve(self, approval_id: str, option_id: str) -> str:
        """Answer a question; AlreadyResolved when somebody was quicker."""
        return self.ask(asks.resolve(approval_id, option_id))

    def effects(self, task_id: str) -> list[EffectInfo]:
        """What a task has done, in order; UnknownId."""
        found: list[EffectInfo] = []
        after: int | None = None
        while True:
            page, after = self.ask(asks.effects(task_id, after))
            found += page
            if after is None:
                return found

    def settle(self, task_id: str, ordinal: int, outcome: str, result: Any = None) -> EffectInfo:
        """Say what became of an unknown effect: done, not_done or fail, which ends the task."""
        return self.ask(asks.settle_effect(task_id, ordinal, outcome, result))

    def redo(self, task_id: str, ordinal: int) -> EffectInfo:
        """Send an unknown effect again, under the same key."""
        return self.ask(asks.redo_effect(task_id, ordinal))

    def probe(self, task_id: str, ordinal: int) -> EffectInfo:
        """Ask the tool of an unknown effect whether it happened, and settle it by the answer."""
        return self.ask(asks.probe_effect(task_id, ordinal))

    def events(
        self, session: str, from_event: int = 0, limit: int = limits.EVENTS_PAGE_MAX
    ) -> EventPage:
        """A page of events after ``from_event``."""
        return self.ask(asks.events(session, from_event, limit))

    def history(self, session: str, from_event: int = 0) -> Iterator[Event]:
        """Events after ``from_event`` up to the head as of now."""
        while True:
            page = self.events(session, from_event)
            yield from page.events
            from_event = page.next_event_id
            if from_event >= page.head_event_id:
                return

    def follow(
        self, session: str, from_event: int | None = None, *, latest: bool = False
    ) -> Iterator[Event]:
        """Events after ``from_event`` and then as they happen, for ever, over daemon restarts.

        One at a time per client; ReplayGap when ``from_event`` is no longer kept. ``latest``: of
        what has piled up, also while the daemon was away, the newest event of each kind only.
        """
        self.ask(asks.subscribe(session, from_event, latest))
        while True:
            while self._events:
                event = self._events.popleft()
                if event.session_id == session:
                    yield event
            self._step()

    # -- prompts --------------------------------------------------------------------------------

    def submit(
        self, prompt: str | list[dict[str, Any]], *, session: str, key: str | None = None
    ) -> Prompted:
        """Send a prompt without waiting for its run; ``wait`` does that."""
        key = key or self._clock.new_id("key")
        blocks = [{"type": "text", "text": prompt}] if isinstance(prompt, str) else prompt
        ask = asks.prompt(session, blocks, key)
        request_id = self._link.request(ask.method, ask.params)
        self._flush()
        return Prompted(request_id, Turn(session, key))

    def accepted(self, prompted: Prompted) -> str:
        """Wait until the prompt is on disk; the id of its run."""
        while not prompted.turn.run_id and prompted.request_id not in self._answers:
            self._gather(prompted.turn, None)
            if not prompted.turn.run_id:
                self._step()
        if not prompted.turn.run_id:
            return self.wait(prompted).run_id
        return prompted.turn.run_id

    def wait(
        self, prompted: Prompted, on_event: Callable[[Event], None] | None = None
    ) -> PromptResult:
        """Wait for the end of the run. ``on_event`` sees each of its events; what it raises ends
        the wait, and the run goes on. A prompt that was refused raises why."""
        while prompted.request_id not in self._answers:
            self._gather(prompted.turn, on_event)
            if prompted.request_id not in self._answers:
                self._step()
        self._gather(prompted.turn, on_event)
        message = self._answers.pop(prompted.request_id)
        error, answer = message.get("error"), message.get("result")
        turn = prompted.turn
        run_id = turn.run_id or asks.run_of(message)
        if error and not run_id:
            raise asks.exception(error)
        if not turn.whole:
            turn = Turn(turn.session_id, turn.key, run_id)
            for event in self.history(turn.session_id):
                if turn.add(event) and on_event is not None:
                    on_event(event)
        return turn.result(answer, asks.shown_error(error), self._record(turn))

    def _record(self, turn: Turn) -> dict[str, Any] | None:
        found = self.task(turn.task_id).json.get("result") if turn.task_id else None
        return found if isinstance(found, dict) else None

    def prompt(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        session: str | None = None,
        key: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> PromptResult:
        """Run a prompt to its end, in a new session of the present directory unless one is given.

        The same key again returns the same run.
        """
        if session is None:
            session = self.new_session(key=key).session_id
        return self.wait(self.submit(prompt, session=session, key=key), on_event)

    def cancel_turn(self, session: str) -> None:
        """Cancel the session's running turn and the prompts this client has waiting there."""
        self._link.notify("session/cancel", {"sessionId": session})
        self._flush()

    def _gather(self, turn: Turn, on_event: Callable[[Event], None] | None) -> None:
        while self._events:
            event = self._events.popleft()
            if event.session_id == turn.session_id and turn.add(event) and on_event is not None:
                on_event(event)

    # -- the connection -------------------------------------------------------------------------

    def _connect(self) -> None:
        """Raises DaemonGone when nothing answers within ``limits.START_MS_MAX``."""
        patience_ms = limits.START_MS_MAX if self._patient else limits.RECONNECT_MS_MAX
        until = self._clock.mono_ms() + patience_ms
        while self._socket is None:
            self._socket = self._reach()
            if self._socket is None:
                if self._clock.mono_ms() > until:
                    raise DaemonGone(
                        f"The daemon of {self._home.root} went away and does not come back.",
                        hint="Start it with `goclaw serve`; what was accepted goes on then.",
                    )
                select.select([], [], [], limits.POLL_MS / 1000)
        self._lines = LineSplitter()
        self._poll.register(self._socket, select.POLLIN)
        self._link.connected()
        self._flush()

    def _reconnect(self) -> None:
        self.close()
        self._handle_all(self._link.lost())
        self._connect()

    def _flush(self) -> None:
        lines = self._link.take()
        if lines and self._socket is not None:
            try:
                self._socket.sendall(b"\n".join((*lines, b"")))
            except OSError:
                return  # the next read says so too, and the link repeats

    def _wait(self, request_id: int) -> Any:
        self._flush()
        while request_id not in self._answers:
            self._step()
        message = self._answers.pop(request_id)
        if message.get("error"):
            raise asks.exception(message["error"])
        return message.get("result")

    def _step(self) -> None:
        """Wait a while for something to read and take it in."""
        if self._socket is None:
            raise DaemonGone("The client is closed.", hint="Make another one.")
        wake = self.wake
        if wake is not None:
            self._poll.register(wake[0], select.POLLIN)
        # A signal that comes just before a wait does not end it; its handler runs between two.
        ready = dict(self._poll.poll(limits.SIGNAL_LOOK_MS))
        if wake is not None:
            self._poll.unregister(wake[0])
            if wake[0] in ready:
                wake[1]()
        if self._socket.fileno() not in ready:
            return
        try:
            chunk = self._socket.recv(limits.WRITE_BYTES_MAX)
        except OSError:
            chunk = b""
        if not chunk:
            self._reconnect()
            return
        for line in self._lines.feed(chunk):
            self._handle_all(self._link.receive(line))
        self._flush()

    def _handle_all(self, found: list[Incoming]) -> None:
        for incoming in found:
            if isinstance(incoming, Answered):
                self._answers[incoming.request_id] = incoming.message
            elif isinstance(incoming, Happened):
                self._events.append(Event.read(incoming.params))
            elif isinstance(incoming, Asked):
                self._answer(incoming)
            elif isinstance(incoming, Told):
                self.on_told(incoming.method, incoming.params)
            elif isinstance(incoming, Missed | Refused):
                raise asks.exception(incoming.error)

    def _answer(self, asked: Asked) -> None:
        if asked.method != "session/request_permission":
            error = {"code": MethodUnknown.rpc, "message": f"{asked.method} is not offered."}
            self._link.reply(asked.ask_id, {"error": error})
        elif self.on_question is not None:
            option = self.on_question(Approval.read(asked.params))
            if option is not None:
                outcome = {"outcome": "selected", "optionId": option}
                self._link.reply(asked.ask_id, {"result": {"outcome": outcome}})
