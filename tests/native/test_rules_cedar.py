"""Cedar as an oracle: where the two languages meet, both allow the same requests.

They meet in permit and forbid with deny over allow and deny by default, in texts with wildcards, in
equality, sets of labels and bounds. Cedar has no ask, no canonical forms and no trees of hosts.
Requests are derived from the rules with at most one field changed.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from goclaw.core.decisions import Context, Origin, Subject, SubjectKind, Taint, Verdict
from goclaw.core.states import EffectClass
from goclaw.policy import pdp

cedarpy: Any = pytest.importorskip("cedarpy", reason="the oracle is not installed")

pytestmark = pytest.mark.req("A-1")

POLICIES = int(os.environ.get("GOCLAW_CEDAR_POLICIES", "40"))
REQUESTS = 60
SEED = 11
ACTIONS = ("tool.call", "mcp.call", "secret.use")
WORDS = ("a", "b", "ab", "a/b", "b/a", "a/ab/b", "x")
KINDS, ORIGINS = tuple(SubjectKind), tuple(Origin)
CLASSES = tuple(EffectClass)


def rule(chance: random.Random, number: int) -> pdp.Rule:
    def some(members: Any) -> Any:
        return tuple(chance.sample(members, chance.randint(1, len(members))))

    def maybe(value: Any, odds: float = 0.3) -> Any:
        return value if chance.random() < odds else None

    resources = []
    for _ in range(chance.choice([0, 1, 1, 2])):
        kind = chance.choice(
            [pdp.ResourceKind.EXACT, pdp.ResourceKind.PREFIX, pdp.ResourceKind.GLOB]
        )
        words = chance.choice(WORDS)
        if kind is pdp.ResourceKind.GLOB:
            words = chance.choice(["**", f"{words}**", f"**{words}", f"a**{words}**"])
        resources.append(pdp.ResourcePattern(kind, words))
    return pdp.Rule(
        id=f"r{number}",
        effect=chance.choice([Verdict.ALLOW, Verdict.ALLOW, Verdict.DENY]),
        actions=some(ACTIONS),
        subjects=tuple(
            pdp.SubjectPattern(
                maybe(some(KINDS), 0.5) or KINDS, maybe(some(ORIGINS), 0.5) or ORIGINS,
                chance.choice(["*", "a*", "*b", "a", "a*b"]),
            )
            for _ in range(chance.choice([1, 1, 2]))
        ),
        resources=tuple(resources),
        conditions=pdp.Conditions(
            effect_class=maybe(some(CLASSES)), interactive=maybe(chance.random() < 0.5),
            tainted=maybe(chance.choice([True, False, (Taint.PRIVATE,), tuple(Taint)])),
            risk_max=maybe(chance.randint(0, 4)), bytes_max=maybe(chance.randint(0, 100)),
        ),
    )  # fmt: skip


def cedar(one: pdp.Rule) -> str:
    """The rule in Cedar's words; every request carries all that is asked for here."""

    def either(parts: list[str]) -> str:
        return "(" + " || ".join(parts) + ")"

    def labels(names: Any) -> str:
        return "[" + ", ".join(json.dumps(str(name)) for name in names) + "]"

    whos = [
        f"({labels(who.kinds)}.contains(context.kind) && {labels(who.origins)}"
        f".contains(context.origin) && context.who like {json.dumps(who.id)})"
        for who in one.subjects
    ]
    parts = [either(whos)]
    likes = {"exact": "", "prefix": "*", "glob": ""}
    if one.resources:
        parts.append(
            either(
                [
                    "context.what like "
                    + json.dumps(what.text.replace("**", "*") + likes[what.kind])
                    for what in one.resources
                ]
            )
        )
    conditions = one.conditions
    if conditions.effect_class is not None:
        parts.append(f"{labels(conditions.effect_class)}.contains(context.class)")
    if conditions.interactive is not None:
        parts.append(f"context.interactive == {str(conditions.interactive).lower()}")
    if isinstance(conditions.tainted, tuple):
        parts.append(f"context.taint.containsAll({labels(conditions.tainted)})")
    elif conditions.tainted is not None:
        mark = "!" if conditions.tainted else ""
        parts.append(f"{mark}context.taint.isEmpty()")
    for name in ("risk", "bytes"):
        most = getattr(conditions, f"{name}_max")
        if most is not None:
            parts.append(f"context has {name} && context.{name} <= {most}")
    effect = "permit" if one.effect is Verdict.ALLOW else "forbid"
    actions = ", ".join(f'Action::"{action}"' for action in one.actions)
    when = " && ".join(f"({part})" for part in parts)
    return f"{effect}(principal, action in [{actions}], resource) when {{ {when} }};"


def request(chance: random.Random, of: pdp.Rule) -> tuple[Subject, str, str, Context]:
    who = chance.choice(of.subjects)
    conditions = of.conditions
    filler = chance.choice(["", "a", "b", "/", "a/b"])
    what = chance.choice(WORDS)
    if of.resources:
        pattern = chance.choice(of.resources)
        what = pattern.text.replace("**", filler)
        what += filler if pattern.kind is pdp.ResourceKind.PREFIX else ""
    taint: tuple[Taint, ...] = ()
    if conditions.tainted is True:
        taint = (Taint.UNTRUSTED,)
    elif conditions.tainted:
        taint = conditions.tainted
    asked: dict[str, Any] = {
        "kind": chance.choice(who.kinds), "origin": chance.choice(who.origins),
        "id": who.id.replace("*", filler) or "a", "action": chance.choice(of.actions),
        "what": what or "a", "class": chance.choice(conditions.effect_class or CLASSES),
        "interactive": bool(conditions.interactive), "taint": taint,
        "risk": conditions.risk_max, "bytes": conditions.bytes_max,
    }  # fmt: skip
    others: dict[str, Any] = {
        "kind": KINDS, "origin": ORIGINS, "id": WORDS, "action": ACTIONS, "what": WORDS,
        "class": CLASSES, "interactive": (True, False),
        "taint": ((), (Taint.PRIVATE,), tuple(Taint)),
        "risk": (None, 0, 2, 5), "bytes": (None, 0, 50, 101),
    }  # fmt: skip
    changed = chance.choice([None, *others])
    if changed is not None:
        asked[changed] = chance.choice(others[changed])
    context = Context(
        asked["class"], asked["taint"], asked["risk"], asked["bytes"], None, asked["interactive"]
    )
    subject = Subject(asked["kind"], asked["id"], asked["origin"])
    return subject, asked["action"], asked["what"], context


def test_cedar_allows_what_we_allow() -> None:
    chance = random.Random(SEED)
    seen = {True: 0, False: 0}
    for _ in range(POLICIES):
        rules = [rule(chance, number) for number in range(chance.randint(1, 12))]
        policy = pdp.compile_policy(rules)
        theirs = cedarpy.PolicySet.from_str("\n".join(cedar(one) for one in rules))
        entities = cedarpy.Entities.from_json_str("[]")
        for _ in range(REQUESTS):
            subject, action, what, context = request(chance, chance.choice(rules))
            decision = pdp.decide(
                policy, subject=subject, action=action, resource=what, context=context,
                decision_id="d", at_ms=0,
            )  # fmt: skip
            figures = {"risk": context.risk, "bytes": context.bytes}
            facts = {
                "kind": str(subject.kind), "origin": str(subject.origin), "who": subject.id,
                "what": what, "class": str(context.effect_class),
                "interactive": context.interactive, "taint": [str(one) for one in context.taint],
                **{name: value for name, value in figures.items() if value is not None},
            }  # fmt: skip
            asked = {
                "principal": 'User::"u"', "action": f'Action::"{action}"', "resource": 'R::"r"',
                "context": facts,
            }  # fmt: skip
            answer = cedarpy.is_authorized(asked, theirs, entities)
            assert not answer.diagnostics.errors, answer.diagnostics.errors
            says = decision.effect is Verdict.ALLOW
            assert says == answer.allowed, (subject, action, what, context, decision.rule_id)
            seen[says] += 1
    assert min(seen.values()) > POLICIES * REQUESTS // 10, seen
