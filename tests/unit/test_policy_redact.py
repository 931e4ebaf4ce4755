"""Redaction: registered values exactly, others by their looks, ordinary texts not at all (A-6)."""

from __future__ import annotations

import base64
import json
import random
import string
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redact_corpus import ordinary, prefixed, unnamed

from goclaw.policy.redact import Redactor, Registered, references

pytestmark = pytest.mark.req("A-6", "G-21", "I-7")

ROOT = Path(__file__).parents[2]
VALUE = 'p4ss/w"ö\\rd+%41 \U0001f511x'
SECRET = Registered("mail", "0123456789ab", VALUE)
OTHER = Registered("other", "ba9876543210", "correct-horse-battery")
REDACTOR = Redactor([SECRET, OTHER])
REFERENCE = "secret:mail#0123456789ab"

values = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=8)
noise = st.text(st.characters(codec="utf-8"), max_size=40)


def ansi(text: str, seed: random.Random) -> str:
    codes = ("\x1b[31m", "\x1b[0m", "\x1b[1;38;5;9m", "\x1b]0;title\x07", "\x1b[K")
    return "".join(char + seed.choice((*codes, "", "")) for char in text)


def every_form(value: str, seed: random.Random) -> list[str]:
    """The value as texts carry it."""
    data = value.encode()
    wide = value.encode("utf-16-be")
    forms = [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
    forms += [json.dumps(json.dumps(value))[3:-3]]
    forms += ["".join(f"\\u{wide[i : i + 2].hex()}" for i in range(0, len(wide), 2))]
    forms += [urllib.parse.quote(value, safe=""), "".join(f"%{byte:02X}" for byte in data)]
    forms += ["".join(f"%{byte:02x}" for byte in data), ansi(value, seed)]
    forms += [json.dumps(ansi(value, seed))[1:-1]]
    for before in (b"", b"a", b"ab"):
        forms.append(base64.b64encode(before + data + b"xyz").decode())
        forms.append(base64.urlsafe_b64encode(before + data).decode())
    return forms


@settings(max_examples=30)
@given(value=values, before=noise, after=noise, number=st.integers())
def test_a_registered_value_is_found_in_every_form(
    value: str, before: str, after: str, number: int
) -> None:
    redactor = Redactor([Registered("x", "fedcba987654", value)])
    seed = random.Random(number)
    for form in every_form(value, seed):
        cleaned = redactor.text(before + form + after)
        assert "secret:x#" in cleaned, form
        assert value not in cleaned


@settings(max_examples=30)
@given(value=values, pieces=st.lists(noise, max_size=4), seed=st.integers())
def test_a_stream_says_what_the_whole_text_says_however_it_is_cut(
    value: str, pieces: list[str], seed: int
) -> None:
    redactor = Redactor([Registered("x", "fedcba987654", value)])
    chance = random.Random(seed)
    text = ""
    for piece in pieces:
        text += piece + chance.choice(every_form(value, chance))
    stream, said, left = redactor.stream(), "", text
    while left:
        size = chance.randint(1, 12)
        said += stream.feed(left[:size])
        left = left[size:]
        assert value not in said
    said += stream.end()
    assert value not in said
    for form in every_form(value, chance)[:8]:
        assert form not in said


ODD = [
    'qu"ote-1234',
    "back\\slash-99",
    "slash/77-key",
    "line\nend-88-x",
    "plainKey1234",
    "t\tab-55555",
]


@settings(max_examples=150)
@given(
    value=st.sampled_from(ODD),
    levels=st.integers(0, 3),
    before=st.lists(
        st.sampled_from(["\n", '"', "\\", "/", "\t", "%", "100% ", "\x1b[0m", "é", "a"])
    ),
    seed=st.integers(),
)
def test_no_text_that_holds_one_is_passed_over(
    value: str, levels: int, before: list[str], seed: int
) -> None:
    """The quick look says no only where the whole search would find nothing."""
    redactor = Redactor([Registered("x", "fedcba987654", value)])
    chance = random.Random(seed)
    text = "".join(before) + chance.choice(["", *every_form(value, chance)]) + "".join(before)
    for _ in range(levels):
        text = json.dumps(text, ensure_ascii=chance.random() < 0.5)
        if chance.random() < 0.3:
            text = text.replace("/", "\\/")
    data = text.encode()
    assert redactor._may_hold(data) or not redactor._spans(data), text


def test_ordinary_json_is_passed_over() -> None:
    """Line ends, quotes and signs of percent in it are no reason to look twice."""
    redactor = Redactor([Registered("x", "fedcba987654", "plainKey1234")])
    said = json.dumps({"text": 'a "quoted"\n\tline, 100% of it'}).encode()
    assert not redactor._may_hold(said)
    for escaped in (b"\\u0070", b"%70", b"\x1b[0m", "\x9b0m".encode()):
        assert redactor._may_hold(said + escaped)


def test_what_cannot_become_a_secret_is_not_held_back() -> None:
    stream = REDACTOR.stream()
    assert stream.feed("hello ") == "hello "
    assert stream.feed("the corr") == "the "
    assert stream.feed("ect way") == "correct way"
    assert stream.feed("correct-horse-") == ""
    assert stream.feed("battery!") == "secret:other#ba9876543210!"
    assert stream.feed("correct-h") == ""
    assert stream.end() == "correct-h"
    assert Redactor().stream().feed("anything c") == "anything c"


def test_terminal_codes_without_end_hold_nothing_up() -> None:
    stream = REDACTOR.stream()
    given_out = 0
    for _ in range(20):
        given_out += len(stream.feed("c" + "\x1b[0m" * 2000))
    assert given_out > 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(
            ["a", VALUE, f"x{VALUE}y", "correct-horse-battery", '","', "n" + VALUE]
        ),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(noise, inner, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
def test_json_stays_json(value: object) -> None:
    text = json.dumps(value)
    for data in (
        text.encode(),
        json.dumps(text).encode(),
        json.dumps(value, ensure_ascii=False).encode(),
    ):
        cleaned = REDACTOR.data(data)
        json.loads(cleaned)
        assert VALUE not in json.dumps(json.loads(cleaned), ensure_ascii=False)


@pytest.mark.parametrize(
    "value", ["12345678901", '","b":"cc', "nabcdefgh", "abcdefg\\", '{"a":[1,2']
)
def test_a_value_that_looks_like_json_breaks_none(value: str) -> None:
    redactor = Redactor([Registered("x", "fedcba987654", value)])
    for text in (
        '{"a":12345678901,"b":["12345678901"]}', '{"a":"x","b":"cc"}', '"\\nabcdefghi"',
        '["abcdefg\\"x"]', '["abcdefg\\\\"]', '{"a":[1,2,3]}', json.dumps(value),
    ):  # fmt: skip
        json.loads(redactor.data(text.encode()))


@pytest.mark.parametrize(
    "value", ["Infinity", "-Infinity", "12345678", "-1234567.50", "1234567.890e+00", "0.00010000"]
)
def test_a_value_that_is_a_number_is_found_as_it_is_written(value: str) -> None:
    redactor = Redactor([Registered("x", "fedcba987654", value)])
    for text in (value, f"[1, {value}]", f'{{"a": {value}, "b": 1.50}}', f'"{value}"'):
        cleaned = redactor.text(text)
        assert value not in cleaned, text
        assert "secret:x#fedcba987654" in cleaned, text
        if "Infinity" not in text:
            json.loads(cleaned)
    assert redactor.text("1.50") == "1.50"


def test_the_reference_names_the_secret_and_its_value_and_is_left_alone() -> None:
    assert REDACTOR.text(f"a {VALUE} b") == f"a {REFERENCE} b"
    assert references(f"a {REFERENCE}, secret:other and secret:~jwt") == [
        ("mail", "0123456789ab"), ("other", None), ("~jwt", None),
    ]  # fmt: skip
    assert REDACTOR.text(REFERENCE) == REFERENCE
    assert REDACTOR.text(f"password={REFERENCE}") == f"password={REFERENCE}"


def test_where_one_value_holds_another_neither_is_left() -> None:
    redactor = Redactor(
        [Registered("a", "a" * 12, "inner-value"), Registered("b", "b" * 12, "x-inner-value-y")]
    )
    assert (
        redactor.text("x-inner-value-y inner-value") == f"secret:b#{'b' * 12} secret:a#{'a' * 12}"
    )


def test_findings_are_counted_by_kind() -> None:
    redactor = Redactor([OTHER])
    redactor.text("correct-horse-battery correct-horse-battery ghp_" + "a1" * 18)
    assert redactor.counts == {"registered": 2, "github": 1}


def test_without_anything_to_find_the_same_object_comes_back() -> None:
    data = b'{"text": "nothing of note"}'
    assert Redactor().data(data) is data
    assert REDACTOR.data(data) is data


# -- by their looks --------------------------------------------------------------------------------


def missed(texts: list[tuple[str, str, str]]) -> list[str]:
    redactor = Redactor()
    return [f"{kind}: {text}" for kind, secret, text in texts if secret in redactor.text(text)]


def in_json(texts: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [
        (kind, json.dumps(secret)[1:-1], json.dumps({"t": text})) for kind, secret, text in texts
    ]


def test_at_most_two_in_a_hundred_of_the_fixed_kinds_are_missed() -> None:
    texts = list(prefixed(2_000, random.Random(1)))
    for found in (missed(texts), missed(in_json(texts))):
        assert len(found) <= 0.02 * len(texts), found[:10]


def test_at_most_ten_in_a_hundred_are_missed_overall() -> None:
    seed = random.Random(2)
    texts = [*prefixed(1_000, seed), *unnamed(2_000, seed)]
    for found in (missed(texts), missed(in_json(texts))):
        assert len(found) <= 0.10 * len(texts), found[:20]


def test_ordinary_texts_are_left_alone() -> None:
    """Lines made for it, and the texts of this repository, but for tests that make secrets up."""
    redactor = Redactor()
    seed = random.Random(3)
    texts = list(ordinary(2_000, seed))
    files = [
        file
        for folder in (
            "goclaw",
            "docs",
            "bench",
            "tests/house",
            "tests/sim",
            "tests/native",
            "tests/storm",
        )
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in (".py", ".md", ".sql", ".pyx", ".pyi", ".toml", ".h", ".c")
    ]
    files += [ROOT / "README.md", ROOT / "LICENSE", ROOT / "pyproject.toml"]
    assert len(files) > 100
    texts += [line for file in files for line in file.read_text("utf-8").split("\n\n")]
    touched = [(text, redactor.text(text)) for text in texts if redactor.text(text) != text]
    assert touched == []


@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    REDACTOR.text(text)
    stream = REDACTOR.stream()
    stream.feed(text)
    stream.end()


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    REDACTOR.data(data)


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    """No spelling and no pattern goes over a text again and again."""
    for text in (
        "a" * 500_000, "\\u0061" * 50_000, "%41" * 100_000, "password=" * 50_000, "-" * 300_000,
        "-----BEGIN PRIVATE KEY-----" * 10_000, "eyJ" * 100_000, "://a:" * 50_000,
        "sk-" * 100_000, string.printable * 3_000,
    ):  # fmt: skip
        REDACTOR.text(text)
