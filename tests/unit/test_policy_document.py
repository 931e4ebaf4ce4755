"""The language of policy.toml: every fault is refused with its line, everything else is a rule."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.decisions import ACTIONS, ADMIN_VERBS, Origin, SubjectKind, Taint, Verdict
from goclaw.core.errors import PolicyRefused
from goclaw.core.states import EffectClass
from goclaw.policy import default, document, pdp
from goclaw.protocol.methods import NAMES

pytestmark = pytest.mark.req("A-3")

RULE = '[[rule]]\nid = "a"\neffect = "allow"\nactions = ["fs.read"]\n'


def load(text: str) -> pdp.Policy:
    return document.load("version = 1\n" + textwrap.dedent(text))


def refusal(text: str) -> PolicyRefused:
    with pytest.raises(PolicyRefused) as caught:
        document.load(text)
    return caught.value


def test_a_rule_holds_what_was_written() -> None:
    policy = load(
        """
        [[rule]]
        id = "all.of-it_1"
        effect = "ask"
        actions = ["fs.write"]
        subjects = [{ kind = "run", id = "dir*" }, { kind = ["client", "worker"], origin = "unix" }]
        resources = [{ path = "{root}/src" }, { glob = "/srv/**/*.py" }]
        obligations = ["notify"]
        reason = "because"
        [rule.conditions]
        effect_class = ["probeable", "keyed"]
        origin = ["unix", "internal"]
        interactive = false
        tainted = ["private"]
        risk_max = 3
        bytes_max = 1000
        """
    )
    (rule,) = policy.rules
    assert rule == pdp.Rule(
        id="all.of-it_1",
        effect=Verdict.ASK,
        actions=("fs.write",),
        subjects=(
            pdp.SubjectPattern((SubjectKind.RUN,), tuple(Origin), "dir*"),
            pdp.SubjectPattern((SubjectKind.CLIENT, SubjectKind.WORKER), (Origin.UNIX,)),
        ),
        resources=(
            pdp.ResourcePattern(pdp.ResourceKind.PATH, "{root}/src"),
            pdp.ResourcePattern(pdp.ResourceKind.GLOB, "/srv/**/*.py"),
        ),
        conditions=pdp.Conditions(
            effect_class=(EffectClass.PROBEABLE, EffectClass.KEYED),
            origin=(Origin.UNIX, Origin.INTERNAL),
            interactive=False,
            tainted=(Taint.PRIVATE,),
            risk_max=3,
            bytes_max=1000,
        ),
        obligations=("notify",),
        reason="because",
        line=3,
    )


def test_what_is_left_out_means_everybody_and_everything() -> None:
    (rule,) = load(RULE).rules
    assert rule.subjects == (pdp.SubjectPattern(),)
    assert (rule.resources, rule.conditions, rule.obligations) == ((), pdp.Conditions(), ())


@pytest.mark.req("A-2")
def test_the_star_of_admin_is_every_verb() -> None:
    (rule,) = load('[[rule]]\nid = "a"\neffect = "deny"\nactions = ["admin.*", "admin.stop"]').rules
    assert rule.actions == tuple(f"admin.{verb}" for verb in ADMIN_VERBS)


NET = RULE.replace("fs.read", "net.connect")

FAULTS = [
    # what stands after `version = 1`, the faulty line, what the message says
    ("x = 1", 2, "unknown key 'x'"),
    ("rules = 1", 2, "unknown key 'rules' (did you mean 'rule'?)"),
    ("rule = 1", 2, "[[rule]]"),
    ("rule = [1]", 2, "[[rule]]"),
    ("[[rule]]\nid = 'b'\nactions = ['fs.read']\n" + RULE, 2, "effect: allow, ask or deny"),
    (RULE.replace('"a"', '"A"'), 3, "an id of up to 64"),
    (RULE.replace('"a"', "1"), 3, "an id of up to 64"),
    (RULE.replace('"a"', f'"{"a" * 65}"'), 3, "an id of up to 64"),
    (RULE + "\n" + RULE, 8, "rule id 'a' is taken since line 2"),
    (RULE.replace("allow", "alow"), 4, "unknown effect 'alow'"),
    (RULE.replace('"allow"', '["allow"]'), 4, "effect is one of allow, ask, deny"),
    (RULE.replace("fs.read", "fs.raed"), 5, "unknown action 'fs.raed' (did you mean 'fs.read'?)"),
    (RULE.replace('["fs.read"]', '[\n"fs.read",\n"fs.*"]'), 7, "unknown action 'fs.*'"),
    (RULE.replace("fs.read", "admin.frob"), 5, "unknown action 'admin.frob'"),
    (RULE.replace('["fs.read"]', "[]"), 5, "one or more texts"),
    (RULE.replace('["fs.read"]', '"fs.read"'), 5, "one or more texts"),
    (RULE.replace('["fs.read"]', "[1]"), 5, "one or more texts"),
    (RULE.replace('actions = ["fs.read"]\n', ""), 2, "one or more texts"),
    (RULE + "subject = []", 6, "unknown key 'subject' (did you mean 'subjects'?)"),
    (RULE + "subjects = []", 6, "one or more {"),
    (RULE + 'subjects = ["client"]', 6, "one or more {"),
    (RULE + "subjects = [\n{}]", 7, "an empty subject"),
    (RULE + 'subjects = [{ kind = "clint" }]', 6, "unknown kind 'clint'"),
    (RULE + 'subjects = [{ origin = ["unix", "tcp"] }]', 6, "unknown origin 'tcp'"),
    (RULE + "subjects = [{ id = 1 }]", 6, "id is a text"),
    (RULE + f'subjects = [{{ id = "{"a*" * 9}" }}]', 6, "at most 8 stars"),
    (RULE + 'subjects = [{ name = "x" }]', 6, "unknown key 'name'"),
    (RULE + "resources = [{}]", 6, "a resource is one of"),
    (RULE + 'resources = [{ exact = "/a", path = "/b" }]', 6, "a resource is one of"),
    (RULE + 'resources = [{ exact = "/a" },\n{ paht = "/b" }]', 7, "unknown key 'paht'"),
    (RULE + 'resources = [{ path = "a" }]', 6, "a path starts with"),
    (RULE + 'resources = [{ path = "{rot}/a" }]', 6, "a path starts with"),
    (RULE + 'resources = [{ path = "{root}a" }]', 6, "a path starts with"),
    (RULE + 'resources = [{ host = "example.org" }]', 6, "host never matches a path"),
    (RULE + 'resources = [{ cidr = "10.0.0.0/8" }]', 6, "cidr never matches a path"),
    (RULE + 'resources = [{ glob = "/a/../b" }]', 6, "never occur in a path"),
    (RULE + 'resources = [{ prefix = "/a//b" }]', 6, "never occur in a path"),
    (RULE + f'resources = [{{ glob = "/{"a*" * 9}" }}]', 6, "at most 8 stars"),
    (RULE + 'resources = [{ path = "/\\u0000" }]', 6, "NUL"),
    (NET + 'resources = [{ host = "*.org" }]', 6, "no host name"),
    (NET + 'resources = [{ host = "::1" }]', 6, "no host name"),
    (NET + 'resources = [{ host = "10.1" }]', 6, "use cidr"),
    (NET + 'resources = [{ cidr = "10.0.0.1/8" }]', 6, "host bits"),
    (NET + 'resources = [{ glob = "https://*" }]', 6, "use host"),
    (NET + 'resources = [{ prefix = "a.org" }]', 6, "SCHEME://"),
    (NET + 'resources = [{ exact = "x://y/?q" }]', 6, "SCHEME://"),
    (
        RULE.replace("fs.read", "tool.call") + 'resources = [{ path = "/a" }]',
        6,
        "never matches a name",
    ),
    (
        RULE.replace('"fs.read"', '"fs.read", "tool.call"') + 'resources = [{ exact = "/a" }]',
        6,
        "different things (path and name): split the rule",
    ),
    (RULE + "conditions = 1", 6, "conditions are a table"),
    (RULE + "[rule.conditions]\nrisk = 1", 7, "unknown key 'risk' (did you mean 'risk_max'?)"),
    (RULE + "[rule.conditions]\nrisk_max = -1", 7, "a whole number from 0"),
    (RULE + "[rule.conditions]\nrisk_max = true", 7, "a whole number from 0"),
    (RULE + "[rule.conditions]\nbytes_max = 1.5", 7, "a whole number from 0"),
    (RULE + '[rule.conditions]\ninteractive = "yes"', 7, "true or false"),
    (RULE + '[rule.conditions]\ntainted = ["publik"]', 7, "unknown tainted 'publik'"),
    (RULE + "[rule.conditions]\ntainted = []", 7, "one or more texts"),
    (RULE + '[rule.conditions]\neffect_class = ["safe"]', 7, "unknown effect_class 'safe'"),
    (RULE + '[rule.conditions]\norigin = ["tcp"]', 7, "unknown origin 'tcp'"),
    (RULE.replace("allow", "deny") + "conditions.risk_max = 1", 6, "on a deny would lift it"),
    (
        RULE.replace("allow", "deny") + "conditions = { bytes_max = 1 }",
        6,
        "on a deny would lift it",
    ),
    (RULE + 'obligations = ["notfy"]', 6, "unknown obligation 'notfy' (did you mean 'notify'?)"),
    (RULE + "obligations = []", 6, "one or more texts"),
    (RULE.replace("allow", "deny") + 'obligations = ["notify"]', 6, "has no obligations"),
    (RULE + 'reason = ""', 6, "reason is a text"),
    (RULE + "reason = '" + "x" * (limits.LABEL_CHARS_MAX + 1) + "'", 6, "reason is a text"),
    (RULE + "a b", 6, "not TOML"),
    (RULE + 'reason = "', 6, "not TOML"),
    (RULE + 'reason = """', 6, "not TOML"),
    (RULE + 'id = "b"', 6, "not TOML"),
    ("x = " + "[" * 20_000, 1, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    error = refusal("version = 1\n" + text)
    assert message in str(error)
    assert str(error).startswith(f"policy.toml line {line}: "), str(error)
    assert error.data["line"] == line
    assert error.exit == 3
    assert error.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 1), ("version = 2", 1), ("\nversion = true", 2), ('# x\nversion = "1"', 2), (RULE, 1)],
)
def test_another_version_is_refused(text: str, line: int) -> None:
    error = refusal(text)
    assert "version = 1 is what this program reads" in str(error)
    assert error.data["line"] == line


def test_a_home_that_fits_no_pattern_is_a_fault_of_the_rule_that_names_it() -> None:
    text = "version = 1\n" + RULE + 'resources = [{ path = "{home}" }, { glob = "{home}/*" }]'
    assert document.load(text, home="/home/u/.goclaw").rules
    with pytest.raises(
        PolicyRefused, match=r"line 6: glob '\{home\}/\*': the home's path holds a star"
    ):
        document.load(text, home="/home/*")
    with pytest.raises(PolicyRefused, match="the path is not absolute"):
        document.load(text, home="home")


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    error = refusal('version = 1\nzz = 1\n[[rule]]\nid = "a"\neffect = "no"\nactions = ["x"]\n')
    assert [problem["line"] for problem in error.data["problems"]] == [2, 5, 6]
    assert str(error).startswith("policy.toml line 2: unknown key 'zz' (and 2 more).")


@pytest.mark.req("I-5")
def test_size_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "larger than" in str(refusal("#" * (limits.POLICY_BYTES_MAX + 1)))
    monkeypatch.setattr(limits, "POLICY_RULES_MAX", 1)
    assert "more than 1 rules" in str(refusal("version = 1\n" + RULE + RULE.replace('"a"', '"b"')))
    monkeypatch.setattr(limits, "POLICY_ENTRIES_MAX", 3)
    many = RULE + 'resources = [{ path = "/a" }, { path = "/b" }]\n'
    many += 'subjects = [{ kind = "run" }, { kind = "client" }]'
    assert "too many" in str(refusal("version = 1\n" + many))


def test_the_version_is_that_of_the_content() -> None:
    plain = load(RULE)
    assert len(plain.version) == 64
    assert load("# a comment\n\n" + RULE.replace("=", "  =  ")).version == plain.version
    everybody = '["client", "run", "skill", "worker", "daemon"]'
    spelled = RULE + f"conditions = {{}}\nsubjects = [{{ kind = {everybody} }}]"
    assert load(spelled).version == plain.version
    assert document.load("version = 1\n" + RULE, home="/h").version == plain.version
    for other in (
        RULE.replace('"a"', '"b"'),
        RULE.replace("allow", "ask"),
        RULE.replace("fs.read", "fs.write"),
        RULE + 'reason = "x"',
        RULE + 'resources = [{ path = "/" }]',
        RULE + "conditions = { interactive = true }",
        RULE + 'subjects = [{ id = "x" }]',
        RULE + 'obligations = ["notify"]',
        "",
    ):
        assert load(other).version != plain.version


def faulty_line(text: str) -> int:
    """The line of the first fault; 0 when the text is a policy."""
    try:
        document.load(text)
    except PolicyRefused as error:
        return int(error.data["line"])
    return 0


@given(st.text())
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    assert faulty_line(text) <= text.count("\n") + 1


@given(st.integers(0, len(default.TEXT)), st.integers(0, 40), st.text(max_size=3))
@pytest.mark.req("A-14")
def test_a_damaged_policy_is_read_or_refused(at: int, length: int, put: str) -> None:
    damaged = default.TEXT[:at] + put + default.TEXT[at + length :]
    assert faulty_line(damaged) <= damaged.count("\n") + 1


def test_the_list_of_actions_is_that_of_the_specification() -> None:
    plain = " ".join(name for name in ACTIONS if not name.startswith("admin."))
    assert plain == (
        "protocol.call run.submit brain.call tool.call skill.activate wasm.host mcp.start mcp.call "
        "fs.read fs.write exec.run net.connect secret.use approval.answer worker.claim"
    )
    assert all(row.meaning for row in ACTIONS.values())


CALL = '[[rule]]\nid = "a"\neffect = "allow"\nactions = ["protocol.call"]\nresources = [\n'


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ('{ exact = "session/prompt" }', None),
        ('{ exact = "_goclaw/admin/policy" }', None),
        ('{ prefix = "_goclaw/worker/" }', None),
        ('{ glob = "session/*" }', None),
        ('{ glob = "**/policy" }', None),
        ('{ exact = "session/promt" }', "no method is exact 'session/promt' (did you mean"
         " 'session/prompt'?)"),
        ('{ exact = "session/" }', "no method is exact 'session/'"),
        ('{ prefix = "_goclaw/wroker/" }', "no method is prefix '_goclaw/wroker/'"),
        ('{ prefix = "goclaw/" }', "no method is prefix 'goclaw/'"),
        ('{ glob = "*/policy" }', "no method is glob '*/policy'"),
        ('{ glob = "session/.rompt" }', "no method is glob 'session/.rompt'"),
    ],
)  # fmt: skip
def test_a_rule_about_the_wire_names_methods_that_there_are(
    pattern: str, message: str | None
) -> None:
    text = f"version = 1\n{CALL}{pattern},\n]\n"
    document.load(text)  # a policy that was accepted once keeps what it says
    if message is None:
        assert document.load(text, methods=NAMES).rules
        return
    with pytest.raises(PolicyRefused) as caught:
        document.load(text, methods=NAMES)
    assert caught.value.data["line"] == 7
    assert message in caught.value.message
    # what stands beside another action may be about that one
    mixed = text.replace('["protocol.call"]', '["protocol.call", "run.submit"]')
    assert document.load(mixed, methods=NAMES).rules


def test_the_default_policy_names_methods_that_there_are() -> None:
    assert document.load(default.TEXT, methods=NAMES).rules
