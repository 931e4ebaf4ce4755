"""Asks the policy for clients, keeps the record of what it denied, and knows attempts' tokens.

Owns the joining of equal denials (A-8). Not in here: the policy, and audit records of what was
allowed, which commit with what they allow.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from typing import TYPE_CHECKING, Any

from goclaw.core import limits, log
from goclaw.core.clock import rfc3339
from goclaw.core.decisions import Context, Decision, Verdict
from goclaw.core.errors import GoclawError, PolicyDenied
from goclaw.gateway.scopes import AttemptPass, attempt_token, task_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from goclaw.core.decisions import Subject
    from goclaw.gateway.services import Services

__all__ = ["Permits"]

_log = log.logger("gateway.permits")


class Permits:
    """Decisions about clients. Belongs to the loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._denied: dict[tuple[str, str, str, str], tuple[Decision, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._allowed: Counter[tuple[str, str, str]] = Counter()
        self._since_ms = 0
        self._counting: asyncio.TimerHandle | None = None

    def require(self, subject: Subject, action: str, resource: str, context: Context) -> Decision:
        """The decision, when it allows; else PolicyDenied.

        An ``ask`` denies too: a request of a client has no durable approval to wait for.
        """
        decision = self._services.decide(subject, action, resource, context)
        if decision.effect is Verdict.ALLOW:
            if action == "protocol.call":
                self._count(decision)
            return decision
        self._keep(decision)
        raise PolicyDenied(
            f"The policy does not allow {action} of {decision.resource}: {decision.reason}.",
            hint="See `goclaw policy explain`.",
            decisionId=decision.decision_id,
            reason=decision.reason,
            ruleId=decision.rule_id,
        )

    def refused(self, subject: Subject, method: str, rule_id: str, reason: str) -> None:
        """Record that a request was turned away before the policy was asked; ``rule_id`` stands in
        parentheses, as no rule did it."""
        clock = self._services.engine.clock
        self._keep(
            Decision(
                clock.new_id("decision"), clock.wall_ms(), subject, "protocol.call",
                method[: limits.LABEL_CHARS_MAX].encode(errors="replace").decode(), Context(),
                Verdict.DENY, rule_id, reason, self._services.policies.version, (),
            )
        )  # fmt: skip

    async def attempt(self, shown: str) -> AttemptPass | None:
        """What the token of an attempt opens; None when no such attempt holds its lease."""
        task_id = task_of(shown)
        live = None if task_id is None else await self._services.engine.external.live(task_id)
        if task_id is None or live is None:
            return None
        number, lease_token = live
        known = attempt_token(self._services.token.value, task_id, lease_token)
        if not hmac.compare_digest(shown.encode(), known.encode()):
            return None
        return AttemptPass(task_id, number, lease_token)

    def _keep(self, decision: Decision) -> None:
        key = (decision.subject.id, decision.action, decision.resource, decision.rule_id)
        first, count = self._denied.get(key, (decision, 0))
        if key in self._denied or len(self._denied) < limits.DENIALS_MAX:
            self._denied[key] = (first, count + 1)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limits.DENIALS_JOIN_MS / 1000, self._flush)

    def _count(self, decision: Decision) -> None:
        """Allowed requests are no news each; how many there were is."""
        clock, subject = self._services.engine.clock, decision.subject
        if not self._allowed:
            self._since_ms = clock.wall_ms()
            loop = asyncio.get_running_loop()
            self._counting = loop.call_later(limits.AUDIT_COUNT_MS / 1000, self._flush_counts)
        key = (str(subject.kind), str(subject.origin), decision.resource)
        if key not in self._allowed and len(self._allowed) >= limits.AUDIT_COUNTS_MAX:
            key = (str(subject.kind), str(subject.origin), "(others)")
        self._allowed[key] += 1

    def _flush_counts(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        allowed, self._allowed = self._allowed, Counter()
        if not allowed:
            return
        record = {
            "type": "protocol.counts",
            "since": rfc3339(self._since_ms),
            "allowed": [
                {"subject": kind, "origin": origin, "method": method, "count": count}
                for (kind, origin, method), count in sorted(allowed.items())
            ],
        }
        self._spawn(self._services.engine.record(record))

    def _spawn(self, writing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._written(writing))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _flush(self) -> None:
        self._timer = None
        denied, self._denied = self._denied, {}
        for decision, count in denied.values():
            self._spawn(self._services.engine.audit(decision, count=count))

    async def _written(self, writing: Coroutine[Any, Any, None]) -> None:
        try:
            await writing
        except GoclawError as error:
            _log.error("not recorded", extra={"data": {"error": str(error)}})

    async def close(self) -> None:
        """Write what is still to be written."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        self._flush_counts()
        await asyncio.gather(*self._writing)
