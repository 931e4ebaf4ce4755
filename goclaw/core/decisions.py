"""What is asked of the policy and what it answers (A-1), and every action there is (A-2).

Owns the schema of a decision and the closed list of actions. Not in here: how a decision is made
(``policy/pdp.py``) and where it is stored.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

from goclaw.core.clock import rfc3339, wall_ms_of
from goclaw.core.states import EffectClass

__all__ = [
    "ACTIONS",
    "ADMIN_VERBS",
    "OBLIGATIONS",
    "ON_UNKNOWN",
    "Action",
    "Context",
    "Decision",
    "Origin",
    "ResourceForm",
    "Subject",
    "SubjectKind",
    "Taint",
    "Verdict",
]


class Verdict(enum.StrEnum):
    """The ``effect`` of a decision."""

    ALLOW = "allow"
    """Go on, and fulfil the obligations."""
    ASK = "ask"
    """Open a durable approval bound to this very call; its answer decides (A-7)."""
    DENY = "deny"
    """Stop; the error names the decision."""


class SubjectKind(enum.StrEnum):
    """Who asks."""

    CLIENT = "client"
    """A connection of the user's own: editor, terminal, script."""
    RUN = "run"
    """The run loop, for its brain; ``id`` is the brain's name."""
    SKILL = "skill"
    """Code inside a sandbox, through a host call; ``id`` is the skill's name."""
    WORKER = "worker"
    """An external worker, or a child with the token of one attempt (A-10)."""
    DAEMON = "daemon"
    """The daemon on its own account: schedules, built-in skills at the start."""


class Origin(enum.StrEnum):
    """How the subject reached the daemon."""

    UNIX = "unix"
    WS = "ws"
    STDIO = "stdio"
    INTERNAL = "internal"


class Taint(enum.StrEnum):
    """What a session has met (A-13). Only data: it can make a decision stricter, never looser."""

    UNTRUSTED = "untrusted"
    """Text from outside: web pages, tool output, files that nobody vouched for."""
    PRIVATE = "private"
    """Private data: secrets, mail, what the user marked."""


class ResourceForm(enum.StrEnum):
    """What the resource of an action is, and so how it is brought into canonical form."""

    NAME = "name"
    """An opaque name: a method, a tool, a secret."""
    PATH = "path"
    """An absolute path, links already resolved by whoever opens it."""
    ADDRESS = "address"
    """A URL, or ``host:port``."""
    PROGRAM = "program"
    """An absolute path, a URL, or a name to look up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """One row of the list.

    ``effect``: the action changes or reveals something outside, so an unknown effect class counts
    as irreversible (E-3). ``built``: the enforcement site exists; else it is pending, and code that
    does such a thing without a decision turns a test red.
    """

    name: str
    resource: ResourceForm
    effect: bool
    built: bool
    meaning: str


ADMIN_VERBS: Final = (
    "approvals", "audit", "backup", "cancel", "dlq", "doctor", "drill", "drop", "effects",
    "events", "fork", "incident", "mcp", "policy", "purge", "redrive", "replay", "restore",
    "resume", "secret", "shutdown", "skill", "status", "stop", "task", "timeline", "token",
    "upgrade", "verify", "why", "worker",
)  # fmt: skip
"""The verbs of ``_goclaw/admin/<verb>``: each command that reads or changes the daemon's state."""

_ROWS: Final = (
    Action("protocol.call", ResourceForm.NAME, False, False, "a method of the wire, by its name"),
    Action("run.submit", ResourceForm.NAME, False, False, "a prompt or a task; the session's id"),
    Action("brain.call", ResourceForm.NAME, True, False, "one answer of a brain, by its name"),
    Action("tool.call", ResourceForm.NAME, True, False, "a tool, as SOURCE/NAME: builtin/sleep"),
    Action("skill.activate", ResourceForm.NAME, True, False, "a skill version, as SOURCE/NAME"),
    Action("wasm.host", ResourceForm.NAME, True, False, "a host call of a module, by its name"),
    Action("mcp.start", ResourceForm.PROGRAM, True, False, "an MCP server: its program or URL"),
    Action("mcp.call", ResourceForm.NAME, True, False, "an MCP tool, as SERVER/TOOL"),
    Action("fs.read", ResourceForm.PATH, True, False, "read, list or search a path"),
    Action("fs.write", ResourceForm.PATH, True, False, "write or edit a path"),
    Action("exec.run", ResourceForm.PROGRAM, True, False, "start a program"),
    Action("net.connect", ResourceForm.ADDRESS, True, False, "reach a URL or a host"),
    Action("secret.use", ResourceForm.NAME, True, False, "put a secret in, at the boundary"),
    Action("approval.answer", ResourceForm.NAME, False, False, "answer an approval, by its id"),
    Action("worker.claim", ResourceForm.NAME, False, False, "claim tasks of a pool, by its name"),
    *(
        Action(f"admin.{verb}", ResourceForm.NAME, False, False, f"_goclaw/admin/{verb}")
        for verb in ADMIN_VERBS
    ),
)

ACTIONS: Final[dict[str, Action]] = {row.name: row for row in _ROWS}
"""Every action there is (A-2); any other is denied. The order is that of the specification."""

OBLIGATIONS: Final[dict[str, str]] = {
    "confine": "run it only in a confined sandbox; where there is none, do not run it",
    "notify": "tell every attached client before it happens",
    "on_unknown:suspend": "when nobody knows whether it happened, the task waits for a person",
    "on_unknown:tell_brain": "when nobody knows whether it happened, the brain is told so",
}
"""What a rule may demand of whoever carries the decision out. Who cannot, must not go on."""

ON_UNKNOWN: Final[dict[str, str]] = {
    "on_unknown:suspend": "suspend",
    "on_unknown:tell_brain": "tell_brain",
}
"""Obligations that say what follows an unknown outcome (E-3); the first of several counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, and for what work."""

    kind: SubjectKind
    id: str
    origin: Origin
    session_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    attempt: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The ``subject`` of A-1."""
        return {
            "kind": str(self.kind),
            "id": self.id,
            "origin": str(self.origin),
            "sessionId": self.session_id,
            "runId": self.run_id,
            "taskId": self.task_id,
            "attempt": self.attempt,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """The circumstances. ``interactive`` and ``roots`` are facts of the session that rules may
    test; A-1 does not carry them, so whoever wants to decide again later keeps the Context.

    ``risk`` is 0 (harmless) upwards, None when nobody assessed it; ``bytes`` is the size of what
    would be moved, None when unknown. An unknown figure exceeds every bound of a rule.
    ``roots`` are absolute paths: the session's cwd and its additional directories.
    """

    effect_class: EffectClass | None = None
    taint: tuple[Taint, ...] = ()
    risk: int | None = None
    bytes: int | None = None
    args_digest: str | None = None
    interactive: bool = False
    roots: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The ``context`` of A-1; ``bytes`` is left out when unknown."""
        size = {} if self.bytes is None else {"bytes": self.bytes}
        return {
            "effectClass": None if self.effect_class is None else str(self.effect_class),
            "taint": [str(label) for label in self.taint],
            "risk": self.risk,
            **size,
            "argsDigest": self.args_digest,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One answer, complete enough to be explained and audited by itself.

    ``resource`` is in canonical form: open, connect to or start exactly that, not what was asked.
    ``rule_id`` is ``(default)`` when no rule applied and ``(malformed)`` when the request could not
    be brought into canonical form; both deny.
    """

    decision_id: str
    at_ms: int
    subject: Subject
    action: str
    resource: str
    context: Context
    effect: Verdict
    rule_id: str
    reason: str
    policy_version: str
    obligations: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Exactly the object of A-1."""
        return {
            "decisionId": self.decision_id,
            "at": rfc3339(self.at_ms),
            "subject": self.subject.to_json(),
            "action": self.action,
            "resource": self.resource,
            "context": self.context.to_json(),
            "effect": str(self.effect),
            "ruleId": self.rule_id,
            "reason": self.reason,
            "policyVersion": self.policy_version,
            "obligations": list(self.obligations),
        }

    def to_record(self) -> dict[str, Any]:
        """As it is audited: the object of A-1, and the facts that it takes to decide again."""
        facts: dict[str, Any] = {"interactive": self.context.interactive}
        row = ACTIONS.get(self.action)
        if self.context.roots and row is not None and row.resource in _PLACES:
            facts["roots"] = list(self.context.roots)
        return {**self.to_json(), "facts": facts}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Decision:
        """What ``to_record`` wrote; KeyError or ValueError for what it did not."""
        who, about, facts = record["subject"], record["context"], record["facts"]
        effect_class = about["effectClass"]
        return cls(
            record["decisionId"], wall_ms_of(record["at"]),
            Subject(
                SubjectKind(who["kind"]), who["id"], Origin(who["origin"]), who["sessionId"],
                who["runId"], who["taskId"], who["attempt"],
            ),
            record["action"], record["resource"],
            Context(
                None if effect_class is None else EffectClass(effect_class),
                tuple([Taint(label) for label in about["taint"]]), about["risk"],
                about.get("bytes"), about["argsDigest"], facts["interactive"],
                tuple(facts.get("roots", ())),
            ),
            Verdict(record["effect"]), record["ruleId"], record["reason"],
            record["policyVersion"], tuple(record["obligations"]),
        )  # fmt: skip


_PLACES: Final = (ResourceForm.PATH, ResourceForm.PROGRAM)
