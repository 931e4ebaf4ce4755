"""The native rules and their plain twin give the same answer to every question.

Requests are derived from the rules themselves with at most one field changed, because a request
drawn at random hardly ever comes near a rule.
"""

from __future__ import annotations

import gc
import importlib
import random
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goclaw._pure import rules as pure

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    native: Any = importlib.import_module("goclaw._fast.rules")
except ImportError:
    native = None

pytestmark = [
    pytest.mark.req("A-1"),
    pytest.mark.skipif(native is None, reason="the native modules are not built"),
]

BOUND = 2**63 - 1
Entry = tuple[int, int, int, int, int, int, bytes, int, bytes]
Question = tuple[int, int, int, int, bytes, tuple[bytes, ...]]

SEGMENTS = [
    b"a",
    b"b",
    b"ab",
    b"srv",
    b"p17",
    b"secret-files",
    b"x" * 9,
    b"",
    b"\0root",
    b".",
    b"*",
]
PIECES = [b"a", b"b", b"/", b"*", b"**", b"ab/", b"srv", b".", b"\xff", b"longer-than-eight"]

# mostly short segments, so that the rules of one policy lie inside each other's directories
segments = st.one_of(st.sampled_from(SEGMENTS[:2]), st.sampled_from(SEGMENTS))
paths = st.lists(segments, min_size=1, max_size=5).map(b"/".join)
globs = st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join)
texts = st.one_of(paths, globs, st.binary(max_size=12))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.integers(0, 3))
    text = draw(paths if kind < pure.GLOB else globs)
    if kind == pure.TREE and not text:
        text = b"a"
    return (
        draw(st.integers(0, 2)),
        draw(st.integers(0, 9)),
        draw(st.sampled_from([0, 0, 0, 1, 2])),
        draw(st.sampled_from([0, 0, 0, 1, 2, 6, 1 << 40])),
        draw(st.sampled_from([BOUND, BOUND, 0, 5])),
        draw(st.sampled_from([BOUND, BOUND, 0, 100])),
        draw(st.one_of(st.just(b"**"), st.just(b"a**"), globs)),
        kind,
        text,
    )


def filled(glob: bytes, fillers: list[bytes]) -> bytes:
    """A text that the glob matches if its fillers fit its stars."""
    parts = re.split(rb"\*+", glob)
    stars = [fillers[place % len(fillers)] for place in range(len(parts) - 1)]
    return b"".join(a + b for a, b in zip(parts, [*stars, b""], strict=True))


@st.composite
def questions(draw: st.DrawFn, known: list[Entry]) -> Question:
    _, _, action, _, risk, size, subject, kind, text = draw(st.sampled_from(known))
    fillers = draw(
        st.lists(st.sampled_from([b"", b"a", b"/", b"a/b", b"ab"]), min_size=1, max_size=3)
    )
    form = filled(text, fillers) if kind == pure.GLOB else text
    if kind in (pure.TREE, pure.PREFIX):
        form += draw(st.sampled_from([b"", b"/a", b"/", b"a", b"/a/b/c"]))
    facts = draw(st.sampled_from([0, 1, 2, 4, 7]))
    asked = [action, facts, min(risk, 7), min(size, 7), filled(subject, fillers), (form,)]
    changed = draw(st.integers(0, 6))
    if changed < 6:
        other: list[st.SearchStrategy[Any]] = [
            st.integers(-1, 3),
            st.integers(0, BOUND),
            st.integers(0, BOUND),
            st.integers(0, BOUND),
            texts,
            st.lists(st.one_of(texts, st.just(form)), max_size=3).map(tuple),
        ]
        asked[changed] = draw(other[changed])
    return tuple(asked)  # type: ignore[return-value]


@settings(max_examples=300)
@given(st.data())
def test_twins_agree_on_requests_one_field_away_from_a_rule(data: st.DataObject) -> None:
    known = data.draw(st.lists(entries(), min_size=1, max_size=30))
    fast, plain = native.Rules(known), pure.Rules(known)
    assert len(fast) == len(plain) == len(known)
    for asked in data.draw(st.lists(questions(known), min_size=1, max_size=12)):
        assert fast.decide(*asked) == plain.decide(*asked), asked


@settings(max_examples=300)
@given(st.data())
def test_both_agree_with_reading_every_entry_in_turn(data: st.DataObject) -> None:
    known = data.draw(st.lists(entries(), min_size=1, max_size=15))
    fast, plain = native.Rules(known), pure.Rules(known)
    for asked in data.draw(st.lists(questions(known), min_size=1, max_size=6)):
        says = read_in_turn(known, asked)
        assert plain.decide(*asked) == says, asked
        assert fast.decide(*asked) == says, asked


def read_in_turn(known: list[Entry], asked: Question) -> tuple[int, int]:
    """Neither index nor hash nor regular expression: what the words of the twin mean."""
    action, facts, risk, size, who, forms = asked
    found = [
        (-effect, rule)
        for effect, rule, of, forbidden, risk_max, bytes_max, subject, kind, text in known
        if of == action and not facts & forbidden and risk <= risk_max and size <= bytes_max
        if matches(subject, who) and any(covers(kind, text, form) for form in forms)
    ]
    effect, rule = min(found, default=(-pure.DENY, pure.NO_RULE))
    return -effect, rule


def covers(kind: int, text: bytes, form: bytes) -> bool:
    if kind == pure.EXACT:
        return form == text
    if kind == pure.TREE:
        return form == text or form.startswith(text + b"/")
    return form.startswith(text) if kind == pure.PREFIX else matches(text, form)


def matches(glob: bytes, text: bytes) -> bool:
    """By dynamic programming over the reachable ends, so that no order of attempts matters."""
    ends = {0}
    for token in re.findall(rb"\*\*|\*|[^*]", glob, re.DOTALL):
        if token == b"**":
            ends = set(range(min(ends, default=len(text) + 1), len(text) + 1))
        elif token == b"*":
            reached = set()
            for end in ends:
                while end not in reached:
                    reached.add(end)
                    if end < len(text) and text[end : end + 1] != b"/":
                        end += 1
            ends = reached
        else:
            ends = {end + 1 for end in ends if text[end : end + 1] == token}
    return len(text) in ends


@pytest.mark.parametrize(
    "hostile",
    [
        b"a*" * 8 + b"b",
        b"**a" * 8 + b"b",
        b"**a*b" * 4 + b"**c",
        b"*/" * 8,
        b"**" + b"a*" * 7 + b"b",
    ],
    ids=repr,
)
def test_no_text_makes_a_glob_slow(hostile: bytes) -> None:
    # the longest resource against the most stars: the test's time-out is the judge
    entry = (pure.ALLOW, 0, 0, 0, BOUND, BOUND, b"**", pure.GLOB, hostile)
    fast, plain = native.Rules([entry]), pure.Rules([entry])
    for text in (b"a" * 2000, b"ab" * 1000, b"a/" * 1000, b"a" * 1000 + b"/" + b"a" * 999):
        asked = (0, 0, 0, 0, b"x", (text,))
        assert fast.decide(*asked) == plain.decide(*asked)


@pytest.mark.parametrize("module", [pure, native], ids=["pure", "native"])
def test_a_deny_from_afar_wins_over_an_allow_next_to_the_resource(module: Any) -> None:
    base = (0, 0, BOUND, BOUND, b"**")
    for far in (
        (pure.PREFIX, b""),
        (pure.TREE, b"/a"),
        (pure.GLOB, b"**/x"),
        (pure.GLOB, b"/a/**"),
    ):
        near = (pure.EXACT, b"/a/b/x")
        for deny, allow in ((far, near), (near, far)):
            table = module.Rules([(pure.ALLOW, 0, *base, *allow), (pure.DENY, 1, *base, *deny)])
            assert table.decide(0, 0, 0, 0, b"s", (b"/a/b/x",)) == (pure.DENY, 1)
            for forms in ((b"/a/b/x", b"/other"), (b"/other", b"/a/b/x")):
                assert table.decide(0, 0, 0, 0, b"s", forms) == (pure.DENY, 1)


@pytest.mark.parametrize("module", [pure, native], ids=["pure", "native"])
def test_an_entry_that_cannot_be_is_refused(module: Any) -> None:
    good = (pure.ALLOW, 0, 0, 0, BOUND, BOUND, b"**", pure.TREE, b"a")
    for place, value in ((0, 3), (0, -1), (7, 4), (7, -1), (8, b"")):
        bad = [*good]
        bad[place] = value
        with pytest.raises(ValueError, match="no such effect or kind, or a tree without text"):
            module.Rules([tuple(bad)])


@pytest.mark.parametrize("module", [pure, native], ids=["pure", "native"])
@pytest.mark.req("A-1")
def test_a_deny_wins_over_an_ask_and_an_ask_over_an_allow(module: Any) -> None:
    base = (0, 0, BOUND, BOUND, b"**", pure.PREFIX, b"/srv/")
    asked = (0, 0, 0, 0, b"x", (b"/srv/a",))
    for effects in ([0], [0, 1], [1, 0], [0, 1, 2], [2, 1, 0], [0, 2], [1, 2, 1]):
        table = module.Rules([(effect, number, *base) for number, effect in enumerate(effects)])
        assert table.decide(*asked) == (max(effects), effects.index(max(effects)))


def test_the_constants_are_the_same() -> None:
    for name in pure.__all__:
        if name != "Rules":
            assert getattr(native, name) == getattr(pure, name)
    assert native.__all__ == pure.__all__


def test_native_refuses_wrong_types_and_goes_on() -> None:
    table = native.Rules([(0, 0, 0, 0, BOUND, BOUND, b"**", pure.PREFIX, b"")])
    good = (0, 0, 0, 0, b"x", (b"r",))
    for place, value in ((4, "x"), (4, None), (5, [b"r"]), (5, ("r",)), (5, (None,)), (5, None)):
        bad: list[Any] = [*good]
        bad[place] = value
        with pytest.raises(TypeError):
            table.decide(*bad)
    for place in (1, 2, 3):
        bad = [*good]
        bad[place] = 1 << 64
        with pytest.raises(OverflowError):
            table.decide(*bad)
    assert table.decide(*good) == (pure.ALLOW, 0)


def drift(call: Callable[[], object], what: list[object]) -> list[int]:
    call()
    gc.collect()
    before = [sys.getrefcount(one) for one in what]
    for _ in range(1000):
        call()
    after = [sys.getrefcount(one) for one in what]
    return [now - was for now, was in zip(after, before, strict=True)]


def test_native_keeps_no_reference_and_answers_with_what_it_made_before() -> None:
    rows = [(0, n, 0, 0, BOUND, BOUND, b"id-**", pure.PREFIX, b"/srv/%d/" % n) for n in range(50)]
    table = native.Rules(rows)
    subject, form = b"id-" + b"1", b"/srv/7/" + b"x"
    forms = (form,)
    assert (
        drift(lambda: table.decide(0, 0, 0, 0, subject, forms), [subject, form, forms]) == [0] * 3
    )
    assert drift(lambda: native.Rules(rows), [rows, rows[0], rows[0][8]]) == [0] * 3
    answer = table.decide(0, 0, 0, 0, subject, forms)
    assert table.decide(0, 0, 0, 0, subject, forms) is answer


def test_many_threads_may_ask_one_table() -> None:
    rows = [(n % 3, n, 0, 0, BOUND, BOUND, b"**", pure.TREE, b"/p%d" % n) for n in range(300)]
    table = native.Rules(rows)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(3000):
            n = chance.randrange(300)
            if table.decide(0, 0, 0, 0, b"x", (b"/p%d/f" % n,)) != (n % 3, n):
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
