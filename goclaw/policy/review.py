"""What a valid policy would surprise its author with: rules that never decide, a locked door.

Owns those warnings. Not in here: faults, for which a policy is refused (``document``).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from goclaw.core.decisions import Context, Origin, Subject, SubjectKind, Verdict
from goclaw.policy import pdp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Warned", "review"]

_AUTHOR: Final = Subject(SubjectKind.CLIENT, "-", Origin.UNIX)
_DOORS: Final = (
    ("protocol.call", "_goclaw/admin/policy"),
    ("admin.policy", "reload"),
    ("protocol.call", "_goclaw/approvals/resolve"),
    ("approval.answer", "any"),
)
"""What a person needs to take a policy back and to answer what it asks."""

_STRICTNESS: Final = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}


class Warned(NamedTuple):
    """One sentence about a line; line 0 is about the whole."""

    line: int
    message: str


def review(policy: pdp.Policy, *, at_ms: int) -> list[Warned]:
    """Every warning, in the order of the file; ``at_ms``: for rules that hold at times only."""
    return sorted([*_locked_out(policy, at_ms), *_idle(policy.rules)])


def _locked_out(policy: pdp.Policy, at_ms: int) -> Iterator[Warned]:
    for action, resource in _DOORS:
        decision = pdp.decide(
            policy, subject=_AUTHOR, action=action, resource=resource, context=Context(),
            decision_id="-", at_ms=at_ms,
        )  # fmt: skip
        if decision.effect is not Verdict.ALLOW:
            line = next((one.line for one in policy.rules if one.id == decision.rule_id), 0)
            yield Warned(
                line,
                f"this policy locks you out: your own clients may not {action} {resource} "
                f"({decision.effect} by {decision.rule_id}); only a restart of the daemon with "
                "another file gets you in again",
            )


def _idle(rules: tuple[pdp.Rule, ...]) -> Iterator[Warned]:
    """Rules that a stricter one covers wherever they apply."""
    anybody, always = frozenset([pdp.SubjectPattern()]), pdp.Conditions()
    known: dict[tuple[Any, ...], pdp.Rule] = {}

    def over(rule: pdp.Rule, action: str) -> pdp.Rule | None:
        scopes = itertools.product(
            (action,),
            (frozenset(rule.subjects), anybody),
            (frozenset(rule.resources), frozenset()),
            (rule.conditions, always),
        )
        found = [known[scope] for scope in scopes if scope in known]
        return next((one for one in found if one.effect is not rule.effect), None)

    for rule in sorted(rules, key=lambda one: _STRICTNESS[one.effect]):
        covers = [over(rule, action) for action in rule.actions]
        other = next(iter(covers), None)
        if other is not None and None not in covers:
            yield Warned(
                rule.line,
                f"rule {rule.id!r} never decides: {other.id!r} (line {other.line}, "
                f"{other.effect}) applies wherever it does",
            )
        scope = (frozenset(rule.subjects), frozenset(rule.resources), rule.conditions)
        for action in rule.actions:
            known.setdefault((action, *scope), rule)
