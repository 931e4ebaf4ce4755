"""The words of the extension as data: its methods, its notifications, what its errors carry.

Owns what docs/protocol.md says of them in tables, and which administration verb is which method
(PROTOCOL 2.3, 2.4, 2.8). Sans-I/O. Not in here: what a method does and its scope (``gateway``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from goclaw.core import errors

__all__ = ["ERROR_DATA", "METHODS", "MIRRORS", "NAMES", "NOTIFICATIONS", "Method"]


class Method(NamedTuple):
    """One row of the table of methods; params and result in the words of its readers."""

    name: str
    params: str
    result: str


METHODS: Final = (
    Method(
        "_goclaw/session/subscribe",
        "`sessionId`, `fromEventId?`, `streamId?`, `role?` (`controller`, `observer`), "
        "`mode?` (`lossless`, `latest`)",
        "the block above, then events after the cursor; also `lastClose` when this client "
        "was closed for being slow",
    ),
    Method(
        "_goclaw/session/unsubscribe",
        "`sessionId`",
        "`{}`",
    ),
    Method(
        "_goclaw/session/events",
        "`sessionId`, `fromEventId?`, `limit?` (up to 1,000)",
        "`{events, nextEventId, headEventId}`; events are the notifications' params",
    ),
    Method(
        "_goclaw/run/get",
        "`runId`, or `sessionId` and `idempotencyKey`",
        "`{runId, taskId, sessionId, state, stopReason?, attempts, eventId}`",
    ),
    Method(
        "_goclaw/run/cancel",
        "`runId`",
        "receipt `{outcome, eventId, effectsDone}`",
    ),
    Method(
        "_goclaw/run/signal",
        "`runId`, `name`, `payload?`, `idempotencyKey?`",
        "`{eventId, duplicate}`: the event of the first signal of that name, which counts; "
        "`duplicate` when it came before. The same key with another name or payload is "
        "`idempotency_conflict`, a run that has ended without it `illegal_transition`",
    ),
    Method(
        "_goclaw/approvals/list",
        "`sessionId?`",
        "`{approvals}`, the open ones, oldest first",
    ),
    Method(
        "_goclaw/approvals/resolve",
        "`approvalId`, `optionId`",
        "`{outcome}`, or `already_resolved` with the answer that came first",
    ),
    Method(
        "_goclaw/task/submit",
        "`sessionId`, and `tool`, `arguments?` or `pool`, `payload?`, `effectClass?`; "
        "`idempotencyKey?`, `priority?`, `parallel?`, `maxAttempts?`",
        "`{taskId, runId, state, eventId, duplicate, resultExpired?}`",
    ),
    Method(
        "_goclaw/task/get",
        "`taskId`",
        "the task",
    ),
    Method(
        "_goclaw/task/list",
        "`sessionId?`, `states?`, `pool?`, `after?`, `limit?`",
        "`{tasks, next?}`, newest first",
    ),
    Method(
        "_goclaw/task/cancel",
        "`taskId`",
        "receipt",
    ),
    Method(
        "_goclaw/task/why",
        "`taskId`",
        "`{state, because: [{code, text, until?, command?}]}`",
    ),
    Method(
        "_goclaw/task/redrive",
        "`taskId`, or `fingerprint`, `after?`, `limit?`; `dryRun?`",
        "`{tasks: [taskId], skipped: [{taskId, code, message}], eventId?, next?}`",
    ),
    Method(
        "_goclaw/task/drop",
        "as redrive",
        "as redrive",
    ),
    Method(
        "_goclaw/effects/list",
        "`taskId`, `after?` (an ordinal), `limit?`",
        "`{effects: [{ordinal, kind, name, class, state, idempotencyKey, requestHash, at}], "
        "next?}`, in order; `at` is when it was begun",
    ),
    Method(
        "_goclaw/effects/settle",
        "`taskId`, `ordinal`, `outcome` (`done`, `not_done`, `fail`), `result?`",
        "the effect and `eventId`",
    ),
    Method(
        "_goclaw/effects/redo",
        "`taskId`, `ordinal`",
        "the effect and `eventId`",
    ),
    Method(
        "_goclaw/effects/probe",
        "`taskId`, `ordinal`",
        "the effect, and `eventId` (null when the tool cannot tell)",
    ),
    Method(
        "_goclaw/worker/claim",
        "`pool`, `max?` (1 to 64), `waitMs?` (up to 30 s), `workerId?`",
        "`{tasks: [{taskId, runId, sessionId, attempt, eventId, maxAttempts, leaseToken, "
        "attemptToken, leaseMs, payload, idempotencyKey, traceparent, effects}]}`",
    ),
    Method(
        "_goclaw/worker/heartbeat",
        "`taskId`, `leaseToken`, or `leases: [...]` of them",
        "`{leaseMs}`, or `{leases: [{taskId, ok, leaseMs}]}`",
    ),
    Method(
        "_goclaw/worker/effect",
        "`taskId`, `leaseToken`, `ordinal`, `phase` (`intent`, `result`), `kind`, `name`, "
        "`requestHash`, `class?`, `idempotencyKey?`, `result?`, `error?`",
        "`{go: true, idempotencyKey}`, `{go: false, result, error?, deduplicated?}`, or `{}` "
        "for a result",
    ),
    Method(
        "_goclaw/worker/emit",
        "`taskId`, `leaseToken`, `update`",
        "`{eventId}`; with `heldBytes` when the end of its text may begin a secret: these go out "
        "with more of the text, or before the last word, and are not on disk until then",
    ),
    Method(
        "_goclaw/worker/complete",
        "`taskId`, `leaseToken`, `result?`",
        "`{state, eventId}`",
    ),
    Method(
        "_goclaw/worker/fail",
        "`taskId`, `leaseToken`, `code`, `message?`, `retryable`, `retryAfterMs?`, `fingerprint?`",
        "`{state, eventId, availableInMs?}`",
    ),
    Method(
        "_goclaw/worker/release",
        "`taskId`, `leaseToken`",
        "`{state, eventId}`",
    ),
    Method(
        "_goclaw/system/status",
        "",
        "what `goclaw status --json` prints",
    ),
    Method(
        "_goclaw/system/watch",
        "`fields?` (`lanes`, `queue`, `health`), `minIntervalMs?` (100 to 3,600,000; 1,000)",
        "`{}`, then `_goclaw/system/state`",
    ),
    Method(
        "_goclaw/admin/dlq",
        "`verb` (`list`), `fingerprint?`, `after?`, `limit?`",
        "`{tasks, next?}`: the dead letters, newest first",
    ),
    Method(
        "_goclaw/admin/policy",
        "`verb` (`explain`), `subject`, `action`, `resource`, `sessionId?`",
        "the decision",
    ),
    Method(
        "_goclaw/admin/policy",
        "`verb` `reload`",
        "`version`, `was`, `changed`, `warnings: [{line, message}]`; a refused file: the error, "
        "with `line` and `problems`",
    ),
    Method(
        "_goclaw/admin/policy",
        "`verb` `history`, `after?`, `limit?`",
        "`versions: [{version, at, by}]`, newest first, `next?`",
    ),
    Method(
        "_goclaw/admin/policy",
        "`verb` `test`, `text`, `withinMs?`",
        "`version`, `decisions`, `skipped`, `flips: [{action, resource, subject, was, wasRule, "
        "now, nowRule, count, lastAt}]`, `warnings`",
    ),
    Method(
        "_goclaw/admin/backup",
        "`verb` (`create`)",
        "what `goclaw backup create --json` prints ([operations](operations.md))",
    ),
    Method(
        "_goclaw/admin/secret",
        "`verb` `set`, `name`, `value`, `hosts?`, `tools?`; or `rotate`, `name`, `value`",
        "`{name, reference, hosts, tools, createdAt, updatedAt}`; a value never comes back",
    ),
    Method(
        "_goclaw/admin/secret",
        "`verb` `list`; or `rm`, `name`",
        "`{secrets: [...]}`; or `{name}`",
    ),
    Method("_goclaw/admin/token", "`verb` (`rotate`)", "`{}`: another token is in `auth.token`"),
    Method(
        "_goclaw/admin/skill",
        "`verb` (`list`)",
        "`{skills}`",
    ),
    Method(
        "_goclaw/admin/fork",
        "`runId`, `at` (an event id), `idempotencyKey?`",
        "`{sessionId, runId, taskId, eventId, stubbed, duplicate, parentSessionId, "
        "parentRunId, parentEventId}` ([operations](operations.md#fork))",
    ),
    Method(
        "_goclaw/admin/replay",
        "`runId`",
        "the object of `goclaw replay --json` ([operations](operations.md#replay))",
    ),
    Method(
        "_goclaw/approvals/grant",
        "`tool`, `sessionId?`, `resources?` (globs), `digests?`, `uses?` (1), `forMs?` (a day)",
        "`{grantId}`: that many such calls are allowed without asking ([policy](policy.md))",
    ),
    Method("_goclaw/approvals/grants", "", "`{grants}`, those that still hold, by tool"),
    Method("_goclaw/approvals/revoke", "`grantId`", "`{}`, or `unknown_id`"),
    Method(
        "_goclaw/approvals/away",
        "`away?` (true)",
        "`{away}`: while it is true, questions wait on instead of expiring",
    ),
    Method(
        "_goclaw/admin/audit",
        "`verb` (`list`), `after?`, `limit?`",
        "`{records: [{seq, at, record}], next?}`, newest first",
    ),
    Method(
        "_goclaw/admin/audit",
        "`verb` `verify`",
        "`{ok, records, link, faults: [{seq, where, what}], more}`",
    ),
    Method(
        "_goclaw/admin/timeline",
        "`runId`",
        "the object of `goclaw timeline --json` ([operations](operations.md#the-morning-after))",
    ),
    Method(
        "_goclaw/admin/stop",
        "`level` (`effects`, `all`), `why?`",
        "`{level, at, by, why}`: the emergency stop is on, also after a restart "
        "([operations](operations.md#the-emergency-stop))",
    ),
    Method(
        "_goclaw/admin/resume",
        "",
        "`{resumed, tasks}`: how many tasks go on that it held",
    ),
    Method(
        "_goclaw/admin/shutdown",
        "",
        "`{}`; the daemon stops in good order",
    ),
)
"""Every request of the extension; a test holds it to the handlers."""

MIRRORS: Final[dict[str, dict[str, str]]] = {
    "approvals": {
        "list": "_goclaw/approvals/list",
        "answer": "_goclaw/approvals/resolve",
        "grant": "_goclaw/approvals/grant",
        "grants": "_goclaw/approvals/grants",
        "revoke": "_goclaw/approvals/revoke",
        "away": "_goclaw/approvals/away",
    },
    "cancel": {"task": "_goclaw/task/cancel", "run": "_goclaw/run/cancel"},
    "dlq": {
        "list": "_goclaw/admin/dlq",
        "show": "_goclaw/task/get",
        "redrive": "_goclaw/task/redrive",
        "drop": "_goclaw/task/drop",
    },
    "effects": {
        "list": "_goclaw/effects/list",
        "probe": "_goclaw/effects/probe",
        "settle": "_goclaw/effects/settle",
        "redo": "_goclaw/effects/redo",
    },
    "events": {"list": "_goclaw/session/events"},
    "status": {"show": "_goclaw/system/status"},
    "task": {
        "list": "_goclaw/task/list",
        "show": "_goclaw/task/get",
        "cancel": "_goclaw/task/cancel",
        "signal": "_goclaw/run/signal",
    },
    "why": {"show": "_goclaw/task/why"},
}
"""Verbs of ``_goclaw/admin/<verb>`` that say the same as a method, by the word in ``verb`` (the
first unless one is given): whoever administers finds every command under one name. A verb that has
no other method stands in METHODS."""

NAMES: Final = frozenset(
    {
        "initialize", "session/new", "session/load", "session/resume", "session/list",
        "session/close", "session/delete", "session/prompt", "session/cancel",
        *(method.name for method in METHODS), *(f"_goclaw/admin/{verb}" for verb in MIRRORS),
    }
)  # fmt: skip
"""Everything that a client may call or notify, by name: what a rule of ``protocol.call`` can be
about. A test holds it to the handlers."""

NOTIFICATIONS: Final = (
    ("_goclaw/session/event", "`sessionId`, `event` (`type` and more)", "an event of the session"),
    (
        "_goclaw/approval/resolved",
        "`sessionId`, `approvalId`, `outcome`, `by`",
        "a question has its answer, whoever gave it",
    ),
    ("_goclaw/backpressure", "`reason`, `sent` (by session)", "this connection is being closed"),
    ("_goclaw/system/state", "`at`, `lanes`, `queue`, `health`", "see `_goclaw/system/watch`"),
    ("_goclaw/shutdown", "`graceSeconds`", "the daemon stops"),
    (
        "_goclaw/storage",
        "`ok`, `message`",
        "the disk takes no writes, so runs wait and nothing new is accepted; or it does again",
    ),
)
"""What only opted-in clients are sent: method, params, when."""

ERROR_DATA: Final[dict[type[errors.GoclawError], tuple[str, ...]]] = {
    errors.SessionUnknown: ("sessionId",),
    errors.ReplayGap: (
        "sessionId", "requestedEventId", "oldestEventId", "headEventId", "recover",
    ),
    errors.CursorAhead: ("headEventId", "streamId", "recover"),
    errors.IdempotencyConflict: ("idempotencyKey", "runId"),
    errors.QueueFull: ("queued", "limit", "retryAfterMs"),
    errors.PolicyDenied: ("decisionId", "reason"),
    errors.ShuttingDown: ("retryAfterMs",),
    errors.AlreadyResolved: ("approvalId", "outcome"),
    errors.HandshakeRequired: (),
    errors.LeaseLost: ("taskId",),
    errors.IllegalTransition: ("from", "to"),
    errors.Nondeterminism: ("ordinal", "recorded", "requested"),
    errors.RateLimited: ("retryAfterMs",),
    errors.ScopeMissing: ("scope",),
    errors.EffectUnknown: ("taskId", "ordinal"),
    errors.UnknownId: ("what", "id"),
    errors.TooLarge: ("limit", "unit"),
    errors.BudgetExhausted: ("budget",),
}  # fmt: skip
"""What ``data`` of an error on the wire holds at least, beside ``name`` and ``hint``."""
