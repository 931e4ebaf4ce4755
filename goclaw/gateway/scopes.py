"""What a connection may call: scopes of methods (A-12), and tokens of single attempts (A-10).

Owns how such a token is made and what it opens. Not in here: who gets in (``access``), what the
policy says of a call that is within its scope.

A token is derived from the lease token, which is new with every claim, and the token of the home,
which is in no backup. So nothing of it is stored, a daemon that starts anew knows it, and it dies
as soon as the task has another lease or none.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from goclaw.core.errors import LeaseLost, ScopeMissing

__all__ = [
    "ATTEMPT_METHODS",
    "NO_SCOPES",
    "OWN_SCOPES",
    "AttemptPass",
    "Scope",
    "attempt_token",
    "check_scope",
    "scope_of",
    "task_of",
]

_SHOWN: Final = re.compile(r"attempt_([0-9a-z]{26})_[0-9a-f]{64}")


class Scope(enum.StrEnum):
    """What a method is about. A connection of the user's own has them all."""

    READ = "read"
    """Looks and changes nothing."""
    MUTATE = "mutate"
    """Gives work, and takes it back."""
    APPROVE = "approve"
    """Speaks for a person: approvals, settlements."""
    ADMIN = "admin"
    """Changes the daemon."""
    WORKER = "worker"
    """Claims tasks of pools and carries them out."""


_SCOPES: Final = {
    Scope.READ: (
        "session/load", "session/list", "session/resume", "_goclaw/session/subscribe",
        "_goclaw/session/unsubscribe", "_goclaw/session/events", "_goclaw/run/get",
        "_goclaw/approvals/list", "_goclaw/approvals/grants", "_goclaw/task/get",
        "_goclaw/task/list", "_goclaw/task/why",
        "_goclaw/effects/list", "_goclaw/system/status", "_goclaw/system/watch",
    ),
    Scope.MUTATE: (
        "session/new", "session/close", "session/delete", "session/prompt", "session/cancel",
        "_goclaw/run/cancel",
        "_goclaw/run/signal", "_goclaw/task/submit", "_goclaw/task/cancel",
    ),
    Scope.APPROVE: (
        "_goclaw/approvals/resolve", "_goclaw/approvals/grant", "_goclaw/approvals/revoke",
        "_goclaw/approvals/away", "_goclaw/effects/settle", "_goclaw/effects/redo",
        "_goclaw/effects/probe",
    ),
    Scope.ADMIN: ("_goclaw/task/redrive", "_goclaw/task/drop"),
}  # fmt: skip
_BY_METHOD: Final = {method: scope for scope, methods in _SCOPES.items() for method in methods}

OWN_SCOPES: Final = frozenset(Scope)
"""Of the user's own clients: whoever has his uid or the token of his home."""

NO_SCOPES: Final = frozenset[Scope]()
"""Of programs that this daemon started: nothing, until they show the token of an attempt."""

ATTEMPT_METHODS: Final = frozenset(
    f"_goclaw/worker/{word}"
    for word in ("heartbeat", "effect", "emit", "complete", "fail", "release")
)
"""All that the token of an attempt opens, beside initialize."""


def scope_of(method: str) -> Scope | None:
    """The scope that a method needs; None for initialize and for what is no method."""
    if method.startswith("_goclaw/admin/"):
        return Scope.ADMIN
    if method.startswith("_goclaw/worker/"):
        return Scope.WORKER
    return _BY_METHOD.get(method)


def check_scope(scopes: frozenset[Scope], method: str) -> None:
    """ScopeMissing unless the scope of the method is among them; a method without one is closed to
    everybody, but for initialize."""
    if method != "initialize" and scope_of(method) not in scopes:
        raise _missing(method, "This connection is not one of the user's own clients.")


def attempt_token(secret: str, task_id: str, lease_token: bytes) -> str:
    """The token of the attempt that holds the lease; ``secret`` is the home's."""
    text = b"\0".join((b"attempt", task_id.encode(), lease_token))
    mac = hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
    return f"attempt_{task_id.removeprefix('task_')}_{mac}"


def task_of(shown: str) -> str | None:
    """The task that a token is of, by its looks only; None for what looks like none."""
    match = _SHOWN.fullmatch(shown)
    return None if match is None else f"task_{match[1]}"


@dataclass(frozen=True, slots=True)
class AttemptPass:
    """What a token opened its connection for."""

    task_id: str
    attempt: int
    lease_token: bytes

    def check(self, method: str) -> None:
        """ScopeMissing unless the method is one of this attempt's; initialize comes first."""
        if method not in ATTEMPT_METHODS and method != "initialize":
            raise _missing(method, "The token of an attempt opens the methods of its worker only.")

    def show(self, task_id: str | None, token: bytes | None) -> tuple[str, bytes]:
        """Task and lease token of a call, which may leave them out. ScopeMissing for another
        task, LeaseLost for another attempt of this one."""
        if task_id not in (None, self.task_id):
            raise _missing("_goclaw/worker/", "This token is of another task.")
        if token not in (None, self.lease_token):
            raise LeaseLost(
                "That lease is not this token's.", hint="Stop at once.", taskId=self.task_id
            )
        return self.task_id, self.lease_token


def _missing(method: str, why: str) -> ScopeMissing:
    scope = scope_of(method)
    return ScopeMissing(
        why,
        hint="A program of the user's own may; one that goclaw started has its attempt only.",
        scope=None if scope is None else str(scope),
    )
