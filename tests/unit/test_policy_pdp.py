"""The decision point: total, canonical first, deny over ask over allow, and able to say why."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
import textwrap
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.decisions import (
    ACTIONS,
    Context,
    Decision,
    Origin,
    Subject,
    SubjectKind,
    Taint,
    Verdict,
)
from goclaw.core.states import EffectClass
from goclaw.policy import document, pdp

pytestmark = pytest.mark.req("A-1")

RUN = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL, "s_1", "r_1", "t_1", 2)
PLAIN = Context()
CLIENT = Subject(SubjectKind.CLIENT, "editor-7", Origin.UNIX)


def load(text: str, home: str | None = None) -> pdp.Policy:
    return document.load("version = 1\n" + textwrap.dedent(text), home=home)


def one(effect: str, action: str, resources: str = "", more: str = "") -> str:
    """The text of a rule named after its effect."""
    what = f"resources = [{resources}]\n" if resources else ""
    return f'[[rule]]\nid = "{effect}"\neffect = "{effect}"\nactions = ["{action}"]\n{what}{more}\n'


def ask(
    policy: pdp.Policy, action: str, what: str, context: Context = PLAIN, subject: Subject = RUN
) -> Decision:
    return pdp.decide(
        policy, subject=subject, action=action, resource=what, context=context,
        decision_id="d_1", at_ms=1_700_000_000_123,
    )  # fmt: skip


def allowed(policy: pdp.Policy, action: str, what: str, **context: Any) -> bool:
    return ask(policy, action, what, Context(**context)).effect is Verdict.ALLOW


def test_a_decision_is_exactly_the_object_of_the_specification() -> None:
    policy = load(
        one("allow", "fs.read", '{ path = "/srv" }', 'reason = "because"\nobligations = ["notify"]')
    )
    context = Context(
        EffectClass.PURE, (Taint.UNTRUSTED,), risk=2, bytes=10, args_digest="ab", interactive=True,
        roots=("/srv",),
    )  # fmt: skip
    decision = ask(policy, "fs.read", "/srv//x/", context)
    assert decision.to_json() == {
        "decisionId": "d_1",
        "at": "2023-11-14T22:13:20.123Z",
        "subject": {
            "kind": "run", "id": "direct", "origin": "internal", "sessionId": "s_1",
            "runId": "r_1", "taskId": "t_1", "attempt": 2,
        },
        "action": "fs.read",
        "resource": "/srv/x",
        "context": {
            "effectClass": "pure", "taint": ["untrusted"], "risk": 2, "bytes": 10,
            "argsDigest": "ab",
        },
        "effect": "allow",
        "ruleId": "allow",
        "reason": "because",
        "policyVersion": policy.version,
        "obligations": ["notify"],
    }  # fmt: skip
    bare = ask(policy, "fs.read", "/", subject=CLIENT).to_json()
    assert "bytes" not in bare["context"]
    assert (bare["ruleId"], bare["obligations"]) == (pdp.DEFAULT, [])
    assert (bare["subject"]["sessionId"], bare["subject"]["attempt"]) == (None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.effect = Verdict.DENY  # type: ignore[misc]


def test_deny_over_ask_over_allow_whatever_the_order() -> None:
    rules = {
        effect: one(effect, "tool.call", '{ exact = "t" }') for effect in ("allow", "ask", "deny")
    }
    for order in (["allow", "ask", "deny"], ["deny", "ask", "allow"], ["ask", "deny", "allow"]):
        assert ask(load("".join(rules[name] for name in order)), "tool.call", "t").rule_id == "deny"
        two = [name for name in order if name != "deny"]
        assert ask(load("".join(rules[name] for name in two)), "tool.call", "t").rule_id == "ask"


def test_of_equals_the_first_rule_is_named() -> None:
    text = one("allow", "tool.call") + one("allow", "tool.call", '{ exact = "t" }')
    policy = load(text.replace('id = "allow"', 'id = "first"', 1))
    assert ask(policy, "tool.call", "t").rule_id == "first"


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (
            'exact = "/srv/a/../b/"',
            ["/srv/b", "/srv/b/", "/srv//b"],
            ["/srv/b/c", "/srv", "/srv/bb"],
        ),
        ('path = "/srv/a"', ["/srv/a", "/srv/a/b/c"], ["/srv/ab", "/srv", "/srv/a/../b", "/"]),
        ('path = "/"', ["/", "/a/b"], []),
        ('path = "{root}"', ["/p", "/p/x", "/q/r/x"], ["/px", "/", "/q", "/q/rx", "/p/../x"]),
        ('path = "{root}/src/"', ["/p/src", "/p/src/x", "/q/r/src/y"], ["/p", "/p/srcx", "/src"]),
        ('exact = "{root}"', ["/p", "/p/", "/q/r"], ["/p/x", "/q"]),
        ('exact = "{root}/x"', ["/p/x", "/q/r/x"], ["/p/x/y", "/x"]),
        ('prefix = "{root}/."', ["/p/.git", "/p/.git/config"], ["/p/a", "/p/a/.git", "/p"]),
        ('prefix = "/srv/se"', ["/srv/se", "/srv/secret/x"], ["/srv/s", "/srv"]),
        ('glob = "{root}/*.py"', ["/p/a.py", "/p/.py"], ["/p/a/b.py", "/p/a.pyc", "/a.py"]),
        ('glob = "/srv/**/x"', ["/srv/a/x", "/srv/a/b/x"], ["/srv/x", "/srv/ax"]),
        ('glob = "/srv/**"', ["/srv/a", "/srv/a/b"], ["/srv", "/srvx"]),
        ('path = "{home}"', ["/h", "/h/auth.token", "/p/../h/x"], ["/hx", "/"]),
        ('glob = "{home}/*.toml"', ["/h/policy.toml"], ["/h/a/policy.toml", "/h"]),
    ],
)
def test_patterns_of_paths(pattern: str, inside: list[str], outside: list[str]) -> None:
    policy = load(one("allow", "fs.read", f"{{ {pattern} }}"), home="/h/")
    for what in inside:
        assert allowed(policy, "fs.read", what, roots=("/p", "/q/r/")), what
    for what in outside:
        assert not allowed(policy, "fs.read", what, roots=("/p", "/q/r/")), what


def test_without_roots_or_home_the_placeholders_are_nothing() -> None:
    policy = load(one("allow", "fs.read", '{ path = "{root}" }, { path = "{home}" }'))
    for what in ("/", "/x", "{root}/x", "/{root}/x", "\0root/x", "\0home/x", "{home}"):
        assert not allowed(policy, "fs.read", what)


def test_a_home_at_the_top_does_not_close_everything() -> None:
    text = one("allow", "fs.read") + one("deny", "fs.read", '{ path = "{home}" }')
    assert allowed(load(text, home="/"), "fs.read", "/srv/x")
    assert not allowed(load(text, home="/srv"), "fs.read", "/srv/x")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (
            'host = "example.org"',
            ["https://example.org/", "https://a.b.EXAMPLE.org.:8443/x", "example.org:22"],
            ["https://badexample.org/", "https://org/", "https://example.org.evil.com/",
             "https://evil.com/example.org", "https://example.org@evil.com/"],
        ),
        ('host = "."', ["https://x/", "https://a.b/"], ["https://10.0.0.1/", "https://[::1]/"]),
        (
            'cidr = "10.0.0.0/9"',
            ["http://10.0.0.1/", "http://10.127.255.255/", "http://[::ffff:10.1.1.1]/",
             "http://167772161/", "http://012.1/"],
            ["http://10.128.0.0/", "http://11.0.0.1/", "http://10.0.0.1.example.org/",
             "http://[::10.0.0.1]/"],
        ),
        ('cidr = "fe80::/10"', ["http://[fe80::1]/", "http://[febf::1]/"], ["http://[fec0::1]/"]),
        ('cidr = "0.0.0.0/0"', ["http://1.2.3.4/"], ["http://[::1]/", "http://example.org/"]),
        (
            'prefix = "https://Api.example.org:443/v1/"',
            ["https://api.example.org/v1/x?q#f", "https://api.example.org/%76%31/"],
            ["https://api.example.org/v1/../v2/", "https://api.example.org:444/v1/",
             "http://api.example.org/v1/", "https://api.example.org/v1", "https://api.example.org/v10"],
        ),
        (
            'prefix = "https://example.org"',
            ["https://example.org/x"],
            ["https://example.org.evil.com/", "https://example.org:4433/"],
        ),
        ('exact = "https://example.org/a"', ["https://example.org/a?x"], ["https://example.org/a/"]),
    ],
)  # fmt: skip
@pytest.mark.req("A-4")
def test_patterns_of_addresses(pattern: str, inside: list[str], outside: list[str]) -> None:
    policy = load(one("allow", "net.connect", f"{{ {pattern} }}"))
    for what in inside:
        assert allowed(policy, "net.connect", what), what
    for what in outside:
        assert not allowed(policy, "net.connect", what), what


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ('exact = "npx"', ["npx"], ["/usr/bin/npx", "npx/", "np"]),
        ('path = "/usr/bin"', ["/usr/bin/npx", "/usr/bin/../bin/x"], ["npx", "/usr/bin/../x"]),
        ('path = "{root}/bin"', ["/p/bin/x"], ["/bin/x", "{root}/bin/x"]),
        ('glob = "mcp-*"', ["mcp-x"], ["/mcp-x", "mcp-x/y"]),
        ('host = "example.org"', ["https://a.example.org/mcp"], ["example.org", "/example.org"]),
        ('cidr = "127.0.0.0/8"', ["http://127.1:80/mcp"], ["127.0.0.1"]),
        (
            'prefix = "https://example.org/mcp"',
            ["https://example.org/mcp"],
            ["https://example.org/"],
        ),
    ],
)
def test_patterns_of_programs(pattern: str, inside: list[str], outside: list[str]) -> None:
    policy = load(one("allow", "mcp.start", f"{{ {pattern} }}"))
    for what in inside:
        assert allowed(policy, "mcp.start", what, roots=("/p",)), what
    for what in outside:
        assert not allowed(policy, "mcp.start", what, roots=("/p",)), what


def test_patterns_of_names() -> None:
    patterns = '{ exact = "a" }, { prefix = "b/" }, { glob = "c/*/d" }'
    policy = load(one("allow", "tool.call", patterns))
    for what in ("a", "b/", "b/x/y", "c/x/d"):
        assert allowed(policy, "tool.call", what)
    for what in ("A", "a ", "b", "c/d", "c/x/y/d", " a"):
        assert not allowed(policy, "tool.call", what)


def test_patterns_of_subjects() -> None:
    more = (
        'subjects = [{ kind = "client", origin = ["unix", "ws"], id = "ed*-7" }, { id = "x/**/y" }]'
    )
    policy = load(one("allow", "run.submit", "", more))

    def may(**changes: Any) -> bool:
        subject = dataclasses.replace(CLIENT, **changes)
        return ask(policy, "run.submit", "s", subject=subject).effect is Verdict.ALLOW

    assert may()
    assert may(origin=Origin.WS, id="ed-7")
    assert may(id="ed/x-7"), "in an id a star takes anything"
    assert may(kind=SubjectKind.WORKER, origin=Origin.INTERNAL, id="x//y")
    assert not may(kind=SubjectKind.RUN)
    assert not may(origin=Origin.STDIO)
    assert not may(id="editor-77")
    assert not may(id="x/y")


CONDITIONS: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = [
    ("interactive = true", [{"interactive": True}], [{}]),
    ("interactive = false", [{}], [{"interactive": True}]),
    ("tainted = true", [{"taint": (Taint.PRIVATE,)}, {"taint": (*Taint,)}], [{}]),
    ("tainted = false", [{}], [{"taint": (Taint.PRIVATE,)}]),
    (
        'tainted = ["untrusted", "private"]',
        [{"taint": (Taint.PRIVATE, Taint.UNTRUSTED, Taint.PRIVATE)}],
        [{}, {"taint": (Taint.PRIVATE,)}, {"taint": (Taint.UNTRUSTED,)}],
    ),
    ("risk_max = 3", [{"risk": 0}, {"risk": 3}], [{"risk": 4}, {}, {"risk": 2**53 - 1}]),
    ("bytes_max = 10", [{"bytes": 10}], [{"bytes": 11}, {}]),
    (
        'effect_class = ["pure", "keyed"]',
        [{"effect_class": EffectClass.PURE}, {"effect_class": EffectClass.KEYED}],
        [{"effect_class": EffectClass.PROBEABLE}, {}],
    ),
    ('effect_class = ["irreversible"]', [{}, {"effect_class": EffectClass.IRREVERSIBLE}], []),
    ('origin = ["internal"]', [{}], []),
    ('origin = ["unix"]', [], [{}]),
]


@pytest.mark.req("E-3", "A-11")
@pytest.mark.parametrize(
    ("text", "inside", "outside"), CONDITIONS, ids=[row[0] for row in CONDITIONS]
)
def test_conditions(text: str, inside: list[dict[str, Any]], outside: list[dict[str, Any]]) -> None:
    policy = load(one("allow", "tool.call", "", f"conditions = {{ {text} }}"))
    for context in inside:
        assert allowed(policy, "tool.call", "t", **context), context
    for context in outside:
        assert not allowed(policy, "tool.call", "t", **context), context


def test_what_is_no_effect_has_no_class() -> None:
    policy = load(
        one("allow", "run.submit", "", 'conditions = { effect_class = ["irreversible"] }')
    )
    assert not allowed(policy, "run.submit", "s")


OPEN = load(f'[[rule]]\nid = "open"\neffect = "allow"\nactions = {list(ACTIONS)}')


@pytest.mark.parametrize(
    ("action", "what", "why"),
    [
        ("fs.read", "", "empty"),
        ("fs.read", "a/b", "not absolute"),
        ("fs.read", "/a\0", "NUL"),
        ("fs.read", "/\udc80", "lone surrogate"),
        ("fs.read", "/" + "x" * 2000, "longer than 2000"),
        ("net.connect", "https://" + "a" * 64 + ".org/", "no host name"),
        ("net.connect", "https://user@example.org/", "names a user"),
        ("net.connect", "https://[fe80::1%eth0]/", "zone"),
        ("tool.call", "\ud800", "lone surrogate"),
        ("tool.call", "x" * 2001, "longer than 2000"),
        ("mcp.start", "https://exa mple/", "printable ASCII"),
        ("\ud800", "x", "no such action"),
        ("x" * 5000, "x", "no such action"),
    ],
)
def test_what_has_no_canonical_form_is_denied_not_raised(action: str, what: str, why: str) -> None:
    decision = ask(OPEN, action, what)
    assert (decision.effect, decision.rule_id) == (Verdict.DENY, pdp.MALFORMED)
    assert why in decision.reason
    assert len(decision.resource) <= limits.LABEL_CHARS_MAX
    orjson.dumps(decision.to_json())


@pytest.mark.req("I-7")
def test_a_refused_url_leaves_its_credentials_behind() -> None:
    for what in (
        "https://me:hunter2@example.org/x",
        "https://exa mple.org/?key=hunter2",
        "a://b#hunter2\n",
    ):
        decision = ask(OPEN, "net.connect", what)
        assert decision.rule_id == pdp.MALFORMED
        assert "hunter2" not in orjson.dumps(decision.to_json()).decode()


@pytest.mark.parametrize(
    ("context", "subject"),
    [
        (Context(risk=-1), RUN),
        (Context(bytes=2**53), RUN),
        (Context(args_digest="\ud800"), RUN),
        (Context(taint=("odd",)), RUN),  # type: ignore[arg-type]
        (Context(effect_class="odd"), RUN),  # type: ignore[arg-type]
        (Context(), dataclasses.replace(RUN, id="")),
        (Context(), dataclasses.replace(RUN, id="\ud800")),
        (Context(), dataclasses.replace(RUN, id="x" * 2001)),
        (Context(), dataclasses.replace(RUN, session_id="\ud800")),
        (Context(), dataclasses.replace(RUN, task_id="")),
        (Context(), dataclasses.replace(RUN, kind="odd")),  # type: ignore[arg-type]
        (Context(), dataclasses.replace(RUN, origin="\ud800")),  # type: ignore[arg-type]
    ],
)
def test_so_are_impossible_subjects_and_circumstances(context: Context, subject: Subject) -> None:
    assert ask(OPEN, "tool.call", "t").effect is Verdict.ALLOW
    decision = ask(OPEN, "tool.call", "t", context, subject)
    assert (decision.effect, decision.rule_id) == (Verdict.DENY, pdp.MALFORMED)
    orjson.dumps(decision.to_json())


@pytest.mark.req("I-5")
def test_roots_are_bounded_and_canonical() -> None:
    policy = load(one("allow", "fs.read"))
    assert allowed(policy, "fs.read", "/x", roots=("/a",) * limits.ROOTS_MAX)
    assert not allowed(policy, "fs.read", "/x", roots=("/a",) * (limits.ROOTS_MAX + 1))
    assert not allowed(policy, "fs.read", "/x", roots=("relative",))
    policy = load(one("allow", "fs.read", '{ path = "{root}" }'))
    assert allowed(policy, "fs.read", "/a/x", roots=("//b/..//a/",))


anything = st.one_of(st.text(), st.text(st.characters(categories=["Cs", "Cc", "Ll", "Po", "Nd"])))


@given(
    st.sampled_from(list(ACTIONS)),
    st.one_of(anything, st.tuples(st.sampled_from(["/", "https://", "a:"]), anything).map("".join)),
    anything,
    st.none() | st.integers(),
    st.none() | st.integers(),
    st.lists(anything, max_size=2).map(tuple),
)
@pytest.mark.req("A-14")
def test_every_request_gets_a_decision_that_can_be_sent(
    action: str, what: str, who: str, risk: int | None, size: int | None, roots: tuple[str, ...]
) -> None:
    context = Context(risk=risk, bytes=size, roots=roots)
    decision = ask(OPEN, action, what, context, Subject(SubjectKind.RUN, who, Origin.INTERNAL))
    assert orjson.loads(orjson.dumps(decision.to_json()))["reason"]
    if decision.effect is Verdict.ALLOW:
        again = ask(OPEN, action, decision.resource, context)
        assert again.resource == decision.resource, "the canonical form is its own canonical form"


# -- against a reading of the rules, without compilation -------------------------------------------


def reads(policy: pdp.Policy, subject: Subject, action: str, what: str, context: Context) -> str:
    """The rule that decides by the words of docs/policy.md; names and ids without stars only."""
    order = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}
    found = []
    for number, rule in enumerate(policy.rules):
        one, taint = rule.conditions, set(context.taint)
        subjects = any(
            subject.kind in who.kinds and subject.origin in who.origins
            and fnmatch.fnmatchcase(subject.id, who.id)
            for who in rule.subjects
        )  # fmt: skip
        resources = not rule.resources or any(
            {"exact": what == each.text, "prefix": what.startswith(each.text)}[each.kind]
            for each in rule.resources
        )
        taints: dict[Any, bool] = {None: True, True: bool(taint), False: not taint}
        labels = one.tainted if isinstance(one.tainted, tuple) else None
        risk, size = (math.inf if n is None else n for n in (context.risk, context.bytes))
        if (
            action in rule.actions and subjects and resources
            and (one.interactive is None or one.interactive == context.interactive)
            and (one.effect_class is None
                 or (context.effect_class or EffectClass.IRREVERSIBLE) in one.effect_class)
            and (one.origin is None or subject.origin in one.origin)
            and (taints[one.tainted] if labels is None else set(labels) <= taint)
            and (one.risk_max is None or risk <= one.risk_max)
            and (one.bytes_max is None or size <= one.bytes_max)
        ):  # fmt: skip
            found.append((order[rule.effect], number, rule.id))
    return min(found)[2] if found else pdp.DEFAULT


def subset(members: Any) -> Any:
    return st.lists(st.sampled_from(list(members)), min_size=1, max_size=3, unique=True).map(tuple)


names = st.sampled_from(["a", "ab", "b/a", "b/ab"])
some_rules = st.lists(
    st.builds(
        pdp.Rule,
        id=st.just("r"),
        effect=st.sampled_from(Verdict),
        actions=subset(["tool.call", "mcp.call"]),
        subjects=st.lists(
            st.builds(
                pdp.SubjectPattern,
                subset(SubjectKind),
                subset(Origin),
                st.sampled_from(["*", "a", "a*"]),
            ),
            min_size=1,
            max_size=2,
        ).map(tuple),
        resources=st.lists(
            st.builds(
                pdp.ResourcePattern,
                st.sampled_from([pdp.ResourceKind.EXACT, pdp.ResourceKind.PREFIX]),
                names,
            ),
            max_size=2,
        ).map(tuple),
        conditions=st.builds(
            pdp.Conditions,
            effect_class=st.none() | subset(EffectClass),
            origin=st.none() | subset(Origin),
            interactive=st.none() | st.booleans(),
            tainted=st.none() | st.booleans() | subset(Taint),
            risk_max=st.none() | st.integers(0, 3),
            bytes_max=st.none() | st.integers(0, 3),
        ),
    ),
    min_size=1,
    max_size=12,
)


@given(st.data(), some_rules)
def test_compiled_rules_mean_what_the_words_say(data: st.DataObject, found: list[pdp.Rule]) -> None:
    named = [dataclasses.replace(rule, id=f"r{number}") for number, rule in enumerate(found)]
    policy = pdp.compile_policy(named)
    for rule in named:
        subject = Subject(
            data.draw(st.sampled_from(rule.subjects[0].kinds) | st.sampled_from(SubjectKind)),
            data.draw(st.sampled_from(["a", "ab", "b"])),
            data.draw(st.sampled_from(rule.subjects[0].origins) | st.sampled_from(Origin)),
        )
        context = Context(
            effect_class=data.draw(st.none() | st.sampled_from(EffectClass)),
            taint=data.draw(st.sampled_from([(), (*Taint,), *((label,) for label in Taint)])),
            risk=data.draw(st.none() | st.integers(0, 4)),
            bytes=data.draw(st.none() | st.integers(0, 4)),
            interactive=data.draw(st.booleans()),
        )
        what = rule.resources[0].text if rule.resources else "b/abc"
        says = reads(policy, subject, rule.actions[0], what, context)
        assert ask(policy, rule.actions[0], what, context, subject).rule_id == says


# -- explanation -----------------------------------------------------------------------------------


def explain(
    policy: pdp.Policy, action: str, what: str, context: Context, subject: Subject = RUN
) -> Any:
    return pdp.explain(
        policy, subject=subject, action=action, resource=what, context=context,
        decision_id="d_1", at_ms=0,
    )  # fmt: skip


@pytest.mark.req("A-3")
def test_an_explanation_names_the_rule_and_what_the_others_missed() -> None:
    policy = load(
        one("allow", "fs.write", '{ path = "{root}" }', "conditions = { interactive = true }")
        + one("ask", "fs.write", '{ path = "/srv" }', 'subjects = [{ kind = "client" }]')
        + one("deny", "fs.read")
    )
    said = explain(policy, "fs.write", "/p/x", Context(interactive=True, roots=("/p",)))
    assert (said.decision.effect, said.rule) == (Verdict.ALLOW, policy.rules[0])
    assert [(near.rule.id, near.misses) for near in said.near] == [
        ("ask", ("subjects", "resources"))
    ]
    said = explain(policy, "fs.write", "/srv/x", Context(roots=("/srv",)))
    assert (said.decision.rule_id, said.rule) == (pdp.DEFAULT, None)
    assert [(near.rule.id, near.misses) for near in said.near] == [
        ("allow", ("interactive",)),
        ("ask", ("subjects",)),
    ]
    assert explain(policy, "fs.write", "srv", Context()).near == ()


@pytest.mark.req("A-3")
@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ("risk_max = 1", Context(risk=2)),
        ("bytes_max = 1", Context(bytes=2)),
        ("tainted = true", Context()),
        ('effect_class = ["pure"]', Context()),
        ('origin = ["unix"]', Context()),
    ],
)
def test_each_condition_is_named_when_missed(condition: str, context: Context) -> None:
    policy = load(one("allow", "tool.call", "", f"conditions = {{ {condition} }}"))
    (near,) = explain(policy, "tool.call", "t", context).near
    assert near.misses == (re.match(r"\w+", condition)[0],)  # type: ignore[index]


def test_an_explanation_decides_as_the_decision_does() -> None:
    policy = load(one("allow", "tool.call", '{ exact = "t" }') + one("deny", "tool.call"))
    said = explain(policy, "tool.call", "t", Context())
    assert (said.decision.rule_id, said.near) == ("deny", ()), "an overruled rule missed nothing"
