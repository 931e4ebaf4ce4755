"""What one decision lets happen, as an object: who has none opens, dials and starts nothing (A-2).

Owns the object and how a decision becomes one. Not in here: the decisions (policy), and who makes
an object of them (the gate, once a call is carried out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from goclaw.core.decisions import Verdict
from goclaw.core.errors import NoCapability

if TYPE_CHECKING:
    from collections.abc import Iterable

    from goclaw.core.decisions import Decision

__all__ = ["Capability", "capabilities"]


@dataclass(frozen=True, slots=True)
class Capability:
    """The right to one action on one resource, by one decision. Made by ``capabilities`` only."""

    action: str
    resource: str
    """In canonical form: this is opened, dialled or started, not what was asked for."""
    decision_id: str

    def use(self, action: str) -> str:
        """The resource; NoCapability when the right is to something else."""
        if action != self.action:
            raise NoCapability(
                f"{action} was tried with the right to {self.action} on {self.resource}.",
                hint="Nothing happened; this is a fault of the tool.",
            )
        return self.resource


def capabilities(
    decisions: Iterable[Decision], *, answered: bool = False
) -> tuple[Capability, ...]:
    """One for each decision, in their order. ``answered``: a person said yes to what they ask.
    NoCapability when one of them does not let it happen."""
    found = []
    for decision in decisions:
        if decision.effect is not Verdict.ALLOW and not (
            answered and decision.effect is Verdict.ASK
        ):
            raise NoCapability(
                f"{decision.action} on {decision.resource} was not allowed: {decision.reason}.",
                hint="`goclaw policy explain` says which rule decides.",
            )
        found.append(Capability(decision.action, decision.resource, decision.decision_id))
    return tuple(found)
