"""What crosses floors: sessions, tasks, attempts, effects and their outcomes, as frozen values.

Owns the ``Runner`` seam: the queue knows a brain only as something that runs an attempt. Not in
here: how any of it is stored (store) or carried out (engine, tools, brains).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from goclaw.core.decisions import Verdict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from goclaw.core.decisions import Decision, Taint
    from goclaw.core.errors import GoclawError
    from goclaw.core.states import EffectClass

__all__ = [
    "Accepted",
    "Approval",
    "Attempt",
    "Call",
    "CallOf",
    "CallResult",
    "Child",
    "Cleaner",
    "CleanerStream",
    "Done",
    "Effect",
    "Failed",
    "Forked",
    "Moved",
    "Outcome",
    "Receipt",
    "Retryable",
    "RunEnd",
    "Runner",
    "Session",
    "Stream",
    "Succeeded",
    "Suspended",
    "Task",
    "Terms",
    "Tool",
    "ToolSource",
    "Unclear",
]


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation. ``roots`` holds cwd first; ``head`` and ``oldest`` are as of the read."""

    sid: int
    session_id: str
    stream_id: str
    cwd: str
    roots: tuple[str, ...]
    brain: str
    interactive: bool
    title: str | None
    head: int
    oldest: int
    created_at: int
    updated_at: int
    closed: bool
    deleted: bool
    parent_id: str | None = None
    """The session that this one was forked from."""
    taint: tuple[Taint, ...] = ()
    """What it has met, as of the last answer of its brain (A-13)."""


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed task, as its attempt sees it."""

    tid: int
    sid: int
    session_id: str
    task_id: str
    run_id: str
    kind: str
    attempt: int
    max_attempts: int
    on_unknown: str
    trace: str
    payload: bytes
    key: str | None
    client: str | None
    origin: str
    policy_version: str
    failures: int = 0
    """Retryable failures so far (Q-5)."""

    @property
    def is_fork(self) -> bool:
        """Branched off another run: nothing that it does acts on the world without a yes (E-7)."""
        return self.origin == "fork"


@dataclass(frozen=True, slots=True)
class Terms:
    """When a task may run and how long (Q-12, Q-13). Times are epoch milliseconds."""

    not_before_ms: int | None = None
    timeout_ms: int | None = None
    """Of one attempt."""
    deadline_ms: int | None = None
    """For the whole task, whatever it waits for."""
    unique: str | None = None
    """At most one unfinished task of its pool (or session) has this key."""
    recurrence: tuple[str, str, str] | None = None
    """cron, time zone, misfire: run again and again."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A submission that is on disk; ``duplicate`` when its key was known before, ``expired`` when
    moreover the result of that task is no longer kept (E-6)."""

    tid: int
    task_id: str
    run_id: str
    session_id: str
    event_id: int | None
    state: str
    duplicate: bool
    expired: bool = False


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended; ``event_id`` is the turn's last event, the barrier of its answer."""

    run_id: str
    task_id: str
    state: str
    stop_reason: str | None
    event_id: int
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Forked:
    """A run that was branched off; ``stubbed``: its effects whose results were taken along."""

    sid: int
    session_id: str
    run_id: str
    task_id: str
    event_id: int
    """Head of the new session."""
    stubbed: int
    duplicate: bool
    parent_session_id: str
    parent_run_id: str
    parent_event_id: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a cancel (Q-11)."""

    outcome: str
    """stopped, stopping, may_still_be_running or already_finished."""
    event_id: int | None
    effects_done: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of tasks that were given up (Q-7): redriven, dropped, or left and why."""

    tasks: tuple[str, ...]
    skipped: tuple[tuple[str, GoclawError], ...] = ()
    event_id: int | None = None
    """Of a single one."""
    following: int | None = None
    """Where the next page begins; None after the last."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A durable question to a person (A-7). ``request``: params of session/request_permission."""

    approval_id: str
    session_id: str
    sid: int
    task_id: str
    run_id: str
    ordinal: int
    request: bytes
    state: str
    option_id: str | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Effect:
    """One journaled step as people are shown it; ``at`` is when it was begun (PROTOCOL 2.8)."""

    ordinal: int
    kind: str
    name: str
    effect_class: str
    state: str
    key: str
    request_hash: str
    at: int


@dataclass(frozen=True, slots=True)
class Tool:
    """Something a brain may call. ``source/name`` is the resource of its ``tool.call`` decision."""

    name: str
    source: str
    """builtin, or where it came from: wasm, a server's name."""
    description: str
    input_schema: dict[str, Any]
    effect_class: EffectClass
    sandbox: str
    """wasm, runner, confined or none (K-1)."""
    kind: str = "other"
    """ACP's tool kinds: read, edit, execute, fetch, other and so on."""
    file_argument: str | None = None
    """The property whose file the gate opens (schema ``format: file``)."""
    taints: tuple[Taint, ...] = ()
    """What its results bring into a session (A-13)."""
    program_argument: str | None = None
    """The property whose first item is the program that is decided about as ``exec.run``."""
    url_argument: str | None = None
    """The property whose URL is decided about as ``net.connect``."""
    host: tuple[str, ...] = ()
    """What its module wants of the host; each is decided about as ``wasm.host``."""
    key_argument: str | None = None
    """The property that is the idempotency key of a call (E-4), where the schema names one."""

    @property
    def resource(self) -> str:
        """What a ``tool.call`` decision is about."""
        return f"{self.source}/{self.name}"

    @property
    def plain_argument(self) -> str | None:
        """The property that the rest of a slash command's line may be: the file, the URL, or the
        only one there is."""
        required = self.input_schema.get("required", [])
        main = self.file_argument or self.url_argument
        if main is not None and set(required) <= {main}:
            return main
        alone = [*self.input_schema.get("properties", {})] == required and len(required) == 1
        return required[0] if alone else None

    @property
    def hint(self) -> str:
        """What follows the name in a slash command."""
        return "{json}" if self.plain_argument is None else self.plain_argument.upper()


class ToolSource(Protocol):
    """Where tools come from. Sources are siblings; the daemon hands them to the registry."""

    def tools(self) -> Sequence[Tool]:
        """What it offers now."""

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """Carry out one call whose arguments fit the schema. ``files``: descriptors by property,
        closed by the caller. Raises Retryable when nothing was sent, Unclear when nobody knows;
        a GoclawError is a definite failure. CancelledError: stop at once.
        """

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """Did the call with that key happen? Asked of probeable tools only; see Call."""


@dataclass(frozen=True, slots=True)
class Child:
    """A sub-task: the prompt of another run; ``brain`` None: the parent's."""

    prompt: str
    brain: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One effect that a brain asks for, with everything the journal needs to carry it out once.

    ``request`` is the canonical JSON of the arguments. ``dispatch`` gets the effect's key and the
    attempt's cancel event. ``announce`` and ``report`` build the ACP updates that commit with the
    intent and with the result. ``probe`` asks whether an unknown effect happened.
    """

    kind: str
    name: str
    request: bytes
    effect_class: EffectClass
    dispatch: Callable[[str, asyncio.Event], Awaitable[Done]]
    decisions: tuple[Decision, ...] = ()
    """All of them must allow; the strictest counts."""
    designated_key: str | None = None
    title: str = ""
    announce: Callable[[str, str], dict[str, Any]] | None = None
    """(call id, pending or in_progress) to a ``tool_call``."""
    report: Callable[[str, CallResult], dict[str, Any]] | None = None
    probe: Callable[[str], Awaitable[Done | bool | None]] | None = None
    """By the effect's key. Done: it happened, with this result. False: it did not. None: it
    cannot be told."""
    wait_ms: int | None = None
    """A durable wait: the attempt is parked that long, then ``dispatch`` answers (E-9)."""
    child: Child | None = None
    """A sub-task: the attempt is parked until that run has ended; ``dispatch`` is not called."""
    question: bool = False
    """A person is asked whatever the policy says."""
    taints: tuple[Taint, ...] = ()
    """What its result brings into the session; it commits with the result (A-13)."""
    inside: list[Decision] = field(default_factory=list)
    """Decisions taken while it is carried out; they commit with its end (A-8)."""

    @property
    def decision(self) -> Decision | None:
        """The strictest of the decisions, None without any."""
        return max(self.decisions, key=lambda one: _STRICTNESS[one.effect], default=None)


_STRICTNESS = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}


@dataclass(frozen=True, slots=True)
class Done:
    """A definite answer of a tool; ``failed``: the tool says that it failed."""

    output: bytes
    failed: bool = False


@dataclass(frozen=True, slots=True)
class CallResult:
    """What the brain is told about a call."""

    ordinal: int
    call_id: str
    output: bytes
    failed: bool
    status: str
    """completed, failed, denied, rejected, unknown."""
    replayed: bool = False
    """Answered from the journal: nothing ran, nothing was announced again."""


class Retryable(Exception):
    """Nothing was sent, or the far side said to come again: the attempt ends in RETRY_WAIT."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_ms: int | None = None,
        fingerprint: str | None = None,
        work: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.retry_after_ms, self.fingerprint = retry_after_ms, fingerprint
        self.work = work


class Unclear(Exception):
    """Dispatch ended without a definite answer (E-3)."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The attempt reached its end."""

    stop_reason: str = "end_turn"
    result: bytes = b"null"


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed; ``retryable`` ones spend ``failures``."""

    code: str
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    fingerprint: str | None = None
    work: str | None = None
    """Whose failure it was, as tool:NAME; None: the task's own kind of work."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The attempt ended in SUSPENDED, already on disk: it goes on when it is answered."""

    reason: str


Outcome = Succeeded | Failed | Suspended


class Stream(Protocol):
    """Where a brain sends the parts of an answer that it is still making."""

    message_id: str
    """Of this answer in this attempt; a cut message is closed under it (B-3)."""
    cleaner: Cleaner | None
    """What is said goes through it first (A-6)."""
    paced: bool
    """False: nobody hears it, so pauses are left out."""

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        """Commit these updates now, together; none: only that the answer has been begun."""


class Attempt(Protocol):
    """What the engine hands a runner. Every method raises LeaseLost once the attempt is over."""

    task: Task
    session: Session
    cancelled: asyncio.Event

    @property
    def cleaner(self) -> Cleaner | None:
        """Takes secrets out of what is said in pieces; what is committed is cleaned anyway."""

    async def think(
        self,
        name: str,
        request: dict[str, Any],
        answer: Callable[[Stream], Awaitable[dict[str, Any]]],
        *,
        decisions: Sequence[Decision] = (),
    ) -> dict[str, Any]:
        """One answer of a brain, as a pure effect: recorded, and answered from the record later.

        What ``answer`` returns is recorded; the updates under its key ``updates`` commit together
        with the record and are no part of it. ``request`` holds no prompt text (E-2).
        """

    async def look_at_taint(self) -> None:
        """Bring ``session.taint`` up to date; ``think`` does that after each answer."""

    async def perform(self, calls: Sequence[Call]) -> list[CallResult]:
        """Carry out the calls of one answer, each once (E-1 to E-5)."""

    async def emit(
        self, updates: Sequence[dict[str, Any]], decisions: Sequence[Decision] = ()
    ) -> None:
        """Commit updates of the effect under way, and what was decided inside it."""

    async def ask(
        self, digest: bytes, request: dict[str, Any], decisions: Sequence[Decision] = ()
    ) -> str | None:
        """Ask a person inside the effect under way: the option that was chosen, None when nobody
        answered in time. ``request``: params of session/request_permission but the session.
        Until there is an answer it raises, the attempt ends in SUSPENDED, and the next one asks
        the same again, with the same ``digest`` of the exact call."""

    async def sleep(self, wait_ms: int) -> None:
        """A durable sleep: the lane is free meanwhile (E-9)."""

    async def wait_signal(self, name: str) -> bytes:
        """A durable wait for a signal of that name; its payload."""


class Runner(Protocol):
    """Runs attempts: the brain loop, handed to the engine by the daemon."""

    async def run_attempt(self, attempt: Attempt) -> Outcome:
        """Run to an outcome. CancelledError means: stop, the lease is gone."""


class CleanerStream(Protocol):
    """Takes secrets out of a text that comes in pieces."""

    @property
    def held(self) -> int:
        """How many bytes are held back."""

    def feed(self, piece: str) -> str:
        """What can be given on now; perhaps nothing."""

    def end(self) -> str:
        """What was held back."""


class Cleaner(Protocol):
    """Takes secrets out of what is about to be kept (A-6). Pure, quick, any thread."""

    def data(self, data: bytes) -> bytes:
        """The same object when there is nothing to take out. JSON stays JSON."""

    def text(self, text: str) -> str:
        """The same for a text."""

    def stream(self) -> CleanerStream:
        """For a text that comes in pieces."""


class CallOf(Protocol):
    """Builds the call of a journaled effect anew, for those who ask about it; nothing is sent."""

    async def __call__(
        self, task: Task, session: Session, tool: str, arguments: dict[str, Any]
    ) -> Call:
        """Decided on as a call of ``task``; by the policy in force when it names no version."""
