"""Nothing happens that no rule allows: the promise before any tool exists (promise 4, A-1)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core.decisions import (
    ACTIONS,
    Context,
    Decision,
    Origin,
    ResourceForm,
    Subject,
    SubjectKind,
    Taint,
    Verdict,
)
from goclaw.core.states import EffectClass
from goclaw.policy import default, document, pdp

pytestmark = pytest.mark.req("A-1", "I-6")

EMPTY = document.load("version = 1\n")
DEFAULT = document.load(default.TEXT, home="/home/u/.goclaw")

RESOURCES = {
    ResourceForm.NAME: "builtin/word-count",
    ResourceForm.PATH: "/home/u/project/file",
    ResourceForm.ADDRESS: "https://example.org/",
    ResourceForm.PROGRAM: "/usr/bin/true",
}

# whatever a caller could hand over, and plenty that no caller should
anything = st.one_of(st.text(), st.text(st.characters(categories=["Cs", "Cc", "Lu", "Po", "Nd"])))
subjects = st.builds(
    Subject,
    kind=st.sampled_from(SubjectKind),
    id=anything,
    origin=st.sampled_from(Origin),
    session_id=st.none() | anything,
    run_id=st.none() | anything,
    task_id=st.none() | anything,
    attempt=st.none() | st.integers(1, 9),
)
contexts = st.builds(
    Context,
    effect_class=st.none() | st.sampled_from(EffectClass),
    taint=st.lists(st.sampled_from(Taint), max_size=3).map(tuple),
    risk=st.none() | st.integers(),
    bytes=st.none() | st.integers(),
    args_digest=st.none() | anything,
    interactive=st.booleans(),
    roots=st.lists(st.just("/home/u/project") | anything, max_size=3).map(tuple),
)


def ask(policy: pdp.Policy, subject: Subject, action: str, what: str, context: Context) -> Decision:
    return pdp.decide(
        policy, subject=subject, action=action, resource=what, context=context,
        decision_id="d_1", at_ms=0,
    )  # fmt: skip


def test_an_empty_policy_denies_every_action_of_everybody() -> None:
    count = 0
    for row, kind, origin in itertools.product(ACTIONS.values(), SubjectKind, Origin):
        subject = Subject(kind, "x", origin)
        context = Context(interactive=True, risk=0, bytes=0, roots=("/home/u/project",))
        decision = ask(EMPTY, subject, row.name, RESOURCES[row.resource], context)
        assert (decision.effect, decision.rule_id) == (Verdict.DENY, pdp.DEFAULT)
        assert decision.reason
        count += 1
    assert count == len(ACTIONS) * len(SubjectKind) * len(Origin)


@given(subjects, anything | st.sampled_from(list(ACTIONS)), anything, contexts)
def test_no_request_at_all_gets_through_an_empty_policy(
    subject: Subject, action: str, what: str, context: Context
) -> None:
    assert ask(EMPTY, subject, action, what, context).effect is Verdict.DENY


@pytest.mark.parametrize(
    "action", ["", "fs", "fs.", "fs.read ", "FS.READ", "admin.*", "admin.", "*"]
)
def test_an_action_that_does_not_exist_is_denied(action: str) -> None:
    client = Subject(SubjectKind.CLIENT, "me", Origin.UNIX)
    context = Context(interactive=True, roots=("/home/u/project",))
    decision = ask(DEFAULT, client, action, "/home/u/project/file", context)
    assert (decision.effect, decision.rule_id) == (Verdict.DENY, pdp.MALFORMED)


@pytest.mark.req("A-2")
def test_the_default_policy_gives_a_skill_nothing_of_its_host() -> None:
    for row, origin in itertools.product(ACTIONS.values(), Origin):
        context = Context(interactive=True, risk=0, bytes=0, roots=("/home/u/project",))
        skill = Subject(SubjectKind.SKILL, "word-count", origin)
        decision = ask(DEFAULT, skill, row.name, RESOURCES[row.resource], context)
        assert decision.effect is Verdict.DENY, row.name


def test_one_rule_opens_no_more_than_it_says() -> None:
    policy = document.load(
        """
        version = 1
        [[rule]]
        id = "one"
        effect = "allow"
        actions = ["fs.read"]
        subjects = [{ kind = "run", origin = "internal", id = "direct" }]
        resources = [{ exact = "/srv/file" }]
        """
    )
    run = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL)
    assert ask(policy, run, "fs.read", "/srv/file", Context()).effect is Verdict.ALLOW
    others = [
        (Subject(SubjectKind.CLIENT, "direct", Origin.INTERNAL), "fs.read", "/srv/file"),
        (Subject(SubjectKind.RUN, "direc", Origin.INTERNAL), "fs.read", "/srv/file"),
        (Subject(SubjectKind.RUN, "direct", Origin.WS), "fs.read", "/srv/file"),
        (run, "fs.write", "/srv/file"),
        (run, "fs.read", "/srv/file2"),
        (run, "fs.read", "/srv/file/x"),
        (run, "fs.read", "/srv"),
    ]
    for subject, action, what in others:
        assert ask(policy, subject, action, what, Context()).effect is Verdict.DENY
