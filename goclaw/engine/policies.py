"""The policies of a home: which one is in force, which ones attempts are pinned to (A-3).

Owns loading, reloading, the pins, the counts of rates, and what another policy would have decided.
Not in here: deciding (``policy.pdp``), the language (``policy.document``).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from goclaw.core import limits, log
from goclaw.core.decisions import Decision
from goclaw.core.errors import PolicyRefused
from goclaw.core.home import policy_text
from goclaw.core.metrics import DECISIONS
from goclaw.policy import document, egress, pdp, review
from goclaw.policy.rates import Rates
from goclaw.protocol.methods import NAMES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Context, Subject
    from goclaw.core.home import Home
    from goclaw.policy.pdp import Policy
    from goclaw.policy.review import Warned
    from goclaw.store import Database

__all__ = ["Flip", "Loaded", "Policies", "Tested"]

_log = log.logger("engine.policies")


class Loaded(NamedTuple):
    """A policy that is in force now; ``was`` is the version before it, None at the first."""

    version: str
    was: str | None
    warnings: list[Warned]


class Flip(NamedTuple):
    """Decisions on record that another policy would have made otherwise."""

    action: str
    resource: str
    subject: str
    was: str
    was_rule: str
    now: str
    now_rule: str
    times: int
    last_at_ms: int


class Tested(NamedTuple):
    """What another policy would do to what is on record; ``skipped``: what tells too little."""

    version: str
    decisions: int
    skipped: int
    flips: list[Flip]
    warnings: list[Warned]


class Policies:
    """The policy in force, and those that running attempts are pinned to. Belongs to the loop."""

    def __init__(self, clock: Clock, database: Database, home: Home) -> None:
        self._clock, self._database, self._path = clock, database, home.policy
        # Tools' paths are resolved before they are decided about; so is the rule's.
        self._home = os.path.realpath(home.root)
        self._by_version: dict[str, Policy] = {}
        self._current: Policy | None = None
        self._rates = Rates()

    @property
    def version(self) -> str:
        """Version of the policy in force."""
        return self.current.version

    @property
    def current(self) -> Policy:
        """The policy in force."""
        if self._current is None:
            raise RuntimeError("no policy has been loaded")
        return self._current

    # -- which one is in force -----------------------------------------------------------------

    async def load(self, *, by: str = "start", sid: int = 0) -> Loaded:
        """Read policy.toml; stored before it is active. PolicyRefused keeps the one in force, and
        the session ``sid`` is told of both."""
        was = self._current
        try:
            text = await asyncio.get_running_loop().run_in_executor(None, policy_text, self._path)
            policy = self._compiled(text)
        except PolicyRefused as error:
            if was is not None:
                _log.error("policy refused", extra={"data": {"why": error.message}})
                await self._database.write(
                    "policy_refused", sid=sid, by=by, message=error.message,
                    now=self._clock.wall_ms(),
                )  # fmt: skip
            raise
        await self._database.write(
            "policy_activate", sid=sid, version=policy.version, text=text, by=by,
            now=self._clock.wall_ms(),
        )  # fmt: skip
        await self._keep_pinned(policy)
        await self._recount(policy)
        self._current = policy
        warnings = review.review(policy, at_ms=self._clock.wall_ms())
        for warned in warnings:
            _log.warning("policy", extra={"data": {"line": warned.line, "why": warned.message}})
        return Loaded(policy.version, was.version if was else None, warnings)

    def _compiled(self, text: str) -> Policy:
        return document.load(text, home=self._home, methods=NAMES)

    async def _keep_pinned(self, policy: Policy) -> None:
        """Forget what no work in progress is pinned to; fetch what a life before this one left.
        A claim under way still names the version that was in force a moment ago."""
        kept = {policy.version: policy}
        if self._current is not None:
            kept.setdefault(self._current.version, self._current)
        for version, text in await self._database.read("policies_pinned"):
            if version in kept:
                continue
            known = self._by_version.get(version)
            try:
                # accepted once: a method that has gone since makes it no other policy
                kept[version] = known or document.load(text, home=self._home)
            except PolicyRefused as error:
                # Written by another program: the one in force decides.
                _log.warning("pinned policy unread", extra={"data": {"why": error.message}})
        self._by_version = kept

    async def _recount(self, policy: Policy) -> None:
        """What the record says of rates: a restart gives nobody a new allowance."""
        new = [name for name in policy.rated if not self._rates.knows(name)]
        if not new:
            return
        span_ms = max(policy.rated[name].per_s for name in new) * 1000
        found = [
            (at, record)
            async for at, record in self._records(self._clock.wall_ms() - span_ms)
            if record.get("ruleId") in new
        ]
        for at, record in reversed(found):
            for _ in range(record.get("count", 1)):
                self._rates.count(policy, record["ruleId"], record["effect"], at)

    async def _records(self, since_ms: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Decisions on record, newest first."""
        before = 1 << 62
        while True:
            page = await self._database.read("audit_before", seq=before, limit=limits.READ_ROWS_MAX)
            for seq, at, record in page:
                if at < since_ms:
                    return
                before = seq
                yield at, orjson.loads(record)
            if not page:
                return

    # -- decisions -----------------------------------------------------------------------------

    def decide(
        self,
        subject: Subject,
        action: str,
        resource: str,
        context: Context,
        *,
        version: str | None = None,
    ) -> Decision:
        """One decision, by the policy in force or by a pinned version of it; it counts where its
        rule has a rate."""
        policy = self._by_version.get(version or "", self.current)
        decision = self._decided(policy, subject, action, resource, context)
        DECISIONS[decision.effect] += 1
        if policy.rated:
            self._rates.count(policy, decision.rule_id, decision.effect, decision.at_ms)
        return decision

    def explain(self, subject: Subject, action: str, resource: str, context: Context) -> Decision:
        """What would be decided now; nothing is counted."""
        return self._decided(self.current, subject, action, resource, context)

    def _decided(
        self, policy: Policy, subject: Subject, action: str, resource: str, context: Context
    ) -> Decision:
        now = self._clock.wall_ms()
        spent = self._rates.spent(policy, now) if policy.rated else ()
        return pdp.decide(
            policy, subject=subject, action=action, resource=resource, context=context,
            decision_id=self._clock.new_id("decision"), at_ms=now, spent=spent,
        )  # fmt: skip

    def names(
        self, version: str, subject: Subject, context: Context, place: egress.Address
    ) -> bool:
        """Does that version name an address as one that this subject may dial (A-4)?"""
        policy = self._by_version.get(version, self.current)
        now = self._clock.wall_ms()
        return egress.names(policy, place, subject=subject, context=context, at_ms=now)

    # -- the past ------------------------------------------------------------------------------

    async def history(self, *, before: int | None = None, most: int) -> list[dict[str, Any]]:
        """Which version was in force since when, newest first."""
        found = await self._database.read(
            "policy_activations", before=before or 1 << 62, limit=most
        )
        return [
            {"seq": seq, "version": version, "at": at, "by": by} for seq, version, at, by in found
        ]

    async def test(self, text: str, since_ms: int) -> Tested:
        """Decide again, by another policy, what is on record since then; PolicyRefused.

        Rates are counted as they would have been, so the decisions are taken in their order.
        """
        policy = self._compiled(text)
        kept: list[tuple[int, dict[str, Any]]] = []
        skipped = 0
        async for at, record in self._records(since_ms):
            if len(kept) >= limits.POLICY_REPLAY_MAX:
                break
            if "facts" in record and record["ruleId"] != pdp.MALFORMED:
                kept.append((at, record))
            else:
                skipped += 1
        rates, flips = Rates(), dict[tuple[str, ...], Flip]()
        for made, (_at, record) in enumerate(reversed(kept), 1):
            if made % limits.READ_ROWS_MAX == 0:
                await asyncio.sleep(0)
            was = Decision.of_record(record)
            decision = pdp.decide(
                policy, subject=was.subject, action=was.action, resource=was.resource,
                context=was.context, decision_id=was.decision_id, at_ms=was.at_ms,
                spent=rates.spent(policy, was.at_ms),
            )  # fmt: skip
            count = record.get("count", 1)
            for _ in range(count if decision.rule_id in policy.rated else 0):
                rates.count(policy, decision.rule_id, decision.effect, was.at_ms)
            if decision.effect is not was.effect:
                _add(flips, was, decision, count)
        listed = sorted(itertools.islice(flips.values(), limits.EVENTS_PAGE_MAX), key=_weight)
        warnings = review.review(policy, at_ms=self._clock.wall_ms())
        return Tested(policy.version, len(kept), skipped, listed, warnings)


def _add(flips: dict[tuple[str, ...], Flip], was: Decision, now: Decision, count: int) -> None:
    key = (was.action, was.resource, was.subject.kind, was.effect, was.rule_id, now.effect,
           now.rule_id)  # fmt: skip
    known = flips.get(key)
    flips[key] = Flip(
        was.action, was.resource, was.subject.kind, was.effect, was.rule_id, now.effect,
        now.rule_id, count + (known.times if known else 0), was.at_ms,
    )  # fmt: skip


def _weight(flip: Flip) -> tuple[int, str, str]:
    """What is let loose comes first."""
    return {"allow": 0, "ask": 1, "deny": 2}[flip.now], flip.action, flip.resource
