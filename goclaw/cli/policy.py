"""`goclaw policy`: check, explain and show read the file; reload, history and test ask the daemon.

Owns the reading of SUBJECT and how a decision is shown. Not in here: deciding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core.clock import SystemClock
from goclaw.core.decisions import ACTIONS, Context, Origin, ResourceForm, Subject, SubjectKind
from goclaw.core.errors import PolicyRefused, UsageError
from goclaw.core.files import absolute
from goclaw.core.home import policy_text
from goclaw.policy import default, document, pdp, review
from goclaw.protocol.methods import NAMES

if TYPE_CHECKING:
    import argparse

    from goclaw.core.home import Home

__all__ = ["check", "explain", "history", "reload", "show_rules", "test"]


def check(options: argparse.Namespace) -> int:
    """0 when the file is a policy; else every fault with its line, exit 3."""
    home = home_of(options)
    path = Path(options.file) if options.file else home.policy
    try:
        policy = _load(home, path)
    except PolicyRefused as error:
        for problem in error.data.get("problems", ())[1:]:
            show.tell(f"{path} line {problem['line']}: {problem['message']}")
        raise
    print(f"{path}: {len(policy.rules)} rules, version {policy.version}")
    for warned in review.review(policy, at_ms=SystemClock().wall_ms()):
        show.tell(f"warning: {path} line {warned.line}: {warned.message}")
    return 0


def reload(options: argparse.Namespace) -> int:
    """Read policy.toml again; a faulty one is refused, exit 3, and the one in force stays."""
    with Place(home_of(options)) as client:
        found = client.call("_goclaw/admin/policy", {"verb": "reload"})
    for warned in found["warnings"]:
        show.tell(f"warning: line {warned['line']}: {warned['message']}")
    if options.json:
        show.json_line(found)
    else:
        print(f"version {found['version']}" + ("" if found["changed"] else ", as before"))
    return 0


def history(options: argparse.Namespace) -> int:
    """Which version was in force since when, newest first."""
    versions, after = [], None
    with Place(home_of(options)) as client:
        while True:
            params = {"verb": "history", "after": after}
            page = client.call("_goclaw/admin/policy", params)
            versions += page["versions"]
            after = page.get("next")
            if after is None:
                break
    if options.json:
        for version in versions:
            show.json_line(version)
        return 0
    show.table(
        ("since", "version", "by"), ((one["at"], one["version"], one["by"]) for one in versions)
    )
    return 0


def test(options: argparse.Namespace) -> int:
    """Decide again, by the policy of FILE, what is on record; say what it would change."""
    text = policy_text(Path(options.file))
    with Place(home_of(options)) as client:
        found = client.call(
            "_goclaw/admin/policy", {"verb": "test", "text": text, "withinMs": options.since}
        )
    for warned in found["warnings"]:
        show.tell(f"warning: {options.file} line {warned['line']}: {warned['message']}")
    if options.json:
        for flip in found["flips"]:
            show.json_line(flip)
        return 0
    for flip in found["flips"]:
        print(
            f"{flip['was']} -> {flip['now']}  {flip['count']}x {flip['action']} "
            f"{show.one_line(flip['resource'])} by {flip['subject']} "
            f"({flip['wasRule']} -> {flip['nowRule']})"
        )
    changed = sum(flip["count"] for flip in found["flips"])
    skipped = f"; {found['skipped']} could not be made again" if found["skipped"] else ""
    print(f"{found['decisions']} decisions made again: {changed} differ{skipped}")
    return 0


def show_rules(options: argparse.Namespace) -> int:
    """The rules in the order of the file."""
    home = home_of(options)
    policy = _load(home, home.policy)
    if options.json:
        for rule in policy.rules:
            show.json_line(
                {
                    "id": rule.id,
                    "effect": str(rule.effect),
                    "actions": list(rule.actions),
                    "reason": rule.reason,
                    "line": rule.line,
                    "policyVersion": policy.version,
                }
            )
        return 0
    print(f"version {policy.version}")
    show.table(
        ("line", "rule", "effect", "actions", "reason"),
        ((r.line, r.id, r.effect, _short(r.actions), r.reason) for r in policy.rules),
    )
    return 0


def explain(options: argparse.Namespace) -> int:
    """What would be decided for a session that works in the present directory."""
    home = home_of(options)
    policy = _load(home, home.policy)
    subject, resource = _subject(options.subject), options.resource
    action = ACTIONS.get(options.action)
    if action is None:
        raise UsageError(
            f"There is no action {options.action[:80]!r}.", hint=f"Actions: {', '.join(ACTIONS)}."
        )
    here = os.path.realpath(absolute())
    if action.resource is ResourceForm.PATH and resource:
        resource = os.path.realpath(resource)
    clock = SystemClock()
    explanation = pdp.explain(
        policy, subject=subject, action=action.name, resource=resource,
        context=Context(interactive=True, roots=(here,)),
        decision_id=clock.new_id("decision"), at_ms=clock.wall_ms(),
    )  # fmt: skip
    decision = explanation.decision
    if options.json:
        show.json_line(decision.to_json())
        return 0
    print(f"{decision.effect}: {decision.reason}")
    line = "" if explanation.rule is None else f", line {explanation.rule.line}"
    print(f"rule {decision.rule_id}{line} of policy {policy.version[:12]}")
    print(f"{decision.action} {decision.resource} by {subject.kind}/{subject.id}@{subject.origin}")
    if decision.obligations:
        print(f"obligations: {', '.join(decision.obligations)}")
    for near in explanation.near:
        print(f"did not apply: {near.rule.id} ({near.rule.effect}), for its "
              f"{' and '.join(near.misses)}")  # fmt: skip
    return 0


def _load(home: Home, path: Path) -> pdp.Policy:
    """The policy of a file; the default one where the home has none yet."""
    is_new = path == home.policy and not path.exists()
    text = default.TEXT if is_new else policy_text(path)
    return document.load(text, home=os.path.realpath(home.root), name=str(path), methods=NAMES)


def _subject(text: str) -> Subject:
    """KIND[/ID][@ORIGIN]; a client comes over the Unix socket, all others from inside."""
    kind_and_id, _, origin = text.partition("@")
    kind, _, name = kind_and_id.partition("/")
    try:
        found = SubjectKind(kind)
        usual = Origin.UNIX if found is SubjectKind.CLIENT else Origin.INTERNAL
        return Subject(found, name or "-", Origin(origin) if origin else usual)
    except ValueError:
        kinds, origins = ", ".join(SubjectKind), ", ".join(Origin)
        raise UsageError(
            f"{text[:80]!r} is no subject: KIND[/ID][@ORIGIN].",
            hint=f"Kinds: {kinds}. Origins: {origins}.",
        ) from None


def _short(names: tuple[str, ...]) -> str:
    text = " ".join(names)
    return text if len(text) <= 60 else text[:57] + "..."
