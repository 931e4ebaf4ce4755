"""Sessions and submissions: checked, decided on, on disk before they are acknowledged.

Owns what a valid submission is and its idempotency. Not in here: running it (scheduler), the wire
(gateway).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.clock import traceparent
from goclaw.core.errors import (
    IdempotencyConflict,
    InvalidParams,
    QueueFull,
    SessionUnknown,
    ShuttingDown,
    TooLarge,
)
from goclaw.core.faults import faultpoint
from goclaw.core.records import Accepted, Session, Terms
from goclaw.core.states import EffectClass
from goclaw.engine.recurrence import Recurrence
from goclaw.protocol.jsonrpc import canonical, encode
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.decisions import Decision
    from goclaw.store import Database

__all__ = [
    "SYSTEM_SESSION",
    "Intake",
    "check_key",
    "effect_class_of",
    "packed_work",
    "session_of",
    "unpacked_work",
]

SYSTEM_SESSION = "_system"
_USER_KIND = 2
_ANY_TIME = Terms()
_KEY_TWICE: Final = (
    "The key was used before in this session with another prompt; nothing ran.",
    "Use a new key for new work.",
)
_MADE_TWICE: Final = (
    "A request with this id came before on this connection with another prompt; nothing ran.",
    "Give each request an id of its own, or the prompt an idempotencyKey.",
)


class Intake:
    """Accepts sessions, prompts and tasks."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        queue: QueueConfig,
        *,
        open_tasks: Callable[[], int],
        policy_version: Callable[[], str],
    ) -> None:
        self._database, self._clock, self._queue = database, clock, queue
        self._open_tasks, self._policy_version = open_tasks, policy_version
        self._arriving = 0
        self.closed = False
        """True: new work is refused with ShuttingDown."""

    # -- sessions --------------------------------------------------------------------------------

    async def create_session(
        self,
        *,
        cwd: str,
        roots: Sequence[str],
        brain: str,
        interactive: bool,
        key: str | None = None,
        session_id: str | None = None,
        parent_sid: int | None = None,
    ) -> Session:
        """A new session, or the one made before with the same key (IdempotencyConflict if it
        differed)."""
        self._check_open()
        check_key(key)
        if session_id is None:
            session_id = self._clock.new_id("session")
        try:
            committed = await self._database.write(
                "session_new", sid_key=key, hash=_hash(key, [cwd, list(roots), brain]),
                session_id=session_id, stream_id=self._clock.new_id("stream"),
                salt=self._clock.random_bytes(16), cwd=cwd,
                weight=self._queue.interactive_weight if interactive else 1,
                roots=orjson.dumps(list(roots)).decode(), brain=brain,
                interactive=int(interactive), parent_sid=parent_sid, now=self._clock.wall_ms(),
            )  # fmt: skip
        except IdempotencyConflict as error:
            raise IdempotencyConflict(
                "The key was used before for another session; none was made.",
                hint="Use a new key for a new session.",
                idempotencyKey=key,
                runId=None,
            ) from error
        return await self.session_by_sid(committed.parts[0][0])

    async def system_session(self) -> Session:
        """The session of daemon-wide events; made by the first start."""
        try:
            return await self.session(SYSTEM_SESSION)
        except SessionUnknown:
            return await self.create_session(
                cwd="/", roots=["/"], brain="direct", interactive=False, session_id=SYSTEM_SESSION
            )

    async def session(self, session_id: str) -> Session:
        """SessionUnknown unless it exists and is not deleted."""
        found = await self._database.read("session_by_id", session_id=session_id)
        session = session_of(rows("session_by_id", found)[0]) if found else None
        if session is None or session.deleted:
            raise SessionUnknown(
                "Session not found.",
                hint="`goclaw task list` names sessions with work, session/list all there are.",
                sessionId=session_id[:128],
            )
        return session

    async def session_by_sid(self, sid: int) -> Session:
        """By its number, deleted ones too."""
        found = await self._database.read("session_by_sid", sid=sid)
        return session_of(rows("session_by_sid", found)[0])

    async def sessions(
        self, *, cwd: str | None, cursor: str | None, limit: int
    ) -> tuple[list[Session], str | None]:
        """Newest first, and the opaque cursor of the next page; InvalidParams for a bad cursor."""
        before_at, before_sid = _cursor(cursor)
        found = await self._database.read(
            "sessions_listed", cwd=cwd, before_at=before_at, before_sid=before_sid, limit=limit + 1
        )
        sessions = [session_of(row) for row in rows("sessions_listed", found)]
        more = len(sessions) > limit
        page = sessions[:limit]
        following = f"{page[-1].created_at}.{page[-1].sid}" if more else None
        return [s for s in page if s.session_id != SYSTEM_SESSION], following

    async def change_session(self, session: Session, **changes: Any) -> None:
        """cwd, roots, title, closed_at (0 reopens) or deleted_at; what is left out stays."""
        if "roots" in changes:
            changes["roots"] = orjson.dumps(list(changes["roots"])).decode()
        await self._database.write("session_change", sid=session.sid, **changes)

    async def session_update(self, session: Session, update: dict[str, Any]) -> int:
        """Commit an ACP update that belongs to no attempt; its event id."""
        return await self.session_event(session, 0, "update", update)

    async def session_event(
        self, session: Session, kind: int, event_type: str, payload: dict[str, Any]
    ) -> int:
        """Commit an event that belongs to no attempt; its event id."""
        committed = await self._database.write(
            "session_event", sid=session.sid, kind=kind, type=event_type,
            payload=orjson.dumps(payload), now=self._clock.wall_ms(),
        )  # fmt: skip
        event_id: int = committed.parts[0][0]
        return event_id

    # -- submissions ------------------------------------------------------------------------------

    async def submit_prompt(
        self,
        session: Session,
        blocks: list[dict[str, Any]],
        *,
        key: str | None,
        made: bool = False,
        client: str | None,
        origin: str,
        trace: str | None = None,
        decision: Decision | None = None,
        parent_tid: int | None = None,
    ) -> Accepted:
        """A prompt becomes a task and the user's words become events, in one transaction.

        ``made``: no client gave the key, it was made for the request. It finds the submission
        again and is in no event and no effect's key (E-4).
        """
        body = {"prompt": blocks}
        payload = orjson.dumps(body)
        if len(payload) > limits.FRAME_BYTES_MAX:
            raise _too_large("prompt", limits.FRAME_BYTES_MAX)
        words = [
            orjson.dumps({"sessionUpdate": "user_message_chunk", "content": part})
            for block in blocks
            for part in _portions(block)
        ]
        if len(words) > limits.PROMPT_PARTS_MAX:
            raise _too_large("prompt", limits.PROMPT_PARTS_MAX, "parts")
        if max(map(len, words), default=0) > limits.EVENT_BYTES_MAX:
            raise _too_large("part of a prompt", limits.EVENT_BYTES_MAX)
        return await self._enqueue(
            session, "prompt", f"brain:{session.brain}", payload, hash=_hash(key, body), key=key,
            made=made, client=client, origin=origin, trace=trace, decision=decision, words=words,
            on_unknown="tell_brain", parallel=False, priority=limits.PRIORITY,
            max_attempts=self._queue.max_attempts, terms=_ANY_TIME, parent_tid=parent_tid,
        )  # fmt: skip

    async def submit_tool(
        self,
        session: Session,
        tool: str,
        arguments: dict[str, Any],
        *,
        key: str | None,
        client: str | None,
        origin: str,
        priority: int = limits.PRIORITY,
        parallel: bool = False,
        max_attempts: int | None = None,
        terms: Terms = _ANY_TIME,
        trace: str | None = None,
        decision: Decision | None = None,
    ) -> Accepted:
        """A task that is one call of one tool."""
        body: dict[str, Any] = {"tool": tool, "arguments": arguments}
        payload = orjson.dumps(body)
        if terms != _ANY_TIME:
            body["terms"] = dataclasses.asdict(terms)
        if len(payload) > limits.PAYLOAD_BYTES_MAX:
            raise _too_large("task payload", limits.PAYLOAD_BYTES_MAX)
        if not 0 <= priority <= limits.PRIORITY_MAX:
            raise InvalidParams(f"priority is 0 to {limits.PRIORITY_MAX}, not {priority}.")
        return await self._enqueue(
            session, "tool", f"tool:{tool}", payload, hash=_hash(key, body), key=key, client=client,
            origin=origin, trace=trace, decision=decision, words=[], on_unknown="suspend",
            parallel=parallel, priority=priority, terms=terms,
            max_attempts=max_attempts or self._queue.max_attempts,
        )  # fmt: skip

    async def submit_work(
        self,
        session: Session,
        pool: str,
        payload: Any,
        *,
        key: str | None,
        client: str | None,
        origin: str,
        effect_class: EffectClass = EffectClass.IRREVERSIBLE,
        priority: int = limits.PRIORITY,
        parallel: bool = False,
        max_attempts: int | None = None,
        terms: Terms = _ANY_TIME,
        trace: str | None = None,
        decision: Decision | None = None,
    ) -> Accepted:
        """A task for the external workers of a pool; ``payload`` is any JSON value.

        ``effect_class``: of the effects that its worker declares no class for.
        """
        body = encode(payload)
        if len(body) > limits.PAYLOAD_BYTES_MAX:
            raise _too_large("task payload", limits.PAYLOAD_BYTES_MAX)
        asked = {"pool": pool, "payload": payload, "effectClass": str(effect_class)}
        if terms != _ANY_TIME:
            asked["terms"] = dataclasses.asdict(terms)
        return await self._enqueue(
            session, "pool", f"pool:{pool}", packed_work(effect_class, body), pool=pool,
            hash=_hash(key, asked), terms=terms, key=key, client=client, origin=origin,
            trace=trace, decision=decision, words=[],
            on_unknown="suspend", parallel=parallel, priority=priority,
            max_attempts=max_attempts or self._queue.max_attempts,
        )  # fmt: skip

    async def _enqueue(
        self,
        session: Session,
        kind: str,
        work: str,
        payload: bytes,
        *,
        pool: str = "",
        hash: bytes | None,  # noqa: A002
        key: str | None,
        client: str | None,
        origin: str,
        trace: str | None,
        decision: Decision | None,
        words: list[bytes],
        on_unknown: str,
        parallel: bool,
        priority: int,
        max_attempts: int,
        terms: Terms,
        parent_tid: int | None = None,
        made: bool = False,
    ) -> Accepted:
        try:
            not_before, recurrence = self._begin(terms)
        except InvalidParams:
            if not await self._is_known(key, session.sid):
                raise
            not_before = recurrence = None  # it was in time when it was first accepted (E-6)
        await self.check_new(key, session.sid)
        suffix = self._clock.new_id("task").removeprefix("task_")
        task_id, run_id, now = f"task_{suffix}", f"run_{suffix}", self._clock.wall_ms()
        bind = self._database.bind
        parts = [
            bind(
                "enqueue", sid=session.sid, key=key, made=int(made), hash=hash,
                task_id=task_id, run_id=run_id, pool=pool, work=work, kind=kind,
                parallel=int(parallel),
                rank=limits.PRIORITY_MAX - priority, max_attempts=max_attempts,
                on_unknown=on_unknown, policy_version=self._policy_version(),
                trace=trace or traceparent(self._clock), payload=payload, client=client,
                origin=origin, not_before=not_before, timeout_ms=terms.timeout_ms,
                deadline_at=terms.deadline_ms, unique_key=terms.unique, parent_tid=parent_tid,
                session_limit=self._queue.session_limit, now=now,
            ),
            *(
                bind(
                    "session_event", sid=session.sid, task_id=task_id, kind=_USER_KIND,
                    type="update", payload=update, now=now,
                )
                for update in words
            ),
        ]  # fmt: skip
        if decision is not None:
            parts.append(bind("audit", record=orjson.dumps(decision.to_record()), now=now))
        if recurrence is not None:
            parts.append(
                bind(
                    "schedule", task_id=task_id, cron=recurrence.cron, zone=recurrence.zone,
                    misfire=recurrence.misfire,
                )
            )  # fmt: skip
        faultpoint("before_submit")
        try:
            with self.counted():
                committed = await self._database.apply(*parts)
        except QueueFull as error:
            if "retryAfterMs" in error.data:  # the writer's own bound, not the session's
                raise
            raise _full("session", self._queue.session_limit) from error
        except IdempotencyConflict as error:
            known = await self._database.read("submission", sid=session.sid, key=key)
            what, hint = _MADE_TWICE if made else _KEY_TWICE
            raise IdempotencyConflict(
                what,
                hint=hint,
                idempotencyKey=key,
                runId=known[0][1] if known else None,
            ) from error
        faultpoint("after_submit")
        tid, task_id, run_id, event_id, state, duplicate, expired = committed.parts[0]
        if committed.events:
            event_id = committed.events[-1][1]
        return Accepted(
            tid, task_id, run_id, session.session_id, event_id, state, bool(duplicate),
            bool(expired),
        )  # fmt: skip

    def _begin(self, terms: Terms) -> tuple[int | None, Recurrence | None]:
        """When the task may first run, and how it recurs; InvalidParams for what cannot be."""
        now, not_before = self._clock.wall_ms(), terms.not_before_ms
        if max(not_before or 0, terms.deadline_ms or 0) > now + limits.CALENDAR_MS_MAX:
            raise InvalidParams(
                "A task cannot wait for longer than a century; nothing was accepted.",
                hint="notBeforeMs and deadlineMs are moments, in milliseconds since the epoch.",
                param="notBeforeMs",
            )
        if terms.deadline_ms is not None and terms.deadline_ms <= max(now, not_before or 0):
            raise InvalidParams(
                "The deadline passes before the task may begin; nothing was accepted.",
                hint="deadlineMs is a moment, in milliseconds since the epoch.",
                param="deadlineMs",
            )
        if terms.recurrence is None:
            return (not_before if not_before is not None and not_before > now else None), None
        if terms.deadline_ms is not None or terms.unique is not None:
            raise InvalidParams(
                "A recurring task has neither a deadline nor a unique key; nothing was accepted.",
                hint="timeoutMs bounds each of its attempts.",
                param="schedule",
            )
        recurrence = Recurrence.checked(*terms.recurrence)
        return recurrence.after(max(now, (not_before or 0) - 1)), recurrence

    async def check_new(self, key: str | None, sid: int = 0) -> None:
        """May there be one more task? ShuttingDown, InvalidParams for a bad key, QueueFull at the
        bound of all tasks unless the submission of that scope is one that is known."""
        self._check_open()
        check_key(key)
        if not self.is_full:
            return
        if not await self._is_known(key, sid):
            raise _full("total", self._queue.total_limit)

    @property
    def taken(self) -> int:
        """Places that are taken: by open tasks, and by those on their way to the disk."""
        return self._open_tasks() + self._arriving

    @property
    def is_full(self) -> bool:
        """The bound of all tasks is reached."""
        return self.taken >= self._queue.total_limit

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """One more task is on its way to the disk; QueueFull at the bound of all tasks."""
        if self.is_full:
            raise _full("total", self._queue.total_limit)
        with self.counted():
            yield

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """One more task is on its way to the disk."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    async def _is_known(self, key: str | None, sid: int) -> bool:
        return bool(key and await self._database.read("submission", sid=sid, key=key))

    def _check_open(self) -> None:
        if self.closed:
            raise ShuttingDown(
                "The daemon is stopping and takes no new work.",
                hint="Send it again when the daemon is back.",
                retryAfterMs=limits.DRAIN_MS_MAX,
            )


def check_key(key: str | None) -> None:
    """InvalidParams unless the key is absent or 1 to 128 characters."""
    if key is not None and not 1 <= len(key) <= limits.KEY_CHARS_MAX:
        raise InvalidParams(f"An idempotency key has 1 to {limits.KEY_CHARS_MAX} characters.")


def _hash(key: str | None, body: Any) -> bytes | None:
    """What a repeated key must repeat: the same JSON value, in whatever order of its members."""
    if key is None:
        return None
    return hashlib.sha256(canonical(body)).digest()


_WORK: Final = b'{"effectClass":"%s","payload":%s}'


def packed_work(effect_class: EffectClass, payload: bytes) -> bytes:
    """What is stored of a submission to a pool; spliced, so that a payload may be nested as deep as
    a message."""
    return _WORK % (effect_class.encode(), payload)


def unpacked_work(stored: bytes) -> bytes:
    """The payload again."""
    return stored[stored.index(b',"payload":') + len(b',"payload":') : -1]


def effect_class_of(stored: bytes) -> EffectClass:
    """The class again; the first 64 bytes are enough."""
    return EffectClass(stored.split(b'"', 4)[3].decode())


def _portions(block: dict[str, Any]) -> list[dict[str, Any]]:
    """A long text as several blocks, so that each event stays within its bound."""
    resource = block.get("resource")
    if isinstance(resource, dict):
        return [{**block, "resource": part} for part in _cut(resource)]
    return _cut(block)


def _cut(holder: dict[str, Any]) -> list[dict[str, Any]]:
    text = holder.get("text")
    size = limits.EVENT_BYTES_MAX // 8  # characters: one takes six bytes of JSON at most
    if not isinstance(text, str) or len(text) <= size:
        return [holder]
    return [{**holder, "text": text[at : at + size]} for at in range(0, len(text), size)]


def _full(which: str, limit: int) -> QueueFull:
    return QueueFull(
        f"{limit} tasks are open and no more may be; nothing was accepted.",
        hint=f"Wait for some to end, or raise queue.{which}_limit in config.toml.",
        queued=limit,
        limit=limit,
        retryAfterMs=limits.FULL_RETRY_MS,
    )


def _too_large(what: str, limit: int, unit: str = "bytes") -> TooLarge:
    return TooLarge(f"A {what} has at most {limit} {unit}.", limit=limit, unit=unit)


def _cursor(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1 << 62, 1 << 62
    at, _, sid = text.partition(".")
    if not (at.isdecimal() and sid.isdecimal() and len(text) < 40):
        raise InvalidParams("The cursor was not made by this method.")
    return int(at), int(sid)


def session_of(row: dict[str, Any]) -> Session:
    """A row of a query of sessions, as a record."""
    return Session(
        sid=row["sid"], session_id=row["session_id"], stream_id=row["stream_id"], cwd=row["cwd"],
        roots=tuple(orjson.loads(row["roots"])), brain=row["brain"],
        interactive=bool(row["interactive"]), title=row["title"], head=row["head"],
        oldest=row["oldest"], created_at=row["created_at"], updated_at=row["updated_at"],
        closed=row["closed_at"] is not None, deleted=row["deleted_at"] is not None,
        parent_id=row["parent_id"],
    )  # fmt: skip
