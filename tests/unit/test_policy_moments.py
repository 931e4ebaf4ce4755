"""Rules that hold at times, up to a rate, or never: the conditions of the moment, and warnings."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import PolicyRefused
from goclaw.policy import default, document, pdp, rates, review

pytestmark = pytest.mark.req("A-3")

RUN = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL)
RULE = '[[rule]]\nid = "a"\neffect = "allow"\nactions = ["tool.call"]\n'
DAY_MS = 24 * 3_600_000


def load(text: str) -> pdp.Policy:
    return document.load("version = 1\n" + textwrap.dedent(text))


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def ask(policy: pdp.Policy, at_ms: int, *spent: str, action: str = "tool.call") -> Decision:
    return pdp.decide(
        policy, subject=RUN, action=action, resource="t", context=Context(), decision_id="d",
        at_ms=at_ms, spent=spent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("time", "moment", "holds"),
    [
        ('{ from = "08:00", to = "18:00" }', "2026-11-23T08:00", True),
        ('{ from = "08:00", to = "18:00" }', "2026-11-23T07:59:59", False),
        ('{ from = "08:00", to = "18:00" }', "2026-11-23T18:00", False),
        ('{ from = "08:00", to = "18:00", days = ["mon"] }', "2026-11-23T12:00", True),
        ('{ from = "08:00", to = "18:00", days = ["tue"] }', "2026-11-23T12:00", False),
        # over midnight it belongs to the day on which it began
        ('{ from = "22:00", to = "06:00", days = ["mon"] }', "2026-11-23T23:00", True),
        ('{ from = "22:00", to = "06:00", days = ["mon"] }', "2026-11-24T05:59", True),
        ('{ from = "22:00", to = "06:00", days = ["mon"] }', "2026-11-23T05:00", False),
        ('{ from = "08:00", to = "18:00", zone = "Asia/Tokyo" }', "2026-11-23T00:00", True),
        ('{ from = "08:00", to = "18:00", zone = "Asia/Tokyo" }', "2026-11-23T12:00", False),
    ],
)
def test_a_rule_holds_at_its_time(time: str, moment: str, holds: bool) -> None:
    policy = load(RULE + f"conditions = {{ time = {time} }}")
    assert (ask(policy, at(moment)).effect is Verdict.ALLOW) is holds
    deny = load(
        '[[rule]]\nid = "b"\neffect = "allow"\nactions = ["tool.call"]\n'
        + RULE.replace("allow", "deny")
        + f"conditions = {{ time = {time} }}"
    )
    assert (ask(deny, at(moment)).rule_id == "a") is holds


def test_a_time_in_no_calendar_is_denied_not_raised() -> None:
    policy = load(RULE + 'conditions = { time = { from = "08:00", to = "18:00" } }')
    assert ask(policy, 10**20).rule_id == pdp.MALFORMED


def test_each_of_many_times_and_rates_has_its_own_bit() -> None:
    """The last window and the last rate too: 64 facts are all there are."""
    rules = [
        f'[[rule]]\nid = "w{n}"\neffect = "allow"\nactions = ["tool.call"]\n'
        f'resources = [{{ exact = "w{n}" }}]\n'
        f'conditions = {{ time = {{ from = "{n:02}:00", to = "{n:02}:30" }} }}'
        for n in range(limits.POLICY_WINDOWS_MAX)
    ] + [
        f'[[rule]]\nid = "r{n}"\neffect = "allow"\nactions = ["tool.call"]\n'
        f'resources = [{{ exact = "r{n}" }}]\n'
        f"conditions = {{ rate_max = {{ calls = {n + 1}, per_s = 60 }} }}"
        for n in range(limits.POLICY_RATES_MAX)
    ]
    policy = load("\n".join(rules))

    def says(what: str, at_ms: int, *spent: str) -> bool:
        return pdp.decide(
            policy, subject=RUN, action="tool.call", resource=what, context=Context(),
            decision_id="d", at_ms=at_ms, spent=spent,
        ).effect is Verdict.ALLOW  # fmt: skip

    for n in range(limits.POLICY_WINDOWS_MAX):
        open_now = [w for w in range(limits.POLICY_WINDOWS_MAX) if says(f"w{w}", n * 3_600_000)]
        assert open_now == [n]
    for n in range(limits.POLICY_RATES_MAX):
        left = [r for r in range(limits.POLICY_RATES_MAX) if not says(f"r{r}", 0, f"r{n}")]
        assert left == [n]
    for extra in ('time = { from = "23:00", to = "23:10" }', "rate_max = { calls = 1, per_s = 1 }"):
        with pytest.raises(PolicyRefused, match="there are more than"):
            load("\n".join([*rules, RULE + f"conditions = {{ {extra} }}"]))


def test_a_rate_lets_so_many_through_and_then_others_decide() -> None:
    policy = load(
        RULE
        + "conditions = { rate_max = { calls = 2, per_s = 60 } }\n"
        + RULE.replace('"a"', '"b"').replace("allow", "ask")
        + 'resources = [{ exact = "other" }]'
    )
    counts = rates.Rates()

    def call(at_ms: int) -> str:
        decision = ask(policy, at_ms, *counts.spent(policy, at_ms))
        counts.count(policy, decision.rule_id, decision.effect, at_ms)
        return decision.rule_id

    assert [call(0), call(1_000), call(2_000), call(59_999)] == ["a", "a", "(default)", "(default)"]
    assert [call(60_000), call(60_500), call(61_000)] == ["a", "(default)", "a"]
    explained = pdp.explain(
        policy, subject=RUN, action="tool.call", resource="t", context=Context(), decision_id="d",
        at_ms=61_000, spent=counts.spent(policy, 61_000),
    )  # fmt: skip
    assert [near.misses for near in explained.near if near.rule.id == "a"] == [("rate_max",)]


@given(
    st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(0, 4_000), min_size=1, max_size=40)
)
def test_no_span_of_a_rate_ever_holds_more(calls: int, per_s: int, steps: list[int]) -> None:
    """At most ``calls`` in any ``per_s``, and never fewer than could have been."""
    policy = load(RULE + f"conditions = {{ rate_max = {{ calls = {calls}, per_s = {per_s} }} }}")
    counts, now, through = rates.Rates(), 0, list[int]()
    for step in steps:
        now += step
        lately = [moment for moment in through if moment > now - per_s * 1000]
        decision = ask(policy, now, *counts.spent(policy, now))
        counts.count(policy, decision.rule_id, decision.effect, now)
        assert (decision.effect is Verdict.ALLOW) == (len(lately) < calls)
        if decision.effect is Verdict.ALLOW:
            through.append(now)


@pytest.mark.req("E-3")
def test_what_follows_an_unknown_outcome_is_in_the_decision() -> None:
    for words in ("suspend", "tell_brain"):
        policy = load(RULE + f'obligations = ["notify"]\non_unknown = "{words}"')
        assert ask(policy, 0).obligations == ("notify", f"on_unknown:{words}")
    plain = load(RULE)
    assert plain.version != load(RULE + 'on_unknown = "suspend"').version


FAULTS = [
    ('conditions = { time = "08:00" }', 'time is { from = "08:00"'),
    ('conditions = { time = { from = "8:00", to = "9:00" } }', "from is a time of day"),
    ('conditions = { time = { from = "08:00" } }', "to is a time of day"),
    ('conditions = { time = { from = "08:00", to = "24:00" } }', "to is a time of day"),
    ('conditions = { time = { from = "08:00", to = "08:00" } }', "all day or never"),
    ('conditions = { time = { from = "08:00", to = "09:00", days = ["mo"] } }', "unknown day 'mo'"),
    (
        'conditions = { time = { from = "08:00", to = "09:00", zone = "Mars" } }',
        "unknown time zone",
    ),
    (
        'conditions = { time = { from = "08:00", to = "09:00", zone = "../x" } }',
        "unknown time zone",
    ),
    ('conditions = { time = { from = "08:00", to = "09:00", day = [] } }', "unknown key 'day'"),
    ("conditions = { rate_max = 3 }", "rate_max is { calls = 10, per_s = 60 }"),
    ("conditions = { rate_max = { calls = 0, per_s = 1 } }", "calls is a whole number from 1"),
    ("conditions = { rate_max = { calls = true, per_s = 1 } }", "calls is a whole number from 1"),
    ("conditions = { rate_max = { calls = 1, per_s = 86401 } }", "per_s is a whole number"),
    ("conditions = { rate_max = { calls = 1 } }", "per_s is a whole number"),
    ('on_unknown = "guess"', "on_unknown is one of suspend, tell_brain"),
    ("on_unknown = []", "on_unknown is one of suspend, tell_brain"),
    ('obligations = ["on_unknown:suspend"]', "unknown obligation"),
    (RULE.replace('"a"', '"z"'), "rule 'z' can never decide: 'a' (line 2) says the same"),
]


@pytest.mark.parametrize(("more", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_refused(more: str, message: str) -> None:
    with pytest.raises(PolicyRefused) as caught:
        document.load("version = 1\n" + RULE + more)
    assert message in str(caught.value)


@pytest.mark.parametrize("effect", ["ask", "deny"])
def test_only_an_allow_has_a_rate(effect: str) -> None:
    with pytest.raises(PolicyRefused, match="an ask or deny has none"):
        load(RULE.replace("allow", effect) + "conditions = { rate_max = { calls = 1, per_s = 1 } }")


@pytest.mark.parametrize(
    ("resource", "why"),
    [
        ("gооgle.com", "xn--"),  # two Cyrillic letters
        ("a" * 1_990 + ".org", "no host name"),
        ("a." * 200 + "org", "no host name"),
        ("x" * 2_001, "1 to 2000 characters"),
        ("ｅxample.org", "xn--"),
    ],
    ids=["cyrillic", "long label", "long name", "too long", "full width"],
)
def test_hosts_that_only_look_like_hosts_are_refused(resource: str, why: str) -> None:
    with pytest.raises(PolicyRefused) as caught:
        load(RULE.replace("tool.call", "net.connect") + f'resources = [{{ host = "{resource}" }}]')
    assert why in str(caught.value)


def test_a_lone_surrogate_is_refused_by_the_file_and_denied_in_a_request() -> None:
    with pytest.raises(PolicyRefused, match="line 6"):
        load(RULE + 'reason = "\\ud800"')
    policy = load(RULE)
    for subject in (Subject(SubjectKind.RUN, "\ud800", Origin.INTERNAL), RUN):
        decision = pdp.decide(
            policy, subject=subject, action="tool.call",
            resource="t" if subject is not RUN else "\udfff", context=Context(),
            decision_id="d", at_ms=0,
        )  # fmt: skip
        assert (decision.effect, decision.rule_id) == (Verdict.DENY, pdp.MALFORMED)


# -- warnings --------------------------------------------------------------------------------------


def test_the_default_policy_needs_no_warning() -> None:
    assert not review.review(document.load(default.TEXT, home="/h"), at_ms=0)


def test_a_policy_that_locks_its_author_out_is_warned_about() -> None:
    warned = review.review(load(RULE), at_ms=0)
    assert {one.line for one in warned} == {0}
    assert all("locks you out" in one.message for one in warned)
    closed = '\n[[rule]]\nid = "shut"\neffect = "deny"\nactions = ["admin.policy"]\n'
    (one,) = review.review(document.load(default.TEXT + closed), at_ms=0)
    assert "admin.policy reload (deny by shut)" in one.message
    assert one.line == default.TEXT.count("\n") + 2


def test_a_rule_that_a_stricter_one_covers_is_warned_about() -> None:
    text = default.TEXT + (
        '\n[[rule]]\nid = "shut"\neffect = "deny"\nactions = ["mcp.call", "exec.run"]\n'
        '\n[[rule]]\nid = "beside"\neffect = "allow"\nactions = ["mcp.call", "tool.call"]\n'
        'subjects = [{ kind = "skill" }]\n'
    )
    warned = [one.message for one in review.review(document.load(text), at_ms=0)]
    named = [message.split("'")[1] for message in warned]
    assert named == ["ask-before-programs", "ask-before-mcp-tools", "ask-when-tools-could-leak"]
    assert all("'shut'" in message for message in warned)
