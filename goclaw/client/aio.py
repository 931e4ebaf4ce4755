"""The asyncio client of the wire: over the Unix socket of a home, or /ws with a token.

Owns one connection at a time and the tasks that wait on it. Not in here: the rules of reconnecting
(``link.py``), what the requests are (``asks.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import goclaw
from goclaw.client import asks
from goclaw.client.link import Answered, Asked, Happened, Link, Missed, Refused
from goclaw.client.reach import Starter, dial, gone
from goclaw.client.records import Approval, Event, PromptResult
from goclaw.client.turn import Turn
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import DaemonGone, GoclawError, MethodUnknown, UsageError
from goclaw.core.files import absolute
from goclaw.core.home import Home
from goclaw.protocol.lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
        Sequence,
    )
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

__all__ = ["Client", "pause"]

T = TypeVar("T")


class _Connection(Protocol):
    async def send(self, lines: list[bytes]) -> None:
        """OSError when it is gone."""

    async def receive(self) -> list[bytes]:
        """What came, at least one message; OSError when it is gone."""

    async def close(self) -> None:
        """Twice is fine."""


class _Lines:
    """The Unix socket: a message a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._splitter = LineSplitter()

    async def send(self, lines: list[bytes]) -> None:
        self._writer.write(b"\n".join((*lines, b"")))
        await self._writer.drain()

    async def receive(self) -> list[bytes]:
        while True:
            chunk = await self._reader.read(limits.WRITE_BYTES_MAX)
            if not chunk:
                raise ConnectionResetError
            lines = self._splitter.feed(chunk)
            if lines:
                return lines

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _Frames:
    """/ws: a message a frame. Only here is the WebSocket library needed."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket

    @classmethod
    async def open(cls, url: str, token: str) -> _Frames:
        from websockets.asyncio.client import connect
        from websockets.exceptions import (
            InvalidHandshake,
            InvalidMessage,
            InvalidStatus,
            InvalidURI,
        )

        try:
            return cls(
                await connect(
                    url,
                    additional_headers={"Authorization": f"Bearer {token}"},
                    max_size=limits.FRAME_BYTES_MAX,
                    compression=None,
                    proxy=None,
                )
            )
        except InvalidURI:
            raise UsageError(
                f"{url[:80]} is no WebSocket URL.", hint="run/daemon.json of the home has it as ws."
            ) from None
        except InvalidMessage as error:  # it went away in the middle of a word
            raise ConnectionResetError(str(error)) from None
        except InvalidHandshake as error:
            if isinstance(error, InvalidStatus) and error.response.status_code == 503:
                raise ConnectionRefusedError(str(error)) from None  # there is room soon, perhaps
            raise DaemonGone(
                f"{url[:80]} does not take us: {error}.", hint="Check the URL and the token."
            ) from None

    async def send(self, lines: list[bytes]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            for line in lines:
                await self._websocket.send(line, text=True)
        except ConnectionClosed as error:
            raise ConnectionResetError(str(error)) from None

    async def receive(self) -> list[bytes]:
        from websockets.exceptions import ConnectionClosed

        try:
            return [await self._websocket.recv(decode=False)]
        except ConnectionClosed as error:
            raise ConnectionResetError(str(error)) from None

    async def close(self) -> None:
        await self._websocket.close()


class Client:
    """A client of one daemon; use it in an ``async with``, on one loop.

    ``home``: the daemon of that home (GOCLAW_HOME or ~/.goclaw when None), started with
    ``start=True`` where there is none. ``url`` and ``token``: over /ws instead. ``patient``: wait
    for a daemon as long as it takes, at first and whenever it goes away.

    Every call raises the GoclawError that the daemon answers with, and DaemonGone when there is no
    daemon (any more). After a lost connection the client connects again, repeats what had no answer
    under the same keys and goes on at the last event: a call never notices.
    """

    def __init__(
        self,
        home: str | Path | Home | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        start: bool = False,
        patient: bool = False,
        client_id: str | None = None,
    ) -> None:
        self._clock = SystemClock()
        self._patient = patient
        self._client_id = client_id or self._clock.new_id("client")
        self._start = start
        self._link = Link(lambda: self._clock.new_id("key"))
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listeners: dict[str, list[asyncio.Queue[Event | GoclawError]]] = {}
        self._connection: _Connection | None = None
        self.is_away = False
        """True while the daemon is gone and this client looks for it."""
        self._pump: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self.on_question: Callable[[Approval], Awaitable[str | None]] | None = None
        """Answers session/request_permission with an option's id; None leaves it to others."""
        self._tasks: set[asyncio.Task[None]] = set()
        if url is None:
            place = home if isinstance(home, Home) else _locate(home)
            self._name = str(place.root)
            self._open: Callable[[], Awaitable[_Connection | None]] = _socket_opener(
                place, Starter(place, self._clock).step if start else lambda: dial(place)
            )
            self._gone: GoclawError = gone(place)
        else:
            if token is None:
                raise UsageError(
                    "A URL needs a token.", hint="It stands in auth.token of the home."
                )
            self._name, self._open = url, _frame_opener(url, token)
            self._gone = DaemonGone(f"Nobody answers on {url[:80]}.", hint="Is the daemon running?")
        self._lost = DaemonGone(
            f"The daemon of {self._name} went away and does not come back.",
            hint="Start it with `goclaw serve`; what was accepted goes on then.",
        )

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect and introduce ourselves; DaemonGone when nobody is there."""
        if self._start:
            await self._connect(limits.START_MS_MAX, self._lost)
        else:
            await self._connect(0, self._gone)
        self._pump = asyncio.create_task(self._pumping(), name="goclaw-client")
        greeting = asks.greeting(self._client_id, goclaw.__version__)
        await self.call("initialize", greeting)

    async def close(self) -> None:
        """Leave; what runs goes on. Twice is fine."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, *self._tasks, return_exceptions=True)
            self._pump = None
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        self._fail(DaemonGone("The client is closed.", hint="Make another one."))

    # -- requests -------------------------------------------------------------------------------

    async def ask(self, ask: Ask[T]) -> T:
        """Carry out a request of ``asks.py``."""
        return ask.read(await self.call(ask.method, ask.params))

    async def call(
        self, method: str, params: dict[str, Any], *, until: asyncio.Event | None = None
    ) -> Any:
        """Any method, as it is on the wire.

        ``until``: once it is set the daemon is asked to give the request up; its answer counts all
        the same, whatever it is.
        """
        message = await self._answer_of(method, params, until)
        if message.get("error"):
            raise asks.exception(message["error"])
        return message.get("result")

    async def _answer_of(
        self, method: str, params: dict[str, Any], until: asyncio.Event | None = None
    ) -> dict[str, Any]:
        if self._pump is None or self._pump.done():
            raise DaemonGone(f"There is no connection to {self._name}.", hint="Call connect().")
        request_id = self._link.request(method, params)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        give_up = None if until is None else self._later(self._withdraw(until, request_id))
        try:
            await self._flush()
            return await future
        except asyncio.CancelledError:
            self._link.notify("$/cancel_request", {"requestId": request_id})
            self._later(self._flush())
            raise
        finally:
            self._answers.pop(request_id, None)
            if give_up is not None:
                give_up()

    async def _withdraw(self, until: asyncio.Event, request_id: int) -> None:
        await until.wait()
        self._link.notify("$/cancel_request", {"requestId": request_id})
        await self._flush()

    async def new_session(
        self,
        cwd: str | Path | None = None,
        *,
        roots: Sequence[str] = (),
        key: str | None = None,
        brain: str | None = None,
        interactive: bool | None = None,
    ) -> SessionInfo:
        """A session in a directory; the present one when none is given."""
        return await self.ask(
            asks.new_session(
                absolute(cwd or "."),
                roots=roots,
                key=key,
                brain=brain,
                interactive=interactive,
            )
        )

    async def status(self) -> Status:
        """The daemon's state."""
        return await self.ask(asks.status())

    async def rotate_token(self) -> None:
        """Put another token into auth.token: the old one is dead when this returns, and whoever
        came with it, or with one of an attempt, is cut off."""
        await self.ask(asks.rotate_token())

    async def tasks(
        self, *, session: str | None = None, states: Sequence[str] = ()
    ) -> list[TaskInfo]:
        """All tasks, page by page, newest first."""
        found: list[TaskInfo] = []
        after: str | None = None
        while True:
            page, after = await self.ask(asks.tasks(session=session, states=states, after=after))
            found += page
            if after is None:
                return found

    async def task(self, task_id: str) -> TaskInfo:
        """One task; UnknownId."""
        return await self.ask(asks.task(task_id))

    async def cancel(self, some_id: str) -> Receipt:
        """Cancel a task or a run by its id."""
        return await self.ask(asks.cancel(some_id))

    async def why(self, task_id: str) -> Explained:
        """Why a task waits, is blocked, denied or dead, and which command moves it; UnknownId."""
        return await self.ask(asks.why(task_id))

    async def dead_letters(self, fingerprint: str | None = None) -> list[TaskInfo]:
        """Tasks that were given up, newest first; of one fingerprint or all."""
        found: list[TaskInfo] = []
        after: str | None = None
        while True:
            page, after = await self.ask(asks.dead_letters(fingerprint, after))
            found += page
            if after is None:
                return found

    async def redrive(
        self, task_id: str | None = None, *, fingerprint: str | None = None, dry_run: bool = False
    ) -> Moved:
        """Put a failed task or dead letter back into the queue, or all with one fingerprint.

        A single one that cannot be raises why; of several, ``skipped`` says so. ``dry_run``
        changes nothing.
        """
        return await self._move("redrive", task_id, fingerprint, dry_run)

    async def drop(
        self, task_id: str | None = None, *, fingerprint: str | None = None, dry_run: bool = False
    ) -> Moved:
        """Drop a dead letter, or all with one fingerprint; as ``redrive``."""
        return await self._move("drop", task_id, fingerprint, dry_run)

    async def _move(
        self, verb: str, task_id: str | None, fingerprint: str | None, dry_run: bool
    ) -> Moved:
        if fingerprint is None:
            return await self.ask(asks.move_task(verb, task_id or "", dry_run))
        moved, after = await self.ask(asks.move_tasks(verb, fingerprint, dry_run, None))
        while after is not None:
            page, after = await self.ask(asks.move_tasks(verb, fingerprint, dry_run, after))
            moved = moved.and_then(page)
        return moved

    async def approvals(self, session: str | None = None) -> list[Approval]:
        """Open questions."""
        return await self.ask(asks.approvals(session))

    async def resolve(self, approval_id: str, option_id: str) -> str:
        """Answer a question; AlreadyResolved when somebody was quicker."""
        return await self.ask(asks.resolve(approval_id, option_id))

    async def effects(self, task_id: str) -> list[EffectInfo]:
        """What a task has done, in order; UnknownId."""
        found: list[EffectInfo] = []
        after: int | None = None
        while True:
            page, after = await self.ask(asks.effects(task_id, after))
            found += page
            if after is None:
                return found

    async def settle(
        self, task_id: str, ordinal: int, outcome: str, result: Any = None
    ) -> EffectInfo:
        """Say what became of an unknown effect: done, not_done or fail, which ends the task."""
        return await self.ask(asks.settle_effect(task_id, ordinal, outcome, result))

    async def redo(self, task_id: str, ordinal: int) -> EffectInfo:
        """Send an unknown effect again, under the same key."""
        return await self.ask(asks.redo_effect(task_id, ordinal))

    async def probe(self, task_id: str, ordinal: int) -> EffectInfo:
        """Ask the tool of an unknown effect whether it happened, and settle it by the answer."""
        return await self.ask(asks.probe_effect(task_id, ordinal))

    async def events(
        self, session: str, from_event: int = 0, limit: int = limits.EVENTS_PAGE_MAX
    ) -> EventPage:
        """A page of events after ``from_event``."""
        return await self.ask(asks.events(session, from_event, limit))

    async def subscribe(
        self, session: str, from_event: int | None = None, *, latest: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Events after ``from_event`` and then as they happen, for ever, over daemon restarts.

        ReplayGap when ``from_event`` is no longer kept. One at a time per session. ``latest``: of
        what has piled up, also while the daemon was away, the newest event of each kind only.
        """
        queue: asyncio.Queue[Event | GoclawError] = asyncio.Queue(limits.EVENTS_PAGE_MAX)
        listeners = self._listeners.setdefault(session, [])
        listeners.append(queue)
        try:
            await self.ask(asks.subscribe(session, from_event, latest))
            while True:
                event = await queue.get()
                if isinstance(event, GoclawError):
                    raise event
                yield event
        finally:
            listeners.remove(queue)
            while not queue.empty():  # the pump may wait for room in it
                queue.get_nowait()

    async def prompt(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        session: str | None = None,
        key: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> PromptResult:
        """Run a prompt to its end, in a new session of the present directory unless one is given.

        The same key again returns the same run. ``on_event`` sees each event of the run. A prompt
        that was refused raises why; a cancelled call cancels its run.
        """
        if session is None:
            session = (await self.new_session(key=key)).session_id
        key = key or self._clock.new_id("key")
        turn = Turn(session, key)
        queue: asyncio.Queue[Event | GoclawError] = asyncio.Queue(limits.EVENTS_PAGE_MAX)
        listeners = self._listeners.setdefault(session, [])
        listeners.append(queue)
        gathering = asyncio.create_task(_gather(queue, turn, on_event))
        try:
            blocks = [{"type": "text", "text": prompt}] if isinstance(prompt, str) else prompt
            ask = asks.prompt(session, blocks, key)
            message = await self._answer_of(ask.method, ask.params)
            await queue.join()
        finally:
            listeners.remove(queue)
            gathering.cancel()
            await asyncio.gather(gathering, return_exceptions=True)
        return await self._ended(turn, message, on_event)

    async def _ended(
        self, turn: Turn, message: dict[str, Any], on_event: Callable[[Event], None] | None
    ) -> PromptResult:
        error, answer = message.get("error"), message.get("result")
        run_id = turn.run_id or asks.run_of(message)
        if error and not run_id:
            raise asks.exception(error)
        if not turn.whole:
            turn = Turn(turn.session_id, turn.key, run_id)
            cursor, head = 0, 1
            while cursor < head:
                page = await self.events(turn.session_id, cursor)
                cursor, head = page.next_event_id, page.head_event_id
                for event in page.events:
                    if turn.add(event) and on_event is not None:
                        on_event(event)
        record = (await self.task(turn.task_id)).json.get("result") if turn.task_id else None
        record = record if isinstance(record, dict) else None
        return turn.result(answer, asks.shown_error(error), record)

    # -- the connection -------------------------------------------------------------------------

    async def _connect(self, patience_ms: int, failure: GoclawError) -> None:
        until = self._clock.mono_ms() + patience_ms
        while True:
            connection = await self._open()
            if connection is not None:
                break
            late = self._clock.mono_ms() >= until
            if late and not self._patient:
                raise failure
            await pause(limits.START_AGAIN_MS if late else limits.POLL_MS)
        self._connection, self.is_away = connection, False
        self._link.connected()
        await self._flush()

    async def _pumping(self) -> None:
        try:
            while True:
                assert self._connection is not None
                try:
                    lines = await self._connection.receive()
                except OSError:
                    await self._reconnect()
                    continue
                for line in lines:
                    await self._handle_all(self._link.receive(line))
                await self._flush()
        except GoclawError as error:
            self._fail(error)

    async def _reconnect(self) -> None:
        assert self._connection is not None
        self.is_away = True
        await self._connection.close()
        await self._handle_all(self._link.lost())
        patience_ms = limits.START_MS_MAX if self._start else limits.RECONNECT_MS_MAX
        await self._connect(patience_ms, self._lost)

    async def _flush(self) -> None:
        async with self._sending:
            lines = self._link.take()
            if lines and self._connection is not None:
                with contextlib.suppress(OSError):  # the pump notices too, and the link repeats
                    await self._connection.send(lines)

    def _later(self, work: Coroutine[Any, Any, None]) -> Callable[[], object]:
        """Carry it out beside; what takes it back."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task.cancel

    def _fail(self, error: GoclawError) -> None:
        for future in self._answers.values():
            if not future.done():
                future.set_exception(error)
        for listeners in self._listeners.values():
            for queue in listeners:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(error)

    async def _handle_all(self, found: list[Incoming]) -> None:
        for incoming in found:
            if isinstance(incoming, Answered):
                future = self._answers.get(incoming.request_id)
                if future is not None and not future.done():
                    future.set_result(incoming.message)
            elif isinstance(incoming, Happened):
                event = Event.read(incoming.params)
                for queue in self._listeners.get(incoming.session, ()):
                    await queue.put(event)
            elif isinstance(incoming, Missed):
                for queue in self._listeners.get(incoming.session, ()):
                    await queue.put(asks.exception(incoming.error))
            elif isinstance(incoming, Asked):
                self._later(self._answer(incoming))
            elif isinstance(incoming, Refused):
                raise asks.exception(incoming.error)

    async def _answer(self, asked: Asked) -> None:
        if asked.method != "session/request_permission":
            error = {"code": MethodUnknown.rpc, "message": f"{asked.method} is not offered."}
            self._link.reply(asked.ask_id, {"error": error})
        elif self.on_question is not None:
            option = await self.on_question(Approval.read(asked.params))
            if option is not None:
                outcome = {"outcome": "selected", "optionId": option}
                self._link.reply(asked.ask_id, {"result": {"outcome": outcome}})
        await self._flush()


async def _gather(
    queue: asyncio.Queue[Event | GoclawError],
    turn: Turn,
    on_event: Callable[[Event], None] | None,
) -> None:
    while True:
        event = await queue.get()
        if isinstance(event, Event) and turn.add(event) and on_event is not None:
            on_event(event)
        queue.task_done()


async def pause(wait_ms: int) -> None:
    """Let time go by."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_ms / 1000):
            await asyncio.get_running_loop().create_future()


def _locate(home: str | Path | None) -> Home:
    return Home.locate(None if home is None else str(home), os.environ)


def _socket_opener(
    home: Home, reach: Callable[[], Any]
) -> Callable[[], Awaitable[_Connection | None]]:
    async def opened() -> _Connection | None:
        found = reach()  # a local socket: it answers at once or not at all
        if found is None:
            return None
        reader, writer = await asyncio.open_unix_connection(sock=found)
        return _Lines(reader, writer)

    return opened


def _frame_opener(url: str, token: str) -> Callable[[], Awaitable[_Connection | None]]:
    async def opened() -> _Connection | None:
        try:
            return await _Frames.open(url, token)
        except OSError:
            return None

    return opened
