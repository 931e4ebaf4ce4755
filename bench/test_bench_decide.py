"""Decisions: native rules against the twin and bare dict indexes, in one run, on equal outputs.

Owns the floors of P-3. An engine of somebody else stands beside it: Cedar, compiled from Rust, the
same rules in its own words.

The rules have the shape that policy engines are usually measured with: an allow per directory and
subject pattern, every tenth a deny inside one, each with a bound on the risk. Two hand-written
indexes stand beside the twin: one with its semantics (a rule may lie in any directory above the
resource, denies win over all of them), which shows that the twin is honest, and one that knows that
every rule lies exactly in the resource's own directory, which is as fast as Python gets.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from goclaw._pure import rules as pure
from goclaw.core.decisions import Context, Origin, Subject, SubjectKind
from goclaw.policy import default, document, pdp

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    Decide = Callable[..., tuple[int, int]]

native: Any = pytest.importorskip(
    "goclaw._fast.rules", reason="the native modules are not built", exc_type=ImportError
)

ROUNDS = 7  # interleaved, so that a slow moment of the machine meets all
REQUESTS = 200
SEED = 7
BOUND = 2**63 - 1
ACTIONS = 5
NATIVE_FLOOR = 10.0  # native : pure at 1,000 rules
HONEST_MAX = 1.5  # pure : the shortest index of the same semantics
FLAT_MAX = 1.5  # 1,000 and 10,000 rules : 10 rules, native; the processor's caches are in it
CALL_MAX = 4.0  # a decision at 10 rules : an empty native call with the same arguments
PEER_FLOOR = 100.0  # Cedar : native at 1,000 rules

Question = tuple[int, int, int, int, bytes, tuple[bytes, ...]]


def entries(count: int) -> list[Any]:
    """Rule number n speaks about directory n; every tenth denies a part of the one before."""
    made: list[Any] = []
    for n in range(count):
        if n % 10 == 9:
            who, text, risk = b"agent:**", b"fs:/srv/p%d/secret" % (n - 1), 10
            made.append((pure.DENY, n, (n - 1) % ACTIONS, 0, risk, BOUND, who, pure.PREFIX, text))
        else:
            who, text, risk = b"agent:t%d-**" % (n % 7), b"fs:/srv/p%d/" % n, n % 5 + 3
            made.append((pure.ALLOW, n, n % ACTIONS, 0, risk, BOUND, who, pure.PREFIX, text))
    return made


def questions(count: int) -> list[Question]:
    """A fifth asks for what is denied, a quarter comes from a stranger, a quarter is too risky."""
    chance = random.Random(SEED)
    made: list[Question] = []
    for j in range(REQUESTS):
        n = chance.randrange(count)
        n -= n % 10 == 9
        who = b"agent:x-%d" % j if j % 4 == 2 else b"agent:t%d-%d" % (n % 7, j)
        risk = 9 if j % 4 == 3 else chance.randrange(3)
        text = b"fs:/srv/p%d/%s%d" % (n, b"secret" if j % 5 == 0 else b"f", j)
        made.append((n % ACTIONS, 0, risk, 0, who, (text,)))
    return made


def same_semantics(rows: list[Any]) -> Decide:
    """The shortest index that answers as the twin does, for prefixes only."""
    table: dict[tuple[int, bytes], list[Any]] = {}
    for row in sorted(rows, key=lambda row: (-row[0], row[1])):
        effect, rule, action, forbidden, risk_max, bytes_max, who, _, text = row
        found = (-effect, rule, forbidden, risk_max, bytes_max, who[:-2], text)
        table.setdefault((action, text[: text.rfind(b"/")]), []).append(found)
    get = table.get

    def decide(
        action: int, facts: int, risk: int, size: int, subject: bytes, forms: tuple[bytes, ...]
    ) -> tuple[int, int]:
        best = (1, pure.NO_RULE)
        for form in forms:
            key = form
            while key:
                key = key.rpartition(b"/")[0]
                for effect, rule, forbidden, risk_max, bytes_max, who, text in get(
                    (action, key), ()
                ):
                    if (
                        not facts & forbidden
                        and risk <= risk_max
                        and size <= bytes_max
                        and form.startswith(text)
                        and subject.startswith(who)
                        and (effect, rule) < best
                    ):
                        best = (effect, rule)
                        break
        return (pure.DENY, pure.NO_RULE) if best[0] == 1 else (-best[0], best[1])

    return decide


def own_directory(rows: list[Any]) -> Decide:
    """One look-up: right only where every rule lies in the resource's own directory."""
    table: dict[tuple[int, bytes], list[Any]] = {}
    for effect, rule, action, _, risk_max, _, who, _, text in sorted(
        rows, key=lambda row: (-row[0], row[1])
    ):
        found = (risk_max, who[:-2], text, (effect, rule))
        table.setdefault((action, text[: text.rfind(b"/")]), []).append(found)
    get = table.get

    def decide(
        action: int, facts: int, risk: int, size: int, subject: bytes, forms: tuple[bytes, ...]
    ) -> tuple[int, int]:
        form = forms[0]
        for risk_max, who, text, says in get((action, form[: form.rfind(b"/")]), ()):
            if risk <= risk_max and form.startswith(text) and subject.startswith(who):
                return says  # type: ignore[no-any-return]
        return pure.DENY, pure.NO_RULE

    return decide


def medians(contenders: list[Decide], asked: list[Question], repeats: int) -> list[float]:
    """Nanoseconds of one decision of each, by the medians of interleaved rounds."""
    measured: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS):
        for decide, results in zip(contenders, measured, strict=True):
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                for one in asked:
                    decide(*one)
            results.append((time.perf_counter_ns() - begin) / repeats / len(asked))
    return [statistics.median(results) for results in measured]


@pytest.mark.req("P-3", "P-7")
@pytest.mark.parametrize("count", [10, 100, 1_000, 10_000])
def test_decide(benchmark: BenchmarkFixture, count: int) -> None:
    rows, asked = entries(count), questions(count)
    contenders = [
        native.Rules(rows).decide,
        pure.Rules(rows).decide,
        same_semantics(rows),
        own_directory(rows),
    ]
    answers = [[decide(*one) for one in asked] for decide in contenders]
    assert all(one == answers[0] for one in answers), "equal outputs first"
    assert {effect for effect, _ in answers[0]} == {pure.ALLOW, pure.DENY}

    fast, plain, hand, floor = medians(contenders, asked, 20)
    benchmark.extra_info["native : pure"] = round(plain / fast, 1)
    benchmark.extra_info["native : dict index, one look-up"] = round(floor / fast, 1)
    benchmark.extra_info["pure : dict index, same semantics"] = round(plain / hand, 2)
    benchmark.extra_info["native ns"] = round(fast)
    benchmark.extra_info["pure ns"] = round(plain)
    run: Any = benchmark.pedantic
    run(lambda: [contenders[0](*one) for one in asked], rounds=ROUNDS, iterations=20)
    if count == 1_000:
        assert plain / fast >= NATIVE_FLOOR, f"native is {plain / fast:.1f} times the twin"
    assert plain / hand <= HONEST_MAX, f"the twin takes {plain / hand:.2f} times what it needs"


def best(decides: dict[Any, Any], asked: dict[Any, list[Question]]) -> dict[Any, float]:
    """Nanoseconds of one decision of each, the best of interleaved rounds: what else the machine
    does can only add."""
    times: dict[Any, float] = dict.fromkeys(decides, float("inf"))
    for _ in range(4 * ROUNDS):
        for name, decide in decides.items():
            questions_of = asked[name]
            begin = time.perf_counter_ns()
            for _ in range(10):
                for one in questions_of:
                    decide(*one)
            spent = (time.perf_counter_ns() - begin) / 10 / len(questions_of)
            times[name] = min(times[name], spent)
    return times


@pytest.mark.req("P-3", "P-7")
def test_decide_is_flat_and_close_to_a_call(benchmark: BenchmarkFixture) -> None:
    """Every rule but the asked ones costs nothing, and the asked ones little."""
    counts = (10, 1_000, 10_000)
    decides: dict[Any, Any] = {count: native.Rules(entries(count)).decide for count in counts}
    asked: dict[Any, Any] = {count: questions(count) for count in counts}
    # No rule and no form of a resource: the arguments are read, nothing is looked at.
    decides["empty"] = native.Rules([]).decide
    asked["empty"] = [(*one[:5], ()) for one in asked[10]]
    times = best(decides, asked)
    for name, nanoseconds in times.items():
        benchmark.extra_info[f"{name} ns"] = round(nanoseconds)
    benchmark.extra_info["10 rules : empty call"] = round(times[10] / times["empty"], 2)
    for count in counts[1:]:
        benchmark.extra_info[f"{count} : 10 rules"] = round(times[count] / times[10], 2)
    run: Any = benchmark.pedantic
    run(lambda: [decides[10_000](*one) for one in asked[10_000]], rounds=ROUNDS)
    assert times[10] <= CALL_MAX * times["empty"]
    assert times[1_000] <= FLAT_MAX * times[10]
    assert times[10_000] <= FLAT_MAX * times[10]


@pytest.mark.req("P-3", "P-7")
def test_decide_beside_cedar(benchmark: BenchmarkFixture) -> None:
    cedarpy: Any = pytest.importorskip("cedarpy", reason="the peer is not installed")
    count = 1_000
    rows, asked = entries(count), questions(count)[:50]
    words = {pure.ALLOW: "permit", pure.DENY: "forbid"}
    text = "".join(
        f'{words[effect]}(principal, action == Action::"{action}", resource) when '
        f'{{ context.who like "{who.decode().replace("**", "*")}" && '
        f'context.what like "{form.decode()}*" && context.risk <= {risk} }};\n'
        for effect, _rule, action, _facts, risk, _size, who, _kind, form in rows
    )
    theirs = cedarpy.PolicySet.from_str(text)
    entities = cedarpy.Entities.from_json_str("[]")

    def cedar(one: Question) -> bool:
        action, _facts, risk, _size, who, (form,) = one
        request = {
            "principal": 'Agent::"a"', "action": f'Action::"{action}"', "resource": 'R::"r"',
            "context": {"who": who.decode(), "what": form.decode(), "risk": risk},
        }  # fmt: skip
        return bool(cedarpy.is_authorized(request, theirs, entities).allowed)

    ours = native.Rules(rows).decide
    assert [cedar(one) for one in asked] == [ours(*one)[0] == pure.ALLOW for one in asked]
    begin = time.perf_counter_ns()
    for one in asked:
        cedar(one)
    peer = (time.perf_counter_ns() - begin) / len(asked)
    fast = best({0: ours}, {0: asked})[0]
    benchmark.extra_info["Cedar : native"] = round(peer / fast)
    benchmark.extra_info["Cedar ns"] = round(peer)
    run: Any = benchmark.pedantic
    run(lambda: [ours(*one) for one in asked], rounds=ROUNDS)
    assert peer / fast >= PEER_FLOOR


@pytest.mark.req("P-3")
@pytest.mark.parametrize("what", ["path", "name", "address"])
def test_the_whole_decision_point(benchmark: BenchmarkFixture, what: str) -> None:
    """Canonical form, look-up and the finished record; no floor of its own, but it is watched."""
    policy = document.load(default.TEXT, home="/home/u/.goclaw")
    action, resource = {
        "path": ("fs.read", "/home/u/project/src/main.py"),
        "name": ("tool.call", "builtin/word-count"),
        "address": ("net.connect", "https://api.example.org/v1/items"),
    }[what]
    subject = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL, "s_1", "r_1", "t_1", 1)
    context = Context(interactive=True, roots=("/home/u/project",))
    run: Any = benchmark
    decision = run(
        lambda: pdp.decide(
            policy, subject=subject, action=action, resource=resource, context=context,
            decision_id="d_1", at_ms=0,
        )
    )  # fmt: skip
    assert decision.rule_id != pdp.MALFORMED
