"""The JSON decoder under rubbish: accepted as a slow, obvious decoder says, or refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.errors import ParseError
from goclaw.protocol.jsonrpc import Peer, decode, encode
from goclaw.testing import answers

REFUSED = object()


def reference(data: bytes) -> Any:
    """The rules one by one, each in its plainest form, with the standard library's parser."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def number(digits: str) -> Any:
        if len(digits) > limits.JSON_NUMBER_CHARS_MAX or math.isinf(float(digits)):
            raise ValueError("number")
        return int(digits) if digits.lstrip("-").isdigit() else float(digits)

    def constant(name: str) -> Any:
        raise ValueError(name)

    try:
        text = data.decode("utf-8", "strict")
        value = json.loads(
            text,
            object_pairs_hook=members,
            parse_int=number,
            parse_float=number,
            parse_constant=constant,
        )
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates
    except (ValueError, RecursionError):
        return REFUSED
    return value if depth(value) <= limits.JSON_DEPTH_MAX else REFUSED


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def judge(data: bytes) -> None:
    """The property: the decoder says what the reference says, types and digits included."""
    try:
        got = decode(data)
    except ParseError as error:
        got, sentence = REFUSED, str(error)
    else:
        sentence = ""
    assert repr(got) == repr(reference(data))
    assert "\n" not in sentence


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
TOKENS = [
    *'{}[],:"\\ \n\t-+.0123456789eE', "true", "false", "null", "NaN", "Infinity", "1e999", "-0",
    '"a"', '"a":', '"\\u0061":', '"b":1', "\\ud83d", "\\ude00", "\\u00e9", "\u00e9", "\ufeff", "\0",
    "18446744073709551616", "9" * 310, "0." + "3" * 400,
]  # fmt: skip
soup = st.lists(st.sampled_from(TOKENS), max_size=30).map(lambda parts: "".join(parts).encode())


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A good text with a few bytes changed, cut out or doubled."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")]))
    text = json.dumps(
        draw(values), separators=separators, ensure_ascii=draw(st.booleans())
    ).encode()
    data = bytearray(text)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 8)))
        data[at:end] = draw(st.sampled_from([b"", bytes(data[at:end]) * 2])) or draw(
            st.binary(max_size=2)
        )
    return bytes(data)


@st.composite
def objects_with_doubles(draw: st.DrawFn) -> bytes:
    """Objects whose keys often stand twice, in every spelling, beside numbers that shrink."""
    keys = st.sampled_from(['"a"', '"\\u0061"', '"b"', '""', '"\\n"', '"\\u000a"'])
    inner = st.sampled_from(["1", "1.0", "1e5", "100000000000000000000", '"x:y"', '{"a":1}', "[]"])
    pairs = draw(st.lists(st.tuples(keys, inner), max_size=5))
    space = draw(st.sampled_from(["", " "]))
    return ("{" + ("," + space).join(f"{key}:{space}{text}" for key, text in pairs) + "}").encode()


@pytest.mark.req("A-14", "W-1")
@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=60), soup, spoiled(), objects_with_doubles()))
@example(b'{"a":1e5,"b":1,"b":1}')
@example(b'["\\ud83d\\ude00"]')
@example(b"[" * 300 + b"]" * 300)
def test_decoder_agrees_with_the_reference(data: bytes) -> None:
    judge(data)


@pytest.mark.req("A-14", "W-1")
@given(values)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.req("A-14", "W-1")
@given(st.lists(st.one_of(st.binary(max_size=40), soup, spoiled()), max_size=5))
def test_no_input_ends_the_connection(messages: list[bytes]) -> None:
    peer = Peer(batches=True)
    ping = b'{"jsonrpc":"2.0","id":"ping","method":"get_data"}'
    for data in messages:
        for answer in answers(peer, data):
            decode(answer)
            assert b"\n" not in answer
        assert answers(peer, ping) == [b'{"jsonrpc":"2.0","id":"ping","result":["hello",5]}']


@pytest.mark.req("A-14")
@pytest.mark.parametrize(
    "accepted_by_lax_parsers", [b'{"a":1,"a":2}', b"[NaN]", b"[" * 300 + b"]" * 300, b'"\\ud800"']
)
def test_canary(accepted_by_lax_parsers: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property must catch a lax decoder, else it proves nothing."""
    monkeypatch.setitem(judge.__globals__, "decode", json.loads)
    with pytest.raises(AssertionError):
        judge(accepted_by_lax_parsers)
