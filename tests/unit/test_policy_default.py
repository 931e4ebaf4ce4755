"""The policy that a new home begins with says what A-3 says."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core.decisions import (
    ACTIONS,
    ADMIN_VERBS,
    Context,
    Origin,
    ResourceForm,
    Subject,
    SubjectKind,
    Taint,
    Verdict,
)
from goclaw.core.states import EffectClass
from goclaw.policy import default, document, pdp

pytestmark = pytest.mark.req("A-3")

HOME = "/home/u/.goclaw"
POLICY = document.load(default.TEXT, home=HOME)
ALLOW, ASK, DENY = Verdict.ALLOW, Verdict.ASK, Verdict.DENY
WATCHED = Context(interactive=True, roots=("/home/u",))
ALONE = Context(interactive=False, roots=("/home/u",))
SAMPLES = {
    ResourceForm.NAME: ["builtin/word-count", "builtin/http", "direct", "openai", "x"],
    ResourceForm.PATH: ["/home/u/x", "/etc/passwd", f"{HOME}/policy.toml"],
    ResourceForm.ADDRESS: ["https://example.org/", "https://10.0.0.1/", "http://169.254.169.254/"],
    ResourceForm.PROGRAM: ["/usr/bin/true", "npx", "https://example.org/mcp"],
}


def says(
    kind: str, origin: str, action: str, what: str, context: Context = WATCHED, who: str = "direct"
) -> Verdict:
    subject = Subject(SubjectKind(kind), who, Origin(origin))
    return pdp.decide(
        POLICY, subject=subject, action=action, resource=what, context=context,
        decision_id="d_1", at_ms=0,
    ).effect  # fmt: skip


@pytest.mark.parametrize("context", [WATCHED, ALONE], ids=["interactive", "unattended"])
def test_reading_is_free_under_the_roots_and_nowhere_else(context: Context) -> None:
    for kind in ("run", "client"):
        assert says(kind, "internal", "fs.read", "/home/u/a/b", context) is ALLOW
        for outside in ("/etc/passwd", "/home/u2/x", "/home", "/home/u/../u2/x"):
            assert says(kind, "internal", "fs.read", outside, context) is DENY
    assert says("run", "internal", "fs.read", "/home/u/a", Context()) is DENY


def test_writing_under_the_roots_is_free_while_watched_and_asked_otherwise() -> None:
    assert says("run", "internal", "fs.write", "/home/u/a", WATCHED) is ALLOW
    assert says("run", "internal", "fs.write", "/home/u/a", ALONE) is ASK
    for context in (WATCHED, ALONE):
        assert says("run", "internal", "fs.write", "/etc/passwd", context) is DENY


@pytest.mark.req("A-9", "A-11")
def test_goclaws_own_files_are_closed_even_under_a_root() -> None:
    for action, name in itertools.product(
        ("fs.read", "fs.write"), ("", "/policy.toml", "/auth.token", "/x/../goclaw.db", "/skills/a")
    ):
        assert says("run", "internal", action, HOME + name, WATCHED) is DENY
    assert says("run", "internal", "fs.read", HOME + "-notes", WATCHED) is ALLOW


def test_programs_network_and_secrets_are_asked_or_denied() -> None:
    for context in (WATCHED, ALONE):
        assert says("run", "internal", "exec.run", "/usr/bin/true", context) is ASK
        assert says("run", "internal", "net.connect", "https://example.org/", context) is ASK
        assert says("run", "internal", "net.connect", "https://10.0.0.1/", context) is DENY
        assert says("run", "internal", "mcp.call", "server/tool", context) is ASK
    assert says("run", "internal", "secret.use", "key", WATCHED) is ASK
    assert says("run", "internal", "secret.use", "key", ALONE) is DENY
    for kind, origin in itertools.product(SubjectKind, Origin):
        for action in ("exec.run", "net.connect", "secret.use"):
            for what in SAMPLES[ACTIONS[action].resource]:
                assert says(kind, origin, action, what) is not ALLOW


@pytest.mark.req("A-4")
def test_metadata_services_are_denied_in_every_spelling() -> None:
    for what in (
        "http://169.254.169.254/", "http://[::ffff:169.254.169.254]/", "http://2852039166/",
        "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://169.254.169.254./",
        "http://[64:ff9b::a9fe:a9fe]/", "http://[fe80::1]/",
    ):  # fmt: skip
        decision = pdp.decide(
            POLICY, subject=Subject(SubjectKind.RUN, "direct", Origin.INTERNAL),
            action="net.connect", resource=what, context=WATCHED, decision_id="d", at_ms=0,
        )  # fmt: skip
        assert decision.rule_id == "never-link-local-or-multicast", what


def test_mcp_servers_start_only_for_clients_from_unix_and_stdio() -> None:
    for kind, origin, what in itertools.product(SubjectKind, Origin, SAMPLES[ResourceForm.PROGRAM]):
        expected = ALLOW if kind == "client" and origin in ("unix", "stdio") else DENY
        assert says(kind, origin, "mcp.start", what) is expected


@pytest.mark.req("A-9")
def test_only_the_users_own_clients_approve_and_administer() -> None:
    for kind, origin in itertools.product(SubjectKind, Origin):
        expected = ALLOW if kind == "client" and origin != "internal" else DENY
        for action in ("approval.answer", *(f"admin.{verb}" for verb in ADMIN_VERBS)):
            assert says(kind, origin, action, "x") is expected


def test_clients_talk_and_submit() -> None:
    for origin in ("unix", "stdio", "ws"):
        assert says("client", origin, "protocol.call", "session/prompt") is ALLOW
        assert says("client", origin, "run.submit", "s_1") is ALLOW
    assert says("worker", "unix", "run.submit", "s_1") is DENY
    assert says("worker", "unix", "worker.claim", "pool") is ALLOW
    assert says("client", "unix", "worker.claim", "pool") is DENY


def test_offline_brains_and_built_in_skills_run() -> None:
    for context in (WATCHED, ALONE):
        for brain in ("direct", "script"):
            assert says("run", "internal", "brain.call", brain, context) is ALLOW
        for tool in ("word-count", "sha256", "json-query", "sleep", "read", "write", "edit"):
            assert says("run", "internal", "tool.call", f"builtin/{tool}", context) is ALLOW
        assert says("run", "internal", "brain.call", "openai", context) is DENY
        assert says("run", "internal", "tool.call", "project/word-count", context) is DENY
        assert says("run", "internal", "tool.call", "word-count", context) is DENY
    assert says("daemon", "internal", "skill.activate", "builtin/word-count") is ALLOW
    assert says("daemon", "internal", "skill.activate", "project/x") is DENY


def test_a_module_gets_nothing_from_its_host() -> None:
    for kind, origin, what in itertools.product(SubjectKind, Origin, ("http", "kv", "clock")):
        assert says(kind, origin, "wasm.host", what) is DENY


@pytest.mark.req("A-11", "A-13")
@given(
    st.sampled_from(SubjectKind),
    st.sampled_from(Origin),
    st.sampled_from(list(ACTIONS)),
    st.booleans(),
    st.none() | st.sampled_from(EffectClass),
    st.data(),
)
def test_taint_makes_a_decision_stricter_never_looser(
    kind: SubjectKind,
    origin: Origin,
    action: str,
    interactive: bool,
    effect_class: EffectClass | None,
    data: st.DataObject,
) -> None:
    strictness = [ALLOW, ASK, DENY]
    what = data.draw(st.sampled_from(SAMPLES[ACTIONS[action].resource]))
    clean = Context(effect_class, interactive=interactive, roots=("/home/u",))
    before = strictness.index(says(kind, origin, action, what, clean))
    for taint in ((Taint.UNTRUSTED,), (Taint.PRIVATE,), tuple(Taint)):
        tainted = Context(effect_class, taint, interactive=interactive, roots=("/home/u",))
        assert strictness.index(says(kind, origin, action, what, tainted)) >= before


@pytest.mark.req("A-11")
def test_an_allowed_host_is_asked_again_once_data_could_leak() -> None:
    # the user has turned the general ask into an allow
    rule = 'id = "ask-before-network"\neffect = '
    assert rule + '"ask"' in default.TEXT
    text = default.TEXT.replace(rule + '"ask"', rule + '"allow"')
    policy = document.load(text, home=HOME)
    run = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL)
    for taint, expected in (((), ALLOW), ((Taint.PRIVATE,), ALLOW), (tuple(Taint), ASK)):
        decision = pdp.decide(
            policy, subject=run, action="net.connect", resource="https://example.org/",
            context=Context(taint=taint), decision_id="d", at_ms=0,
        )  # fmt: skip
        assert decision.effect is expected


@pytest.mark.req("U-5")
def test_the_text_explains_itself() -> None:
    assert all(rule.reason for rule in POLICY.rules)
    assert all(len(line) <= 100 for line in default.TEXT.splitlines())
    assert default.TEXT.startswith("#")
