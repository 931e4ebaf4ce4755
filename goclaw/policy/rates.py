"""How often rules with a ``rate_max`` have allowed something lately.

Owns that count, by rule; a rule of another version that has the same id goes on with it. Not in
here: what a rate means for a decision (``pdp``). Time is an argument; nothing here is locked: it
belongs to one loop.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from goclaw.core.decisions import Verdict

if TYPE_CHECKING:
    from goclaw.policy.pdp import Policy

__all__ = ["Rates"]


class Rates:
    """The counts of one home. A decision counts when its rule allowed."""

    def __init__(self) -> None:
        self._times: dict[str, deque[int]] = {}

    def knows(self, rule_id: str) -> bool:
        """Has anything of that rule been counted?"""
        return rule_id in self._times

    def spent(self, policy: Policy, at_ms: int) -> tuple[str, ...]:
        """The rules of the policy that may allow nothing more at this moment."""
        return tuple(
            name
            for name, rate in policy.rated.items()
            if len(times := self._times.get(name, ())) >= rate.calls
            and times[-rate.calls] > at_ms - rate.per_s * 1000
        )

    def count(self, policy: Policy, rule_id: str, effect: str, at_ms: int) -> None:
        """A decision was made; it counts if its rule has a rate and allowed."""
        rate = policy.rated.get(rule_id)
        if rate is None or effect != Verdict.ALLOW:
            return
        times = self._times.setdefault(rule_id, deque())
        times.append(at_ms)
        while len(times) > rate.calls:
            times.popleft()
