"""Which special addresses a policy names, and to whom (A-4)."""

from __future__ import annotations

import ipaddress

import pytest

from goclaw.core.decisions import Context, Origin, Subject, SubjectKind, Taint
from goclaw.policy import document, egress

pytestmark = pytest.mark.req("A-4")

RUN = Subject(SubjectKind.RUN, "direct", Origin.UNIX)
DAEMON = Subject(SubjectKind.DAEMON, "local-model", Origin.INTERNAL)
EIGHT_O_CLOCK_MS = 8 * 3_600_000


def named(rule: str, place: str, subject: Subject = RUN, context: Context | None = None) -> bool:
    text = f'version = 1\n[[rule]]\nid = "r"\nactions = ["net.connect"]\n{rule}\n'
    policy = document.load(text if "effect" in rule else text + 'effect = "allow"\n')
    return egress.names(
        policy, ipaddress.ip_address(place), subject=subject, context=context or Context(),
        at_ms=EIGHT_O_CLOCK_MS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "place", "expected"),
    [
        ('{ cidr = "10.0.0.0/8" }', "10.1.2.3", True),
        ('{ cidr = "10.0.0.0/8" }', "11.1.2.3", False),
        ('{ cidr = "::ffff:10.0.0.0/104" }', "10.1.2.3", True),
        ('{ cidr = "fd00::/8" }', "fd12::1", True),
        ('{ cidr = "fd00::/8" }', "10.0.0.1", False),
        ('{ cidr = "fe80::/10" }', "fe80::1", True),
        ('{ cidr = "fe80::/10" }', "fe80::1%eth0", False),
        ('{ exact = "http://127.0.0.1:8000/v1" }', "127.0.0.1", True),
        ('{ prefix = "http://127.1:8000/" }', "127.0.0.1", True),
        ('{ prefix = "http://127.1:8000/" }', "127.0.0.2", False),
        ('{ prefix = "http://[::1]/" }', "::1", True),
        ('{ prefix = "http://localhost/" }', "127.0.0.1", False),
        ('{ host = "." }', "127.0.0.1", False),
    ],
)
def test_what_names_an_address(resource: str, place: str, expected: bool) -> None:
    assert named(f"resources = [{resource}]", place) is expected


def test_a_rule_for_everything_names_nothing() -> None:
    assert not named("", "127.0.0.1")


@pytest.mark.parametrize("effect", ["allow", "ask", "deny"])
def test_only_what_lets_something_happen_names(effect: str) -> None:
    rule = f'effect = "{effect}"\nresources = [{{ cidr = "127.0.0.0/8" }}]'
    assert named(rule, "127.0.0.1") is (effect != "deny")


@pytest.mark.parametrize(
    ("subjects", "run", "daemon"),
    [
        ('[{ kind = "daemon" }]', False, True),
        ('[{ kind = "daemon", id = "local-*" }]', False, True),
        ('[{ kind = "daemon", id = "other" }]', False, False),
        ('[{ kind = "run" }, { kind = "daemon" }]', True, True),
        ('[{ origin = "unix" }]', True, False),
    ],
)
def test_a_rule_names_for_its_own_subjects(subjects: str, run: bool, daemon: bool) -> None:
    """What a model's server on this machine is reached by is no way in for the agent."""
    rule = f'subjects = {subjects}\nresources = [{{ cidr = "127.0.0.0/8" }}]'
    assert (named(rule, "127.0.0.1"), named(rule, "127.0.0.1", DAEMON)) == (run, daemon)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ("{ interactive = true }", False),
        ("{ tainted = false }", True),
        ('{ tainted = ["private"] }', False),
        ('{ time = { from = "07:00", to = "09:00" } }', True),
        ('{ time = { from = "09:00", to = "10:00" } }', False),
        ("{ rate_max = { calls = 1, per_s = 60 } }", True),
    ],
)
def test_a_rule_names_where_it_applies(conditions: str, expected: bool) -> None:
    rule = f'conditions = {conditions}\nresources = [{{ cidr = "127.0.0.0/8" }}]'
    assert named(rule, "127.0.0.1") is expected
    met = Context(interactive=True, taint=(Taint.PRIVATE,))
    assert named(rule, "127.0.0.1", RUN, met) is (
        "tainted = false" not in conditions and ('09:00", to' not in conditions)
    )
